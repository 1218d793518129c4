"""What the cells of a sweep show: figures of an answer, a table of all cells, one sentence on what is seen. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from sfn.errors import SweepError
from sfn.records import SweepCell
from sfn.sweeps.definition import Sweep
from sfn.sweeps.grids import A_ROW, B_ROW, Line

if TYPE_CHECKING:
    import pandas

Figure = Literal["text", "tokens", "contains", "like_a", "like_b"]
CellState = Literal["answered", "waiting", "failed", "impossible"]

FIGURES: dict[Figure, tuple[str, str]] = {
    "text": ("Text", "The beginning of each answer, as it is."),
    "tokens": ("Tokens", "Number of tokens of the answer; one that was cut at the limit would have gone on."),
    "contains": (
        "Contains reference",
        "Whether the reference stands anywhere in the answer as a whole word or number, whatever the case of its "
        "letters; a reference between slashes, /like \\d+ this/, is searched for as a regular expression. An "
        "intermediate result that happens to equal the reference counts as well.",
    ),
    "like_a": (
        "Like A",
        "Share of equal words with A's answer to the same question: 2 · |w ∩ a| / (|w| + |a|), where w and a are the "
        "words of both answers with their counts (split at white space, case as it is). 1: the same words, 0: none.",
    ),
    "like_b": (
        "Like B",
        "Share of equal words with B's answer to the same question: 2 · |w ∩ b| / (|w| + |b|), where w and b are the "
        "words of both answers with their counts (split at white space, case as it is). 1: the same words, 0: none.",
    ),
}
"""Figure -> (name, formula in words)."""

_LONGEST_SEARCHED = 200_000  # characters of an answer
_PATIENCE_S = 1.0  # of computing: a person's expression may run away, and the search is given up then


def pattern(reference: str) -> str:
    """The regular expression that a reference stands for. Raises SweepError for one that cannot be read."""
    import regex

    if len(reference) > 2 and reference.startswith("/") and reference.endswith("/"):
        try:
            regex.compile(reference[1:-1])
        except regex.error as error:
            raise SweepError(
                f"The reference {reference} is no regular expression: {error}. Mend it, or leave the slashes out to "
                "search for it as it stands."
            ) from error
        return reference[1:-1]
    return rf"(?<!\w){re.escape(reference)}(?!\w)"


def contains(text: str, reference: str) -> bool | None:
    """Whether an answer contains its reference (see `FIGURES`); None without one, or if the search takes over 1 s."""
    import regex

    if not reference:
        return None
    flags = regex.MULTILINE if reference.startswith("/") else regex.IGNORECASE
    try:
        found = regex.search(pattern(reference), text[:_LONGEST_SEARCHED], flags, timeout=_PATIENCE_S)
    except TimeoutError:
        return None
    return found is not None


def likeness(one: str, other: str) -> float:
    """Share of equal words, 2 |one ∩ other| / (|one| + |other|), words with their counts; 1 where both are empty."""
    here, there = Counter(one.split()), Counter(other.split())
    total = here.total() + there.total()
    return 2 * (here & there).total() / total if total else 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A cell with its figures.

    Attributes:
        contains: None where no reference is known or no answer is there. like_a, like_b: NaN where one of the two
            answers is not there.
    """

    cell: SweepCell
    state: CellState
    contains: bool | None
    like_a: float
    like_b: float

    @property
    def text(self) -> str:
        """The answer, "" where there is none."""
        return self.cell.generation.text if self.cell.generation is not None else ""

    @property
    def tokens(self) -> int | None:
        """Length of the answer, None where there is none."""
        return self.cell.generation.n_tokens if self.cell.generation is not None else None


def state_of(cell: SweepCell) -> CellState:
    """Where a cell stands, by what is kept of it."""
    if cell.problem:
        return "impossible"
    if cell.generation is not None:
        return "answered"
    return "failed" if cell.error else "waiting"


def readings(sweep: Sweep, cells: Sequence[SweepCell]) -> dict[tuple[int, int], Reading]:
    """The figures of every cell, by (row, column)."""
    answers = {(cell.row, cell.column): cell.generation.text for cell in cells if cell.generation is not None}
    found = {}
    for cell in cells:
        asked = cell.column if sweep.asks_each_column else 0
        text = answers.get((cell.row, cell.column))
        a, b = answers.get((A_ROW, asked)), answers.get((B_ROW, asked))
        found[cell.row, cell.column] = Reading(
            cell,
            state_of(cell),
            None if text is None else contains(text, sweep.asked(asked)[0].reference),
            math.nan if text is None or a is None else likeness(text, a),
            math.nan if text is None or b is None else likeness(text, b),
        )
    return found


def table(sweep: Sweep, rows: Sequence[Line], columns: Sequence[Line], cells: Sequence[SweepCell]) -> pandas.DataFrame:
    """One row per cell, A's and B's answers first: where it stands, its recipe, question, answer and figures."""
    import pandas as pd

    names = {A_ROW: "A", B_ROW: "B"} | {at: line.label for at, line in enumerate(rows)}
    lines = []
    for reading in readings(sweep, cells).values():
        cell, done = reading.cell, reading.cell.generation
        prompt, sampling = sweep.asked(cell.column if sweep.asks_each_column else 0)
        own = cell.row >= 0 or sweep.asks_each_column  # A's and B's one answer stands beside every column
        lines.append(
            {
                "row": names[cell.row],
                "column": columns[cell.column].label if own else "",
                "recipe": cell.recipe,
                "alpha": math.nan if cell.alpha is None else cell.alpha,
                "prompt": prompt.text,
                "reference": prompt.reference,
                "seed": sampling.seed,
                "state": reading.state,
                "problem": cell.problem or cell.error,
                "text": reading.text,
                "n_tokens": reading.tokens,
                "finish": done.finish if done else "",
                "contains_reference": reading.contains,
                "like_a": reading.like_a,
                "like_b": reading.like_b,
                "mode": sweep.mode,
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "created_at": done.created_at if done else None,
            }
        )
    kinds = {"n_tokens": "Int64", "contains_reference": "boolean", "created_at": "datetime64[us, UTC]"}
    return pd.DataFrame(lines).astype(kinds)


# ---------------------------------------------------------------- in words


def sentence(sweep: Sweep, rows: Sequence[Line], cells: Sequence[SweepCell]) -> str:
    """What is seen in the answers so far, computed, and how little they are; "" where no recipe was answered."""
    found = [reading for reading in readings(sweep, cells).values() if reading.state == "answered"]
    ours = [reading for reading in found if reading.cell.row >= 0]
    if not ours:
        return ""
    judged = [reading for reading in found if reading.contains is not None]
    seen = _reached(sweep, rows, judged) if any(r.cell.row >= 0 for r in judged) else _lengths(sweep, rows, found)
    missing = sum(state_of(cell) in ("waiting", "failed") for cell in cells)
    so_far = f"So far ({_many(missing, 'cell')} without an answer): " if missing else ""
    return f"{so_far}{seen} {_how_little(sweep)}"


def _reached(sweep: Sweep, rows: Sequence[Line], judged: Sequence[Reading]) -> str:
    """How many recipes reach the reference how often, and how often A and B do."""
    scores: dict[int | tuple[int, int], list[bool]] = {}
    for reading in judged:
        cell = reading.cell
        if cell.row >= 0:  # where columns are recipes too, every cell is a recipe of its own
            recipe = cell.row if sweep.asks_each_column else (cell.row, cell.column)
            scores.setdefault(recipe, []).append(bool(reading.contains))
    most, best = max(map(len, scores.values())), max(map(sum, scores.values()))
    some = sum(any(score) for score in scores.values())
    begin = f"{some if some else 'None'} of {_many(len(scores), 'recipe')} {'reach' if some > 1 else 'reaches'} "
    if most == 1 or not best:
        where = f" on any of {_questions(sweep, most)}" if most > 1 else ""
        return f"{begin}the reference{where}{_sides(judged)}."
    leaders = [rows[row].label for row, score in scores.items() if sum(score) == best]
    return (
        f"{begin}the reference on at least 1 of {_questions(sweep, most)}; "
        f"the most is {best} of {most}, by {_listed(leaders)}{_sides(judged)}."
    )


def _sides(judged: Sequence[Reading]) -> str:
    """ "; A alone on 1 of 4, B alone on 3 of 4", as far as they were answered."""
    said = []
    for row, name in ((A_ROW, "A"), (B_ROW, "B")):
        own = [bool(reading.contains) for reading in judged if reading.cell.row == row]
        if len(own) == 1:
            said.append(f"{name} alone {'does' if own[0] else 'does not'}")
        elif own:
            said.append(f"{name} alone on {sum(own)} of {len(own)}")
    return f"; {', '.join(said)}" if said else ""


def _lengths(sweep: Sweep, rows: Sequence[Line], found: Sequence[Reading]) -> str:
    """Which recipe answers longest and shortest, and how long A's and B's answers are."""
    tokens: dict[int, list[int]] = {}
    for reading in found:
        tokens.setdefault(reading.cell.row, []).append(reading.tokens or 0)
    means = {row: fmean(values) for row, values in tokens.items()}
    ours = {row: mean for row, mean in means.items() if row >= 0}
    longest, shortest = max(ours, key=ours.__getitem__), min(ours, key=ours.__getitem__)
    sides = [f"{name} {_tokens(means[row])}" for row, name in ((A_ROW, "A"), (B_ROW, "B")) if row in means]
    beside = f"; {', '.join(sides)}" if sides else ""
    if ours[longest] == ours[shortest]:
        return f"All recipes answer with {_tokens(ours[longest])} tokens on average{beside}."
    return (
        f"Answers are longest with {rows[longest].label} ({_tokens(ours[longest])} tokens on average) and shortest "
        f"with {rows[shortest].label} ({_tokens(ours[shortest])}){beside}."
    )


def _how_little(sweep: Sweep) -> str:
    many = sweep.n_questions
    asked = _many(many, "seed" if sweep.columns == "seeds" else "prompt")
    drawn = "greedy" if not sweep.sampling.temperature else f"drawn at temperature {sweep.sampling.temperature:g}"
    if many < 30:
        return f"This is one answer per cell ({drawn}) and {asked}: too few to tell small differences from chance."
    return f"This is one answer per cell ({drawn}) and {asked}."


def _questions(sweep: Sweep, judged: int) -> str:
    """ "4 prompts", or "3 prompts with a reference" where some have none."""
    asked = _many(judged, "seed" if sweep.columns == "seeds" else "prompt")
    return f"{asked} with a reference" if judged < sweep.n_questions else asked


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _tokens(mean: float) -> str:
    return f"{mean:.0f}" if mean >= 10 or mean == int(mean) else f"{mean:.1f}"


def _listed(labels: Sequence[str]) -> str:
    if len(labels) > 3:
        return f"{', '.join(labels[:3])} and {len(labels) - 3} more"
    return " and ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))
