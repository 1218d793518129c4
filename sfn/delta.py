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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from sfn import anatomy
from sfn.errors import Cancelled, PairError
from sfn.readings import Pooled, aggregate, sentence
from sfn.records import Histogram, TensorDelta

if TYPE_CHECKING:
    import torch

    from sfn.pairs import Pair, TensorPair

__all__ = ["BLOCK", "Pooled", "aggregate", "measure", "scan", "sentence"]

BLOCK = 1 << 22  # elements read at once
_STRETCH = 1 << 18  # elements that one thread measures at a time: a millisecond or less

Progress = Callable[[int, int, str], None]


# Scanning a pair


def scan(
    pair: Pair, names: Iterable[str] | None = None, *, progress: Progress | None = None, cancel: Event | None = None
) -> Iterator[TensorDelta]:
    """One TensorDelta per comparable tensor, as it is finished, in anatomical order.

    Args:
        names: tensors to measure; None: all that compare. Where two vocabularies differ in size, the rows that both
            have are compared, and `shape` says so.
        progress: called with (bytes done, bytes in all, tensor name), both sides counted; it may raise to stop.
        cancel: when set, the scan raises Cancelled within one block (a few hundredths of a second).

    Raises PairError at once for a name that the pair does not have or cannot compare.
    """
    rows = _chosen(pair, names)
    total = sum(_bytes_read(row, side) for row in rows for side in "AB")
    return _scan(pair, rows, _Meter(total, progress, cancel))


def _scan(pair: Pair, rows: Sequence[TensorPair], meter: _Meter) -> Iterator[TensorDelta]:
    for row in rows:
        yield measure(
            row.name,
            _blocks(pair, "A", row, meter),
            _blocks(pair, "B", row, meter),
            shape=_common_shape(row),
            dtypes=(row.a.dtype, row.b.dtype),
        )


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


def _bytes_read(row: TensorPair, side: str) -> int:
    info = row.a if side == "A" else row.b
    return info.size_bytes * math.prod(_common_shape(row)) // max(info.numel, 1)


def _blocks(pair: Pair, side: str, row: TensorPair, meter: _Meter) -> Iterator[torch.Tensor]:
    """The tensor's compared rows, at most BLOCK elements at a time (but at least one row)."""
    shape = _common_shape(row)
    rows = shape[0] if shape else 1
    step = max(1, BLOCK // max(1, math.prod(shape[1:])))
    size, done = _bytes_read(row, side), 0
    for start in range(0, rows, step):
        meter.check()
        stop = min(start + step, rows)
        yield pair.read_rows(side, row.name, start, stop)
        meter.add(size * stop // rows - done, row.name)  # once its elements are counted
        done = size * stop // rows


class _Meter:
    """Counts bytes of both sides, tells the owner, and stops where the owner wants it."""

    def __init__(self, total: int, progress: Progress | None, cancel: Event | None) -> None:
        self.done, self.total, self.progress, self.cancel = 0, total, progress, cancel

    def check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("The scan was cancelled; the tensors finished before are kept.")

    def add(self, size_bytes: int, name: str) -> None:
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
    tally = _Tally(dtypes[0] == dtypes[1])
    under_way: deque[Future[_Found]] = deque()
    for left, right in _stretches(name, a, b, math.prod(shape)):
        if not under_way and left.bits.size < _STRETCH:
            tally.add(_measured(left, right, tally.same_dtype))  # a small tensor is not worth handing on
            continue
        under_way.append(_threads().submit(_measured, left, right, tally.same_dtype))
        if len(under_way) > 2 * _cores():
            tally.add(under_way.popleft().result())
    for measured in under_way:
        tally.add(measured.result())
    part = anatomy.parse(name)
    return TensorDelta(
        name=name,
        layer=part.layer,
        block=part.block,
        module=part.module,
        parameter=part.parameter,
        expert=part.expert,
        shape=tuple(shape),
        n=tally.n,
        dtype_a=dtypes[0],
        dtype_b=dtypes[1],
        nonfinite=tally.nonfinite,
        histogram=tally.histogram("script"),
        histogram_paper=tally.histogram("paper"),
        **tally.figures(),
    )


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


class _Tally:
    """Sums and counts of one tensor. Stretches may be added in any order."""

    def __init__(self, same_dtype: bool) -> None:
        self.same_dtype = same_dtype
        self.n = 0
        self.largest = 0.0
        self.sums: list[np.ndarray] = []
        self.counts: np.ndarray | int = 0
        self.histograms: np.ndarray | None = None

    def add(self, found: _Found) -> None:
        """One stretch."""
        self.n += found.n
        self.largest = max(self.largest, found.largest)
        self.sums.append(found.sums)
        self.counts = self.counts + found.counts
        self.histograms = found.histograms if self.histograms is None else self.histograms + found.histograms

    def _count(self, which: int) -> int:
        return int(self.counts[which]) if self.n else 0

    @property
    def nonfinite(self) -> int:
        """Elements that are NaN or infinite on either side."""
        from sfn import delta_kernel as kernel

        return self._count(kernel.NONFINITE)

    def figures(self) -> dict[str, float]:
        """The six figures, by their names in TensorDelta."""
        from sfn import delta_kernel as kernel

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
        if self.n and self.nonfinite == self.n:
            figures = dict.fromkeys(figures, math.nan)
        return figures | {"changed_share": self._count(kernel.CHANGED) / self.n if self.n else 0.0}

    def histogram(self, form: str) -> Histogram:
        """The counts of one form."""
        from sfn import delta_kernel as kernel

        places = [0] * kernel.PLACES
        if self.histograms is not None:
            places = self.histograms[{"script": kernel.SCRIPT, "paper": kernel.PAPER}[form]].tolist()
        below, *inner, above = places
        return Histogram(form, tuple(inner), below, above, self._count(kernel.ZEROS), self.nonfinite)


def _cosine(products: float, norm_a: float, norm_b: float, *, unchanged: bool) -> float:
    if not norm_a or not norm_b:
        return math.nan
    return 1.0 if unchanged else max(-1.0, min(1.0, products / norm_a / norm_b))


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

    flat = block.detach().reshape(-1)
    if flat.is_complex():
        raise PairError(f"{name}: complex elements ({flat.dtype}) have no place in these figures.")
    if flat.dtype == torch.bfloat16:
        return _Elements(flat.view(torch.int16).numpy().view(np.uint16), _NO_TABLE, None)
    if flat.dtype == torch.float32:
        return _Elements(flat.numpy().view(np.uint32), _NO_TABLE, None)
    if flat.dtype.is_floating_point and flat.dtype.itemsize <= 2:  # float16, and float8 in its five kinds
        whole = {1: torch.uint8, 2: torch.int16}[flat.dtype.itemsize]
        bits = flat.view(whole).numpy()
        return _Elements(bits.view(f"u{bits.itemsize}"), _table(flat.dtype), None)
    elements = flat.numpy()
    return _Elements(elements.view(f"u{elements.itemsize}"), _NO_TABLE, elements.dtype)


@functools.cache
def _table(dtype: torch.dtype) -> np.ndarray:
    """float32 value of every bit pattern of a float of one or two bytes."""
    import torch

    if dtype.itemsize == 1:
        return torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32).numpy()
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).to(torch.float32).numpy()
