"""Three columns, A | merged | B: which answers they show, and how they are drawn while they grow.

Owns the answers on screen of one viewer; the engine's queue and the store decide where an answer comes from. What is on
screen keeps the recipe and the prompt that produced it: an answer to an earlier state is dimmed, never relabelled.
"""

from __future__ import annotations

import html
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import streamlit as st

from sfn import recipes
from sfn.ui import cached, failures, state, words

if TYPE_CHECKING:
    from sfn.engine_room import Answer
    from sfn.pairs import Pair
    from sfn.recipes import Plan
    from sfn.records import PromptMode, Question, Sampling

Side = Literal["A", "merged", "B"]
SIDES: tuple[Side, ...] = ("A", "merged", "B")
_ASKING_ORDER: tuple[Side, ...] = ("merged", "A", "B")  # what was asked for first; A and B are often in the store

_HAD = ("stored", "queued", "loading", "running", "done")  # states of an answer that need not be asked for

_SHOWN = "_answers_shown"
_BODY_PX = 260  # makes an answer scroll; columns.css decides how high it is
_TICK_S = 0.2
_CSS = (Path(__file__).parent / "assets" / "columns.css").read_text()


@dataclass(frozen=True, slots=True)
class Seat:
    """What one column is to show: the question for it, or the sentence that says why there is none.

    Attributes:
        name: whose answer it is, in a few words. plan: weights of the column, None where `problem` says why not.
        question: decides the answer; None where there is no plan or no prompt.
    """

    side: Side
    name: str
    plan: Plan | None
    question: Question | None
    problem: str = ""


def seats(
    pair: Pair, plans: dict[Side, Plan | str], prompt: str, mode: PromptMode, sampling: Sampling
) -> tuple[Seat, ...]:
    """The three columns for what is chosen now. A plan given as text is the sentence that says why there is none."""
    room = cached.workbench().engines
    names = {"A": pair.a.label, "merged": "merged", "B": pair.b.label}
    found = []
    for side in SIDES:
        plan = plans[side]
        if isinstance(plan, str):
            found.append(Seat(side, names[side], None, None, plan))
            continue
        question = room.question(pair, plan, prompt, mode, sampling) if prompt.strip() else None
        found.append(Seat(side, names[side], plan, question))
    return tuple(found)


# ---------------------------------------------------------------- which answers are on screen


def _shown() -> dict[Side, Answer]:
    return st.session_state.setdefault(_SHOWN, {})


def is_current(seat: Seat, answer: Answer | None) -> bool:
    """Whether `answer` is to the very question of the column."""
    return answer is not None and seat.question is not None and answer.question.key == seat.question.key


def look_up(columns: tuple[Seat, ...]) -> None:
    """Show what the store or the engine's queue already has for each column. Runs nothing."""
    shown, room = _shown(), cached.workbench().engines
    for seat in columns:
        if seat.question is None or is_current(seat, shown.get(seat.side)):
            continue
        answer = room.find(seat.question)
        if answer is not None:
            shown[seat.side] = answer


def missing(columns: tuple[Seat, ...]) -> tuple[Seat, ...]:
    """Columns whose answer is neither here nor on its way, in the order in which they would be asked."""
    shown = _shown()
    by_side = {seat.side: seat for seat in columns}
    return tuple(
        seat
        for seat in (by_side[side] for side in _ASKING_ORDER)
        if seat.question is not None and not (is_current(seat, shown.get(seat.side)) and shown[seat.side].state in _HAD)
    )


def running() -> bool:
    """Whether any answer on screen is still to come or still growing."""
    return any(answer.active for answer in _shown().values())


def ask(pair: Pair, columns: tuple[Seat, ...]) -> None:
    """Put what is missing into the engine's queue; withdraw what this viewer asked before and wants no more."""
    room, owner, shown = cached.workbench().engines, state.owner(), _shown()
    wanted = missing(columns)
    for seat in columns:
        answer = shown.get(seat.side)
        if answer is not None and answer.active and not is_current(seat, answer):
            room.cancel(answer, owner)
    for seat in wanted:
        question = seat.question
        shown[seat.side] = room.ask(pair, seat.plan, question.prompt, question.mode, question.sampling, owner)


def stop() -> None:
    """Withdraw from every answer on screen that is still to come; what was written so far stays."""
    room, owner = cached.workbench().engines, state.owner()
    for answer in _shown().values():
        if answer.active:
            room.cancel(answer, owner)


# ---------------------------------------------------------------- drawing


def draw(pair: Pair, columns: tuple[Seat, ...], above_rem: int) -> None:
    """Draw the three columns; while an answer is on its way they are drawn anew several times a second.

    `above_rem`: what the page takes above and around the answers, so that these fill what is left of the window.
    """
    st.html(f"<style>:root {{ --sfn-above: {above_rem}rem; }} {_CSS}</style>")
    st.fragment(_draw, run_every=_TICK_S if running() else None)(pair, columns, _states())


def _states() -> tuple[tuple[Side, str], ...]:
    return tuple((side, answer.state) for side, answer in _shown().items())


def _draw(pair: Pair, columns: tuple[Seat, ...], before: tuple[tuple[Side, str], ...]) -> None:
    shown, now = dict(_shown()), _states()
    for seat, place in zip(columns, st.columns(len(columns), gap="small"), strict=True):
        with place, st.container(border=True, key=f"seat_{seat.side}", gap=None), failures.shown():
            _draw_seat(pair, seat, shown.get(seat.side))
    if now != before:
        st.rerun()  # the button, the line on the engine and the frame follow


def _draw_seat(pair: Pair, seat: Seat, answer: Answer | None) -> None:
    current = is_current(seat, answer)
    st.html(_head(seat, answer))
    live = bool(answer and answer.active)
    with st.container(height=_BODY_PX, border=False, key=f"answer_{seat.side}", autoscroll=live):
        if seat.problem:
            st.text(seat.problem)
        elif answer is None:
            st.text(_silence(seat))
        elif answer.state == "failed":
            st.text(answer.error)
            if st.button("Try again", key=f"again_{seat.side}", disabled=not current):
                ask(pair, (seat,))
                st.rerun()
        elif answer.text or answer.active:
            st.html(words.said(answer.text))
        else:
            st.caption(
                "The model ended at once, without a word." if answer.finish == "stop" else "Nothing was written."
            )
    dimmed = answer is not None and not current and not seat.problem
    st.html(f"<style>.st-key-answer_{seat.side} {{ opacity: {0.4 if dimmed else 1}; }}</style>")
    st.html(f'<div class="sfn-seat-foot">{html.escape(_foot(seat, answer))}</div>')


def _silence(seat: Seat) -> str:
    """What an empty column says."""
    if seat.question is None:
        return "Write a prompt, then run it."
    if seat.side == "merged" and not seat.plan.moved:
        return "Nothing is moved yet, so this would answer exactly as A does. Choose modules above."
    return "Not asked yet."


def _head(seat: Seat, answer: Answer | None) -> str:
    """Title of a column; for the merged one the recipe that produced what stands in it; what is out of date."""
    name = f'<span title="{html.escape(seat.name)}">{html.escape(seat.name)}</span>'
    if seat.side == "merged" and seat.plan is not None:
        text = answer.question.recipe if answer is not None else recipes.format(seat.plan.recipe)
        name = words.chip(words.recipe(text))
    return f'<div class="sfn-seat"><b>{seat.side}</b>{name}<em>{html.escape(outdated(seat, answer))}</em></div>'


def outdated(seat: Seat, answer: Answer | None) -> str:
    """In what the answer on screen differs from what is chosen now; "" where it does not."""
    if answer is None or seat.question is None or is_current(seat, answer):
        return ""
    old, new = answer.question, seat.question
    if old.pair_key != new.pair_key:
        return "of an earlier pair"
    if old.plan_key != new.plan_key:
        return "of an earlier recipe"
    if old.prompt != new.prompt:
        return "to an earlier prompt"
    if (old.mode, old.sampling) != (new.mode, new.sampling):
        return "with earlier settings"
    return "from another engine"


_ENDS = {"stop": "ended by itself", "length": "cut at the token limit", "cancelled": "stopped"}


def _foot(seat: Seat, answer: Answer | None) -> str:
    """The line under an answer: where it stands, how much there is, how fast, why it ended, where it comes from."""
    if answer is None or seat.problem:
        return ""
    if answer.state == "failed":
        return "failed"
    if answer.state == "queued":
        before = cached.workbench().engines.position(answer)
        return f"queued · {before} before it" if before else "queued · next"
    if answer.state == "loading":
        status = cached.workbench().engines.status
        waited = time.monotonic() - answer.asked_at
        return f"{status.detail or 'loading weights'} · {waited:.0f} s"
    most = f" of at most {answer.question.sampling.max_tokens}" if answer.active else ""
    said = [f"{answer.n_tokens}{most} token{'' if answer.n_tokens == 1 and not most else 's'}"]
    if answer.tokens_per_s:
        said.append(f"{answer.tokens_per_s:.0f} tokens/s")
    if answer.finish:
        said.append(_ENDS[answer.finish])
    if answer.state == "stored" and answer.generation is not None:
        said.append(f"from the store, {answer.generation.created_at.astimezone():%d %b %H:%M}")
    return " · ".join(said)
