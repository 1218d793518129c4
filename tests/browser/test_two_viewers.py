"""Two viewers and one engine: answers stay with their recipes, none is lost, and a stop is a viewer's own."""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import TimeoutError, expect

from sfn import checkpoints, demo, engines, pairs, recipes
from sfn.engine_room import EngineRoom
from sfn.records import Generation, Sampling
from sfn.store import Store
from tests.browser.conftest import START_S, run_app
from tests.browser.merge_page import ENDED, SIDES, MergePage

pytestmark = pytest.mark.browser

SECONDS = float(os.environ.get("SFN_HAMMER_S", "20"))
RECIPES = ("o_proj@all=B", "mlp@0-2=B", "qkv@all=B:0.5; norms=B", "all=B; o_proj=A", "head=B", "down_proj@5=zero")
PROMPTS = ("What is 5 + 17?", "Lucy found a kite", "5 + 17 = ", "Tell me a story.", "What is 9 + 8 + 7?")
SETTINGS = {"max_tokens": 96, "temperature": 1.3, "show": "plain"}
LONG = {"prompt": "5 + 17 = ", "max_tokens": 480, "temperature": 2, "show": "plain"}


class Viewer:
    """One person in a hurry: types a recipe and a prompt, runs, and then reads on, stops, or asks something else.

    `keys`: recipe, prompt -> key of the question that this viewer asks so; made by the test, not taken from the page.
    """

    def __init__(self, tab: MergePage, seed: int, keys: Callable[[str, str], str]) -> None:
        self.tab, self.draw, self.keys = tab, random.Random(seed), keys
        self.runs = 0
        self.asking: dict[str, str] | None = None  # column -> key of the question
        self.read: list[dict[str, tuple[str, str]]] = []  # column -> (key, what stood there as its answer)

    def step(self) -> None:
        """Do the next thing if it is time for it."""
        if self.asking is None:
            self.ask()
        elif not self.take_down() and self.draw.random() < 0.04:
            self.tab.press(self.tab.stop)
            self.asking = None

    def take_down(self) -> bool:
        """Note what stands in the columns if each has answered what was asked, to the end; whether they have."""
        now = {side: self.tab.column(side) for side in SIDES}
        for side, column in now.items():
            if column.answered != self.asking[side] or column.said is None or not ENDED.search(column.foot):
                return False
            assert not column.label, (column, self.asking)
        self.read.append({side: (self.asking[side], column.said) for side, column in now.items()})
        self.asking = None
        return True

    def ask(self) -> None:
        """Ask something else, without waiting for what was asked before."""
        recipe, prompt = self.draw.choice(RECIPES), self.draw.choice(PROMPTS)
        wanted = recipes.format(recipes.parse(recipe))
        self.tab.page.locator(".st-key-prompt textarea").fill(prompt)
        self.tab.write_recipe(recipe)
        self.tab.page.wait_for_url(lambda url: address(url) == {"prompt": prompt, "recipe": wanted})
        self.asking = {
            side: self.keys(recipe, prompt) for side, recipe in zip(SIDES, ("", wanted, "all=B"), strict=True)
        }
        for side, key in self.asking.items():  # the address is there before the columns follow
            expect(self.tab.head(side)).to_have_attribute("data-asked", key)
        self.runs += self.tab.press(self.tab.run)


def address(url: str) -> dict[str, str]:
    """Prompt and recipe of a permalink, the recipe in its canonical form."""
    query = parse_qs(urlsplit(url).query, keep_blank_values=True)
    recipe = recipes.format(recipes.parse(query.get("recipe", [""])[0]))
    return {"prompt": query.get("prompt", [""])[0], "recipe": recipe}


def said_by(engine, generation: Generation) -> str:
    """What another engine says to the same question under the same recipe."""
    question = generation.question
    engine.be(recipes.parse(question.recipe))
    pieces = engine.generate(question.prompt, mode=question.mode, **asdict(question.sampling))
    return "".join(piece.text for piece in pieces)


@pytest.fixture
def keys(tmp_path) -> Iterator[Callable[[int, str, str], str]]:
    """keys(seed, recipe, prompt): the key of a question about the bundled pair in these `SETTINGS`."""
    pair = pairs.compare(*map(checkpoints.open, demo.folders()))
    with Store(tmp_path / "unused.duckdb") as store:
        room = EngineRoom(store, "transformers")

        def key(seed: int, recipe: str, prompt: str) -> str:
            sampling = Sampling(max_tokens=SETTINGS["max_tokens"], temperature=SETTINGS["temperature"], seed=seed)
            return room.question(pair, recipes.resolve(recipes.parse(recipe), pair), prompt, "plain", sampling).key

        yield key
        room.close()


@pytest.mark.timeout(900)
def test_two_viewers_hammer_recipes_and_every_answer_is_its_recipes(contexts, tmp_path, keys):
    with run_app(tmp_path) as app:
        tabs = [MergePage(context.new_page(), app.url) for context in contexts]
        viewers = [Viewer(tab.open(**SETTINGS, seed=n), n, partial(keys, n)) for n, tab in enumerate(tabs)]
        for tab in tabs:
            tab.watch_names()
        until = time.monotonic() + SECONDS + START_S  # the engine's start is not part of it
        while time.monotonic() < until:
            for viewer in viewers:
                viewer.step()
            if any(viewer.read for viewer in viewers):
                until = min(until, time.monotonic() + SECONDS)
            time.sleep(0.05)
        for viewer in viewers:  # what was asked last comes, whatever went before
            if viewer.asking is None:
                viewer.ask()
        for viewer in viewers:
            latest = time.monotonic() + START_S
            while not viewer.take_down():
                assert time.monotonic() < latest, (viewer.asking, [viewer.tab.column(side) for side in SIDES])
                viewer.tab.page.wait_for_timeout(100)
        assert not [wrong for tab in tabs for wrong in tab.misnamed()]

    pair = pairs.compare(*map(checkpoints.open, demo.folders()))
    with Store(app.cache / "sfn.duckdb") as store, engines.open("transformers", pair) as other:
        kept = [store.generation(int(id)) for id in store.generations(order="oldest")["id"]]
        finished = sorted((g for g in kept if g.finish != "cancelled"), key=lambda g: g.question.recipe)
        wrong = [generation for generation in finished if said_by(other, generation) != generation.text]
        assert not wrong, [(generation.question, generation.text) for generation in wrong]
    twice = [key for key, many in Counter(generation.question.key for generation in finished).items() if many > 1]
    assert not twice, "answered more than once"

    stored = {generation.question.key: generation.text.lstrip("\r\n") for generation in finished}
    for key, said in (column for viewer in viewers for read in viewer.read for column in read.values()):
        assert key in stored, ("lost", said)
        assert said == stored[key]
    read = sum(len(viewer.read) for viewer in viewers)
    print(f"{sum(viewer.runs for viewer in viewers)} runs, {read} read to the end, {len(finished)} answers kept")
    assert read >= 4
    assert len({generation.question.recipe for generation in finished}) >= 4


def test_a_stop_frees_a_viewers_column_and_leaves_the_others(contexts, app):
    mine, yours = (MergePage(context.new_page(), app.url) for context in contexts)
    for seed in range(40, 70):  # some answers are over before anybody can stop them
        for tab in (mine, yours):
            tab.open(recipe="o_proj@all=B", seed=seed, samples=4, **LONG)
        mine.run.click()
        yours.run.click()
        try:
            yours.page.locator(".st-key-stop_B button").first.wait_for(timeout=5000)  # it is theirs now, too
        except TimeoutError:
            yours.ran()
            continue
        mine.stop.click()
        expect(mine.run).to_be_enabled()
        if stopped := [side for side in SIDES if "stopped" in mine.foot(side).inner_text()]:
            break
    else:
        pytest.fail("every answer was over before it could be stopped")
    before = {side: mine.page.locator(f".st-key-answer_{side}").inner_text() for side in stopped}
    yours.ran()
    mine.page.wait_for_timeout(1000)
    for side in stopped:
        assert "stopped" in mine.foot(side).inner_text()
        assert mine.page.locator(f".st-key-answer_{side}").inner_text() == before[side]


def test_the_sidebar_lists_a_viewers_questions_and_stops_them(contexts, app):
    mine, yours = (MergePage(context.new_page(), app.url) for context in contexts)
    mine.open(recipe="o_proj@all=B", seed=70, samples=12, **LONG)
    yours.open(recipe="mlp@all=B", seed=90, samples=12, **LONG)
    mine.run.click()
    yours.run.click()
    sidebar = mine.page.locator("[data-testid=stSidebar]")
    expect(sidebar).to_contain_text(re.compile(r"\d+ questions of yours"))
    expect(sidebar).to_contain_text(re.compile(r"\d+ waiting"))
    expect(sidebar.locator(".sfn-holds")).to_be_visible()
    sidebar.locator(".st-key-stop_all_questions button").first.click()
    expect(sidebar).not_to_contain_text("of yours")
    expect(mine.run).to_be_enabled()
    expect(yours.page.locator("[data-testid=stSidebar]")).to_contain_text("of yours")
    yours.page.locator("[data-testid=stSidebar] .st-key-stop_all_questions button").first.click()
    expect(yours.page.locator("[data-testid=stSidebar]")).not_to_contain_text("of yours")
