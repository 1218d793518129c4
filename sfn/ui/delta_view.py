"""What the page "Delta" is made of: what is chosen, the scan and its progress, and the order of the pictures.

Each picture is a fragment of its own, and a choice names those that it changes: a change of figure draws board and
lines anew and nothing else. While a scan runs they poll the store, and only the charts' data change. The pictures are
`delta_charts`, the panel of a single tensor `tensor_view`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sfn.errors import SfnError
from sfn.figures import ALL
from sfn.ui import (
    cached,
    delta_charts,
    failures,
    heads_view,
    opening,
    plots,
    saving,
    scanning,
    state,
    tensor_view,
    words,
)
from sfn.ui.tensor_view import BOARD, HISTOGRAMS, LINES, TENSOR

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from sfn.jobs import Job
    from sfn.pairs import Pair

_POLL_S = 0.8
_PAPER, _HEADS = "paper", "heads"  # what the other layouts draw
_SHOWN = "_delta_shown"  # what each fragment drew last, to be saved
_MODULES, _LAYERS = "_scan_modules", "_scan_layers"
_MADE = "_scan_made"  # the choice that the widgets in the popover began with, and what it is now


def draw(pair: Pair) -> None:
    """Draw the page's body; starts the scan of a small pair that was not measured yet."""
    running = scanning.start_if_small(pair).running
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="delta_choices")
    layout, part = _choices(row, pair)
    if layout == "paper":
        _fragment(_PAPER, pair, part, running)
        return
    if layout == "heads":
        _fragment(_HEADS, pair, part, running or heads_view.begun(pair), key=BOARD)
        _fragment(TENSOR, pair, part, running)
        with row:
            st.fragment(_save)(pair, (_HEADS, TENSOR))
        return
    places = {name: st.container() for name in (BOARD, TENSOR, LINES, HISTOGRAMS)}
    for name in (BOARD, LINES, TENSOR, HISTOGRAMS):  # the lines before the tensor above them: they are sooner there
        with places[name]:
            _fragment(name, pair, part, running)
    with row:
        st.fragment(_save)(pair, (BOARD, TENSOR, LINES, HISTOGRAMS))


def _fragment(name: str, pair: Pair, part: str, running: bool, *, key: str = "") -> None:
    """Draw `name` as a fragment. key: what choices call it, where that is another name."""
    st.fragment(_body, run_every=_POLL_S if running else None, key=key or name)(name, pair, part, running)


def _body(name: str, pair: Pair, part: str, was_running: bool) -> None:
    """One fragment of the page."""
    with failures.shown():
        progress = scanning.Progress(pair)
        running = progress.running or (name == _HEADS and heads_view.begun(pair))
        if name in (BOARD, _PAPER, _HEADS) and was_running != running:
            st.rerun()  # once, so that the polling begins or ends
        if name in (BOARD, _PAPER) or (name == _HEADS and progress.missing):
            _scan_row(pair, progress)
            _failure(progress.job)
        with plots.gathering() as shown:
            _DRAWN[name](pair, progress, part)
        st.session_state[_SHOWN] = {**st.session_state.get(_SHOWN, {}), name: shown}
    state.write()


_DRAWN = {
    BOARD: delta_charts.board,
    LINES: delta_charts.lines,
    TENSOR: tensor_view.draw,
    HISTOGRAMS: delta_charts.histograms,
    _PAPER: delta_charts.paper,
    _HEADS: heads_view.draw,
}


def _save(pair: Pair, names: tuple[str, ...]) -> None:
    """The menu of what the other fragments drew last."""
    drawn = st.session_state.get(_SHOWN, {})
    shown = [chart for name in names for chart in drawn.get(name, [])]
    saving.menu(shown, _named(pair))


def _choices(row: DeltaGenerator, pair: Pair) -> tuple[str, str]:
    """Layout and part of a module; figure and scale are chosen too. They stand outside the fragments: those that a
    choice changes are drawn anew, the choices themselves are not."""
    state.prepare("layout", "figure", "scale", "part")
    layout, part = state.get("layout"), "weight"
    row.segmented_control(
        "Show",
        state.LAYOUTS,
        key="layout",
        required=True,
        format_func={"board": "board", "heads": "heads", "paper": "paper's figures"}.__getitem__,
        help="The instrument's own board; every attention head in every layer; or this pair in the layout of the "
        "paper's figures 2, 3, 7 and 8.",
        **state.KEEP,
    )
    if layout == "board":
        row.selectbox(
            "Figure",
            state.FIGURES,
            key="figure",
            format_func=lambda key: ALL[key].title,
            width=200,
            help="  \n".join(
                f"**{f.title}**: {failures.escaped(f.formula)}. {f.meaning}" for f in map(ALL.get, state.FIGURES)
            ),
            on_change=st.rerun,
            args=((BOARD, LINES),),
            **state.KEEP,
        )
        row.segmented_control(
            "Scale", state.SCALES, key="scale", required=True, on_change=st.rerun, args=((BOARD, LINES),), **state.KEEP
        )
    if layout != "heads" and any(row.part.parameter == "bias" for row in pair.rows):
        part = row.segmented_control("Part", state.PARTS, key="part", required=True, **state.KEEP)
    return layout, part


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
    modules, layers = _keys()
    quick = st.container(horizontal=True, gap="small")
    quick.button("Everything", key="scan_all", on_click=state.put, args=("scan", ""))
    if any(row.part.module == "o_proj" for row in pair.rows):
        quick.button("Only o_proj", key="scan_o_proj", on_click=state.put, args=("scan", "o_proj"))
    st.session_state[modules] = [row for row in choice.modules if row in pair.modules]
    st.multiselect("Modules", pair.modules, key=modules, placeholder="all modules", on_change=_chosen, args=(pair,))
    if pair.n_layers > 1:
        last = pair.n_layers - 1
        first, end = choice.layers or (0, last)
        st.session_state[layers] = (min(first, last), min(end, last))
        st.slider("Layers", 0, last, key=layers, on_change=_chosen, args=(pair,))
    rows = choice.rows(pair)
    missing = progress.left(rows)
    there = len(rows) - len(missing)
    st.caption(
        failures.escaped(
            f"{words.many(len(rows), 'tensor')}, {there} of them measured; the others mean reading "
            f"{scanning.cost(pair, missing)}."
        )
    )


def _keys() -> tuple[str, str]:
    """Keys of the two widgets that edit the choice. They are others once it was made elsewhere.

    A popover that is closed before its widgets are drawn again goes on sending what they held, and that would undo the
    choice.
    """
    text, (given, made) = str(scanning.chosen()), st.session_state.get(_MADE, ("", ""))
    if text != made:
        given = text
    st.session_state[_MADE] = given, text
    return f"{_MODULES} {given}", f"{_LAYERS} {given}"


def _chosen(pair: Pair) -> None:
    given, _ = st.session_state[_MADE]
    layers = st.session_state.get(f"{_LAYERS} {given}")
    whole = layers is None or tuple(layers) == (0, pair.n_layers - 1)
    chosen = scanning.Choice(tuple(st.session_state[f"{_MODULES} {given}"]), None if whole else tuple(layers))
    state.put("scan", str(chosen))
    st.session_state[_MADE] = given, str(chosen)


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
