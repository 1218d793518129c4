"""Tables that the charts draw: where a tensor stands on the board, several tensors as one, bins and tails."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sfn import anatomy, tables
from sfn.records import Histogram

LAYER = ("input_layernorm", "self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp.up_proj")


def pair(names: list[str], apart: tuple[str, ...] = ()) -> SimpleNamespace:
    """What `tables.tensors` reads of a pair."""
    rows = [
        SimpleNamespace(
            name=name,
            part=anatomy.parse(name),
            comparable=name not in apart,
            problem="The shapes differ." if name in apart else "",
        )
        for name in sorted(names, key=lambda name: anatomy.sort_key(anatomy.parse(name)))
    ]
    return SimpleNamespace(rows=tuple(rows))


def decoder(layers: int) -> list[str]:
    inner = [f"model.layers.{layer}.{module}.weight" for layer in range(layers) for module in LAYER]
    biases = [f"model.layers.{layer}.self_attn.q_proj.bias" for layer in range(layers)]
    return ["model.embed_tokens.weight", *inner, *biases, "model.norm.weight", "lm_head.weight"]


def measured(names: list[str], **figures: float) -> pd.DataFrame:
    """`Store.delta_table` for these tensors."""
    values = {"l2_shift": 2.0, "rms_shift": 0.2, "relative_shift": 0.5, "cosine": 0.9, "changed_share": 1.0,
              "max_abs_shift": 0.1, "nonfinite": 0, "n": 100, "shape": "10 × 10"} | figures  # fmt: skip
    rows = []
    for name in names:
        part = anatomy.parse(name)
        place = {"layer": part.layer, "block": part.block, "module": part.module, "parameter": part.parameter}
        rows.append({"name": name, **place, "expert": part.expert, **values})
    columns = ["name", "layer", "block", "module", "parameter", "expert", *values]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int32", "expert": "Int32"})


def test_rows_are_in_anatomical_order_and_what_has_no_layer_stands_apart():
    frame = tables.tensors(pair(decoder(3)))
    order = frame.sort_values("rank").drop_duplicates("row")["row"].tolist()
    assert order == [
        "embed_tokens", "input_layernorm", "q_proj", "o_proj", "post_attention_layernorm", "up_proj", "norm", "lm_head",
    ]  # fmt: skip
    places = dict(zip(frame["name"], frame["column"], strict=True))
    assert places["model.embed_tokens.weight"] == "emb"
    assert places["model.layers.2.mlp.up_proj.weight"] == "2"
    assert places["lm_head.weight"] == "out"


def test_a_module_that_only_later_layers_have_keeps_its_place():
    names = [n for n in decoder(2) if n != "model.layers.0.self_attn.q_proj.weight"]
    frame = tables.tensors(pair(names))
    order = frame.sort_values("rank").drop_duplicates("row")["row"].tolist()
    assert order.index("q_proj") < order.index("o_proj")


def test_biases_have_a_board_of_their_own():
    names = decoder(2)
    frame = tables.tensors(pair(names))
    assert set(tables.board(frame, measured(names), "bias")["row"]) == {"q_proj"}
    assert not tables.board(frame, measured(names), "weight")["name"].str.endswith("bias").any()


def test_every_cell_has_one_state():
    names = decoder(2)
    frame = tables.tensors(pair(names, apart=("lm_head.weight",)))
    board = tables.board(frame, measured(["model.embed_tokens.weight"]))
    states = dict(zip(board["name"], board["state"], strict=True))
    assert states["model.embed_tokens.weight"] == "measured"
    assert states["lm_head.weight"] == "apart"
    assert states["model.norm.weight"] == "waiting"
    assert len(board) == len(names) - 2


def test_nothing_measured_is_a_board_of_waiting_cells():
    board = tables.board(tables.tensors(pair(decoder(2))), measured([]))
    assert set(board["state"]) == {"waiting"}
    assert board["l2_shift"].isna().all()


def test_experts_of_a_cell_are_one_cell_under_the_one_that_moved_furthest():
    names = [f"model.layers.0.mlp.experts.{expert}.up_proj.weight" for expert in range(3)]
    deltas = measured(names)
    deltas["l2_shift"] = [3.0, 4.0, 0.0]
    deltas["relative_shift"] = [0.3, 0.4, 0.0]
    board = tables.board(tables.tensors(pair(names)), deltas)
    assert len(board) == 1
    cell = board.iloc[0]
    assert cell["tensors"] == 3
    assert cell["name"] == names[1]
    assert cell["l2_shift"] == pytest.approx(5.0)
    assert cell["rms_shift"] == pytest.approx(5.0 / math.sqrt(300))
    assert cell["shape"] == "3 tensors"


def test_experts_half_measured_and_not_measured():
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight" for layer in (0, 1) for expert in (0, 1)]
    board = tables.board(tables.tensors(pair(names)), measured(names[:1]))
    assert board["state"].tolist() == ["measured", "waiting"]
    assert board["measured"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("layers", "every", "shown"),
    [(6, 0, (0, 1, 2, 3, 4, 5)), (64, 0, (0, 11, 22, 33, 44, 55)), (28, 5, (0, 5, 10, 15, 20, 25)), (1, 9, (0,))],
)
def test_every_kth_layer(layers, every, shown):
    assert tables.shown_layers(layers, every) == shown


def histograms(names: list[str], counts: int = 2) -> pd.DataFrame:
    table = measured(names)[["name", "layer", "expert", "n"]]
    table["n"] = 200 * counts + 100
    return table.assign(counts=[np.full(200, counts)] * len(names), below=30, above=70, zeros=0, nonfinite=0)


def test_tails_stand_outside_the_inner_range_and_shares_add_up():
    names = [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(3)]
    table = tables.histogram_grid(tables.tensors(pair(names)), histograms(names))["o_proj"]
    inner, tails = table[table["kind"] == "bin"], table[table["kind"] == "tail"]
    assert inner["x"].min() == pytest.approx(-1)
    assert inner["x2"].max() == pytest.approx(1)
    assert (tails.loc[tails["side"] == "below −1", "x2"] < -1.05).all()
    assert (tails.loc[tails["side"] == "above 1", "x"] > 1.05).all()
    assert table.groupby("name")["share"].sum().tolist() == pytest.approx([1.0] * 3)
    bars = tails[tails["side"] == "above 1"].sort_values("x")
    assert (bars["x"].to_numpy()[1:] > bars["x2"].to_numpy()[:-1]).all()  # beside each other


def test_histograms_of_experts_are_counted_together():
    names = [f"model.layers.0.mlp.experts.{expert}.up_proj.weight" for expert in range(4)]
    grid = tables.histogram_grid(tables.tensors(pair(names)), histograms(names))
    (table,) = grid.values()
    assert (table["kind"] == "bin").sum() == 200
    assert table["share"].sum() == pytest.approx(1.0)


def test_one_histogram_keeps_every_count():
    found = SimpleNamespace(name="lm_head.weight", layer=None, n=210)
    counts = Histogram("script", (1,) * 200, below=3, above=5, zeros=2, nonfinite=0)
    table = tables.one_histogram(found, counts)
    assert table.loc[table["kind"] == "tail", "label"].tolist() == ["1.4%", "2.4%"]
    assert table["share"].sum() == pytest.approx(208 / 210)


def test_figures_only_reads_missing_layers_as_none():
    (head, inner) = tables.figures_only(measured(["lm_head.weight", "model.layers.1.mlp.up_proj.weight"]))
    assert head.layer is None
    assert (inner.layer, inner.expert) == (1, None)
