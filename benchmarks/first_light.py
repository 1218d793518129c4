"""How long a newcomer waits on the bundled pair: scan, first token, cached answer on screen, app start.

    .venv/bin/python benchmarks/first_light.py [--runs 3]

Everything is the real thing: the app as its own process with an empty cache folder, Chromium, the transformers engine
on this machine. Each figure is the median of the runs; the last column is the figure as a share of what is wanted.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import sfn  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROMPT = "What is 5 + 17 + 26 + 4?"
RECIPES = ("o_proj@all=B", "all@all=B; o_proj@all=A")
WANTED_S = {
    "bundled pair: delta scan, results in the store": 2.0,
    "merged first token (transformers, once loaded)": 1.0,
    "cached result on screen after the click": 0.3,
    "app start to usable page": 5.0,
}


def scan_s() -> float:
    """Seconds to open the bundled pair and scan it into an empty store."""
    with tempfile.TemporaryDirectory() as folder, sfn.store.Store(Path(folder) / "sfn.duckdb") as store:
        start = time.perf_counter()
        pair = sfn.pairs.compare(*map(sfn.checkpoints.open, sfn.demo.folders()))
        for measured in sfn.delta.scan(pair):
            store.save_delta(pair.key, measured)
        return time.perf_counter() - start


def first_token_s(runs: int) -> list[float]:
    """Seconds from "be this recipe" to the first token, while the model holds all A."""
    pair = sfn.pairs.compare(*map(sfn.checkpoints.open, sfn.demo.folders()))
    seconds = []
    with sfn.engines.open("transformers", pair) as engine:
        for _ in range(runs + 1):  # the first one warms up
            engine.be(sfn.recipes.Recipe())
            list(engine.generate(PROMPT, max_tokens=4))
            start = time.perf_counter()
            engine.be(sfn.recipes.parse(RECIPES[0]))
            next(iter(engine.generate(PROMPT, max_tokens=16)))
            seconds.append(time.perf_counter() - start)
    return seconds[1:]


@contextmanager
def app(cache: str) -> Iterator[tuple[str, float]]:
    """The app as its own process: its address, and the moment at which it was started (`time.perf_counter`)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "SFN_CACHE": cache}, **silent)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.perf_counter() - start > 60:
                    raise SystemExit("The app did not start.") from None
                time.sleep(0.05)
        yield address, start
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium: the one that CHROMIUM names, else Debian's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox", "--disable-background-networking", "--disable-gpu"],
        )
        yield browser
        browser.close()


def answer(page: Page, address: str, recipe: str) -> None:
    """Open the Merge page with a recipe and run it, unless the store has its answers; wait until all three ended."""
    page.goto(f"{address}/merge?{urlencode({'recipe': recipe, 'prompt': PROMPT})}")
    page.locator(".st-key-answer_B").wait_for()
    run = page.locator(".st-key-run button")
    if run.is_enabled():
        run.click()
    for seat in ("A", "merged", "B"):
        page.locator(f".st-key-seat_{seat} .sfn-seat-foot", has_text="ended by itself").wait_for(timeout=120_000)


def browser_s(browser: Browser, cache: str) -> tuple[float, float]:
    """Seconds from starting the app to a usable Pair page, and from a click on a preset to its stored answer."""
    with app(cache) as (address, start):
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(address)
        page.get_by_text("Next: Delta").wait_for()
        started_s = time.perf_counter() - start
        said = page.locator(".st-key-answer_merged")
        for recipe in RECIPES:  # fills the store where it is still empty, and ends on the second recipe
            answer(page, address, recipe)
        page.reload()  # as a viewer who comes later: nothing but the store knows the answers
        said.get_by_text("answer").wait_for()
        page.wait_for_timeout(1000)
        clicked_s = statistics.median(_click_s(page, label) for label in ("o_proj (M1)", "all but o_proj") * 3)
        page.close()
    return started_s, clicked_s


# Notes when the browser saw the click, and when another answer was painted.
_WATCH = """() => {
    const said = () => document.querySelector('.st-key-answer_merged')?.innerText;
    const before = said();
    window.seen = {};
    document.addEventListener('click', () => window.seen.click = performance.now(), {capture: true, once: true});
    const observer = new MutationObserver(() => {
        if (said() === undefined || said() === before) return;
        observer.disconnect();
        requestAnimationFrame(() => window.seen.painted = performance.now());
    });
    observer.observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def _click_s(page: Page, preset: str) -> float:
    """Seconds from the click on a preset until the answer that the store has for it is painted."""
    page.evaluate(_WATCH)
    page.get_by_role("button", name=preset).click()
    page.wait_for_function("() => window.seen.painted")
    page.wait_for_timeout(500)
    return page.evaluate("() => (window.seen.painted - window.seen.click) / 1000")


def main() -> None:
    """Measure, print the table, and fail where a figure is over what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    found: dict[str, list[float]] = {name: [] for name in WANTED_S}
    scan, first, cached, started = found.values()
    scan += [scan_s() for _ in range(runs)]
    first += first_token_s(runs)
    with tempfile.TemporaryDirectory() as cache, chromium() as browser:
        for _ in range(runs):
            seconds = browser_s(browser, cache)
            started.append(seconds[0])
            cached.append(seconds[1])
    print(f"{'':50} {'median':>8} {'min':>8} {'max':>8} {'wanted':>8} {'share':>6}")
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(
            f"{name:50} {median:7.3f}s {min(seconds):7.3f}s {max(seconds):7.3f}s {WANTED_S[name]:7.1f}s "
            f"{median / WANTED_S[name]:6.0%}"
        )
    over = [name for name, seconds in found.items() if statistics.median(seconds) > WANTED_S[name]]
    if over:
        sys.exit(f"over what is wanted: {', '.join(over)}")


if __name__ == "__main__":
    main()
