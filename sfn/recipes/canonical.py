"""Rules -> the one list of rules that says the same. Model-independent: true for every model and pair.

Roles and groups form a tree (all > attn > qkv > q_proj ...), so a recipe made of them is a table node x layers ->
source, and the canonical rules are written anew from that table. A name that is neither (say "c_attn") may mean
anything: such a rule keeps its place among the rules that could touch the same tensors.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from sfn import anatomy
from sfn.recipes.grammar import Rule, Source, Where, merge_ranges, name_order

_PARENTS: dict[str, str] = {"attn": "all", "mlp": "all", "norms": "all", "emb": "all", "head": "all", "qkv": "attn"}
for _group in ("emb", "norms", "attn", "mlp", "head", "qkv"):  # qkv last: it is the nearer parent of its roles
    _PARENTS.update(dict.fromkeys(anatomy.GROUPS[_group], _group))
_NODES: tuple[str, ...] = ("all", "attn", "mlp", "norms", "emb", "head", "qkv", *anatomy.ROLES)  # parents first


def _line_up(node: str) -> tuple[str, ...]:
    """The node itself and what it lies in, up to "all"."""
    line = [node]
    while line[-1] in _PARENTS:
        line.append(_PARENTS[line[-1]])
    return tuple(line)


_LINES: dict[str, tuple[str, ...]] = {node: _line_up(node) for node in _NODES}
_UNDER: dict[str, tuple[str, ...]] = {top: tuple(n for n in _NODES if top in _LINES[n]) for top in _NODES}


@dataclass(frozen=True, slots=True)
class _Step:
    """A rule about a single name."""

    name: str
    where: Where
    source: Source

    def covers(self, other: _Step) -> bool:
        """Whether on every model all that `other` means is meant by this one too."""
        same = self.name == "all" or self.name in _LINES.get(other.name, (other.name,))
        return same and (self.where is None or (other.where is not None and not _minus(other.where, self.where)))

    def meets(self, other: _Step) -> bool:
        """Whether on some model both could mean the same tensor."""
        if self.where is not None and other.where is not None and not _overlap(self.where, other.where):
            return False
        mine, theirs = _LINES.get(self.name), _LINES.get(other.name)
        return mine is None or theirs is None or self.name in theirs or other.name in mine

    def depends_on(self, earlier: _Step) -> bool:
        """Whether their order matters."""
        return self.source != earlier.source and self.meets(earlier)


def canonical(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The canonical rules that mean the same as `rules`; applying it twice changes nothing.

    A rule that later ones override, or that changes nothing, is gone; rules whose order does not matter stand in
    anatomical order, and those with equal layers and source are one.
    """
    for _ in range(50):
        steps = [_Step(name, rule.where, rule.source) for rule in rules for name in _needed_names(rule)]
        steps = _without_overridden(steps)
        steps = _with_known_rewritten(steps)
        steps = _without_idle(steps)
        again = _merged(steps)
        if again == rules:
            return rules
        rules = again
    raise AssertionError(f"no canonical form found for {rules}")


def _needed_names(rule: Rule) -> tuple[str, ...]:
    return ("all",) if "all" in rule.names else rule.names


def _without_overridden(steps: list[_Step]) -> list[_Step]:
    """Drop what later steps cover, and the layers of a step that later steps cover."""
    removed = _removed(steps)
    kept: list[_Step] = []
    for step in reversed(steps):
        where = step.where
        if where is not None and step.source.kind != "remove":
            where = _minus(where, removed)  # in a removed layer nothing else matters
        for later in kept:
            if later.name == "all" or later.name in _LINES.get(step.name, (step.name,)):
                if later.where is None:
                    where = ()
                elif where is not None:
                    where = _minus(where, later.where)
        if where is None or where:
            kept.append(_Step(step.name, where, step.source))
    return kept[::-1]


def _removed(steps: list[_Step]) -> tuple[tuple[int, int], ...]:
    """Layers that are gone in the end: only a later rule about `all` brings a removed layer back."""
    gone: tuple[tuple[int, int], ...] = ()
    for step in steps:
        if step.name == "all":
            if step.source.kind == "remove" and step.where is not None:
                gone = merge_ranges((*gone, *step.where))
            else:
                gone = () if step.where is None else _minus(gone, step.where)
    return gone


def _with_known_rewritten(steps: list[_Step]) -> list[_Step]:
    """Rewrite each run of known names from its table; unknown names stay where they are."""
    result: list[_Step] = []
    run: list[_Step] = []
    start: Source | None = Source("A")  # after an unknown name the run does not know what it finds
    for step in steps:
        if step.name in _LINES:
            run.append(step)
            continue
        result += [*_rewritten(run, start), step]
        run, start = [], None
    return result + _rewritten(run, start)


def _rewritten(steps: list[_Step], start: Source | None) -> list[_Step]:
    """Canonical steps for known names: first what holds everywhere, then the exceptions for layers, each from the
    whole to the parts, and only where a part differs from what it lies in."""
    spans = _spans(steps)
    base: dict[str, Source | None] = dict.fromkeys(_NODES, start)
    table = {span: dict(base) for span in spans}
    for step in steps:
        under = _UNDER[step.name]
        if step.where is None:
            base.update(dict.fromkeys(under, step.source))
        for span in spans:
            if step.where is None or _overlap((span,), step.where):
                table[span].update(dict.fromkeys(under, step.source))
    result = []
    for node in _NODES:
        source = base[node]
        if source is not None and source != (base[_PARENTS[node]] if node in _PARENTS else start):
            result.append(_Step(node, None, source))
    return result + _exceptions(base, table)


def _exceptions(base: dict[str, Source | None], table: dict[tuple[int, int], dict[str, Source | None]]) -> list[_Step]:
    found: dict[tuple[str, Source], list[tuple[int, int]]] = {}
    for span, row in table.items():
        touched: set[str] = set()  # nodes that lie in one with an exception: that one's source comes down to them
        for node in _NODES:
            parent = _PARENTS.get(node)
            if parent in touched:
                touched.add(node)
            source = row[node]
            if source is not None and source != (row[parent] if node in touched and parent else base[node]):
                touched.add(node)
                found.setdefault((node, source), []).append(span)
    ordered = sorted(found.items(), key=lambda item: _NODES.index(item[0][0]))
    return [_Step(node, merge_ranges(tuple(spans)), source) for (node, source), spans in ordered]


def _spans(steps: list[_Step]) -> list[tuple[int, int]]:
    """The layers named anywhere, cut so that each rule names a span whole or not at all."""
    ranges = [piece for step in steps for piece in step.where or ()]
    cuts = sorted({low for low, _ in ranges} | {high + 1 for _, high in ranges})
    spans = [(low, after - 1) for low, after in itertools.pairwise(cuts)]
    return [span for span in spans if _overlap((span,), tuple(ranges))]


def _without_idle(steps: list[_Step]) -> list[_Step]:
    """Drop a step that finds already done what it says; at the start everything is A."""
    kept = [_Step("all", None, Source("A"))]
    for step in steps:
        idle = False
        for earlier in reversed(kept):
            if step.depends_on(earlier):
                break
            if earlier.source == step.source and earlier.covers(step):
                idle = True
                break
        if not idle:
            kept.append(step)
    return kept[1:]


def _merged(steps: list[_Step]) -> tuple[Rule, ...]:
    """Steps in layers of mutual independence (Foata's normal form), equal layers and source joined, then sorted."""
    levels: list[int] = []
    for i, step in enumerate(steps):
        levels.append(1 + max((levels[j] for j in range(i) if step.depends_on(steps[j])), default=-1))
    joined: dict[tuple[int, Where, Source], list[str]] = {}
    for level, step in zip(levels, steps, strict=True):
        joined.setdefault((level, step.where, step.source), []).append(step.name)
    rules = [(level, Rule(tuple(names), where, source)) for (level, where, source), names in joined.items()]
    rules.sort(key=lambda item: (item[0], _rule_order(item[1])))
    return tuple(rule for _, rule in rules)


def _rule_order(rule: Rule) -> tuple[object, ...]:
    layers = rule.where or ()
    return rule.where is not None, [name_order(name) for name in rule.names], layers, str(rule.source)


def _overlap(one: tuple[tuple[int, int], ...], other: tuple[tuple[int, int], ...]) -> bool:
    return any(a <= d and c <= b for a, b in one for c, d in other)


def _minus(one: tuple[tuple[int, int], ...], other: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """The layers of `one` that are not in `other`."""
    left = list(one)
    for low, high in other:
        pieces = []
        for a, b in left:
            pieces += [(a, min(b, low - 1)), (max(a, high + 1), b)] if a <= high and low <= b else [(a, b)]
        left = [(a, b) for a, b in pieces if a <= b]
    return tuple(left)
