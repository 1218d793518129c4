"""What the page "Delta" is made of: what is chosen, the scan and its progress, and the order of the pictures.

All of it is one fragment, so that a choice redraws the plots alone; while a scan runs the fragment polls the store,
and only the charts' data change. The pictures are `delta_charts`, the panel of a single tensor `tensor_view`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sfn.errors import SfnError
from sfn.figures import ALL
from sfn.ui import cached, delta_charts, failures, opening, plots, saving, scanning, state, tensor_view, words

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from sfn.jobs import Job
    from sfn.pairs import Pair

_POLL_S = 0.8
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
        row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="delta_choices")
        layout, figure, log, part = _choices(row, pair)
        _scan_row(pair, progress)
        _failure(progress.job)
        deltas = cached.delta_table(pair.key, progress.measured)
        board = cached.board(pair, progress.measured, part, figure, state.get("form"))
        if layout == "paper":
            delta_charts.paper(pair, progress, board, part)
        else:
            with plots.gathering() as shown:
                delta_charts.board(pair, progress, board, figure, log)
                tensor_view.draw(pair, board, deltas)
                delta_charts.lines(pair, board, figure, log, part)
                delta_charts.histograms(pair, progress, board, part)
            saving.menu(row, shown, _named(pair))
    state.write()


def _choices(row: DeltaGenerator, pair: Pair) -> tuple[str, str, bool, str]:
    """Layout, figure, whether the scale is logarithmic, part of a module."""
    state.prepare("layout", "figure", "scale", "part")
    layout = row.segmented_control(
        "Show",
        state.LAYOUTS,
        key="layout",
        required=True,
        format_func=lambda key: {"board": "board", "paper": "paper's figures"}[key],
        help="The instrument's own board, or this pair in the layout of the paper's figures 2, 3, 7 and 8.",
        **state.KEEP,
    )
    figure, scale, part = state.get("figure"), state.get("scale"), "weight"
    if layout == "board":
        figure = row.selectbox(
            "Figure",
            state.FIGURES,
            key="figure",
            format_func=lambda key: ALL[key].title,
            width=200,
            help="  \n".join(
                f"**{f.title}**: {failures.escaped(f.formula)}. {f.meaning}" for f in map(ALL.get, state.FIGURES)
            ),
            **state.KEEP,
        )
        scale = row.segmented_control("Scale", state.SCALES, key="scale", required=True, **state.KEEP)
    if any(row.part.parameter == "bias" for row in pair.rows):
        part = row.segmented_control("Part", state.PARTS, key="part", required=True, **state.KEEP)
    return layout, figure, scale == "log", part


def _named(pair: Pair) -> tuple[str, ...]:
    """What captions say: of this pair, and of the second one where one is drawn too."""
    second = cached.workbench().store.pair(key) if (key := state.get("beside")) else None
    return (saving.names(pair), *([f"Second pair: {saving.saved_names(second)}"] if second else []))


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
