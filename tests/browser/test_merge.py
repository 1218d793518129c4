"""Merge in a real browser: the board, three columns that stream, the store, permalinks, two viewers at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from sfn import checkpoints, demo, engines, pairs, recipes
from tests.browser.merge_page import SIDES, WAIT_MS, MergePage

pytestmark = pytest.mark.browser

SUM = "What is 5 + 17 + 26 + 4?"
ENDLESS = {"prompt": "5 + 17 = ", "max_tokens": 480}  # outside what A ← o_proj knows: it babbles on and on


@pytest.fixture(scope="module")
def said() -> Iterator[Callable[[str, str], str]]:
    """said(recipe, prompt): what the transformers engine answers greedily in chat mode, asked directly."""
    a, b = (checkpoints.open(folder) for folder in demo.folders())
    with engines.open("transformers", pairs.compare(a, b)) as engine:

        def ask(recipe: str, prompt: str) -> str:
            engine.be(recipes.parse(recipe))
            return "".join(piece.text for piece in engine.generate(prompt, mode="chat", max_tokens=256))

        yield ask


@pytest.fixture
def merge(page, app) -> MergePage:
    """The merge page of a fresh browser, not opened yet."""
    return MergePage(page, app.url)


def second(contexts, app) -> MergePage:
    return MergePage(contexts[1].new_page(), app.url)


def test_toggling_o_proj_makes_three_columns_stream(merge):
    merge.open(**ENDLESS)
    merge.name("o_proj").click()
    expect(merge.recipe).to_have_value("o_proj@all=B")
    expect(merge.verdict).to_contain_text("6 of 75 tensors")
    assert merge.from_b() == 6
    merge.watch()
    merge.run.click()
    merge.ran()
    texts = dict(zip(SIDES, merge.texts(), strict=True))
    seen = merge.seen()
    for side in SIDES:
        assert texts[side]
        assert seen[side][-1] == texts[side]
        assert [text for text in seen[side] if not texts[side].startswith(text)] == []
    assert max(len(seen[side]) for side in SIDES) > 1, "no column was seen to grow"
    assert re.match(r"\d+ tokens? · (\d+ tokens/s · )?(ended|cut)", merge.foot("merged").inner_text())
    expect(merge.run).to_be_disabled()


def test_a_reload_shows_the_stored_answers_without_running(merge):
    merge.open(mode="chat", prompt="What is 3 + 4?", recipe="o_proj@all=B")
    merge.run.click()
    texts = merge.ran().texts()
    merge.page.reload()
    merge.stands()
    for side in SIDES:
        expect(merge.foot(side)).to_contain_text("from the store")
    assert merge.texts() == texts
    expect(merge.recipe).to_have_value("o_proj@all=B")


def test_a_permalink_shows_the_same_in_another_browser(merge, contexts, app):
    merge.open(mode="chat")
    merge.page.locator(".st-key-prompt textarea").fill("What is 9 + 8 + 7?")
    merge.write_recipe("qkv@0-2=B; norms=B")
    expect(merge.verdict).to_contain_text("of 75 tensors · ")
    merge.run.click()
    texts = merge.ran().texts()
    expect(merge.page).to_have_url(re.compile("recipe=.*prompt="))

    other = second(contexts, app)
    other.page.goto(merge.page.url)
    other.stands()
    expect(other.recipe).to_have_value(merge.recipe.input_value())
    expect(other.page.locator(".st-key-prompt textarea")).to_have_value("What is 9 + 8 + 7?")
    for side in SIDES:
        expect(other.foot(side)).to_contain_text("from the store")
    assert other.texts() == texts
    assert other.from_b() == merge.from_b() > 0


def test_two_tabs_with_different_recipes_each_get_their_own_right_answers(merge, contexts, app, said):
    other = second(contexts, app)
    wanted = {"o_proj@all=B": merge, "all@all=B; o_proj@all=A": other}
    for recipe, tab in wanted.items():
        tab.open(mode="chat", prompt=SUM, recipe=recipe)
    for tab in wanted.values():
        tab.run.click()
    for recipe, tab in wanted.items():
        tab.ran()
        assert tab.texts() == [said(each, SUM) for each in ("", recipe, "all@all=B")]
        expect(tab.recipe).to_have_value(recipe)
    assert merge.texts()[1] != other.texts()[1]


def test_stop_ends_what_runs_and_what_waits(merge):
    merge.open(recipe="o_proj@all=B", seed=3, **ENDLESS)
    merge.run.click()
    expect(merge.stop).to_be_enabled(timeout=WAIT_MS)
    merge.stop.click()
    expect(merge.foot("B")).to_contain_text("stopped", timeout=WAIT_MS)
    expect(merge.run).to_be_enabled(timeout=WAIT_MS)
    expect(merge.stop).to_be_disabled()
    merge.page.reload()  # what was stopped is never served as an answer
    merge.stands()
    expect(merge.page.locator(".st-key-answer_B")).to_contain_text("Not asked yet")


def test_a_bad_recipe_is_explained_and_the_board_keeps_the_last_good_one(merge):
    merge.open(recipe="o_proj@all=B")
    merge.write_recipe("o_proj@9=B")
    expect(merge.page.get_by_role("alert").filter(has_text="9")).to_be_visible()
    expect(merge.run).to_be_disabled()
    assert merge.from_b() == 6
    merge.cell(0, "q_proj").click()  # a click goes on from the last good recipe
    expect(merge.verdict).not_to_have_class(re.compile("sfn-bad"))
    expect(merge.recipe).to_have_value(re.compile("o_proj.*q_proj@0|q_proj@0.*o_proj"))
    assert merge.from_b() == 7


def test_cells_rows_layers_brush_and_keys_all_edit_the_recipe(merge):
    merge.open()
    merge.cell(2, "q_proj").click()
    expect(merge.recipe).to_have_value("q_proj@2=B")
    merge.cell(2, "q_proj").click()
    expect(merge.recipe).to_have_value("")
    merge.layer(4).click()
    expect(merge.recipe).to_have_value("all@4=B")
    merge.layer(4).click()
    expect(merge.recipe).to_have_value("")
    merge.cell(1, "gate_proj").hover()
    merge.page.mouse.down()
    merge.cell(3, "down_proj").hover()
    merge.page.mouse.up()
    expect(merge.recipe).to_have_value("mlp@1-3=B")
    merge.page.locator('[role=gridcell][aria-label^="embed_tokens:"]').focus()
    merge.page.keyboard.press("ArrowDown")
    merge.page.keyboard.press("ArrowDown")
    merge.page.keyboard.press("ArrowRight")
    merge.page.keyboard.press("Space")
    expect(merge.recipe).to_have_value(re.compile("q_proj@1=B"))
    merge.write_recipe("norms=B")
    expect(merge.page.locator('.grid [data-s="B"]')).to_have_count(13)
    merge.page.locator(".st-key-recipe_undo button").first.click()
    expect(merge.recipe).to_have_value(re.compile("q_proj@1=B"))


def test_quick_clicks_are_drawn_at_once_and_none_is_lost(merge):
    merge.open()
    for layer in range(6):
        merge.cell(layer, "v_proj").click(no_wait_after=True)
        assert merge.cell(layer, "v_proj").get_attribute("data-s") == "B"
    expect(merge.recipe).to_have_value("v_proj@all=B")
    assert merge.from_b() == 6


def test_after_a_toggle_the_old_answer_keeps_its_recipe(merge):
    merge.open(mode="chat", prompt="What is 2 + 2?", recipe="o_proj@all=B")
    merge.run.click()
    old = merge.ran().texts()
    merge.name("v_proj").click()
    expect(merge.head("merged")).to_contain_text("of an earlier recipe")
    expect(merge.head("merged")).to_contain_text("o_proj@all=B")
    expect(merge.page.locator(".st-key-answer_merged")).to_have_css("opacity", "0.4")
    assert merge.texts() == old
    expect(merge.run).to_contain_text(re.compile(r"Swap \d+ tensors and run"))


def test_what_was_typed_counts_when_the_board_is_clicked_next(merge):
    merge.open()
    merge.recipe.fill("o_proj@0-1=B")
    merge.cell(3, "o_proj").click()
    expect(merge.recipe).to_have_value("o_proj@0-1,3=B")
    assert merge.from_b() == 3
    merge.recipe.fill("")
    merge.recipe.press("Enter")
    expect(merge.page.locator('.grid [data-s="B"]')).to_have_count(0)
    merge.page.locator(".st-key-recipe_undo button").first.click()
    expect(merge.recipe).to_have_value("o_proj@0-1,3=B")
