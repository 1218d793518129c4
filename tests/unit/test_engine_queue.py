"""Whose turn it is: viewers in turn, loaded weights first but not for long, background work when nobody waits."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfn import engine_queue
from sfn.engine_queue import Answer, Queue, Task
from sfn.records import Question, Sampling


class Clock:
    """time.monotonic of the queue, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(engine_queue, "time", clock)
    return clock


class Line:
    """A queue with names for its tasks."""

    def __init__(self) -> None:
        self.queue, self.count = Queue(), 0

    def ask(self, owner: str, plan: str, *, pair: str = "pair", engine: str = "vllm", background: bool = False) -> Task:
        self.count += 1
        question = Question(
            pair, plan, plan, f"prompt {self.count}", "plain", "A", Sampling(), engine, "1", "cpu", "float32"
        )
        task = Task(question, None, None, self.count)
        task.wanted.append(Answer(task, owner, background=background))
        self.queue.add(task)
        return task

    def take(self) -> Task:
        task = self.queue.take()
        self.queue.loaded(task.weights)
        return task

    def all(self, seconds: float = 0.0, clock: Clock | None = None) -> list[Task]:
        taken = []
        while len(self.queue):
            taken.append(self.take())
            if clock is not None:
                clock.now += seconds
        return taken


@pytest.fixture
def line(clock) -> Line:
    return Line()


def plans(tasks) -> str:
    return "".join(task.question.plan_key for task in tasks)


def owners(tasks) -> str:
    return "".join(sorted(task.owners)[0] for task in tasks)


def test_loaded_weights_first(line):
    line.queue.loaded(("vllm", "pair", "q"))
    for plan in "pqpq":
        line.ask("x", plan)
    assert plans(line.all()) == "qqpp"


def test_patience_with_the_loaded_weights_ends(line, clock):
    line.queue.loaded(("vllm", "pair", "p"))
    line.ask("x", "p")
    waiting = line.ask("y", "q")
    for _ in range(9):
        line.ask("z", "p")
    taken = line.all(3.0, clock)
    assert taken.index(waiting) == 7  # 21 s after it was asked: the first turn later than 20 s
    assert plans(taken) == "ppppppp" + "q" + "ppp"


def test_twenty_questions_do_not_hold_up_a_single_one(line, clock):
    for n in range(20):
        line.ask("x", f"plan {n}")
    line.take()
    clock.now += 15
    single = line.ask("y", "another")
    assert line.queue.before(single) == 0
    assert line.take() is single


def test_twenty_questions_that_are_all_overdue_do_not_either(line, clock):
    for n in range(20):
        line.ask("x", f"plan {n}")
    clock.now += 300
    line.take()
    single = line.ask("y", "another")
    assert line.take() is single


def test_viewers_take_turns(line):
    for owner in "xxxyyyzz":
        line.ask(owner, "p")
    assert owners(line.all()) == "xyzxyzxy"


def test_a_shared_question_is_a_turn_of_each(line):
    shared = line.ask("x", "p")
    shared.wanted.append(Answer(shared, "y"))
    line.ask("x", "p"), line.ask("y", "p"), line.ask("z", "p")
    assert [task.number for task in line.all()] == [1, 4, 2, 3]


def test_another_engine_waits_until_this_one_has_nothing_to_do(line, clock):
    line.queue.loaded(("vllm", "pair", "p"))
    elsewhere = line.ask("x", "p", pair="another pair")
    line.ask("y", "q"), line.ask("y", "r")
    assert line.all()[-1] is elsewhere
    line.ask("x", "p", pair="another pair")
    for n in range(30):
        line.ask("y", f"{n}")
    assert line.take().question.pair_key == "another pair"  # it is loaded now
    other = line.ask("x", "p")
    for _ in range(5):
        line.ask("z", "p", pair="another pair")
    taken = [line.take() for _ in range(3)]
    assert {task.question.pair_key for task in taken} == {"another pair"}
    clock.now += 21
    assert line.take().question.pair_key == "pair"
    assert line.queue.before(other) < 3


def test_background_waits_for_everybody(line):
    back = [line.ask("x", "p", background=True) for _ in range(3)]
    front = [line.ask("y", "q") for _ in range(2)]
    assert [line.queue.before(task) for task in (*front, *back)] == [0, 1, 2, 3, 4]
    assert line.all() == [*front, *back]


def test_background_is_grouped_by_weights_whatever_it_takes(line, clock):
    for plan in "pqrpqrpqr":
        line.ask("x", plan, background=True)
    assert plans(line.all(60.0, clock)) == "pppqqqrrr"


def test_two_sweeps_share_the_engine(line, clock):
    for owner, plan in ("xp", "yq"):
        for _ in range(30):
            line.ask(owner, plan, background=True)
    taken = owners(line.all(5.0, clock))
    blocks = [len(block) for block in taken.replace("xy", "x y").replace("yx", "y x").split()]
    assert taken.startswith("x")
    assert all(block <= 6 for block in blocks[:-1])  # 20 s of patience are at most five answers of 5 s
    assert len(blocks) >= 10


def test_background_gets_a_turn_a_minute(line, clock):
    line.ask("x", "p", background=True), line.ask("x", "p", background=True)
    turns = []
    for second in range(0, 200, 4):
        line.ask("y", "q")
        task = line.take()
        if task.background:
            turns.append(second)
            assert task.protected_until == clock.now + engine_queue.PATIENCE_S
        clock.now += 4
    assert turns == [64, 128]


def test_one_that_was_set_back_keeps_its_place(line):
    first, second = line.ask("x", "p"), line.ask("x", "p")
    line.queue.take()
    line.queue.add(first)
    assert line.all() == [first, second]


def test_places_are_quick_to_tell(line):
    tasks = [line.ask("xyz"[n % 3], f"plan {n % 97}", background=n % 10 > 0) for n in range(600)]
    begun = time.perf_counter()
    line.queue.changed()
    assert sorted(line.queue.before(task) for task in tasks) == list(range(600))
    assert time.perf_counter() - begun < 0.5


asked = st.lists(
    st.tuples(st.sampled_from("wxyz"), st.sampled_from("pqr"), st.booleans(), st.sampled_from(("one", "two"))),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(asked, st.floats(0, 30))
def test_everybody_is_served_once_and_places_are_true(questions, seconds):
    """While nobody else asks and no patience ends, the place told is the place had."""
    line = Line()
    tasks = [line.ask(owner, plan, background=back, pair=pair) for owner, plan, back, pair in questions]
    places = {task: line.queue.before(task) for task in tasks}
    taken = line.all()
    assert sorted(task.number for task in taken) == [task.number for task in tasks]
    assert {task: place for place, task in enumerate(taken)} == places
    assert [task.background for task in taken] == sorted(task.background for task in taken)
