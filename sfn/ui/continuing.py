"""“Continue”: an answer that was cut goes on from where it stopped, as a further question of its own.

The next part's prompt is everything so far (in the chat mode with what the template put around it), asked as a plain
completion, so that it is kept and found like any other answer. Which parts belong together is kept for the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sfn.ui import cached, state

if TYPE_CHECKING:
    from sfn.engine_room import Answer
    from sfn.jobs import Job
    from sfn.pairs import Pair
    from sfn.recipes import Plan
    from sfn.ui.answers import Whole

_PARTS = "_answer_parts"  # key of the first question -> the parts after it
_PENDING = "_answer_prompts"  # key of the first question -> (job that makes the next prompt, pair, plan, first answer)
_PATIENCE_S = 0.3  # a tokenizer that is loaded answers within it


def parts(first: Answer) -> list[Answer]:
    """What continued this answer."""
    return _parts().get(first.question.key, [])


def _parts() -> dict[str, list[Answer]]:
    return st.session_state.setdefault(_PARTS, {})


def _pending() -> dict[str, tuple[Job, Pair, Plan, Answer]]:
    return st.session_state.setdefault(_PENDING, {})


def pending(first: Answer | None = None) -> bool:
    """Whether a continuation (of this answer) is being prepared."""
    return bool(_pending()) if first is None else first.question.key in _pending()


def possible(whole: Whole) -> bool:
    """Whether there is a next part to ask for: the answer was cut, and the last part has added something."""
    return whole.finish == "length" and whole.last.n_tokens > 0 and not pending(whole.parts[0])


def go_on(pair: Pair, plan: Plan, whole: Whole) -> None:
    """Ask for the next part of an answer whose weights are `plan`'s."""
    first = whole.parts[0]
    if whole.last.state == "failed":
        parts(first).pop()
        whole = type(whole)((first, *parts(first)))
    question, so_far = first.question, whole.text
    if question.mode == "plain":
        _ask(pair, plan, first, question.prompt + so_far)
        return
    side = {"A": pair.a, "B": pair.b}[question.tokenizer]
    job = cached.workbench().jobs.start(
        "Preparing to continue",
        lambda _job: cached.speech(str(side.folder), side.label).continued(question.prompt, so_far),
        key=f"continue {question.key} {len(so_far)}",
        owner=state.browser(),
    )
    _pending()[question.key] = (job, pair, plan, first)
    job.finished.wait(_PATIENCE_S)
    catch_up()


def catch_up() -> str:
    """Ask what has become ready to be asked; "" or the sentence that says why it could not be."""
    problem = ""
    for key, (job, pair, plan, first) in list(_pending().items()):
        if job.active:
            continue
        del _pending()[key]
        if job.state == "done":
            _ask(pair, plan, first, job.result)
        else:
            problem = job.error or "Continuing was cancelled."
    return problem


def _ask(pair: Pair, plan: Plan, first: Answer, prompt: str) -> None:
    room = cached.workbench().engines
    answer = room.ask(pair, plan, prompt, "plain", first.question.sampling, state.browser())
    _parts().setdefault(first.question.key, []).append(answer)
