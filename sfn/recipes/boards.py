"""Between a plan and a module x layer board: what each cell shows, and a short recipe for cells as they are set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sfn import anatomy
from sfn.errors import RecipeError
from sfn.recipes.grammar import Recipe, Rule, Source, Where, merge_ranges, parse_source
from sfn.recipes.lookup import BUFFERS, Place, lookup, place, plain_path
from sfn.recipes.plans import Plan, resolve

if TYPE_CHECKING:
    from sfn.anatomy import Part
    from sfn.pairs import Pair, TensorPair

_A = Source("A")
_REMOVE = Source("remove")
_GROUPS = ("all", "attn", "mlp", "norms", "emb", "head", "qkv")  # the larger first


@dataclass(frozen=True, slots=True)
class _Row:
    """One board row, or one expert of it: `word` means exactly its tensors ("" if no word does), `part` is one of them,
    `sources` says which source by layer. Of an `exception` only where it differs from the row in which it lies."""

    word: str
    part: Part
    sources: Mapping[int | None, Source]
    exception: bool = False


def cells(plan: Plan) -> dict[Place, str]:
    """State of every cell of the board: "A", "B", "blend", "zero", "reinit", "removed", or "mixed" where the tensors of
    one cell (experts, say) have different sources. In anatomical order."""
    found: dict[Place, set[Source]] = {}
    for name, source in plan.sources.items():
        found.setdefault(place(anatomy.parse(name)), set()).add(source)
    states = {"remove": "removed"}
    return {
        spot: "mixed" if len(sources) > 1 else states.get((kind := next(iter(sources)).kind), kind)
        for spot, sources in found.items()
    }


def paint(recipe: Recipe, pair: Pair, wanted: Mapping[Place, Source | str]) -> Recipe:
    """`recipe` with each cell of `wanted` set to its source ("A", "B", "B:0.5", "zero", "reinit:1" or a Source).

    All else stays in effect as it was, but the recipe is written anew, as short as `compact` can. A cell in a removed
    layer brings that layer back, the rest of it from A.

    Raises:
        RecipeError: a place that the pair does not have, or what `resolve` refuses.
    """
    read = {word: parse_source(word) for word in {*wanted.values()} if isinstance(word, str)}
    there = lookup(pair).cells
    sources = dict(resolve(recipe, pair).sources)
    back = {layer for layer, _ in wanted if layer is not None}
    for layer in _gone(sources, there) & back:
        _set(sources, (name for spot, names in there.items() if spot[0] == layer for name in names), _A)
    for spot, word in wanted.items():
        source = read[word] if isinstance(word, str) else word
        if source.kind == "remove":
            raise RecipeError(
                "A cell cannot be removed, only a whole layer: write all@5=remove, or set the cell to zero."
            )
        if spot not in there:
            where = "outside the layers" if spot[0] is None else f"in layer {spot[0]}"
            raise RecipeError(f"A has no {spot[1]!r} {where}, so there is no such cell to set.")
        _set(sources, there[spot], source)
    return _written(pair, sources)


def invert(recipe: Recipe, pair: Pair, places: Iterable[Place]) -> Recipe:
    """`recipe` with A and B swapped in the cells at `places`: a blend of alpha becomes one of 1 - alpha.

    What is damaged or removed stays so, and so does what cannot come from B. Raises RecipeError as `paint` does.
    """
    there = lookup(pair).cells
    sources = dict(resolve(recipe, pair).sources)
    for spot in places:
        for name in there.get(spot, ()):
            if sources[name].kind in ("A", "B", "blend") and pair.by_name[name].movable:
                sources[name] = _inverse(sources[name])
    return _written(pair, sources)


def _inverse(source: Source) -> Source:
    return Source("blend", alpha=round(1 - source.alpha, 12))  # 1 - 0.3 is 0.7, not 0.7000000000000001


def _set(sources: dict[str, Source], names: Iterable[str], source: Source) -> None:
    sources.update(dict.fromkeys(names, source))


def _gone(sources: Mapping[str, Source], there: Mapping[Place, tuple[str, ...]]) -> set[int | None]:
    """Layers that are removed."""
    return {layer for (layer, _), names in there.items() if sources[names[0]] == _REMOVE}


def _written(pair: Pair, sources: Mapping[str, Source]) -> Recipe:
    """`compact`, and refused as `resolve` refuses it."""
    recipe = compact(pair, sources)
    resolve(recipe, pair)
    return recipe


def obstacle(row: TensorPair) -> str:
    """Why the cell in which `row` stands cannot come from B; "" where this tensor does not stand in the way."""
    if row.movable or (row.a is None and row.part.parameter in BUFFERS):
        return ""
    return row.problem or "It does not fit."


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
        for start in _starts(pair, rows):
            first = [] if start == _A else [Rule(("all",), None, start)]
            recipes.append(Recipe((*first, *_rules(pair, rows, start), *last)))
    return min(recipes, key=_cost)


def _starts(pair: Pair, rows: Iterable[_Row]) -> list[Source]:
    """What all could be set to at first: A, or what most cells come from."""
    used = Counter(source for row in rows for source in row.sources.values())
    del used[_A]
    most = sorted(used, key=lambda source: (-used[source], str(source)))[:1]
    return [_A, *(source for source in most if _can_come(pair, "all", None, source))]


def _can_come(pair: Pair, group: str, where: Where, source: Source) -> bool:
    """Whether a rule about a whole group would not ask for a tensor of B that A has no place for."""
    return not source.needs_b or not any(
        anatomy.in_group(row.part, group) and _lies_in(where, row.part.layer) for row in lookup(pair).strangers
    )


def _lies_in(where: Where, layer: int | None) -> bool:
    return where is None or (layer is not None and any(low <= layer <= high for low, high in where))


def _cost(recipe: Recipe) -> tuple[int, int, str]:
    """What it takes to read a recipe: names and ranges, and twice the rules; then its length."""
    words = sum(len(rule.names) + len(rule.where or ()) + 2 for rule in recipe.rules)
    return words, len(str(recipe)), str(recipe)


def _where(layers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    return merge_ranges(tuple((layer, layer) for layer in layers))


def _whole_layers(pair: Pair, sources: Mapping[str, Source]) -> dict[int, Source]:
    """Layers that come from one source as a whole, if that is not A."""
    found: dict[int, Source | None] = {}
    for row in lookup(pair).of_a:
        if row.part.layer is not None:
            source = sources.get(row.name, _A)
            if found.setdefault(row.part.layer, source) != source:
                found[row.part.layer] = None
    return {
        layer: source
        for layer, source in found.items()
        if source is not None and source != _A and _can_come(pair, "all", ((layer, layer),), source)
    }


def _removed(pair: Pair, sources: Mapping[str, Source]) -> tuple[int, ...]:
    found: dict[int | None, set[bool]] = {}
    for row in lookup(pair).of_a:
        found.setdefault(row.part.layer, set()).add(sources.get(row.name, _A).kind == "remove")
    for layer, states in found.items():
        if True in states and (layer is None or False in states):
            raise RecipeError(
                "Only whole layers can be removed: every tensor of the layer, and nothing outside layers."
            )
    return tuple(sorted(layer for layer, states in found.items() if layer is not None and True in states))


def _rows(pair: Pair, sources: Mapping[str, Source], settled: Mapping[int, Source]) -> Iterator[_Row]:
    """The board's rows outside the layers that are settled as a whole, each with a word that means just its tensors.

    A row whose experts differ in their sources is what most of them are, and its exceptions; without a word for the
    whole row it is one row for each expert.
    """
    meanings = lookup(pair).words
    for members in lookup(pair).board_rows.values():
        alike = _by_layer(members, sources)
        if alike is not None:
            found = [_Row(_word(members, meanings), members[0], alike)]
        else:
            found = _parted(members, sources, meanings)
        for row in found:
            kept = {layer: source for layer, source in row.sources.items() if layer not in settled}
            if kept:
                yield replace(row, sources=kept)


def _parted(
    members: tuple[Part, ...], sources: Mapping[str, Source], meanings: Mapping[str, set[str]]
) -> Iterator[_Row]:
    """`_rows` of one row whose experts differ."""
    groups = []
    for group in _split(members):
        by_layer = _by_layer(group, sources)
        if by_layer is None:
            raise RecipeError(f"Weight and bias of {group[0].path} go together: a recipe cannot part them.")
        groups.append((group, by_layer))
    whole = _word(members, meanings)
    held: dict[int | None, Counter[Source]] = {}
    for _, by_layer in groups:
        for layer, source in by_layer.items():
            held.setdefault(layer, Counter())[source] += 1
    most = {layer: min(each, key=lambda source: (-each[source], str(source))) for layer, each in held.items()}
    if whole:
        yield _Row(whole, members[0], most)
    for group, by_layer in groups:
        own = {layer: source for layer, source in by_layer.items() if not whole or source != most[layer]}
        if len(own) == len(by_layer) and len(set(own.values())) == 1:
            own = {None: next(iter(own.values()))}
        if own:
            yield _Row(_word(group, meanings), group[0], own, exception=bool(whole))


def _by_layer(parts: Iterable[Part], sources: Mapping[str, Source]) -> dict[int | None, Source] | None:
    """Source by layer; None where the tensors of one layer differ."""
    found: dict[int | None, Source] = {}
    for part in parts:
        source = sources.get(part.name, _A)
        if found.setdefault(part.layer, source) != source:
            return None
    return found


def _split(parts: Iterable[Part]) -> list[tuple[Part, ...]]:
    by_path: dict[str, list[Part]] = {}
    for part in parts:
        by_path.setdefault(part.path, []).append(part)
    return [tuple(members) for members in by_path.values()]


def _word(parts: tuple[Part, ...], meanings: Mapping[str, set[str]]) -> str:
    """The shortest word that means these modules, in every layer, and no others of the pair; "" if there is none."""
    paths = {part.path for part in parts}
    first = parts[0]
    words = [first.module, first.row, first.role, *filter(None, [anatomy.tower(first)])]
    for path in (plain_path(first), first.path):
        pieces = path.split(".")
        words += [".".join(pieces[-n:]) for n in range(2, len(pieces) + 1)]
    for word in words:
        if word not in anatomy.GROUPS and not word[:1].isdigit() and meanings.get(word) == paths:
            return word
    return ""


def _rules(pair: Pair, rows: tuple[_Row, ...], start: Source) -> list[Rule]:
    """Rules that lead from `start` everywhere to the rows' sources: first what rows with exceptions are otherwise, then
    the rest, rows with the same layers and source together and by group where a whole group is meant, at last what
    differs within a row."""
    first: list[Rule] = []
    wanted: dict[tuple[Where, Source], list[_Row]] = {}
    exceptions = [row for row in rows if row.exception]
    rows = tuple(row for row in rows if not row.exception)
    for row in rows:
        for where, source in _assignments(row, start):
            if where is None and len(set(row.sources.values())) > 1:
                first.append(Rule((_named(row),), None, source))
            else:
                wanted.setdefault((where, source), []).append(row)
    rest = [
        Rule(tuple(_words(pair, rows, members, where, source)), where, source)
        for (where, source), members in wanted.items()
    ]
    return first + rest + _exceptions(exceptions)


def _exceptions(rows: Iterable[_Row]) -> list[Rule]:
    """Rules for what differs from the row in which it lies, to follow the rules for these rows."""
    wanted: dict[tuple[Where, Source], list[str]] = {}
    for row in rows:
        for source in dict.fromkeys(row.sources.values()):
            layers = [layer for layer, held in row.sources.items() if held == source]
            where = None if None in layers else _where(layers)
            wanted.setdefault((where, source), []).append(_named(row))
    return [Rule(tuple(names), where, source) for (where, source), names in wanted.items()]


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


def _words(pair: Pair, rows: tuple[_Row, ...], members: list[_Row], where: Where, source: Source) -> Iterator[str]:
    """Words for `members`: a group stands for its rows if all that it means at `where` has this source anyway."""
    left = list(members)
    for group in _GROUPS:
        inside = [row for row in left if anatomy.in_group(row.part, group)]
        enough = (len(inside) > 1 or (inside and group in ("emb", "head"))) and _can_come(pair, group, where, source)
        if enough and all(_fits(row, where, source) for row in rows if anatomy.in_group(row.part, group)):
            yield group
            left = [row for row in left if row not in inside]
    for row in left:
        yield _named(row)


def _named(row: _Row) -> str:
    if not row.word:
        raise RecipeError(f"No word of a recipe means {row.part.path} alone in this pair: write the recipe by hand.")
    return row.word


def _fits(row: _Row, where: Where, source: Source) -> bool:
    return all(value == source for layer, value in row.sources.items() if _lies_in(where, layer))
