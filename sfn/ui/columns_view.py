"""How the columns of answers look: rows of at most three, heads, texts, what stands under them, what can be done.

Which answers there are is `columns`'; how a text is drawn is `answers`'. While an answer is on its way the columns are
drawn anew several times a second. An answer to an earlier state is dimmed, never relabelled.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from sfn import answer_text, recipes
from sfn.engines import asking as limits
from sfn.ui import answers, cached, columns, continuing, failures, state, words

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.ui.answers import Whole
    from sfn.ui.columns import Seat

_BODY_PX = 260  # makes an answer scroll; columns.css decides how high it is
_TICK_S = 0.2
_IN_A_ROW = 3
_CSS = (Path(__file__).parent / "assets" / "columns.css").read_text()
_REDRAW = "_columns_redraw"  # a control of a column has changed more than the columns
_PROBLEM = "_columns_problem"  # the sentence of what a control could not do


@dataclass(frozen=True, slots=True)
class _Frame:
    """What is the same for every column while they are drawn."""

    pair: Pair
    seats: tuple[Seat, ...]
    samples: int
    how: answers.Drawing

    def of(self, id: str) -> tuple[Seat, ...]:
        return tuple(seat for seat in self.seats if seat.id == id)

    def in_sight(self, id: str) -> Seat:
        """The seat that the column shows; a column that cannot be asked has one alone."""
        seats = self.of(id)
        return seats[min(columns.page(id, self.samples), len(seats) - 1)]


def draw(pair: Pair, seats: tuple[Seat, ...], above_rem: int) -> None:
    """Draw the columns; while an answer is on its way they are drawn anew several times a second.

    `above_rem`: what the page takes above and around the answers, so that these fill what is left of the window.
    """
    st.session_state.pop(_REDRAW, None)
    samples = 1 + max((seat.sample for seat in seats), default=0)
    frame = _Frame(pair, seats, samples, state.get("show"))
    rows = len(_rows(columns.ids()))
    st.html(f"<style>:root {{ --sfn-above: {above_rem}rem; --sfn-rows: {rows}; }} {_CSS}</style>")
    st.fragment(_draw, run_every=_TICK_S if columns.running() else None)(frame, _states())


def _rows(ids: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Columns as rows of at most three; four are two rows of two."""
    width = 2 if len(ids) == 4 else _IN_A_ROW
    return [ids[at : at + width] for at in range(0, len(ids), width)]


def _states() -> tuple[object, ...]:
    return (*((answer.question.key, answer.last.state) for answer in columns.on_screen()), continuing.pending())


def _draw(frame: _Frame, before: tuple[object, ...]) -> None:
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


def _draw_column(frame: _Frame, seat: Seat) -> None:
    whole = columns.whole(seat)
    key = _key(seat.id)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False, key=f"head_{key}"):
        st.html(_head(seat, whole), width="stretch")
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
    dimmed = whole is not None and not seat.problem and _old(seat, whole)
    st.html(f"<style>.st-key-answer_{key} {{ opacity: {0.4 if dimmed else 1}; }}</style>")
    with st.container(horizontal=True, vertical_alignment="top", gap="xsmall", wrap=False, key=f"foot_{key}"):
        st.html(f'<div class="sfn-seat-foot">{_foot(frame, seat, whole, cut)}</div>', width="stretch")
        _continue(frame, seat, whole, key)


def _then_redraw(work: Callable[[], object]) -> None:
    """Do what a control of a column is for; the whole page follows."""
    try:
        work()
    except failures.SfnError as error:
        st.session_state[_PROBLEM] = str(error)
    st.session_state[_REDRAW] = True


# ---------------------------------------------------------------- the text


def _body(frame: _Frame, seat: Seat, whole: Whole | None, key: str) -> bool:
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
            f"text_{key}", whole, opened=_opened(frame.pair, whole), how=frame.how, old=_of_a(frame, whole)
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


def _of_a(frame: _Frame, whole: Whole) -> Whole | None:
    """A's answer to the same question, which a difference is told from; None where there is none on screen."""
    old = next((columns.whole(s) for s in frame.of("A") if s.sample == frame.in_sight("A").sample), None)
    if old is None or old is whole or old.question.plan_key == whole.question.plan_key:
        return None
    mine, theirs = whole.question, old.question
    same = (mine.prompt, mine.mode, mine.sampling) == (theirs.prompt, theirs.mode, theirs.sampling)
    return old if same else None


# ---------------------------------------------------------------- head and foot


def _head(seat: Seat, whole: Whole | None) -> str:
    """Title of a column; for the merged one the recipe that produced what stands in it; what is out of date."""
    if seat.id in ("A", "B"):
        title = html.escape(seat.name + ("" if seat.id == "A" else _WHAT_IS_B))
        name = f'<b>{seat.id}</b><span title="{title}">{html.escape(seat.name)}</span>'
    else:
        text = seat.id
        if seat.id == "merged":
            text = whole.question.recipe if whole else recipes.format(seat.plan.recipe) if seat.plan else ""
        kind = "" if seat.id == "merged" else " sfn-other"
        full = html.escape(words.recipe(text))
        label = html.escape(words.recipe(text) if seat.id == "merged" else seat.name)
        name = f'<span class="sfn-chip{kind}" title="{full}">{label}</span>'
        name = f"<b>merged</b>{name}" if seat.id == "merged" else name
    said, hover = _standing(seat, whole)
    return f'<div class="sfn-seat">{name}<em title="{html.escape(hover)}">{html.escape(said)}</em></div>'


_WHAT_IS_B = ": all of B's weights, spoken with A's config (positions, norm epsilon, context length)"


def _standing(seat: Seat, whole: Whole | None) -> tuple[str, str]:
    """What the head says about an answer that is not simply the one to the question of now, and the whole of it."""
    if whole is None:
        return "", ""
    if columns.is_pinned(seat.id):
        asked = whole.question
        hover = f"Pinned. Recipe: {words.recipe(asked.recipe)}. Prompt ({asked.mode}): {asked.prompt}"
        return "pinned", hover
    return outdated(seat, whole), ""


def _old(seat: Seat, whole: Whole) -> bool:
    """Whether what stands in a column answers another question than the one of now."""
    return not (
        columns.is_pinned(seat.id)
        or columns.is_current(seat, whole.parts[0])
        or columns.is_elsewhere(seat, whole.parts[0])
    )


def outdated(seat: Seat, whole: Whole) -> str:
    """In what the answer on screen differs from what is chosen now; "" where it does not."""
    if seat.question is None or columns.is_current(seat, whole.parts[0]):
        return ""
    old, new = whole.question, seat.question
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


def _foot(frame: _Frame, seat: Seat, whole: Whole | None, cut: bool) -> str:
    """Safe HTML of the lines under an answer: where it stands, how much, how fast, why it ended, where it comes from;
    and how the samples of the column fare."""
    lines = [" · ".join([*_progress(whole), *_origin(seat, whole)])] if whole is not None and not seat.problem else []
    if frame.samples > 1 and not seat.problem:
        lines.append(_of_samples(frame, seat))
    elif whole is not None:
        lines.append(_about_difference(frame, seat, whole, cut))
    return "<br>".join(html.escape(line) for line in lines if line)


def _progress(whole: Whole) -> list[str]:
    last = whole.last
    if last.state == "failed":
        return ["failed"]
    if last.state == "queued":
        before = cached.workbench().engines.position(last)
        return [f"queued · {before} before it" if before else "queued · next"]
    if last.state == "loading":
        status = cached.workbench().engines.status
        return [f"{status.detail or 'loading weights'} · {time.monotonic() - last.asked_at:.0f} s"]
    most = f" of at most {whole.n_tokens - last.n_tokens + last.question.sampling.max_tokens}" if whole.active else ""
    said = [f"{whole.n_tokens}{most} token{'' if whole.n_tokens == 1 and not most else 's'}"]
    if len(whole.parts) > 1:
        said[0] += f" in {len(whole.parts)} parts"
    if last.tokens_per_s:
        said.append(f"{last.tokens_per_s:.0f} tokens/s")
    if whole.finish:
        said.append(_ENDS[whole.finish])
    return said


def _origin(seat: Seat, whole: Whole) -> list[str]:
    """When a stored answer was given; and by which engine, unless it is the very one that would answer now."""
    last = whole.last
    if last.active or last.generation is None:
        return []
    said = [f"from the store, {last.generation.created_at.astimezone():%d %b %H:%M}"] if last.state == "stored" else []
    frames = [
        (asked.engine, asked.engine_version, asked.device, asked.dtype)
        for asked in (last.question, seat.question)
        if asked is not None
    ]
    if len(set(frames)) > 1:
        said.append("from {} {} on {}, {}".format(*frames[0]))
    return said


def _of_samples(frame: _Frame, seat: Seat) -> str:
    """How many samples of the column came out, and how their lengths spread."""
    found = [columns.whole(each) for each in frame.of(seat.id)]
    current = [
        whole
        for each, whole in zip(frame.of(seat.id), found, strict=True)
        if whole is not None and not _old(each, whole) and not whole.active and whole.last.state != "failed"
    ]
    if not current:
        return f"none of {frame.samples} samples yet"
    ended = sum(whole.finish == "stop" for whole in current)
    lengths = answer_text.spread([whole.n_tokens for whole in current])
    return f"{len(current)} of {frame.samples} samples · {lengths} tokens · {ended} ended by themselves"


def _about_difference(frame: _Frame, seat: Seat, whole: Whole, cut: bool) -> str:
    if frame.how != "difference":
        return ""
    if cut:
        return f"compared with A over the first {answer_text.MOST_WORDS:,} words"
    if seat.id != "A" and _of_a(frame, whole) is None:
        if "A" not in columns.ids():
            return "not compared: A is not among the columns"
        theirs = columns.whole(frame.in_sight("A"))
        if theirs is not None and theirs.question.plan_key == whole.question.plan_key:
            return "the same weights as A"
        return "not compared: A has not answered this prompt yet"
    return ""


# ---------------------------------------------------------------- what can be done with a column


def _menu(frame: _Frame, seat: Seat, key: str) -> None:
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


def _continue(frame: _Frame, seat: Seat, whole: Whole | None, key: str) -> None:
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
