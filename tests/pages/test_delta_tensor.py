"""Delta, one tensor in depth: modes, map, spectrum, heads, tokens, experts; from the store, by button, cancelled."""

from __future__ import annotations

import json

import pytest
import streamlit as st

from sfn import checkpoints, delta, looks, pairs, spectrum, workbench
from sfn.ui import delta_memos, looking
from sfn.ui.cached import Memo
from tests.builders import tiny_fused_moe, tiny_phi3, tiny_qwen3_moe
from tests.pages.conftest import finish_scan
from tests.pages.test_delta import measured, titles

O_PROJ = "model.layers.1.self_attn.o_proj.weight"
K_BIAS = "model.layers.1.self_attn.k_proj.bias"


def texts(app) -> str:
    shown = [element.value for kind in (app.markdown, app.caption) for element in kind]
    return "\n".join([*shown, *(element.proto.body for element in app.get("html"))]).replace("\\", "")


def looked_at(visit, bench, *, a, b, **query):
    """The page of a pair of its own with a tensor open, once everything that is computed by itself is there."""
    for more in ({}, query):
        visit("delta", a=a, b=b, **more)
        finish_scan(bench)
    app = visit("delta", a=a, b=b, **query)
    assert not app.exception
    return app


def opened(visit, bench, name, **query):
    """The page with a tensor open, once everything that is computed by itself is there."""
    measured(visit, bench, tensor=name, **query)
    finish_scan(bench)
    app = visit("delta", tensor=name, **query)
    assert not app.exception
    return app


def test_a_tensor_in_depth(visit, bench):
    app = opened(visit, bench, O_PROJ)
    assert {
        "Relative change of every element",
        "Where it changed: mean of |w_B − w_A|",
        "Spectrum of ΔW",
        "Do the first k directions lie along w_A's?",
        "L2 shift of each head",
    } <= set(titles(app))
    said = texts(app)
    assert "8 columns make a head" in said
    assert "Too few changed elements" in said
    assert "does not show that a tensor carries an ability" in said
    assert "stable rank" in said


def test_what_is_in_the_store_is_not_computed_again(visit, bench, monkeypatch):
    opened(visit, bench, O_PROJ)
    computed = []

    def count(room, name):
        real = getattr(room, name)
        monkeypatch.setattr(room, name, lambda what, *args, **how: computed.append(what) or real(what, *args, **how))

    count(delta, "scan")
    count(looks, "compute")
    workbench.close()  # as after a restart: nothing but the store knows what was found
    st.cache_resource.clear()
    monkeypatch.setattr(delta_memos, "_looks", Memo(24))
    app, again = visit("delta", tensor=O_PROJ), visit("delta", tensor=O_PROJ)
    for page in (app, again):
        assert not page.exception
        assert {"Where it changed: mean of |w_B − w_A|", "Spectrum of ΔW", "L2 shift of each head"} <= set(titles(page))
    again.selectbox(key="figure").set_value("cosine").run()
    assert titles(again) == ["Cosine of every module in every layer", "Cosine over the layers"]  # and nothing else
    finish_scan(workbench.current())
    assert computed == []
    app.button(key="tensor_after").click().run()  # one that nobody looked at: the counting counts
    finish_scan(workbench.current())
    assert computed == ["slices"]


def test_a_bias_has_heads_but_no_map(visit, bench):
    app = opened(visit, bench, K_BIAS)
    assert "L2 shift of each KV head" in titles(app)
    assert "Spectrum of ΔW" not in titles(app)
    assert "KV head" in texts(app)


def test_tokens_that_moved_most_are_named(visit, bench):
    name = "model.embed_tokens.weight"
    opened(visit, bench, name)
    ids = None
    for _ in range(100):
        app = visit("delta", tensor=name)
        table = app.dataframe[0].value
        ids = table["number"].tolist()
        if "…" not in table["token"].tolist():
            break
    assert len(ids) == 100
    assert "Hartigan" in texts(app)
    assert table["L2 shift"].is_monotonic_decreasing
    assert (table.loc[table["number"] >= 261, "token"] == "").all()  # rows without a token
    assert (table.loc[table["number"] < 260, "token"] != "").all()


def test_a_part_of_the_map_is_in_the_address(visit, bench):
    app = opened(visit, bench, O_PROJ, map_part="4-20,8-32")
    assert "rows 4 to 19, columns 8 to 31" in texts(app)
    app.button(key="map_whole").click().run()
    assert "map_part" not in app.query_params
    app = opened(visit, bench, O_PROJ, map_part="4-20,8-99")
    assert any("is no part of a tensor of 32 × 32" in error.value.replace("\\", "") for error in app.error)
    assert "Spectrum of ΔW" in titles(app)  # the rest stands


def test_another_tensor_begins_with_its_whole_map(visit, bench):
    app = opened(visit, bench, O_PROJ, map_part="4-20,8-32")
    app.button(key="tensor_after").click().run()
    assert "map_part" not in app.query_params


def test_a_large_tensor_waits_for_a_click(visit, bench, monkeypatch):
    monkeypatch.setattr(looking, "UNASKED_BYTES", 0)
    app = opened(visit, bench, O_PROJ)
    assert not [job for job in bench.jobs.recent(600) if job.key.startswith("look:")]
    assert "it means reading" in texts(app)
    app.button(key="compute_spectrum").click().run()
    finish_scan(bench)
    assert "Spectrum of ΔW" in titles(visit("delta", tensor=O_PROJ))


@pytest.mark.parametrize("figure", ["dip", "ashman_d", "outside"])
def test_shapes_are_on_the_board(visit, bench, figure):
    app = measured(visit, bench, figure=figure)
    assert not app.exception
    assert "modules and layers" in texts(app)


def test_experts_beside_each_other(visit, bench, tmp_path):
    pair = {"a": tiny_qwen3_moe(tmp_path / "a", 0), "b": tiny_qwen3_moe(tmp_path / "b", 1)}
    name = "model.layers.0.mlp.experts.2.up_proj.weight"
    app = looked_at(visit, bench, tensor=name, **pair)
    assert "L2 shift of each expert" in titles(app)
    spec = next(json.loads(c.proto.spec) for c in app.get("vega_lite_chart") if "each expert" in str(c.proto.spec))
    assert spec["layer"]
    assert "moved furthest by L2 shift" in texts(app)


def test_all_experts_in_one_tensor(visit, bench, tmp_path):
    pair = {"a": tiny_fused_moe(tmp_path / "a", 0), "b": tiny_fused_moe(tmp_path / "b", 1)}
    name = "model.layers.0.mlp.experts.gate_up_proj"
    app = looked_at(visit, bench, tensor=name, of_expert=2, **pair)
    assert {"L2 shift of each expert", "Spectrum of ΔW"} <= set(titles(app))
    said = texts(app)
    assert "All experts lie in this one tensor" in said
    assert "Expert 2: gate: L2 shift" in said
    assert "rows 0 to 47, columns 0 to 31" in said  # the map is of one expert
    assert [len(table.value) for table in app.dataframe] == [20, 20]


def test_heads_of_a_fused_tensor_are_chosen_by_kind(visit, bench, tmp_path):
    pair = {"a": tiny_phi3(tmp_path / "a", 0), "b": tiny_phi3(tmp_path / "b", 1)}
    name = "model.layers.0.self_attn.qkv_proj.weight"
    app = looked_at(visit, bench, tensor=name, **pair)
    assert "L2 shift of each query head" in titles(app)
    assert "L2 shift of each value head" in titles(visit("delta", tensor=name, head_kind="value head", **pair))


def test_a_sketch_says_so_and_can_be_made_exact(visit, bench, monkeypatch):
    monkeypatch.setattr(spectrum, "_UNASKED_S", 0.0)
    app = opened(visit, bench, O_PROJ)
    assert "by a random sketch" in texts(app)
    button = app.button(key="compute_spectrum_exact")
    assert button.label.startswith("Compute exactly (about ")
    button.click().run()
    finish_scan(bench)
    app = visit("delta", tensor=O_PROJ)
    assert "All singular values, from the eigenvalues of the Gram matrix" in texts(app)
    assert not [button for button in app.button if button.key == "compute_spectrum_exact"]


def test_the_last_looks_are_remembered_within_bounds(visit, bench, monkeypatch):
    monkeypatch.setattr(delta_memos, "_looks", Memo(2))
    opened(visit, bench, O_PROJ)
    assert len(delta_memos._looks) <= 2


def test_leaving_a_tensor_ends_what_is_computed_of_it(visit, bench, folders, monkeypatch):
    monkeypatch.setattr(looking, "UNASKED_BYTES", 0)
    app = opened(visit, bench, O_PROJ)
    with checkpoints.open(folders[0]) as a, checkpoints.open(folders[1]) as b:
        key = f"look:{pairs.compare(a, b).key}:{O_PROJ}:spectrum:v2"
    owner = app.session_state["_owner"]
    job = bench.jobs.start("a long look", lambda job: job.cancel_event.wait(30), key=key, owner=owner)
    app.button(key="tensor_close").click().run()
    assert job.finished.wait(5)
    assert job.cancel_event.is_set()
