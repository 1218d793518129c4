"""The memos of what was measured: tables, boards, charts' specifications and closer looks, each bounded.

Only what the store has, put in a form to draw. `sfn.ui.cached` has the memos of everything else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import streamlit as st

from sfn.figures import SHAPES
from sfn.ui import cached
from sfn.ui.cached import Memo

if TYPE_CHECKING:
    import pandas as pd

    from sfn.head_maps import HeadMap, HeadMaps, Lengths
    from sfn.looks import Look
    from sfn.lookups import Lookup
    from sfn.modality import Modality
    from sfn.pairs import Pair
    from sfn.recipes import Place
    from sfn.records import HistogramForm, TensorDelta
    from sfn.tables import Packed

_looks = Memo(24)
_heads = Memo(4096)  # tensors whose heads' lengths are remembered: about a kilobyte each


@st.cache_data(max_entries=256, show_spinner=False)
def chart_spec(name: str, options: tuple[Hashable, ...], more: tuple[Hashable, ...], _draw: Any, _table: Any) -> Any:
    """The Vega-Lite specification of a chart without its data; it depends on the chart's options alone."""
    from sfn import pictures

    return pictures.without_data(_draw(_table, *options, **dict(more)))


@st.cache_resource(max_entries=16, show_spinner=False)  # tables that nobody changes: no copy of each for each run
def _tensors(pair_key: str, _pair: Pair) -> pd.DataFrame:
    from sfn import tables

    return tables.tensors(_pair)


@st.cache_resource(max_entries=16, show_spinner=False)
def delta_table(pair_key: str, measured: int) -> pd.DataFrame:
    """`Store.delta_table` of a pair of which `measured` tensors are in the store; what is stored never changes."""
    return cached.workbench().store.delta_table(pair_key)


def board(
    pair: Pair, measured: int, part: str, figure: str = "l2_shift", form: HistogramForm = "script"
) -> pd.DataFrame:
    """`sfn.tables.board` of a pair of which `measured` tensors are in the store; with the shapes of the relative change
    in one form, where `figure` is one of those."""
    found = _board(pair.key, measured, part, pair)
    return _with_shapes(pair.key, measured, part, form, found) if figure in SHAPES else found


@st.cache_resource(max_entries=16, show_spinner=False)
def _with_shapes(pair_key: str, measured: int, part: str, form: HistogramForm, _board: pd.DataFrame) -> pd.DataFrame:
    from sfn import tables

    histograms = cached.workbench().store.histograms(pair_key, form=form)
    return tables.with_shapes(_board, histograms, delta_table(pair_key, measured), part)


@st.cache_resource(max_entries=32, show_spinner=False)
def _board(pair_key: str, measured: int, part: str, _pair: Pair) -> pd.DataFrame:
    from sfn import tables

    return tables.board(_tensors(pair_key, _pair), delta_table(pair_key, measured), part)


def measured_pairs() -> dict[str, str]:
    """Key of each pair of which figures are in the store -> its name, the newest first; asked once a second at most."""
    return _measured_pairs(str(cached.workbench().store.path), int(time.monotonic()))


@st.cache_data(max_entries=2, show_spinner=False)
def _measured_pairs(path: str, second: int) -> dict[str, str]:
    store = cached.workbench().store
    measured = store.measured()
    return {pair.key: f"{pair.a_label} → {pair.b_label}" for pair in store.pairs() if pair.key in measured}


def measured_board(pair_key: str, part: str, figure: str = "l2_shift", form: HistogramForm = "script") -> pd.DataFrame:
    """`sfn.tables.measured_board` of a pair that is not open, otherwise as `board`."""
    measured = cached.workbench().store.measured().get(pair_key, 0)
    found = _measured_board(pair_key, measured, part)
    return _with_shapes(pair_key, measured, part, form, found) if figure in SHAPES else found


@st.cache_resource(max_entries=16, show_spinner=False)
def _measured_board(pair_key: str, measured: int, part: str) -> pd.DataFrame:
    from sfn import tables

    return tables.measured_board(delta_table(pair_key, measured), part)


def look(pair: Pair, name: str, kind: str, *, expert: int | None = None, part: str = "") -> Look | None:
    """A closer look at a tensor (`sfn.looks`) if it is in the store; the last ones are remembered as records."""
    from sfn import looks

    settings = looks.settings(kind, expert=expert, part=part)
    key = (str(cached.workbench().store.path), pair.key, name, kind, settings)
    found = _looks.get(key)
    if found is not None:
        return found
    content = cached.workbench().store.look(pair.key, name, kind, settings)
    if content is None:
        return None
    found = looks.from_content(kind, content)
    _looks.keep(key, found)
    return found


def head_maps(pair: Pair) -> HeadMaps:
    """`sfn.head_maps.of` a pair."""
    return _head_maps(pair.key, pair)


@st.cache_resource(max_entries=8, show_spinner=False)
def _head_maps(pair_key: str, _pair: Pair) -> HeadMaps:
    from sfn import head_maps

    return head_maps.of(_pair)


HeadLengths = Mapping[str, "Lengths"]


def head_lengths(pair: Pair, chosen: HeadMap) -> HeadLengths:
    """Tensor -> how far its heads moved and how long they are in A, of those that were looked at."""
    from sfn import looks, slices

    store, settings = cached.workbench().store, looks.settings("slices")
    there = store.looked_at(pair.key, "slices", settings)
    found: dict[str, Lengths] = {}
    for _layer, name, cut in chosen.tensors:
        if name not in there:
            continue
        key = (str(store.path), pair.key, name, cut.what)
        lengths = _heads.get(key)
        if lengths is None and (content := store.look(pair.key, name, "slices", settings)) is not None:
            lengths = slices.by_piece(looks.from_content("slices", content), cut)
            _heads.keep(key, lengths)
        if lengths is not None:
            found[name] = lengths
    return found


def modality(pair_key: str, found: TensorDelta, form: HistogramForm) -> Modality:
    """`sfn.modality.of` one measured tensor."""
    return _modality(pair_key, found.name, form, found)


@st.cache_data(max_entries=512, show_spinner=False)
def _modality(pair_key: str, name: str, form: HistogramForm, _found: TensorDelta) -> Modality:
    from sfn import modality

    return modality.of(_found, form)


def token_texts(pair: Pair, ids: tuple[int, ...]) -> Lookup:
    """What the tokens with these numbers stand for in A and in B: one line for each, "" where there is no such token.

    The tokenizers are loaded in the background, one after the other; a short while is waited for them.
    """

    def decode() -> tuple[tuple[str, ...], ...]:
        from sfn.engines import text

        return tuple(
            text.token_texts(cached.speech(str(side.speech_folder()), side.label), ids) for side in (pair.a, pair.b)
        )  # fmt: skip

    key = ("tokens", pair.key, ids)
    asked = cached.lookups().ask(key, decode, fresh_s=float("inf"))
    return cached.lookups().wait(key, 0.3) if asked.state == "asking" else asked


class Axes(NamedTuple):
    """Labels along a board's sides, and what of them has layers. rows, columns: of the heatmap. inside: rows of the
    lines. last: the last layer, -1 where there is none."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    inside: tuple[str, ...]
    last: int


def axes(pair: Pair, measured: int, part: str) -> Axes:
    """What stands along the sides of `board`."""
    return _axes(pair.key, measured, part, pair)


@st.cache_resource(max_entries=32, show_spinner=False)
def _axes(pair_key: str, measured: int, part: str, _pair: Pair) -> Axes:
    from sfn import charts

    cells = _board(pair_key, measured, part, _pair)
    inside = cells[cells["layer"].notna()]
    last = int(inside["layer"].max()) if len(inside) else -1
    return Axes(
        tuple(charts.rows_of(cells)), tuple(charts.columns_of(cells)), tuple(charts.rows_of(inside)), last
    )  # fmt: skip


def heatmap(pair: Pair, measured: int, part: str, figure: str, form: HistogramForm, *, log: bool) -> Packed:
    """`sfn.charts.heatmap_table` of `board`; no cell is chosen."""
    cells = board(pair, measured, part, figure, form)
    texts = _board_texts(pair.key, measured, part, cells)
    return _heatmap(pair.key, measured, part, figure, _form(figure, form), log, cells, texts)


def _form(figure: str, form: HistogramForm) -> HistogramForm:
    """The form of the relative change, where a figure depends on it."""
    return form if figure in SHAPES else "script"


@st.cache_resource(max_entries=64, show_spinner=False)
def _heatmap(
    pair_key: str,
    measured: int,
    part: str,
    figure: str,
    form: HistogramForm,
    log: bool,
    _cells: pd.DataFrame,
    _texts: pd.DataFrame,
) -> Packed:
    from sfn import charts, tables

    return tables.pack(charts.heatmap_table(_cells, figure, log=log, texts=_texts))


@st.cache_resource(max_entries=8, show_spinner=False)
def _board_texts(pair_key: str, measured: int, part: str, _cells: pd.DataFrame) -> pd.DataFrame:
    from sfn import charts, tables

    return tables.slim(charts.heatmap_texts(_cells))


def lines(pair: Pair, measured: int, part: str, figure: str, form: HistogramForm, *, log: bool) -> Packed:
    """`sfn.charts.lines_table` of `board`."""
    cells = board(pair, measured, part, figure, form)
    return _lines(pair.key, measured, part, figure, _form(figure, form), log, cells)


@st.cache_resource(max_entries=64, show_spinner=False)
def _lines(
    pair_key: str, measured: int, part: str, figure: str, form: HistogramForm, log: bool, _cells: pd.DataFrame
) -> Packed:
    from sfn import charts, tables

    return tables.pack(charts.lines_table(_cells, figure, log=log))


def over_layers(pair: Pair, measured: int, part: str, figure: str, form: HistogramForm) -> str:
    """`sfn.profiles.over_layers` of `board`."""
    cells = board(pair, measured, part, figure, form)
    return _over_layers(pair.key, measured, part, figure, _form(figure, form), cells)


@st.cache_resource(max_entries=64, show_spinner=False)
def _over_layers(
    pair_key: str, measured: int, part: str, figure: str, form: HistogramForm, _cells: pd.DataFrame
) -> str:
    from sfn import profiles

    return profiles.over_layers(_cells, figure)


def foresee(pair: Pair, measured: int, part: str, *, dark: bool) -> None:
    """Make what board and lines take for every figure and scale beside the page, once: the first change of figure then
    waits for no more than the browser. Altair alone takes as long for a chart as the browser for drawing it."""
    cells = _board(pair.key, measured, part, pair)
    _foresee(pair.key, measured, part, dark, cells, axes(pair, measured, part), delta_table(pair.key, measured))


@st.cache_resource(max_entries=16, show_spinner=False)
def _foresee(
    pair_key: str, measured: int, part: str, dark: bool, _cells: pd.DataFrame, _axes: Axes, _deltas: pd.DataFrame
) -> threading.Thread:
    from sfn import charts
    from sfn.figures import FIGURES

    def make() -> None:  # from tables that are at hand: it may outlive what it was made for
        what, texts = (pair_key, measured, part), _board_texts(pair_key, measured, part, _cells)
        for log in (False, True):
            for figure in FIGURES:
                table = _heatmap(*what, figure, "script", log, _cells, texts).table
                more = (("dark", dark), ("log", log))
                chart_spec("heatmap", (figure, _axes.rows, _axes.columns), more, charts.heatmap, table)
                if _axes.last >= 0:
                    table = _lines(*what, figure, "script", log, _cells).table
                    chart_spec("lines", (figure, _axes.inside, _axes.last), (("log", log),), charts.lines, table)
        for figure in FIGURES:
            _sentence(pair_key, measured, figure, _deltas)
            _over_layers(*what, figure, "script", _cells)

    thread = threading.Thread(target=make, name="sfn-foresee", daemon=True)
    thread.start()
    return thread


def missing(pair_key: str, names: Sequence[str]) -> tuple[str, ...]:
    """`Store.missing`; once nothing is missing it is not asked again, since what is stored stays."""
    store = cached.workbench().store
    whole = _whole(str(store.path), pair_key)
    if frozenset(names) <= whole:
        return ()
    found = store.missing(pair_key, names)
    if not found:
        whole.update(names)
    return found


@st.cache_resource(max_entries=16, show_spinner=False)
def _whole(path: str, pair_key: str) -> set[str]:
    """Names of tensors that are known to be in the store."""
    return set()


@st.cache_resource(max_entries=8, show_spinner=False)
def shifts(pair_key: str, measured: int) -> dict[Place, float]:
    """`sfn.ui.board.shifts` of a pair of which `measured` tensors are in the store."""
    from sfn.ui import board

    return board.shifts(delta_table(pair_key, measured)) if measured else {}


def sentence(pair: Pair, measured: int, figure: str, form: HistogramForm = "script") -> str:
    """What is seen in the pair by one figure, in words; "" where nothing is measured."""
    if figure in SHAPES:
        from sfn import profiles

        return profiles.modes(board(pair, measured, "weight", figure, form))
    return _sentence(pair.key, measured, figure, delta_table(pair.key, measured))


@st.cache_data(max_entries=64, show_spinner=False)
def _sentence(pair_key: str, measured: int, figure: str, _deltas: pd.DataFrame) -> str:
    from sfn import readings, tables

    return readings.sentence(tables.figures_only(_deltas), figure)


def histogram_grid(
    pair: Pair, measured: int, part: str, layers: tuple[int, ...], form: HistogramForm
) -> dict[str, Packed]:
    """Row of the board -> `sfn.tables.histogram_table` of its tensors in these layers."""
    return _histogram_grid(pair.key, measured, part, layers, form, pair)


@st.cache_resource(max_entries=16, show_spinner=False)
def _histogram_grid(
    pair_key: str, measured: int, part: str, layers: tuple[int, ...], form: HistogramForm, _pair: Pair
) -> dict[str, Packed]:
    from sfn import tables

    found = cached.workbench().store.histograms(pair_key, layers=list(layers), form=form)
    grid = tables.histogram_grid(_tensors(pair_key, _pair), found, part)
    return {row: tables.pack(table) for row, table in grid.items()}
