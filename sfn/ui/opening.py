"""The pair that a page works on: opened in the background, its progress and its failures shown in the page's place.

A model on the Hub is chosen by a name and held by its commit: once it is open, the address says which one it is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import streamlit as st

from sfn import hub
from sfn.errors import SfnError
from sfn.ui import asked, cached, failures, state, words

if TYPE_CHECKING:
    from sfn.jobs import Job
    from sfn.pairs import Pair

PATIENCE_S = 3.0  # small pairs open within this; nobody sees a progress bar for them
_REVISIONS = "_revisions"  # name with its commit -> the branch or tag that was chosen


def folders() -> tuple[str, str]:
    """Names of the chosen pair, A first: folders, or models on the Hub. The bundled pair's where none is chosen; ""
    for a side that is still to be chosen."""
    a, b = state.get("a"), state.get("b")
    return (a, b) if a or b else cached.bundled_folders()


def incomplete() -> str:
    """ "" or the sentence that says which side is still to be chosen."""
    a, b = folders()
    if a and b:
        return ""
    side, other = ("A, the base model,", b) if b else ("B, the model that was fine-tuned from A,", a)
    return f"{other} is chosen; {side} is still to be chosen, on the page “Pair”."


def opening() -> Job:
    """The job that opens the chosen pair. Raises SfnError where a side is still to be chosen."""
    if missing := incomplete():
        raise SfnError(missing)
    a, b = folders()
    job = cached.opening(a, b, state.browser())
    if job.state == "done":
        _hold(job, a, b)
    return job


def _hold(job: Job, *names: str) -> None:
    """Say in the address which commits were opened."""
    from sfn.workbench import lasting_name

    pair: Pair = job.result
    lasting = [lasting_name(name, side) for name, side in zip(names, (pair.a, pair.b), strict=True)]
    if lasting == list(names) or names == cached.bundled_folders():
        return
    revisions = st.session_state.setdefault(_REVISIONS, {})
    for side, before, now in zip("ab", names, lasting, strict=True):
        if before != now:
            revisions[now] = (hub.meant(before) or hub.Address("")).revision
            state.put(side, now)
    cached.same_opening(job, *lasting)


def revision_of(name: str) -> str | None:
    """The branch or tag under which this viewer chose a model that is held by its commit; None: the default branch."""
    return st.session_state.get(_REVISIONS, {}).get(name)


def wait(job: Job) -> None:
    """Give a job that has just begun the time that small pairs take."""
    begun = job.started_at
    job.finished.wait(PATIENCE_S if begun is None else max(0.0, PATIENCE_S - (time.monotonic() - begun)))


def pair() -> Pair:
    """The chosen pair. While it opens, progress is drawn and the run ends; where it cannot be opened, the reason.

    Raises SfnError where a side is still to be chosen.
    """
    job = opening()
    wait(job)
    if job.state != "done":
        _draw_unopened(job)
        st.stop()
    return opening().result  # asked once more, so that the address follows in this run


def _draw_unopened(job: Job) -> None:
    if job.active:
        st.fragment(_progress, run_every=0.5)()
        return
    cached.forget_opening(*folders())
    failures.failure(job.failure or SfnError(job.error or "Opening the pair was cancelled."))
    again()


def again() -> None:
    """A button that tries what failed once more."""
    st.button("Try again", key="open_again", on_click=asked.forget_downloads, icon=":material/refresh:")


def _progress() -> None:
    with failures.shown():
        job = opening()
        if not job.active:
            st.rerun()
        left, right = st.columns([5, 1], vertical_alignment="center")
        what = "Reading the files once to know them again" if job.total else "Opening the pair"
        left.progress(job.share, text=failures.escaped(f"{what} · {job.detail}" if job.detail else what))
        right.button("Cancel", on_click=cancel, args=(job.id,), key="cancel_opening")


def cancel(number: int) -> None:
    """Withdraw this viewer from a job."""
    try:
        cached.workbench().jobs.cancel(number, state.browser())
    except SfnError as error:
        st.toast(failures.escaped(str(error)))


def moving(job: Job) -> str:
    """How a job that counts bytes is getting on, in words: what is done, how fast, how long still."""
    if job.cancel_event.is_set():
        return "cancelling …"
    if not job.total:
        return "starting"
    rate = f" · {words.size(job.rate)}/s" if job.rate else ""
    return f"{words.size(job.done)} of {words.size(job.total)}{rate} · {words.eta(job.eta_s)}"
