"""The frame: every page opens cold and switched, the sidebar stands, choices survive, failures are sentences."""

from __future__ import annotations

import pytest

from sfn import workbench
from sfn.errors import StoreError
from tests.pages.conftest import finish_scan, switch

TITLES = {
    "pair": "Which two models are compared?",
    "delta": "What changed between A and B?",
    "merge": "What if A had B's …?",
    "history": "What was said before?",
}


@pytest.mark.parametrize("page", TITLES)
def test_a_page_opens_cold(visit, page):
    app = visit(page)
    assert not app.exception
    assert not app.error
    assert [title.value for title in app.title] == [TITLES[page]]


def test_pages_open_one_after_the_other_and_keep_the_pair(visit, folders):
    app = visit()
    for page in ("delta", "merge", "history", "pair"):
        switch(app, page)
        assert not app.exception
        assert [title.value for title in app.title] == [TITLES[page]]
        assert app.query_params["a"] in (folders[0], [folders[0]])


def test_the_sidebar_names_pair_engine_and_jobs_in_this_order(visit):
    app = visit()
    said = [element.proto.body for element in app.sidebar.get("html")]
    heads = [text.split(">")[1].split("<")[0] for text in said if "sfn-head" in text]
    assert heads == ["Pair", "Engine", "Jobs"]
    assert any("base" in text and "tuned" in text for text in said)


def test_a_choice_survives_a_page_switch_and_comes_back_to_the_address(visit, bench):
    app = visit("delta")
    finish_scan(bench)
    app.selectbox(key="figure").set_value("cosine").run()
    switch(app, "history")
    assert "figure" not in app.query_params
    switch(app, "delta")
    assert app.selectbox(key="figure").value == "cosine"
    assert app.query_params["figure"] in ("cosine", ["cosine"])


def test_a_store_that_cannot_be_used_is_one_sentence_on_every_page(visit, monkeypatch):
    def broken():
        raise StoreError("The results database is held by another process.")

    app = visit()
    monkeypatch.setattr(workbench, "current", broken)
    for page in TITLES:
        switch(app, page)
        assert not app.exception
        assert "held by another process" in app.error[0].value.replace("\\", "")


def test_a_damaged_file_that_was_set_aside_is_told(visit, bench):
    bench.store.notice = "The results database was damaged; it was set aside as sfn.duckdb.damaged."
    app = visit()
    assert "set aside" in app.warning[0].value.replace("\\", "")
