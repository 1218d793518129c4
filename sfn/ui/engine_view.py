"""The engine's part of the sidebar: what it holds, what it does, who waits, and what this viewer asked of it.

Owns no state: the engine room has it all. `sidebar` decides where and how often this is drawn.
"""

from __future__ import annotations

import html
import time
from typing import TYPE_CHECKING

import streamlit as st

from sfn.errors import SfnError
from sfn.ui import cached, failures, state, words

if TYPE_CHECKING:
    from sfn.engine_room import Answer, EngineRoom

_STATES = {
    "stopped": "not started yet",
    "starting": "starting",
    "loading": "loading weights",
    "idle": "idle",
    "busy": "busy",
    "dead": "dead; the next question starts it again",
}
_LISTED = 3  # of this viewer's questions
_SOON_S = 1.5  # a question that is answered sooner than this is not listed: the sidebar would flicker


def draw(room: EngineRoom) -> None:
    """State, what is held, the queue, and this viewer's questions with a button that stops each."""
    st.html(f'<div class="sfn-pair">{_state(room)}</div>')
    asked = [answer for answer in room.asked_by(state.browser()) if time.monotonic() - answer.asked_at > _SOON_S]
    if not asked:
        return
    with st.container(gap=None, key="asked"):
        st.html(f'<div class="sfn-muted">{words.many(len(asked), "question")} of yours</div>')
        for answer in asked[:_LISTED]:
            _question(room, answer)
        if len(asked) > 1:
            st.button(f"Stop all {len(asked)}", key="stop_all_questions", type="tertiary", on_click=_stop_all)


def _state(room: EngineRoom) -> str:
    status = room.status
    said = [word for word in (status.device, status.dtype) if word] + [_STATES[status.state]]
    lines = [f"<div>{html.escape(' · '.join(said))}</div>"]
    if status.place:
        lines.append(f'<div class="sfn-line">at {html.escape(status.place)}</div>')
    if status.recipe is not None:
        lines.append(f'<div class="sfn-holds">holds {words.chip(words.recipe(status.recipe))}</div>')
    if waiting := words.waiting(room.queue_length - room.background_length, room.background_length):
        lines.append(f"<div>{waiting}</div>")
    if status.detail:
        lines.append(f'<div class="sfn-muted">{html.escape(status.detail)}</div>')
    return "".join(lines)


def _question(room: EngineRoom, answer: Answer) -> None:
    recipe, prompt = words.recipe(answer.question.recipe), " ".join(answer.question.prompt.split())
    said = answer.said
    if said.state == "queued":
        place = words.place(room.position(answer), background=answer.background)
    else:
        place = "weights are loading" if said.state == "loading" else words.many(said.n_tokens, "token")
    sampling = answer.question.sampling
    seed = f" · seed {sampling.seed}" if sampling.temperature else ""
    whole = html.escape(f"{recipe} · {prompt[:500]}{seed}")
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"asked_{answer.task.number}"):
        st.html(
            f'<div title="{whole}"><div class="sfn-line">{html.escape(prompt[:120])}</div>'
            f'<div class="sfn-muted sfn-line">{place}{seed} · {html.escape(recipe)}</div></div>'
        )
        st.button(
            "",
            icon=":material/stop:",
            key=f"stop_question_{answer.task.number}",
            type="tertiary",
            help="Stop this question. What was said so far is kept.",
            on_click=_stop,
            args=(answer,),
        )


def _stop(answer: Answer) -> None:
    try:
        cached.workbench().engines.cancel(answer, state.browser())
    except SfnError as error:
        st.toast(failures.escaped(str(error)))


def _stop_all() -> None:
    for answer in cached.workbench().engines.asked_by(state.browser()):
        _stop(answer)
