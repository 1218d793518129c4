"""The directions in which a tensor changed: singular values of w_B - w_A, and whether they are those of w_A.

All of them from the eigenvalues of the Gram matrix in float64, where that takes a few seconds or is asked for; else the
first KEPT by a random sketch. Memory is bounded: by blocks, and by the square of the smaller side.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event

import numpy as np

from sfn import eigen
from sfn.errors import Cancelled, PairError
from sfn.matrices import Matrix, Progress

KEPT = 64  # directions whose alignment is told, and singular values of a sketch
ROUNDS = 5  # products with w^T w that span a sketch
PASSES = ROUNDS + 1  # over the tensor, for a sketch
EXACT_PASSES = 2
_SKETCH, _SEED = 96, 0  # columns of the sketch
_TILE = 1024
_TALL = 1 << 23  # elements of one side in float32 at once: 34 MB
_CHUNK = 1 << 14  # rows
_UNASKED_S = 8.0  # on the machine that the cost model was measured on

# The cost model. Seconds for all singular values of a matrix of sides n <= m, of w_B - w_A and of w_A:
# 2 (2 n^2 m + _EIGEN n^3) / rate + _READ n m, with the rate of a product of matrices in operations a second.
_RATE = 1.6e11  # two cores with AVX-512, idle
_EIGEN = 16.0
_READ = 10e-9


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Directions of w_B - w_A, a matrix of `shape`.

    Attributes:
        exact: whether all singular values are there; else the first KEPT, each at most the true one but for rounding
            (block Krylov: Musco and Musco, 2015; seed 0). values: singular values of w_B - w_A, falling.
        floor: below it a singular value cannot be told from rounding; such are 0 in `values`. took_s: seconds that it
            took to compute.
        energy: sum of the squares of all of them, ||w_B - w_A||_F^2. energy_a: that of w_A.
        left, right: overlap of the first k left (right) directions of w_B - w_A with those of w_A, at k - 1:
            ||U_k^T V_k||_F^2 / k, in [0, 1]; by chance k / rows (k / columns).
        nonfinite: elements left out because they are NaN or infinite on either side.
    """

    shape: tuple[int, int]
    exact: bool
    values: np.ndarray
    floor: float
    energy: float
    energy_a: float
    left: np.ndarray
    right: np.ndarray
    nonfinite: int
    took_s: float

    @property
    def shares(self) -> np.ndarray:
        """Share of the energy in each direction of `values`."""
        return np.square(self.values) / self.energy if self.energy else np.zeros_like(self.values)

    @property
    def stable_rank(self) -> float:
        """||w_B - w_A||_F^2 / s_1^2: about how many directions as strong as the first would hold the energy."""
        return self.energy / float(self.values[0]) ** 2 if self.energy else 0.0

    @property
    def effective_rank(self) -> tuple[float, float]:
        """exp(-sum p_i ln p_i), p_i the share of direction i: how many directions it is spread over.

        Both numbers are the same where the spectrum is exact. Of a sketch, the least and the most that its rest can
        make of it: the rest in few directions as strong as the last known, or even over all that are left.
        """
        if not self.energy:
            return 0.0, 0.0
        shares = self.shares[self.shares > 0]
        known = -float((shares * np.log(shares)).sum())
        rest = 1 - float(shares.sum())
        unseen = min(self.shape) - len(self.values)
        if self.exact or rest <= 0 or unseen <= 0:
            return math.exp(known), math.exp(known)
        least = known - rest * math.log(max(float(shares[-1]), rest / unseen))
        return math.exp(least), math.exp(known - rest * math.log(rest / unseen))


def exact_s(shape: tuple[int, int], rate: float | None = None) -> float:
    """About how many seconds all singular values take on this machine if nothing else runs, by the cost model above.

    rate: of another machine, in operations a second.
    """
    n, m = sorted(shape)
    return 2 * (2 * n**2 * m + _EIGEN * n**3) / (rate or _rate()) + _READ * n * m


def exact_unasked(shape: tuple[int, int]) -> bool:
    """Whether all singular values are computed without being asked for: what takes a few seconds. The same on every
    machine."""
    return exact_s(shape, _RATE) <= _UNASKED_S


def exact_bytes(shape: tuple[int, int]) -> int:
    """About how much memory all singular values take: two Gram matrices, and what the eigenvectors of one need.
    Measured at 3,584 and 5,120."""
    return 9 * 8 * min(shape) ** 2


@functools.cache
def _rate() -> float:
    """Operations a second of a product of matrices when nothing else runs; measured once, 0.1 s on two cores."""
    x = np.ones((_TILE, _TILE))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        _product = x.T @ x
        seconds.append(time.perf_counter() - start)
    return 2 * _TILE**3 / min(seconds)


def spectrum(
    matrix: Matrix, *, exact: bool | None = None, progress: Progress | None = None, cancel: Event | None = None
) -> Spectrum:
    """Singular values of a matrix' change and the alignment of its directions with A's.

    exact: all of them, or a sketch; None for what `exact_unasked` says. Raises Cancelled, PairError.
    """
    start = time.perf_counter()
    exact = exact_unasked(matrix.shape) if exact is None else exact
    walk = _Walk(matrix, progress, cancel)
    change, of_a = (_exact if exact else _sketched)(walk)
    return Spectrum(
        shape=matrix.shape,
        exact=exact,
        values=change.values,
        floor=change.floor,
        energy=change.energy,
        energy_a=of_a.energy,
        left=_overlap(change.left, of_a.left),
        right=_overlap(change.right, of_a.right),
        nonfinite=walk.nonfinite,
        took_s=time.perf_counter() - start,
    )


@dataclass(slots=True)
class _Directions:
    """values: singular values. left, right: (rows, k) and (columns, k) the first directions, those above `floor`.
    energy: squares summed."""

    values: np.ndarray
    floor: float
    left: np.ndarray
    right: np.ndarray
    energy: float


def _overlap(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """||U_k^T V_k||_F^2 / k for k = 1, 2, ... as far as both have directions."""
    k = min(mine.shape[1], other.shape[1])
    squares = np.square(mine[:, :k].T @ other[:, :k])
    return np.array([squares[:n, :n].sum() / n for n in range(1, k + 1)], np.float64)


class _Walk:
    """Passes over a matrix, and how far the work has come, in thousandths of what it costs in all."""

    def __init__(self, matrix: Matrix, progress: Progress | None, cancel: Event | None) -> None:
        self.matrix, self.progress, self.cancel = matrix, progress, cancel
        self.wide = matrix.shape[1] > matrix.shape[0]
        self.short = min(matrix.shape)
        self.nonfinite = 0
        self._done = 0.0

    def tell(self, share: float) -> None:
        """`share` of all is done. Raises Cancelled."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("Computing a spectrum was cancelled.")
        if self.progress is not None:
            self.progress(round(1000 * share), 1000, "spectrum")

    def along(self, first: float, last: float) -> Progress:
        """A pass that makes up the work from one share to another."""
        return lambda done, total, _name: self.tell(first + (last - first) * done / max(1, total))

    def panels(self, first: float, last: float) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(place on the long side, w_B - w_A, w_A), the latter (some of the long side, all of the short) float64."""
        walk = self.matrix.columns if self.wide else self.matrix.blocks
        for start, a, b in walk(progress=self.along(first, last), cancel=self.cancel):
            yield start, b - a, a
        self.nonfinite = self.matrix.nonfinite

    def rows(self, first: float, last: float) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first row, w_B - w_A, w_A) float32, in tall blocks: in thin ones the cores would wait for each other."""
        options = {"progress": self.along(first, last), "cancel": self.cancel}
        step = max(1, _TALL // self.matrix.shape[1])
        for start, a, b in self.matrix.blocks(step=step, dtype="float32", **options):
            yield start, b - a, a
        self.nonfinite = self.matrix.nonfinite


# All of them


def _exact(walk: _Walk) -> tuple[_Directions, _Directions]:
    """From the eigenvalues s^2 of w^T w (or w w^T, whichever is smaller), and w V / s by a second pass."""
    n, m = sorted(walk.matrix.shape)
    product, roots = 2.0 * n * m, _EIGEN * n**2  # what they cost, by the cost model
    first, last = product / (1.1 * product + roots), (product + roots) / (1.1 * product + roots)
    grams = [np.zeros((n, n)) for _ in range(2)]
    for _start, *sides in walk.panels(0.0, first):
        for gram, panel in zip(grams, sides, strict=True):
            _add_product(gram, panel)
    middle = (first + last) / 2
    found = [_roots(grams.pop(0), walk, *span) for span in ((first, middle), (middle, last))]
    for one in found:
        one.left = np.empty((m, one.right.shape[1]))
    for start, *sides in walk.panels(last, 1.0):
        for one, panel in zip(found, sides, strict=True):
            one.left[start : start + len(panel)] = panel @ one.right
    for one in found:
        one.left /= one.values[: one.right.shape[1]]
        if walk.wide:
            one.left, one.right = one.right, one.left
    return found[0], found[1]


def _add_product(gram: np.ndarray, panel: np.ndarray) -> None:
    """Add panel^T panel to the upper triangle of `gram`, tile by tile, so that no second matrix as large is needed."""
    for i in range(0, len(gram), _TILE):
        for j in range(i, len(gram), _TILE):
            gram[i : i + _TILE, j : j + _TILE] += panel[:, i : i + _TILE].T @ panel[:, j : j + _TILE]


def _roots(gram: np.ndarray, walk: _Walk, first: float, last: float) -> _Directions:
    """Singular values and directions on the short side, in the part of the work from share `first` to `last`."""
    walk.tell(first)
    start, expected = time.perf_counter(), 2 * _EIGEN * len(gram) ** 3 / _rate()

    def tick() -> None:
        passed = time.perf_counter() - start
        walk.tell(first + (last - first) * passed / (passed + expected))  # nears the end, never beyond it

    try:
        squares, vectors = eigen.leading(gram, KEPT, tick=tick)
    except eigen.Ended:
        needed = exact_bytes(gram.shape) / 1e9
        raise PairError(
            f"Computing all singular values ended without a result: there was probably too little memory. It needs "
            f"about {needed:.1f} GB; free some and try again, or stay with the sketch."
        ) from None
    walk.tell(last)
    values = np.sqrt(np.maximum(squares, 0.0))
    floor = float(values[0]) * math.sqrt(len(gram) * np.finfo(np.float64).eps)
    values[values <= floor] = 0.0
    there = min(KEPT, int((values > 0).sum()))
    return _Directions(values, floor, np.empty(0), vectors[:, :there], float(np.trace(gram)))


# The first of them


def _sketched(walk: _Walk) -> tuple[_Directions, _Directions]:
    """The first directions within the space that products with w^T w make of random columns; float32 over blocks."""
    rows, columns = walk.matrix.shape
    spaces = [_Krylov(columns) for _ in range(2)]
    energy = [0.0, 0.0]
    for walked in range(ROUNDS):
        for _start, *sides in walk.rows(walked / PASSES, (walked + 1) / PASSES):
            for place, block in enumerate(sides):
                spaces[place].add(block)
                if walked == 0:
                    energy[place] += float(np.multiply(block, block, dtype=np.float64).sum())
        for space in spaces:
            space.turn()
    bases = [space.best() for space in spaces]
    del spaces
    ranges = [np.empty((rows, basis.shape[1]), np.float32) for basis in bases]
    for start, *sides in walk.rows(ROUNDS / PASSES, 1.0):
        for place, block in enumerate(sides):
            ranges[place][start : start + len(block)] = block @ bases[place]
    first, second = (_from_range(*of_side) for of_side in zip(ranges, bases, energy, strict=True))
    return first, second


class _Krylov:
    """The space of V, w^T w V, (w^T w)^2 V, ..., V random; each of the parts orthonormal, also to those before."""

    def __init__(self, columns: int) -> None:
        width = max(1, min(_SKETCH, columns // ROUNDS))
        drawn = np.random.default_rng(_SEED).standard_normal((columns, width))
        self.parts = [np.linalg.qr(drawn)[0].astype(np.float32)]
        self.products: list[np.ndarray] = []  # w^T w of each part
        self._sum = np.zeros(drawn.shape)

    def add(self, block: np.ndarray) -> None:
        """Some rows of w."""
        self._sum += block.T @ (block @ self.parts[-1])

    def turn(self) -> None:
        """All rows of w were added: begin the next part."""
        self.products.append(self._sum.astype(np.float32))
        if len(self.products) == ROUNDS:
            return
        new = self._sum
        for _ in range(2):  # twice is enough (Giraud and others, 2005)
            for part in self.parts:
                new = new - part @ (part.T @ new)
            new = np.linalg.qr(new)[0]
        self.parts.append(new.astype(np.float32))
        self._sum = np.zeros(new.shape)

    def best(self) -> np.ndarray:
        """(columns, up to KEPT) float32 orthonormal: the first directions of w within the space."""
        inner = np.block([[part.T @ product.astype(np.float64) for product in self.products] for part in self.parts])
        _values, turned = np.linalg.eigh((inner + inner.T) / 2)
        first = np.split(turned[:, ::-1][:, :KEPT], len(self.parts))
        return sum(part @ weights.astype(np.float32) for part, weights in zip(self.parts, first, strict=True))


def _from_range(range_: np.ndarray, basis: np.ndarray, energy: float) -> _Directions:
    """Singular values and directions of w from w V, (rows, k) float32, by its Gram matrix."""
    inner = np.zeros((basis.shape[1],) * 2)
    for start in range(0, len(range_), _CHUNK):
        chunk = range_[start : start + _CHUNK].astype(np.float64)
        inner += chunk.T @ chunk
    squares, turned = np.linalg.eigh(inner)
    values, turned = np.sqrt(np.maximum(squares[::-1], 0.0)), turned[:, ::-1]
    floor = 1e-6 * float(values[0])
    values[values <= floor] = 0.0
    there = int((values > 0).sum())
    of_range = (turned[:, :there] / values[:there]).astype(np.float32)
    return _Directions(values, floor, range_ @ of_range, basis @ turned[:, :there].astype(np.float32), energy)


def random_shares(shape: tuple[int, int], most: int) -> np.ndarray:
    """(most,) share of the energy in each of the first directions of a matrix of this shape of independent normal
    elements: the Marchenko-Pastur distribution, which large matrices follow, cut into as many equal parts as there are
    directions. Its first differ from a drawn matrix' by a few per cent where the smaller side is under a hundred.
    """
    short, long = sorted(shape)
    if short <= 0:
        return np.zeros(0)
    ratio = short / long
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    angle = np.linspace(0, math.pi / 2, 200_001)
    x = low + (high - low) * np.sin(angle) ** 2  # eigenvalues; dense near both ends, where the density bends
    height = (high - low) ** 2 * np.sin(angle) ** 2 * np.cos(angle) ** 2 / (math.pi * ratio * np.maximum(x, 1e-300))
    height[x == 0] = 0
    if low < 1e-12:  # square: the density grows without bound at 0, its product with the step does not
        height[0] = height[1]
    middle = (height[1:] + height[:-1]) / 2 * np.diff(angle)
    mass = np.concatenate([[0], np.cumsum(middle)])
    energy = np.concatenate([[0], np.cumsum(middle * (x[1:] + x[:-1]) / 2)])
    mass, energy = mass / mass[-1], energy / energy[-1]
    cuts = 1 - np.arange(min(most, short) + 1) / short
    return -np.diff(np.interp(cuts, mass, energy))
