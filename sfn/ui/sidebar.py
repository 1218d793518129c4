"""The sidebar: pair, engine, jobs, presenter mode, always in this order. Nothing else lives there.

Its live parts are one fragment: it runs every second while something works, and rarely otherwise.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import streamlit as st

from sfn.errors import SfnError
from sfn.ui import cached, engine_view, failures, opening, routes, state, style, words

if TYPE_CHECKING:
    from sfn.engine_room import EngineRoom
    from sfn.jobs import Job
    from sfn.pairs import Pair

_ENGINE = "engine_choice"
_DRAWN_LIVE = "_sidebar_live"  # whether something worked when the frame was last drawn
_LIVE_S, _IDLE_S = 1.0, 5.0


def draw() -> None:
    """Draw the sidebar. Raises StoreError where the results database cannot be used."""
    live = _live()
    st.session_state[_DRAWN_LIVE] = live
    with st.sidebar:
        _head("Pair")
        _pair()
        _head("Engine")
        _engine_choice(cached.workbench().engines)
        st.fragment(_moving, run_every=_LIVE_S if live else _IDLE_S)()
        st.toggle("Presenter mode", key=style.PRESENTER, help="Larger type, for the back row.", **state.KEEP)
        st.html('<div class="sfn-muted">Light or dark: menu ⋮ at the top right.</div>')


def catch_up() -> None:
    """After the page: draw the frame again if the page has set something to work, so that it is seen at once."""
    if _live() and not st.session_state.get(_DRAWN_LIVE):
        st.rerun()


def _live() -> bool:
    bench = cached.workbench()
    return bool(bench.jobs.active()) or bench.engines.queue_length > 0 or _at_work(bench.engines)


def _at_work(room: EngineRoom) -> bool:
    return room.status.state in ("starting", "loading", "busy")


def _head(text: str) -> None:
    st.html(f'<div class="sfn-head">{text}</div>')


def _pair() -> None:
    if missing := opening.incomplete():
        st.html(f'<div class="sfn-muted">{html.escape(missing)}</div>')
        routes.link("pair", "choose")
        return
    try:
        job = opening.opening()
        opening.wait(job)
    except SfnError as error:
        failures.sentence(str(error))
        return
    if job.state == "done":
        st.html(_pair_lines(job.result))
    else:
        st.html(f'<div class="sfn-muted">{"opening …" if job.active else "cannot be opened"}</div>')
    routes.link("pair", "change")


def _pair_lines(pair: Pair) -> str:
    lines = []
    for letter, side in (("A", pair.a), ("B", pair.b)):
        lines.append(words.side(letter, side.label))
        commit = f" · revision {html.escape(side.revision[:10])}" if side.revision else ""
        extent = f"{words.count(side.parameters)} parameters · {words.size(side.size_bytes)}{commit}"
        lines.append(f'<div class="sfn-muted">{extent}</div>')
    return f'<div class="sfn-pair">{"".join(lines)}</div>'


def _engine_choice(room: EngineRoom) -> None:
    from sfn import engines

    backends = engines.available()
    usable = [backend.name for backend in backends if backend.ok]
    versions = {backend.name: f"{backend.name} {backend.version}".strip() for backend in backends}
    st.session_state[_ENGINE] = room.backend
    st.selectbox(
        "Engine",
        usable or [room.backend],
        key=_ENGINE,
        format_func=lambda name: versions.get(name, name),
        on_change=_choose,
        label_visibility="collapsed",
        help="Runs the models. One engine serves everybody who looks at this app.",
    )
    for backend in backends:
        if not backend.ok:
            st.html(f'<div class="sfn-muted">{html.escape(backend.reason)}</div>')


def _choose() -> None:
    cached.workbench().engines.choose(st.session_state[_ENGINE])


def _moving() -> None:
    """What changes by itself: the engine's state, what it holds, the jobs."""
    with failures.shown():
        bench = cached.workbench()
        if _live() != st.session_state.get(_DRAWN_LIVE):
            st.rerun()  # the whole frame, once, so that this fragment gets its other pace
        engine_view.draw(bench.engines)
        _head("Jobs")
        jobs = bench.jobs.recent()
        for job in jobs:
            _job(job)
        if not jobs:
            st.html('<div class="sfn-muted">nothing runs</div>')


def _job(job: Job) -> None:
    title = html.escape(job.title)
    if not job.active:
        ended = {"done": "done", "cancelled": "cancelled", "failed": f"failed: {html.escape(job.error)}"}[job.state]
        name = f'<div class="sfn-muted sfn-line" title="{title}">{title}</div>'
        st.html(f'{name}<div class="sfn-muted sfn-clamped" title="{html.escape(job.error)}">{ended}</div>')
        return
    st.html(f'<div class="sfn-line" title="{title}">{title}</div>')
    st.progress(job.share, text=words.eta(job.eta_s))
    st.button("Cancel", key=f"cancel_job_{job.id}", on_click=_cancel, args=(job.id,))


def _cancel(number: int) -> None:
    try:
        cached.workbench().jobs.cancel(number, state.browser())
    except SfnError as error:
        st.toast(failures.escaped(str(error)))
