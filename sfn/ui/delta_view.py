"""What the page "Delta" is made of: the scan and its progress, the board, lines and histograms over the layers.

All of it is one fragment, so that a choice redraws the plots alone; while a scan runs the fragment polls the store,
and only the charts' data change. The panel of a single tensor is `tensor_view`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sfn.errors import SfnError
from sfn.figures import FIGURES
from sfn.ui import cached, failures, plots, scanning, state, tensor_view, words

if TYPE_CHECKING:
    import pandas as pd

    from sfn.jobs import Job
    from sfn.pairs import Pair

_POLL_S = 0.8
_CLICKED = "_board_clicked"  # names that the chart's selection held when it was last read
_CHART = "delta_board"
_GRID_COLUMNS = 3


def draw(pair: Pair) -> None:
    """Draw the page's body; starts the scan of a small pair that was not measured yet."""
    progress = scanning.start_if_small(pair)
    st.fragment(_body, run_every=_POLL_S if progress.running else None)(pair, progress.running)


def _body(pair: Pair, was_running: bool) -> None:
    with failures.shown():
        progress = scanning.Progress(pair)
        if was_running and not progress.running:
            st.rerun()  # once, so that the polling ends
        figure, log, part = _choices(pair)
        _scan_row(pair, progress)
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
    """One row of fixed height: progress and cancel while it runs, else what is there or the button that starts it."""
    with st.container(height=52, border=False):
        left, right = st.columns([5, 1], vertical_alignment="center")
        job = progress.job
        if progress.running and job is not None:
            left.progress(
                job.share,
                text=f"Measuring · {progress.measured} of {progress.wanted} tensors · {words.eta(job.eta_s)}",
            )
            right.button("Cancel", on_click=_cancel, args=(job.id,), key="cancel_scan")
        elif progress.missing:
            why = "" if job is None else f"The scan {_ended(job)}. "
            left.markdown(
                f"{failures.escaped(why)}{progress.measured} of {progress.wanted} tensors are measured; "
                f"the rest means reading at most {scanning.cost(pair)}."
            )
            right.button("Measure", type="primary", on_click=_start, args=(pair,), key="start_scan")
        else:
            left.caption(f"{progress.wanted} tensors measured, kept in the results database.")


def _ended(job: Job) -> str:
    return {"failed": f"failed: {job.error}", "cancelled": "was cancelled"}.get(job.state, "ended")


def _start(pair: Pair) -> None:
    cached.workbench().scan(pair, state.browser())


def _cancel(number: int) -> None:
    try:
        cached.workbench().jobs.cancel(number, state.browser())
    except SfnError as error:
        st.toast(failures.escaped(str(error)))


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
