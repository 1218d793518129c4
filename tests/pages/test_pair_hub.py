"""Pair with models on the Hub: found, proposed, checked from headers, held by their commits; refusals; downloads."""

from __future__ import annotations

import time

import pytest
from huggingface_hub import constants
from streamlit.testing.v1 import AppTest

from sfn import paper_pairs
from tests.builders import tiny_llama, tiny_qwen2
from tests.hub_server import Hub
from tests.pages.conftest import finish_scan, switch
from tests.pages.test_pair import html, take

A, B = "Qwen/Qwen2.5-Math-1.5B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"


@pytest.fixture
def models(hub: Hub, tmp_path) -> dict[str, str]:
    """The paper's smallest pair, with tiny contents: name -> commit."""
    return {
        A: hub.add(A, tiny_qwen2(tmp_path / "a"), card={"license": "apache-2.0"}, downloads=500),
        B: hub.add(B, tiny_qwen2(tmp_path / "b", 1), card={"license": "mit", "base_model": A}, downloads=90),
    }


def settle(app: AppTest, bench) -> AppTest:
    """The page once everything that it asks for in the background is there."""
    deadline = time.monotonic() + 30
    while True:
        while bench.lookups.busy() or bench.jobs.active():
            assert time.monotonic() < deadline, "the background did not come to rest"
            time.sleep(0.02)
        app.run()
        if not bench.lookups.busy() and not bench.jobs.active():
            return app


def offers(app: AppTest, side: str) -> list[str]:
    """Names that are offered for a side, in their order."""
    keys = [one.key for one in app.button if (one.key or "").startswith(f"take_{side}_")]
    return [key.split("_", 3)[3] for key in keys]


def errors(app: AppTest) -> str:
    return " ".join(error.value for error in app.error).replace("\\", "")


def query(app: AppTest, name: str) -> str:
    value = app.query_params.get(name, "")
    return value[0] if isinstance(value, list) else value


def test_a_card_fills_in_and_chooses_both(models, visit, bench):
    app = settle(visit(a=None, b=None), bench)
    assert "apache-2.0 → mit · " in html(app)
    assert "not on the Hub" in html(app)  # the other pairs
    app.button(key="choose_0").click().run()
    settle(app, bench)
    assert not app.exception
    assert query(app, "a") == f"{A}@{models[A]}"
    assert query(app, "b") == f"{B}@{models[B]}"
    assert "can be compared" in html(app)


def test_cards_are_drawn_before_the_hub_answers(models, hub, visit, bench):
    hub.delay_s = 1.5
    app = visit(a=None, b=None)
    assert not app.exception
    assert "asking the Hub …" in html(app)
    for pair in paper_pairs.PAIRS:
        assert pair.b.partition("/")[2].replace("DeepSeek-", "") in html(app)
    hub.delay_s = 0.0
    assert "asking the Hub …" not in html(settle(app, bench))


def test_search_then_b_then_the_proposed_base(models, visit, bench):
    app = settle(visit(a=None, b=None), bench)
    app.button_group(key="_pair_kind").set_value("any two models").run()
    app.text_input(key="find_b").set_value("distill qwen").run()
    settle(app, bench)
    assert offers(app, "b") == [B]
    take(app, B)
    settle(app, bench)
    assert any("A, the base model" in caption.value for caption in app.caption)
    assert offers(app, "a")[0] == A
    take(app, A)
    settle(app, bench)
    assert not app.exception
    assert query(app, "a") == f"{A}@{models[A]}"
    assert "can be compared" in html(app)


def test_choosing_a_proposes_its_children(models, hub, visit, bench, tmp_path):
    child = "someone/a-thinking-one"
    hub.add(child, tiny_qwen2(tmp_path / "c", 2), card={"base_model": A}, downloads=1)
    hub.add("someone/plain", tiny_qwen2(tmp_path / "d", 2), card={"base_model": A}, downloads=1000)
    app = settle(visit(a=None, b=None), bench)
    app.button_group(key="_pair_kind").set_value("any two models").run()
    app.text_input(key="find_a").set_value(f"https://huggingface.co/{A}/tree/main").run()
    take(app, f"{A}@main")
    settle(app, bench)
    assert offers(app, "b")[:3] == [B, child, "someone/plain"]


def test_what_each_stethoscope_can_do_and_the_two_ways_on(models, visit, bench):
    app = settle(visit(a=A, b=B), bench)
    assert "after a download" in html(app)
    assert "over the network, and keeps nothing" in html(app)
    assert any("Read over the network" in element.value for element in app.markdown)
    app.button(key="fetch").click().run()
    settle(app, bench)
    assert not app.exception
    assert "after a download" not in html(app)
    assert not any("Read over the network" in element.value for element in app.markdown)


def test_depths_that_differ_stop_a_merge_in_words(models, hub, visit, bench, tmp_path):
    hub.add("org/deep", tiny_qwen2(tmp_path / "deep", layers=3))
    app = settle(visit(a=A, b="org/deep"), bench)
    assert "These two cannot be merged: A has 2 layers, B has 3." in html(app)
    assert html(app).count("<span>cannot</span>") >= 2


def test_what_does_not_fit_on_the_disk_is_refused_before_anything_is_fetched(models, hub, visit, bench, monkeypatch):
    from sfn import abilities

    real = abilities.machine
    monkeypatch.setattr(abilities, "machine", lambda: abilities.Machine(real().memory_bytes, 0, 1000, 10**12))
    app = settle(visit(a=A, b=B), bench)
    assert "Downloading takes" in errors(app)
    assert app.button(key="fetch").disabled


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("org/gated", "org/gated is gated"),
        ("org/nothing", "There is no model org/nothing"),
        ("org/data", "is a data set, not a model"),
        ("org/pickled", "pickle format"),
        (f"{A}@nope", "has no revision 'nope'"),
    ],
)
def test_refusals_stand_where_the_model_was_chosen(models, hub, visit, bench, tmp_path, name, words):
    hub.add("org/gated", tiny_llama(tmp_path / "g"), gated="manual")
    hub.add("org/data", tiny_llama(tmp_path / "e"), kind="datasets")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "pytorch_model.bin").write_bytes(b"content")
    hub.add("org/pickled", tmp_path / "p")
    app = settle(visit(a=A, b=name), bench)
    assert not app.exception
    assert errors(app).count(words) == 1, errors(app)
    links = [element.proto.url for element in app.get("link_button")]
    assert links == ([f"{hub.endpoint}/org/gated"] if name == "org/gated" else [])


def test_a_branch_that_moved_is_said_and_the_new_commit_can_be_taken(models, hub, visit, bench, tmp_path):
    app = settle(visit(a=A, b=B), bench)
    new = hub.add(A, tiny_qwen2(tmp_path / "new", 5))
    again = settle(visit(a=query(app, "a"), b=query(app, "b")), bench)
    bench.lookups.forget(lambda key: key[0] == "listing")
    settle(again, bench)
    assert any(new[:10] in element.value for element in again.markdown)
    again.button(key="take_new_a").click().run()
    settle(again, bench)
    assert query(again, "a") == f"{A}@{new}"
    assert not any("Take the new commit" in button.label for button in again.button)


def test_offline_what_was_seen_opens_and_it_is_said(models, visit, bench, monkeypatch):
    app = settle(visit(a=A, b=B), bench)
    address = {side: query(app, side) for side in "ab"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = settle(visit(**address), bench)
    assert not again.exception
    assert not errors(again)
    assert "can be compared" in html(again)
    again.button_group(key="_pair_kind").set_value("the paper's pairs").run()
    assert any("HF_HUB_OFFLINE is set" in caption.value for caption in again.caption)


def test_the_token_is_nowhere_on_the_page(models, hub, visit, bench, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.tokens["hf_secret"] = set()
    hub.repos[A].gated = "manual"
    app = settle(visit(a=A, b=B), bench)
    assert any(request.authorization == "Bearer hf_secret" for request in hub.requests)
    assert "is gated" in errors(app)
    assert "hf_secret" not in html(app) + errors(app) + str(dict(app.query_params)) + str(app.session_state)


def test_merge_offers_the_download(models, visit, bench):
    app = settle(visit("merge", a=A, b=B), bench)
    assert not app.exception
    assert any("need both models on this machine" in element.value for element in app.markdown)
    assert app.button(key="fetch")


def test_history_and_recent_lead_back_to_the_commit(models, visit, bench):
    settle(visit(a=A, b=B), bench)
    app = settle(visit(a=None, b=None), bench)
    app.button_group(key="_pair_kind").set_value("any two models").run()
    assert f"{A}@{models[A]}" in offers(app, "a")
    assert f"{B}@{models[B]}" in offers(app, "b")
    switch(app, "delta", a=f"{A}@{models[A]}", b=f"{B}@{models[B]}")
    finish_scan(bench)
    assert not app.exception


def test_a_scan_whose_connection_breaks_says_so_and_goes_on(models, hub, visit, bench):
    app = settle(visit("delta", a=A, b=B, scan="o_proj"), bench)
    hub.clear()
    hub.fault("cut", host="cdn", times=1000, after=0, skip=1)
    hub.fault("status", host="hub", path="/resolve/", times=1000, code=500)
    app.button(key="start_scan").click().run()
    settle(app, bench)
    assert not app.exception
    assert "is lost" in errors(app), errors(app)  # "nothing finished is lost"
    assert app.button(key="start_scan").label == "Go on"
    hub.clear()
    app.button(key="start_scan").click().run()
    settle(app, bench)
    assert not errors(app)
    assert app.button(key="start_scan").disabled


def test_nothing_is_read_of_a_pair_on_the_hub_unless_asked(models, hub, visit, bench):
    settle(visit("delta", a=A, b=B), bench)
    settle(visit("merge", a=A, b=B), bench)
    assert not [request for request in hub.requests if request.host == "cdn" and "bytes=0-" not in request.range]
    assert not any(job.key.startswith("scan:") for job in bench.jobs.recent(60))


def test_two_viewers_with_different_pairs(models, hub, visit, bench, tmp_path):
    hub.add("org/c", tiny_qwen2(tmp_path / "c", 3))
    one, two = visit(a=A, b=B), visit(a="org/c", b=B)
    settle(one, bench)
    settle(two, bench)
    assert query(one, "a") == f"{A}@{models[A]}"
    assert query(two, "a").startswith("org/c@")


def test_a_download_that_fails_is_gone_on_with(models, hub, visit, bench):
    app = settle(visit(a=A, b=B), bench)
    hub.fault("status", host="hub", path=r"/resolve/.*safetensors", method="HEAD", times=1000, code=403)
    app.button(key="fetch").click().run()
    settle(app, bench)
    assert "no right to" in errors(app)
    assert app.button(key="fetch").label == "Go on downloading"
    hub.clear()
    app.button(key="fetch").click().run()
    settle(app, bench)
    assert not errors(app)
    assert not any("Read over the network" in element.value for element in app.markdown)
