"""Every memo of the app, each bounded, and the way to what the process owns. The durable cache is the store."""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import streamlit as st

from sfn.errors import SfnError
from sfn.figures import SHAPES

if TYPE_CHECKING:
    import pandas as pd

    from sfn.anatomy import Part
    from sfn.engines.text import Speech
    from sfn.head_maps import HeadMap, HeadMaps, Lengths
    from sfn.jobs import Job
    from sfn.looks import Look
    from sfn.lookups import Lookup, Lookups
    from sfn.modality import Modality
    from sfn.pairs import Pair
    from sfn.recipes import Place, Plan
    from sfn.records import HistogramForm, TensorDelta
    from sfn.store import SavedPair
    from sfn.sweeps import Grid, Reading, Sweep
    from sfn.tables import Packed
    from sfn.ui.board import Row
    from sfn.workbench import Workbench

_lock = threading.Lock()
_memo_lock = threading.Lock()
_MOST_PLANS = 64
_MOST_LOOKS = 24
_MOST_HEADS = 4096  # tensors whose heads' lengths are remembered: about a kilobyte each
_MOST_RECENT = 30
_NEWEST = 5000  # answers that the filters of the History page are made from

_Kept = OrderedDict[tuple[str, ...], Any]  # by key, the one asked for last at the end
_plans: _Kept = OrderedDict()
_looks: _Kept = OrderedDict()
_heads: _Kept = OrderedDict()


def _kept(memo: _Kept, key: tuple[str, ...]) -> Any | None:
    """What a plain memo has under `key`; `st.cache_resource` would take 0.1 ms a time."""
    with _memo_lock:
        if key in memo:
            memo.move_to_end(key)
        return memo.get(key)


def _keep(memo: _Kept, key: tuple[str, ...], value: Any, most: int) -> None:
    """Keep `value`, and forget what was asked for longest ago."""
    with _memo_lock:
        memo[key] = value
        if len(memo) > most:
            memo.popitem(last=False)


def workbench() -> Workbench:
    """Store, jobs and engine of this process.

    Raises InstallError where packages do not fit each other, StoreError where the results database cannot be used.
    """
    from sfn import workbench as room

    _check_packages()
    _offer_secret()
    return room.current()


def lookups() -> Lookups:
    """What this process asks in the background."""
    return workbench().lookups


@functools.cache
def _offer_secret() -> None:
    """A token in Streamlit's secrets counts where neither the environment nor `hf auth login` has one."""
    from sfn import hub

    if st.secrets.load_if_toml_exists() and "HF_TOKEN" in st.secrets:
        hub.offer_token(str(st.secrets["HF_TOKEN"]))


@functools.cache  # success alone is remembered: a packages' misfit is told each time until it is mended
def _check_packages() -> None:
    from sfn.engines import fit

    fit.check(thorough=False)


def bundled_folders() -> tuple[str, str]:
    """Folders of the bundled pair, A first."""
    from sfn import demo

    a, b = demo.folders()
    return str(a), str(b)


def recent_pairs() -> list[SavedPair]:
    """`Store.pairs`, at most the newest of them; asked once a second at most, since a picker asks at every letter."""
    return _recent_pairs(str(workbench().store.path), int(time.monotonic()))


@st.cache_data(max_entries=2, show_spinner=False)
def _recent_pairs(path: str, second: int) -> list[SavedPair]:
    return workbench().store.pairs()[:_MOST_RECENT]


def _stamp(folder: str) -> tuple[object, ...]:
    """What tells that a folder's files changed: names, sizes and times of its weights and configuration.

    A commit on the Hub never changes; a branch may, and is looked at again after a minute.
    """
    from sfn import hub

    if (found := hub.meant(folder)) is not None:
        return ("hub", 0 if found.fixed else int(time.monotonic() / 60))
    files = sorted(Path(folder).expanduser().glob("*.json")) + sorted(Path(folder).expanduser().glob("*.safetensors"))
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@st.cache_resource(max_entries=8, show_spinner=False)
def _opening(a: str, b: str, _owner: str, stamps: object, _known: Job | None = None) -> Job:
    return _known or workbench().open_pair(a, b, _owner)


def opening(a: str, b: str, owner: str) -> Job:
    """The job that opens and compares two checkpoints; its `result` is the `Pair`.

    Done once while the files stay as they are; a job that failed is started again after `forget_opening`.
    """
    with _lock:
        return _opening(a, b, owner, (_stamp(a), _stamp(b)))


def same_opening(job: Job, a: str, b: str) -> None:
    """From now on `opening` of these names is this job too."""
    with _lock:
        _opening(a, b, "", (_stamp(a), _stamp(b)), job)


def folder_problem(folder: str) -> str:
    """ "" or the sentence that says why `folder` cannot be opened as a checkpoint; headers are read, no weights."""
    return _folder_problem(folder, _stamp(folder))


@st.cache_data(max_entries=64, show_spinner=False)
def _folder_problem(folder: str, stamp: object) -> str:
    from sfn import checkpoints

    try:
        checkpoints.open(folder).close()
    except SfnError as error:
        return str(error)
    return ""


def forget_opening(a: str, b: str) -> None:
    """Let the next `opening` of these folders start anew."""
    _opening.clear(a, b, "", (_stamp(a), _stamp(b)))


def plan(pair: Pair, recipe: str) -> Plan:
    """What a recipe's text means for a pair. Raises RecipeError. A page asks for dozens of plans at every click."""
    from sfn import recipes

    key = (pair.key, recipe)
    found = _kept(_plans, key)
    if found is None:
        found = recipes.resolve(recipes.parse(recipe), pair)
        _keep(_plans, key, found, _MOST_PLANS)
    return found


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
    return workbench().store.delta_table(pair_key)


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

    histograms = workbench().store.histograms(pair_key, form=form)
    return tables.with_shapes(_board, histograms, delta_table(pair_key, measured), part)


@st.cache_resource(max_entries=32, show_spinner=False)
def _board(pair_key: str, measured: int, part: str, _pair: Pair) -> pd.DataFrame:
    from sfn import tables

    return tables.board(_tensors(pair_key, _pair), delta_table(pair_key, measured), part)


def measured_pairs() -> dict[str, str]:
    """Key of each pair of which figures are in the store -> its name, the newest first; asked once a second at most."""
    return _measured_pairs(str(workbench().store.path), int(time.monotonic()))


@st.cache_data(max_entries=2, show_spinner=False)
def _measured_pairs(path: str, second: int) -> dict[str, str]:
    store = workbench().store
    measured = store.measured()
    return {pair.key: f"{pair.a_label} → {pair.b_label}" for pair in store.pairs() if pair.key in measured}


def measured_board(pair_key: str, part: str, figure: str = "l2_shift", form: HistogramForm = "script") -> pd.DataFrame:
    """`sfn.tables.measured_board` of a pair that is not open, otherwise as `board`."""
    measured = workbench().store.measured().get(pair_key, 0)
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
    key = (str(workbench().store.path), pair.key, name, kind, settings)
    found = _kept(_looks, key)
    if found is not None:
        return found
    content = workbench().store.look(pair.key, name, kind, settings)
    if content is None:
        return None
    found = looks.from_content(kind, content)
    _keep(_looks, key, found, _MOST_LOOKS)
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

    store, settings = workbench().store, looks.settings("slices")
    there = store.looked_at(pair.key, "slices", settings)
    found: dict[str, Lengths] = {}
    for _layer, name, cut in chosen.tensors:
        if name not in there:
            continue
        key = (str(store.path), pair.key, name, cut.what)
        lengths = _kept(_heads, key)
        if lengths is None and (content := store.look(pair.key, name, "slices", settings)) is not None:
            lengths = slices.by_piece(looks.from_content("slices", content), cut)
            _keep(_heads, key, lengths, _MOST_HEADS)
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
            text.token_texts(speech(str(side.speech_folder()), side.label), ids) for side in (pair.a, pair.b)
        )  # fmt: skip

    key = ("tokens", pair.key, ids)
    asked = lookups().ask(key, decode, fresh_s=float("inf"))
    return lookups().wait(key, 0.3) if asked.state == "asking" else asked


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
    store = workbench().store
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


def board_rows(pair: Pair) -> tuple[Row, ...]:
    """`sfn.ui.board.rows` of a pair."""
    return _board_rows(pair.key, pair)


@st.cache_resource(max_entries=8, show_spinner=False)
def _board_rows(pair_key: str, _pair: Pair) -> tuple[Row, ...]:
    from sfn.ui import board

    return board.rows(_pair)


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

    found = workbench().store.histograms(pair_key, layers=list(layers), form=form)
    grid = tables.histogram_grid(_tensors(pair_key, _pair), found, part)
    return {row: tables.pack(table) for row, table in grid.items()}


@st.cache_resource(max_entries=1, show_spinner=False)
def warm_up() -> threading.Thread:
    """Load what draws charts beside the first page, once: the first look at Delta does not wait for Altair then."""

    def load() -> None:
        import sfn.charts
        import sfn.readings  # noqa: F401  # loaded, not used
        from sfn import delta_kernel

        delta_kernel.make_ready()

    thread = threading.Thread(target=load, name="sfn-warm-up", daemon=True)
    thread.start()
    return thread


def known_generations() -> pd.DataFrame:
    """What the answers in the store can be filtered by: pair_key, a_label, b_label, engine, recipe, each once."""
    store = workbench().store
    return _known_generations(str(store.path), store.count_generations())


@st.cache_data(max_entries=4, show_spinner=False)
def _known_generations(path: str, many: int) -> pd.DataFrame:
    columns = ["pair_key", "a_label", "b_label", "engine", "recipe"]
    return workbench().store.generations(limit=_NEWEST)[columns].drop_duplicates(ignore_index=True)


@st.cache_data(max_entries=16, show_spinner=False)
def _template_opens_thought(pair_key: str, side: str, _pair: Pair) -> bool:
    from sfn import answer_text, tokenizer_differences

    return answer_text.template_opens_thought(tokenizer_differences.chat_template(getattr(_pair, side)) or "")


def template_opens_thought(pair: Pair, side: Literal["A", "B"]) -> bool:
    """Whether the chat template of one side puts the model into a thought that has begun."""
    return _template_opens_thought(pair.key, side.lower(), pair)


@st.cache_resource(max_entries=4, show_spinner=False)
def speech(folder: str, label: str) -> Speech:
    """A checkpoint's tokenizer and chat template, loaded. Takes seconds the first time: call it in a job."""
    from sfn.engines import text

    return text.load(Path(folder), label)


def sweep_grid(pair: Pair, sweep: Sweep) -> Grid:
    """`sfn.sweeps.expand`. Raises SweepError or RecipeError."""
    return _sweep_grid(pair.key, sweep, pair)


@st.cache_resource(max_entries=8, show_spinner=False)
def _sweep_grid(pair_key: str, sweep: Sweep, _pair: Pair) -> Grid:
    from sfn import sweeps

    return sweeps.expand(sweep, _pair)


def sweep_readings(number: int, sweep: Sweep) -> Mapping[tuple[int, int], Reading]:
    """`sfn.sweeps.readings` of a sweep in the store; read anew once another cell was answered or failed."""
    store = workbench().store
    return _sweep_readings(str(store.path), number, store.sweeps.progress(number), sweep)


@st.cache_resource(max_entries=4, show_spinner=False)
def _sweep_readings(
    path: str, number: int, progress: tuple[int, int], _sweep: Sweep
) -> Mapping[tuple[int, int], Reading]:
    from sfn import sweeps

    return sweeps.readings(_sweep, workbench().store.sweeps.cells(number))


def explanation(part: Part) -> str:
    """One plain sentence on what a tensor does."""
    from sfn import anatomy

    return anatomy.explain(part)
