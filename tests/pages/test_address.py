"""Permalinks: what the address says is what a fresh session shows; what cannot be used is a sentence."""

from __future__ import annotations

import pytest

from tests.pages.conftest import finish_scan, switch


def said(app) -> str:
    return " ".join(element.value for element in [*app.warning, *app.error]).replace("\\", "")


def query(app) -> dict[str, str]:
    return {name: value[0] if isinstance(value, list) else value for name, value in app.query_params.items()}


def test_what_was_chosen_on_delta_opens_in_a_fresh_session(visit, bench):
    first = visit("delta")
    finish_scan(bench)
    first.selectbox(key="figure").set_value("relative_shift").run()
    address = query(first)
    again = visit("delta", **address)
    assert again.selectbox(key="figure").value == "relative_shift"
    assert not again.warning


def test_a_link_that_leaves_something_out_means_the_default(visit, folders):
    app = visit("delta", scale="log")
    switch(app, "history")
    switch(app, "delta", a=folders[0], b=folders[1], figure="cosine")
    assert app.selectbox(key="figure").value == "cosine"
    assert app.session_state["scale"] == "linear"


def test_the_navigation_leaves_every_choice_as_it_is(visit, folders):
    app = visit("delta", scale="log")
    switch(app, "history")
    switch(app, "delta")
    assert app.session_state["scale"] == "log"
    assert app.session_state["a"] == folders[0]


def test_defaults_are_left_out(visit):
    assert set(query(visit("delta"))) == {"a", "b"}


@pytest.mark.parametrize(
    ("name", "value", "legal"),
    [
        ("figure", "foo", "rms_shift"),
        ("scale", "cubic", "linear, log"),
        ("every", "-3", "from 0 to 1000"),
        ("every", "many", "a number"),
        ("form", "thesis", "script, paper"),
        ("part", "soul", "weight, bias"),
    ],
)
def test_a_bad_value_is_named_with_what_is_legal(visit, name, value, legal):
    app = visit("delta", **{name: value})
    assert not app.exception
    assert f"“{value}”" in said(app)
    assert legal in said(app)
    assert name not in query(app)


def test_a_bad_value_is_not_told_again_on_the_next_page(visit):
    app = visit("delta", figure="foo")
    assert said(app)
    switch(app, "pair")
    assert not said(app)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e9"])
def test_numbers_that_are_none_never_reach_a_setting(visit, value):
    app = visit("merge", temperature=value)
    assert not app.exception
    assert f"“{value}”" in said(app)


def test_a_tensor_that_the_pair_lacks_is_a_sentence(visit, bench):
    app = visit("delta", tensor="model.layers.99.nothing")
    assert not app.exception
    assert "no tensor “model.layers.99.nothing”" in said(app)


def test_markdown_in_a_bad_value_stays_text(visit):
    app = visit("delta", figure="**[click](https://example.org)**")
    assert "\\*\\*\\[click\\]" in app.warning[0].value


def test_answers_that_are_no_numbers_are_a_sentence(visit):
    app = visit("history", ids="1,x")
    assert not app.exception
    assert "1,x" in said(app)
