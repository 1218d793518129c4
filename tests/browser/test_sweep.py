"""A sweep in a real browser on the bundled pair: it fills live, survives a reload, is cancelled, goes on, opens."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from sfn import checkpoints, demo, engines, pairs, recipes
from tests.browser.merge_page import WAIT_MS

pytestmark = pytest.mark.browser

SUM = "What is 5 + 17 + 26 + 4?"
BABBLE = "5 + 17 = "  # outside what the models know: most recipes go on to the limit
QUERY = {"view": "sweep", "sweep_names": "attn", "sweep_prompts": f"{SUM} => 52\n{BABBLE}", "max_tokens": 400}


def answered(page: Page) -> int:
    return page.locator('td[data-s="answered"]').count()


def cell(page: Page, row: int, column: int):
    """A cell of the grid; rows 0 and 1 are A's and B's."""
    return page.locator(f'td button[data-at="{row},{column}"]')


def test_a_sweep_fills_live_survives_a_reload_is_cancelled_and_continued(page, app):
    page.goto(f"{app.url}/merge?{urlencode(QUERY)}")
    start = page.get_by_role("button", name="Start the sweep")
    expect(start).to_be_enabled(timeout=WAIT_MS)
    expect(page.locator(".st-key-sweep_form .sfn-verdict")).to_contain_text("12 answers")
    start.click()

    expect(page.locator("td").first).to_be_visible(timeout=WAIT_MS)
    expect(page).to_have_url(re.compile(r"[?&]sweep=\d+"))
    expect(page.locator('td[data-s="answered"]')).not_to_have_count(0, timeout=WAIT_MS)
    early = answered(page)
    assert early < 12, "nothing was seen to fill"
    expect(page.locator(".st-key-sweep_progress")).to_contain_text(re.compile(r"\d+ of 12 answers"))

    page.reload()
    cancel = page.locator(".st-key-sweep_cancel button").first
    expect(cancel).to_be_enabled(timeout=WAIT_MS)
    expect(page.locator(".sfn-line").filter(has_text="Sweep")).to_be_visible()  # the job in the sidebar
    assert answered(page) >= early
    cancel.click()
    resume = page.get_by_role("button", name="Continue", exact=True)
    expect(resume).to_be_visible(timeout=WAIT_MS)
    line = page.locator(".st-key-sweep_progress .sfn-muted")
    expect(line).to_contain_text("of 12 answers are here")
    kept = int(line.inner_text().split()[0])
    assert early <= kept < 12
    expect(page.locator('td[data-s="answered"]')).to_have_count(kept)

    resume.click()
    expect(page.locator('td[data-s="answered"]')).to_have_count(12, timeout=WAIT_MS)
    expect(page.locator(".st-key-sweep_progress")).to_contain_text("12 of 12 answers are here")
    expect(page.locator(".sfn-sweep-said")).to_contain_text("of 4 recipes")


def test_a_cell_opens_with_the_engines_own_answer_and_goes_to_the_board(page, app):
    query = QUERY | {"sweep_prompts": f"{SUM} => 52", "max_tokens": 60}
    page.goto(f"{app.url}/merge?{urlencode(query)}")
    page.get_by_role("button", name="Start the sweep").click(timeout=WAIT_MS)
    expect(page.locator('td[data-s="answered"]')).to_have_count(6, timeout=WAIT_MS)
    page.get_by_text("Contains reference", exact=True).first.click()
    expect(cell(page, 0, 0)).to_contain_text("not reached")
    expect(cell(page, 1, 0)).to_contain_text("reached")

    cell(page, 5, 0).click()
    opened = page.locator(".st-key-sweep_cell_opened")
    expect(opened).to_contain_text("o_proj@all=B")
    expect(opened).to_be_in_viewport(timeout=WAIT_MS)
    expect(page).to_have_url(re.compile(r"sweep_cell=3\.0"))
    shown = [opened.locator(".sfn-answer").nth(at).evaluate("node => node.textContent") for at in range(3)]
    assert shown == [said("").lstrip("\r\n"), said("o_proj@all=B").lstrip("\r\n"), said("all@all=B").lstrip("\r\n")]

    page.goto(page.url)  # the permalink of the cell
    expect(page.locator(".st-key-sweep_cell_opened")).to_contain_text("o_proj@all=B", timeout=WAIT_MS)
    page.get_by_role("button", name="Open on the board").click()
    expect(page.locator(".st-key-seat_merged")).to_be_visible(timeout=WAIT_MS)
    expect(page.locator(".st-key-recipe_box input")).to_have_value("o_proj@all=B")
    expect(page.locator(".st-key-answer_merged")).to_contain_text(said("o_proj@all=B").strip()[:40])


def said(recipe: str) -> str:
    """What the transformers engine answers by itself."""
    a, b = (checkpoints.open(folder) for folder in demo.folders())
    with engines.open("transformers", pairs.compare(a, b)) as engine:
        engine.be(recipes.parse(recipe))
        return "".join(piece.text for piece in engine.generate(SUM, max_tokens=60))
