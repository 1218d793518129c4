"""The Sweep view of the Merge page: begin a sweep, watch its grid fill, take it up again, keep it as a file.

What is asked for is `sweep_form`'s, how the grid looks `sweep_grid`'s, one opened cell `sweep_cell`'s.
"""

from __future__ import annotations

import html
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from sfn import store, sweep_room, sweeps
from sfn.errors import RecipeError, SfnError, StoreError, SweepError
from sfn.ui import asking, cached, failures, plots, state, sweep_cell, sweep_form, sweep_grid, words

if TYPE_CHECKING:
    from sfn.jobs import Job
    from sfn.pairs import Pair
    from sfn.recipes import Plan
    from sfn.store import SavedSweep
    from sfn.sweeps import Sweep

_TICK_S = 0.7
_CSS = (Path(__file__).parent / "assets" / "sweep.css").read_text()
_GRID = "sweep_grid"
_NEW = "New sweep …"
_PROBLEM = "_sweep_problem"  # the sentence of what a button could not do
_DELETE = "sweep_delete"
_MIME = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet", "json": "application/json"}
_FILES = {"csv": "CSV", "parquet": "Parquet", "json": "JSON"}


def draw(pair: Pair, plan: Plan) -> None:
    """A new sweep over the board's `plan`, or one of those that were begun with this pair."""
    st.html(f"<style>{_CSS}</style>")
    state.prepare("sweep", "sweep_figure")
    saved = cached.workbench().store.sweeps.of_pair(pair.key)
    found = {each.id: each for each in saved}
    number = state.get("sweep")
    _bar(found)
    if problem := st.session_state.pop(_PROBLEM, ""):
        failures.sentence(problem)
    if number in found:
        _opened(pair, found[number])
        return
    if number:
        failures.sentence(
            f"There is no sweep {number} of this pair here: it was deleted, or begun with another pair or on another "
            "machine. Choose another one above, or begin a new one."
        )
    _new(pair, plan)


def _bar(found: dict[int, SavedSweep]) -> None:
    """Which sweep is shown, and what can be done with it as a whole."""
    number = state.get("sweep")
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="sweep_bar"):
        # Streamlit knows options by their words, so these must not change while a sweep runs.
        st.selectbox(
            "Sweep",
            [0, *found, *([number] if number not in (0, *found) else [])],
            key="sweep",
            format_func=lambda each: _name(found[each]) if each in found else f"{each} · not here" if each else _NEW,
            on_change=state.put,
            args=("sweep_cell", ""),
            label_visibility="collapsed",
            **state.KEEP,
        )
        if number in found:
            _draw_files(found[number])
            _draw_delete(found[number])


def _name(saved: SavedSweep) -> str:
    """ "7 · each module from B × 4 prompts · 56 cells · 12 May 14:03"."""
    when = saved.created_at.astimezone().strftime("%d %b %H:%M")
    return f"{saved.id} · {saved.title} · {words.many(saved.cells, 'cell')} · {when}"


# ---------------------------------------------------------------- a new one


def _new(pair: Pair, plan: Plan) -> None:
    with st.container(border=True, key="sweep_form"):
        sweep_form.draw(pair)
        try:
            sweep = sweep_form.chosen(pair, plan)
            outlook = cached.workbench().sweeps.outlook(pair, sweep, cached.sweep_grid(pair, sweep))
            line = f'<div class="sfn-verdict">{html.escape(sweep_form.outlook_line(outlook))}</div>'
        except (SweepError, RecipeError) as error:
            sweep, line = None, f'<div class="sfn-verdict sfn-bad" role="alert">{html.escape(str(error))}</div>'
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.button(
                "Start the sweep", type="primary", key="sweep_start", disabled=sweep is None,
                on_click=_begin, args=(pair, sweep),
            )  # fmt: skip
            asking.draw_settings()
        st.html(line)


def _begin(pair: Pair, sweep: Sweep) -> None:
    try:
        number = cached.workbench().sweeps.begin(pair, sweep, state.browser())
    except (SweepError, RecipeError, StoreError) as error:
        st.session_state[_PROBLEM] = str(error)
        return
    state.put("sweep", number)
    state.put("sweep_cell", "")


# ---------------------------------------------------------------- one that was begun


def _opened(pair: Pair, saved: SavedSweep) -> None:
    job = cached.workbench().sweeps.job(saved.id)
    running = job is not None and job.active
    st.fragment(_live, run_every=_TICK_S if running else None)(pair, saved, running)


def _live(pair: Pair, saved: SavedSweep, running: bool) -> None:
    """All that changes while the sweep runs."""
    with failures.shown():
        bench = cached.workbench()
        sweep = sweeps.from_json(saved.definition["sweep"])
        axes = sweep_room.lines(saved)
        found, live = cached.sweep_readings(saved.id, sweep), bench.sweeps.live(saved.id)
        job = bench.sweeps.job(saved.id)
        _progress(pair, saved, job)
        opened = sweep_grid.place_of(state.get("sweep_cell"))
        opened = opened if opened in found else None
        sweep_grid.draw(
            sweep, axes, found, live, figure=state.get("sweep_figure"), opened=opened, dark=plots.dark(), key=_GRID,
            on_open=_on_open,
        )  # fmt: skip
        st.html(f'<div class="sfn-sweep-said">{html.escape(_said(sweep, axes[0], found))}</div>')
        if opened is not None:
            sweep_cell.draw(sweep, axes, found, live, opened)
        state.write()
        if running != (job is not None and job.active) or sweep_cell.taken():
            st.rerun()


def _on_open() -> None:
    place = sweep_grid.clicked(st.session_state[_GRID].get("open"))
    if place is not None:
        state.put("sweep_cell", sweep_grid.name_of(place))


def _said(sweep: Sweep, rows: tuple[sweeps.Line, ...], found: sweep_cell.Found) -> str:
    return sweeps.sentence(sweep, rows, [reading.cell for reading in found.values()])


def _progress(pair: Pair, saved: SavedSweep, job: Job | None) -> None:
    """The figure in the cells; how far the sweep is, what it is asked of, and how to stop it or go on."""
    answered, failed = cached.workbench().store.sweeps.progress(saved.id)
    engine = f"{saved.engine} {saved.engine_version} · {saved.device} · {saved.dtype}"
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="sweep_progress"):
        st.segmented_control(
            "Figure in the cells",
            list(sweeps.FIGURES),
            key="sweep_figure",
            format_func=lambda figure: sweeps.FIGURES[figure][0],
            required=True,
            label_visibility="collapsed",
            **state.KEEP,
        )
        with st.popover("", icon=":material/help:", type="tertiary", help="What the figures mean"):
            st.markdown("\n\n".join(f"**{name}.** {failures.escaped(how)}" for name, how in sweeps.FIGURES.values()))
        if job is not None and job.active:
            stopping = job.cancel_event.is_set()
            st.progress(job.share, text=f"{job.detail} · {'stopping' if stopping else words.eta(job.eta_s)}")
            st.button("Cancel", key="sweep_cancel", disabled=stopping, on_click=_cancel, args=(job.id,))
            return
        missing = saved.cells - answered
        said = f"{answered} of {saved.cells} cells are answered" + (f", {failed} failed" if failed else "")
        why = f" · {job.error}" if job is not None and job.state == "failed" else ""
        st.html(f'<div class="sfn-muted">{html.escape(f"{said} · {engine}{why}")}</div>')
        if missing:
            st.button(
                "Continue", key="sweep_continue", on_click=_resume, args=(pair, saved.id),
                help="Asks what is missing, and again what failed. What is here stays.",
            )  # fmt: skip


def _cancel(number: int) -> None:
    try:
        cached.workbench().jobs.cancel(number, state.browser())
    except SfnError as error:
        st.session_state[_PROBLEM] = str(error)


def _resume(pair: Pair, number: int) -> None:
    try:
        cached.workbench().sweeps.resume(pair, number, state.browser())
    except SfnError as error:
        st.session_state[_PROBLEM] = str(error)


# ---------------------------------------------------------------- files, deleting


def _draw_files(saved: SavedSweep) -> None:
    with st.popover("Save", icon=":material/download:", help="All cells as a file"):
        for kind, name in _FILES.items():
            st.download_button(
                f"{name}, one row per cell", lambda kind=kind: table_file(saved, kind), f"sfn-sweep-{saved.id}.{kind}",
                _MIME[kind], key=f"sweep_file_{kind}", on_click="ignore", width="stretch",
            )  # fmt: skip
        st.download_button(
            "Web page, the grid with whole answers", lambda: page_file(saved), f"sfn-sweep-{saved.id}.html",
            "text/html", key="sweep_file_html", on_click="ignore", width="stretch",
        )  # fmt: skip


def table_file(saved: SavedSweep, kind: str) -> bytes:
    """One row per cell, with the engine and the pair that made it, as CSV, Parquet or JSON."""
    sweep, (rows, columns) = sweeps.from_json(saved.definition["sweep"]), sweep_room.lines(saved)
    table = sweeps.table(sweep, rows, columns, cached.workbench().store.sweeps.cells(saved.id))
    frame = {name: getattr(saved, name) for name in ("engine", "engine_version", "device", "dtype", "pair_key")}
    return store.file_bytes(table.assign(**frame, sweep=saved.id), kind)


def page_file(saved: SavedSweep) -> bytes:
    """The grid with whole answers as a web page."""
    sweep, (rows, columns) = sweeps.from_json(saved.definition["sweep"]), sweep_room.lines(saved)
    found = cached.sweep_readings(saved.id, sweep)
    pair = cached.workbench().store.pair(saved.pair_key)
    facts = (
        f"{pair.a_label} → {pair.b_label}" if pair is not None else "",
        f"{saved.engine} {saved.engine_version}, {saved.device}, {saved.dtype}; begun "
        f"{saved.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC; pair {saved.pair_key[:16]}",
        _said(sweep, rows, found),
    )
    return sweeps.web_page(sweep, rows, columns, found, facts).encode()


def _draw_delete(saved: SavedSweep) -> None:
    with st.popover("Delete", icon=":material/delete:", help="Forget this sweep"):
        st.caption("The sweep leaves this list. Its answers stay in the store and on the History page.")
        st.button("Delete the sweep", key=_DELETE, type="primary", on_click=_delete, args=(saved.id,))


def _delete(number: int) -> None:
    bench = cached.workbench()
    job = bench.sweeps.job(number)
    if job is not None and job.active:
        st.session_state[_PROBLEM] = f"Sweep {number} still runs; cancel it before it is deleted."
        return
    try:
        bench.store.sweeps.delete(number)
    except StoreError as error:
        st.session_state[_PROBLEM] = str(error)
    state.put("sweep", 0)
    state.put("sweep_cell", "")
