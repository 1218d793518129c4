"""Float8 checkpoints with scales read as the values that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfn import checkpoints, delta, pairs, recipes, surgery
from tests.builders import tiny_qwen2, write_checkpoint

NAME = "model.layers.0.self_attn.o_proj.weight"


def coded(values: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and one scale for each block, the last ones of a row or column smaller."""
    *lead, rows, cols = values.shape
    counts = [-(-size // step) for size, step in zip((rows, cols), block, strict=True)]
    scales = torch.empty(*lead, *counts)
    codes = torch.empty(values.shape, dtype=torch.float8_e4m3fn)
    for i in range(counts[0]):
        for j in range(counts[1]):
            place = (..., slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scales[..., i, j] = values[place].abs().amax(dim=(-1, -2)) / 448
            codes[place] = (values[place] / scales[..., i, j, None, None]).to(torch.float8_e4m3fn)
    return codes, scales


def spread(scales: torch.Tensor, block: tuple[int, int], shape: tuple[int, ...]) -> torch.Tensor:
    grown = scales.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return grown[..., : shape[-2], : shape[-1]]


@pytest.mark.parametrize(
    ("shape", "block", "config"),
    [
        ((20, 24), (20, 24), {}),
        ((20, 24), (1, 24), {}),
        ((256, 128), (128, 128), {}),
        ((300, 200), (128, 128), {}),
        ((20, 24), (8, 8), {"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8]}}),
        ((3, 20, 24), (8, 8), {"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8]}}),
    ],
)
@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale"])
def test_values_are_codes_times_scales(
    tmp_path: Path, shape: tuple[int, ...], block: tuple[int, int], config: dict[str, object], suffix: str
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, scales = coded(values, block)
    stored = scales.reshape(()) if scales.numel() == 1 else scales
    tensors = {NAME: codes, NAME + suffix: stored, "model.norm.weight": torch.ones(4)}
    checkpoint = checkpoints.open(write_checkpoint(tmp_path, tensors, config, with_tokenizer=False))
    assert set(checkpoint.tensors) == {NAME, "model.norm.weight"}
    expected = (codes.float() * spread(scales, block, shape)).to(torch.bfloat16)
    assert torch.equal(checkpoint.read(NAME), expected)
    assert torch.allclose(checkpoint.read(NAME).float(), values, rtol=0.07, atol=0.01)
    for start, stop in ((0, 1), (1, shape[0]), (2, 2), (shape[0] - 1, shape[0])):
        assert torch.equal(checkpoint.read_rows(NAME, start, stop), expected[start:stop])
    info = checkpoint.info(NAME)
    raw = bytes(expected.contiguous().view(torch.uint8).flatten().tolist())
    assert bytes(checkpoint.read_bytes(info, info.start + 7, info.end - 5)) == raw[7:-5]
    assert "quantization_config" not in checkpoint.config
    assert not checkpoint.stored(info)


def test_what_is_not_understood_stays_codes(tmp_path: Path) -> None:
    codes = torch.ones(20, 24).to(torch.float8_e4m3fn)
    config = {"quantization_config": {"quant_method": "fp8"}}
    tensors = {NAME: codes, NAME + "_scale": torch.ones(7)}
    checkpoint = checkpoints.open(write_checkpoint(tmp_path, tensors, config, with_tokenizer=False))
    assert checkpoint.info(NAME).dtype == "F8_E4M3"
    assert checkpoint.config["quantization_config"] == {"quant_method": "fp8"}
    assert not checkpoint.notes


def coded_model(plain: checkpoints.Checkpoint) -> dict[str, torch.Tensor]:
    """A model's tensors, its projections as codes with a scale for each block of 16 x 16."""
    tensors = {}
    for name in plain.tensors:
        tensor = plain.read(name, copy=True)
        if name.endswith("proj.weight"):
            codes, scales = coded(tensor.float(), (16, 16))
            tensors |= {name: codes, name + "_scale_inv": scales}
        else:
            tensors[name] = tensor
    return tensors


def test_delta_and_merge_take_the_values(tmp_path: Path) -> None:
    a = checkpoints.open(tiny_qwen2(tmp_path / "a"))
    tensors = coded_model(a)
    config = dict(a.config) | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}}
    b = checkpoints.open(write_checkpoint(tmp_path / "b", tensors, config))
    pair = pairs.compare(a, b)
    assert all(row.movable for row in pair.rows)
    assert pair.mergeable
    measured = {found.name: found for found in delta.scan(pair)}
    assert 0 < measured[NAME].relative_shift < 0.05  # rounding to 3 bits, not codes against values
    assert measured["model.norm.weight"].l2_shift == 0
    merged = checkpoints.open(surgery.write(pair, recipes.parse("o_proj=B"), tmp_path / "m"))
    assert torch.equal(merged.read(NAME), b.read(NAME))
    swapped = pairs.compare(b, a)  # the coded side as A: its merged model is plain
    merged = checkpoints.open(surgery.write(swapped, recipes.parse("o_proj=B"), tmp_path / "n"))
    assert torch.equal(merged.read(NAME), a.read(NAME))
    other = NAME.replace("o_proj", "q_proj")
    assert torch.equal(merged.read(other), b.read(other))
    assert "quantization_config" not in merged.config
