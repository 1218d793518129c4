"""Answers in a real browser: hostile text stays text, formulas are set, thinking folds, columns stop by themselves."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from playwright.sync_api import expect

from sfn import checkpoints, demo, engines, pairs, recipes
from sfn.engine_room import EngineRoom
from sfn.records import Generation, Sampling
from sfn.store import Store
from tests.browser.conftest import App, run_app
from tests.browser.merge_page import WAIT_MS, MergePage

pytestmark = pytest.mark.browser

HOSTILE = r"""# no heading
*no emphasis* **nor this** `nor code` :smile: :red[no colour] --- &lt;entity&gt; &#60;
<b>no bold</b> <script>window.pwned = 1</script> <img src="http://evil.test/a.png" onerror="window.pwned = 2">
![no picture](http://evil.test/b.png) [no link](http://evil.test) <a href="javascript:window.pwned=3">nor this</a>
http://evil.test/c www.evil.test </div></div></details><style>body { display: none }</style>
<svg onload="window.pwned=4"></svg> <iframe src="http://evil.test"></iframe> {{7*7}} ${window.pwned=5} costs $5 and $6
$\href{javascript:window.pwned=6}{x}$ $\includegraphics{http://evil.test/d.png}$ $\htmlData{a=b}{x}$ $\url{http://evil.test}$
$\text{<img src=x onerror=window.pwned=7>}$ $<script>window.pwned=8</script>$ \[ \def\a{\a\a}\a \]"""
MATHS = r"""<think>First $x^2$, then
\[ \int_0^1 x \, dx = \frac{1}{2} \]
</think>So $\frac{1}{2}$ and \(y_1\), $$\begin{cases} a & b \\ c & d \end{cases}$$ hence \boxed{52}.
Broken: $\frac{1}{$ and \(\nosuchcommand{1}\). Money: $5 and $6."""
LONG = "".join(f"<think>step {n}: {n} + {n} = {2 * n} .\n" if not n else f"step {n}: {n} + {n} .\n" for n in range(500))
TEXTS = {"hostile": HOSTILE, "maths": MATHS, "long": LONG}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Iterator[App]:
    """An app whose store already has what all A answers to the prompts `TEXTS` names; nothing is computed."""
    folder = tmp_path_factory.mktemp("told")
    pair = pairs.compare(*(checkpoints.open(side) for side in demo.folders()))
    with Store(folder / "cache" / "sfn.duckdb") as store:
        room = EngineRoom(store, engines.default_backend())
        for prompt, text in TEXTS.items():
            plan = recipes.resolve(recipes.parse(""), pair)
            question = room.question(pair, plan, prompt, "plain", Sampling(max_tokens=4000))
            labels = (pair.a.label, pair.b.label)
            store.save_generation(Generation(question, text, 5, 4000, 0.1, 9.0, "length", *labels, datetime.now(UTC)))
    with run_app(folder) as running:
        yield running


@pytest.fixture
def shown(page, told) -> MergePage:
    """The merge page of the app that has stored answers."""
    return MergePage(page, told.url)


@pytest.fixture
def merge(page, app) -> MergePage:
    """The merge page of a fresh browser, not opened yet."""
    return MergePage(page, app.url)


@pytest.mark.parametrize("show", ["drawn", "plain", "difference"])
def test_hostile_text_stays_text(shown, show):
    asked: list[str] = []
    shown.page.on("request", lambda request: asked.append(request.url))
    shown.open(prompt="hostile", max_tokens=4000, show=show, columns="A|merged")
    said = shown.answer("A")
    expect(said).to_contain_text("no heading", timeout=WAIT_MS)
    if show == "drawn":
        expect(said.locator(".katex").first).to_be_visible()
    text = said.evaluate("""node => {
        const copy = node.cloneNode(true);
        copy.querySelectorAll(".sfn-formula, .sfn-display").forEach((one) =>
            one.replaceWith(one.querySelector(".katex") ? one.title : one.textContent));
        return copy.textContent;
    }""")
    assert text == HOSTILE
    tags = said.evaluate("node => [...node.querySelectorAll('*')].map((one) => one.localName)")
    assert not {"script", "img", "a", "iframe", "style", "b", "em", "strong", "h1", "code"} & set(tags)
    assert shown.page.evaluate("() => window.pwned") is None
    shown.page.wait_for_timeout(500)
    assert not [url for url in asked if "evil" in url or "a.png" in url]


def test_formulas_are_set_and_what_is_broken_or_money_is_shown_as_written(shown):
    shown.open(prompt="maths", max_tokens=4000, show="drawn", columns="A|merged")
    said = shown.answer("A")
    expect(said.locator("summary")).to_have_text("Thought for 11 words", timeout=WAIT_MS)
    expect(said.locator(".sfn-thought")).not_to_have_attribute("open", "")
    expect(said.locator(".sfn-formula .katex, .sfn-display .katex")).to_have_count(6)
    expect(said.locator(".sfn-broken")).to_have_text([r"$\frac{1}{$", r"\(\nosuchcommand{1}\)"])
    expect(said).to_contain_text(r"Broken: $\frac{1}{$ and")
    expect(said).to_contain_text("Money: $5 and $6.")
    boxed = said.locator(".katex .fbox").bounding_box()
    assert boxed["width"] > 15, "the box is not drawn around its content: KaTeX's styles are missing"


def test_an_opened_thought_stays_open_while_the_page_goes_on(shown):
    shown.open(prompt="maths", max_tokens=4000, show="drawn", columns="A|merged")
    thought = shown.answer("A").locator("details")
    thought.locator("summary").click()
    shown.page.get_by_text("Run on change").first.click()
    shown.page.wait_for_timeout(1000)
    expect(thought).to_have_attribute("open", "")
    expect(thought.locator(".sfn-display")).to_be_visible()


def test_a_long_answer_that_was_cut_in_its_thought_is_in_sight_and_scrolls(shown):
    shown.open(prompt="long", max_tokens=4000, show="drawn", columns="A|merged")
    said = shown.answer("A")
    expect(said.locator("summary")).to_contain_text("not to the end", timeout=WAIT_MS)
    expect(said.locator("details")).to_have_attribute("open", "")
    assert said.evaluate("node => node.scrollHeight") > 3000
    box = shown.page.locator(".st-key-answer_A").first.bounding_box()
    assert box["height"] < 700


@pytest.fixture(scope="module")
def wordy(tmp_path_factory) -> dict[str, str]:
    """The bundled pair with a context of 8,192 tokens, which takes seconds to fill on any machine."""
    folders = {}
    for side, bundled in zip("ab", demo.folders(), strict=True):
        folder = shutil.copytree(bundled, tmp_path_factory.mktemp("wordy") / side)
        config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 8192}
        (folder / "config.json").write_text(json.dumps(config))
        folders[side] = str(folder)
    return folders


def test_a_growing_answer_is_appended_to_and_one_column_can_be_stopped(merge, wordy):
    merge.open(**wordy, recipe="attn@all=zero", prompt="5 + 17 = ", max_tokens=8000, columns="merged|A", show="drawn")
    merge.run.click()
    words = merge.page.locator(".st-key-answer_merged .sfn-words")
    expect(words).to_contain_text(re.compile(r".{40}", re.DOTALL), timeout=WAIT_MS)
    merge.page.evaluate("""() => {
        window.removed = 0;
        const root = document.querySelector('.st-key-answer_merged .sfn-said');
        new MutationObserver((all) => all.forEach((one) => window.removed += one.removedNodes.length))
            .observe(root, {subtree: true, childList: true});
    }""")
    before = words.inner_text()
    merge.page.wait_for_timeout(600)
    merge.page.locator(".st-key-stop_merged button").first.click()
    expect(merge.foot("merged")).to_contain_text("stopped")
    assert merge.page.evaluate("() => window.removed") == 0
    assert words.inner_text().startswith(before[:40])
    expect(merge.foot("A")).to_contain_text(re.compile(r"[1-9]\d* of at most 8000|ended by itself"), timeout=WAIT_MS)
    if merge.stop.is_enabled():  # what is still to come would keep the engine for long
        merge.stop.click()


def test_six_columns_stand_in_two_rows_and_can_be_read(merge):
    merge.page.set_viewport_size({"width": 1280, "height": 720})
    merge.open(recipe="o_proj@all=B", columns="A|merged|B|mlp@all=B|qkv@all=B|norms@all=B", mode="chat")
    seats = merge.page.locator("[class*=st-key-seat_]")
    expect(seats).to_have_count(6)
    boxes = [seat.bounding_box() for seat in seats.all()]
    assert len({round(box["y"]) for box in boxes}) == 2
    assert min(box["width"] for box in boxes) > 280
    merge.act("c4", "Remove")
    expect(seats).to_have_count(5)
    expect(merge.page).to_have_url(re.compile(r"columns=A%7Cmerged%7CB%7Cqkv"))
