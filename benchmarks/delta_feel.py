"""How the Delta page feels with 64 layers: bytes that it sends, and how long a change of figure or scale takes.

    .venv/bin/python benchmarks/delta_feel.py [--changes 40]

The real app, a pair of 64 layers and 12 modules that this script makes, in real Chromium. Bytes are those of all the
messages that the page receives on a cold link; a redraw counts from the press on the choice until both charts that it
changes are painted for the last time, with and without a tensor open below the board. A tensor opens by a click on its
cell: until its panel is there with all of its charts, the first time with what has to be computed, then from the store.
Fails where a figure is over what is wanted.
"""

from __future__ import annotations

import argparse
import base64
import statistics
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import first_light  # noqa: E402  (it starts app and browser)
from board_clicks import p95  # noqa: E402

from sfn.figures import FIGURES  # noqa: E402
from tests.builders import tiny_qwen2  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Locator, Page

LAYERS = 64
WARM_UP = 3
WANTED_S, WANTED_BYTES = 0.3, 1.5e6
TENSOR = "model.layers.20.self_attn.o_proj.weight"
VIEWS = {
    "board": {},
    "board with a tensor open": {"tensor": TENSOR},
    "the paper's figures": {"layout": "paper"},
}

# Notes, in ms, the press on a choice and when each picture was painted for the last time since.
_WATCH = """() => {
    if (window.painted) return;
    window.painted = new Map();
    for (const name of ['fill', 'fillText']) {
        const paint = CanvasRenderingContext2D.prototype[name];
        CanvasRenderingContext2D.prototype[name] = function (...what) {
            window.painted.set(this.canvas, performance.now());
            return paint.apply(this, what);
        };
    }
    document.addEventListener('pointerup', () => {
        window.pressed = performance.now();
        window.painted.clear();
    }, {capture: true});
    window.drawn = () => {
        const all = [...document.querySelectorAll('[data-testid=stVegaLiteChart] canvas')];
        const times = [all[0], all.at(-1)].map((canvas) => window.painted.get(canvas)); // the board, the lines
        return times.every(Boolean) ? Math.max(...times) - window.pressed : null;
    };
    window.opened = () => {
        const charts = document.querySelectorAll('.st-key-tensor_panel [data-testid=stVegaLiteChart] .marks');
        return charts.length === 5 ? performance.now() - window.pressed : null;
    };
}"""


@contextmanager
def received(page: Page) -> Iterator[list[int]]:
    """Sizes in bytes of the messages that the page receives meanwhile, before any compression."""
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    sizes: list[int] = []

    def note(event: dict) -> None:
        frame = event["response"]
        content = frame["payloadData"]
        sizes.append(len(base64.b64decode(content)) if frame["opcode"] == 2 else len(content))

    session.on("Network.webSocketFrameReceived", note)
    yield sizes
    session.detach()


def open_bytes(page: Page, address: str, **query: str) -> int:
    """Bytes that a cold link to the page brings."""
    with received(page) as sizes:
        page.goto(f"{address}/delta?{urlencode(query)}")
        page.get_by_text("tensors measured").wait_for(timeout=60_000)
        page.wait_for_timeout(4000)
    return sum(sizes)


def redraw_s(page: Page, choice: Locator) -> float:
    """Seconds from the press on `choice` until both charts are painted for the last time."""
    choice.wait_for()
    choice.click()
    page.wait_for_function("() => window.drawn()", timeout=20_000, polling=100)
    page.wait_for_timeout(700)  # until nothing is painted any more
    return page.evaluate("() => window.drawn() / 1000")


def changes_s(page: Page, many: int) -> dict[str, list[float]]:
    """`redraw_s` of `many` changes of the figure and as many of the scale, after a few that warm up."""
    found: dict[str, list[float]] = {"figure": [], "scale": []}
    figures = list(FIGURES.values())
    page.evaluate(_WATCH)
    scales = page.locator(".st-key-scale")
    for place in range(many + WARM_UP):
        page.locator(".st-key-figure").get_by_role("combobox").click()
        figure = figures[(place + 1) % len(figures)]
        found["figure"].append(redraw_s(page, page.get_by_role("option", name=figure.title, exact=True)))
        scale = scales.get_by_role("radio", name=("log", "linear")[place % 2], exact=True)
        found["scale"].append(redraw_s(page, scale))
    return {name: seconds[WARM_UP:] for name, seconds in found.items()}


def open_s(page: Page, cell: tuple[float, float]) -> float:
    """Seconds from the press on a cell until its tensor's panel is there with all of its charts; closes it again."""
    page.mouse.click(*cell)
    seconds = page.wait_for_function("() => window.opened()", timeout=60_000).json_value() / 1000
    page.wait_for_timeout(700)
    page.get_by_role("button", name="Close", exact=True).click()
    page.locator(".sfn-tensor").wait_for(state="detached")
    page.wait_for_timeout(700)
    return seconds


def cells(page: Page, many: int) -> list[tuple[float, float]]:
    """Places of cells of o_proj, in layers far apart: found with the pointer, by what the board tells of a place."""
    box = page.locator(".st-key-delta_board canvas").bounding_box()
    tip = page.locator("#vg-tooltip-element.visible", has_text="self_attn.o_proj")
    x, y = box["x"] + box["width"] / 2, box["y"] + 30
    while not _tells(page, tip, x, y):
        y = y + 4 if y < box["y"] + box["height"] else box["y"] + 30
    found = []
    for place in range(many):
        x = box["x"] + box["width"] * (0.25 + 0.55 * place / many)
        while not _tells(page, tip, x, y):
            x += 3
        found.append((x, y))
    return found


def _tells(page: Page, tip: Locator, x: float, y: float) -> bool:
    page.mouse.move(x, y)
    page.wait_for_timeout(80)
    return tip.count() > 0


def main() -> None:
    """Measure, print the table, and fail where a figure is over what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=40)
    many = parser.parse_args().changes
    bytes_, seconds, opened = {}, {}, {}
    with tempfile.TemporaryDirectory() as made:
        a, b = (str(tiny_qwen2(Path(made) / name, seed, layers=LAYERS)) for seed, name in enumerate(("base", "tuned")))
        with first_light.chromium() as browser, first_light.app(f"{made}/cache") as (address, _):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            open_bytes(page, address, a=a, b=b)  # measures it
            page.close()
            for name, query in VIEWS.items():
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                bytes_[name] = open_bytes(page, address, a=a, b=b, **query)
                if "layout" not in query:
                    seconds |= {f"{name}: change of {what}": s for what, s in changes_s(page, many).items()}
                if not query:
                    places = cells(page, max(4, many // 4))
                    for known in ("computed", "from the store"):
                        opened[f"a click opens a tensor, {known}"] = [open_s(page, place) for place in places]
                page.close()
    print(f"{LAYERS} layers, 12 modules{'':28} {'MB':>8} {'':8} {'':8} {'wanted':>8}")
    for name, size in bytes_.items():
        print(f"{name:50} {size / 1e6:8.2f} {'':8} {'':8} {WANTED_BYTES / 1e6:8.1f}")
    print(f"{many} changes each{'':34} {'p50':>8} {'p95':>8} {'max':>8} {'wanted':>8}")
    for name, found in seconds.items():
        print(f"{name:50} {statistics.median(found):7.3f}s {p95(found):7.3f}s {max(found):7.3f}s {WANTED_S:7.1f}s")
    for name, found in opened.items():
        print(f"{name:50} {statistics.median(found):7.3f}s {p95(found):7.3f}s {max(found):7.3f}s")
    over = [name for name, size in bytes_.items() if size > WANTED_BYTES]
    over += [name for name, found in seconds.items() if p95(found) > WANTED_S]
    if over:
        sys.exit(f"over what is wanted: {', '.join(over)}")


if __name__ == "__main__":
    main()
