"""Delta: measured by itself when small, drawn from the store, cancelled and resumed, one tensor opened."""

from __future__ import annotations

import json

from sfn import checkpoints, pairs
from sfn.ui import scanning
from tests.builders import tiny_qwen2
from tests.pages.conftest import finish_scan

TENSOR = "model.layers.1.self_attn.o_proj.weight"


def charts(app) -> list[dict]:
    return [json.loads(element.proto.spec) for element in app.get("vega_lite_chart")]


def titles(app) -> list[str]:
    found = [chart.get("title", "") for chart in charts(app)]
    return [title["text"] if isinstance(title, dict) else title for title in found]


def measured(visit, bench, **query):
    visit("delta")
    finish_scan(bench)
    return visit("delta", **query)


def test_a_small_pair_is_measured_by_itself(visit, bench, folders):
    visit("delta")
    finish_scan(bench)
    with checkpoints.open(folders[0]) as a, checkpoints.open(folders[1]) as b:
        pair = pairs.compare(a, b)
        assert len(bench.store.deltas(pair.key)) == sum(row.comparable for row in pair.rows)


def test_board_lines_and_a_histogram_per_module_are_drawn(visit, bench):
    app = measured(visit, bench)
    assert not app.exception
    assert titles(app)[:2] == ["L2 shift of every module in every layer", "L2 shift over the layers"]
    assert {"q_proj", "o_proj", "down_proj"} <= set(titles(app)[2:])


def test_the_frame_of_the_charts_does_not_depend_on_the_data(visit, bench):
    early = charts(visit("delta"))[0]
    finish_scan(bench)
    assert charts(visit("delta"))[0] == early


def test_what_is_stored_is_not_measured_again(visit, bench):
    measured(visit, bench)
    jobs = [job for job in bench.jobs.recent(60) if job.key.startswith("scan:")]
    assert len(jobs) == 1


def test_a_large_pair_waits_for_the_button(visit, bench, monkeypatch):
    monkeypatch.setattr(scanning, "_SMALL_BYTES", 0)
    app = visit("delta")
    assert not bench.jobs.active()
    app.button(key="start_scan").click().run()
    finish_scan(bench)
    app.run()
    assert not app.exception
    assert any("tensors measured" in caption.value for caption in app.caption)


def test_a_tensor_in_the_address_is_open(visit, bench):
    app = measured(visit, bench, tensor=TENSOR)
    assert "Relative change of every element" in titles(app)
    shown = "\n".join(element.proto.body for element in app.main.get("html"))
    assert "layer 1 · o_proj" in shown
    assert "relative shift" in shown


def test_before_after_and_close(visit, bench):
    app = measured(visit, bench, tensor=TENSOR)
    app.button(key="tensor_after").click().run()
    assert app.session_state["tensor"] == "model.layers.1.post_attention_layernorm.weight"
    app.button(key="tensor_before").click().run()
    assert app.session_state["tensor"] == TENSOR
    app.button(key="tensor_close").click().run()
    assert "Relative change of every element" not in titles(app)


def test_a_bias_is_reached_from_its_weight(visit, bench):
    app = measured(visit, bench, tensor="model.layers.0.self_attn.q_proj.weight")
    app.selectbox(key="_tensor_sibling model.layers.0.self_attn.q_proj.weight").set_value(
        "model.layers.0.self_attn.q_proj.bias"
    ).run()
    assert app.session_state["tensor"] == "model.layers.0.self_attn.q_proj.bias"
    assert not app.exception


def test_what_is_seen_is_said_in_words_with_a_warning(visit, bench):
    app = measured(visit, bench)
    assert any("furthest" in element.value for element in app.markdown)
    assert any("A large change does not show" in caption.value for caption in app.caption)


def test_the_form_in_use_is_named(visit, bench):
    app = measured(visit, bench, form="paper", tensor=TENSOR)
    assert "(w_B − w_A) / w_A" in json.dumps(charts(app), ensure_ascii=False)


def test_only_chosen_modules_are_measured_and_the_address_says_which(visit, bench, folders, monkeypatch):
    monkeypatch.setattr(scanning, "_SMALL_BYTES", 0)
    app = visit("delta")
    app.button(key="scan_o_proj").click().run()
    assert app.query_params["scan"] in ("o_proj", ["o_proj"])
    app.button(key="start_scan").click().run()
    finish_scan(bench)
    app.run()
    assert not app.exception
    with checkpoints.open(folders[0]) as a, checkpoints.open(folders[1]) as b:
        pair = pairs.compare(a, b)
    assert {one.module for one in bench.store.deltas(pair.key)} == {"o_proj"}
    assert any("o_proj only among them" in element.value.replace("\\", "") for element in app.markdown)
    assert app.button(key="start_scan").disabled


def test_a_choice_is_the_same_after_it_was_written():
    for text in ("", "o_proj", "o_proj,v_proj@0-9", "@5-5"):
        assert str(scanning.Choice.parse(text)) == text
    assert scanning.Choice.parse("o_proj@3") == scanning.Choice(("o_proj",), (3, 3))
    assert scanning.Choice.parse("@x") == scanning.Choice()


def test_layers_of_a_choice_leave_out_what_stands_in_none(visit, folders):
    with checkpoints.open(folders[0]) as a, checkpoints.open(folders[1]) as b:
        pair = pairs.compare(a, b)
    rows = scanning.Choice.parse("@1-1").rows(pair)
    assert rows
    assert {row.part.layer for row in rows} == {1}


def test_a_choice_that_the_pair_lacks_is_told(visit, monkeypatch):
    monkeypatch.setattr(scanning, "_SMALL_BYTES", 0)
    app = visit("delta", scan="nothing_proj@7")
    assert not app.exception
    assert any("has nothing of" in element.value for element in app.markdown)
    assert app.button(key="start_scan").disabled


def test_the_papers_figures_are_one_click_away_with_their_captions(visit, bench):
    app = measured(visit, bench)
    app.segmented_control(key="layout").set_value("paper").run()
    assert not app.exception
    assert titles(app)[0] == "L2 shift of each module over the layers"
    assert any(element.value.startswith("Clipping puts") for element in app.markdown)
    captions = [element.value for element in app.code]
    assert len(captions) == 2
    assert all("content" in text and "SfN" in text for text in captions)
    assert dict(app.query_params)["layout"] == "paper"


def test_every_chart_on_the_page_can_be_chosen_to_be_saved(visit, bench):
    app = measured(visit, bench, tensor=TENSOR)
    drawn = len(charts(app))
    app.session_state["save_menu"] = True
    app.run()
    assert not app.exception
    assert len(app.selectbox(key="save_chart").options) == drawn


def test_a_second_pair_lies_over_the_first_on_normalised_depth(visit, bench, folders, tmp_path):
    other = tiny_qwen2(tmp_path / "deeper", 5, layers=4)
    measured(visit, bench, a=str(other), b=str(tiny_qwen2(tmp_path / "deeper tuned", 6, layers=4)))
    app = measured(visit, bench)
    key = next(key for key in app.selectbox(key="beside").options if "deeper" in key)
    found = next(pair.key for pair in bench.store.pairs() if "deeper" in pair.a_label)
    assert "deeper" in key
    app.selectbox(key="beside").set_value(found).run()
    assert not app.exception
    assert "L2 shift of two pairs over their depth" in titles(app)
    again = visit("delta", beside=found)
    assert "L2 shift of two pairs over their depth" in titles(again)
    assert any("In the second pair" in element.value for element in again.markdown)


def test_an_unknown_second_pair_is_a_sentence(visit, bench):
    app = measured(visit, bench, beside="0" * 64)
    assert not app.exception
    assert "L2 shift over the layers" in titles(app)
