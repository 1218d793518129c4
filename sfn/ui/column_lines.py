"""What stands above and under the text of a column, in words. Draws nothing but the safe HTML of these lines."""

from __future__ import annotations

import html
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfn import answer_text, recipes
from sfn.ui import answers, cached, columns, words

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.ui.answers import Whole
    from sfn.ui.columns import Seat

_LONGEST_PROMPT = 90  # letters of a pinned answer's prompt; the whole of it on hover


@dataclass(frozen=True, slots=True)
class Frame:
    """What is the same for every column while they are drawn."""

    pair: Pair
    seats: tuple[Seat, ...]
    samples: int
    how: answers.Drawing

    def of(self, id: str) -> tuple[Seat, ...]:
        """The column's seats, one for each sample."""
        return tuple(seat for seat in self.seats if seat.id == id)

    def in_sight(self, id: str) -> Seat:
        """The seat that the column shows; a column that cannot be asked has one alone."""
        seats = self.of(id)
        return seats[min(columns.page(id, self.samples), len(seats) - 1)]


def of_a(frame: Frame, seat: Seat, whole: Whole) -> Whole | None:
    """A's answer to the same question, which a difference is told from; None where there is none on screen."""
    old = next((columns.whole(theirs) for theirs in frame.of("A") if theirs.sample == seat.sample), None)
    if old is None or old is whole or old.question.plan_key == whole.question.plan_key:
        return None
    mine, theirs = whole.question, old.question
    same = (mine.prompt, mine.mode, mine.sampling) == (theirs.prompt, theirs.mode, theirs.sampling)
    return old if same else None


def head(seat: Seat, whole: Whole | None) -> str:
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
    asked = seat.question.key if seat.question else ""
    keys = f'data-asked="{asked}" data-answered="{_answered(whole)}"'
    return f'<div class="sfn-seat" {keys}>{name}<em title="{html.escape(hover)}">{html.escape(said)}</em></div>'


def _answered(whole: Whole | None) -> str:
    """Key of the question that a column's answer answers; "" where there is no answer."""
    return whole.question.key if whole else ""


def belonging(key: str, seat: Seat, whole: Whole | None) -> str:
    """Styles that come with the head of the column of that `key`: an answer to an earlier question is dimmed; what is
    older than the head is hidden, for head, text and foot arrive one after the other, and no text may stand under
    another's name."""
    answered = _answered(whole)
    dimmed = whole is not None and not seat.problem and is_old(seat, whole)
    return (
        f'<style>.st-key-answer_{key} .sfn-said:not([data-question="{answered}"]), '
        f'.st-key-foot_{key} .sfn-seat-foot:not([data-answered="{answered}"]) {{ visibility: hidden; }} '
        f".st-key-answer_{key} {{ opacity: {0.4 if dimmed else 1}; }}</style>"
    )


_WHAT_IS_B = ": all of B's weights, spoken with A's config (positions, norm epsilon, context length)"


def _standing(seat: Seat, whole: Whole | None) -> tuple[str, str]:
    """What the head says about an answer that is not simply the one to the question of now, and the whole of it."""
    if whole is None:
        return "", ""
    asked = whole.question
    hover = f"Recipe: {words.recipe(asked.recipe)}. Prompt ({asked.mode}): {asked.prompt}"
    if columns.is_pinned(seat.id):
        return "pinned", f"Pinned. {hover}"
    return outdated(seat, whole), hover


def is_old(seat: Seat, whole: Whole) -> bool:
    """Whether what stands in a column answers another question than the one of now."""
    return not (
        columns.is_pinned(seat.id)
        or columns.is_current(seat, whole.parts[0])
        or columns.is_elsewhere(seat, whole.parts[0])
    )


def outdated(seat: Seat, whole: Whole) -> str:
    """In what the answer on screen differs from what is chosen now; "" where it does not."""
    if seat.problem or columns.is_current(seat, whole.parts[0]):
        return ""
    old, new = whole.question, seat.question
    if new is None:  # there is no prompt now
        return "to an earlier prompt"
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


def foot(frame: Frame, seat: Seat, whole: Whole | None, cut: bool) -> str:
    """Safe HTML of the lines under an answer: where it stands, how much, how fast, why it ended, where it comes from;
    and how the samples of the column fare."""
    lines = [" · ".join([*_progress(whole), *_origin(seat, whole)])] if whole is not None and not seat.problem else []
    if whole is not None and columns.is_pinned(seat.id) and (seat.question is None or _asks_else(seat, whole)):
        prompt = " ".join(whole.question.prompt.split())
        lines.append(f"asked: {prompt if len(prompt) <= _LONGEST_PROMPT else prompt[:_LONGEST_PROMPT] + '…'}")
    elif frame.samples > 1 and not seat.problem:
        lines.append(_of_samples(frame, seat))
    elif whole is not None:
        lines.append(_about_difference(frame, seat, whole, cut))
    said = "<br>".join(html.escape(line) for line in lines if line)
    return f'<div class="sfn-seat-foot" data-answered="{_answered(whole)}">{said}</div>'


def _asks_else(seat: Seat, whole: Whole) -> bool:
    return (seat.question.prompt, seat.question.mode) != (whole.question.prompt, whole.question.mode)


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


def _of_samples(frame: Frame, seat: Seat) -> str:
    """How many samples of the column came out, and how their lengths spread."""
    found = [columns.whole(each) for each in frame.of(seat.id)]
    current = [
        whole
        for each, whole in zip(frame.of(seat.id), found, strict=True)
        if whole is not None and not is_old(each, whole) and not whole.active and whole.last.state != "failed"
    ]
    if not current:
        return f"none of {frame.samples} samples yet"
    cut = sum(whole.finish == "length" for whole in current)
    lengths = answer_text.spread([whole.n_tokens for whole in current])
    return f"{len(current)} of {frame.samples} samples · {lengths} tokens{f' · {cut} cut' if cut else ''}"


def _about_difference(frame: Frame, seat: Seat, whole: Whole, cut: bool) -> str:
    if frame.how != "difference":
        return ""
    if cut:
        return f"compared with A over the first {answer_text.MOST_WORDS:,} words"
    if seat.id != "A" and of_a(frame, seat, whole) is None:
        if "A" not in columns.ids():
            return "not compared: A is not among the columns"
        same = any(theirs.plan is not None and theirs.plan.key == whole.question.plan_key for theirs in frame.of("A"))
        return "the same weights as A" if same else "not compared: A has not answered this yet"
    return ""
