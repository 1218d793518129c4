"""Takes the pictures in docs/screenshots/ anew: every page in light and dark, on the bundled pair, with an empty cache;
and the short film of a toggle and its answer.

    .venv/bin/python scripts/screenshots.py

Needs what tests need (`make test` installs it). Starts the app, answers one question with each recipe, and looks.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.first_light import answer, app, chromium  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Page

OUT = ROOT / "docs" / "screenshots"
SIZE = {"width": 1440, "height": 900}
FILM_SIZE = {"width": 1280, "height": 800}
FILM_WIDTH, FILM_COLOURS = 960, 160
FILM_PROMPT = "Compute 6 * 8 - 13 + 22."
RECIPES = ("o_proj@all=B", "all@0-5=B; head=B")
TENSOR = "model.layers.5.self_attn.o_proj.weight"


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


class Film:
    """Pictures of a page with the times at which they were taken."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._frames: list[tuple[float, bytes]] = []

    def roll(self, seconds: float) -> None:
        """Film as fast as pictures can be taken, for this long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._frames.append((time.monotonic(), self._page.screenshot()))

    def save(self, file: Path) -> None:
        """Write an animated GIF that plays as fast as it happened; pictures that show nothing new are left out."""
        from PIL import Image

        pictures, starts = [], []
        for at, content in self._frames:
            image = Image.open(io.BytesIO(content)).convert("RGB")
            image = image.resize((FILM_WIDTH, FILM_WIDTH * image.height // image.width), Image.Resampling.LANCZOS)
            if not pictures or image.tobytes() != pictures[-1].tobytes():
                pictures.append(image)
                starts.append(at)
        ends = [*starts[1:], starts[-1] + 3]
        some = pictures[:: max(1, len(pictures) // 4)]
        palette = Image.new("RGB", (FILM_WIDTH, sum(picture.height for picture in some)))
        for place, picture in enumerate(some):
            palette.paste(picture, (0, place * picture.height))
        colours = palette.quantize(FILM_COLOURS)
        first, *others = (picture.quantize(palette=colours, dither=Image.Dither.NONE) for picture in pictures)
        times = [max(40, round(1000 * (end - start))) for start, end in zip(starts, ends, strict=True)]
        first.save(file, save_all=True, append_images=others, duration=times, loop=0, optimize=True)


def film(page: Page, address: str) -> None:
    """From all A to all layers and the head of B: seven clicks on the board, one on Run, the answer."""
    page.goto(f"{address}/merge?{urlencode({'prompt': FILM_PROMPT})}")
    page.locator("[data-at='5,0']").wait_for()
    page.locator(".st-key-run button").click()
    page.locator(".st-key-seat_B .sfn-seat-foot", has_text="tokens/s").wait_for()
    page.wait_for_timeout(2000)
    recording = Film(page)
    recording.roll(1.2)
    for at in (*(f"-1,{layer}" for layer in range(6)), "11,0"):  # the layers' numbers, the head's one cell
        page.locator(f"[data-at='{at}']").click()
        recording.roll(0.5)
    page.locator(".st-key-run button").click()
    recording.roll(2.5)
    recording.save(OUT / "toggle.gif")


def main() -> None:
    """Take all pictures."""
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache, app(cache) as (address, _), chromium() as browser:
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport=SIZE, color_scheme=scheme)
            context.set_default_timeout(60_000)
            look(context.new_page(), address, scheme)
        context = browser.new_context(viewport=FILM_SIZE, color_scheme="light")
        context.set_default_timeout(60_000)
        film(context.new_page(), address)


if __name__ == "__main__":
    main()
