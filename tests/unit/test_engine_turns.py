"""Several SfN at one vLLM server take turns: one at a time, first come first served, and nobody holds it for ever."""

from __future__ import annotations

from sfn.engines.turns import Turns


def test_one_at_a_time():
    turns = Turns()
    assert turns.take("one", 15, 0)
    assert not turns.take("two", 15, 1)
    assert turns.take("one", 15, 2)
    turns.leave("two")
    turns.leave("one")
    assert turns.last == "one"
    assert turns.take("two", 15, 3)
    assert turns.last == "two"


def test_who_waits_comes_before_who_had_it():
    turns = Turns()
    assert turns.take("one", 15, 0)
    assert not turns.take("two", 15, 1)
    assert not turns.take("three", 15, 1)
    turns.leave("one")
    assert not turns.take("one", 15, 2)
    assert not turns.take("three", 15, 2)
    assert turns.take("two", 15, 2)
    turns.leave("two")
    assert turns.take("three", 15, 3)


def test_a_turn_ends_without_a_sign_of_life():
    turns = Turns()
    assert turns.take("one", 15, 0)
    assert turns.take("one", 15, 14)
    assert not turns.take("two", 15, 28)
    assert turns.take("two", 15, 29)
    assert not turns.take("one", 15, 30)


def test_who_waits_and_goes_away_holds_up_nobody():
    turns = Turns()
    assert turns.take("one", 15, 0)
    assert not turns.take("two", 15, 1)
    turns.leave("one")
    assert not turns.take("one", 15, 3)
    assert turns.take("one", 15, 4.5)
