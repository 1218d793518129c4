"""The merged checkpoint of the recipe in force: written to a folder of this machine, then uploaded if wanted.

Draws the two blocks and follows their jobs; the work is the workbench's.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from sfn import hub, recipes, surgery
from sfn.errors import SfnError, SurgeryError
from sfn.folder_writer import free_bytes
from sfn.places import cache_folder
from sfn.ui import cached, failures, opening, routes, state, words

if TYPE_CHECKING:
    from sfn.jobs import Job
    from sfn.pairs import Pair
    from sfn.recipes import Plan

_TICK_S = 0.5
_PROBLEM = "_take_problem"
_REPO, _PRIVATE = "take_repo", "take_private"


def draw(pair: Pair, plan: Plan) -> None:
    """Both blocks; they are drawn again by themselves while something is written or sent."""
    with st.container(border=True, key="take_write", gap="small"):
        st.markdown("**A checkpoint of it**")
        folder = _folder(pair, plan)
        jobs = [job for job in _jobs(pair, plan, folder) if job is not None and job.active]
        st.fragment(_moving, run_every=_TICK_S if jobs else None)(pair, plan, folder, bool(jobs))


def _folder(pair: Pair, plan: Plan) -> Path:
    """The folder that is asked for; another recipe suggests another."""
    suggested = cache_folder() / "merged" / suggested_name(pair, plan)
    given = st.text_input("Folder", str(suggested), key=f"take_folder_{plan.key[:16]}", help=_WHERE)
    return Path((given or "").strip() or suggested).expanduser().absolute()


_WHERE = "On the machine that runs SfN. The folder appears when it is whole; nothing is ever overwritten."


def suggested_name(pair: Pair, plan: Plan) -> str:
    """A folder's name that tells A, recipe and plan: "tiny-base-o_proj-b-1f2e3d"."""
    words_ = re.sub(r"[^a-z0-9_]+", "-", recipes.format(plan.recipe).lower().replace("@all", "")).strip("-")
    base = re.sub(r"[^\w.-]+", "-", pair.a.label.rpartition("/")[2])[:40]
    return "-".join(filter(None, (base, words_[:40].strip("-"), plan.key[:6])))


def _jobs(pair: Pair, plan: Plan, folder: Path) -> tuple[Job | None, Job | None]:
    bench = cached.workbench()
    return bench.jobs.find(bench.write_key(pair, plan, folder)), bench.jobs.find(bench.upload_key(folder))


def _moving(pair: Pair, plan: Plan, folder: Path, running: bool) -> None:
    with failures.shown():
        writing, sending = _jobs(pair, plan, folder)
        there = (writing is not None and writing.state == "done") or surgery.written(folder, pair, plan)
        if writing is not None and writing.active:
            _progress(writing)
        elif there and folder.is_dir():
            _draw_written(folder, writing)
            _draw_upload(pair, plan, folder, sending)
        else:
            _draw_offer(pair, plan, folder, writing)
        if problem := st.session_state.pop(_PROBLEM, ""):
            failures.sentence(problem)
        active = any(job is not None and job.active for job in (writing, sending))
        if active != running:
            st.rerun()  # the whole page, once, so that this fragment gets its other pace


# ---------------------------------------------------------------- the folder


def _draw_offer(pair: Pair, plan: Plan, folder: Path, last: Job | None) -> None:
    size = surgery.size_bytes(pair, plan)
    try:
        free = free_bytes(folder)
        room = f"{words.size(free)} free there"
    except (SurgeryError, OSError) as error:
        free, room = size, str(error)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.button(
            "Write the checkpoint", type="primary", key="take_start", disabled=free < size,
            on_click=_start, args=(pair, plan, folder),
        )  # fmt: skip
        st.caption(failures.escaped(f"{words.size(size)} to write · {room}"))
    if last is not None and last.state == "failed":
        failures.sentence(last.error)
    elif last is not None and last.state == "cancelled":
        st.caption("Cancelled; nothing was left there.")


def _start(pair: Pair, plan: Plan, folder: Path) -> None:
    cached.workbench().write_merge(pair, plan, folder, state.browser())


def _progress(job: Job) -> None:
    """Bar, amount, time left and Cancel of a running job."""
    stopping = job.cancel_event.is_set()
    amount = f"{words.size(job.done)} of {words.size(job.total)}" if job.total else job.detail
    text = f"{amount} · {'stopping' if stopping else words.eta(job.eta_s)}"
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.progress(job.share, text=failures.escaped(text))
        st.button("Cancel", key=f"take_cancel_{job.id}", disabled=stopping, on_click=_cancel, args=(job.id,))


def _cancel(number: int) -> None:
    try:
        cached.workbench().jobs.cancel(number, state.browser())
    except SfnError as error:
        st.session_state[_PROBLEM] = str(error)


def _draw_written(folder: Path, job: Job | None) -> None:
    took = ""
    if job is not None and job.started_at is not None and job.finished_at is not None:
        took = f": {words.size(job.total)} in {words.seconds(job.finished_at - job.started_at)}"
    st.caption(failures.escaped(f"Written{took}. Its README.md says what it is made of and how to make it again."))
    a, b = opening.folders()
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        routes.link("pair", "Open it as A", query=state.query("pair", a=str(folder), b=b))
        routes.link("pair", "Open it as B", query=state.query("pair", a=a, b=str(folder)))


# ---------------------------------------------------------------- the Hub


def _draw_upload(pair: Pair, plan: Plan, folder: Path, job: Job | None) -> None:
    st.markdown("**Upload it to the Hub**")
    if job is not None and job.active:
        _progress(job)
        return
    if job is not None and job.state == "done":
        place = html.escape(job.result.url)
        st.html(f'<div class="sfn-line">Uploaded to <a href="{place}" target="_blank">{place}</a></div>')
        return
    st.session_state.setdefault(_PRIVATE, True)
    st.text_input(
        "Name of the new repo", key=_REPO, placeholder=f"organisation/{suggested_name(pair, plan)}",
        help="A repo of this name is created; one that is there already is left alone.", **state.KEEP,
    )  # fmt: skip
    ready = hub.has_token()
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.button("Upload", key="take_upload", disabled=not ready, on_click=_upload, args=(folder,))
        st.toggle("Private", key=_PRIVATE, **state.KEEP)
        st.caption(_WITH_TOKEN if ready else _WITHOUT_TOKEN)
    if job is not None and job.state == "failed":
        failures.sentence(job.error)
    elif job is not None and job.state == "cancelled":
        st.caption("Cancelled. If its repo was created already, it is empty.")


_WITH_TOKEN = "With the account of this machine's token."
_WITHOUT_TOKEN = "Needs a token that may write: `hf auth login`, HF_TOKEN, or Streamlit's secrets."


def _upload(folder: Path) -> None:
    repo = (st.session_state.get(_REPO) or "").strip()
    try:
        hub.check_name(repo)
    except SfnError as error:
        st.session_state[_PROBLEM] = str(error)
        return
    cached.workbench().upload(folder, repo, bool(st.session_state.get(_PRIVATE, True)), state.browser())
