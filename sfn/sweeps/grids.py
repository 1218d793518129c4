"""A sweep for a pair: the recipe of every cell, or why the pair cannot do it. From headers only; nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfn import anatomy, recipes
from sfn.errors import RecipeError, SweepError
from sfn.recipes import Plan
from sfn.sweeps.definition import MOST_CELLS, Sweep

if TYPE_CHECKING:
    from sfn.anatomy import Part
    from sfn.pairs import Pair

A_ROW, B_ROW = -2, -1  # rows of the grid that hold A's and B's own answers
ALL_B = "all@all=B"


@dataclass(frozen=True, slots=True)
class Line:
    """One row or column of a grid: a short `label`, and in `explain` what it means in a sentence."""

    label: str
    explain: str = ""


@dataclass(frozen=True, slots=True)
class Spot:
    """One cell before it is asked.

    Attributes:
        row: from 0; `A_ROW` and `B_ROW` hold A's and B's own answers. column: from 0.
        recipe: canonical text, or the text at fault. plan: None where `problem` says why the pair cannot do it.
        alpha: share of B that is laid, where an axis is alpha.
    """

    row: int
    column: int
    recipe: str
    plan: Plan | None
    problem: str = ""
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """A sweep for a pair. spots: A's, then B's, then row by row; every row and column is there."""

    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    spots: tuple[Spot, ...]

    @property
    def plans(self) -> dict[str, Plan]:
        """The different weights that have to be loaded, by key, in the grid's order."""
        return {spot.plan.key: spot.plan for spot in self.spots if spot.plan is not None}


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one line of an axis says about the recipe; what it leaves open (None) the other axis or the sweep says."""

    line: Line
    names: tuple[str, ...] | None = None
    but: str | None = None
    layers: tuple[int, int] | None = None
    alpha: float | None = None
    whole: str | None = None


def expand(sweep: Sweep, pair: Pair) -> Grid:
    """Every cell of the sweep for the pair; a recipe that the pair cannot do is a cell with its `problem`.

    Raises SweepError where the sweep as a whole makes no sense for the pair, RecipeError for words outside the grammar.
    """
    sweep.check()
    rows = _pieces(sweep.rows, sweep, pair)
    columns = [_Piece(line) for line in _asked(sweep)] or _pieces(sweep.columns, sweep, pair)
    if len(rows) * len(columns) > MOST_CELLS:
        raise SweepError(
            f"{len(rows)} rows by {len(columns)} columns are {len(rows) * len(columns)} answers; "
            f"a sweep has at most {MOST_CELLS}: take fewer prompts, steps or modules, or wider windows."
        )
    resolver = _Resolver(pair)
    spots = [
        resolver.spot(row, column, text)
        for row, text in ((A_ROW, ""), (B_ROW, ALL_B))
        for column in range(sweep.n_questions)
    ]
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            alpha = row.alpha if row.alpha is not None else column.alpha
            spots.append(resolver.spot(r, c, _text(sweep, pair, row, column), alpha))
    return Grid(tuple(p.line for p in rows), tuple(p.line for p in columns), tuple(spots))


class _Resolver:
    """Resolves each recipe once, however many cells share it."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.known: dict[str, tuple[str, Plan | None, str]] = {}

    def spot(self, row: int, column: int, text: str, alpha: float | None = None) -> Spot:
        if text not in self.known:
            self.known[text] = self._resolve(text)
        recipe, plan, problem = self.known[text]
        return Spot(row, column, recipe, plan, problem, alpha)

    def _resolve(self, text: str) -> tuple[str, Plan | None, str]:
        try:
            plan = recipes.resolve(recipes.parse(text), self.pair)
        except RecipeError as error:
            return text, None, str(error)
        return recipes.format(plan.recipe), plan, ""


def _text(sweep: Sweep, pair: Pair, row: _Piece, column: _Piece) -> str:
    """The recipe of a cell: the base, then the one rule that both lines make together."""
    if row.whole is not None:
        return row.whole
    names = row.names or sweep.names
    layers = row.layers or column.layers
    alpha = row.alpha if row.alpha is not None else column.alpha
    source = sweep.source if alpha is None else f"B:{alpha!r}"
    where = "all" if layers is None else f"{layers[0]}-{layers[1]}"
    rule = f"{','.join(names)}@{where}={source}"
    if row.but is None:
        return f"{sweep.base}; {rule}"
    if sweep.base:  # what is left out keeps what the base says of it, so it must not be named at all
        others = [name for name in modules(pair, names) if name != row.but]
        return f"{sweep.base}; {','.join(others)}@{where}={source}" if others else sweep.base
    return f"{rule}; {row.but}@{where}=A"


def _asked(sweep: Sweep) -> list[Line]:
    if sweep.columns == "prompts":
        return [Line(prompt.text, _reference(prompt.reference)) for prompt in sweep.prompts]
    if sweep.columns == "seeds":
        return [Line(f"seed {sweep.sampling.seed + i}") for i in range(sweep.seeds)]
    return []


def _reference(reference: str) -> str:
    return f"Reference answer: {reference}" if reference else "No reference answer is given."


def _pieces(kind: str, sweep: Sweep, pair: Pair) -> list[_Piece]:
    if kind == "each":
        parts = modules(pair, sweep.names)
        return [_Piece(Line(name, anatomy.explain(part)), names=(name,)) for name, part in parts.items()]
    if kind == "but":
        parts = modules(pair, sweep.names)
        explain = f"Everything chosen from {sweep.source}, but not: "
        return [
            _Piece(Line(f"all but {name}" if sweep.names == ("all",) else f"without {name}",
                        explain + anatomy.explain(part)), but=name)
            for name, part in parts.items()
        ]  # fmt: skip
    if kind == "thirds":
        return [_Piece(_layer_line(low, high, word), layers=(low, high)) for word, low, high in thirds(pair.n_layers)]
    if kind == "layers":
        return [
            _Piece(_layer_line(low, high), layers=(low, high))
            for low, high in windows(pair.n_layers, sweep.width, sweep.step)
        ]
    if kind == "alpha":
        return [
            _Piece(Line(f"α = {alpha:g}".replace("-", "−"), f"(1 − α) A + α B with α = {alpha:g}"), alpha=alpha)
            for alpha in sweep.alphas()
        ]
    if kind == "presets":
        return [_Piece(Line(preset.label, preset.help), whole=preset.text) for preset in recipes.PRESETS]
    return [_Piece(Line(text or "all A"), whole=text) for text in sweep.recipes]


def _layer_line(low: int, high: int, word: str = "") -> Line:
    where = f"layer {low}" if low == high else f"layers {low}–{high}"
    return Line(f"{word} ({where})" if word else where, f"In {where} alone, both ends included, counted from 0.")


def thirds(n_layers: int) -> list[tuple[str, int, int]]:
    """(name, first, last layer) of three parts as even as can be; fewer where there are fewer layers."""
    ends = [round(i * n_layers / 3) for i in range(4)]
    words = ("first third", "middle third", "last third")
    return [(word, low, high - 1) for word, low, high in zip(words, ends, ends[1:], strict=False) if low < high]


def windows(n_layers: int, width: int, step: int) -> list[tuple[int, int]]:
    """(first, last layer) of windows of `width` layers, one every `step` layers; the last reaches the last layer."""
    if width > n_layers:
        raise SweepError(f"A window of {width} layers does not fit into {n_layers}: take at most {n_layers}.")
    starts = list(range(0, n_layers - width + 1, step))
    if starts[-1] + width < n_layers:
        starts.append(n_layers - width)
    return [(start, start + width - 1) for start in starts]


def modules(pair: Pair, names: tuple[str, ...]) -> Mapping[str, Part]:
    """The decoder's modules that `names` mean, in anatomical order, each with one of its parts.

    Raises SweepError for a name that means none; other towers (vision, audio) are meant only by their own names.
    """
    rows = [row for row in pair.rows if row.a is not None]
    found: dict[str, Part] = {}
    for row in rows:
        plain = row.part.layer is not None or row.part.block != "other"
        if any(recipes.matches(name, row.part) for name in names if plain or name != "all"):
            found.setdefault(row.part.row, row.part)
    for name in names:
        if not any(recipes.matches(name, row.part) for row in rows):
            there = ", ".join(dict.fromkeys(row.part.row for row in rows if row.part.block != "other"))
            raise SweepError(f"A has no module {name!r}; there are {there}, and groups {', '.join(anatomy.GROUPS)}.")
    order = {module: at for at, module in enumerate(pair.modules)}
    return {name: found[name] for name in sorted(found, key=order.__getitem__)}
