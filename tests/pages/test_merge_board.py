"""The board: what it is given to draw, and how gestures are read back."""

from __future__ import annotations

import json

import pandas
import pytest

from sfn import checkpoints, pairs, recipes
from sfn.ui import board
from tests.builders import tiny_qwen2


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    place = tmp_path_factory.mktemp("six")
    sides = [checkpoints.open(tiny_qwen2(place / name, seed, layers=6)) for seed, name in enumerate(("base", "tuned"))]
    return pairs.compare(*sides)


def drawn(pair, text: str, moved_by=None) -> dict[str, dict]:
    plan = recipes.resolve(recipes.parse(text), pair)
    data = board.data(pair, plan, moved_by or {}, ("", 0))
    json.dumps(data)  # what cannot be sent to the browser fails here
    return {row["module"]: row for row in data["rows"]}


def test_rows_stand_in_anatomical_order_with_what_has_no_layer_as_one_cell(pair):
    rows = board.rows(pair)
    names = [row.module for row in rows]
    assert names[0] == "embed_tokens"
    assert names[-2:] == ["norm", "lm_head"]
    assert names.index("input_layernorm") < names.index("q_proj") < names.index("o_proj") < names.index("gate_proj")
    assert [row.module for row in rows if not row.layered] == ["embed_tokens", "norm", "lm_head"]
    assert sum(len(tensors) for row in rows for tensors in row.tensors.values()) == len(pair.rows)
    assert all(row.explain for row in rows)


@pytest.mark.parametrize(
    "text, module, codes",
    [
        ("", "o_proj", ["A"] * 6),
        ("o_proj@all=B", "o_proj", ["B"] * 6),
        ("o_proj@1-2=B", "o_proj", ["A", "B", "B", "A", "A", "A"]),
        ("gate_proj@0=B:0.25", "gate_proj", ["blend", "A", "A", "A", "A", "A"]),
        ("up_proj@5=zero", "up_proj", ["A", "A", "A", "A", "A", "damaged"]),
        ("all@3=remove", "q_proj", ["A", "A", "A", "damaged", "A", "A"]),
        ("emb=B", "embed_tokens", ["B"]),
    ],
)
def test_cells_show_their_source(pair, text, module, codes):
    assert drawn(pair, text)[module]["s"] == codes


def test_a_blend_says_how_much_of_b(pair):
    assert drawn(pair, "gate_proj@0=B:0.25")["gate_proj"]["detail"] == {0: "blend: 25 % B"}


def test_shift_of_a_cell_pools_weight_and_bias():
    table = pandas.DataFrame(
        {
            "name": [
                "model.layers.2.self_attn.q_proj.weight",
                "model.layers.2.self_attn.q_proj.bias",
                "lm_head.weight",
            ],
            "l2_shift": [3.0, 4.0, 2.0],
            "n": [90, 10, 4],
        }
    )
    assert board.shifts(table) == {(2, "q_proj"): 0.5, (None, "lm_head"): 1.0}


def test_the_scale_spans_the_layers_not_the_head(pair):
    plan = recipes.resolve(recipes.parse(""), pair)
    data = board.data(pair, plan, {(0, "o_proj"): 0.1, (1, "o_proj"): 0.3, (None, "lm_head"): 9.0}, ("", 0))
    assert (data["low"], data["high"]) == (0.1, 0.3)
    assert board.data(pair, plan, {}, ("", 0))["high"] is None


def op(seq, cells, source="B"):
    return {"seq": seq, "cells": cells, "source": source}


def test_gestures_are_read_once():
    sent = {"instance": "x", "ops": [op(1, [[0, "o_proj"]]), op(2, [[None, "norm"]], "A")]}
    found, ack = board.toggles(sent, ("", 0))
    assert found == (board.Toggle(1, ((0, "o_proj"),), "B"), board.Toggle(2, ((None, "norm"),), "A"))
    assert ack == ("x", 2)
    sent["ops"].append(op(3, [[1, "v_proj"]]))
    found, ack = board.toggles(sent, ack)
    assert [toggle.seq for toggle in found] == [3]
    assert board.toggles(sent, ack) == ((), ("x", 3))


def test_another_board_counts_for_itself():
    found, ack = board.toggles({"instance": "y", "ops": [op(1, [[0, "o_proj"]])]}, ("x", 9))
    assert len(found) == 1
    assert ack == ("y", 1)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "B",
        {"instance": "x"},
        {"instance": "x", "ops": [{"seq": "1", "cells": [], "source": "B"}]},
        {"instance": "x", "ops": [op(1, [], "evil")]},
    ],
)
def test_what_is_not_understood_changes_nothing(value):
    found, _ack = board.toggles(value, ("x", 0))
    assert found == ()


def test_places_that_are_no_places_are_left_out():
    found, _ack = board.toggles(
        {"instance": "x", "ops": [op(1, [[0, "o_proj"], "o_proj", [1.5, "q_proj"], [0]])]}, ("", 0)
    )
    assert found[0].places == ((0, "o_proj"),)
