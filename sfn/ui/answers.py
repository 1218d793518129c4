"""One answer as a reader sees it: its parts as one text, thinking folded, formulas set, or what differs from another.

Owns how a text is drawn (`assets/answer.js`), in the browser and piece by piece, so that a growing text does not
flicker. What is in a text is `sfn.answer_text`'s; which answer is shown is `columns`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from sfn import answer_text
from sfn.ui import words

if TYPE_CHECKING:
    from sfn.engine_room import Answer
    from sfn.records import FinishReason, Question

Drawing = Literal["drawn", "plain", "difference"]

_mount = st.components.v2.component(
    "sfn_answer",
    html='<div class="sfn-said"></div>',
    js=(Path(__file__).parent / "assets" / "answer.js").read_text(),
    isolate_styles=False,  # KaTeX's styles and fonts are the page's
)


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer and what continued it, as the one text that it is to a reader. parts: never empty, each finished but
    perhaps the last."""

    parts: tuple[Answer, ...]

    @property
    def question(self) -> Question:
        """The question that the reader asked."""
        return self.parts[0].question

    @property
    def last(self) -> Answer:
        """The part that is growing, or ended last."""
        return self.parts[-1]

    @property
    def text(self) -> str:
        """All parts as one text."""
        return "".join(part.text for part in self.parts)

    @property
    def n_tokens(self) -> int:
        """Tokens of all parts."""
        return sum(part.n_tokens for part in self.parts)

    @property
    def active(self) -> bool:
        """Whether more is to come."""
        return self.last.active

    @property
    def finish(self) -> FinishReason | None:
        """Why the last part ended; None while it has not."""
        return self.last.finish  # type: ignore[return-value]


def draw(key: str, whole: Whole, *, opened: bool, how: Drawing = "drawn", old: Whole | None = None) -> bool:
    """Draw the text of an answer; True where a difference could not be told to the end of the texts.

    Args:
        opened: whether prompt or template have opened the thinking. old: the answer that "difference" compares with.
    """
    cut = False
    if how == "plain":
        shown = [_passage("answer", "", True, (answer_text.Piece("text", whole.text.lstrip("\r\n")),))]
    elif how == "difference" and old is not None:
        shown, cut = _compared(whole, old, opened)
    else:
        shown = [_drawn(passage, whole) for passage in _passages(whole, opened)]
    given = {"passages": shown, "question": whole.question.key, "ended": not whole.active}
    _mount(key=key, data=given, width="stretch")
    return cut


def _passages(whole: Whole, opened: bool) -> tuple[answer_text.Passage, ...]:
    return answer_text.passages(whole.text, opened=opened, growing=whole.active)


def _drawn(passage: answer_text.Passage, whole: Whole) -> dict[str, Any]:
    return _passage(passage.kind, _label(passage, whole), passage.closed, answer_text.pieces(passage.text))


def _compared(whole: Whole, old: Whole, opened: bool) -> tuple[list[dict[str, Any]], bool]:
    """Thinking is compared with thinking, what is said with what is said."""
    theirs = {"thought": "", "answer": ""}
    for passage in _passages(old, opened):
        theirs[passage.kind] = f"{theirs[passage.kind]}\n{passage.text}".lstrip("\n")
    shown, cut = [], False
    for passage in _passages(whole, opened):
        found = answer_text.difference(
            theirs.pop(passage.kind, ""),
            passage.text,
            old_grows=old.active,
            new_grows=whole.active,
        )
        shown.append(_passage(passage.kind, _label(passage, whole), passage.closed, found.pieces))
        cut = cut or found.cut
    if not whole.active:
        gone = [(kind, text) for kind, text in theirs.items() if text]
        shown += [
            _passage(kind, "Thought that is gone", True, (answer_text.Piece("deleted", text),)) for kind, text in gone
        ]
    return shown, cut


def _passage(kind: str, label: str, closed: bool, pieces: tuple[answer_text.Piece, ...]) -> dict[str, Any]:
    """A passage as answer.js reads it."""
    shown = [[piece.kind, piece.text, piece.tex] for piece in pieces]
    return {"kind": kind, "label": label, "closed": closed, "pieces": shown}


def _label(passage: answer_text.Passage, whole: Whole) -> str:
    """What the fold of a thought says; "" for what is said."""
    if passage.kind == "answer":
        return ""
    many = words.many(passage.words, "word")
    if passage.closed:
        return f"Thought for {many}"
    return f"Thinking, {many} so far" if whole.active else f"Thought for {many}, not to the end"
