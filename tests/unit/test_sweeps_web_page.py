"""A sweep as a web page: every answer whole, nothing that a model wrote becomes HTML."""

import html
from html.parser import HTMLParser

from sfn.records import SweepCell
from sfn.sweeps import A_ROW, Line, Prompt, Sweep, readings, web_page
from tests.unit.test_store_generations import answer

EVIL = "<script>alert(1)</script>\n  two & three"


class Tags(HTMLParser):
    """Collects tags and text."""

    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def drawn(sweep, columns, cells):
    page = web_page(
        sweep, (Line("o_proj", "mixes <b>"), Line("head")), columns, readings(sweep, cells), ("from <here>",)
    )
    tags = Tags()
    tags.feed(page)
    return page, tags


def test_answers_are_whole_and_escaped():
    sweep = Sweep("list", "prompts", (Prompt("a < b", "22"), Prompt("c")), recipes=("o_proj=B", "head=B"))
    cells = [
        SweepCell(0, 0, "o_proj@all=B", None, "k", generation=answer(EVIL)),
        SweepCell(0, 1, "o_proj@all=B", None, "l", error="The engine <died>."),
        SweepCell(1, 0, "head=B", None, "", problem="It does not fit."),
    ]
    page, tags = drawn(sweep, (Line("a < b"), Line("c")), cells)
    assert "script" not in [tag for tag, _ in tags.tags]
    assert html.escape(EVIL) in page
    for words in ("a < b", "from <here>", "mixes <b>", "The engine <died>.", "It does not fit.", "o_proj@all=B"):
        assert words in tags.words
    assert "✗ does not contain the reference" in page


def test_one_answer_of_a_stands_beside_all_columns_of_recipes():
    sweep = Sweep("each", "thirds", (Prompt("x"),))
    cells = [SweepCell(A_ROW, 0, "", None, "k", generation=answer("A says"))]
    _, tags = drawn(sweep, (Line("1"), Line("2"), Line("3")), cells)
    assert [attrs.get("colspan") for tag, attrs in tags.tags if tag == "td"] == ["3"]
    assert "A says" in tags.words
