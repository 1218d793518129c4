"""The paper's layouts: clipped as it clips, with the share said; two pairs over each other on normalised depth."""

from __future__ import annotations

import json

import pytest
import vl_convert

from sfn import charts, paper_figures, pictures, tables
from tests.unit.test_charts import NAMES, board
from tests.unit.test_tables import decoder, histograms, measured, pair

O_PROJ = [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(3)]


def grid() -> dict:
    return tables.histogram_grid(tables.tensors(pair(NAMES)), histograms(O_PROJ))


def test_clipping_moves_what_lies_beyond_onto_the_edges_and_says_how_much():
    table, moved = paper_figures.clipped_table(grid(), ["o_proj"])
    whole = grid()["o_proj"]
    assert len(table) == 3 * 200
    assert table["share"].sum() == pytest.approx(whole["share"].sum(), rel=1e-6)
    tails = whole[whole["kind"] == "tail"]
    assert moved["clipped"].iloc[0] == pytest.approx(tails["share"].sum() / 3)
    first = table[table["layer"] == 0]["share"].to_numpy()
    inner = whole[(whole["kind"] == "bin") & (whole["layer"] == 0)]["share"].to_numpy()
    below = tails[(tails["layer"] == 0) & tails["side"].str.startswith("below")]["share"].iloc[0]
    assert first[0] == pytest.approx(inner[0] + below, rel=1e-6)
    assert first[1:-1] == pytest.approx(inner[1:-1], rel=1e-6)
    assert f"{moved['clipped'].iloc[0]:.1%} clipped" in moved["label"].iloc[0]


def test_the_papers_modules_alone_or_all_where_there_are_none():
    assert paper_figures.modules_in(["embed_tokens", "q_proj", "norm", "down_proj"]) == ["q_proj", "down_proj"]
    assert paper_figures.modules_in(["c_attn", "c_proj"]) == ["c_attn", "c_proj"]


def test_depth_runs_from_0_to_1_whatever_the_number_of_layers():
    names = decoder(6)
    other = tables.measured_board(measured(names))
    table = paper_figures.beside_table((board(), other), ("small", "large"), "l2_shift", log=False)
    for name, layers in (("small", 3), ("large", 6)):
        depths = sorted(table[table["pair"] == name]["depth"].unique())
        assert depths == pytest.approx([layer / (layers - 1) for layer in range(layers)])


def test_a_pair_that_is_not_open_has_the_same_board():
    opened = tables.board(tables.tensors(pair(NAMES)), measured(NAMES))
    alone = tables.measured_board(measured(NAMES))
    shared = ["name", "row", "column", "rank", "l2_shift", "state"]
    assert alone[shared].equals(opened[shared])


def test_one_legend_tells_modules_apart_and_another_the_pairs():
    two = paper_figures.beside_table((board(), board()), ("one", "two"), "l2_shift", log=False)
    spec = pictures.without_data(paper_figures.beside(two, "l2_shift", ["q_proj", "o_proj"], ("one", "two"), log=False))
    whole = {**spec, "data": {"values": json.loads(two.to_json(orient="records"))}}
    by_title = {legend["title"]: legend for legend in vl_convert.vegalite_to_vega(whole)["legends"]}
    channels = {"fill", "stroke", "shape", "strokeDash"}
    assert {title: channels & set(legend) for title, legend in by_title.items()} == {
        "module": {"fill", "stroke"},
        "pair": {"strokeDash"},
    }


def test_all_three_are_valid_and_can_be_saved():
    cells = board()
    lines = charts.lines_table(cells, "l2_shift", log=False)
    clipped, moved = paper_figures.clipped_table(grid(), ["o_proj"])
    two = paper_figures.beside_table((cells, cells), ("one", "two"), "l2_shift", log=True)
    drawn = (
        (paper_figures.lines(lines, ["q_proj", "o_proj"], 2), lines),
        (paper_figures.histograms(clipped, tuple(moved["label"]), (0, 1, 2), "paper"), clipped),
        (paper_figures.beside(two, "l2_shift", ["q_proj", "o_proj"], ("one", "two"), log=True), two),
    )
    about = pictures.caption("A figure", "", "A: x; B: y")
    for chart, table in drawn:
        assert chart.to_dict()["$schema"]  # validates
        picture = pictures.make("svg", pictures.without_data(chart), table, table, about).decode()
        assert "o_proj" in picture
