"""The pair that a page works on: opened in the background, its progress and its failures shown in the page's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sfn.errors import SfnError
from sfn.ui import cached, state

if TYPE_CHECKING:
    from sfn.jobs import Job
    from sfn.pairs import Pair

PATIENCE_S = 3.0  # small pairs open within this; nobody sees a progress bar for them


def folders() -> tuple[str, str]:
    """Folders of the chosen pair, A first; the bundled pair's where a side is not given."""
    a, b = state.get("a"), state.get("b")
    if a and b:
        return a, b
    bundled_a, bundled_b = cached.bundled_folders()
    return a or bundled_a, b or bundled_b


def opening() -> Job:
    """The job that opens the chosen pair."""
    a, b = folders()
    return cached.opening(a, b, state.browser())


def pair() -> Pair:
    """The chosen pair. Draws progress and ends the run while it opens; raises the reason where it cannot be opened."""
    job = opening()
    job.finished.wait(PATIENCE_S)
    if job.state == "done":
        return job.result
    if job.active:
        _progress()
        st.stop()
    cached.forget_opening(*folders())
    raise SfnError(job.error or "Opening the pair was cancelled. Choose it again on the page “Pair”.")


@st.fragment(run_every=0.5)
def _progress() -> None:
    job = opening()
    if not job.active:
        st.rerun()
    st.progress(job.share, text=f"Reading the files once to know them again · {job.detail}")
