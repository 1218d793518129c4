"""Every page opened cold by its address; the delta page fills in; pages hand over to each other."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

HEADINGS = {
    "pair": "Which two models are compared?",
    "delta": "What changed between A and B?",
    "merge": "What if A had B's …?",
    "history": "What was said before?",
}


@pytest.mark.parametrize("name", HEADINGS)
def test_a_cold_deep_link_shows_frame_and_page(page, app, name):
    page.goto(f"{app.url}/{name}")
    expect(page.get_by_role("heading", level=1)).to_have_text(HEADINGS[name])
    expect(page.get_by_role("link", name="Delta", exact=True)).to_be_visible()
    expect(page.locator("[data-testid=stSidebar]")).to_contain_text("Engine")
    expect(page.locator("[data-testid=stAlert], [data-testid=stException]")).to_have_count(0)


def test_the_delta_page_fills_in_and_the_board_takes_its_shade_from_it(page, app):
    page.goto(f"{app.url}/delta")
    expect(page.get_by_text(re.compile(r"75 tensors measured"))).to_be_visible(timeout=60_000)
    expect(page.locator("[data-testid=stVegaLiteChart]").first).to_be_visible()
    page.get_by_role("link", name="Merge", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(HEADINGS["merge"])
    expect(page.locator(".legend")).to_contain_text("RMS shift")
