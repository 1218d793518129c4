"""Closer looks at the tensor that is open: from the store, or by a job with progress and cancel; draws no result."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import streamlit as st

from sfn.ui import cached, delta_memos, failures, opening, scanning, state, words

if TYPE_CHECKING:
    from sfn.jobs import Job
    from sfn.looks import Look
    from sfn.pairs import Pair, TensorPair

POLL_S = 0.5
UNASKED_BYTES = 64_000_000  # of both sides: what is looked at without a click
_LEFT = "_looks_left"  # keys of looks that ended because their tensor was left, not because they were cancelled
_PATIENCE_S = 0.25  # for a look that is there at once


def wanted(pair: Pair, row: TensorPair, kind: str, *, expert: int | None = None, part: str = "") -> Look | None:
    """The look, if the store has it. A small tensor on this machine is looked at unasked."""
    found = delta_memos.look(pair, row.name, kind, expert=expert, part=part)
    if found is not None or scanning.from_network(pair) or read_bytes(row, expert) > UNASKED_BYTES:
        return found
    before = job_of(pair, row, kind, expert, part)
    left = st.session_state.setdefault(_LEFT, set())
    if before is None or (before.state == "cancelled" and before.key in left):
        left.discard(before.key if before is not None else "")
        job = cached.workbench().look(pair, row.name, kind, state.browser(), expert=expert, part=part)
        job.finished.wait(_PATIENCE_S)
        return delta_memos.look(pair, row.name, kind, expert=expert, part=part)
    return None


def job_of(pair: Pair, row: TensorPair, kind: str, expert: int | None, part: str) -> Job | None:
    """The job that looks so, or did."""
    from sfn import looks

    bench = cached.workbench()
    return bench.jobs.find(bench.look_key(pair, row.name, kind, looks.settings(kind, expert=expert, part=part)))


def running(pair: Pair, name: str) -> list[Job]:
    """Looks at this tensor that wait or run."""
    key = f"look:{pair.key}:{name}:"
    return [job for job in cached.workbench().jobs.active() if job.key.startswith(key)]


def leave(pair: Pair, name: str) -> None:
    """Withdraw this viewer from the looks at a tensor that is no longer on screen."""
    for job in running(pair, name):
        if state.browser() in job.owners:
            st.session_state.setdefault(_LEFT, set()).add(job.key)
            opening.cancel(job.id)


def read_bytes(row: TensorPair, expert: int | None = None) -> int:
    """Bytes of both sides that a look reads once."""
    size = sum(info.size_bytes for info in (row.a, row.b) if info is not None)
    return size // row.a.shape[0] if expert is not None and row.a is not None and row.a.shape[0] else size


def absent(
    pair: Pair,
    row: TensorPair,
    kind: str,
    *,
    expert: int | None = None,
    part: str = "",
    cost: str = "Not computed yet",
    button: str = "Compute",
) -> None:
    """In the place of a look that is not there: its progress, why it failed, or the button that begins it.

    cost: what is said before the bytes that it reads.
    """
    job = job_of(pair, row, kind, expert, part)
    of_expert = "expert" if expert is not None and kind == "slices" else ""
    key = "_".join(filter(None, (kind, part if kind == "spectrum" else "", of_expert)))
    if job is not None and job.active:
        left = words.eta(job.eta_s) if job.total else "waiting"
        st.progress(job.share, text=failures.escaped(f"Computing · {left}"))
        st.button("Cancel", key=f"cancel_look_{key}", on_click=opening.cancel, args=(job.id,))
        return
    if job is not None and job.state == "failed":
        failures.sentence(job.error)
    over = " over the network" if scanning.from_network(pair) else ""
    passes = _passes(row, kind, expert, part)
    times = f", {passes} times" if passes > 1 else ""
    st.caption(
        failures.escaped(f"{cost}: it means reading {words.size(read_bytes(row, expert))}{over}{times}. Kept then.")
    )
    st.button(button, key=f"compute_{key}", on_click=_start, args=(pair, row.name, kind, expert, part))


def _passes(row: TensorPair, kind: str, expert: int | None, part: str) -> int:
    from sfn import spectrum

    if kind != "spectrum" or row.a is None:
        return 1
    shape = row.a.shape[1:] if expert is not None else row.a.shape
    sides = shape[0], math.prod(shape[1:])
    return spectrum.EXACT_PASSES if part or spectrum.exact_unasked(sides) else spectrum.PASSES


def _start(pair: Pair, name: str, kind: str, expert: int | None, part: str) -> None:
    cached.workbench().look(pair, name, kind, state.browser(), expert=expert, part=part)
