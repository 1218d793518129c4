"""What is in a model's text: thinking and answer, formulas, words that differ from another text. Pure; draws nothing.

Model text is text: nothing here reads it as HTML or Markdown. What is found are pieces of the text in their order, so
that a page can set a formula or mark a word and show everything else as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Literal

OPEN, CLOSE = "<think>", "</think>"
MOST_WORDS = 6000  # words of each side that are compared; beyond them a text is shown unmarked

_TAGS = re.compile(f"{re.escape(OPEN)}|{re.escape(CLOSE)}")
_LONGEST_FORMULA = 2000  # characters; what looks longer than that is no formula but a stray delimiter
_LONGEST_BOX = 500


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of an answer: thinking or what is said. `closed`: whether the thinking has come to its end."""

    kind: Literal["thought", "answer"]
    text: str
    closed: bool = True

    @property
    def words(self) -> int:
        """Number of words, as a person would count them."""
        return len(self.text.split())


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a passage.

    Attributes:
        kind: "text"; "formula" (in a line), "display" (on a line of its own); "inserted", "deleted" (a difference).
        text: as the model wrote it, delimiters included. tex: LaTeX of a formula without its delimiters, else "".
    """

    kind: Literal["text", "formula", "display", "inserted", "deleted"]
    text: str
    tex: str = ""


# ---------------------------------------------------------------- thinking and answer


def passages(text: str, *, opened: bool = False, growing: bool = False) -> tuple[Passage, ...]:
    """The text as thinking and answer, in order, without the tags; empty lines at the ends of a passage are left out.

    opened: the prompt or the template has already opened the thinking, so that the text begins inside it. A `</think>`
    that nothing has opened says the same. growing: more is to come, so the beginning of a tag at the end is held back.
    """
    if growing:
        text = text[: len(text) - _tag_begun(text)]
    tags = list(_TAGS.finditer(text))
    thinking = opened or bool(tags and tags[0].group() == CLOSE)
    found: list[Passage] = []
    start = 0
    for tag in tags:
        closes = tag.group() == CLOSE
        _add(found, text[start : tag.start()], thinking, closed=closes == thinking)
        thinking, start = not closes, tag.end()  # a second opening or closing tag changes nothing; it is not shown
    _add(found, text[start:], thinking, closed=False)
    return tuple(found)


def _add(found: list[Passage], text: str, thinking: bool, *, closed: bool) -> None:
    """Append a passage, or go on with the last one where only a stray tag stood between them."""
    last = found[-1] if found else None
    if last is not None and (last.kind == "thought") == thinking and not (thinking and last.closed):
        found[-1] = Passage(last.kind, last.text + text, closed if thinking else True)
    elif thinking:
        if text.strip() or not closed:
            found.append(Passage("thought", text.strip(), closed))
    elif text.strip():
        found.append(Passage("answer", text.lstrip() if last is not None else text.lstrip("\r\n")))


def _tag_begun(text: str) -> int:
    """How many characters at the end may become a tag."""
    return next((n for n in range(len(CLOSE) - 1, 0, -1) if text.endswith((OPEN[:n], CLOSE[:n]))), 0)


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends inside a thought that it has opened."""
    return prompt.rfind(OPEN) > prompt.rfind(CLOSE)


def template_opens_thought(template: str) -> bool:
    """Whether a chat template opens the thinking for the model: it puts `<think>` behind the last prompt it adds.

    Read from the template's text, not by running it: looked for is a `<think>` after the last `add_generation_prompt`
    that is not closed in the same breath (as in templates which switch thinking off).
    """
    last = template.rfind("add_generation_prompt")
    return last >= 0 and opens_thought(template[last:])


# ---------------------------------------------------------------- formulas

_ENVIRONMENTS = "equation|align|aligned|gather|gathered|multline|alignat|array|matrix|pmatrix|bmatrix|vmatrix|cases"
_CANDIDATE = re.compile(
    r"""
    (?P<code>```.*?(?:```|\Z)|`[^`\n]+`)                        # code is code
    |(?P<escaped>\\\$|\\\\)                                      # \$ is a dollar, \\ no beginning of \( or \[
    |\$\$(?P<dollars>[^$]+)\$\$
    |\\\[(?P<square>(?:(?!\\\[).)+?)\\\]
    |\\\((?P<round>(?:(?!\\\().)+?)\\\)
    |(?P<begin>\\begin\{(?P<env>ENVIRONMENTS)(?P<star>\*?)\}(?:(?!\\begin\{(?P=env)).)+?\\end\{(?P=env)(?P=star)\})
    |(?P<boxed>\\boxed\s*\{)
    |(?<![\w\\$])\$(?=[^\s$])(?P<dollar>(?:\\.|[^$\\\n])*?)(?<=[^\s])\$(?![\dA-Z_$])
    """.replace("ENVIRONMENTS", _ENVIRONMENTS),
    re.VERBOSE | re.DOTALL,
)
_COMMAND_AND_ARGUMENT = re.compile(r"\\(?:text|mathrm|operatorname|mbox|textbf|textit)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{3,}")


@lru_cache(maxsize=64)
def pieces(text: str) -> tuple[Piece, ...]:
    """The text with its formulas apart: `$…$`, `$$…$$`, `\\(…\\)`, `\\[…\\]`, `\\begin{align}…`, `\\boxed{…}`.

    A formula counts once it is closed. A dollar opens one only where no space follows it and no letter or digit stands
    before it, closes one only where no space stands before it and no digit or capital follows; and what holds two plain
    words is prose: prices stay prices. Nothing in code (backquotes) is a formula.
    """
    found: list[Piece] = []
    start = at = 0
    while match := _CANDIDATE.search(text, at):
        end, piece = _formula(text, match)
        at = end
        if piece is None:
            continue
        if match.start() > start:
            found.append(Piece("text", text[start : match.start()]))
        found.append(piece)
        start = end
    if start < len(text):
        found.append(Piece("text", text[start:]))
    return tuple(found)


def _formula(text: str, match: re.Match[str]) -> tuple[int, Piece | None]:
    """(where to go on, the formula at `match` or None where it is none)."""
    kind = match.lastgroup if match.lastgroup not in ("env", "star") else "begin"
    if kind in ("code", "escaped"):
        return match.end(), None
    if kind == "boxed":
        end = _closing_brace(text, match.end())
        if end is None:
            return match.end(), None
        whole = text[match.start() : end]
        return end, Piece("formula", whole, whole)
    whole = match.group()
    tex = (match.group(kind) if kind != "begin" else whole).strip()
    if len(whole) > _LONGEST_FORMULA or not tex or (kind == "dollar" and _prose(tex)):
        return match.start() + 1, None
    return match.end(), Piece("formula" if kind in ("dollar", "round") else "display", whole, tex)


def _prose(tex: str) -> bool:
    """Whether what stands between two dollars is words, not a formula."""
    return len(_WORD.findall(_COMMAND_AND_ARGUMENT.sub(" ", tex))) >= 2


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace that was opened before `start` is closed, the brace included; None where it is not."""
    depth, at = 1, start
    while at < min(len(text), start + _LONGEST_BOX):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    return None


# ---------------------------------------------------------------- differences

_WORDS = re.compile(r"\s*(?:\d+|[^\W\d_]+|.)", re.DOTALL)  # a word, a number or a sign, with the space before it


@dataclass(frozen=True, slots=True)
class Difference:
    """What changes between two texts. cut: whether one of them was too long to be compared to its end."""

    pieces: tuple[Piece, ...]
    cut: bool = False


@lru_cache(maxsize=64)
def difference(old: str, new: str, *, old_grows: bool = False, new_grows: bool = False) -> Difference:
    """`new` with the words marked that `old` does not have, and the words of `old` that are gone.

    Words are aligned by a longest common subsequence, exactly, over the first MOST_WORDS words of each; a few words in
    common between longer changes are left out of it, as they are chance. While `new` grows, what it has not reached is
    not called deleted; while `old` grows, what goes on past it is not called new.
    """
    a, b = _WORDS.findall(old), _WORDS.findall(new)
    cut = len(a) > MOST_WORDS or len(b) > MOST_WORDS
    kept = _common([word.strip() for word in a[:MOST_WORDS]], [word.strip() for word in b[:MOST_WORDS]])
    runs: list[tuple[str, str]] = []
    i = j = 0
    for first_i, first_j, length in _steady(_blocks(kept), len(a), len(b)):
        runs += [("deleted", word) for word in a[i:first_i]] + [("inserted", word) for word in b[j:first_j]]
        i, j = first_i + length, first_j + length
        runs += [("text", word) for word in b[first_j:j]]
    if not new_grows and not cut:
        runs += [("deleted", word) for word in a[i:]]
    runs += [("text" if old_grows or cut else "inserted", word) for word in b[j:]]
    return Difference(_joined(runs), cut)


def _blocks(kept: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Pairs of indices that follow each other on both sides, as (first in old, first in new, length)."""
    found: list[tuple[int, int, int]] = []
    for i, j in kept:
        if found and (i, j) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((i, j, 1))
    return found


def _steady(blocks: list[tuple[int, int, int]], end_a: int, end_b: int) -> list[tuple[int, int, int]]:
    """The blocks without those that are no longer than the changes on both their sides."""
    found: list[tuple[int, int, int]] = []
    for at, (i, j, length) in enumerate(blocks):
        before_i, before_j = (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]) if found else (0, 0)
        next_i, next_j = blocks[at + 1][:2] if at + 1 < len(blocks) else (end_a, end_b)
        before = max(i - before_i, j - before_j)
        after = max(next_i - i, next_j - j) - length
        if length > min(before, after):
            found.append((i, j, length))
    return found


def _joined(runs: list[tuple[str, str]]) -> tuple[Piece, ...]:
    """Neighbours of one kind as one piece."""
    return tuple(Piece(kind, "".join(word for _kind, word in run)) for kind, run in groupby(runs, key=itemgetter(0)))


def _common(a: list[str], b: list[str]) -> list[tuple[int, int]]:
    """Pairs of indices of a longest common subsequence of `a` and `b`.

    Bit-parallel (Hyyrö 2004): one row of the table is one whole number, so a row costs a few operations on len(a) bits.
    """
    head = _shared_head(a, b)
    a, b = a[head:], b[head:]
    places: dict[str, int] = {}
    for at, word in enumerate(a):
        places[word] = places.get(word, 0) | (1 << at)
    all_ones = (1 << len(a)) - 1
    row, rows = all_ones, []
    for word in b:
        here = row & places.get(word, 0)
        row = ((row + here) | (row - here)) & all_ones
        rows.append(row)
    found: list[tuple[int, int]] = []
    i, j = len(a), len(b)
    while i and j:
        if rows[j - 1] >> (i - 1) & 1:  # the table does not grow here: word i - 1 of `a` is not needed
            i -= 1
            continue
        j -= 1
        if not j or rows[j - 1] >> (i - 1) & 1:
            i -= 1
            found.append((head + i, head + j))
    return [(at, at) for at in range(head)] + found[::-1]


def _shared_head(a: list[str], b: list[str]) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def spread(counts: list[int]) -> str:
    """ "120 to 480, median 233" of token counts; one number where they are all the same."""
    ordered = sorted(counts)
    if len(set(ordered)) <= 1:
        return f"{ordered[0]}" if ordered else ""
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    return f"{ordered[0]} to {ordered[-1]}, median {sum(middle) / len(middle):g}"
