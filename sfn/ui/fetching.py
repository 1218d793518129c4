"""Models that are not on this machine: read them over the network, or download them first; the download's progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sfn import abilities, needs
from sfn.errors import SfnError
from sfn.ui import asked, cached, failures, opening, routes, state, words

if TYPE_CHECKING:
    from sfn.jobs import Job
    from sfn.pairs import Pair

_POLL_S = 1.0


def missing_bytes(pair: Pair) -> int:
    """Bytes that an engine needs and that are not on this machine."""
    return pair.a.missing_bytes + (pair.b.missing_bytes if pair.b.folder != pair.a.folder else 0)


def draw(pair: Pair) -> None:
    """The two ways to go on with a pair on the Hub, with what each takes; nothing for folders."""
    if not missing_bytes(pair):
        return
    left, right = st.columns(2, gap="medium", border=True)
    rows = [row for row in pair.rows if row.comparable]
    with left:
        st.markdown("**Read over the network**")
        output = [row for row in rows if row.part.module == "o_proj"]
        alone = f"{words.size(needs.scan_bytes(output))} for o_proj alone, " if output else ""
        st.caption(
            f"Nothing is kept. Delta reads {alone}{words.size(needs.scan_bytes(rows))} for all; engines cannot run."
        )
        routes.link("delta", "Choose what Delta reads →")
    with right:
        st.markdown("**Download first**")
        offer(pair)


def notice(pair: Pair) -> None:
    """For pages that need an engine: what is missing, and the download."""
    if missing_bytes(pair):
        with st.container(border=True, key="fetch_notice", gap=None):
            st.markdown("**The engines need both models on this machine.** Recipes can be made before that.")
            offer(pair, beside=True)


def offer(pair: Pair, *, beside: bool = False) -> None:
    """The download of what is missing: its size, the room for it, progress, cancel. beside: the button, to the text."""
    job = cached.workbench().jobs.find(f"fetch:{pair.key}")
    running = job is not None and job.active
    st.fragment(_offer, run_every=_POLL_S if running else None)(pair, running, beside)


def _offer(pair: Pair, was_running: bool, beside: bool) -> None:
    with failures.shown():
        job = cached.workbench().jobs.find(f"fetch:{pair.key}")
        running = job is not None and job.active
        if running != was_running:
            asked.forget_downloads()
            st.rerun()
        if running and job is not None:
            left, right = st.columns([4, 1], vertical_alignment="center")
            left.progress(job.share, text=failures.escaped(opening.moving(job)))
            right.button("Cancel", key="cancel_fetch", on_click=opening.cancel, args=(job.id,))
            return
        _button(pair, job, beside)


def _button(pair: Pair, job: Job | None, beside: bool) -> None:
    missing, machine = missing_bytes(pair), asked.machine().value
    if job is not None and job.state == "failed":
        failures.failure(job.failure or SfnError(job.error))
    free = f", {words.size(machine.hub_free_bytes)} are free" if machine else ""
    again = job is not None and job.state in ("failed", "cancelled")
    kept = "What was fetched is kept. " if again else ""
    left, right = st.columns([4, 1], vertical_alignment="center") if beside else (st.container(), st.container())
    left.caption(
        f"{kept}{words.size(missing)} to the Hub's cache on this machine{free}. Then Merge can run, and Delta reads "
        "from the disk."
    )
    refusal = abilities.fetch_refusal(pair, machine) if machine else ""
    right.button(
        "Go on downloading" if again else f"Download {words.size(missing)}", key="fetch", disabled=bool(refusal),
        on_click=_start, args=(pair,), icon=":material/download:",
    )  # fmt: skip
    if refusal:
        failures.sentence(refusal)


def _start(pair: Pair) -> None:
    cached.workbench().fetch(pair, state.browser())
