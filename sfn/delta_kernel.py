"""The arithmetic of delta, compiled: one pass over a stretch of both tensors gives every sum, count and histogram.

Knows numbers alone, no tensor names and no files. Compiled by numba on first use and kept beside this file; nothing
here holds the interpreter's lock, so that `sfn.delta` can call it from several threads.

How it stays exact. Elements are widened to float32, which loses nothing of bfloat16, float16 and float8, and sums are
taken in float64 over runs of RUN elements. The relative change is divided in float32 first: that settles the bin of
nearly every element, in both forms of r at once. Those that come near an edge of a bin are settled apart: by a product
where r is a whole number of hundredths (common, as bfloat16 numbers are short), else by dividing in float64.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import overload

RUN = 1 << 13  # elements of one float64 sum; a run's buffers stay in the processor's nearest caches
EDGES: np.ndarray = np.arange(-100, 101) / 100
"""The 201 edges of a histogram's inner bins, float64: bin i holds EDGES[i] <= r < EDGES[i + 1], the last one r = 1 too.
numpy.histogram(r, EDGES) counts the same."""

OFFSET = 1e-8  # of the paper's released scripts
PLACES = 202  # of a histogram: below -1, 200 bins, above 1
CHANGED, ZEROS, NONFINITE = 0, 1, 2  # columns of `counts`
SCRIPT, PAPER = 0, 1  # rows of `histograms`

# What `_sort` says of an element: 0 to 203, hundredths below r + 102 (2 to 201 are the bins); _EXACT + k + 102 where r
# is k hundredths; _NEAR where neither is certain. _NEGATIVE more where a < 0. Or _SAME, b = a; or _ZERO, a = 0.
_EXACT, _NEAR, _SAME, _ZERO, _NEGATIVE, _SORTS = 204, 409, 410, 411, 512, 1024

_FAST = {"reassoc", "contract", "nsz"}  # sums may be taken in lanes; NaN and infinity keep their meaning


def _word(bits):
    """The bits of the float32 that begins with `bits`, an unsigned whole number."""
    raise NotImplementedError("compiled alone")


@overload(_word, inline="always")
def _word_of(bits):
    left = 32 - bits.bitwidth  # known when this is compiled: a shift by a variable is done in twice the width
    return lambda bits: np.uint32(np.uint32(bits) << left)


@njit(nogil=True, cache=True)
def _float(bits):
    """That float32."""
    return np.uint32(_word(bits)).view(np.float32)


@njit(nogil=True, cache=True, fastmath=_FAST)
def _widen(bits, table, out):
    """Stored bits as those of a float32: what the table says of each, or, where it is empty, they as its first."""
    if len(table):
        words = table.view(np.uint32)
        for i in range(len(bits)):
            out[i] = words[bits[i]]
    else:
        for i in range(len(bits)):
            out[i] = _word(bits[i])


@njit(nogil=True, cache=True, fastmath=_FAST)
def _sums(a, b, n):
    """Sum of (b - a)^2, a^2, b^2 and a b, and the largest |b - a|, all in float64; how many have other bits."""
    shifts = squares_a = squares_b = products = 0.0
    largest = np.int64(0)  # the bits of a number: those of numbers >= 0 are ordered as the numbers are
    changed = 0
    for i in range(n):
        changed += a[i] != b[i]
        x = np.float64(_float(a[i]))
        y = np.float64(_float(b[i]))
        shift = y - x
        shifts += shift * shift
        squares_a += x * x
        squares_b += y * y
        products += x * y
        largest = max(largest, np.float64(abs(shift)).view(np.int64))
    return shifts, squares_a, squares_b, products, np.int64(largest).view(np.float64), changed


@njit(nogil=True, cache=True)
def _changed(x, y):
    """Places where the stored bits differ."""
    count = 0
    for i in range(len(x)):
        count += x[i] != y[i]
    return count


@njit(nogil=True, cache=True)
def _moved(a, b, n):
    """Places where the values differ, NaN being equal to NaN: for sides of different dtype."""
    count = 0
    for i in range(n):
        x, y = _float(a[i]), _float(b[i])
        count += (x != y) & ((x == x) | (y == y))
    return count


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _sort(a, b, n, short, out):
    """What each element is, see _NEGATIVE and the others; `short`: none has more than the 8 bits of a bfloat16."""
    for i in range(n):
        x = _float(a[i])
        shift = _float(b[i]) - x
        inverse = np.float32(1) / x
        size = abs(inverse)
        hundredths = (shift * inverse) * np.float32(100)  # of r in the paper's form
        hundredths = min(max(hundredths, np.float32(-101.5)), np.float32(101.5))
        below = np.floor(hundredths)
        over = hundredths - below
        # How far float32 may be off, and by how much the scripts' form is nearer to 0: |r| 1e-8 / |a|. Where |a| is
        # hardly more than 1e-8, the two forms may be far apart.
        doubt = np.float32(1e-4) + np.float32(1.1e-6) * size
        clear = abs(over - np.float32(0.5)) < np.float32(0.5) - doubt
        # Both products are exact in float32 where elements are short, but for r within a rounding of -1: the same bin.
        whole = below + (np.float32(1) if over > np.float32(0.5) else np.float32(0))
        exact = short & (shift * np.float32(100) == whole * x)
        exact &= (size < np.float32(1e5)) & (size > np.float32(1e-4))
        sort = below + np.float32(102) if clear else (whole + np.float32(_EXACT + 102) if exact else np.float32(_NEAR))
        sort += np.float32(_NEGATIVE) if x < 0 else np.float32(0)
        sort = np.float32(_SAME) if shift == 0 else sort
        sort = np.float32(_ZERO) if x == 0 else sort
        out[i] = np.uint16(np.int32(sort))


@njit(nogil=True, cache=True)
def _tally(sorts, n, tables):
    """Count what `_sort` said, in four tables by turns, since a count waits for the one before it in the same place."""
    first, second, third, fourth = tables[0], tables[1], tables[2], tables[3]
    whole = n - n % 4
    for i in range(0, whole, 4):
        first[sorts[i]] += 1
        second[sorts[i + 1]] += 1
        third[sorts[i + 2]] += 1
        fourth[sorts[i + 3]] += 1
    for i in range(whole, n):
        first[sorts[i]] += 1


@njit(nogil=True, cache=True)
def _place(r, edges):
    """Where r belongs, by its definition: 0 below -1, 1 to 200 the bins, 201 above 1."""
    if r < -1:
        return 0
    if r > 1:
        return PLACES - 1
    bin = min(max(int(np.floor(r * 100)) + 100, 0), 199)
    if r < edges[bin]:  # r * 100 was rounded
        bin -= 1
    elif bin < 199 and r >= edges[bin + 1]:
        bin += 1
    return bin + 1


@njit(nogil=True, cache=True, error_model="numpy")
def _settle(x, y, edges, histograms):
    """Put one element with a = x and b = y, both float64 and finite, x not 0, into both histograms."""
    shift = y - x
    histograms[SCRIPT, _place(shift / (abs(x) + OFFSET), edges)] += 1
    histograms[PAPER, _place(shift / x, edges)] += 1


@njit(nogil=True, cache=True, error_model="numpy")
def _settle_near(a, b, n, sorts, edges, histograms):
    """Settle the elements that `_sort` left open."""
    for i in range(n):
        if sorts[i] % _NEGATIVE == _NEAR:
            _settle(np.float64(_float(a[i])), np.float64(_float(b[i])), edges, histograms)


@njit(nogil=True, cache=True, error_model="numpy")
def _careful(a, b, n, edges, sums, counts, histograms):
    """A run with NaN, infinity, or float64 elements: one element at a time, in float64. Returns the largest |b - a|."""
    largest = 0.0
    for i in range(n):
        x, y = np.float64(a[i]), np.float64(b[i])
        if not (np.isfinite(x) and np.isfinite(y)):
            counts[NONFINITE] += 1
            continue
        shift = y - x
        sums[0] += shift * shift
        sums[1] += x * x
        sums[2] += y * y
        sums[3] += x * y
        largest = max(largest, abs(shift))
        if x == 0:
            counts[ZEROS] += 1
        else:
            _settle(x, y, edges, histograms)
    return largest


@njit(nogil=True, cache=True)
def _spread(table, counts, histograms):
    """What `_sort` said of many elements, as counts in both histograms.

    With r the paper's, the scripts' is r where a > 0 and -r where a < 0, and nearer to 0 by a hair: that matters where
    r lies on an edge.
    """
    counts[ZEROS] += table[_ZERO]
    for form in range(2):
        histograms[form, 101] += table[_SAME]  # r = 0 lies in the bin [0, 0.01)
    for below in range(_EXACT):
        place = min(max(below - 1, 0), PLACES - 1)
        histograms[PAPER, place] += table[below] + table[_NEGATIVE + below]
        histograms[SCRIPT, place] += table[below]
        histograms[SCRIPT, PLACES - 1 - place] += table[_NEGATIVE + below]
    for k in range(-102, 103):
        right, left = table[_EXACT + 102 + k], table[_NEGATIVE + _EXACT + 102 + k]
        histograms[PAPER, _place_of(k)] += right + left
        histograms[SCRIPT, _nearer_to_zero(k)] += right
        histograms[SCRIPT, _nearer_to_zero(-k)] += left


@njit(nogil=True, cache=True)
def _place_of(k):
    """Place of k hundredths."""
    return min(max(k + 101, 1), 200) if abs(k) <= 100 else (0 if k < 0 else PLACES - 1)


@njit(nogil=True, cache=True)
def _nearer_to_zero(k):
    """Place of what is k hundredths but for a hair, on the side of 0."""
    return k + 100 if 0 < k <= 100 else _place_of(k)


@njit(nogil=True, cache=True)
def _near(tables):
    """How many elements `_sort` has left open so far."""
    return tables[:, _NEAR].sum() + tables[:, _NEGATIVE + _NEAR].sum()


@njit(nogil=True, cache=True, error_model="numpy")
def _run(a, b, n, same, short, edges, sums, counts, histograms, sorts, tables):
    """One run; elements come as first bits of float32s. Returns the largest |b - a|, and what it added to CHANGED."""
    shifts, squares_a, squares_b, products, largest, changed = _sums(a, b, n)
    if not same:
        changed = _moved(a, b, n)
    counts[CHANGED] += changed
    if not np.isfinite(squares_a + squares_b):  # an element is NaN or infinite
        x, y = np.empty(n, np.float64), np.empty(n, np.float64)
        for i in range(n):
            x[i], y[i] = _float(a[i]), _float(b[i])
        return _careful(x, y, n, edges, sums, counts, histograms), changed
    sums[0], sums[1], sums[2], sums[3] = shifts, squares_a, squares_b, products
    near = _near(tables)
    _sort(a, b, n, short, sorts)
    _tally(sorts, n, tables)
    if _near(tables) > near:
        _settle_near(a, b, n, sorts, edges, histograms)
    return largest, changed


@njit(nogil=True, cache=True, error_model="numpy")
def stretch(
    bits_a: np.ndarray,
    bits_b: np.ndarray,
    table_a: np.ndarray,
    table_b: np.ndarray,
    same: bool,
    short: bool,
    edges: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
    histograms: np.ndarray,
) -> float:
    """Measure a stretch of both tensors; it must begin at a multiple of RUN elements. Returns the largest |b - a|.

    Args:
        bits_a, bits_b: (n,) stored bits as uint8, uint16 or uint32. table_a, table_b: float32 value of each of them;
            empty for bfloat16 and float32, whose bits are a float32's first.
        same: whether both sides have one dtype, so that bits decide what has changed. short: whether both are bfloat16.
        edges: EDGES.
        sums: (runs, 4) float64, set: sums of (b - a)^2, a^2, b^2, a b of each run.
        counts: (3,) int64, added to: CHANGED, ZEROS, NONFINITE. histograms: (2, PLACES) int64, added to: SCRIPT, PAPER.
    """
    a, b = np.empty(RUN, np.uint32), np.empty(RUN, np.uint32)
    sorts = np.empty(RUN, np.uint16)
    tables = np.zeros((4, _SORTS), np.int32)
    largest = 0.0
    for run in range(len(sums)):
        piece_a, piece_b = bits_a[run * RUN : (run + 1) * RUN], bits_b[run * RUN : (run + 1) * RUN]
        if len(table_a) or len(table_b):
            _widen(piece_a, table_a, a)
            _widen(piece_b, table_b, b)
            changed = _changed(piece_a, piece_b) if same else -1
            found = _run(a, b, len(piece_a), same, short, edges, sums[run], counts, histograms, sorts, tables)
            counts[CHANGED] += changed - found[1] if same else 0  # a NaN's bits may have been lost on the way
        else:
            found = _run(
                piece_a, piece_b, len(piece_a), same, short, edges, sums[run], counts, histograms, sorts, tables
            )
        largest = max(largest, found[0])
    for i in range(4):
        _spread(tables[i], counts, histograms)
    return largest


@njit(nogil=True, cache=True, error_model="numpy")
def stretch_of_values(
    a: np.ndarray, b: np.ndarray, edges: np.ndarray, sums: np.ndarray, counts: np.ndarray, histograms: np.ndarray
) -> float:
    """The same for float64 values (n,), where bits are compared elsewhere: slow, and for what float32 cannot hold."""
    largest = 0.0
    for run in range(len(sums)):
        piece_a, piece_b = a[run * RUN : (run + 1) * RUN], b[run * RUN : (run + 1) * RUN]
        largest = max(largest, _careful(piece_a, piece_b, len(piece_a), edges, sums[run], counts, histograms))
    return largest


def make_ready() -> None:
    """Compile for bfloat16, or load what was compiled before: seconds the first time on a machine, then tenths."""
    bits, table = np.zeros(1, np.uint16), np.empty(0, np.float32)
    results = np.zeros((1, 4)), np.zeros(3, np.int64), np.zeros((2, PLACES), np.int64)
    stretch(bits, bits, table, table, True, True, EDGES, *results)
