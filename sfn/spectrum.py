"""The directions in which a tensor changed: singular values of w_B - w_A, and whether they are those of w_A.

Exact (to float64 rounding) where the smaller side is at most EXACT_SIDE, by orthogonal triangles over blocks; else the
first KEPT singular values by a seeded random sketch with power iterations. Memory is bounded by blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from threading import Event

import numpy as np

from sfn.matrices import Matrix, Progress

EXACT_SIDE = 1024
KEPT = 64  # directions whose alignment is told, and singular values of a sketch
ROUNDS = 3  # walks back and forth of a sketch
PASSES = 2 * ROUNDS
_SKETCH, _SEED = 96, 0  # columns of the sketch
_WIDE_BLOCK, _HELD_EXACTLY = 1 << 21, 1 << 23  # elements
_NOTHING = 1e-12  # singular values below this share of the first are rounding


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Directions of w_B - w_A, a matrix of `shape`.

    Attributes:
        exact: whether all singular values are there; else the first KEPT, each at most the true one but for rounding
            (Halko, Martinsson and Tropp, 2011, algorithm 4.4; seed 0). values: singular values of w_B - w_A, falling.
        energy: sum of the squares of all of them, ||w_B - w_A||_F^2. energy_a: that of w_A.
        left, right: overlap of the first k left (right) directions of w_B - w_A with those of w_A, at k - 1:
            ||U_k^T V_k||_F^2 / k, in [0, 1]; by chance k / rows (k / columns).
        nonfinite: elements left out because they are NaN or infinite on either side.
    """

    shape: tuple[int, int]
    exact: bool
    values: np.ndarray
    energy: float
    energy_a: float
    left: np.ndarray
    right: np.ndarray
    nonfinite: int

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


def spectrum(matrix: Matrix, *, progress: Progress | None = None, cancel: Event | None = None) -> Spectrum:
    """Singular values of a matrix' change and the alignment of its directions with A's. Raises Cancelled."""
    walk = _Walk(matrix, progress, cancel)
    exact = min(matrix.shape) <= EXACT_SIDE
    change, of_a = (_exact if exact else _sketched)(walk)
    return Spectrum(
        shape=matrix.shape,
        exact=exact,
        values=change.values,
        energy=change.energy,
        energy_a=of_a.energy,
        left=_overlap(change.left, of_a.left),
        right=_overlap(change.right, of_a.right),
        nonfinite=walk.nonfinite,
    )


@dataclass(slots=True)
class _Directions:
    """values: singular values. left, right: (rows, k) and (columns, k) the first directions. energy: squares summed."""

    values: np.ndarray
    left: np.ndarray
    right: np.ndarray
    energy: float


def _overlap(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """||U_k^T V_k||_F^2 / k for k = 1, 2, ... as far as both have directions."""
    k = min(mine.shape[1], other.shape[1])
    squares = np.square(mine[:, :k].T @ other[:, :k])
    return np.array([squares[:n, :n].sum() / n for n in range(1, k + 1)], np.float64)


class _Walk:
    """Passes over a matrix whose long side comes in blocks: rows of it, or of its transpose where it is wide."""

    def __init__(self, matrix: Matrix, progress: Progress | None, cancel: Event | None) -> None:
        self.matrix, self.progress, self.cancel = matrix, progress, cancel
        self.short = min(matrix.shape)
        self.wide = matrix.shape[1] > matrix.shape[0] and self.short <= EXACT_SIDE
        self.passes, self.done, self.nonfinite = 2, 0, 0
        self._held: list[np.ndarray] | None = None

    def blocks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first row, w_B - w_A, w_A) by blocks of the long side."""
        options = {"passes": (self.done, self.passes), "progress": self.progress, "cancel": self.cancel}
        if not self.wide:
            for start, a, b in self.matrix.blocks(**options):
                yield start, b - a, a
        else:
            yield from self._columns(options)
        self.done += 1
        self.nonfinite = self.matrix.nonfinite

    def _columns(self, options: dict[str, object]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The same of the transpose. A wide matrix has few rows and is held, read once; a large one in float32."""
        rows, columns = self.matrix.shape
        if self._held is None:
            dtype = np.float64 if rows * columns <= _HELD_EXACTLY else np.float32
            self._held = [np.empty((rows, columns), dtype) for _ in range(2)]
            for start, a, b in self.matrix.blocks(**options):
                self._held[0][start : start + len(a)], self._held[1][start : start + len(a)] = b - a, a
        step = max(1, _WIDE_BLOCK // rows)
        for start in range(0, columns, step):
            yield start, *(side[:, start : start + step].T.astype(np.float64) for side in self._held)


def _exact(walk: _Walk) -> tuple[_Directions, _Directions]:
    """By the triangle R of a QR decomposition, taken block by block: w = Q R, and R has w's singular values."""
    triangles = [np.zeros((0, walk.short)) for _ in range(2)]
    energy = [0.0, 0.0]
    pending: list[list[np.ndarray]] = [[], []]
    held = 0
    for _start, *sides in walk.blocks():
        for place, block in enumerate(sides):
            energy[place] += float(np.square(block).sum())
            pending[place].append(block)
        held += len(sides[0])
        if held >= 2 * walk.short:  # a decomposition of few rows at a time would mostly go over R again
            triangles = [_triangle(r, blocks) for r, blocks in zip(triangles, pending, strict=True)]
            pending, held = [[], []], 0
    triangles = [_triangle(r, blocks) for r, blocks in zip(triangles, pending, strict=True)]
    found = []
    for place, triangle in enumerate(triangles):
        _u, values, vt = np.linalg.svd(triangle, full_matrices=False)
        there = int((values > _NOTHING * max(values[0], 1e-300)).sum()) if len(values) else 0
        found.append(_Directions(values, np.empty(0), vt[: min(KEPT, there)].T, energy[place]))
    return _other_side(walk, found)


def _triangle(r: np.ndarray, blocks: list[np.ndarray]) -> np.ndarray:
    return np.linalg.qr(np.concatenate([r, *blocks]), mode="r") if blocks else r


def _other_side(walk: _Walk, found: list[_Directions]) -> tuple[_Directions, _Directions]:
    """Directions on the long side, w V / s, by a second pass; left and right put where they belong."""
    parts: list[list[np.ndarray]] = [[], []]
    for _start, *sides in walk.blocks():
        for place, block in enumerate(sides):
            parts[place].append(block @ found[place].right)
    for place, one in enumerate(found):
        one.left = np.concatenate(parts[place]) / one.values[: one.right.shape[1]]
        if walk.wide:
            one.left, one.right = one.right, one.left
    return found[0], found[1]


def _sketched(walk: _Walk) -> tuple[_Directions, _Directions]:
    """By a random sketch of the columns, made sharper by walking back and forth; float32 products over blocks."""
    rows, columns = walk.matrix.shape
    random = np.random.default_rng(_SEED)
    basis = [random.standard_normal((columns, _SKETCH), np.float32) for _ in range(2)]
    walk.passes = PASSES
    energy = [0.0, 0.0]
    for walked in range(ROUNDS):
        ranges = [np.empty((rows, _SKETCH), np.float32) for _ in range(2)]
        for start, *sides in walk.blocks():
            for place, block in enumerate(sides):
                ranges[place][start : start + len(block)] = block.astype(np.float32) @ basis[place]
                if walked == 0:
                    energy[place] += float(np.square(block).sum())
        for place in range(2):
            ranges[place] = np.linalg.qr(ranges[place])[0]
        back = [np.zeros((columns, _SKETCH)) for _ in range(2)]
        for start, *sides in walk.blocks():
            for place, block in enumerate(sides):
                back[place] += block.astype(np.float32).T @ ranges[place][start : start + len(block)]
        basis = [np.linalg.qr(side)[0].astype(np.float32) for side in back]
    return tuple(map(partial(_from_sketch), ranges, back, energy))  # type: ignore[return-value]


def _from_sketch(range_: np.ndarray, back: np.ndarray, energy: float) -> _Directions:
    """w is about Q (w^T Q)^T: the small factor's directions, turned back by Q."""
    u, values, vt = np.linalg.svd(back, full_matrices=False)
    there = min(KEPT, int((values > 1e-6 * max(values[0], 1e-300)).sum()))
    return _Directions(values[:KEPT], range_ @ vt[:there].T.astype(np.float32), u[:, :there], energy)


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
