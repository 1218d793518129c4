"""A pair on the Hub in a real browser: searched, proposed, checked, one module read over ranges while things break."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import App, run_app
from tests.builders import tiny_qwen2
from tests.hub_server import Hub

A, B = "Qwen/Qwen2.5-Math-1.5B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
SHAPE = {"hidden": 256, "layers": 6, "shards": 2}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub with the paper's smallest pair, small contents, and a second pair."""
    place = tmp_path_factory.mktemp("repos")
    with Hub() as server:
        server.add(A, tiny_qwen2(place / "a", 0, **SHAPE), card={"license": "apache-2.0"}, downloads=900)
        server.add(B, tiny_qwen2(place / "b", 1, **SHAPE), card={"license": "mit", "base_model": A}, downloads=90)
        server.add("org/other-a", tiny_qwen2(place / "c", 2), downloads=5)
        server.add("org/other-b", tiny_qwen2(place / "d", 3), downloads=4)
        yield server


@pytest.fixture(scope="module")
def hub_app(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """An app that asks that Hub, with caches of its own."""
    place = tmp_path_factory.mktemp("hub-app")
    given = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(place / "hf"), "HF_HUB_CACHE": str(place / "hf" / "hub")}
    with run_app(place, HF_HUB_OFFLINE="0", HF_TOKEN="", **given) as running:
        yield running


def weights_sent(hub: Hub) -> int:
    """Requests for weights so far."""
    return sum(request.host == "cdn" for request in hub.requests)


def colourful_rows(page: Page) -> list[int]:
    """Heights, in pixels, at which the heatmap's cells have a colour; its legend on the right is left out."""
    chart = page.locator("[data-testid='stVegaLiteChart']").first
    picture = np.asarray(Image.open(BytesIO(chart.screenshot())).convert("RGB")).astype(int)
    cells = picture[:, : picture.shape[1] * 4 // 5]
    coloured = (cells.max(axis=2) - cells.min(axis=2) > 40).sum(axis=1) > cells.shape[1] // 4
    return np.flatnonzero(coloured).tolist()


def test_found_checked_and_one_module_read_over_ranges(hub: Hub, hub_app: App, page: Page) -> None:
    page.goto(f"{hub_app.url}/pair")
    page.get_by_text("any two models").click()
    page.get_by_label("Find B, fine-tuned from A").press_sequentially("distill qwen", delay=40)
    page.get_by_role("button", name=B).click()
    expect(page.get_by_text("Proposed: the base of this B")).to_be_visible()
    page.get_by_role("button", name=A).click()
    expect(page.get_by_text("tensors can be compared")).to_be_visible()
    expect(page.get_by_text("after a download").first).to_be_visible()
    page.wait_for_url(f"**a={A.replace('/', '%2F')}%40*")
    address = parse_qs(urlsplit(page.url).query)
    assert address["b"] == [f"{B}@{hub.repos[B].refs['main']}"]

    page.get_by_role("link", name="Choose what Delta reads").click()
    page.get_by_role("button", name="everything").click()
    page.get_by_role("button", name="Only o_proj").click()
    page.keyboard.press("Escape")  # before the fields beside the button are drawn again
    expect(page.get_by_text("o_proj only means reading 1.57 MB over the network").first).to_be_visible()
    expect(page.locator("[data-testid='stVegaLiteChart']").first).to_be_visible()
    assert colourful_rows(page) == []
    hub.clear()
    hub.rate = 30e3
    cut = hub.fault("cut", host="cdn", after=20_000)
    page.get_by_role("button", name="Measure").click()
    expect(page.get_by_text("Measuring ·")).to_be_visible()
    page.reload()  # the job goes on, and is found again
    expect(page.get_by_text("of 6 tensors")).to_be_visible()
    hub.rate = None
    expect(page.get_by_text("6 of 75 tensors are measured, o_proj only among them")).to_be_visible()
    assert cut.times == 0, "the fault was not met"
    assert weights_sent(hub) > 0
    expect(page.get_by_text("o_proj changed")).to_be_visible()
    rows = colourful_rows(page)
    assert 5 <= len(rows) <= 40, "one row of cells, and no other, has colours"
    assert rows[-1] - rows[0] < 40


def test_a_scan_that_was_stopped_goes_on(hub: Hub, hub_app: App, page: Page) -> None:
    page.goto(f"{hub_app.url}/delta?a={A}&b={B}&scan=v_proj")
    expect(page.get_by_role("button", name="Measure")).to_be_enabled()
    hub.rate = 60e3
    page.get_by_role("button", name="Measure").click()
    expect(page.get_by_text("Measuring ·")).to_be_visible()
    page.locator(".st-key-cancel_scan button").click()
    expect(page.get_by_text("Cancelled;")).to_be_visible()
    hub.rate = None
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_text("v_proj only among them")).to_be_visible()


def test_two_tabs_with_different_pairs(hub_app: App, contexts: list[BrowserContext]) -> None:
    one, two = contexts[0].new_page(), contexts[0].new_page()
    one.goto(f"{hub_app.url}/pair?a={A}&b={B}")
    two.goto(f"{hub_app.url}/pair?a=org/other-a&b=org/other-b")
    expect(one.get_by_text(f"{A} → {B}:")).to_be_visible()
    expect(two.get_by_text("org/other-a → org/other-b:")).to_be_visible()
    one.reload()
    expect(one.get_by_text(f"{A} → {B}:")).to_be_visible()


def test_what_is_not_there_is_told_where_it_was_chosen(hub_app: App, page: Page) -> None:
    page.goto(f"{hub_app.url}/pair?a={A}&b=org/nothing")
    expect(page.get_by_text("There is no model org/nothing on the Hub that this machine may read.")).to_have_count(1)
    expect(page.get_by_label("Find B, fine-tuned from A")).to_be_visible()


def test_nothing_secret_is_logged(hub_app: App) -> None:
    log = Path(hub_app.log).read_text()
    assert "Signature=" not in log
    assert "Traceback" not in log
