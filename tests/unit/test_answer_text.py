"""What is found in a model's text: thinking, formulas, differences; and that no letter of it is lost or made up."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfn import answer_text
from sfn.answer_text import MOST_WORDS, Passage, difference, passages, pieces

LETTERS = [*"ab1 \n.$\\(){}[]<>`x", "<think>", "</think>", "$x$", "\\boxed{", "word "]
TEXT = st.lists(st.sampled_from(LETTERS), max_size=60).map("".join)


def formulas(text: str) -> list[str]:
    return [piece.tex for piece in pieces(text) if piece.kind in ("formula", "display")]


@pytest.mark.parametrize(
    "text, told, found",
    [
        ("\n<think> a b </think> c", {}, (Passage("thought", "a b"), Passage("answer", "c"))),
        ("a</think>b", {}, (Passage("thought", "a"), Passage("answer", "b"))),
        ("a", {"opened": True}, (Passage("thought", "a", closed=False),)),
        ("<think>a", {}, (Passage("thought", "a", closed=False),)),
        ("", {"opened": True, "growing": True}, (Passage("thought", "", closed=False),)),
        ("<think>\n\n</think>\n\nhi", {}, (Passage("answer", "hi"),)),
        ("no thought", {}, (Passage("answer", "no thought"),)),
        ("first <think>then", {}, (Passage("answer", "first "), Passage("thought", "then", closed=False))),
        ("<think>a<think>b</think>c</think>d", {}, (Passage("thought", "ab"), Passage("answer", "cd"))),
        ("    indented", {}, (Passage("answer", "    indented"),)),
    ],
)
def test_thinking_is_told_from_the_answer(text, told, found):
    assert passages(text, **told) == found


@pytest.mark.parametrize("begun", ["<", "<th", "<think", "</", "</think"])
def test_a_tag_that_is_being_written_is_not_shown(begun):
    assert "<" not in "".join(p.text for p in passages(f"so far {begun}", growing=True))
    assert begun in passages(f"so far {begun}")[-1].text


@given(TEXT)
def test_passages_show_every_letter_but_tags_and_space(text):
    shown = "".join(passage.text for passage in passages(text))
    expected = re.sub("</?think>", "", text)
    assert "".join(shown.split()) == "".join(expected.split())


def test_templates_that_open_the_thinking():
    r1 = "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
    qwen3 = "{% if add_generation_prompt %}{{- '<|im_start|>assistant' }}{{- '<think>\\n</think>' }}{% endif %}"
    history = "{{ content.split('</think>')[-1] }}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    assert answer_text.template_opens_thought(r1)
    assert not answer_text.template_opens_thought(qwen3)
    assert not answer_text.template_opens_thought(history)
    assert not answer_text.template_opens_thought("")
    assert answer_text.opens_thought("Question\n<think>\n")
    assert not answer_text.opens_thought("<think>done</think>")


@pytest.mark.parametrize(
    "text, found",
    [
        ("so $x+1$ and $$y$$", ["x+1", "y"]),
        (r"\(a\) then \[ b \] then \boxed{\frac{1}{2}}.", ["a", "b", r"\boxed{\frac{1}{2}}"]),
        (r"\begin{align}a&=b\\c&=d\end{align}", [r"\begin{align}a&=b\\c&=d\end{align}"]),
        ("the $n$th of $5$", ["n", "5"]),
        (r"$\text{many plain words}$", [r"\text{many plain words}"]),
        ("$$\na\n$$", ["a"]),
    ],
)
def test_formulas_are_found(text, found):
    assert formulas(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and $6.",
        "between $5-$6, or US$6 (about $7)",
        "price: $12.50/month vs $10/month",
        "I have $5 and you have 6$ left",
        "between $5 million and $6 million dollars$",
        "$HOME/$USER and $PATH:$HOME",
        r"a \$x\$ b",
        "`$x$` and ```\n$a$\n```",
        "$x is open",
        r"\boxed{never closed",
        "$$ $$",
        "$a\nb$",
    ],
)
def test_money_code_and_what_is_not_closed_stay_text(text):
    assert formulas(text) == []


@given(TEXT)
def test_pieces_joined_are_the_text(text):
    assert "".join(piece.text for piece in pieces(text)) == text


@pytest.mark.parametrize("bad", ["$", "\\(", "\\boxed{", "\\begin{align}", "$a ", "`", "$$x", "\\[", "\\", "$\\text{a"])
def test_hostile_repetitions_are_read_in_no_time(bad):
    started = time.perf_counter()
    pieces(bad * 4000)
    assert time.perf_counter() - started < 2


WORDS = st.lists(st.sampled_from(["a", "b", "cat", "7", ".", "+"]), max_size=40).map(" ".join)


@given(WORDS, WORDS)
def test_a_difference_holds_both_texts(old, new):
    found = difference(old, new).pieces
    assert "".join(piece.text for piece in found if piece.kind != "deleted") == new
    theirs = [word for piece in found if piece.kind != "inserted" for word in piece.text.split()]
    assert "".join(theirs) == "".join(old.split())


@given(WORDS)
def test_a_text_does_not_differ_from_itself(text):
    assert {piece.kind for piece in difference(text, text).pieces} <= {"text"}


def test_words_and_numbers_are_the_unit():
    found = difference("the answer is 48 now", "the answer is 52 now")
    assert [(piece.kind, piece.text) for piece in found.pieces] == [
        ("text", "the answer is"),
        ("deleted", " 48"),
        ("inserted", " 52"),
        ("text", " now"),
    ]


def test_what_is_still_to_come_is_neither_gone_nor_new():
    kinds = {piece.kind for piece in difference("one two three four", "one two", new_grows=True).pieces}
    assert kinds == {"text"}
    kinds = {piece.kind for piece in difference("one two", "one two three four", old_grows=True).pieces}
    assert kinds == {"text"}


def test_the_longest_common_part_is_found():
    assert answer_text._common(list("abcde"), list("xbyde")) == [(1, 1), (3, 3), (4, 4)]


def test_four_thousand_words_are_compared_at_once_and_what_is_cut_is_said():
    old = " ".join(str(number * 7919 % 97) for number in range(4000))
    new = " ".join(str(number * 104729 % 89) for number in range(4000))
    started = time.perf_counter()
    found = difference(old, new)
    assert time.perf_counter() - started < 1
    assert not found.cut
    long = difference(old, "word " * (MOST_WORDS + 1))
    assert long.cut
    assert "".join(piece.text for piece in long.pieces if piece.kind != "deleted") == "word " * (MOST_WORDS + 1)


@pytest.mark.parametrize("counts, said", [([], ""), ([9, 9], "9"), ([120, 480], "120 to 480, median 300")])
def test_a_spread_in_words(counts, said):
    assert answer_text.spread(counts) == said
