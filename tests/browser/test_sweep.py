"""A sweep in a real browser on the bundled pair: it fills live, survives a reload, is cancelled, goes on, opens."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Locator, Page, expect

from sfn import checkpoints, demo, engines, pairs, recipes
from tests.browser.merge_page import WAIT_MS

pytestmark = pytest.mark.browser

SUM = "What is 5 + 17 + 26 + 4?"
BABBLE = "\n".join(f"{a} + 17 = " for a in (5, 6, 7))  # outside what the models know: most recipes go on to the limit
LONG = {"view": "sweep", "sweep_prompts": f"{SUM} => 52\n{BABBLE}", "max_tokens": 450}
SHORT = {"view": "sweep", "sweep_names": "attn", "sweep_prompts": f"{SUM} => 52", "max_tokens": 60}


def cell(page: Page, row: int, column: int) -> Locator:
    """A cell of the grid; rows 0 and 1 are A's and B's."""
    return page.locator(f'td button[data-at="{row},{column}"]')


def line(page: Page) -> Locator:
    """What is said of the progress."""
    return page.locator(".st-key-sweep_progress")


def test_a_sweep_fills_live_survives_a_reload_is_cancelled_and_continued(page, app):
    page.goto(f"{app.url}/merge?{urlencode(LONG)}")
    start = page.get_by_role("button", name="Start the sweep")
    expect(start).to_be_enabled(timeout=WAIT_MS)
    expect(page.locator(".st-key-sweep_form .sfn-verdict")).to_contain_text("56 answers")
    start.click()

    expect(page).to_have_url(re.compile(r"[?&]sweep=\d+"))
    answered = page.locator('td[data-s="answered"]')
    expect(answered).not_to_have_count(0, timeout=WAIT_MS)
    early = answered.count()
    assert early < 56, "nothing was seen to fill"
    expect(page.locator('td[data-s="growing"]')).not_to_have_count(0)
    expect(line(page)).to_contain_text(re.compile(r"\d+ of 56 answers"))

    page.reload()
    cancel = page.locator(".st-key-sweep_cancel button").first
    expect(cancel).to_be_enabled(timeout=WAIT_MS)
    expect(page.locator(".sfn-line").filter(has_text="Sweep")).to_be_visible()  # the job in the sidebar
    expect(answered.nth(early - 1)).to_be_attached()
    cancel.click()
    resume = page.get_by_role("button", name="Continue", exact=True)
    expect(resume).to_be_visible(timeout=WAIT_MS)
    said_so = line(page).locator(".sfn-muted")
    expect(said_so).to_contain_text("of 56 cells are answered")
    kept = int(said_so.inner_text().split()[0])
    assert early <= kept < 56
    expect(answered).to_have_count(kept)

    resume.click()
    expect(line(page)).to_contain_text(re.compile(rf"\d+ of {56 - kept} answers"), timeout=WAIT_MS)
    expect(answered.nth(kept)).to_be_attached(timeout=WAIT_MS)
    expect(page.locator(".sfn-sweep-said")).to_contain_text("So far")
    cancel.click()
    expect(resume).to_be_visible(timeout=WAIT_MS)


def test_a_cell_opens_with_the_engines_own_answer_and_goes_to_the_board(page, app):
    page.goto(f"{app.url}/merge?{urlencode(SHORT)}")
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
