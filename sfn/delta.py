"""What changed between a tensor of A and the same tensor of B: figures and histograms. Pure.

One pass over both sides in blocks of rows, on all cores, in bounded memory. Nothing is stored or drawn here; what many
tensors show together is read by `sfn.readings`.

The same bits come out whatever the blocks and however many threads: sums are taken in float64 over runs of RUN
elements, which start at fixed places in the flattened tensor, and added up without rounding. The arithmetic is
`delta_kernel`'s.
"""

from __future__ import annotations

import functools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, local
from typing import TYPE_CHECKING

import numpy as np

from sfn import anatomy
from sfn.errors import Cancelled, PairError
from sfn.folders import fill
from sfn.readings import Pooled, aggregate, sentence
from sfn.records import Histogram, TensorDelta
from sfn.tensors import torch_dtype

if TYPE_CHECKING:
    import torch

    from sfn.headers import TensorInfo
    from sfn.pairs import Pair, Side, TensorPair

__all__ = ["BLOCK", "Pooled", "aggregate", "measure", "scan", "sentence"]

BLOCK = 1 << 22  # elements of a side that are fetched at once, where they do not lie in a file on this machine
_STRETCH = 1 << 19  # elements that one thread measures at a time: half a millisecond

Progress = Callable[[int, int, str], None]


# Scanning a pair


def scan(
    pair: Pair, names: Iterable[str] | None = None, *, progress: Progress | None = None, cancel: Event | None = None
) -> Iterator[TensorDelta]:
    """One TensorDelta per comparable tensor, as it is finished, in anatomical order.

    What lies in files on this machine is read by the threads that measure it, each stretch into memory that stays in
    the processor's caches. What comes over a network or is computed is read here, a block at a time.

    Args:
        names: tensors to measure; None: all that compare. Where two vocabularies differ in size, the rows that both
            have are compared, and `shape` says so.
        progress: called with (bytes done, bytes in all, tensor name), both sides counted; it may raise to stop.
        cancel: when set, the scan raises Cancelled within one block (a few hundredths of a second).

    Raises PairError at once for a name that the pair does not have or cannot compare; CheckpointError, HubError where
    a file cannot be read.
    """
    rows = _chosen(pair, names)
    return _scan(pair, rows, _Meter(sum(map(_bytes_read, rows)), progress, cancel))


def _scan(pair: Pair, rows: Sequence[TensorPair], meter: _Meter) -> Iterator[TensorDelta]:
    with _OpenFiles() as files, closing(_in_order(_works(pair, rows, files, meter))) as results:
        for tensor, found in results:
            if found is None:
                yield tensor.delta()
            else:
                before = tensor.bytes_done
                tensor.add(found)
                meter.add(tensor.bytes_done - before, tensor.name)


def _works(pair: Pair, rows: Sequence[TensorPair], files: _OpenFiles, meter: _Meter) -> Iterator[_Work | None]:
    """Each tensor's stretches, to be measured by any thread, and after them its end; None: wait for all before this."""
    for row in rows:
        tensor = _Tensor(row.name, _common_shape(row), (row.a.dtype, row.b.dtype), _bytes_read(row))
        sides = files.sides(pair, row)
        for both in _stored(*sides, tensor.shape) if sides else _read(pair, row, meter):
            meter.check()
            yield partial(tensor.measured, both)
        yield tensor.ended
        if not sides:
            yield None  # a finished tensor must not wait for the network


def _chosen(pair: Pair, names: Iterable[str] | None) -> list[TensorPair]:
    if names is None:
        return [row for row in pair.rows if row.comparable]
    wanted = set(names)
    rows = [row for row in pair.rows if row.name in wanted]
    unknown = sorted(wanted - {row.name for row in rows})
    if unknown:
        raise PairError(
            f"The pair {pair.label} has no tensor {unknown[0]!r}; it has {len(pair.rows)}, such as "
            f"{', '.join(row.name for row in pair.rows[:3])}."
        )
    for row in rows:
        if not row.comparable:
            raise PairError(f"{row.name} cannot be compared: {row.problem}")
    return rows


def _common_shape(row: TensorPair) -> tuple[int, ...]:
    """The shape compared: that of both, or the rows that both have."""
    if row.a.shape == row.b.shape:
        return tuple(row.a.shape)
    return (min(row.a.shape[0], row.b.shape[0]), *row.a.shape[1:])


def _bytes_read(row: TensorPair) -> int:
    """Bytes of what is compared, both sides counted."""
    numel = math.prod(_common_shape(row))
    return sum(info.size_bytes * numel // max(info.numel, 1) for info in (row.a, row.b))


def _read(pair: Pair, row: TensorPair, meter: _Meter) -> Iterator[_Both]:
    """Stretches of a tensor that its checkpoints must fetch or compute."""
    sides = (_blocks(pair, side, row, meter) for side in ("A", "B"))
    return (partial(tuple, both) for both in _stretches(row.name, *sides, math.prod(_common_shape(row))))


def _blocks(pair: Pair, side: Side, row: TensorPair, meter: _Meter) -> Iterator[torch.Tensor]:
    """The tensor's compared rows, at most BLOCK elements at a time (but at least one row)."""
    shape = _common_shape(row)
    rows = shape[0] if shape else 1
    step = max(1, BLOCK // max(1, math.prod(shape[1:])))
    for start in range(0, rows, step):
        meter.check()
        yield pair.read_rows(side, row.name, start, min(start + step, rows))


def _stored(a: _Side, b: _Side, shape: tuple[int, ...]) -> Iterator[_Both]:
    """Stretches of a tensor that lies in files on this machine; read where they are measured."""
    n = math.prod(shape)
    for start in range(0, n, _STRETCH):
        yield partial(_read_both, a, b, start, min(_STRETCH, n - start))


def _read_both(a: _Side, b: _Side, start: int, count: int) -> tuple[_Elements, _Elements]:
    return a.read(start, count, "A"), b.read(start, count, "B")


class _Memory(local):
    """What a thread reads into, for each side: used again and again, so that it stays in the processor's caches."""

    def __init__(self) -> None:
        self._sides: dict[Side, bytearray] = {"A": bytearray(), "B": bytearray()}

    def room(self, side: Side, size: int) -> memoryview:
        """That many bytes."""
        if len(self._sides[side]) < size:
            self._sides[side] = bytearray(size)
        return memoryview(self._sides[side])[:size]


_memory = _Memory()


@dataclass(frozen=True, slots=True)
class _Side:
    """One side's tensor in a file on this machine."""

    info: TensorInfo
    descriptor: int
    dtype: torch.dtype

    def read(self, start: int, count: int, side: Side) -> _Elements:
        """Elements from `start` on; good until the same thread reads of this side again."""
        size = self.dtype.itemsize
        there = _memory.room(side, count * size)
        fill(there, self.info, self.descriptor, self.info.start + start * size)
        return _of_bytes(there, self.dtype)


class _OpenFiles(ExitStack):
    """The files that a scan reads, each opened once and closed at its end."""

    def __init__(self) -> None:
        super().__init__()
        self._descriptors: dict[tuple[Path, str], int] = {}

    def sides(self, pair: Pair, row: TensorPair) -> tuple[_Side, _Side] | None:
        """Both sides of a tensor, None if one of them does not lie in a file as it is."""
        found = []
        for side, info in (("A", row.a), ("B", row.b)):
            checkpoint, dtype = pair.checkpoint(side), torch_dtype(info.dtype)
            if dtype is None or dtype.is_complex or not checkpoint.stored(info):
                return None
            if (info.file, side) not in self._descriptors:
                descriptor = checkpoint.open_file(info)
                self.callback(os.close, descriptor)
                self._descriptors[info.file, side] = descriptor
            found.append(_Side(info, self._descriptors[info.file, side], dtype))
        return found[0], found[1]


class _Meter:
    """Counts bytes of both sides, tells the owner, and stops where the owner wants it."""

    def __init__(self, total: int, progress: Progress | None, cancel: Event | None) -> None:
        self.done, self.total, self.progress, self.cancel = 0, total, progress, cancel

    def check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("The scan was cancelled; the tensors finished before are kept.")

    def add(self, size_bytes: int, name: str) -> None:
        """More of tensor `name` is measured."""
        self.done += size_bytes
        if self.progress is not None:
            self.progress(self.done, self.total, name)


# Measuring one tensor


def measure(
    name: str,
    a: Iterable[torch.Tensor],
    b: Iterable[torch.Tensor],
    *,
    shape: tuple[int, ...],
    dtypes: tuple[str, str],
) -> TensorDelta:
    """Figures and histograms of one tensor (definitions: `sfn.records.TensorDelta`).

    Args:
        a, b: blocks of A's and of B's tensor, which put one after the other are its elements in order; any number of
            blocks of any shape, not necessarily the same on both sides. Any real dtype; float8 included.
        shape: shape of the whole. dtypes: the safetensors codes of A's and B's elements ("BF16").

    Counted as in float64: r = (b - a) / (|a| + 1e-8) for the form "script", r = (b - a) / a for "paper", against
    `delta_kernel.EDGES`. NaN and infinite elements add nothing to a sum, while n in the RMS shift is all elements. A
    tensor without a single finite element has NaN figures; one of no elements has zeros. Across dtypes NaN equals NaN
    in `changed_share`. Values beyond 1e154 (float64 checkpoints alone have them) overflow the sums to infinity.

    Raises PairError when the two sides do not hold the same number of elements, `shape`'s.
    """
    tensor = _Tensor(name, tuple(shape), dtypes, 0)
    stretches = _stretches(name, a, b, math.prod(shape))
    with closing(_in_order(partial(tensor.measured, partial(tuple, both)) for both in stretches)) as results:
        for _, found in results:
            tensor.add(found)
    return tensor.delta()


def _in_order(works: Iterable[_Work | None]) -> Iterator[_Result]:
    """What `works` give, in their order: done on all cores, a few ahead of what is asked for."""
    under_way: deque[Future[_Result]] = deque()
    try:
        for work in works:
            if work is not None:
                under_way.append(_threads().submit(work))
            while len(under_way) > (2 * _cores() if work else 0):
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()
        wait(under_way)  # they read from files that are closed next


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), thread_name_prefix="sfn-delta")


@dataclass(frozen=True, slots=True)
class _Found:
    """What one stretch gave: `delta_kernel.stretch` says what the arrays hold."""

    n: int
    largest: float
    sums: np.ndarray
    counts: np.ndarray
    histograms: np.ndarray


def _measured(a: _Elements, b: _Elements, same_dtype: bool) -> _Found:
    from sfn import delta_kernel as kernel

    sums = np.zeros((-(-a.bits.size // kernel.RUN), 4))
    counts, histograms = np.zeros(3, np.int64), np.zeros((2, kernel.PLACES), np.int64)
    if a.wide or b.wide:
        x, y = a.values(), b.values()
        differs = a.bits != b.bits if same_dtype else (x != y) & ~(np.isnan(x) & np.isnan(y))
        counts[kernel.CHANGED] = np.count_nonzero(differs)
        largest = kernel.stretch_of_values(x, y, kernel.EDGES, sums, counts, histograms)
    else:
        short = a.short and b.short
        largest = kernel.stretch(
            a.bits, b.bits, a.table, b.table, same_dtype, short, kernel.EDGES, sums, counts, histograms
        )
    return _Found(a.bits.size, largest, sums, counts, histograms)


class _Tensor:
    """One tensor's sums and counts, as its stretches come. They may be added in any order.

    size_bytes: of what is compared, both sides counted.
    """

    def __init__(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, str], size_bytes: int) -> None:
        self.name, self.shape, self.dtypes, self.size_bytes = name, shape, dtypes, size_bytes
        self.n = 0
        self.largest = 0.0
        self.sums: list[np.ndarray] = []
        self.counts: np.ndarray | int = 0
        self.histograms: np.ndarray | None = None

    def measured(self, both: _Both) -> _Result:
        """What one stretch gives; for any thread."""
        return self, _measured(*both(), self.dtypes[0] == self.dtypes[1])

    def ended(self) -> _Result:
        """What stands for the end, after all stretches."""
        return self, None

    def add(self, found: _Found) -> None:
        """One stretch."""
        self.n += found.n
        self.largest = max(self.largest, found.largest)
        self.sums.append(found.sums)
        self.counts = self.counts + found.counts
        self.histograms = found.histograms if self.histograms is None else self.histograms + found.histograms

    @property
    def bytes_done(self) -> int:
        """Of `size_bytes`."""
        return self.size_bytes * self.n // max(math.prod(self.shape), 1)

    def delta(self) -> TensorDelta:
        """What was found."""
        part = anatomy.parse(self.name)
        return TensorDelta(
            name=self.name,
            layer=part.layer,
            block=part.block,
            module=part.module,
            parameter=part.parameter,
            expert=part.expert,
            shape=self.shape,
            n=self.n,
            dtype_a=self.dtypes[0],
            dtype_b=self.dtypes[1],
            nonfinite=self._count("NONFINITE"),
            histogram=self._histogram("script"),
            histogram_paper=self._histogram("paper"),
            **self._figures(),
        )

    def _count(self, which: str) -> int:
        from sfn import delta_kernel as kernel

        return int(self.counts[getattr(kernel, which)]) if self.n else 0

    def _figures(self) -> dict[str, float]:
        """The six figures, by their names in TensorDelta."""
        sums = np.concatenate(self.sums) if self.sums else np.zeros((0, 4))
        squares, squares_a, squares_b, products = (math.fsum(column.tolist()) for column in sums.T)
        l2, norm_a, norm_b = math.sqrt(squares), math.sqrt(squares_a), math.sqrt(squares_b)
        figures = {
            "l2_shift": l2,
            "rms_shift": l2 / math.sqrt(self.n) if self.n else 0.0,
            "relative_shift": l2 / norm_a if norm_a else (math.nan if l2 else 0.0),
            "cosine": _cosine(products, norm_a, norm_b, unchanged=l2 == 0),
            "max_abs_shift": self.largest,
        }
        if self.n and self._count("NONFINITE") == self.n:
            figures = dict.fromkeys(figures, math.nan)
        return figures | {"changed_share": self._count("CHANGED") / self.n if self.n else 0.0}

    def _histogram(self, form: str) -> Histogram:
        """The counts of one form."""
        from sfn import delta_kernel as kernel

        places = [0] * kernel.PLACES
        if self.histograms is not None:
            places = self.histograms[{"script": kernel.SCRIPT, "paper": kernel.PAPER}[form]].tolist()
        below, *inner, above = places
        return Histogram(form, tuple(inner), below, above, self._count("ZEROS"), self._count("NONFINITE"))


def _cosine(products: float, norm_a: float, norm_b: float, *, unchanged: bool) -> float:
    if not norm_a or not norm_b:
        return math.nan
    return 1.0 if unchanged else max(-1.0, min(1.0, products / norm_a / norm_b))


# A stretch of both sides, read when it is called for; what a thread does with it; what it found, at the end None.
_Both = Callable[[], tuple["_Elements", "_Elements"]]
_Result = tuple["_Tensor", "_Found | None"]
_Work = Callable[[], _Result]


# Elements


_NO_TABLE = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class _Elements:
    """Elements in a row as they are stored.

    Attributes:
        bits: (n,) unsigned whole numbers. table: float32 value of each of them, empty where they are a float32's first.
        kind: NumPy's dtype of elements that a float32 cannot hold (float64, whole numbers), else None.
    """

    bits: np.ndarray
    table: np.ndarray
    kind: np.dtype | None

    @property
    def wide(self) -> bool:
        """Whether float32 cannot hold them."""
        return self.kind is not None

    @property
    def short(self) -> bool:
        """Whether they are bfloat16."""
        return not self.wide and not len(self.table) and self.bits.itemsize == 2

    def values(self) -> np.ndarray:
        """(n,) float64."""
        if self.kind is not None:
            return self.bits.view(self.kind).astype(np.float64)
        if len(self.table):
            return self.table.take(self.bits).astype(np.float64)
        left = 32 - 8 * self.bits.itemsize
        return (self.bits.astype(np.uint32) << left).view(np.float32).astype(np.float64)

    def part(self, start: int, stop: int) -> _Elements:
        """Elements start..stop-1."""
        return _Elements(self.bits[start:stop], self.table, self.kind)


def _stretches(
    name: str, a: Iterable[torch.Tensor], b: Iterable[torch.Tensor], n: int
) -> Iterator[tuple[_Elements, _Elements]]:
    """The same stretch of both sides at a time, none longer than _STRETCH, each but the last of whole runs."""
    from sfn import delta_kernel as kernel

    sides = [_whole_runs(blocks, name, kernel.RUN) for blocks in (a, b)]
    held: list[_Elements | None] = [None, None]
    done = 0
    while True:
        held = [mine or next(side, None) for mine, side in zip(held, sides, strict=True)]
        left, right = held
        if left is None or right is None:
            break
        count = min(left.bits.size, right.bits.size, _STRETCH)
        yield left.part(0, count), right.part(0, count)
        done += count
        held = [side.part(count, side.bits.size) if side.bits.size > count else None for side in (left, right)]
        if count % kernel.RUN and any(held):
            break
    if held != [None, None]:
        raise PairError(f"{name}: A and B do not hold the same number of elements, so they cannot be compared.")
    if done != n:
        raise PairError(f"{name}: the elements read do not fill its shape, which holds {n}, so it cannot be compared.")


def _whole_runs(blocks: Iterable[torch.Tensor], name: str, run: int) -> Iterator[_Elements]:
    """The blocks' elements in pieces of whole runs, the last one what is left; copied only where blocks meet."""
    left: _Elements | None = None
    for block in blocks:
        here = _elements(block, name)
        if left is not None:
            missing = run - left.bits.size
            joined = np.concatenate([left.bits, here.bits[:missing]])
            if joined.size < run:
                left = _Elements(joined, here.table, here.kind)
                continue
            yield _Elements(joined, here.table, here.kind)
            here, left = here.part(missing, here.bits.size), None
        whole = here.bits.size // run * run
        if whole:
            yield here.part(0, whole)
        if here.bits.size > whole:
            left = here.part(whole, here.bits.size)
    if left is not None:
        yield left


def _elements(block: torch.Tensor, name: str) -> _Elements:
    """A block's elements, flat."""
    import torch

    flat = block.detach().reshape(-1).contiguous()
    if flat.is_complex():
        raise PairError(f"{name}: complex elements ({flat.dtype}) have no place in these figures.")
    return _of_bytes(memoryview(flat.view(torch.uint8).numpy()), flat.dtype)


def _of_bytes(content: memoryview, dtype: torch.dtype) -> _Elements:
    """The elements in these bytes."""
    table, kind = _how_to_read(dtype)
    return _Elements(np.frombuffer(content, f"u{dtype.itemsize}"), table, kind)


@functools.cache
def _how_to_read(dtype: torch.dtype) -> tuple[np.ndarray, np.dtype | None]:
    """Table and kind of elements of this dtype, see `_Elements`."""
    import torch

    if dtype in (torch.bfloat16, torch.float32):
        return _NO_TABLE, None
    if not dtype.is_floating_point or dtype.itemsize > 2:
        return _NO_TABLE, torch.empty(0, dtype=dtype).numpy().dtype
    if dtype.itemsize == 1:  # float8 in its five kinds
        every = torch.arange(256, dtype=torch.uint8)
    else:
        every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    return every.view(dtype).to(torch.float32).numpy(), None
