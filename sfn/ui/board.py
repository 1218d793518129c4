"""The module x layer board: which tensor comes from where, drawn from a plan, and what was clicked, read back.

Owns the picture and its gestures (`assets/board.js`, `assets/board.css`); knows no recipe grammar and keeps no state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from sfn import anatomy

if TYPE_CHECKING:
    import pandas

    from sfn.pairs import Pair, TensorPair
    from sfn.recipes import Plan, Source

Place = tuple[int | None, str]  # (layer or None, row of the board)
Code = Literal["A", "B", "blend", "damaged", "partly"]

_ASSETS = Path(__file__).parent / "assets"
_HTML = """<div class="board">
<div class="grid" role="grid" aria-label="Modules by layers"></div><div class="legend"></div>
<div class="tip" role="tooltip"></div></div>"""
_ROW_PX, _HEAD_PX, _LEGEND_PX = 22, 22, 26  # as in board.css
_mount = st.components.v2.component(
    "sfn_board", html=_HTML, css=(_ASSETS / "board.css").read_text(), js=(_ASSETS / "board.js").read_text()
)


@dataclass(frozen=True, slots=True)
class Toggle:
    """One gesture on the board: these places shall come from `source`. `seq` counts gestures of one drawn board."""

    seq: int
    places: tuple[Place, ...]
    source: Literal["A", "B"]


@dataclass(frozen=True, slots=True)
class Row:
    """One module of the board.

    Attributes:
        explain: the module in one plain sentence. layered: whether it is in layers (else it is one cell).
        tensors: column -> the tensors of that cell; a module without layers has column 0 alone.
    """

    module: str
    layered: bool
    explain: str
    tensors: Mapping[int, tuple[TensorPair, ...]] = field(hash=False)


def rows(pair: Pair) -> tuple[Row, ...]:
    """The board's rows in anatomical order; a cell holds every tensor (weight, bias, experts) of its row and layer."""
    found: dict[tuple[bool, str], dict[int, list[TensorPair]]] = {}
    for row in pair.rows:
        cells = found.setdefault((row.part.layer is not None, row.part.row), {})
        cells.setdefault(row.part.layer or 0, []).append(row)
    # a module that first appears in a later layer (experts after dense layers) still belongs among the layers' rows
    order = sorted(found, key=lambda key: _rank(found[key], layered=key[0]))
    return tuple(
        Row(
            module=module,
            layered=layered,
            explain=anatomy.explain(next(iter(found[layered, module].values()))[0].part),
            tensors={column: tuple(tensors) for column, tensors in found[layered, module].items()},
        )
        for layered, module in order
    )


def _rank(cells: Mapping[int, list[TensorPair]], *, layered: bool) -> tuple[Any, ...]:
    part = next(iter(cells.values()))[0].part
    section, _layer, rank, name, *_rest = anatomy.sort_key(part)
    return section, layered, rank, name


def shifts(table: pandas.DataFrame) -> dict[Place, float]:
    """RMS shift of each cell, sqrt(sum of squared L2 shifts / number of elements), from the store's table of deltas."""
    squares: dict[Place, tuple[float, int]] = {}
    for name, l2_shift, n in zip(table["name"], table["l2_shift"], table["n"], strict=True):
        part = anatomy.parse(name)
        square, count = squares.get((part.layer, part.row), (0.0, 0))
        squares[part.layer, part.row] = (square + float(l2_shift) ** 2, count + int(n))
    return {place: math.sqrt(square / count) for place, (square, count) in squares.items() if count}


def _code(sources: Iterable[Source]) -> tuple[Code, str]:
    """What a cell shows for its tensors' sources, and its words where the code alone does not tell."""
    kinds = {source.kind for source in sources}
    if kinds == {"A"} or not kinds:
        return "A", ""
    if kinds == {"B"}:
        return "B", ""
    if kinds == {"blend"}:
        alphas = sorted({source.alpha for source in sources})
        return "blend", "blend: " + " and ".join(f"{100 * alpha:g} % B" for alpha in alphas)
    if kinds <= {"zero", "reinit", "remove"}:
        words = {"zero": "set to zero", "reinit": "drawn anew at random", "remove": "layer removed"}
        return "damaged", ", ".join(words[kind] for kind in sorted(kinds))
    return "partly", "tensors of this cell come from different sources"


def _drawn(row: Row, plan: Plan, moved_by: Mapping[Place, float], n_layers: int) -> dict[str, Any]:
    """One row as board.js reads it."""
    codes: list[Code | None] = []
    shift: list[float | None] = []
    fixed: dict[int, str] = {}
    detail: dict[int, str] = {}
    for column in range(n_layers if row.layered else 1):
        tensors = row.tensors.get(column, ())
        place: Place = (column if row.layered else None, row.module)
        code, words = _code([plan.sources[tensor.name] for tensor in tensors if tensor.name in plan.sources])
        if row.layered and column in plan.removed:
            code, words = "damaged", "layer removed"
        if tensors and not any(tensor.movable for tensor in tensors):
            fixed[column] = tensors[0].problem or "it cannot be moved"
        elif words:
            detail[column] = words
        codes.append(code if tensors else None)
        shift.append(moved_by.get(place))
    return {
        "module": row.module,
        "layered": row.layered,
        "explain": row.explain,
        "s": codes,
        "shift": shift,
        "fixed": fixed,
        "detail": detail,
    }


def data(pair: Pair, plan: Plan, moved_by: Mapping[Place, float], ack: tuple[str, int]) -> dict[str, Any]:
    """Everything board.js draws. The shade's scale spans the cells that lie in layers; others are clipped to it."""
    in_layers = [value for (layer, _module), value in moved_by.items() if layer is not None]
    spread = in_layers or list(moved_by.values())
    return {
        "rows": [_drawn(row, plan, moved_by, pair.n_layers) for row in rows(pair)],
        "layers": pair.n_layers,
        "low": min(spread, default=None),
        "high": max(spread, default=None),
        "ack": list(ack),
    }


def toggles(value: object, ack: tuple[str, int]) -> tuple[tuple[Toggle, ...], tuple[str, int]]:
    """The gestures in what the browser sent that were not applied yet, and the acknowledgement once they are.

    The browser sends every gesture until it was acknowledged, so those up to `ack` = (board, seq) are left out. What is
    not understood is left out too: it comes from an older or a foreign script.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("ops"), list):
        return (), ack
    instance = str(value.get("instance", ""))
    done = ack[1] if instance == ack[0] else 0
    found = tuple(toggle for toggle in map(_toggle, value["ops"]) if toggle is not None and toggle.seq > done)
    return found, (instance, max([done, *(toggle.seq for toggle in found)]))


def _toggle(op: object) -> Toggle | None:
    match op:
        case {"seq": int(seq), "cells": list(cells), "source": "A" | "B" as source}:
            places = [
                (cell[0], cell[1])
                for cell in cells
                if isinstance(cell, list)
                and len(cell) == 2
                and isinstance(cell[1], str)
                and isinstance(cell[0], int | None)
            ]
            return Toggle(seq, tuple(places), source)
    return None


def height_px(pair: Pair) -> int:
    """Height of the board; fixed, so that nothing below it ever moves."""
    return _HEAD_PX + _ROW_PX * len(rows(pair)) + _LEGEND_PX


def draw(
    pair: Pair,
    plan: Plan,
    moved_by: Mapping[Place, float],
    *,
    key: str,
    ack: tuple[str, int],
    on_toggle: Callable[[], None],
) -> None:
    """Draw the board. In `on_toggle`, `st.session_state[key].toggle` is what `toggles` reads."""
    _mount(key=key, data=data(pair, plan, moved_by, ack), height=height_px(pair), on_toggle_change=on_toggle)
