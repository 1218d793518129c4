"""What a sweep is asked for: its two axes, the base recipe, prompts, sampling. Parsed and checked; knows no pair."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from sfn import recipes
from sfn.errors import SweepError
from sfn.records import PromptMode, Sampling

RowKind = Literal["each", "but", "thirds", "layers", "alpha", "presets", "list"]
ColumnKind = Literal["prompts", "seeds", "thirds", "layers", "alpha"]

ROWS: tuple[RowKind, ...] = get_args(RowKind)
_ASKED: tuple[ColumnKind, ...] = ("prompts", "seeds")
# What may stand across each first axis: prompts or seeds, or a recipe dimension that the first one leaves open.
COLUMNS: Mapping[RowKind, tuple[ColumnKind, ...]] = {
    "each": (*_ASKED, "thirds", "layers", "alpha"),
    "but": (*_ASKED, "thirds", "layers"),
    "thirds": (*_ASKED, "alpha"),
    "layers": (*_ASKED, "alpha"),
    "alpha": (*_ASKED, "thirds", "layers"),
    "presets": _ASKED,
    "list": _ASKED,
}
MOST_CELLS = 1024  # of one grid, A's and B's answers not counted
MOST_PROMPTS = 64
_ARROW = " => "


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and what a right answer contains: a word, a number or /an expression/; "" where none is known."""

    text: str
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One question asked of many recipes: rows are recipes, columns are prompts, seeds or a second recipe dimension.

    Attributes:
        rows: "each" module alone from `source`; "but": all of `names` but one; "thirds" of the layers; "layers":
            windows of `width` layers, one every `step` layers; "alpha": blends; "presets"; "list": `recipes`.
        columns: see `COLUMNS` for what goes with which rows.
        prompts: several for columns "prompts", else exactly one.
        base: recipe text that the rows are laid over ("" = all A); presets and the list stand for themselves.
        source: what is laid, in the recipe's own words ("B", "A", "zero", "reinit:1"); alpha axes lay "B:alpha".
        names: modules or groups that are swept. low, high, steps: alpha from low to high; it may leave [0, 1].
        seeds: how many, from `sampling.seed` on, for columns "seeds".
    """

    rows: RowKind
    columns: ColumnKind
    prompts: tuple[Prompt, ...]
    base: str = ""
    source: str = "B"
    names: tuple[str, ...] = ("all",)
    width: int = 1
    step: int = 1
    low: float = 0.0
    high: float = 1.0
    steps: int = 5
    recipes: tuple[str, ...] = ()
    seeds: int = 4
    mode: PromptMode = "plain"
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def by_alpha(self) -> bool:
        """Whether one of the axes is alpha."""
        return "alpha" in (self.rows, self.columns)

    @property
    def asks_each_column(self) -> bool:
        """Whether columns differ in what is asked (prompts, seeds), not in the recipe."""
        return self.columns in _ASKED

    @property
    def n_questions(self) -> int:
        """How many different questions are asked of one recipe."""
        return {"prompts": len(self.prompts), "seeds": self.seeds}.get(self.columns, 1)

    def asked(self, column: int) -> tuple[Prompt, Sampling]:
        """What is asked in that column."""
        if self.columns == "prompts":
            return self.prompts[column], self.sampling
        if self.columns == "seeds":
            return self.prompts[0], replace(self.sampling, seed=self.sampling.seed + column)
        return self.prompts[0], self.sampling

    def alphas(self) -> tuple[float, ...]:
        """Alpha of each step, from `low` to `high`, both included."""
        if self.steps == 1:
            return (self.low,)
        return tuple(round(self.low + (self.high - self.low) * i / (self.steps - 1), 6) for i in range(self.steps))

    @property
    def title(self) -> str:
        """What is swept against what, in a few words: "each module of attn from B × 4 prompts"."""
        of = "" if self.names == ("all",) else f" of {', '.join(self.names)}"
        laid = "" if self.by_alpha else f" from {self.source}" if self.source in ("A", "B") else f" by {self.source}"
        alpha = f"α from {self.low:g} to {self.high:g}"
        row = {
            "each": f"each module{of}{laid}",
            "but": f"all but one module{of}{laid}",
            "thirds": f"each third of the layers{of}{laid}",
            "layers": f"each {'layer' if self.width == 1 else f'{self.width} layers'}{of}{laid}",
            "alpha": f"{alpha}{of}",
            "presets": "presets",
            "list": f"{len(self.recipes)} recipe{'' if len(self.recipes) == 1 else 's'}",
        }[self.rows]
        column = {
            "prompts": f"{len(self.prompts)} prompt{'' if len(self.prompts) == 1 else 's'}",
            "seeds": f"{self.seeds} seed{'' if self.seeds == 1 else 's'}",
            "thirds": "thirds of the layers",
            "layers": "layers" if self.width == 1 else f"windows of {self.width} layers",
            "alpha": alpha,
        }[self.columns]
        return f"{row} × {column}"

    def check(self) -> None:
        """Raise SweepError with what is wrong and what is legal; whether the pair can do it is asked in `expand`."""
        if self.rows not in COLUMNS or self.columns not in COLUMNS[self.rows]:
            legal = ", ".join(COLUMNS.get(self.rows, ROWS))
            raise SweepError(f"A sweep of {self.rows!r} by {self.columns!r} cannot be made; legal beside it: {legal}.")
        _check_prompts(self)
        if self.columns == "seeds" and not self.sampling.temperature:
            raise SweepError(
                "At temperature 0 every seed gives the same answer: raise the temperature, or sweep over prompts."
            )
        for what, value, low, high in (
            ("seeds", self.seeds, 1, MOST_PROMPTS),
            ("steps of alpha", self.steps, 1, 101),
            ("layers in a window", self.width, 1, 10_000),
            ("layers from one window to the next", self.step, 1, 10_000),
        ):
            if not low <= value <= high:
                raise SweepError(f"The number of {what} is {value}; it must be from {low} to {high}.")
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise SweepError(f"Alpha runs from {self.low:g} to {self.high:g}; both ends must be numbers.")
        if self.rows == "list" and not self.recipes:
            raise SweepError("The list holds no recipe: write one per line, such as o_proj@all=B.")
        if not self.names:
            raise SweepError("No module is chosen: name modules or groups, such as o_proj or mlp, or all.")
        recipes.parse(f"{','.join(self.names)}={self.source}")  # raises RecipeError with the word at fault


def _check_prompts(sweep: Sweep) -> None:
    if not sweep.prompts or any(not prompt.text.strip() for prompt in sweep.prompts):
        raise SweepError("There is no prompt to ask: write one, or several with one on each line.")
    if len(sweep.prompts) > MOST_PROMPTS:
        raise SweepError(f"There are {len(sweep.prompts)} prompts; a sweep asks at most {MOST_PROMPTS}.")
    if sweep.columns != "prompts" and len(sweep.prompts) != 1:
        raise SweepError(f"A sweep by {sweep.columns} asks one prompt, not {len(sweep.prompts)}.")


def read_prompts(text: str) -> tuple[Prompt, ...]:
    """Prompts, one per line; "What is 5 + 17? => 22" gives a reference; a line break inside a prompt is written \\n."""
    found = []
    for line in text.splitlines():
        prompt, _, reference = line.rpartition(_ARROW) if _ARROW in line else (line, "", "")
        if prompt.strip():
            found.append(Prompt(prompt.strip().replace("\\n", "\n"), reference.strip()))
    return tuple(found)


def write_prompts(prompts: tuple[Prompt, ...]) -> str:
    """The text that `read_prompts` reads as these."""
    lines = []
    for prompt in prompts:
        text = prompt.text.replace("\n", "\\n")
        lines.append(f"{text}{_ARROW}{prompt.reference}" if prompt.reference else text)
    return "\n".join(lines)


def read_recipes(text: str) -> tuple[str, ...]:
    """Recipes, one per line; a line that says "A" or "all A" is the empty recipe."""
    lines = [line.strip() for line in text.splitlines()]
    return tuple("" if line.lower() in ("a", "all a") else line for line in lines if line)


def to_json(sweep: Sweep) -> dict[str, Any]:
    """The sweep as JSON's types."""
    return asdict(sweep)


def from_json(value: Mapping[str, Any]) -> Sweep:
    """The sweep of `to_json`, which may have travelled through JSON text."""
    fields = dict(value)
    fields["prompts"] = tuple(Prompt(**prompt) for prompt in fields["prompts"])
    fields["names"], fields["recipes"] = tuple(fields["names"]), tuple(fields["recipes"])
    sampling = dict(fields["sampling"])
    fields["sampling"] = Sampling(**sampling | {"stop": tuple(sampling["stop"])})
    return Sweep(**fields)
