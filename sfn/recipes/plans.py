"""Recipe + pair -> plan: the source of every tensor of the merged model. From headers only; no weights, no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sfn import anatomy
from sfn.errors import RecipeError
from sfn.recipes.grammar import Recipe, Rule, Source, format_where, merge_ranges
from sfn.recipes.lookup import lookup
from sfn.records import content_key

if TYPE_CHECKING:
    from sfn.pairs import Pair, TensorPair

_A = Source("A")


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a recipe means for a pair. Two plans are equal if the weights they lead to are.

    Attributes:
        recipe: as resolved. sources: source of each tensor of the merged model, by name, in anatomical order: A's
            tensors (a tied head included, under its own name); those of removed layers have the source "remove".
        removed: layers that are dropped whole, sorted.
        moved: names whose source is not A, whatever it is.
        share_from_b: share of the merged model's parameters that comes from B, in [0, 1]; a blend counts by its alpha,
            cut to [0, 1]; parameters of removed layers count on neither side.
        key: content key of what is not A's: equal for all spellings, and for all pairs that share these names.
        tokenizer: whose tokenizer fits: the one whose output head it has (of a blend: the larger share, a tie is B).
        sentence: "6 of 75 tensors · 7.1 % of parameters from B", and what was damaged.
    """

    recipe: Recipe
    sources: Mapping[str, Source]
    removed: tuple[int, ...]
    moved: tuple[str, ...]
    share_from_b: float
    key: str
    tokenizer: Literal["A", "B"]
    sentence: str

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return self.key == other.key and self.sources.keys() == other.sources.keys()

    def __hash__(self) -> int:
        return hash(self.key)


def resolve(recipe: Recipe, pair: Pair) -> Plan:
    """The plan of `recipe` for `pair`; all of the recipe or nothing.

    Raises:
        RecipeError: a name or layer that A does not have, a name that matches nothing in its layers, a tensor that
            is to come from B and cannot, or a recipe that removes every layer.
    """
    for rule in recipe.written:
        _check_rule(rule, pair)
    decided = _decide(recipe, pair)
    _check_sources(decided, pair)
    of_a = lookup(pair).of_a
    sources = {row.name: decided[row.name][0] for row in of_a}
    removed = sorted({row.part.layer for row in of_a if sources[row.name].kind == "remove"})
    if removed and len(removed) == len({row.part.layer for row in pair.rows if row.part.layer is not None}):
        raise RecipeError(f"{recipe} removes all {len(removed)} layers: leave at least one.")
    return _plan(recipe, pair, sources, tuple(removed))


def _decide(recipe: Recipe, pair: Pair) -> dict[str, tuple[Source, Rule | None]]:
    """Last rule wins: for each tensor of either side its source, and the rule that says so."""
    decided: dict[str, tuple[Source, Rule | None]] = dict.fromkeys((row.name for row in pair.rows), (_A, None))
    for rule in recipe.rules:
        verdict = (rule.source, rule)
        for name in rule.names:
            for row in lookup(pair).meant(name, rule.where):
                gone = name != "all" and decided[row.name][0].kind == "remove"
                if not gone:  # in a removed layer nothing else matters, until `all` brings it back
                    decided[row.name] = verdict
    return decided


def _check_rule(rule: Rule, pair: Pair) -> None:
    """Raise RecipeError for a layer that A lacks and for a name that matches nothing, also where it changes nothing."""
    _check_layers(rule, pair)
    for name in rule.names:
        _check_found(name, rule, list(lookup(pair).meant(name, rule.where)), pair)


def _check_layers(rule: Rule, pair: Pair) -> None:
    layers = lookup(pair).layers
    for low, high in rule.where or ():
        present = sum(low <= layer <= high for layer in layers)
        if present < high - low + 1:
            there = f"it has layers {layers[0]}-{layers[-1]}" if layers else "it has no layers"
            raise RecipeError(
                f"The rule {rule} asks for layers {format_where(((low, high),))}, but A lacks some: {there}."
            )


def _check_found(name: str, rule: Rule, found: list[TensorPair], pair: Pair) -> None:
    if any(row.a is not None for row in found):
        return
    if found:
        raise RecipeError(
            f"The rule {rule} asks for {name!r}, which only B has ({found[0].name}): a recipe fills A's tensors."
        )
    elsewhere = [row for row in lookup(pair).meant(name, None) if row.a is not None]
    if elsewhere:
        raise RecipeError(f"The rule {rule} matches nothing: {name!r} {_whereabouts(elsewhere)}.")
    modules = list(dict.fromkeys(row.part.row for row in lookup(pair).of_a if not anatomy.tower(row.part)))
    if name in anatomy.GROUPS:
        raise RecipeError(f"The rule {rule} matches nothing: A has no tensor in the group {name!r}; {_legal(modules)}")
    close = difflib.get_close_matches(name, [*modules, *anatomy.GROUPS], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise RecipeError(f"The recipe names {name!r}, which A does not have.{hint} {_legal(modules).capitalize()}")


def _legal(modules: list[str]) -> str:
    return f"modules are {', '.join(modules)}; groups are {', '.join(anatomy.GROUPS)}."


def _whereabouts(rows: list[TensorPair]) -> str:
    layers = sorted({row.part.layer for row in rows if row.part.layer is not None})
    if not layers:
        return "is in no layer, so leave out '@' and what follows it"
    return f"is only in layers {format_where(merge_ranges(tuple((layer, layer) for layer in layers)))}"


def _check_sources(decided: Mapping[str, tuple[Source, Rule | None]], pair: Pair) -> None:
    """Whether B has what is to come from B, and whether A has room for all of it."""
    stuck: dict[Rule, list[tuple[TensorPair, str]]] = {}
    for row in lookup(pair).of_a:
        source, rule = decided[row.name]
        if rule is not None and not row.movable and source.needs_b:
            stuck.setdefault(rule, []).append((row, row.problem or "it does not fit"))
    for row in lookup(pair).strangers:
        source, rule = decided[row.name]
        if rule is not None and source.needs_b:
            stuck.setdefault(rule, []).append((row, "Only B has it, and A has no place for it."))
    for rule, rows in stuck.items():
        first, why = rows[0]
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        raise RecipeError(
            f"The rule {rule} cannot be carried out for {first.name}{more}: {why.rstrip('.')}."
            f" Leave it out by a later rule such as {_leave_out(rows)}."
        )


def _leave_out(stuck: Iterable[tuple[TensorPair, str]]) -> str:
    rows = [row for row, _ in stuck]
    if all(row.a is None for row in rows):
        return "'all@all=A', and name what shall come from B"
    names = dict.fromkeys(row.part.row for row in rows if row.a is not None)
    layers = tuple((row.part.layer, row.part.layer) for row in rows if row.part.layer is not None)
    return f"'{Rule(tuple(names), merge_ranges(layers) if len(layers) == len(rows) else None, _A)}'"


def _plan(recipe: Recipe, pair: Pair, sources: dict[str, Source], removed: tuple[int, ...]) -> Plan:
    size = lookup(pair).size
    moved = tuple(name for name, source in sources.items() if source.kind != "A")
    total = sum(size.values()) - sum(size[name] for name in moved if sources[name].kind == "remove")
    from_b = sum(size[name] * min(max(sources[name].alpha, 0.0), 1.0) for name in moved)
    share = from_b / total if total else 0.0
    content = sorted((name, str(sources[name])) for name in moved if sources[name].kind != "remove")
    return Plan(
        recipe=recipe,
        sources=sources,
        removed=removed,
        moved=moved,
        share_from_b=share,
        key=content_key("plan", content, removed),
        tokenizer=_tokenizer(pair, sources),
        sentence=_sentence(sources, removed, share),
    )


def _tokenizer(pair: Pair, sources: Mapping[str, Source]) -> Literal["A", "B"]:
    heads = [row for row in lookup(pair).meant("lm_head", None) if row.part.role == "lm_head" and row.a is not None]
    alphas = [sources[row.name].alpha for row in heads if row.part.layer is None]
    return "B" if alphas and alphas[0] >= 0.5 else "A"


def _sentence(sources: Mapping[str, Source], removed: tuple[int, ...], share: float) -> str:
    kinds = [source.kind for source in sources.values()]
    kept = len(kinds) - kinds.count("remove")
    said = [
        f"{kinds.count('B') + kinds.count('blend')} of {kept} tensors",
        f"{_percent(share)} of parameters from B",
    ]
    for kind, words in (("blend", "blended"), ("zero", "set to zero"), ("reinit", "drawn at random")):
        if kinds.count(kind):
            said.append(f"{kinds.count(kind)} {words}")
    if removed:
        ranges = format_where(merge_ranges(tuple((layer, layer) for layer in removed)))
        said.append(f"layer{'s' if len(removed) > 1 else ''} {ranges} removed")
    return " · ".join(said)


def _percent(share: float) -> str:
    """ "7.1 %"; what is not quite nothing or not quite all is not rounded to it."""
    if 0 < share < 0.0005:
        return "under 0.1 %"
    if 0.9995 <= share < 1:
        return "over 99.9 %"
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"
