"""What the charts of one tensor draw: pictures pixel by pixel, tiles, spectra beside chance; shapes on the board."""

from __future__ import annotations

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sfn import delta_map, modality, profiles, raster, spectrum, tables, tensor_charts
from sfn.records import Histogram

SHAPE = (300, 40)


def made_map(part: str = "0-300,0-40") -> delta_map.DeltaMap:
    values = np.random.default_rng(0).standard_normal((150, 40)).astype(np.float32)
    return delta_map.DeltaMap(part, (2, 1), np.abs(values), values, 0)


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(int)


def test_a_picture_has_one_pixel_a_number_in_the_colours_of_its_legend():
    values = np.array([[0.0, 1.0, 2.0], [4.0, 9.0, np.nan]])
    found = pixels(raster.data_url(values, 0, 4, ("#000000", "#ff0000")))
    assert found.shape == (2, 3, 3)
    assert found[:, :, 0] == pytest.approx(np.array([[0, 64, 128], [255, 255, 0]]), abs=1)
    assert not found[:, :, 1:].any()


def test_a_picture_of_nothing_is_even():
    found = pixels(raster.data_url(np.zeros((4, 4)), 0, 0, raster.colours(signed=False, dark=False)))
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("dark", [False, True])
def test_more_stands_out_from_the_background(dark: bool):
    least, *_, most = raster.colours(signed=False, dark=dark)
    light = [sum(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour in (least, most)]
    assert (light[0] < light[1]) == dark


def test_tiles_cover_the_region_and_tell_its_means():
    found = made_map()
    table = tensor_charts.map_table(found, SHAPE, signed=True)
    tiles = table[table["url"].isna()]
    assert len(tiles) <= 64 * 64
    assert ((tiles["row2"] - tiles["row"]) * (tiles["column2"] - tiles["column"])).sum() == 300 * 40
    assert tiles["value"].iloc[0] == pytest.approx(found.mean[:3, :1].mean())
    urls = table["url"].dropna()
    assert len(urls) == 2  # on light and on dark
    assert pixels(urls.iloc[0]).shape == (150, 40, 3)


def test_colours_of_a_signed_map_are_centred_on_no_change():
    _, low, high = tensor_charts.map_values(made_map(), signed=True)
    assert low == -high < 0
    assert tensor_charts.map_values(made_map(), signed=False)[1] == 0


def test_chance_is_that_of_each_side():
    found = spectrum.Spectrum((100, 50), True, np.ones(50), 0.0, 50.0, 1.0, np.full(8, 0.5), np.full(8, 0.5), 0, 1.0)
    table = tensor_charts.alignment_table(found, 4)
    chance = table[table["line"] == "chance"].set_index(["kind", "k"])["overlap"]
    assert chance["inputs", 5] == pytest.approx(5 / 50)
    assert chance["outputs", 5] == pytest.approx(5 / 100)
    drawn = tensor_charts.spectrum_table(found, 4)
    assert drawn[drawn["kind"] == "random"]["share"].sum() == pytest.approx(1)


# Shapes on the board


def stored(name: str, r: np.ndarray) -> dict[str, object]:
    counts = np.histogram(r, np.arange(-100, 101) / 100)[0]
    return {"name": name, "n": len(r), "counts": counts, "below": int((r < -1).sum()), "above": int((r > 1).sum()),
            "zeros": 0, "nonfinite": 0}  # fmt: skip


def made_board(parts: dict[str, np.ndarray]) -> pd.DataFrame:
    histograms = pd.DataFrame([stored(name, r) for name, r in parts.items()])
    deltas = pd.DataFrame({"name": list(parts), "changed_share": 1.0})
    board = pd.DataFrame({"row": ["o_proj", "experts.up_proj"], "column": ["0", "0"]})
    return tables.with_shapes(board, histograms, deltas)


def test_the_board_has_each_cells_shape_and_experts_are_counted_together():
    random = np.random.default_rng(0)
    left, right = random.normal(-0.4, 0.1, 20_000), random.normal(0.4, 0.1, 20_000)
    parts = {
        "model.layers.0.self_attn.o_proj.weight": random.laplace(0, 1, 20_000),
        "model.layers.0.mlp.experts.0.up_proj.weight": left,
        "model.layers.0.mlp.experts.1.up_proj.weight": right,
    }
    found = made_board(parts).set_index("row")
    assert found["verdict"].to_dict() == {"o_proj": "clipped tails", "experts.up_proj": "two modes"}
    whole = stored("", np.concatenate([left, right]))
    one = modality.modality(Histogram("script", tuple(whole["counts"].tolist()), whole["below"], whole["above"], 0, 0))
    assert found.loc["experts.up_proj", "dip"] == one.dip
    said = profiles.modes(found.reset_index())
    assert said.startswith("1 of 2 modules and layers has two inner modes, most clearly experts.up_proj of layer 0")
    assert "1 would only look so with their tails clipped" in said


def test_nothing_measured_is_nothing_said():
    board = pd.DataFrame({"row": ["o_proj"], "column": ["0"], "verdict": [None]})
    assert profiles.modes(board) == ""
