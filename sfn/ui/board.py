"""The module x layer board: which tensor comes from where, drawn from a plan, and what was done to it, read back.

Owns the picture and its gestures (`assets/board*.js`, `assets/board.css`); knows no recipe grammar and keeps no state.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import streamlit as st

from sfn import anatomy, recipes
from sfn.sweeps.grids import thirds

if TYPE_CHECKING:
    import pandas

    from sfn.pairs import Pair, TensorPair
    from sfn.recipes import Place, Plan, Source

Act = Literal["paint", "invert", "undo", "redo"]

_ASSETS = Path(__file__).parent / "assets"
_HTML = """<div class="board"><div class="bar" role="toolbar" aria-label="Brush"></div>
<div class="grid" role="grid" aria-label="Modules by layers"></div><div class="tip" role="tooltip"></div></div>"""
_BAR_PX, _HEAD_PX, _ROW_PX, _LEGEND_PX = 30, 22, 20, 24  # as in board.css
_SCRIPTS = ("board_sources.js", "board_bar.js", "board_blends.js", "board_tip.js", "board_hand.js", "board.js")
_mount = st.components.v2.component(
    "sfn_board",
    html=_HTML,
    css=(_ASSETS / "board.css").read_text(),
    js="\n".join((_ASSETS / name).read_text() for name in _SCRIPTS),
)


@dataclass(frozen=True, slots=True)
class Gesture:
    """One gesture on the board. `seq` counts the gestures of one drawn board.

    Attributes:
        act: "paint": the places shall come from `source`, written as in a recipe. "invert": swap A and B there.
            "undo", "redo": of the recipe; they name no places.
    """

    seq: int
    act: Act
    places: tuple[Place, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One module of the board.

    Attributes:
        explain: the module in one plain sentence. layered: whether it is in layers (else it is one cell).
        tensors: column -> the tensors of that cell, those that only B has included; a module without layers has column
            0 alone. fixed: column -> why the cell cannot come from B.
    """

    module: str
    layered: bool
    explain: str
    tensors: Mapping[int, tuple[TensorPair, ...]] = field(hash=False)
    fixed: Mapping[int, str] = field(hash=False)


def rows(pair: Pair) -> tuple[Row, ...]:
    """The board's rows in anatomical order; a cell holds every tensor (weight, bias, experts) of its row and layer, a
    tower outside the decoder is one cell."""
    found: dict[tuple[bool, str], dict[int, list[TensorPair]]] = {}
    for row in pair.rows:
        layer, module = recipes.place(row.part)
        found.setdefault((layer is not None, module), {}).setdefault(layer or 0, []).append(row)
    # a module that first appears in a later layer (experts after dense layers) still belongs among the layers' rows
    order = sorted(found, key=lambda key: _rank(found[key], layered=key[0]))
    return tuple(_row(module, layered, found[layered, module]) for layered, module in order)


def _row(module: str, layered: bool, cells: Mapping[int, list[TensorPair]]) -> Row:
    first = next(iter(cells.values()))
    explain = anatomy.explain(first[0].part)
    if anatomy.tower(first[0].part) and len(first) > 1:
        explain = f"Another part of the model ({module}): {len(first):,} tensors outside the decoder, set as one."
    obstacles = {column: next(filter(None, map(recipes.obstacle, tensors)), "") for column, tensors in cells.items()}
    return Row(
        module=module,
        layered=layered,
        explain=explain,
        tensors={column: tuple(tensors) for column, tensors in cells.items()},
        fixed={column: why for column, why in obstacles.items() if why},
    )


def _rank(cells: Mapping[int, list[TensorPair]], *, layered: bool) -> tuple[Any, ...]:
    part = next(iter(cells.values()))[0].part
    section, _layer, rank, name, *_rest = anatomy.sort_key(part)
    return section, layered, rank, name


def shifts(table: pandas.DataFrame) -> dict[Place, float]:
    """RMS shift of each cell, sqrt(sum of squared L2 shifts / number of elements), from the store's table of deltas."""
    squares: dict[Place, tuple[float, int]] = {}
    for name, l2_shift, n in zip(table["name"], table["l2_shift"], table["n"], strict=True):
        place = recipes.place(anatomy.parse(name))
        square, count = squares.get(place, (0.0, 0))
        squares[place] = (square + float(l2_shift) ** 2, count + int(n))
    return {place: math.sqrt(square / count) for place, (square, count) in squares.items() if count}


def _shown(sources: Sequence[Source]) -> tuple[str, str]:
    """What a cell shows for its tensors' sources, and its words where the source alone does not tell."""
    first = sources[0]
    if all(source is first or source == first for source in sources):
        return str(first), ""
    counts = Counter(map(str, sources))
    said = ", ".join(f"{count} {'from ' if source in 'AB' else ''}{source}" for source, count in counts.most_common())
    return "mixed", f"its {len(sources)} tensors come from different sources: {said}"


def _drawn(row: Row, plan: Plan, moved_by: Mapping[Place, float], n_layers: int) -> dict[str, Any]:
    """One row as board.js reads it."""
    shown: list[str | None] = []
    shift: list[float | None] = []
    detail: dict[int, str] = {}
    for column in range(n_layers if row.layered else 1):
        tensors = row.tensors.get(column, ())
        sources = [plan.sources[tensor.name] for tensor in tensors if tensor.name in plan.sources]
        source, words = _shown(sources) if sources else ("", "")  # "": only B has it
        if words:
            detail[column] = words
        shown.append(source if tensors else None)
        moved = moved_by.get((column if row.layered else None, row.module))
        shift.append(None if moved is None else float(f"{moved:.4g}"))
    return {
        "module": row.module,
        "layered": row.layered,
        "explain": row.explain,
        "s": shown,
        "shift": shift,
        "fixed": dict(row.fixed),
        "detail": detail,
    }


def data(
    pair: Pair, drawn: Iterable[Row], plan: Plan, moved_by: Mapping[Place, float], ack: tuple[str, int], note: str = ""
) -> dict[str, Any]:
    """Everything board.js draws. The shade's scale spans the cells that lie in layers; others are clipped to it."""
    in_layers = [value for (layer, _module), value in moved_by.items() if layer is not None]
    spread = in_layers or list(moved_by.values())
    return {
        "rows": [_drawn(row, plan, moved_by, pair.n_layers) for row in drawn],
        "layers": pair.n_layers,
        "thirds": [list(third) for third in thirds(pair.n_layers)],
        "low": min(spread, default=None),
        "high": max(spread, default=None),
        "note": note,
        "ack": list(ack),
    }


def gestures(value: object, ack: tuple[str, int]) -> tuple[tuple[Gesture, ...], tuple[str, int]]:
    """The gestures in what the browser sent that were not followed yet, and the acknowledgement once they are.

    The browser sends every gesture until it was acknowledged, so those up to `ack` = (board, seq) are left out. What is
    not understood is left out too: it comes from an older or a foreign script.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("ops"), list):
        return (), ack
    instance = str(value.get("instance", ""))
    done = ack[1] if instance == ack[0] else 0
    found = tuple(gesture for gesture in map(_gesture, value["ops"]) if gesture is not None and gesture.seq > done)
    return found, (instance, max([done, *(gesture.seq for gesture in found)]))


def _gesture(op: object) -> Gesture | None:
    match op:
        case {"seq": int(seq), "act": str(act), "cells": list(cells)} if act in get_args(Act):
            source = op.get("source", "")
            places = [
                (cell[0], cell[1])
                for cell in cells
                if isinstance(cell, list)
                and len(cell) == 2
                and isinstance(cell[1], str)
                and isinstance(cell[0], int | None)
            ]
            if isinstance(source, str) and bool(source) == (act == "paint"):
                return Gesture(seq, act, tuple(places), source)
    return None


def height_px(drawn: Sequence[Row]) -> int:
    """Height of the board; fixed, so that nothing below it ever moves."""
    return _BAR_PX + _HEAD_PX + _ROW_PX * len(drawn) + _LEGEND_PX


def draw(
    pair: Pair,
    drawn: Sequence[Row],
    plan: Plan,
    moved_by: Mapping[Place, float],
    *,
    note: str,
    key: str,
    ack: tuple[str, int],
    on_gesture: Callable[[], None],
) -> None:
    """Draw the board of these `rows`. In `on_gesture`, `st.session_state[key].gesture` is what `gestures` reads.

    `note`: what is to be said about the shade, in a sentence.
    """
    shown = data(pair, drawn, plan, moved_by, ack, note)
    _mount(key=key, data=shown, height=height_px(drawn), on_gesture_change=on_gesture)
