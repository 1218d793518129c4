"""The grid of a sweep as a picture: what each cell shows for the chosen figure, its colour, the legend, and what was
clicked, read back. Owns the drawing (`assets/sweep_grid.js`, `.css`); knows no job and keeps no state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from sfn import sweeps
from sfn.sweeps import A_ROW, B_ROW, Line, Reading, Sweep
from sfn.ui import words

if TYPE_CHECKING:
    from sfn.engine_room import Answer

Place = tuple[int, int]  # (row, column) of a cell; rows A_ROW and B_ROW are A's and B's own

_ASSETS = Path(__file__).parent / "assets"
_mount = st.components.v2.component(
    "sfn_sweep_grid",
    html='<div class="sweep"><div class="scroll"></div><div class="legend"></div></div>',
    css=(_ASSETS / "sweep_grid.css").read_text(),
    js=(_ASSETS / "sweep_grid.js").read_text(),
)
_LONGEST = 240  # characters of an answer that a cell can show
_ENDS = {"stop": "ended", "length": "cut", "cancelled": "stopped"}
_NAME_REM = 10.0
_NARROW_REM = 6.2  # a column is never narrower: the grid scrolls then


def clicked(value: object) -> Place | None:
    """The cell that was clicked, from what the browser sent."""
    match value:
        case {"row": int(row), "column": int(column)}:
            return row + A_ROW, column
    return None


def draw(
    sweep: Sweep,
    axes: tuple[Sequence[Line], Sequence[Line]],
    found: Mapping[Place, Reading],
    live: Mapping[str, Answer],
    *,
    figure: sweeps.Figure,
    opened: Place | None,
    dark: bool,
    key: str,
    on_open: Callable[[], None],
) -> None:
    """Draw the grid. In `on_open`, `st.session_state[key].open` is what `clicked` reads."""
    _mount(key=key, data=data(sweep, axes, found, live, figure, opened, dark), on_open_change=on_open)


def data(
    sweep: Sweep,
    axes: tuple[Sequence[Line], Sequence[Line]],
    found: Mapping[Place, Reading],
    live: Mapping[str, Answer],
    figure: sweeps.Figure,
    opened: Place | None,
    dark: bool,
) -> dict[str, Any]:
    """Everything that sweep_grid.js draws."""
    rows, columns = axes
    most = max((reading.tokens or 0 for reading in found.values()), default=0)
    judged = any(prompt.reference for prompt in sweep.prompts)
    lines = []
    for row in range(A_ROW, len(rows)):
        places = [(row, column) for column in range(len(columns)) if (row, column) in found]
        span = len(columns) if row < 0 and not sweep.asks_each_column else 1
        lines.append([_cell(found[place], live, figure, most) | {"span": span} for place in places])
    text = figure == "text"
    return {
        "corner": "recipe",
        "columns": [{"label": line.label, "help": line.explain} for line in columns],
        "rows": [
            {"label": "A", "help": "A's own answer", "kind": "A"},
            {"label": "B", "help": "B's own answer", "kind": "B"},
            *({"label": line.label, "help": line.explain, "kind": ""} for line in rows),
        ],
        "cells": lines,
        "open": [opened[0] - A_ROW, opened[1]] if opened is not None else None,
        "figure": figure,
        "legend": _legend(figure, most, judged, found.values()),
        "dark": dark,
        "name": f"{_NAME_REM}rem",
        "tall": "min(34rem, 64vh)",
        "wide": f"{_NAME_REM + _NARROW_REM * len(columns)}rem",
        "cell": "4.7rem" if text else "3.7rem",
        "lines": 3 if text else 1,
    }


def _cell(reading: Reading, live: Mapping[str, Answer], figure: sweeps.Figure, most: int) -> dict[str, Any]:
    """One cell as sweep_grid.js reads it."""
    cell = {"s": reading.state, "t": "", "v": "", "f": "", "h": reading.contains, "l": None, "why": "", "hint": ""}
    answer = live.get(reading.cell.question_key) if reading.state in ("waiting", "failed") else None
    if answer is not None and answer.active:
        return cell | _growing(answer)
    if reading.state == "impossible":
        return cell | {"why": reading.cell.problem, "f": "cannot be"}
    if reading.state == "failed":
        return cell | {"why": f"failed: {reading.cell.error}", "f": "failed"}
    if reading.state == "waiting":
        return cell | {"t": "·", "f": "not asked yet"}
    value, level = _value(reading, figure, most)
    done = reading.cell.generation
    text = reading.text.strip()[:_LONGEST] or "(nothing)"
    foot = _ENDS[done.finish] if figure == "tokens" else f"{done.n_tokens} tok · {_ENDS[done.finish]}"
    hint = f"{words.many(done.n_tokens, 'token')}, {_ENDS[done.finish]}"
    return cell | {"t": text, "v": value, "l": level, "f": foot, "hint": hint}


def _growing(answer: Answer) -> dict[str, Any]:
    if answer.state == "running":
        return {"s": "growing", "t": answer.text.strip()[-_LONGEST:], "f": f"{answer.n_tokens} tokens …"}
    foot = "loading weights" if answer.state == "loading" else "queued"
    return {"s": answer.state, "t": "…", "f": foot}


def _value(reading: Reading, figure: sweeps.Figure, most: int) -> tuple[str, float | None]:
    """The chosen figure in words, and its level in [0, 1]; None for no colour."""
    if figure == "tokens":
        return str(reading.tokens), (reading.tokens or 0) / most if most else 0.0
    if figure == "contains":
        said = {True: "reached", False: "not reached", None: "no reference"}
        return said[reading.contains], None if reading.contains is None else float(reading.contains)
    if figure in ("like_a", "like_b"):
        share = reading.like_a if figure == "like_a" else reading.like_b
        return ("not known yet", None) if math.isnan(share) else (f"{share:.2f}", share)
    return "", None


def _legend(figure: sweeps.Figure, most: int, judged: bool, found: Any) -> list[list[Any]]:
    """[mark, words] of each item; the ramp has the words of both its ends."""
    items: list[list[Any]] = []
    if figure == "tokens":
        items.append(["ramp", ["0", f"{most} tokens"]])
    if figure in ("like_a", "like_b"):
        items.append(["ramp", ["0: no word in common", "1: the same words"]])
    if figure == "contains":
        items.append(["full", "reference reached"])
    if judged:
        items += [["✓", "contains the reference"], ["✗", "does not"]]
    if any(reading.state in ("impossible", "failed") for reading in found):
        items.append(["hatch", "no answer; the cell says why"])
    return items


def name_of(place: Place) -> str:
    """A cell as the address names it: "3.2", "A.0", "B.1"."""
    row = {A_ROW: "A", B_ROW: "B"}.get(place[0], str(place[0]))
    return f"{row}.{place[1]}"


def place_of(name: str) -> Place | None:
    """The cell that `name_of` names so; None for anything else."""
    row, _, column = name.partition(".")
    if not column.isdecimal() or not (row.isdecimal() or row in ("A", "B")):
        return None
    return {"A": A_ROW, "B": B_ROW}.get(row, int(row) if row.isdecimal() else 0), int(column)
