"""What changed between a tensor of A and the same tensor of B: figures and histograms. Pure.

One pass over both sides in blocks of rows, bounded memory, the same result whatever the blocks. Nothing is stored or
drawn here; what many tensors show together is read by `sfn.readings`.

Every element is widened to float64, exactly (safetensors' floats all fit), before anything is computed. Sums are taken
over runs of `RUN` elements, which start at fixed places in the flattened tensor, and added up without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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

__all__ = ["BLOCK", "EDGES", "RUN", "Pooled", "aggregate", "measure", "scan", "sentence"]

RUN = 1 << 15  # elements summed at once; its arrays (256 KiB each) stay in the processor's cache
BLOCK = 1 << 20  # elements read at once

EDGES: np.ndarray = np.arange(-100, 101) / 100
"""The 201 edges of a histogram's inner bins, float64: bin i holds EDGES[i] <= r < EDGES[i + 1], the last one r = 1 too.
numpy.histogram(r, EDGES) counts the same."""

_OFFSET = 1e-8  # of the paper's released scripts
# With what lies outside: place 1 is below -1, places 2 to 201 are the bins, place 202 is above 1.
_PLACES = np.concatenate([[-np.inf, -np.inf], EDGES[:-1], [np.nextafter(1, 2), np.nan]])

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

    Counted in float64: r = (b - a) / (|a| + 1e-8) for the form "script", r = (b - a) / a for "paper", against `EDGES`.
    NaN and infinite elements add nothing to a sum, while n in the RMS shift is all elements. A tensor without a single
    finite element has NaN figures; one of no elements has zeros. Across dtypes NaN equals NaN in `changed_share`.
    Values beyond 1e154 (float64 checkpoints alone have them) overflow the sums to infinity.

    Raises PairError when the two sides do not hold the same number of elements, `shape`'s.
    """
    tally = _Tally(same_dtype=dtypes[0] == dtypes[1])
    runs_b = _runs(b, name)
    with np.errstate(all="ignore"):
        for bits_a, values_a in _runs(a, name):
            bits_b, values_b = next(runs_b, (bits_a[:0], values_a[:0]))
            if len(values_a) != len(values_b):
                raise PairError(f"{name}: A and B do not hold the same number of elements, so they cannot be compared.")
            tally.add(bits_a, values_a, bits_b, values_b)
    if tally.n != math.prod(shape) or next(runs_b, None) is not None:
        raise PairError(f"{name}: the elements read do not fill its shape {shape}, so it cannot be compared.")
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


class _Tally:
    """Running sums and counts of one tensor."""

    def __init__(self, same_dtype: bool) -> None:
        self.same_dtype = same_dtype
        self.n = self.changed = self.zeros = self.nonfinite = 0
        self.largest = 0.0
        self.sums: list[tuple[float, float, float, float]] = []  # per run: Σ(b-a)², Σa², Σb², Σab
        self.counts = {form: np.zeros(202, np.int64) for form in ("script", "paper")}  # below, 200 inner, above

    def add(self, bits_a: np.ndarray, a: np.ndarray, bits_b: np.ndarray, b: np.ndarray) -> None:
        """One run: the stored bits and the float64 values of both sides."""
        self.n += len(a)
        if self.same_dtype:
            self.changed += int(np.count_nonzero(bits_a != bits_b))
        else:
            self.changed += int(np.count_nonzero((a != b) & ~(np.isnan(a) & np.isnan(b))))
        shift = b - a
        sums = _sums(a, b, shift)
        if not math.isfinite(sums[1] + sums[2]):  # a finite sum of squares has no NaN and no infinity in it
            finite = np.isfinite(a) & np.isfinite(b)
            self.nonfinite += len(a) - int(np.count_nonzero(finite))
            a, b, shift = a[finite], b[finite], shift[finite]
            sums = _sums(a, b, shift)
        if not len(a):
            return
        self.sums.append(sums)
        self.largest = max(self.largest, float(shift.max()), -float(shift.min()))
        zero = a == 0
        if zeros := int(np.count_nonzero(zero)):
            self.zeros += zeros
            a, shift = a[~zero], shift[~zero]
        self.counts["script"] += _bin_counts(shift / (np.abs(a) + _OFFSET))
        self.counts["paper"] += _bin_counts(shift / a)

    def figures(self) -> dict[str, float]:
        """The six figures, by their names in TensorDelta."""
        squares, squares_a, squares_b, products = (math.fsum(run[i] for run in self.sums) for i in range(4))
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
        return figures | {"changed_share": self.changed / self.n if self.n else 0.0}

    def histogram(self, form: str) -> Histogram:
        """The counts of one form."""
        below, *inner, above = self.counts[form].tolist()
        return Histogram(form, tuple(inner), below, above, self.zeros, self.nonfinite)


def _sums(a: np.ndarray, b: np.ndarray, shift: np.ndarray) -> tuple[float, float, float, float]:
    # einsum, not dot: dot hands runs of this size to BLAS threads, which costs more than it gains and may round
    # differently from one machine to the next.
    return tuple(float(np.einsum("i,i->", x, y)) for x, y in ((shift, shift), (a, a), (b, b), (a, b)))


def _cosine(products: float, norm_a: float, norm_b: float, *, unchanged: bool) -> float:
    if not norm_a or not norm_b:
        return math.nan
    return 1.0 if unchanged else max(-1.0, min(1.0, products / norm_a / norm_b))


def _bin_counts(r: np.ndarray) -> np.ndarray:
    """202 counts of r: below -1, in each of the 200 bins, above 1."""
    place = np.floor(r * 100)
    np.maximum(place, -101, out=place)
    np.minimum(place, 100, out=place)
    place = place.astype(np.int64)
    place += 102  # right, give or take one: r * 100 was rounded
    place -= r < _PLACES.take(place)
    place += r >= _PLACES.take(place + 1)
    return np.bincount(place, minlength=203)[1:203]


# Elements


def _runs(blocks: Iterable[torch.Tensor], name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(bits, float64 values) of RUN elements at a time, the last run shorter, wherever the blocks' borders are."""
    held: list[np.ndarray] = []
    missing = RUN
    widen = None
    for block in blocks:
        bits, widen = _bits(block, name)
        while len(bits) >= missing:
            run = np.concatenate([*held, bits[:missing]]) if held else bits[:missing]
            yield run, widen(run)
            held, bits, missing = [], bits[missing:], RUN
        if len(bits):
            held.append(bits)
            missing -= len(bits)
    if held and widen is not None:
        run = np.concatenate(held) if len(held) > 1 else held[0]
        yield run, widen(run)


def _bits(block: torch.Tensor, name: str) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """A block's stored bits as unsigned whole numbers, flat, and the function that makes float64 values of them.

    NumPy does the work: it knows no bfloat16, but on runs of this size torch's threads cost more than they gain.
    """
    import torch

    flat = block.detach().reshape(-1)
    if flat.is_complex():
        raise PairError(f"{name}: complex elements ({flat.dtype}) have no place in these figures.")
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.int16).numpy().view(np.uint16), _widen_bfloat16
    if flat.dtype.is_floating_point and flat.dtype.itemsize == 1:  # float8, in its five kinds
        values = torch.arange(256, dtype=torch.uint8).view(flat.dtype).to(torch.float32).double().numpy()
        return flat.view(torch.uint8).numpy(), values.take
    elements = flat.numpy()
    kind = elements.dtype
    return elements.view(f"u{kind.itemsize}"), lambda bits: bits.view(kind).astype(np.float64)


def _widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
