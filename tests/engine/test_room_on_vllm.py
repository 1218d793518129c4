"""Several viewers, one real vLLM: every answer is its recipe's, none is lost, and a killed engine comes back."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sfn import recipes
from sfn.engine_room import EngineRoom
from sfn.engines import text, vllm_guard
from sfn.records import Sampling
from sfn.store import Store
from tests.engine.cases import MAX_TOKENS, QUESTIONS, RECIPES
from tests.engine.test_vllm_engine import command_of, session_of

SECONDS = float(os.environ.get("SFN_HAMMER_S", "12"))
LONG = Sampling(max_tokens=400, temperature=2.0, seed=3)
BABBLE = "5 + 17 = "  # outside what these models know: they go on for long


class Lent:
    """The session's engine, lent to a room that may put it away."""

    def __init__(self, engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    def close(self) -> None:
        """It is not the room's to close."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "sfn.duckdb") as store:
        yield store


@pytest.fixture
def room(engine, store) -> Iterator[EngineRoom]:
    room = EngineRoom(store, "vllm", lambda *_, **__: Lent(engine))
    yield room
    room.close()


@pytest.fixture
def ask(room, pair):
    plans = {recipe: recipes.resolve(recipes.parse(recipe), pair) for recipe in RECIPES.values()}

    def ask(recipe: str, prompt: str, sampling: Sampling, owner: str = "me", **how):
        return room.ask(pair, plans[recipe], prompt, "plain", sampling, owner, **how)

    return ask


class Viewer(threading.Thread):
    """Asks whatever comes to mind until time is up, leaves one in six, waits for some."""

    def __init__(self, room, ask, owner: str, seed: int, until: float) -> None:
        super().__init__(name=owner)
        self.room, self.ask, self.owner, self.until = room, ask, owner, until
        self.draw = random.Random(seed)
        self.asked, self.left = [], []

    def run(self) -> None:
        draw = self.draw
        while time.monotonic() < self.until:
            warm = draw.random() < 0.4
            sampling = Sampling(MAX_TOKENS, temperature=1.2, seed=draw.randrange(3)) if warm else Sampling(MAX_TOKENS)
            answer = self.ask(
                draw.choice(list(RECIPES.values())), draw.choice(QUESTIONS), sampling, self.owner,
                fresh=draw.random() < 0.8, background=draw.random() < 0.2,
            )  # fmt: skip
            if draw.random() < 1 / 6:
                threading.Event().wait(draw.random() * 0.1)
                self.room.cancel(answer, self.owner)
                self.left.append(answer)
            else:
                self.asked.append(answer)
            if draw.random() < 0.3 or len(self.room.asked_by(self.owner)) > 12:
                self.asked[-1].finished.wait(20)


def spoken(speech: text.Speech, prompt: str, ids: list[int]) -> str:
    """The text of an answer's tokens, as an engine gives it."""
    answer = text.Answer(speech, speech.prompt_ids(prompt, "plain"), ())
    said, _, ended = answer.push_all(ids)
    return said if ended else said + answer.flush()


def test_viewers_hammer_recipes_and_every_answer_is_its_recipes(room, ask, engine, store, pair, fresh):
    viewers = [Viewer(room, ask, f"viewer {n}", n, time.monotonic() + SECONDS) for n in range(3)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join(SECONDS + 60)
    asked = [answer for viewer in viewers for answer in viewer.asked]
    for answer in asked:
        assert answer.finished.wait(120), f"{answer.question.recipe!r} is still {answer.state}"
    assert Counter(answer.state for answer in asked).keys() <= {"done", "stored"}, Counter(a.error for a in asked)
    assert room.queue_length == 0

    kept = [store.generation(int(id)) for id in store.generations()["id"]]
    finished = [generation for generation in kept if generation.finish != "cancelled"]
    assert {answer.question.key for answer in asked} <= {generation.question.key for generation in finished}
    different = {generation.question.key for generation in finished}
    print(f"{len(asked)} asked, {len(finished)} computed, {len(different)} different questions")
    assert len(finished) > 40
    assert len({generation.question.plan_key for generation in finished}) >= 6

    speech = text.load(pair.a.folder, "A")
    expected = {
        (recipes.format(recipes.parse(recipe)), prompt): spoken(speech, prompt, said.ids)
        for name, recipe in RECIPES.items()
        for prompt, said in zip(QUESTIONS, fresh[name], strict=True)
    }
    again = {}
    for generation in finished:
        question = generation.question
        if question.sampling.temperature == 0:
            assert generation.text == expected[question.recipe, question.prompt], (question.recipe, question.prompt)
            continue
        if question.key not in again:
            engine.be(recipes.parse(question.recipe))
            pieces = engine.generate(question.prompt, mode=question.mode, **asdict(question.sampling))
            again[question.key] = "".join(piece.text for piece in pieces)
        assert generation.text == again[question.key], (question.recipe, question.prompt, question.sampling)
    assert len(again) > 10


def core() -> set[int]:
    """Pids of vLLM's engine core."""
    (record,) = Path(os.environ["SFN_CACHE"], "run").glob("*.json")
    return {pid for pid in vllm_guard.session_members(*session_of(record)) if "EngineCore" in command_of(pid)}


def send(number: int, pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, number)


def caught(ask, pids: set[int]):
    """An answer in mid-stream whose engine core was stopped, so that it cannot end by itself."""
    for seed in range(30):
        answer = ask("o_proj@all=B", BABBLE, replace(LONG, seed=seed))
        while answer.n_tokens < 3 and answer.active:
            time.sleep(0.005)
        send(signal.SIGSTOP, pids)
        if not answer.finished.wait(0.5):
            return answer
        send(signal.SIGCONT, pids)
    raise AssertionError("no answer was long enough to be caught")


def test_a_killed_engine_fails_one_answer_and_the_queue_goes_on(room, ask, engine):
    expected = ask("all=B", QUESTIONS[0], Sampling(MAX_TOKENS))
    assert expected.finished.wait(240), expected.state
    pids = core()
    assert pids
    running = caught(ask, pids)
    waiting = [ask("all=B", QUESTIONS[0], Sampling(MAX_TOKENS), fresh=True, owner="you"), ask("", QUESTIONS[2], LONG)]
    assert [room.position(answer) for answer in (running, *waiting)] == [0, 1, 2]
    said = running.text
    assert said
    send(signal.SIGKILL, pids)
    assert running.finished.wait(30)
    assert (running.state, running.text) == ("failed", said)
    assert "died" in running.error
    again = ask("o_proj@all=B", BABBLE, running.question.sampling)
    assert again.active
    for answer in (*waiting, again):
        assert answer.finished.wait(240), answer.state
        assert (answer.state, answer.error) == ("done", "")
    assert waiting[0].text == expected.text
    assert again.text.startswith(said)
    assert core().isdisjoint(pids)
    assert room.status.state == "idle"
