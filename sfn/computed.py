"""A checkpoint some of whose tensors are computed from what is stored: decoded, or with an adapter applied.

Owns how computed rows are handed out as bytes, so that whoever reads a checkpoint need not know. What is computed is
its children's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from sfn.errors import CheckpointError
from sfn.headers import DTYPE_BITS, TensorInfo
from sfn.tensors import bytes_of, over, torch_dtype

if TYPE_CHECKING:
    import torch

    from sfn.fingerprints import Memo, Progress
    from sfn.folders import Files

Range = tuple[TensorInfo, int, int]


def as_computed(stored: TensorInfo, dtype: str, shape: tuple[int, ...] | None = None) -> TensorInfo:
    """The entry of a tensor that is computed from `stored`: its bytes are counted from where that begins."""
    shape = stored.shape if shape is None else shape
    return replace(stored, dtype=dtype, shape=shape, end=stored.start + math.prod(shape) * DTYPE_BITS[dtype] // 8)


class ComputedFiles:
    """Files of another checkpoint, `inner`, with tensors computed; every method as `sfn.folders.FolderFiles` has it."""

    def __init__(self, inner: Files, computed: Iterable[TensorInfo]) -> None:
        self.inner = inner
        # By place, not by name: a lent head is read under another name.
        self._computed = {(info.file, info.start): info for info in computed if info.size_bytes}

    # What children say.

    def rows(self, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop-1 of a computed tensor, in its dtype."""
        raise NotImplementedError

    def needed(self, info: TensorInfo, start: int, stop: int) -> Iterator[Range]:
        """The byte ranges of `inner` that `rows` reads."""
        raise NotImplementedError

    # Computed tensors.

    def _found(self, info: TensorInfo) -> TensorInfo | None:
        found = self._computed.get((info.file, info.start))
        return found if found is not None and found.dtype == info.dtype and found.shape == info.shape else None

    def _rows_around(self, info: TensorInfo, start: int, end: int) -> tuple[int, int, int]:
        """The rows that hold these bytes, and bytes in one row."""
        rows = info.shape[0] if info.shape else 1
        width = info.size_bytes // rows
        return (start - info.start) // width, -(-(end - info.start) // width), width

    def view(self, info: TensorInfo, start: int, end: int) -> tuple[object, int]:
        """Memory that holds the range, and where in it the range begins."""
        computed = self._found(info)
        if computed is None:
            return self.inner.view(info, start, end)
        first, last, width = self._rows_around(info, start, end)
        return bytes_of(self.rows(computed, first, last)), start - info.start - first * width

    def read(self, info: TensorInfo, start: int, end: int) -> bytearray:
        """Bytes start..end-1, in memory of their own."""
        if self._found(info) is None:
            return self.inner.read(info, start, end)
        if start == end:
            return bytearray()
        data, skipped = self.view(info, start, end)
        return bytearray(memoryview(data)[skipped : skipped + end - start])  # type: ignore[arg-type]

    def stored(self, info: TensorInfo) -> bool:
        """Whether the tensor's bytes lie just so in a file on this machine."""
        return self._found(info) is None and self.inner.stored(info)

    def open(self, info: TensorInfo) -> int:
        """A descriptor of the tensor's file; only for what is stored."""
        if self._found(info) is not None:
            raise CheckpointError(f"{info.file}, tensor {info.name!r}: it is computed, no file holds it so.")
        return self.inner.open(info)

    def read_ahead(self, ranges: Iterable[Range], cancel: Event | None = None) -> AbstractContextManager[None]:
        """While entered, what these ranges are computed from is fetched ahead."""
        return self.inner.read_ahead(list(self._inner_ranges(ranges)), cancel)

    def _inner_ranges(self, ranges: Iterable[Range]) -> Iterator[Range]:
        for info, start, end in ranges:
            computed = self._found(info)
            if computed is None:
                yield info, start, end
            elif start < end:
                first, last, _ = self._rows_around(info, start, end)
                yield from self.needed(computed, first, last)

    def inner_rows(self, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop-1 of a tensor as `inner` stores it; a scalar counts as one row."""
        rest = info.shape[1:]
        begin, end = self.inner_range(info, start, stop)
        dtype = torch_dtype(info.dtype)
        assert dtype is not None, "children compute with dtypes that torch has"
        data, skipped = self.inner.view(info, begin, end) if begin < end else (b"", 0)
        return over(data, skipped, dtype, (stop - start, *rest))

    @staticmethod
    def inner_range(info: TensorInfo, start: int, stop: int) -> tuple[int, int]:
        """Bytes of the rows start..stop-1."""
        width = info.size_bytes // ((info.shape[0] if info.shape else 1) or 1)
        return info.start + start * width, info.start + stop * width

    # The rest is as it is.

    @property
    def shards(self) -> tuple[Path, ...]:
        """The safetensors files, in order."""
        return self.inner.shards

    @property
    def identity_files(self) -> tuple[Path, ...]:
        """Files that enter the fingerprint."""
        return self.inner.identity_files

    @property
    def missing_bytes(self) -> int:
        """Bytes that an engine loads and that are not on this machine."""
        return self.inner.missing_bytes

    def has(self, name: str) -> bool:
        """Whether there is such a small file."""
        return self.inner.has(name)

    def path(self, name: str) -> Path:
        """Where the small file lies."""
        return self.inner.path(name)

    def at_hand(self, name: str) -> bool:
        """Whether the small file can be read without fetching it."""
        return self.inner.at_hand(name)

    def size(self, name: str) -> int:
        """Bytes of the small file."""
        return self.inner.size(name)

    def content_key(self, name: str) -> object:
        """Equal for files of equal content."""
        return self.inner.content_key(name)

    def fingerprint(self, memo: Memo, progress: Progress | None) -> str:
        """See `Checkpoint.fingerprint_with`."""
        return self.inner.fingerprint(memo, progress)

    def weights_known(self, memo: Memo) -> bool:
        """Whether the fingerprint can be had without reading weights."""
        return self.inner.weights_known(memo)

    def unchanged(self) -> bool:
        """Whether the weight files are still those whose headers were read."""
        return self.inner.unchanged()

    def speech_folder(self) -> Path:
        """Where tokenizer, chat templates and configs lie."""
        return self.inner.speech_folder()

    def fetch(self, progress: Progress | None = None, cancel: Event | None = None) -> None:
        """Bring all files to this machine."""
        self.inner.fetch(progress, cancel)


def by_name(tensors: Mapping[str, TensorInfo], changed: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
    """The same tensors in the same order, those of the names that changed replaced, new ones at the end."""
    found = {info.name: info for info in changed}
    return {name: found.get(name, info) for name, info in tensors.items()} | found
