"""The merge page as a person works with it: what tests click and read there, in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlencode

from playwright.sync_api import Locator, Page, expect

ENDED = re.compile("ended by itself|cut at the token limit")
SIDES = ("A", "merged", "B")
WAIT_MS = 180_000  # an engine that starts on two busy cores

_COLUMN = """(side) => {
  const seat = document.querySelector(`.st-key-seat_${side}`);
  const [head, text, foot] = [".sfn-seat", ".sfn-said", ".sfn-seat-foot"].map((part) => seat?.querySelector(part));
  const {asked = "", answered = ""} = head?.dataset ?? {};
  const silent = /without a word|Nothing was written/.test(seat?.innerText);
  return {asked, answered, label: head?.querySelector("em").textContent ?? "",
    foot: foot?.dataset.answered === answered ? foot.innerText : "",
    said: text ? (text.dataset.question === answered && text.dataset.ended === "true" ? text.textContent : null)
      : silent ? "" : null};
}"""
_WATCH_NAMES = """() => {
  window.misnamed = [];
  const seen = (node) => node && node.textContent && getComputedStyle(node).visibility === "visible";
  const look = () => {
    for (const head of document.querySelectorAll("[class*=st-key-seat_] .sfn-seat")) {
      const seat = head.closest("[class*=st-key-seat_]");
      const text = seat.querySelector(".sfn-said"), foot = seat.querySelector(".sfn-seat-foot");
      const {asked, answered} = head.dataset, label = head.querySelector("em").textContent;
      const wrong = [];
      if (answered && answered !== asked && !label) wrong.push("an old answer without a word about it");
      if (seen(text) && text.dataset.question !== answered) wrong.push("another's text");
      if (seen(foot) && foot.dataset.answered !== answered) wrong.push("another's foot");
      for (const each of wrong) window.misnamed.push(`${each}: ${head.textContent}`);
    }
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}"""


@dataclass(frozen=True)
class Column:
    """What stands in a column at one moment. asked: key of the question that it is to answer. answered: key of the
    one that it does answer. label: what its head says of an answer to another question. foot: the lines under the
    answer, "" where they are not its own. said: the text, once it has ended; None before, and where it is another's."""

    asked: str
    answered: str
    label: str
    foot: str
    said: str | None


class MergePage:
    """One browser tab on the merge page."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url

    def open(self, **query: object) -> MergePage:
        """Open the page cold at the address of this state, and wait until it stands. Answers are shown letter by letter
        unless the state says otherwise."""
        self.page.goto(f"{self.url}/merge?{urlencode({'show': 'plain'} | query)}")
        return self.stands()

    def stands(self) -> MergePage:
        """Wait until board and columns are there."""
        expect(self.name("o_proj")).to_be_visible(timeout=WAIT_MS)
        expect(self.page.locator(".sfn-seat-foot").last).to_be_attached()
        return self

    # ---------------------------------------------------------------- the board

    def name(self, row: str) -> Locator:
        """The name of a row of the board."""
        return self.page.locator(f'[role=rowheader][aria-label^="{row}:"]')

    def layer(self, number: int) -> Locator:
        """The number of a layer above the board."""
        return self.page.locator(f'[role=columnheader][aria-label^="layer {number}:"]')

    def cell(self, layer: int, row: str) -> Locator:
        """One cell of the board."""
        return self.page.locator(f'[role=gridcell][aria-label^="Layer {layer} · {row}:"]')

    def from_b(self) -> int:
        """How many cells carry B's dot."""
        return self.page.locator('.grid [data-s="B"]').count()

    # ---------------------------------------------------------------- recipe and buttons

    @property
    def recipe(self) -> Locator:
        """The recipe's text box."""
        return self.page.locator(".st-key-recipe_box input")

    @property
    def verdict(self) -> Locator:
        """The line under the recipe."""
        return self.page.locator(".sfn-verdict")

    def write_recipe(self, text: str) -> None:
        """Type a recipe and leave the box."""
        self.recipe.fill(text)
        self.recipe.press("Enter")

    @property
    def run(self) -> Locator:
        """The button that runs."""
        return self.page.locator(".st-key-run button").first

    @property
    def stop(self) -> Locator:
        """The button that stops."""
        return self.page.locator(".st-key-stop button").first

    def press(self, button: Locator) -> bool:
        """Press a button if it can be pressed at this very moment; whether it could."""
        return button.evaluate("button => !button.disabled && (button.click(), true)")

    # ---------------------------------------------------------------- the columns

    def column(self, side: str) -> Column:
        """A column at one moment."""
        return Column(**self.page.evaluate(_COLUMN, side))

    def watch_names(self) -> None:
        """Look at every frame from now on whether an answer stands under another's name; `misnamed` tells."""
        self.page.evaluate(_WATCH_NAMES)

    def misnamed(self) -> list[str]:
        """What stood under another's name since `watch_names`."""
        return self.page.evaluate("() => window.misnamed")

    def answer(self, side: str) -> Locator:
        """The model text in a column."""
        return self.page.locator(f".st-key-answer_{side} .sfn-said")

    def act(self, side: str, what: str) -> None:
        """Choose from a column's menu."""
        self.page.locator(f".st-key-menu_{side} button").first.click()
        self.page.get_by_role("menuitem", name=what).click()

    def head(self, side: str) -> Locator:
        """The title of a column with the recipe that produced it."""
        return self.page.locator(f".st-key-seat_{side} .sfn-seat")

    def foot(self, side: str) -> Locator:
        """The line under a column."""
        return self.page.locator(f".st-key-seat_{side} .sfn-seat-foot")

    def texts(self) -> list[str]:
        """Model text of A, merged, B as it stands."""
        return [self.answer(side).evaluate("node => node.textContent") for side in SIDES]

    def ran(self) -> MergePage:
        """Wait until every column has ended."""
        for side in SIDES:
            expect(self.foot(side)).to_contain_text(ENDED, timeout=WAIT_MS)
        return self

    def watch(self) -> None:
        """Note every text that the columns show from now on; `seen` gives them back."""
        self.page.evaluate(
            """() => {
              window.seen = {};
              const note = () => document.querySelectorAll("[class*=st-key-answer_]").forEach((place) => {
                const side = place.className.match(/st-key-answer_(\\w+)/)[1];
                const text = place.querySelector(".sfn-said")?.textContent ?? "";
                const texts = (window.seen[side] ??= []);
                if (text && texts[texts.length - 1] !== text) texts.push(text);
              });
              new MutationObserver(note).observe(document.body, {subtree: true, childList: true, characterData: true});
            }"""
        )

    def seen(self) -> dict[str, list[str]]:
        """Every text that a column has shown since `watch`, in order."""
        return self.page.evaluate("() => window.seen")
