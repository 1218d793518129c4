"""What cells show: whether the reference is reached, likeness, the table, the sentence."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfn.errors import SweepError
from sfn.records import Sampling, SweepCell
from sfn.sweeps import A_ROW, B_ROW, Line, Prompt, Sweep, contains, likeness, pattern, readings, sentence, table
from tests.unit.test_store_generations import answer

ROWS = (Line("o_proj"), Line("mlp"), Line("head"))
SUMS = Sweep("list", "prompts", (Prompt("5 + 17?", "22"), Prompt("1 + 1?", "2")), recipes=("x", "y", "z"))


def cell(row, column, text=None, **fields):
    done = None if text is None else answer(text, n_tokens=len(text.split()))
    return SweepCell(row, column, f"recipe {row}", None, f"{row}.{column}", generation=done, **fields)


@pytest.mark.parametrize(
    ("text", "reference", "found"),
    [
        ("The answer is 22.", "22", True),
        ("22", "22", True),
        ("The answer is 122.", "22", False),
        ("222", "22", False),
        ("boxed{22}", "22", True),
        ("He said YES", "yes", True),
        ("yesterday", "yes", False),
        ("a.b", "a.b", True),
        ("acb", "a.b", False),
        ("x = 22\nend", r"/^x = \d+$/", True),
        ("X = 22", r"/^x/", False),
        ("", "22", False),
        ("anything", "", None),
        ("/", "/", True),
    ],
)
def test_contains(text, reference, found):
    assert contains(text, reference) is found


def test_an_expression_that_is_none_is_a_sentence():
    with pytest.raises(SweepError, match=r"/\(22/ is no regular expression"):
        pattern("/(22/")


def test_an_expression_that_runs_away_is_given_up():
    began = time.process_time()  # the limit is one of computing time, which a busy machine does not stretch
    assert contains("a" * 5000 + "b", "/^(a|a)*(a|a)*(a|a)*$/") is None
    assert time.process_time() - began < 3


@given(st.text(), st.text())
def test_likeness_is_a_share_and_symmetric(one, other):
    assert 0 <= likeness(one, other) <= 1
    assert likeness(one, other) == likeness(other, one)
    assert likeness(one, one) == 1


def test_likeness_counts_words():
    assert likeness("a a b", "a b b") == pytest.approx(2 * 2 / 6)
    assert likeness("", "a") == 0
    assert likeness("", " \n") == 1


def test_cells_are_read_beside_a_and_b():
    cells = [
        cell(A_ROW, 0, "I think 21"), cell(A_ROW, 1, "2"), cell(B_ROW, 0, "it is 22"),
        cell(0, 0, "it is 22"), cell(0, 1, "3"), cell(1, 0), cell(1, 1, error="The engine died."),
        SweepCell(2, 0, "head=B", None, "", problem="It does not fit."),
    ]  # fmt: skip
    found = readings(SUMS, cells)
    assert (found[0, 0].contains, found[0, 0].like_b, found[0, 0].like_a) == (True, 1.0, 0.0)
    assert found[0, 1].contains is False
    assert math.isnan(found[0, 1].like_b)  # B was not asked that yet
    assert [found[key].state for key in ((0, 0), (1, 0), (1, 1), (2, 0))] == [
        "answered", "waiting", "failed", "impossible",
    ]  # fmt: skip
    assert found[1, 0].contains is None


def test_one_answer_of_a_stands_beside_every_column_of_recipes():
    sweep = Sweep("each", "thirds", (Prompt("5 + 17?", "22"),))
    found = readings(sweep, [cell(A_ROW, 0, "one two"), cell(0, 2, "one two"), cell(0, 1, "three")])
    assert (found[0, 2].like_a, found[0, 1].like_a) == (1.0, 0.0)
    shown = table(sweep, ROWS, (Line("first"), Line("middle"), Line("last")), [cell(A_ROW, 0, "x"), cell(0, 2, "y")])
    assert shown[["row", "column"]].to_numpy().tolist() == [["A", ""], ["o_proj", "last"]]


def test_the_sentence_counts_what_was_reached():
    cells = [
        cell(A_ROW, 0, "21"), cell(A_ROW, 1, "2"), cell(B_ROW, 0, "22"), cell(B_ROW, 1, "2"),
        cell(0, 0, "22"), cell(0, 1, "2"), cell(1, 0, "20"), cell(1, 1, "2"), cell(2, 0, "1"), cell(2, 1, "1"),
    ]  # fmt: skip
    said = sentence(SUMS, ROWS, cells)
    assert said.startswith(
        "2 of 3 recipes reach the reference on at least 1 of 2 prompts; the most is 2 of 2, by o_proj; "
        "A alone on 1 of 2, B alone on 2 of 2."
    )
    assert "one answer per cell (greedy) and 2 prompts: too few" in said
    assert sentence(SUMS, ROWS, cells[:5]).startswith("1 of 1 recipe reaches the reference; A alone on 1 of 2")
    missing = [*cells[:-1], cell(2, 1), SweepCell(3, 0, "", None, "", problem="no")]
    assert sentence(SUMS, ROWS, missing).startswith("So far (1 cell without an answer): 2 of 3")


def test_the_sentence_without_references_is_about_length():
    sweep = Sweep("list", "seeds", (Prompt("x"),), recipes=("x", "y", "z"), seeds=2, sampling=Sampling(temperature=0.7))
    cells = [cell(A_ROW, 0, "a"), cell(0, 0, "a b c"), cell(0, 1, "a b"), cell(1, 0, "a")]
    said = sentence(sweep, ROWS, cells)
    assert said.startswith("Answers are longest with o_proj (2.5 tokens on average) and shortest with mlp (1); A 1.")
    assert "drawn at temperature 0.7) and 2 seeds" in said
    assert sentence(sweep, ROWS, cells[:1]) == ""
    assert sentence(sweep, ROWS, cells[3:]).startswith("All recipes answer with 1")


def test_nothing_reached_is_said():
    said = sentence(SUMS, ROWS, [cell(0, 0, "no"), cell(0, 1, "no")])
    assert said.startswith("None of 1 recipe reaches the reference on any of 2 prompts.")


def test_prompts_without_a_reference_are_not_counted():
    sweep = Sweep("list", "prompts", (Prompt("5 + 17?", "22"), Prompt("1 + 1?", "2"), Prompt("Hello")), recipes=("x",))
    said = sentence(sweep, ROWS, [cell(0, 0, "22"), cell(0, 1, "3"), cell(0, 2, "Hello")])
    assert said.startswith("1 of 1 recipe reaches the reference on at least 1 of 2 prompts with a reference; the most")


def test_every_cell_of_two_recipe_axes_is_a_recipe():
    sweep = Sweep("each", "thirds", (Prompt("5 + 17?", "22"),))
    said = sentence(sweep, ROWS, [cell(A_ROW, 0, "21"), cell(0, 0, "22"), cell(0, 1, "3"), cell(1, 0, "22")])
    assert said.startswith("2 of 3 recipes reach the reference; A alone does not.")
