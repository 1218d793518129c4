"""What lines and histograms show, in one sentence: made from the numbers, silent where they say nothing."""

from __future__ import annotations

import pandas as pd

from sfn import profiles, tables
from tests.unit.test_tables import decoder, histograms, measured, pair


def shifts(layers: int, **by_row: list[float]) -> pd.DataFrame:
    """The board of a pair whose rows have these L2 shifts, layer by layer; all others 1."""
    names = decoder(layers)
    cells = tables.board(tables.tensors(pair(names)), measured(names, l2_shift=1.0))
    for row, values in by_row.items():
        cells.loc[cells["row"] == row, "l2_shift"] = values
    return cells


def test_the_strongest_rise_is_named_with_its_factor():
    said = profiles.over_layers(shifts(6, o_proj=[1, 1, 2, 2, 3, 3], q_proj=[1, 1, 1, 1, 2, 2]), "l2_shift")
    assert "o_proj rises most along the layers: between the first third and the last by a factor of 3.0" in said


def test_a_fall_is_a_fall():
    assert "q_proj falls most" in profiles.over_layers(shifts(6, q_proj=[4, 4, 2, 2, 1, 1]), "l2_shift")


def test_what_is_level_is_called_so():
    said = profiles.over_layers(shifts(6), "l2_shift")
    assert "no module changes by 10 % or more" in said
    assert "no layer stands out" in said


def test_one_layer_that_stands_out_is_named():
    said = profiles.over_layers(shifts(6, up_proj=[1, 1, 1, 4, 1, 1]), "l2_shift")
    assert "layer 3 of up_proj stands out most, at 4.0 times its module's median" in said


def test_two_layers_say_nothing():
    assert profiles.over_layers(shifts(2), "l2_shift") == ""


def test_the_cosine_counts_by_its_distance_from_one():
    cells = shifts(6)
    cells.loc[cells["row"] == "o_proj", "cosine"] = [0.9, 0.9, 0.9, 0.9, 0.6, 0.6]
    assert "o_proj rises most" in profiles.over_layers(cells, "cosine")


def test_two_pairs_of_different_depth_are_compared_by_the_median():
    said = profiles.beside(shifts(6), shifts(3, o_proj=[2, 2, 9], q_proj=[0.5, 0.5, 0.5]), "l2_shift")
    assert "o_proj is 2.0 times that of the first" in said
    assert "q_proj 0.5 times" in said


def test_the_share_beyond_is_that_of_all_shown_layers():
    names = [
        f"model.layers.{layer}.{module}.weight" for layer in range(2) for module in ("self_attn.o_proj", "mlp.up_proj")
    ]
    found = histograms(names)
    found["below"] = [10 if "o_proj" in name else 0 for name in found["name"]]
    found["above"] = 0
    found["n"] = 100
    said = profiles.beyond(tables.histogram_grid(tables.tensors(pair(decoder(2))), found))
    assert said == "In the layers shown, o_proj has most beyond ±1: 10.0% of its elements; up_proj has least: 0.0%."
    found["below"] = 0
    none = profiles.beyond(tables.histogram_grid(tables.tensors(pair(decoder(2))), found))
    assert none == "In the layers shown, no element changed by more than its own size in A."
    assert profiles.beyond({}) == ""
