"""What the page "Delta" is made of: the scan and its progress, the board, lines and histograms over the layers.

All of it is one fragment, so that a choice redraws the plots alone; while a scan runs the fragment polls the store,
and only the charts' data change. The panel of a single tensor is `tensor_view`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sfn.errors import SfnError
from sfn.figures import FIGURES
from sfn.ui import cached, failures, opening, plots, scanning, state, tensor_view, words

if TYPE_CHECKING:
    import pandas as pd

    from sfn.jobs import Job
    from sfn.pairs import Pair

_POLL_S = 0.8
_CLICKED = "_board_clicked"  # names that the chart's selection held when it was last read
_CHART = "delta_board"
_GRID_COLUMNS = 3
_MODULES, _LAYERS = "_scan_modules", "_scan_layers"


def draw(pair: Pair) -> None:
    """Draw the page's body; starts the scan of a small pair that was not measured yet."""
    progress = scanning.start_if_small(pair)
    st.fragment(_body, run_every=_POLL_S if progress.running else None)(pair, progress.running)


def _body(pair: Pair, was_running: bool) -> None:
    with failures.shown():
        progress = scanning.Progress(pair)
        if was_running != progress.running:
            st.rerun()  # once, so that the polling begins or ends
        figure, log, part = _choices(pair)
        _scan_row(pair, progress)
        _failure(progress.job)
        deltas = cached.delta_table(pair.key, progress.measured)
        board = cached.board(pair, progress.measured, part)
        _heatmap(board, figure, log)
        _in_words(pair, progress, figure)
        tensor_view.draw(pair, board, deltas)
        _lines(board, figure, log)
        _histograms(pair, progress, board, part)
    state.write()


def _choices(pair: Pair) -> tuple[str, bool, str]:
    state.prepare("figure", "scale", "part")
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    figure = row.selectbox(
        "Figure",
        state.FIGURES,
        key="figure",
        format_func=lambda key: FIGURES[key].title,
        width=250,
        help="  \n".join(f"**{f.title}**: {failures.escaped(f.formula)}. {f.meaning}" for f in FIGURES.values()),
        **state.KEEP,
    )
    scale = row.segmented_control("Scale", state.SCALES, key="scale", required=True, **state.KEEP)
    part = "weight"
    if any(row.part.parameter == "bias" for row in pair.rows):
        part = row.segmented_control("Part", state.PARTS, key="part", required=True, **state.KEEP)
    return figure, scale == "log", part


def _scan_row(pair: Pair, progress: scanning.Progress) -> None:
    """One row of fixed height: progress and cancel while it runs, else what is there and what more can be measured."""
    with st.container(height=52, border=False):
        left, middle, right = st.columns([5, 1.6, 1], vertical_alignment="center")
        job = progress.job
        if progress.running and job is not None:
            rows = scanning.chosen().rows(pair)
            done = len(rows) - len(progress.left(rows))
            text = f"Measuring · {done} of {len(rows)} tensors · {opening.moving(job)}"
            left.progress(job.share, text=failures.escaped(text))
            right.button("Cancel", on_click=opening.cancel, args=(job.id,), key="cancel_scan")
            return
        if not progress.missing:
            left.caption(f"{progress.wanted} tensors measured, kept in the results database.")
            return
        choice = scanning.chosen()
        missing = progress.left(choice.rows(pair))
        ended = _ended(job)
        left.markdown(failures.escaped(f"{ended}{_what_is_there(pair, progress, choice)}"))
        with middle.popover(choice.label, width="stretch", icon=":material/checklist:", help="What to measure"):
            _choose(pair, progress)
        again = ended and job is not None and job.key == cached.workbench().scan_key(pair, _names(pair, choice))
        right.button(
            "Go on" if again else "Measure", type="primary", on_click=_start, args=(pair,), key="start_scan",
            disabled=not missing, width="stretch",
        )  # fmt: skip


def _choose(pair: Pair, progress: scanning.Progress) -> None:
    """Modules and layers to measure, with the bytes that this reads."""
    choice = scanning.chosen()
    quick = st.container(horizontal=True, gap="small")
    quick.button("Everything", key="scan_all", on_click=state.put, args=("scan", ""))
    if any(row.part.module == "o_proj" for row in pair.rows):
        quick.button("Only o_proj", key="scan_o_proj", on_click=state.put, args=("scan", "o_proj"))
    st.session_state[_MODULES] = [row for row in choice.modules if row in pair.modules]
    st.multiselect("Modules", pair.modules, key=_MODULES, placeholder="all modules", on_change=_chosen, args=(pair,))
    if pair.n_layers > 1:
        last = pair.n_layers - 1
        first, end = choice.layers or (0, last)
        st.session_state[_LAYERS] = (min(first, last), min(end, last))
        st.slider("Layers", 0, last, key=_LAYERS, on_change=_chosen, args=(pair,))
    rows = choice.rows(pair)
    missing = progress.left(rows)
    there = len(rows) - len(missing)
    st.caption(
        failures.escaped(
            f"{words.many(len(rows), 'tensor')}, {there} of them measured; the others mean reading "
            f"{scanning.cost(pair, missing)}."
        )
    )


def _chosen(pair: Pair) -> None:
    layers = st.session_state.get(_LAYERS)
    whole = layers is None or tuple(layers) == (0, pair.n_layers - 1)
    state.put("scan", str(scanning.Choice(tuple(st.session_state[_MODULES]), None if whole else tuple(layers))))


def _what_is_there(pair: Pair, progress: scanning.Progress, choice: scanning.Choice) -> str:
    rows = choice.rows(pair)
    missing = progress.left(rows)
    there = f"{progress.measured} of {progress.wanted} tensors are measured"
    if not rows:
        return f"{there}; this pair has nothing of {choice.label}."
    if not missing:
        return f"{there}, {choice.label} among them."
    what = "the rest" if choice.everything else choice.label
    return f"{there}; {what} means reading {scanning.cost(pair, missing)}."


def _ended(job: Job | None) -> str:
    if job is None or job.state not in ("failed", "cancelled"):
        return ""
    return "Cancelled; " if job.state == "cancelled" else "Stopped; "


def _failure(job: Job | None) -> None:
    """Why the scan stopped, in its own place: the reason may be long, and have a page that helps."""
    if job is not None and job.state == "failed":
        failures.failure(job.failure or SfnError(job.error))


def _start(pair: Pair) -> None:
    cached.workbench().scan(pair, state.browser(), _names(pair, scanning.chosen()))


def _names(pair: Pair, choice: scanning.Choice) -> list[str] | None:
    return None if choice.everything else [row.name for row in choice.rows(pair)]


def _heatmap(board: pd.DataFrame, figure: str, log: bool) -> None:
    from sfn import charts

    plots.show(
        charts.heatmap,
        charts.heatmap_table(board, figure, log=log, chosen=state.get("tensor")),
        figure,
        tuple(charts.rows_of(board)),
        tuple(charts.columns_of(board)),
        log=log,
        dark=plots.dark(),
        alt=f"Heatmap of the {FIGURES[figure].title} of {board['row'].nunique()} modules in each layer; "
        "a cell opens its tensor below.",
        key=_CHART,
        on_select=_open_clicked,
        selection="cell",
    )


def _open_clicked() -> None:
    """Open the tensor of the cell that was clicked: the one name by which the selection differs from before."""
    picked = st.session_state[_CHART].selection.get("cell", [])
    names = [item["name"] for item in picked if isinstance(item, dict) and "name" in item]
    before = st.session_state.get(_CLICKED, [])
    changed = [name for name in names if name not in before] or [name for name in before if name not in names]
    st.session_state[_CLICKED] = names
    if changed:
        state.put("tensor", changed[-1])


def _in_words(pair: Pair, progress: scanning.Progress, figure: str) -> None:
    left, right = st.columns([5, 1.2], vertical_alignment="center")
    if progress.running:
        left.markdown("Measuring …")
    else:
        left.markdown(
            failures.escaped(cached.sentence(pair.key, progress.measured, figure) or "Nothing is measured yet.")
        )
    left.caption(
        "A large change does not show that a module carries an ability: move it on the page Merge and read on."
    )
    with right.popover("How to read", icon=":material/info:"):
        st.markdown(_HOW_TO_READ)


_HOW_TO_READ = """
Each **row** is a kind of module, from the embedding on top to the output head at the bottom; each **column** is a
layer. Columns *emb* and *out* hold what stands before and after the layers. The colour tells how far the module moved
between A and B, by the figure chosen above; what stands out from the background moved more.

On a **log** scale, `0` marks what did not change at all. `×` marks what cannot be compared; the reason appears when
you point at it. `–` marks a figure that is not defined there. On a linear scale the colours end at the largest value
in the layers; `▲` marks an embedding or head beyond that.

**L2 shift** grows with the size of a module, so compare modules of different size by **RMS** or **relative** shift.

Point at a cell for all figures; click it to open its tensor.
"""


def _lines(board: pd.DataFrame, figure: str, log: bool) -> None:
    from sfn import charts

    inside = board[board["layer"].notna()]
    if inside.empty:
        return
    plots.show(
        charts.lines,
        charts.lines_table(board, figure, log=log),
        figure,
        tuple(charts.rows_of(inside)),
        int(inside["layer"].max()),
        log=log,
        alt=f"{FIGURES[figure].title} of each module over the layers, one line per module.",
    )


def _histograms(pair: Pair, progress: scanning.Progress, board: pd.DataFrame, part: str) -> None:
    from sfn import charts, tables

    if not pair.n_layers:
        return
    state.prepare("form", "every")
    st.subheader("Relative change by module")
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    form = row.segmented_control(
        "Form of r",
        state.FORMS,
        key="form",
        required=True,
        format_func=lambda key: {"script": "÷ (|w_A| + 1e-8)", "paper": "÷ w_A"}[key],
        help="The released scripts divide by |w_A| + 1e-8, the paper's text by w_A: they differ in sign where w_A < 0.",
        **state.KEEP,
    )
    every = row.number_input("Every k-th layer (0: at most six)", 0, 1000, key="every", step=1, width=250, **state.KEEP)
    colours = "violet to yellow" if plots.dark() else "yellow to violet"
    st.caption(
        f"{failures.escaped(charts.ratio_title(form))}. One line per layer, {colours} from the first to the last. "
        "What lies beyond ±1 is not piled onto the edges: it stands apart, on the right-hand axis."
    )
    if progress.running:
        st.caption("Drawn when the scan has ended.")
        return
    layers = tables.shown_layers(pair.n_layers, int(every))
    grid = cached.histogram_grid(pair, progress.measured, part, layers, form)
    rows = [row for row in charts.rows_of(board) if row in grid]
    top = max((charts.tail_top(table[table["kind"] == "tail"]) for table in grid.values()), default=0.05)
    places = st.columns(_GRID_COLUMNS)
    for place, row in enumerate(rows):
        with places[place % _GRID_COLUMNS]:
            plots.show(
                charts.histogram_small,
                grid[row],
                layers,
                dark=plots.dark(),
                top=top,
                title=row,
                alt=f"Histogram of the relative change of {row} in layers {', '.join(map(str, layers))}.",
            )
