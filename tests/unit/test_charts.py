"""Charts: their frame does not depend on the data, "more" stands out in both themes, tails have bars of their own."""

from __future__ import annotations

import json

import altair as alt
import pandas as pd
import pytest

from sfn import charts, tables
from tests.unit.test_tables import decoder, histograms, measured, pair

NAMES = decoder(3)
APART = "model.norm.weight"


def board(names: list[str] = NAMES, **figures: float) -> pd.DataFrame:
    there = [name for name in names if name != APART]
    return tables.board(tables.tensors(pair(NAMES, apart=(APART,))), measured(there, **figures))


def heatmap(table: pd.DataFrame, figure: str = "l2_shift", *, log: bool = False, dark: bool = False) -> dict:
    whole = board()
    chart = charts.heatmap(table, figure, charts.rows_of(whole), charts.columns_of(whole), log=log, dark=dark)
    chart.data = alt.Undefined
    return chart.to_dict()


def drawn(*args: object, **options: object) -> pd.DataFrame:
    return charts.heatmap_table(board(), *args, **options).set_index("name")


@pytest.mark.parametrize(
    ("figure", "log", "dark"), [("l2_shift", False, False), ("cosine", True, True), ("changed_share", False, True)]
)
def test_the_frame_is_the_same_before_during_and_after_a_scan(figure, log, dark):
    specs = [
        json.dumps(heatmap(charts.heatmap_table(board(names), figure, log=log), figure, log=log, dark=dark))
        for names in ([], NAMES[:4], NAMES)
    ]
    assert specs[0] == specs[1] == specs[2]


def colour_scale(spec: dict) -> dict:
    return next(layer["encoding"]["color"]["scale"] for layer in spec["layer"] if "type" in layer["encoding"].get(
        "color", {}).get("scale", {}))  # fmt: skip


@pytest.mark.parametrize(("figure", "dark", "reversed_"), [
    ("l2_shift", False, True), ("l2_shift", True, False), ("cosine", False, False), ("cosine", True, True),
])  # fmt: skip
def test_more_change_is_what_stands_out_from_the_background(figure, dark, reversed_):
    # viridis runs from dark to bright: on white the dark end must mean more change, on black the bright one; a cosine
    # means more change the smaller it is.
    assert colour_scale(heatmap(board().assign(value=1.0), figure, dark=dark))["reverse"] is reversed_


def test_embedding_and_end_stand_apart_from_the_layers():
    columns = charts.columns_of(board())
    assert columns[0] == "emb"
    assert columns[-1] == "out"
    assert [column for column in columns if column.strip().isdigit()] == ["0", "1", "2"]
    assert columns[1].strip() == columns[-2].strip() == ""


def test_cells_say_why_they_have_no_colour():
    table = drawn("l2_shift", log=False)
    assert table.loc["model.norm.weight", "sign"] == "×"
    assert "The shapes differ." in table.loc["model.norm.weight", "place"]
    assert drawn_of(l2_shift=0.0, log=True)["sign"] == "0"
    assert drawn_of(relative_shift=float("nan"), figure="relative_shift")["sign"] == "–"


def drawn_of(figure: str = "l2_shift", *, log: bool = False, **figures: float) -> pd.Series:
    table = charts.heatmap_table(board(**figures), figure, log=log).set_index("name")
    return table.loc["model.layers.0.mlp.up_proj.weight"]


def test_a_head_that_moved_far_does_not_flatten_the_layers():
    cells = board()
    cells.loc[cells["name"] == "lm_head.weight", "l2_shift"] = 50.0
    table = charts.heatmap_table(cells, "l2_shift", log=False).set_index("name")
    assert table["value"].max() == 2.0
    assert table.loc["lm_head.weight", "sign"] == "▲"
    assert table.loc["lm_head.weight", "l2_shift"] == "50"
    untouched = charts.heatmap_table(cells, "l2_shift", log=True)["value"]
    assert untouched.max() == 50.0


def test_the_cosine_on_a_log_scale_is_its_distance_from_one():
    assert drawn_of("cosine", log=True, cosine=0.75)["value"] == pytest.approx(0.25)
    assert "1 − cosine" in json.dumps(heatmap(board().assign(value=1.0), "cosine", log=True), ensure_ascii=False)


def test_the_chosen_cell_alone_is_marked():
    table = drawn("l2_shift", log=False, chosen="lm_head.weight")
    assert table.index[table["chosen"]].tolist() == ["lm_head.weight"]
    assert not drawn("l2_shift", log=False, chosen="")["chosen"].any()


def test_many_layers_carry_few_labels():
    columns = ["emb", " ", *map(str, range(64)), "  ", "out"]
    labels = charts._labelled(columns)
    assert {"emb", "out", "0", "62"} <= set(labels)
    assert len(labels) <= 36


def test_lines_leave_out_what_has_no_layer():
    table = charts.lines_table(board(), "l2_shift", log=False)
    assert set(table["row"]) == {"input_layernorm", "q_proj", "o_proj", "post_attention_layernorm", "up_proj"}
    assert set(table.loc[table["kind"] == "norm", "row"]) == {"input_layernorm", "post_attention_layernorm"}
    chart = charts.lines(table, "l2_shift", ("q_proj",), 2, log=False).to_dict()
    assert chart["layer"][0]["encoding"]["x"]["scale"]["domain"] == [0, 2]


@pytest.mark.parametrize("form", ["script", "paper"])
def test_the_form_in_use_is_on_the_plot(form):
    table = histogram_table()
    spec = json.dumps(charts.histogram_one(table, form, dark=False, top=0.5).to_dict(), ensure_ascii=False)
    assert charts.ratio_title(form) in spec
    other = {"script": "paper", "paper": "script"}[form]
    assert f'"{charts.ratio_title(other)}"' not in spec


def histogram_table() -> pd.DataFrame:
    names = [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(3)]
    return tables.histogram_grid(tables.tensors(pair(NAMES)), histograms(names))["o_proj"]


def test_tails_have_an_axis_of_their_own_and_inner_bins_theirs():
    spec = charts.histogram_small(histogram_table(), (0, 1, 2), dark=True, top=0.2).to_dict()
    assert spec["resolve"]["scale"]["y"] == "independent"
    inner, tails = spec["layer"]
    assert "'bin'" in inner["transform"][0]["filter"]
    assert "'tail'" in tails["transform"][0]["filter"]
    assert tails["encoding"]["y"]["scale"]["domain"] == [0, 0.2]


@pytest.mark.parametrize(("largest", "top"), [(0.0, 0.05), (0.04, 0.05), (0.05, 0.1), (0.3, 0.5), (0.99, 1.0)])
def test_the_axis_of_the_tails_has_room_for_the_largest(largest, top):
    assert charts.tail_top(pd.DataFrame({"share": [largest]})) == top
    assert largest <= top


def test_every_chart_has_a_title_axis_titles_and_tooltips():
    table = histogram_table()
    whole = board()
    lines_table = charts.lines_table(whole, "l2_shift", log=True)
    for spec in (
        heatmap(charts.heatmap_table(whole, "rms_shift", log=True), "rms_shift", log=True),
        charts.lines(lines_table, "l2_shift", ("q_proj",), 2, log=True).to_dict(),
        charts.histogram_small(table, (0, 1, 2), dark=False, top=0.5).to_dict(),
        charts.histogram_one(table, "paper", dark=True, top=0.5).to_dict(),
    ):
        text = json.dumps(spec)
        assert spec["title"]
        assert '"tooltip"' in text
        for axis in ("x", "y"):
            assert any(layer["encoding"].get(axis, {}).get("title") or layer["encoding"].get(axis, {}).get(
                "axis", {}).get("title") for layer in spec["layer"] if "encoding" in layer)  # fmt: skip
