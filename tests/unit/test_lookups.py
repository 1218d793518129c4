"""Small questions asked in the background: at once what is known, later what was found, refusals as answers."""

from __future__ import annotations

import threading
import time

import pytest

from sfn.errors import HubError
from sfn.lookups import Lookups


def test_asking_then_done_then_remembered() -> None:
    lookups, asked = Lookups(), []
    go = threading.Event()

    def work() -> int:
        go.wait(5)
        asked.append(1)
        return 7

    assert lookups.ask("key", work).state == "asking"
    assert lookups.busy()
    assert lookups.ask("key", work).state == "asking"
    go.set()
    assert lookups.wait("key", 5).value == 7
    assert lookups.ask("key", work).value == 7
    assert len(asked) == 1
    assert not lookups.busy()


def test_a_refusal_is_an_answer_and_a_defect_is_told_as_one(caplog: pytest.LogCaptureFixture) -> None:
    lookups = Lookups()

    def refuse() -> None:
        raise HubError("no such model", "missing")

    def break_down() -> None:
        raise KeyError("x")

    lookups.ask("refused", refuse)
    lookups.ask("broken", break_down)
    refused = lookups.wait("refused", 5)
    assert (refused.state, refused.error) == ("failed", "no such model")
    assert isinstance(refused.problem, HubError)
    assert "An unexpected error: KeyError" in lookups.wait("broken", 5).error
    assert "defect in a lookup" in caplog.text
    assert not lookups.busy()


def test_what_is_old_is_shown_until_the_new_is_there() -> None:
    lookups, numbers = Lookups(), iter(range(10))
    go = threading.Event()
    go.set()

    def work() -> int:
        go.wait(5)
        return next(numbers)

    lookups.ask("key", work)
    assert lookups.wait("key", 5).value == 0
    go.clear()
    lookups.forget(lambda key: key == "key")
    assert lookups.ask("key", work).value == 0
    assert lookups.busy()
    go.set()
    assert lookups.wait("key", 5).value == 1
    assert lookups.ask("key", work, fresh_s=0.0).value == 1


def test_the_newest_question_comes_first_and_the_oldest_are_dropped() -> None:
    lookups, order = Lookups(workers=1), []
    go = threading.Event()
    lookups.ask("first", lambda: go.wait(5))
    time.sleep(0.05)
    for number in range(70):
        lookups.ask(number, lambda number=number: order.append(number))
    go.set()
    lookups.wait(6, 5)
    deadline = time.monotonic() + 5
    while lookups.busy() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert order == list(range(69, 5, -1))


def test_it_stays_bounded() -> None:
    lookups = Lookups(most=4)
    for number in range(10):
        lookups.ask(number, lambda: None)
        lookups.wait(number, 5)
    assert len(lookups.recent(60)) == 4
