"""Delta in a browser: a click on a cell opens its tensor and closing leads back; charts are saved; nothing moves."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

ROWS = 12  # of the bundled pair's board


def open_delta(page, app, query=""):
    page.goto(f"{app.url}/delta{query}")
    expect(page.get_by_text("75 tensors measured")).to_be_visible()
    expect(page.locator(".st-key-delta_board canvas")).to_be_visible()


def find_cell(page, module):
    """A point in the board at which the pointer is told of `module`, found by moving down the middle of the picture."""
    box = page.locator(".st-key-delta_board canvas").bounding_box()
    x = box["x"] + box["width"] / 2
    tip = page.locator("#vg-tooltip-element.visible")
    for wait_ms in (60, 300, 1000):  # a busy machine is slow to tell
        for place in range(4 * ROWS):
            y = box["y"] + 30 + place * (box["height"] - 90) / (4 * ROWS)
            page.mouse.move(x, y)
            page.wait_for_timeout(wait_ms)
            if tip.count() and module in tip.inner_text():
                return x, y
    raise AssertionError(f"no cell says {module}")


def test_a_click_opens_the_tensor_and_close_leads_back(page, app):
    open_delta(page, app)
    page.mouse.click(*find_cell(page, "o_proj"))
    panel = page.locator(".sfn-tensor")
    expect(panel).to_contain_text("o_proj")
    expect(page).to_have_url(re.compile(r"tensor=[^&]*o_proj"))
    page.get_by_role("button", name="›", exact=True).click()
    expect(panel).to_contain_text("post_attention_layernorm")
    expect(page).to_have_url(re.compile(r"tensor=[^&]*post_attention_layernorm"))
    page.go_back()
    expect(panel).to_contain_text("o_proj")
    page.get_by_role("button", name="Close", exact=True).click()
    expect(panel).to_have_count(0)
    expect(page).to_have_url(re.compile(r"delta(?!.*tensor=)"))


@pytest.mark.parametrize(
    ("label", "ending"),
    [("PNG", ".png"), ("SVG", ".svg"), ("Vega-Lite", ".json"), ("CSV", ".csv"), ("Parquet", ".parquet")],
)
def test_a_chart_is_saved(page, app, label, ending, tmp_path):
    open_delta(page, app)
    page.get_by_role("button", name="Save").click()
    with page.expect_download() as download:
        page.get_by_role("button", name=label, exact=True).click()
    assert download.value.suggested_filename.endswith(ending)
    file = tmp_path / "saved"
    download.value.save_as(file)
    assert file.stat().st_size > 2000


def test_the_papers_figures_fit_a_small_screen(page, app):
    page.set_viewport_size({"width": 1280, "height": 720})
    open_delta(page, app)
    page.get_by_role("radio", name="paper's figures").click()
    expect(page.get_by_text("As in the paper's figures 3 and 8")).to_be_visible()
    charts = page.locator("[data-testid=stVegaLiteChart]")
    expect(charts).to_have_count(2)
    page.wait_for_timeout(1500)
    for chart in charts.all():
        drawn = chart.locator("svg, canvas").first.bounding_box()
        assert drawn["x"] + drawn["width"] <= 1280
