"""History: found by filters and search, opened and compared from the store alone, shown as text."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sfn.records import Generation, Question, Sampling

MARKUP = "**bold** <script>alert(1)</script> $x^2$"


def generation(text: str, *, recipe: str = "", engine: str = "transformers", mode: str = "plain") -> Generation:
    question = Question("p" * 64, f"plan {recipe}", recipe, "What is 2 + 2?", mode, "A", Sampling(), engine, "1", "cpu",
                        "bfloat16")  # fmt: skip
    return Generation(question, text, 5, 7, 0.1, 0.8, "stop", "base", "tuned", datetime(2026, 1, 2, tzinfo=UTC))


@pytest.fixture
def ids(bench) -> list[int]:
    return [
        bench.store.save_generation(generation("four")),
        bench.store.save_generation(generation(MARKUP, recipe="o_proj@all=B")),
        bench.store.save_generation(generation("vier", recipe="o_proj@all=B", engine="vllm", mode="chat")),
    ]


def listed(app) -> list[int]:
    return sorted(app.dataframe[0].value["id"].tolist()) if app.dataframe else []


def html(app) -> str:
    return "\n".join(element.proto.body for element in app.main.get("html"))


def test_everything_is_listed(visit, ids):
    assert listed(visit("history")) == ids


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"search": "VIER"}, [2]),
        ({"search": "2 + 2"}, [0, 1, 2]),
        ({"in_engine": "vllm"}, [2]),
        ({"in_mode": "plain"}, [0, 1]),
        ({"in_recipe": "o_proj@all=B"}, [1, 2]),
        ({"in_recipe": "(all A)"}, [0]),
        ({"in_recipe": "o_proj@all=B", "in_mode": "plain"}, [1]),
        ({"in_pair": "p" * 64}, [0, 1, 2]),
        ({"search": "nothing like it"}, []),
        ({"in_engine": "abacus"}, []),
    ],
)
def test_filters_in_the_address(visit, ids, query, found):
    app = visit("history", **query)
    assert not app.exception
    assert listed(app) == [ids[number] for number in found]


def test_filters_by_hand(visit, ids):
    app = visit("history")
    app.selectbox(key="in_recipe").set_value("o_proj@all=B").run()
    assert listed(app) == ids[1:]
    app.text_input(key="search").set_value("vier").run()
    assert listed(app) == ids[2:]
    assert app.query_params["search"] in ("vier", ["vier"])


def test_one_answer_opens_in_full_without_computing(visit, ids, bench):
    app = visit("history", ids=ids[0])
    assert [heading.value for heading in app.subheader] == ["Opened"]
    assert "four" in html(app)
    assert bench.engines.status.state == "stopped"


def test_several_are_compared(visit, ids):
    app = visit("history", ids=f"{ids[0]},{ids[2]}")
    assert [heading.value for heading in app.subheader] == ["Compared"]
    assert "four" in html(app)
    assert "vier" in html(app)


def test_what_a_model_said_is_text_never_markup(visit, ids):
    shown = html(visit("history", ids=ids[1]))
    assert "**bold** &lt;script&gt;alert(1)&lt;/script&gt; $x^2$" in shown
    assert "<script>" not in shown


def test_an_answer_that_is_not_there_is_a_sentence(visit, ids):
    app = visit("history", ids=f"{ids[0]},999")
    assert not app.exception
    assert "999" in app.error[0].value
    assert "four" in html(app)


def test_an_empty_history_says_where_answers_come_from(visit):
    app = visit("history")
    assert any("No answer was generated yet" in element.value for element in app.markdown)
    assert not app.dataframe
