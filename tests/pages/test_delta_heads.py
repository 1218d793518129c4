"""Delta, all heads of a module: computed layer by layer, kept, never twice; by button, cancelled; one is opened."""

from __future__ import annotations

import json

from sfn.ui import looking
from tests.builders import tiny_qwen2
from tests.pages.conftest import finish_scan
from tests.pages.test_delta import measured
from tests.pages.test_delta_tensor import texts

O_PROJ = "model.layers.1.self_attn.o_proj.weight"


def heads(visit, bench, **query):
    """The layout "heads", once everything that is computed by itself is there."""
    measured(visit, bench, layout="heads", **query)
    finish_scan(bench)
    app = visit("delta", layout="heads", **query)
    assert not app.exception
    return app


def chart(app) -> dict:
    return next(json.loads(c.proto.spec) for c in app.get("vega_lite_chart") if "every layer" in c.proto.spec)


def looks(bench) -> list[str]:
    return [job.key.split(":")[0] for job in bench.jobs.recent(600) if job.key.startswith("look")]


def test_all_heads_of_a_small_pair_are_computed_by_themselves_once(visit, bench):
    app = heads(visit, bench)
    assert chart(app)["title"] == "L2 shift of every head in every layer"
    assert "of layer" in texts(app)
    assert "2 layers computed" in texts(app)
    assert looks(bench) == ["looks"]
    heads(visit, bench)
    assert looks(bench) == ["looks"]


def test_the_map_can_be_saved_as_numbers(visit, bench):
    (shown,) = heads(visit, bench).session_state["_delta_shown"]["heads"]
    found = shown.data()
    assert list(found.columns) == ["layer", "number", "head", "l2_shift", "relative_shift"]
    assert len(found) == 2 * 4


def test_a_look_at_one_tensor_is_part_of_the_map(visit, bench):
    """And the other way round."""
    heads(visit, bench)
    app = heads(visit, bench, tensor=O_PROJ)
    assert "8 columns make a head" in texts(app)
    kinds = [job.key for job in bench.jobs.recent(600) if job.key.startswith("look:")]
    assert not [key for key in kinds if "slices" in key]


def test_another_module_and_figure_are_in_the_address(visit, bench):
    app = heads(visit, bench, heads_of="k_proj", heads_by="relative_shift")
    assert chart(app)["title"] == "Relative shift of every KV head in every layer"
    assert "KV head" in texts(app)
    assert app.query_params["heads_of"] == "k_proj"


def test_what_is_large_says_what_it_reads_and_waits(visit, bench, monkeypatch):
    monkeypatch.setattr(looking, "UNASKED_BYTES", 0)
    app = heads(visit, bench)
    assert not looks(bench)
    assert "0 of 2 layers are computed; the rest means reading 8.19 kB" in texts(app)
    app.button(key="start_heads").click().run()
    finish_scan(bench)
    assert "2 layers computed" in texts(visit("delta", layout="heads"))


def test_a_cancelled_map_keeps_what_it_has(visit, bench, monkeypatch):
    monkeypatch.setattr(looking, "UNASKED_BYTES", 0)
    save, saved = bench.store.save_look, []

    def first_alone(*look: object) -> None:
        save(*look)
        saved.append(look[1])
        bench.jobs.active()[0].cancel_event.set()

    monkeypatch.setattr(bench.store, "save_look", first_alone)
    app = heads(visit, bench)
    app.button(key="start_heads").click().run()
    finish_scan(bench)
    monkeypatch.setattr(bench.store, "save_look", save)
    app = visit("delta", layout="heads")
    assert "Cancelled; 1 of 2 layers are computed" in texts(app)
    app.button(key="start_heads").click().run()
    finish_scan(bench)
    assert "2 layers computed" in texts(visit("delta", layout="heads"))
    assert len(saved) == 1


def test_heads_that_cannot_be_told_are_said(visit, bench, tmp_path):
    pair = {side: tiny_qwen2(tmp_path / side, seed, num_attention_heads=5) for seed, side in enumerate("ab")}
    app = heads(visit, bench, **pair)
    assert "no attention whose heads can be told apart" in texts(app)
    assert "The heads of o_proj cannot be told apart: A's config.json does not say how many" in texts(app)


def test_heads_of_models_on_the_hub_wait_for_a_click_and_fetch_no_more_than_they_need(hub, visit, bench, tmp_path):
    pair = {side: f"org/{side}" for side in "ab"}
    for seed, name in enumerate(pair.values()):
        hub.add(name, tiny_qwen2(tmp_path / name, seed))
    visit("delta", layout="heads", **pair)
    finish_scan(bench)  # opens the pair
    app = visit("delta", layout="heads", **pair)
    assert "the rest means reading 8.19 kB over the network" in texts(app)
    app.button(key="start_heads").click().run()
    finish_scan(bench)
    app = visit("delta", layout="heads", **pair)
    assert "2 layers computed" in texts(app)
    assert not any(job.key.startswith("scan:") for job in bench.jobs.recent(60))
