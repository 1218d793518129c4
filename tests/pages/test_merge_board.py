"""The board: what it is given to draw, and how gestures are read back."""

from __future__ import annotations

import json

import pandas
import pytest

from sfn import checkpoints, delta, pairs, recipes
from sfn.ui import board, scanning
from tests.builders import random_tensors, tiny_qwen2, tiny_qwen3_moe, write_checkpoint
from tests.pages.conftest import finish_scan


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    place = tmp_path_factory.mktemp("six")
    sides = [checkpoints.open(tiny_qwen2(place / name, seed, layers=6)) for seed, name in enumerate(("base", "tuned"))]
    return pairs.compare(*sides)


def drawn(pair, text: str, moved_by=None) -> dict[str, dict]:
    plan = recipes.resolve(recipes.parse(text), pair)
    data = board.data(pair, board.rows(pair), plan, moved_by or {}, ("", 0))
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
        ("gate_proj@0=B:0.25", "gate_proj", ["B:0.25", "A", "A", "A", "A", "A"]),
        ("up_proj@4=zero; up_proj@5=reinit:7", "up_proj", ["A", "A", "A", "A", "zero", "reinit:7"]),
        ("all@3=remove", "q_proj", ["A", "A", "A", "remove", "A", "A"]),
        ("emb=B", "embed_tokens", ["B"]),
    ],
)
def test_cells_show_their_source(pair, text, module, codes):
    assert drawn(pair, text)[module]["s"] == codes


def test_experts_of_several_sources_are_counted(tmp_path):
    sides = [checkpoints.open(tiny_qwen3_moe(tmp_path / name, seed)) for seed, name in enumerate("ab")]
    row = drawn(pairs.compare(*sides), "experts.2.up_proj@1=B")["experts.up_proj"]
    assert row["s"] == ["A", "mixed"]
    assert row["detail"] == {1: "its 4 tensors come from different sources: 3 from A, 1 from B"}


def test_a_tower_is_one_row_with_one_cell(tmp_path):
    shapes = {f"visual.blocks.{n}.{module}.weight": (2, 2) for n in range(30) for module in ("qkv", "mlp.fc1")}
    shapes |= {"model.layers.0.self_attn.o_proj.weight": (2, 2)}
    for seed, name in enumerate("ab"):
        tensors = random_tensors(shapes, seed, "float32")
        write_checkpoint(tmp_path / name, tensors, {"model_type": "made"}, with_tokenizer=False)
    pair = pairs.compare(checkpoints.open(tmp_path / "a"), checkpoints.open(tmp_path / "b"))
    rows = drawn(pair, "visual=zero")
    assert list(rows) == ["o_proj", "visual"]
    assert rows["visual"]["s"] == ["zero"]
    assert "60 tensors" in rows["visual"]["explain"]


def test_a_cell_that_cannot_come_from_b_says_why(tmp_path):
    sides = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1, vocab=300)
    rows = drawn(pairs.compare(*map(checkpoints.open, sides)), "emb=zero")
    assert "shapes differ" in rows["lm_head"]["fixed"][0]
    assert rows["embed_tokens"]["s"] == ["zero"]
    assert rows["o_proj"]["fixed"] == {}


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
    moved_by = {(0, "o_proj"): 0.1, (1, "o_proj"): 0.3, (None, "lm_head"): 9.0}
    data = board.data(pair, board.rows(pair), plan, moved_by, ("", 0))
    assert (data["low"], data["high"]) == (0.1, 0.3)
    assert board.data(pair, board.rows(pair), plan, {}, ("", 0))["high"] is None


def op(seq, cells, source="B"):
    return {"seq": seq, "act": "paint", "cells": cells, "source": source}


def test_gestures_are_read_once():
    sent = {"instance": "x", "ops": [op(1, [[0, "o_proj"]]), op(2, [[None, "norm"]], "reinit:7")]}
    found, ack = board.gestures(sent, ("", 0))
    wanted = [((0, "o_proj"), "B"), ((None, "norm"), "reinit:7")]
    assert found == tuple(
        board.Gesture(seq, "paint", (place,), source) for seq, (place, source) in enumerate(wanted, start=1)
    )
    assert ack == ("x", 2)
    sent["ops"] += [{"seq": 3, "act": "invert", "cells": [[1, "v_proj"]]}, {"seq": 4, "act": "undo", "cells": []}]
    found, ack = board.gestures(sent, ack)
    assert found == (board.Gesture(3, "invert", ((1, "v_proj"),)), board.Gesture(4, "undo"))
    assert board.gestures(sent, ack) == ((), ("x", 4))


def test_another_board_counts_for_itself():
    found, ack = board.gestures({"instance": "y", "ops": [op(1, [[0, "o_proj"]])]}, ("x", 9))
    assert len(found) == 1
    assert ack == ("y", 1)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "B",
        {"instance": "x"},
        {"instance": "x", "ops": [op("1", [])]},
        {"instance": "x", "ops": [op(1, []) | {"act": "evil"}]},
        {"instance": "x", "ops": [op(1, [], source="")]},
        {"instance": "x", "ops": [op(1, []) | {"act": "invert"}]},
    ],
)
def test_what_is_not_understood_changes_nothing(value):
    found, _ack = board.gestures(value, ("x", 0))
    assert found == ()


def test_places_that_are_no_places_are_left_out():
    found, _ack = board.gestures(
        {"instance": "x", "ops": [op(1, [[0, "o_proj"], "o_proj", [1.5, "q_proj"], [0]])]}, ("", 0)
    )
    assert found[0].places == ((0, "o_proj"),)


# ---------------------------------------------------------------- the shade


def on_screen(app) -> dict:
    """What the page's board was given to draw."""
    drawn = (json.loads(each.proto.json) for each in app.get("bidi_component") if each.proto.json)
    return next(data for data in drawn if "rows" in data)


def test_a_small_pair_is_measured_for_the_shade(visit, bench):
    app = visit("merge")
    finish_scan(bench)
    data = on_screen(app.run())
    assert data["note"] == ""
    assert 0 < data["low"] < data["high"]
    assert all(shift > 0 for row in data["rows"] for shift in row["shift"])


def test_a_large_pair_is_left_to_the_delta_page(visit, bench, monkeypatch):
    monkeypatch.setattr(scanning, "_SMALL_BYTES", 0)
    data = on_screen(visit("merge"))
    assert not [job for job in bench.jobs.recent() if job.title.startswith("Scanning")]
    assert "the page Delta measures" in data["note"]
    assert "kB" in data["note"]
    assert data["high"] is None


def test_a_scan_that_was_cut_short_says_how_far_it_came(visit, bench, folders, monkeypatch):
    monkeypatch.setattr(scanning, "_SMALL_BYTES", 0)
    pair = pairs.compare(*map(checkpoints.open, folders))
    for measured in delta.scan(pair, [row.name for row in pair.rows][:22]):
        bench.store.save_delta(pair.key, measured)
    data = on_screen(visit("merge"))
    assert data["note"] == "22 of 27 tensors measured; the page Delta goes on."
    assert data["high"] > 0
