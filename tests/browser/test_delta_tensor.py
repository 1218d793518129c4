"""One tensor in depth: its charts appear, a brush over the map zooms in, the address keeps it, and it closes again."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

TENSOR = "model.layers.5.self_attn.o_proj.weight"


def test_a_brush_zooms_into_the_map_and_the_address_keeps_it(page, app):
    page.set_viewport_size({"width": 1440, "height": 2600})
    page.goto(f"{app.url}/delta?tensor={TENSOR}")
    expect(page.get_by_text("stable rank")).to_be_visible()
    zoom = page.get_by_role("button", name="Zoom in")
    expect(zoom).to_be_disabled()
    page.get_by_text(re.compile("^Mean of")).scroll_into_view_if_needed()
    for _ in range(10):  # until the chart stands where the mouse expects it
        top = zoom.bounding_box()["y"]
        left = page.get_by_text("Map of").first.bounding_box()["x"]
        page.mouse.move(left + 90, top + 140)
        page.mouse.down()
        page.mouse.move(left + 200, top + 240, steps=8)
        page.mouse.up()
        page.wait_for_timeout(1000)
        if zoom.is_enabled():
            break
    expect(zoom).to_be_enabled()
    zoom.click()
    expect(page).to_have_url(re.compile("map_part=[1-9]"))
    said = page.get_by_text(re.compile(r"^Mean of .* rows [1-9]\d* to"))
    expect(said).to_be_visible()
    words = said.inner_text()
    page.reload()
    expect(page.get_by_text(words)).to_be_visible()
    page.get_by_role("button", name="Whole").click()
    expect(page).not_to_have_url(re.compile("map_part"))
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_text("stable rank")).to_have_count(0)
    expect(page).not_to_have_url(re.compile("tensor="))
