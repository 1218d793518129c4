"""Writes a folder of safetensors so that it is either there and whole, or not there.

Owns the temporary folder, the shards, their headers and index, and what happens on cancel, failure and kill. Knows
tensors only as name, dtype, shape and a stream of bytes; what is in them is `surgery`'s.

What is guaranteed: every program that looks sees the whole folder or none, whatever becomes of the writing process.
With `durable`, that also holds after a power failure; without, a failure in the half minute in which the system brings
the bytes to the disk may cut files short (which opening the checkpoint notices), as after `cp`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Event
from typing import BinaryIO

from sfn.errors import Cancelled, CheckpointError, SurgeryError
from sfn.headers import DTYPE_BITS, encode_header

Progress = Callable[[int, int, str], None]  # (done bytes, total bytes, tensor name); may raise to stop the work
Chunk = bytes | bytearray | memoryview

MAX_SHARD_BYTES = 5_000_000_000
INDEX_NAME = "model.safetensors.index.json"
_SPARE_BYTES = 1 << 20  # headers, index and small files
_STEP_BYTES = 16 << 20  # copied between two looks at the cancel button
_BUFFER_BYTES = 1 << 18  # fits in the processor's cache, where the system cannot copy by itself
_CANNOT_COPY = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY})


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes start..end-1 of a file, copied from file to file by the system: they never enter this process.

    `open()` gives a descriptor, closed here; `name` is what errors call the file.
    """

    open: Callable[[], int]
    start: int
    end: int
    name: str


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One tensor to be written: `chunks()` yields its bytes in order, in pieces that fit in memory, or as extents."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Chunk | Extent]]

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def write_folder(
    target: Path,
    tensors: Iterable[Outgoing],
    metadata: Mapping[str, str],
    small_files: Callable[[Path], None],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
    cancel: Event | None = None,
    durable: bool = False,
) -> Path:
    """Write shards, then what `small_files(folder)` writes, into a hidden folder beside `target`; then rename it.

    durable: wait until the disk has it all before the folder appears, see above.

    Raises SurgeryError if `target` is there and not empty, or cannot be written; Cancelled when `cancel` is set. Either
    way nothing is left. A killed process leaves a hidden folder without config.json and with a shard that ends too
    early; the next write to the same target removes it.
    """
    tensors = list(tensors)
    shards = split(tensors, max_shard_bytes)
    total = sum(tensor.size_bytes for tensor in tensors)
    check_target(target, tensors)
    target = target.expanduser().absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _partial_folder(target) as partial:
            _write_shards(partial, shards, metadata, _Meter(target, total, progress, cancel))
            small_files(partial)
            if durable:
                _sync_files(partial)
            if cancel is not None and cancel.is_set():
                raise Cancelled(f"Writing {target} was cancelled; nothing was left there.")
            os.rename(partial, target)  # atomic; fails if somebody has put something there meanwhile
        if durable:
            _sync_folder(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SurgeryError(f"{target} could not be written: {reason}. Nothing was left there.") from error
    return target


def split(tensors: Iterable[Outgoing], max_shard_bytes: int) -> list[list[Outgoing]]:
    """Tensors in the given order, cut into shards of at most `max_shard_bytes` (one larger tensor makes its own)."""
    shards: list[list[Outgoing]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.size_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size_bytes
    for shard in shards:
        shard.sort(key=lambda tensor: -DTYPE_BITS[tensor.dtype])  # wide dtypes first: every tensor is aligned
    return shards


class _Meter:
    """Counts written bytes, reports them, and stops the work when it is cancelled."""

    def __init__(self, target: Path, total: int, progress: Progress | None, cancel: Event | None) -> None:
        self.target, self.total, self.progress, self.cancel, self.done = target, total, progress, cancel, 0

    def add(self, count: int, name: str) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(f"Writing {self.target} was cancelled; nothing was left there.")
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total, name)


def check_target(target: Path, tensors: Iterable[Outgoing]) -> None:
    """Raises SurgeryError if `target` is there already (an empty folder may be), or too little room is left for it."""
    target = target.expanduser().absolute()
    needed = sum(tensor.size_bytes for tensor in tensors) + _SPARE_BYTES
    try:
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise SurgeryError(f"{target} is there already and is not a folder. Choose another name.")
        if target.is_dir() and any(target.iterdir()):
            raise SurgeryError(f"{target} is there already and not empty; it is not overwritten. Choose another name.")
        free = free_bytes(target)
    except OSError as error:
        raise SurgeryError(f"{target} cannot be written: {error.strerror or error}. Choose another folder.") from error
    if needed > free:
        raise SurgeryError(
            f"{target} needs {_size(needed)}, but only {_size(free)} are free there. Make room, or choose a folder on "
            "another disk."
        )


def free_bytes(target: Path) -> int:
    """Room on the disk that `target` would be on. Raises SurgeryError where a file stands in the way, OSError."""
    above = next(folder for folder in target.expanduser().absolute().parents if folder.exists())
    if not above.is_dir():
        raise SurgeryError(f"{target} cannot be written: {above} is a file. Choose another folder.")
    return shutil.disk_usage(above).free


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextlib.contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target`, gone at the end unless it was renamed. Locked while its writer lives."""
    _sweep(target)
    partial = target.parent / f".{target.name}.partial-{uuid.uuid4().hex[:12]}"
    partial.mkdir()
    try:
        with _locked(partial):
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing is there after a rename


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder` that ends with the process; raises OSError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _sweep(target: Path) -> None:
    """Remove what killed writers of the same target left: folders whose lock nobody holds."""
    for stale in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        with contextlib.suppress(OSError), _locked(stale):
            shutil.rmtree(stale, ignore_errors=True)


def _write_shards(folder: Path, shards: list[list[Outgoing]], metadata: Mapping[str, str], meter: _Meter) -> None:
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with open(folder / name, "xb", buffering=0) as file:
            _write_all(file, encode_header(((t.name, t.dtype, t.shape) for t in shard), metadata))
            for tensor in shard:
                _write_tensor(file, tensor, meter)
        weight_map |= {tensor.name: name for tensor in shard}
    if len(shards) > 1:
        content = {"metadata": {"total_size": meter.total}, "weight_map": weight_map}
        (folder / INDEX_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tensor(file: BinaryIO, tensor: Outgoing, meter: _Meter) -> None:
    start = meter.done
    for chunk in tensor.chunks():
        meter.add(0, tensor.name)  # a cancel is heard before the chunk is written
        if isinstance(chunk, Extent):
            _copy(file, chunk, lambda count: meter.add(count, tensor.name))
        else:
            _write_all(file, chunk)
            meter.add(len(chunk), tensor.name)
    written = meter.done - start
    assert written == tensor.size_bytes, f"{tensor.name}: {written} bytes of {tensor.size_bytes}"


def _copy(file: BinaryIO, extent: Extent, add: Callable[[int], None]) -> None:
    """Append the extent to `file`; by the system alone where it can (some filesystems then share the blocks)."""
    source, at, by_system = extent.open(), extent.start, True
    try:
        while at < extent.end:
            step = min(_STEP_BYTES, extent.end - at)
            try:
                count = _system_copy(source, file, at, step) if by_system else _buffered_copy(source, file, at, step)
            except OSError as error:
                if not by_system or error.errno not in _CANNOT_COPY:
                    raise
                by_system = False
                continue
            if count == 0:
                raise CheckpointError(f"{extent.name}: the file was cut while it was being read.")
            at += count
            add(count)
    finally:
        os.close(source)


def _system_copy(source: int, file: BinaryIO, at: int, count: int) -> int:
    return os.copy_file_range(source, file.fileno(), count, offset_src=at)


def _buffered_copy(source: int, file: BinaryIO, at: int, count: int) -> int:
    """Up to `count` bytes through a small buffer; fewer where the source ends."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    done = 0
    while done < count and (got := os.preadv(source, [buffer[: count - done]], at + done)):
        _write_all(file, buffer[:got])
        done += got
    return done


def _write_all(file: BinaryIO, chunk: Chunk) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]  # an unbuffered write may take less than it is given


def _sync_files(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
