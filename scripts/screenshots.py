"""Takes the pictures in docs/screenshots/ anew: every page in light and dark, on the bundled pair, with an empty cache.

    .venv/bin/python scripts/screenshots.py

Needs what tests need (`make test` installs it). Starts the app, answers one question with each recipe, and looks.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.first_light import app, chromium  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Page

OUT = ROOT / "docs" / "screenshots"
SIZE = {"width": 1440, "height": 900}
PROMPT = "What is 5 + 17 + 26 + 4?"
RECIPES = ("o_proj@all=B", "all@0-5=B; head=B")
TENSOR = "model.layers.5.self_attn.o_proj.weight"


def answer(page: Page, address: str, recipe: str) -> None:
    """Open the Merge page with a recipe and run it, unless the store has its answers."""
    page.goto(f"{address}/merge?{urlencode({'recipe': recipe, 'prompt': PROMPT})}")
    page.locator(".st-key-answer_B").wait_for()
    run = page.locator(".st-key-run button")
    if run.is_enabled():
        run.click()
    for seat in ("A", "merged", "B"):
        page.locator(f".st-key-seat_{seat} .sfn-seat-foot", has_text="tokens/s").wait_for()


def take(page: Page, name: str) -> None:
    """Wait until nothing moves any more, then take the picture."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(3000)
    page.screenshot(path=OUT / f"{name}.png")


def look(page: Page, address: str, scheme: str) -> None:
    """All four pages, and one tensor of Delta."""
    page.goto(address)
    page.get_by_text("Next: Delta").wait_for()
    take(page, f"pair-{scheme}")
    page.goto(f"{address}/delta")
    page.get_by_text("75 tensors measured").wait_for()
    take(page, f"delta-{scheme}")
    page.goto(f"{address}/delta?{urlencode({'tensor': TENSOR})}")
    page.locator(".sfn-tensor").scroll_into_view_if_needed()
    take(page, f"tensor-{scheme}")
    for recipe in RECIPES:
        answer(page, address, recipe)
    take(page, f"merge-{scheme}")
    page.goto(f"{address}/history")
    page.get_by_text("answers.").wait_for()
    take(page, f"history-{scheme}")


def main() -> None:
    """Take all pictures."""
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache, app(cache) as (address, _), chromium() as browser:
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport=SIZE, color_scheme=scheme)
            context.set_default_timeout(60_000)
            look(context.new_page(), address, scheme)


if __name__ == "__main__":
    main()
