"""8-bit checkpoints as the values that they stand for: float8 codes times their scales.

Known are one scale for a tensor, one for each row, and one for each block (DeepSeek's `weight_scale_inv`, compressed
tensors' `weight_scale`). Everything else that is quantised stays as it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sfn.computed import ComputedFiles, Range, as_computed
from sfn.headers import TensorInfo

if TYPE_CHECKING:
    import torch

    from sfn.folders import Files

_CODES = ("F8_E4M3", "F8_E5M2")
_SCALES = ("F32", "F16", "BF16", "F8_E8M0")
_SUFFIXES = ("_scale_inv", "_scale")  # both are factors: the value is the code times the scale
_VALUES = {"float16": "F16", "float32": "F32"}  # of what the config says that the model computes in; else BF16
_DEFAULT_BLOCK = 128


Scaled = tuple[TensorInfo, TensorInfo, TensorInfo]  # as values, codes, scale


class ScaledFiles(ComputedFiles):
    """Files whose float8 tensors read as values."""

    def __init__(self, inner: Files, scaled: Mapping[str, Scaled], block: int) -> None:
        """scaled: name -> its entry as values, its codes, its scale. block: elements that share a scale, each way."""
        super().__init__(inner, [values for values, _, _ in scaled.values()])
        self._scaled = {(values.file, values.start): (codes, scale) for values, codes, scale in scaled.values()}
        self._block = block

    def needed(self, info: TensorInfo, start: int, stop: int) -> Iterator[Range]:
        """Codes of these rows, and all scales of the tensor."""
        codes, scale = self._scaled[info.file, info.start]
        yield scale, scale.start, scale.end
        yield codes, *self.inner_range(codes, start, stop)

    def rows(self, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop-1 as values: computed in float32, rounded to the values' dtype."""
        from sfn.tensors import torch_dtype

        codes, scale = self._scaled[info.file, info.start]
        values = self.inner_rows(codes, start, stop).float()
        scales = self.inner_rows(scale, 0, scale.shape[0] if scale.shape else 1).float()
        values *= _spread(scales, codes.shape, scale.shape, self._block, start, stop)
        return values.to(torch_dtype(info.dtype))


def _spread(
    scales: torch.Tensor, shape: tuple[int, ...], of: tuple[int, ...], block: int, start: int, stop: int
) -> torch.Tensor:
    """The scales of rows start..stop-1, in a shape that multiplies with them."""
    import torch

    if math.prod(of) == 1:
        return scales.reshape(())
    if of == shape[:1]:  # one for each row
        return scales[start:stop].reshape(-1, *[1] * (len(shape) - 1))
    if len(shape) == 2:
        chosen = scales[torch.arange(start, stop) // _step(shape[0], of[0], block)]
    else:  # experts, each with rows of its own
        chosen = scales[start:stop]
        chosen = chosen.repeat_interleave(_step(shape[-2], of[-2], block), dim=-2)[..., : shape[-2], :]
    return chosen.repeat_interleave(_step(shape[-1], of[-1], block), dim=-1)[..., : shape[-1]]


def _step(size: int, count: int, block: int) -> int:
    """Elements that share one of `count` scales."""
    return block if -(-size // block) == count else -(-size // count)


def _fits(shape: tuple[int, ...], scale: tuple[int, ...], block: int) -> bool:
    """Whether it is known what such scales belong to."""
    if math.prod(scale) == 1 or scale == shape[:1]:
        return True
    if len(shape) != len(scale) or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != scale[0]):
        return False
    return all(
        count in (1, size) or -(-size // block) == count or (count and size % count == 0)
        for size, count in zip(shape[-2:], scale[-2:], strict=True)
    )


def decoded(
    files: Files, tensors: Mapping[str, TensorInfo], config: Mapping[str, object]
) -> tuple[Files, dict[str, TensorInfo], dict[str, object], str]:
    """Files, tensors and config with float8 read as values, and a sentence on it; all as given and "" where none is.

    The scales are no tensors any more, and the config names no quantisation once nothing quantised is left.
    """
    block = _block_size(config)
    text = config.get("text_config")
    kind = config.get("dtype") or config.get("torch_dtype")
    if kind is None and isinstance(text, Mapping):
        kind = text.get("dtype") or text.get("torch_dtype")
    dtype = _VALUES.get(str(kind).removeprefix("torch."), "BF16")
    scaled: dict[str, Scaled] = {}
    for name, codes in tensors.items():
        scale = next((tensors[name + suffix] for suffix in _SUFFIXES if name + suffix in tensors), None)
        known = codes.dtype in _CODES and scale is not None and scale.dtype in _SCALES
        if known and _fits(codes.shape, scale.shape, block):
            scaled[name] = as_computed(codes, dtype), codes, scale
    if not scaled:
        return files, dict(tensors), dict(config), ""
    used = {scale.name for _, _, scale in scaled.values()}
    shown = {name: scaled[name][0] if name in scaled else info for name, info in tensors.items() if name not in used}
    left = any(info.dtype in _CODES for info in shown.values())
    plain = dict(config) if left else _without_quantisation(config)
    note = (
        f"{len(scaled):,} tensors are stored as {next(iter(scaled.values()))[1].dtype}, 8-bit codes with scales. They "
        f"are read as the values that they stand for, in {dtype}; a merged model is written so too."
    )
    return ScaledFiles(files, scaled, block), shown, plain, note


def _block_size(config: Mapping[str, object]) -> int:
    table = config.get("quantization_config")
    size = table.get("weight_block_size") if isinstance(table, Mapping) else None
    return size[0] if isinstance(size, list) and size and isinstance(size[0], int) and size[0] > 0 else _DEFAULT_BLOCK


def _without_quantisation(config: Mapping[str, object]) -> dict[str, object]:
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "compression_config")}
    for key, value in plain.items():
        if isinstance(value, Mapping) and "quantization_config" in value:
            plain[key] = {inner: part for inner, part in value.items() if inner != "quantization_config"}
    return plain
