"""Between a plan and a module x layer board: what each cell shows, and a short recipe for cells as they are set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfn import anatomy
from sfn.errors import RecipeError
from sfn.recipes.grammar import Recipe, Rule, Source, Where, merge_ranges, parse_source
from sfn.recipes.plans import Plan, plain_path, resolve, words_for

if TYPE_CHECKING:
    from sfn.anatomy import Part
    from sfn.pairs import Pair

Place = tuple[int | None, str]  # (layer, or None for what has none; row: `Part.row`)
_A = Source("A")
_REMOVE = Source("remove")
_GROUPS = ("all", "attn", "mlp", "norms", "emb", "head", "qkv")  # the larger first


@dataclass(frozen=True, slots=True)
class _Row:
    """One board row (or one expert of it): `word` means exactly its tensors ("" if no word does), `sources` says which
    source by layer."""

    word: str
    parts: tuple[Part, ...]
    sources: Mapping[int | None, Source]


def cells(plan: Plan) -> dict[Place, str]:
    """State of every cell of the board: "A", "B", "blend", "zero", "reinit", "removed", or "mixed" where the tensors of
    one cell (experts, say) have different sources. In anatomical order."""
    found: dict[Place, set[Source]] = {}
    for name, source in plan.sources.items():
        part = anatomy.parse(name)
        found.setdefault((part.layer, part.row), set()).add(source)
    states = {"remove": "removed"}
    return {
        place: "mixed" if len(sources) > 1 else states.get((kind := next(iter(sources)).kind), kind)
        for place, sources in found.items()
    }


def toggle(recipe: Recipe, pair: Pair, places: Iterable[Place], source: Source | str) -> Recipe:
    """`recipe` with the cells at `places` set to `source` ("A", "B", "B:0.5", "zero", "reinit:1" or a Source).

    All else stays in effect as it was, but the recipe is written anew, as short as `compact` can. A cell in a removed
    layer brings that layer back, the rest of it from A.

    Raises:
        RecipeError: a place that the pair does not have, or what `resolve` refuses.
    """
    if isinstance(source, str):
        source = parse_source(source)
    if source.kind == "remove":
        raise RecipeError("A cell cannot be removed, only a whole layer: write all@5=remove, or set the cell to zero.")
    sources = dict(resolve(recipe, pair).sources)
    by_place: dict[Place, list[str]] = {}
    for name in sources:
        part = anatomy.parse(name)
        by_place.setdefault((part.layer, part.row), []).append(name)
    places = set(places)
    for layer, row in places:
        if (layer, row) not in by_place:
            where = "outside the layers" if layer is None else f"in layer {layer}"
            raise RecipeError(f"A has no {row!r} {where}, so there is no such cell to set.")
    back = {layer for layer, _ in places if layer is not None}
    for place, names in by_place.items():
        for name in names:
            if place in places:
                sources[name] = source
            elif place[0] in back and sources[name] == _REMOVE:
                sources[name] = _A
    result = compact(pair, sources)
    resolve(result, pair)
    return result


def compact(pair: Pair, sources: Mapping[str, Source]) -> Recipe:
    """A short recipe whose plan for `pair` has these sources.

    Args:
        sources: tensor name -> source, for A's tensors; what is left out is A. Layers to be removed have the source
            "remove" in every tensor.

    Raises:
        RecipeError: the grammar cannot say it: weight and bias of one module differ, or a layer is removed in part.
    """
    removed = dict.fromkeys(_removed(pair, sources), _REMOVE)
    columns = _whole_layers(pair, sources)
    recipes = []
    for layers in [removed] if columns == removed else [removed, columns]:
        rows = tuple(_rows(pair, sources, layers))
        last = [Rule(("all",), _where(n for n in layers if layers[n] == each), each) for each in set(layers.values())]
        used = {source for row in rows for source in row.sources.values()} - {_A}
        for start in [_A, *sorted(used, key=str)]:
            first = [] if start == _A else [Rule(("all",), None, start)]
            recipes.append(Recipe((*first, *_rules(rows, start), *last)))
    return min(recipes, key=_cost)


def _cost(recipe: Recipe) -> tuple[int, int, str]:
    """What it takes to read a recipe: names and ranges, and twice the rules; then its length."""
    words = sum(len(rule.names) + len(rule.where or ()) + 2 for rule in recipe.rules)
    return words, len(str(recipe)), str(recipe)


def _where(layers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    return merge_ranges(tuple((layer, layer) for layer in layers))


def _whole_layers(pair: Pair, sources: Mapping[str, Source]) -> dict[int, Source]:
    """Layers that come from one source as a whole, if that is not A."""
    found: dict[int, set[Source]] = {}
    for row in pair.rows:
        if row.a is not None and row.part.layer is not None:
            found.setdefault(row.part.layer, set()).add(sources.get(row.name, _A))
    return {layer: next(iter(held)) for layer, held in found.items() if len(held) == 1 and held != {_A}}


def _removed(pair: Pair, sources: Mapping[str, Source]) -> tuple[int, ...]:
    found: dict[int | None, set[bool]] = {}
    for row in pair.rows:
        if row.a is not None:
            found.setdefault(row.part.layer, set()).add(sources.get(row.name, _A) == _REMOVE)
    for layer, states in found.items():
        if True in states and (layer is None or False in states):
            raise RecipeError(
                "Only whole layers can be removed: every tensor of the layer, and nothing outside layers."
            )
    return tuple(sorted(layer for layer, states in found.items() if layer is not None and True in states))


def _rows(pair: Pair, sources: Mapping[str, Source], settled: Mapping[int, Source]) -> Iterator[_Row]:
    """The board's rows outside the layers that are settled as a whole, each with a word that means just its tensors; a
    row whose experts differ in their sources is one row for each expert."""
    parts = [row.part for row in pair.rows if row.a is not None]
    meanings = _meanings(row.part for row in pair.rows)
    by_row: dict[str, list[Part]] = {}
    for part in parts:
        by_row.setdefault(part.row, []).append(part)
    for members in by_row.values():
        alike = _by_layer(members, sources)
        groups = [members] if alike is not None else _split(members)
        for group in groups:
            by_layer = _by_layer(group, sources)
            if by_layer is None:
                raise RecipeError(f"Weight and bias of {group[0].path} go together: a recipe cannot part them.")
            kept = {layer: source for layer, source in by_layer.items() if layer not in settled}
            if kept:
                yield _Row(_word(group, meanings), tuple(group), kept)


def _by_layer(parts: Iterable[Part], sources: Mapping[str, Source]) -> dict[int | None, Source] | None:
    """Source by layer; None where the tensors of one layer differ."""
    found: dict[int | None, Source] = {}
    for part in parts:
        source = sources.get(part.name, _A)
        if found.setdefault(part.layer, source) != source:
            return None
    return found


def _split(parts: Iterable[Part]) -> list[list[Part]]:
    by_path: dict[str, list[Part]] = {}
    for part in parts:
        by_path.setdefault(part.path, []).append(part)
    return list(by_path.values())


def _meanings(parts: Iterable[Part]) -> dict[str, set[str]]:
    """Word -> the paths that it means."""
    found: dict[str, set[str]] = {}
    for part in parts:
        for word in words_for(part):
            found.setdefault(word, set()).add(part.path)
    return found


def _word(parts: list[Part], meanings: Mapping[str, set[str]]) -> str:
    """The shortest word that means these modules, in every layer, and no others of the pair; "" if there is none."""
    paths = {part.path for part in parts}
    first = parts[0]
    words = [first.module, first.row, first.role]
    for path in (plain_path(first), first.path):
        pieces = path.split(".")
        words += [".".join(pieces[-n:]) for n in range(2, len(pieces) + 1)]
    for word in words:
        if word not in anatomy.GROUPS and not word[:1].isdigit() and meanings.get(word) == paths:
            return word
    return ""


def _rules(rows: tuple[_Row, ...], start: Source) -> list[Rule]:
    """Rules that lead from `start` everywhere to the rows' sources: first what rows with exceptions are otherwise, then
    the rest, rows with the same layers and source together and by group where a whole group is meant."""
    first: list[Rule] = []
    wanted: dict[tuple[Where, Source], list[_Row]] = {}
    for row in rows:
        for where, source in _assignments(row, start):
            if where is None and len(set(row.sources.values())) > 1:
                first.append(Rule((_named(row),), None, source))
            else:
                wanted.setdefault((where, source), []).append(row)
    rest = [
        Rule(tuple(_words(rows, members, where, source)), where, source) for (where, source), members in wanted.items()
    ]
    return first + rest


def _assignments(row: _Row, start: Source) -> list[tuple[Where, Source]]:
    """What has to be said about one row if all of it is `start` so far."""
    values = set(row.sources.values())
    if values == {start}:
        return []
    if len(values) == 1 and (None in row.sources or len(row.sources) > 1):
        return [(None, next(iter(values)))]
    said: list[tuple[Where, Source]] = []
    base = row.sources.get(None, start)
    if base != start:
        said.append((None, base))
    by_source: dict[Source, list[int]] = {}
    for layer, source in row.sources.items():
        if layer is not None and source != base:
            by_source.setdefault(source, []).append(layer)
    for source, layers in by_source.items():
        said.append((_where(layers), source))
    return said


def _words(rows: tuple[_Row, ...], members: list[_Row], where: Where, source: Source) -> Iterator[str]:
    """Words for `members`: a group stands for its rows if all that it means at `where` has this source anyway."""
    left = list(members)
    for group in _GROUPS:
        inside = [row for row in left if anatomy.in_group(row.parts[0], group)]
        enough = len(inside) > 1 or (inside and group in ("emb", "head"))
        if enough and all(_fits(row, where, source) for row in rows if anatomy.in_group(row.parts[0], group)):
            yield group
            left = [row for row in left if row not in inside]
    for row in left:
        yield _named(row)


def _named(row: _Row) -> str:
    if not row.word:
        raise RecipeError(
            f"No word of a recipe means {row.parts[0].path} alone in this pair: write the recipe by hand."
        )
    return row.word


def _fits(row: _Row, where: Where, source: Source) -> bool:
    return all(
        value == source
        for layer, value in row.sources.items()
        if where is None or (layer is not None and any(low <= layer <= high for low, high in where))
    )
