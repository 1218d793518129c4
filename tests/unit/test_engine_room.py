"""The engine's queue: order, owners, the store, deaths. A scripted engine speaks; pair, plans and store are real."""

import threading
from dataclasses import replace

import pytest

from sfn import checkpoints, pairs, recipes, store
from sfn.engine_room import EngineRoom
from sfn.engines.base import Piece, Status
from sfn.errors import Cancelled, EngineError, JobError
from sfn.records import Sampling
from tests.builders import tiny_qwen2


class ScriptedEngine:
    """Says its recipe word by word, as fast as `gate` lets it; dies on the prompt "die"."""

    opened: list = []
    loading = None  # what happens while weights are put in place

    def __init__(self, backend, pair, **how):
        self.pair, self.gate, self.became = pair, threading.Event(), []
        self.gate.set()
        self.steps = threading.Semaphore(0)
        self.slow = self.breaks_off = False
        self.status = Status(backend, "1", how["device"], how["dtype"], "idle", None, None)
        self.closed = False
        ScriptedEngine.opened.append(self)

    def be(self, recipe, *, cancel=None):
        if self.loading is not None:
            self.loading(cancel)
        plan = recipes.resolve(recipe, self.pair)
        self.became.append(recipes.format(recipe))
        self.status = replace(self.status, recipe=recipes.format(recipe), plan_key=plan.key)

    def generate(self, prompt, *, cancel, max_tokens, **_):
        words = [self.status.recipe or "all A"] * max_tokens
        for n, word in enumerate(words, start=1):
            while not self.gate.is_set() and not self.steps.acquire(timeout=0.01) and not cancel.is_set():
                pass
            while self.slow and prompt.startswith("cell") and not cancel.wait(0.01):
                pass
            if cancel.is_set() or self.breaks_off:
                yield Piece("", n - 1, 1, 0.1, "cancelled")
                return
            if prompt == "die":
                self.status = replace(self.status, state="dead", detail="killed", recipe=None, plan_key=None)
                raise EngineError("The engine died while it answered.")
            yield Piece(word, n, 1, 0.1 * n, "length" if n == max_tokens else None)

    def step(self, count=0):
        """Close the gate and let `count` tokens through."""
        self.gate.clear()
        for _ in range(count):
            self.steps.release()

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
    shared = ask(prompt="2", owner="you")
    assert (room.position(shared), room.position(second), room.position(first)) == (1, 1, 2)  # your turn comes first
    assert room.queue_length == 2
    room.cancel(second, "me")
    assert (second.state, second.finish, room.position(second)) == ("cancelled", "cancelled", 0)
    assert shared.active
    assert room.queue_length == 2
    room.cancel(shared, "you")
    assert shared.state == "cancelled"
    assert room.queue_length == 1
    engine.gate.set()
    assert wait(first).state == "done"


def test_a_question_of_two_viewers_is_answered_once(room, ask, pair):
    _, engine = hold(ask)
    answers = [ask(prompt="same", owner=owner) for owner in ("me", "you", "they")]
    engine.gate.set()
    assert {wait(answer).text for answer in answers} == {"all A" * 2}
    assert room._store.count_generations("same") == 1


def test_one_viewers_stop_frees_their_view_and_not_the_others(room, ask):
    held, engine = hold(ask)
    others = ask(prompt="held", owner="you")
    room.cancel(held, "me")
    assert (held.state, held.text, held.finished.is_set()) == ("cancelled", "", True)
    assert others.state == "running"
    engine.gate.set()
    assert wait(others).text == "all A" * 2
    assert (held.state, held.text) == ("cancelled", "")


def test_who_stops_in_mid_answer_keeps_what_was_said_so_far(room, ask):
    def tokens(answer, count):
        while answer.n_tokens < count:
            threading.Event().wait(0.002)

    wait(ask(prompt="warm up"))
    engine = ScriptedEngine.opened[-1]
    engine.step()
    mine, yours = ask(prompt="long", tokens=5), ask(prompt="long", tokens=5, owner="you")
    engine.step(2)
    tokens(mine, 2)
    room.cancel(mine, "me")
    assert (mine.text, mine.n_tokens, mine.state) == ("all A" * 2, 2, "cancelled")
    again = ask(prompt="long", tokens=5)  # joins the one that goes on for the other viewer
    assert again.text == "all A" * 2
    assert again.active
    engine.gate.set()
    assert wait(yours).text == wait(again).text == "all A" * 5
    assert mine.text == "all A" * 2


def test_only_who_asked_can_stop(room, ask):
    held, _ = hold(ask)
    with pytest.raises(JobError, match="another viewer"):
        room.cancel(held, "stranger")
    assert held.active
    seen = room.in_flight(held.question.key)  # a viewer whose page happens to show the same question
    room.cancel(seen, "stranger")
    assert (seen.state, held.state) == ("cancelled", "running")
    found = room.in_flight(held.question.key)
    assert found.owners == {"me"}
    room.cancel(found, "me")  # who looks at their own question anew can stop it, too
    assert wait(held).state == "cancelled"


def test_cancel_in_mid_answer_is_kept_but_not_served(room, ask, pair):
    held, engine = hold(ask)
    room.cancel(held, "me")
    assert wait(held).state == "cancelled"
    engine.gate.set()
    assert wait(ask(prompt="held")).state == "done"


def test_a_change_of_weights_is_cancelled_with_its_question(room, ask):
    loading = threading.Event()

    def load(_, cancel):
        loading.set()
        assert cancel.wait(10)
        raise Cancelled("The change of weights was cancelled.")

    _, engine = hold(ask)
    ScriptedEngine.loading = load
    engine.gate.set()
    mine = ask("o_proj@all=B", prompt="large")
    assert loading.wait(10)
    ScriptedEngine.loading = None
    assert mine.state == "loading"
    room.cancel(mine, "me")
    assert mine.state == "cancelled"
    assert wait(ask(prompt="go on")).state == "done"


def test_the_start_of_an_engine_that_others_wait_for_is_not_cancelled(room, ask):
    started, go_on, cancels = threading.Event(), threading.Event(), []

    def start(engine, cancel):
        engine.status = replace(engine.status, state="starting")
        started.set()
        assert go_on.wait(10)
        cancels.append(cancel.is_set())
        engine.status = replace(engine.status, state="idle")

    ScriptedEngine.loading = start
    try:
        mine = ask(prompt="mine", background=True)
        assert started.wait(10)
        yours = ask(prompt="yours", owner="you")  # goes before what is in the background, but starts nothing anew
        room.cancel(mine, "me")
        assert mine.state == "cancelled"
        go_on.set()
        assert wait(yours).state == "done"
        assert cancels[0] is False
        assert len(ScriptedEngine.opened) == 1
    finally:
        ScriptedEngine.loading = None


def test_what_a_viewer_has_asked(room, ask):
    held, engine = hold(ask)
    mine, _, background = ask(prompt="1"), ask(prompt="2", owner="you"), ask(prompt="3", background=True)
    assert room.asked_by("me") == [held, mine, background]
    assert [room.position(answer) for answer in room.asked_by("me")] == [0, 2, 3]
    assert (room.queue_length, room.background_length) == (3, 1)
    assert len(room.asked_by("you")) == 1
    room.cancel(mine, "me")
    assert room.asked_by("me") == [held, background]
    engine.gate.set()
    wait(background)
    assert room.asked_by("me") == []


def test_background_work_gives_way_and_comes_back(room, ask):
    wait(ask(prompt="warm up"))
    engine = ScriptedEngine.opened[-1]
    engine.step()
    sweep = [ask(prompt=f"cell {n}", tokens=3, background=True) for n in range(3)]
    engine.step(1)
    while not sweep[0].n_tokens:
        threading.Event().wait(0.002)
    engine.gate.set()
    engine.slow = True
    urgent = ask("o_proj@all=B", prompt="on stage", owner="you")
    assert wait(urgent).state == "done"
    assert [cell.active for cell in sweep] == [True] * 3
    engine.slow = False
    assert [wait(cell).text for cell in sweep] == ["all A" * 3] * 3
    assert room._store.count_generations("cell", finish="cancelled") == 0


def test_background_work_that_somebody_waits_for_is_background_no_more(room, ask):
    _, engine = hold(ask)
    cells = [ask(prompt=f"cell {n}", background=True) for n in range(3)]
    waiting = ask(prompt="me too", owner="you")
    assert [room.position(answer) for answer in (*cells, waiting)] == [2, 3, 4, 1]
    shown = ask(prompt="cell 2", owner="you")
    assert [room.position(answer) for answer in (*cells, waiting)] == [3, 4, 1, 2]
    room.cancel(shown, "you")
    assert [room.position(answer) for answer in (*cells, waiting)] == [2, 3, 4, 1]
    engine.gate.set()
    assert {wait(cell).state for cell in cells} == {"done"}


def test_an_answer_that_the_engine_breaks_off_is_failed_not_asked_for_ever(room, ask):
    wait(ask(prompt="warm up"))
    ScriptedEngine.opened[-1].breaks_off = True
    broken = wait(ask(prompt="x"))
    assert broken.state == "failed"
    assert "broke this answer off" in broken.error


def test_a_dead_engine_fails_one_answer_and_is_replaced(room, ask):
    failed = wait(ask(prompt="die"))
    assert failed.state == "failed"
    assert "died" in failed.error
    assert wait(ask(prompt="go on")).state == "done"
    assert ask(prompt="die").state == "queued"  # what failed can be asked again at once
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
