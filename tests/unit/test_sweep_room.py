"""Sweeps as they run: order, retries, cancelling, taking up again. A scripted engine speaks; all else is real."""

import threading
import time
from dataclasses import replace

import pytest

from sfn import checkpoints, pairs, recipes, store, sweeps
from sfn.engine_room import EngineRoom
from sfn.engines.base import Piece, Status
from sfn.errors import EngineError, SweepError
from sfn.jobs import Jobs
from sfn.records import Sampling
from sfn.sweep_room import SweepRoom, lines
from sfn.sweeps import A_ROW, B_ROW, Prompt, Sweep
from tests.builders import tiny_qwen2

SHORT = Sampling(max_tokens=2)


class ScriptedEngine:
    """Says its recipe word by word, as fast as `gate` lets it; dies on a recipe of `doomed` as often as that says."""

    opened: list = []
    doomed: dict[str, int] = {}

    def __init__(self, backend, pair, **how):
        self.pair, self.gate, self.became = pair, threading.Event(), []
        self.gate.set()
        self.status = Status(backend, "1", how["device"], how["dtype"], "idle", None, None)
        ScriptedEngine.opened.append(self)

    def be(self, recipe, *, cancel=None):
        plan = recipes.resolve(recipe, self.pair)
        self.became.append(recipes.format(recipe))
        self.status = replace(self.status, recipe=recipes.format(recipe), plan_key=plan.key)

    def generate(self, prompt, *, cancel, max_tokens, **_):
        recipe = self.status.recipe
        for n in range(1, max_tokens + 1):
            while not self.gate.wait(0.01) and not cancel.is_set():
                pass
            if cancel.is_set():
                yield Piece("", n - 1, 1, 0.1, "cancelled")
                return
            if ScriptedEngine.doomed.get(recipe, 0) > 0:
                ScriptedEngine.doomed[recipe] -= 1
                self.status = replace(self.status, state="dead", detail="killed", recipe=None, plan_key=None)
                raise EngineError("The engine died while it answered.")
            yield Piece(recipe or "all A", n, 1, 0.1 * n, "length" if n == max_tokens else None)

    def close(self):
        pass


class Desk:
    """What a sweep needs, opened on one database, as a start of the app would."""

    def __init__(self, path):
        self.store = store.Store(path)
        self.jobs = Jobs()
        self.engines = EngineRoom(self.store, "transformers", ScriptedEngine)
        self.sweeps = SweepRoom(self.store, self.jobs, self.engines)

    def close(self):
        self.jobs.close()
        self.engines.close()
        self.store.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    place = tmp_path_factory.mktemp("pair")
    a, b = (checkpoints.open(tiny_qwen2(place / name, seed)) for seed, name in enumerate("ab"))
    return pairs.compare(a, b)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sfn.duckdb"


@pytest.fixture
def desk(path):
    ScriptedEngine.opened, ScriptedEngine.doomed = [], {}
    opened = Desk(path)
    yield opened
    opened.close()


def sums(rows="each", prompts=("x", "y"), **fields):
    asked = tuple(Prompt(text) for text in prompts)
    return Sweep(rows, "prompts", asked, **{"names": ("attn",), "sampling": SHORT} | fields)


def finish(desk, number, state="done"):
    job = desk.sweeps.job(number)
    assert job.finished.wait(20), job.detail
    assert job.state == state, job.error
    return job


def by_place(desk, number):
    return {(cell.row, cell.column): cell for cell in desk.store.sweeps.cells(number)}


def became():
    """Recipes that engines were told to hold, without repetition."""
    told = [recipe for engine in ScriptedEngine.opened for recipe in engine.became]
    return [recipe for at, recipe in enumerate(told) if at == 0 or told[at - 1] != recipe]


def test_every_cell_is_answered_by_its_recipe_and_each_recipe_is_loaded_once(desk, pair):
    number = desk.sweeps.begin(pair, sums(), "me")
    job = finish(desk, number)
    assert job.title == "Sweep 1: each module of attn from B × 2 prompts"
    assert (job.done, job.total) == (12, 12)
    cells = by_place(desk, number)
    assert len(cells) == 12
    for cell in cells.values():
        assert cell.generation.text == (cell.recipe or "all A") * 2
        assert cell.generation.question.prompt == "xy"[cell.column]
    assert cells[A_ROW, 0].recipe == ""
    assert cells[B_ROW, 1].recipe == "all@all=B"
    assert len(became()) == len(set(became())) == 6
    assert desk.store.sweeps.get(number).answered == 12
    assert desk.sweeps.live(number) == {}


def test_it_starts_from_what_the_engine_holds(desk, pair):
    plan = recipes.resolve(recipes.parse("attn@1=B"), pair)
    before = desk.engines.ask(pair, plan, "before", "plain", SHORT, "me")
    assert before.finished.wait(10)
    number = desk.sweeps.begin(pair, sums("list", recipes=("mlp@all=B", "attn@all=B", "attn@1=B")), "me")
    finish(desk, number)
    plans = [recipes.resolve(recipes.parse(text), pair) for text in became()]
    assert became()[:2] == ["attn@1=B", "attn@all=B"] or became()[:2] == ["attn@1=B", ""]
    naive = [recipes.resolve(recipes.parse(t), pair) for t in ("", "all=B", "mlp@all=B", "attn@all=B", "attn@1=B")]
    assert sweeps.moved_bytes(plans, sweeps.sizes(pair)) <= sweeps.moved_bytes(naive, sweeps.sizes(pair), plan)


def test_outlook_counts_what_is_there_and_learns_its_pace(desk, pair):
    sweep = sums()
    grid = sweeps.expand(sweep, pair)
    before = desk.sweeps.outlook(pair, sweep, grid)
    assert (before.answers, before.known, before.missing, before.loads) == (12, 0, 12, 6)
    assert (before.answers_s, before.swaps_s) == (None, None)
    assert before.moved_bytes > 0
    finish(desk, desk.sweeps.begin(pair, sweep, "me"))
    after = desk.sweeps.outlook(pair, sweep, grid)
    assert (after.known, after.missing, after.loads, after.moved_bytes) == (12, 0, 0, 0)
    more = sums(prompts=("x", "y", "z"))
    plus = desk.sweeps.outlook(pair, more, sweeps.expand(more, pair))
    assert (plus.answers, plus.known) == (18, 12)
    assert plus.answers_s == pytest.approx(6 * 0.2)  # the scripted engine says that a token takes 0.1 s
    assert plus.longest_s == pytest.approx(6 * 0.2)
    assert plus.pace.swaps >= 5
    assert plus.swaps_s >= 0


def test_what_the_pair_cannot_do_is_a_cell_and_no_failure(desk, pair):
    number = desk.sweeps.begin(pair, sums("list", recipes=("o_proj@all=B", "o_prj@all=B", "mlp@7=B")), "me")
    finish(desk, number)
    cells = by_place(desk, number)
    assert cells[0, 0].generation is not None
    assert "o_prj" in cells[1, 0].problem
    assert "layers 0-1" in cells[2, 1].problem
    assert (cells[1, 0].question_key, cells[1, 0].error) == ("", "")


def test_a_dead_engine_is_tried_again_once_and_then_fails_one_cell(desk, pair):
    ScriptedEngine.doomed = {"q_proj@all=B": 1, "k_proj@all=B": 2}
    number = desk.sweeps.begin(pair, sums(prompts=("x",)), "me")
    finish(desk, number)
    cells = by_place(desk, number)
    assert cells[0, 0].generation is not None  # the second try
    assert cells[1, 0].generation is None
    assert "died" in cells[1, 0].error
    assert all(cells[row, 0].generation is not None for row in (A_ROW, B_ROW, 2, 3))
    assert desk.store.sweeps.progress(number) == (5, 1)

    finish(desk, desk.sweeps.resume(pair, number, "me") and number)
    assert by_place(desk, number)[1, 0].generation is not None
    assert desk.store.sweeps.progress(number) == (6, 0)


def test_an_engine_that_always_dies_stops_the_sweep_with_the_reason(desk, pair):
    ScriptedEngine.doomed = dict.fromkeys(("", "all@all=B", *(f"{m}_proj@all=B" for m in "qkvo")), 99)
    number = desk.sweeps.begin(pair, sums(), "me")
    job = finish(desk, number, "failed")
    assert "4 answers failed one after another" in job.error
    assert "died" in job.error
    assert desk.store.sweeps.progress(number) == (0, 4)


def stop_in_the_middle(desk, pair, number_of_answers=3):
    """A sweep that was cancelled after a few answers."""
    sweep = sums()
    began = threading.Event()
    original = desk.store.save_generation
    counted = []

    def counting(generation):
        counted.append(original(generation))
        if len(counted) == number_of_answers:
            ScriptedEngine.opened[-1].gate.clear()
            began.set()
        return counted[-1]

    desk.store.save_generation = counting
    number = desk.sweeps.begin(pair, sweep, "me")
    assert began.wait(20)
    return number


def test_cancel_keeps_what_was_finished_and_resume_asks_only_the_rest(desk, pair):
    number = stop_in_the_middle(desk, pair)
    assert 1 <= len(desk.sweeps.live(number)) <= 2
    assert desk.engines.queue_length <= 1
    desk.jobs.cancel(desk.sweeps.job(number).id, "me")
    finish(desk, number, "cancelled")
    ScriptedEngine.opened[-1].gate.set()
    assert desk.store.sweeps.progress(number) == (3, 0)
    before = {key: cell.generation for key, cell in by_place(desk, number).items() if cell.generation}

    job = desk.sweeps.resume(pair, number, "you")
    finish(desk, number)
    assert job.total == 9
    cells = by_place(desk, number)
    assert all(cell.generation is not None for cell in cells.values())
    assert {key: cells[key].generation for key in before} == before


def test_a_restart_of_the_app_takes_the_sweep_up_again(desk, pair, path):
    number = stop_in_the_middle(desk, pair, 5)
    desk.close()
    again = Desk(path)
    try:
        assert again.sweeps.job(number) is None
        saved = again.store.sweeps.get(number)
        assert (saved.answered, saved.cells) == (5, 12)
        rows, columns = lines(saved)
        assert [line.label for line in rows] == ["q_proj", "k_proj", "v_proj", "o_proj"]
        assert [line.label for line in columns] == ["x", "y"]
        assert again.sweeps.resume(pair, number, "me").total == 7
        finish(again, number)
        assert again.store.sweeps.progress(number) == (12, 0)
    finally:
        again.close()


def test_a_running_sweep_is_joined_and_a_third_one_refused(desk, pair):
    number = stop_in_the_middle(desk, pair)
    job = desk.sweeps.resume(pair, number, "you")
    assert job is desk.sweeps.job(number)
    assert job.owners == {"me", "you"}
    desk.sweeps.begin(pair, sums(prompts=("other",)), "me")
    with pytest.raises(SweepError, match="2 sweeps run already"):
        desk.sweeps.begin(pair, sums(prompts=("third",)), "me")
    assert len(desk.store.sweeps.of_pair(pair.key)) == 2


def test_another_engine_is_refused(desk, pair):
    number = desk.sweeps.begin(pair, sums(prompts=("x",)), "me")
    finish(desk, number)
    desk.store._write("UPDATE sweeps SET engine_version = '0.1' WHERE id = ?", [number])
    with pytest.raises(SweepError, match=r"begun with transformers 0\.1"):
        desk.sweeps.resume(pair, number, "me")


def test_another_pair_is_refused(desk, pair, tmp_path):
    number = desk.sweeps.begin(pair, sums(prompts=("x",)), "me")
    finish(desk, number)
    a, b = (checkpoints.open(tiny_qwen2(tmp_path / name, seed)) for seed, name in ((7, "a"), (8, "b")))
    with pytest.raises(SweepError, match="begun with another pair"):
        desk.sweeps.resume(pairs.compare(a, b), number, "me")


def test_a_bad_reference_starts_nothing(desk, pair):
    with pytest.raises(SweepError, match="no regular expression"):
        desk.sweeps.begin(pair, Sweep("presets", "prompts", (Prompt("x", "/(/"),)), "me")
    assert desk.store.sweeps.of_pair(pair.key) == []


def test_growing_answers_can_be_read(desk, pair):
    number = stop_in_the_middle(desk, pair)
    live = desk.sweeps.live(number)
    keys = {cell.question_key for cell in desk.store.sweeps.cells(number)}
    assert live.keys() <= keys
    deadline = time.monotonic() + 10
    while not any(answer.state == "running" for answer in desk.sweeps.live(number).values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
