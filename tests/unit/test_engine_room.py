"""The engine's queue: order, owners, the store, deaths. A scripted engine speaks; pair, plans and store are real."""

import threading
from dataclasses import replace

import pytest

from sfn import checkpoints, pairs, recipes, store
from sfn.engine_room import EngineRoom
from sfn.engines.base import Piece, Status
from sfn.errors import EngineError, JobError
from sfn.records import Sampling
from tests.builders import tiny_qwen2


class ScriptedEngine:
    """Says its recipe word by word, as fast as `gate` lets it; dies on the prompt "die"."""

    opened: list = []

    def __init__(self, backend, pair, **how):
        self.pair, self.gate, self.became = pair, threading.Event(), []
        self.gate.set()
        self.status = Status(backend, "1", how["device"], how["dtype"], "idle", None, None)
        self.closed = False
        ScriptedEngine.opened.append(self)

    def be(self, recipe):
        plan = recipes.resolve(recipe, self.pair)
        self.became.append(recipes.format(recipe))
        self.status = replace(self.status, recipe=recipes.format(recipe), plan_key=plan.key)

    def generate(self, prompt, *, cancel, max_tokens, **_):
        words = [self.status.recipe or "all A"] * max_tokens
        for n, word in enumerate(words, start=1):
            while not self.gate.wait(0.01) and not cancel.is_set():
                pass
            if cancel.is_set():
                yield Piece("", n - 1, 1, 0.1, "cancelled")
                return
            if prompt == "die":
                self.status = replace(self.status, state="dead", detail="killed", recipe=None, plan_key=None)
                raise EngineError("The engine died while it answered.")
            yield Piece(word, n, 1, 0.1 * n, "length" if n == max_tokens else None)

    def close(self):
        self.closed = True


@pytest.fixture
def pair(tmp_path):
    a, b = (checkpoints.open(tiny_qwen2(tmp_path / name, seed)) for seed, name in enumerate("ab"))
    return pairs.compare(a, b)


@pytest.fixture
def room(tmp_path):
    ScriptedEngine.opened = []
    with store.Store(tmp_path / "sfn.duckdb") as results:
        room = EngineRoom(results, "transformers", ScriptedEngine)
        yield room
        room.close()


@pytest.fixture
def ask(room, pair):
    def ask(recipe="", prompt="hello", owner="me", tokens=2, **kwargs):
        plan = recipes.resolve(recipes.parse(recipe), pair)
        return room.ask(pair, plan, prompt, "plain", Sampling(max_tokens=tokens), owner, **kwargs)

    return ask


def wait(answer):
    assert answer.finished.wait(10), answer.state
    return answer


def hold(ask):
    """An answer that is being generated and does not go on before its engine's gate opens."""
    wait(ask("", prompt="warm up"))
    engine = ScriptedEngine.opened[-1]
    engine.gate.clear()
    answer = ask("", prompt="held")
    while answer.state != "running":
        threading.Event().wait(0.005)
    return answer, engine


def test_an_answer_streams_and_is_kept(room, ask, pair):
    answer = wait(ask("o_proj@all=B"))
    assert (answer.state, answer.text, answer.n_tokens, answer.finish) == ("done", "o_proj@all=B" * 2, 2, "length")
    assert answer.generation.question.recipe == "o_proj@all=B"
    assert answer.tokens_per_s == pytest.approx(10)
    again = ask("o_proj @ 0-1 = b")
    assert (again.state, again.text) == ("stored", answer.text)
    assert ScriptedEngine.opened[0].became == ["o_proj@all=B"]


def test_recipes_that_were_asked_are_kept(room, ask, pair):
    wait(ask("o_proj @ 0-1 = b"))
    wait(ask("o_proj@0-1=B", prompt="again"))
    assert [saved.text for saved in room._store.recipes(pair.key)] == ["o_proj@0-1=B"]


def test_fresh_computes_again(ask):
    wait(ask())
    assert wait(ask(fresh=True)).state == "done"


def test_loaded_weights_are_served_first(ask):
    _, engine = hold(ask)
    other, same = ask("o_proj@all=B", prompt="other"), ask("", prompt="same")
    engine.gate.set()
    wait(other), wait(same)
    assert engine.became == ["", "", "", "o_proj@all=B"]


def test_position_and_shared_questions(room, ask):
    held, engine = hold(ask)
    first, second = ask(prompt="1"), ask(prompt="2")
    assert (room.position(held), room.position(first), room.position(second)) == (0, 1, 2)
    assert ask(prompt="2", owner="you") is second
    assert room.queue_length == 2
    room.cancel(second, "me")
    assert second.active
    room.cancel(second, "you")
    assert second.state == "cancelled"
    assert room.queue_length == 1
    engine.gate.set()
    assert wait(first).state == "done"


def test_cancel_in_mid_answer_is_kept_but_not_served(room, ask, pair):
    held, engine = hold(ask)
    room.cancel(held, "stranger")
    assert held.active
    room.cancel(held, "me")
    assert wait(held).state == "cancelled"
    engine.gate.set()
    assert wait(ask(prompt="held")).state == "done"


def test_a_dead_engine_fails_one_answer_and_is_replaced(room, ask):
    failed = wait(ask(prompt="die"))
    assert failed.state == "failed"
    assert "died" in failed.error
    assert wait(ask(prompt="go on")).state == "done"
    assert len(ScriptedEngine.opened) == 2
    assert ScriptedEngine.opened[0].closed


def test_an_engine_that_cannot_open_says_so(tmp_path, pair):
    def refuse(*_, **__):
        raise EngineError("No engine today.")

    with store.Store(tmp_path / "sfn.duckdb") as results:
        room = EngineRoom(results, "transformers", refuse)
        plan = recipes.resolve(recipes.Recipe(), pair)
        answer = wait(room.ask(pair, plan, "x", "plain", Sampling(), "me"))
        assert (answer.state, answer.error) == ("failed", "No engine today.")
        assert (room.status.state, room.status.detail) == ("dead", "No engine today.")
        room.close()


def test_unknown_backend(room):
    with pytest.raises(JobError, match="transformers, vllm"):
        room.choose("llama.cpp")


def test_close_ends_what_waits_and_closes_the_engine(room, ask):
    held, engine = hold(ask)
    waiting = ask(prompt="later")
    room.close()
    assert (waiting.state, wait(held).state, engine.closed) == ("cancelled", "cancelled", True)
    with pytest.raises(JobError, match="shutting down"):
        ask(prompt="too late")
