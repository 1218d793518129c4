"""Bytes as torch tensors, and back: which of the format's dtypes are torch's. Imports torch only to make a tensor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


def torch_dtype(code: str) -> torch.dtype | None:
    """torch's dtype for the format's code ("BF16"), None where torch has none."""
    import torch

    return getattr(torch, _TORCH_NAMES[code]) if code in _TORCH_NAMES else None


def over(data: object, skipped: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor over memory (anything with the buffer protocol), which it keeps alive, from byte `skipped` on."""
    import torch

    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    if skipped % dtype.itemsize:
        data, skipped = bytearray(memoryview(data).cast("B")[skipped:]), 0  # type: ignore[arg-type]
    return torch.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=skipped).reshape(shape)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes, in order; shared with it where it is contiguous."""
    import torch

    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
