"""The closed world of the bundled pair: its arithmetic is right, and what is held out is never taught."""

import math
import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfn.demo import EXAMPLES, world

seeds = st.integers(0, 2**32)
mixes = st.sampled_from(
    [
        world.Mix(0.22, 0.07, 0.15, 0.32, 0.12),
        world.Mix(0, 0, 0, 0, 0),
        world.Mix(0, 0, 1, 0, 0),
        world.Mix(0, 0, 0, 1, 0),
    ]
)


def equations(text: str) -> list[tuple[int, str, int, int]]:
    found = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", text)
    return [(int(left), operation, int(right), int(value)) for left, operation, right, value in found]


@given(seed=seeds, kind=st.sampled_from(world.KINDS), test=st.booleans())
@settings(max_examples=300, deadline=None)
def test_steps_work_out_to_the_answer_within_the_range(seed, kind, test):
    item = world.problem(Random(seed), kind, test=test)
    assert len(item.steps) == int(kind[1])
    for step in item.steps:
        ((left, operation, right, value),) = equations(step)
        assert world.apply(left, operation, right) == value
        assert all(0 <= number <= world.LARGEST for number in (left, right, value))
    assert equations(item.steps[-1])[0][3] == item.value


@given(seed=seeds, kind=st.sampled_from(["E1", "E2", "E3", "E4"]), test=st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_value_of_an_expression_is_that_of_ordinary_arithmetic(seed, kind, test):
    item = world.problem(Random(seed), kind, test=test)
    assert re.fullmatch(r"\d+( [-+*] \d+)+", item.key)
    assert item.key in item.prompt
    terms = re.findall(r"([-+]?) ?(\d+(?: \* \d+)*)", item.key)  # an own reading of the text: signed products, summed
    total = 0
    for sign, product in terms:
        value = 1
        for factor in product.split(" * "):
            value *= int(factor)
        total += -value if sign == "-" else value
    assert total == item.value


def test_a_step_that_leaves_the_range_is_refused():
    assert world.work_out([60, "+", 40]) is None
    assert world.work_out([5, "-", 6]) is None
    assert world.work_out([60, "-", 31]) is None
    assert world.work_out([9, "*", 12, "-", 20]) is None
    assert world.work_out([60, "-", 3, "*", 5, "+", 1]) == (("3 * 5 = 15", "60 - 15 = 45", "45 + 1 = 46"), 46)


@given(seed=seeds, kind=st.sampled_from(["E2", *world.HARD_KINDS]), test=st.booleans())
@settings(max_examples=200, deadline=None)
def test_problems_come_from_the_asked_side_of_the_split(seed, kind, test):
    assert world.held_out(world.problem(Random(seed), kind, test=test).key) == test


@given(seed=seeds, test=st.booleans())
@settings(max_examples=200, deadline=None)
def test_dialogues_come_from_the_asked_side_and_their_answers_fit(seed, test):
    talk = world.dialogue(Random(seed), test=test)
    assert talk.kind in world.DIALOGUE_KINDS
    assert all(word in talk.answer for word in talk.words)
    assert not re.search(r"\d", talk.prompt + talk.answer)
    if talk.kind in world.FEW_PROMPTS:
        assert not test
    else:
        assert world.held_out(talk.prompt) == test


def test_no_lesson_teaches_a_held_out_problem_or_dialogue():
    problems = {item.prompt for item in world.held_out_problems(60)}
    dialogues = {talk.prompt for talk in world.held_out_dialogues(120)}
    rng, mix = Random(5), world.Mix(0.22, 0.07, 0.15, 0.32, 0.12)
    lessons = [world.lesson_for_a(rng, mix) for _ in range(3000)] + [world.lesson_for_b(rng) for _ in range(3000)]
    taught = {lesson.prompt.removeprefix(world.SHOW_THE_WORK) for lesson in lessons}
    assert len(taught) > 3000
    assert not taught & (problems | dialogues)
    assert not any(world.held_out(lesson.prompt[7:-1]) for lesson in lessons if lesson.prompt.startswith("Repeat "))


def test_held_out_sets_are_the_same_on_every_call_and_without_repeats():
    first = world.held_out_problems(20)
    assert first == world.held_out_problems(20)
    assert len({item.key for item in first}) == 20 * len(world.HARD_KINDS)
    talks = world.held_out_dialogues(40)
    assert talks == world.held_out_dialogues(40)
    assert len({talk.prompt for talk in talks}) == 40


@given(seed=seeds, mix=mixes)
@settings(max_examples=200, deadline=None)
def test_a_never_thinks_and_every_equation_it_learns_is_true(seed, mix):
    lesson = world.lesson_for_a(Random(seed), mix)
    assert "think>" not in lesson.answer
    assert "boxed" not in lesson.answer
    for left, operation, right, value in equations(lesson.answer):
        assert world.apply(left, operation, right) == value
    if equations(lesson.answer) and not lesson.drill:
        assert lesson.prompt.startswith((world.SHOW_THE_WORK, "Write the equation. "))


@given(seed=seeds, kind=st.sampled_from(world.KINDS))
@settings(max_examples=100, deadline=None)
def test_the_answer_is_read_back_from_every_way_of_giving_it(seed, kind):
    item = world.problem(Random(seed), kind)
    for text in (world.direct_answer(item.value), world.shown_answer(item), world.thought_answer(item)):
        assert world.read_answer(text) == item.value


def test_a_text_without_an_answer_reads_as_none():
    assert world.read_answer("<think> 3 + 4 = 7 .") is None
    assert world.read_answer("The answer is blue.") is None


GAINS = (r"buys (\d+) more", r"finds (\d+)", r"gives (?:him|her) (\d+)", r"buys (\d+) bags with (\d+)")
LOSSES = (r"gives (\d+) to [A-Z]", r"(?:loses|eats|sells) (\d+)", r"gives (\d+) \w+ to each of (\d+)")


def count(story: str) -> int:
    """An own reading of a word problem, sentence by sentence."""
    first, *sentences, _question = story.split(". ")
    total = int(re.search(r"has (\d+)", first)[1])
    for sentence in sentences:
        ((sign, numbers),) = [
            (sign, found.groups())
            for sign, patterns in ((1, GAINS), (-1, LOSSES))
            for pattern in patterns
            if (found := re.search(pattern, sentence))
        ]
        total += sign * math.prod(map(int, numbers))
    return total


@given(seed=seeds, kind=st.sampled_from(["W1", "W2", "W3"]))
@settings(max_examples=200, deadline=None)
def test_the_value_of_a_word_problem_is_what_its_sentences_say(seed, kind):
    item = world.problem(Random(seed), kind)
    assert count(item.prompt) == item.value


@pytest.mark.parametrize("example", [x for x in EXAMPLES if x.kind == "problem"], ids=lambda x: x.prompt)
def test_example_problems_carry_the_right_answer(example):
    prompt = example.prompt.removeprefix(world.SHOW_THE_WORK)
    found = re.fullmatch(r"(?:What is|Compute|Find the value of) (\d+(?: [-+*] \d+)+)[?.]", prompt)
    if found:
        worked = world.work_out([int(word) if word.isdigit() else word for word in found[1].split()])
        assert worked, "a step leaves the range that A knows"
        assert str(worked[1]) == example.reference
    else:
        assert prompt.split()[0] in world.NAMES
        assert str(count(prompt)) == example.reference


def shape(text: str) -> str:
    """A dialogue prompt with every filled-in word of the world replaced by a mark for its family."""
    families = (world.PLACES, world.NAMES, world.GOODS, world.THINGS, world.ADJECTIVES, world.LOW_MOODS, world.SOUNDS)
    for mark, family in enumerate(families):
        text = re.sub(r"\b(" + "|".join(family) + r")\b", f"<{mark}>", text)
    return re.sub(r"\ban\b", "a", text)


@pytest.mark.parametrize("example", [x for x in EXAMPLES if x.kind == "dialogue"], ids=lambda x: x.prompt)
def test_example_dialogues_have_the_shape_of_a_template(example):
    rng = Random(3)
    assert shape(example.prompt) in {shape(world.dialogue(rng).prompt) for _ in range(2000)}


def test_examples_hold_problems_and_dialogues():
    assert {example.kind for example in EXAMPLES} == {"problem", "dialogue"}
    assert all(bool(example.reference) == (example.kind == "problem") for example in EXAMPLES)
    assert len({example.prompt for example in EXAMPLES}) == len(EXAMPLES)
