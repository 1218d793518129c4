"""How the columns of answers look: rows of at most three, their texts, and what can be done with each.

Which answers there are is `columns`'; how a text is drawn is `answers`'; the lines around it are `column_lines`'. While
an answer is on its way the columns are drawn anew several times a second. An answer to an earlier state is dimmed,
never relabelled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from sfn import answer_text
from sfn.engines import asking as limits
from sfn.errors import SfnError
from sfn.ui import answers, cached, column_lines, columns, continuing, failures, state, style

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.ui.answers import Whole
    from sfn.ui.columns import Seat

_BODY_PX = 260  # makes an answer scroll; columns.css decides how high it is
_TICK_S = 0.2
_IN_A_ROW = 3
_PRESENTED_REM = 15  # around the answers in presenter mode: they fill the window, the board is above
_CSS = (Path(__file__).parent / "assets" / "columns.css").read_text()
_PRESENTED = ".sfn-words { font-size: 1.25rem; }"
_REDRAW = "_columns_redraw"  # a control of a column has changed more than the columns
_PROBLEM = "_columns_problem"  # the sentence of what a control could not do


def draw(pair: Pair, seats: tuple[Seat, ...], above_rem: int) -> None:
    """Draw the columns; while an answer is on its way they are drawn anew several times a second.

    `above_rem`: what the page takes above and around the answers, so that these fill what is left of the window.
    """
    st.session_state.pop(_REDRAW, None)
    samples = 1 + max((seat.sample for seat in seats), default=0)
    frame = column_lines.Frame(pair, seats, samples, state.get("show"))
    above_rem = _PRESENTED_REM if style.presenter() else above_rem
    rows = len(_rows(columns.ids()))
    css = _CSS + (_PRESENTED if style.presenter() else "")
    st.html(f"<style>:root {{ --sfn-above: {above_rem}rem; --sfn-rows: {rows}; }} {css}</style>")
    st.fragment(_draw, run_every=_TICK_S if columns.running() else None)(frame, _states())


def _rows(ids: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Columns as rows of at most three; four are two rows of two."""
    width = 2 if len(ids) == 4 else _IN_A_ROW
    return [ids[at : at + width] for at in range(0, len(ids), width)]


def _states() -> tuple[object, ...]:
    return (*((answer.question.key, answer.last.state) for answer in columns.on_screen()), continuing.pending())


def _draw(frame: column_lines.Frame, before: tuple[object, ...]) -> None:
    if st.session_state.pop(_REDRAW, False):
        st.rerun()  # a control of a column: what was handed to this fragment is out of date
    problem = continuing.catch_up() or st.session_state.pop(_PROBLEM, "")
    if problem:
        failures.sentence(problem)
    rows = _rows(columns.ids())
    for row in rows:
        for id, place in zip(row, st.columns(len(rows[0]), gap="small"), strict=False):
            with place, st.container(border=True, key=f"seat_{_key(id)}", gap=None), failures.shown():
                _draw_column(frame, frame.in_sight(id))
    if _states() != before:
        st.rerun()  # the button, the line on the engine and the frame follow


def _key(id: str) -> str:
    """A column's name in the keys of its widgets: its own where it has one, else its place."""
    return id if id in columns.SIDES else f"c{columns.ids().index(id) + 1}"


def _draw_column(frame: column_lines.Frame, seat: Seat) -> None:
    whole = columns.whole(seat)
    key = _key(seat.id)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False, key=f"head_{key}"):
        st.html(column_lines.head(seat, whole) + column_lines.belonging(key, seat, whole), width="stretch")
        if frame.samples > 1 and st.session_state.get(columns.APART):
            draw_pager(frame.samples, seat.id)
        if whole is not None and columns.mine(whole):
            st.button(
                "", icon=":material/stop:", key=f"stop_{key}", type="tertiary", help="Stop this column alone",
                on_click=_then_redraw, args=(lambda: columns.stop(seat.id),),
            )  # fmt: skip
        _menu(frame, seat, key)
    with st.container(height=_BODY_PX, border=False, key=f"answer_{key}", autoscroll=bool(whole and whole.active)):
        cut = _body(frame, seat, whole, key)
    with st.container(horizontal=True, vertical_alignment="top", gap="xsmall", wrap=False, key=f"foot_{key}"):
        st.html(column_lines.foot(frame, seat, whole, cut), width="stretch")
        _continue(frame, seat, whole, key)


def _then_redraw(work: Callable[[], object]) -> None:
    """Do what a control of a column is for; the whole page follows."""
    try:
        work()
    except SfnError as error:
        st.session_state[_PROBLEM] = str(error)
    st.session_state[_REDRAW] = True


# ---------------------------------------------------------------- the text


def _body(frame: column_lines.Frame, seat: Seat, whole: Whole | None, key: str) -> bool:
    """Draw what a column says; True where a difference could not be told to the end."""
    if seat.problem:
        st.text(seat.problem)
    elif whole is None:
        st.text(_silence(seat))
    elif whole.last.state == "failed" and not whole.text:
        st.text(whole.last.error)
        again = columns.is_current(seat, whole.last)
        st.button(
            "Try again", key=f"again_{key}", disabled=not again,
            on_click=_then_redraw, args=(lambda: columns.ask(frame.pair, (seat,)),),
        )  # fmt: skip
    elif whole.text or whole.active:
        cut = answers.draw(
            f"text_{key}",
            whole,
            opened=_opened(frame.pair, whole),
            how=frame.how,
            old=column_lines.of_a(frame, seat, whole),
        )
        if whole.last.state == "failed":
            st.caption(failures.escaped(f"It could not go on: {whole.last.error}"))
        return cut
    else:
        st.caption("The model ended at once, without a word." if whole.finish == "stop" else "Nothing was written.")
    return False


def _silence(seat: Seat) -> str:
    """What an empty column says."""
    if columns.is_pinned(seat.id):
        return "Nothing is pinned for this sample."
    if seat.question is None:
        return "Write a prompt, then run it."
    if seat.id == "merged" and not seat.plan.moved:
        return "Nothing is moved yet, so this would answer exactly as A does. Choose modules above."
    return "Not asked yet."


def _opened(pair: Pair, whole: Whole) -> bool:
    """Whether the text begins inside a thought, as prompt or template have opened it."""
    question = whole.question
    if question.mode == "plain":
        return answer_text.opens_thought(question.prompt)
    return question.pair_key == pair.key and cached.template_opens_thought(pair, question.tokenizer)


# ---------------------------------------------------------------- what can be done with a column


def _menu(frame: column_lines.Frame, seat: Seat, key: str) -> None:
    """Pin, keep, move, remove."""
    now = columns.ids()
    at = now.index(seat.id)
    acts: dict[str, Callable[[], object]] = {}
    if columns.is_pinned(seat.id):
        acts["Unpin"] = lambda: columns.pin(frame.seats, seat.id)
    elif columns.whole(seat) is not None:
        acts["Pin this answer while the others change"] = lambda: columns.pin(frame.seats, seat.id)
    if seat.id == "merged" and columns.can_keep(frame.pair, seat.plan):
        acts["Keep this recipe as a column"] = lambda: columns.keep(frame.pair, seat.plan)
    if at > 0:
        acts["Move to the left"] = lambda: columns.move(frame.pair, seat.id, -1)
    if at < len(now) - 1:
        acts["Move to the right"] = lambda: columns.move(frame.pair, seat.id, 1)
    if len(now) > 1:
        acts["Remove"] = lambda: columns.choose(frame.pair, [id for id in now if id != seat.id])
    st.menu_button(
        "", list(acts), key=f"menu_{key}", icon=":material/more_vert:", type="tertiary",
        on_click=_act, args=(f"menu_{key}", acts), disabled=not acts,
    )  # fmt: skip


def _act(key: str, acts: dict[str, Callable[[], object]]) -> None:
    chosen = acts.get(st.session_state.get(key) or "")
    if chosen is not None:
        _then_redraw(chosen)


def _continue(frame: column_lines.Frame, seat: Seat, whole: Whole | None, key: str) -> None:
    """The button that goes on with an answer that was cut, where there is room for more of it."""
    if whole is None or seat.plan is None or whole.question.plan_key != seat.plan.key:
        return
    failed = whole.last.state == "failed" and len(whole.parts) > 1
    if not failed and not (continuing.possible(whole) and whole.question.engine == cached.workbench().engines.backend):
        return
    limit = limits.context_limit(frame.pair.a.config)
    if limit is not None and whole.last.n_prompt_tokens + whole.last.n_tokens >= limit:
        st.caption("context full", help=f"The model's context holds {limit} tokens, prompt included; it cannot go on.")
        return
    st.button(
        "Try again" if failed else "Continue", key=f"continue_{key}", type="tertiary", icon=":material/play_arrow:",
        help=f"Asks for up to {whole.question.sampling.max_tokens} more tokens: the text so far becomes the prompt of "
        "a further question, which is kept beside this one.",
        on_click=_then_redraw, args=(lambda: continuing.go_on(frame.pair, seat.plan, whole),),
    )  # fmt: skip


def draw_pager(samples: int, id: str = "") -> None:
    """‹ 3 of 8 ›: which sample is in sight, in every column or (with `id`) in one."""
    key, now = (_key(id), columns.page(id, samples)) if id else ("all", columns.page("", samples))
    with st.container(
        horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False, width="content", key=f"pager_{key}"
    ):
        for icon, by, what in (("chevron_left", -1, "The sample before"), ("chevron_right", 1, "The next sample")):
            st.button(
                "", icon=f":material/{icon}:", key=f"turn_{icon}_{key}", type="tertiary", help=what,
                disabled=not 0 <= now + by < samples,
                on_click=_then_redraw, args=(lambda by=by: columns.turn(id, by, samples),),
            )  # fmt: skip
            if by < 0:
                st.html(f'<div class="sfn-page">{now + 1} of {samples}</div>', width="content")
