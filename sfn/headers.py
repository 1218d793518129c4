"""The safetensors format: read and check the header of one file, and write one. Owns the rules of the format; knows
nothing of folders, configs or torch.

A file is 8 bytes N (little-endian), N bytes of JSON, then the tensors' bytes without gap. Every rule of the reference
parser (safetensors 0.8) is kept, and one more: a tensor named twice in one header is refused, where the reference takes
the last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from sfn.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the reference parser's limit
MAX_DIMENSIONS = 64  # numpy's limit
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies and what it is.

    Attributes:
        dtype: the format's own code ("BF16", "F8_E4M3"). shape: () for a scalar.
        file: file that holds it. start, end: byte range in that file, counted from the file's first byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.start


class FileState(NamedTuple):
    """What tells that a file is still the one whose header was read: inode, size in bytes, time of last change."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """The state that `os.stat` or `os.fstat` reports."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


def read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str], FileState]:
    """Tensors of `file` in the order of their bytes, its `__metadata__`, and the file's state; no weight is read.

    Raises CheckpointError, naming file and tensor, for anything that the format does not allow.
    """
    try:
        with open(file, "rb") as stream:
            state = FileState.of(os.fstat(stream.fileno()))
            length = header_length(file, stream.read(8), state.size)
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from error
    if len(raw) < length:
        raise CheckpointError(f"{file} was cut while it was being read. Download or copy it again.")
    return *parse_header(file, raw, state.size), state


def parse_header(file: Path, raw: bytes, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors in the order of their bytes and `__metadata__`, of the JSON that follows the first 8 bytes of `file`.

    size: of the whole file, in bytes. Raises as `read_header`.
    """
    header = _parse_json(file, raw)
    metadata = _checked_metadata(file, header.pop("__metadata__", None))
    return _checked_tensors(file, header, 8 + len(raw), size), metadata


def header_length(file: Path, prefix: bytes, size: int) -> int:
    """Bytes of the JSON header that the file's first 8 bytes announce; raises CheckpointError if it cannot be so."""
    if len(prefix) < 8:
        raise CheckpointError(
            f"{file} is cut off: {size} bytes, less than the 8 that every safetensors file begins with. "
            "Download or copy it again."
        )
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file} says that its header takes {length:,} bytes; at most {MAX_HEADER_BYTES:,} are allowed. "
            "This is no safetensors file, or it is damaged."
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{file} says that its header takes {length:,} bytes, but the whole file has {size:,}. "
            "It is cut off or no safetensors file: download or copy it again."
        )
    return length


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the name {key!r} stands in it twice")
        key.encode()  # half a surrogate pair is legal in JSON, but no text: UnicodeEncodeError is a ValueError
        found[key] = value
    return found


def _parse_json(file: Path, raw: bytes) -> dict[str, object]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{file} has a header that is not valid JSON: {reason}. The file is damaged.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has a header that is a JSON {type(header).__name__}, not an object of tensors.")
    return header


def _checked_metadata(file: Path, metadata: object) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(map(_is_text, metadata.values())):
        raise CheckpointError(f"{file} has a `__metadata__` that is not a table of texts. The file is damaged.")
    return metadata


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63  # type(), since True is an int to isinstance


def _is_shape(shape: object) -> bool:
    """Sizes whose product without zeros fits in 63 bits, since torch multiplies them for its strides."""
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        return False
    return all(map(_is_count, shape)) and prod(size for size in shape if size) < 2**63


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _entry(file: Path, name: str, entry: object, origin: int) -> TensorInfo:
    where = f"{file}, tensor {name!r}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{where}: the header has no dtype, shape and data_offsets for it. The file is damaged.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where}: unknown dtype {_short(dtype)}. Known are {', '.join(DTYPE_BITS)}.")
    if not _is_shape(shape):
        raise CheckpointError(
            f"{where}: shape {_short(shape)} is not a list of up to {MAX_DIMENSIONS} sizes with a product below 2^63."
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise CheckpointError(f"{where}: data_offsets {_short(offsets)} are not two whole numbers from 0.")
    start, end = offsets
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (end - start):
        raise CheckpointError(
            f"{where}: {dtype} of shape {shape} takes {bits / 8:,g} bytes, its range {start:,} to {end:,} has "
            f"{end - start:,}. The file is damaged."
        )
    return TensorInfo(name, dtype, tuple(shape), file, origin + start, origin + end)


def _checked_tensors(file: Path, header: Mapping[str, object], origin: int, size: int) -> dict[str, TensorInfo]:
    """Tensors by place; together they must cover the file from the header's end to the file's, each byte once."""
    infos = sorted(
        (_entry(file, name, entry, origin) for name, entry in header.items()), key=lambda info: (info.start, info.end)
    )
    reached = origin
    for info in infos:
        if info.end > size:
            raise CheckpointError(
                f"{file}, tensor {info.name!r}: its bytes reach to {info.end:,}, the file ends at {size:,}. "
                "It is cut off: download or copy it again."
            )
        if info.start != reached:
            fault = "overlaps the tensor before it" if info.start < reached else "leaves a gap before it"
            raise CheckpointError(
                f"{file}, tensor {info.name!r}: it begins at byte {info.start:,} and so {fault}, which ends at "
                f"{reached:,}. safetensors allows neither; the file is damaged."
            )
        reached = info.end
    if reached != size:
        raise CheckpointError(
            f"{file}: its tensors end at byte {reached:,}, the file at {size:,}. safetensors allows no bytes that "
            "belong to no tensor; the file is damaged."
        )
    return {info.name: info for info in infos}


def encode_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """First bytes of a safetensors file that holds `tensors` (name, dtype code, shape) one after the other, no gap.

    Padded with spaces to a multiple of 8 bytes, so that the first tensor is aligned; put wide dtypes first to keep the
    others so.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    reached = 0
    for name, dtype, shape in tensors:
        size = prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [reached, reached + size]}
        reached += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
