"""Where in a tensor the change lies: w_B - w_A pooled over blocks to a picture of at most 256 x 256, of all or a part.

Draws nothing. Only the rows of the part are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from threading import Event

import numpy as np

from sfn.errors import PairError
from sfn.matrices import BLOCK, Matrix, Progress

SIDE = 256  # most blocks each way


@dataclass(frozen=True, slots=True)
class Region:
    """Rows row..row_end-1 and columns column..column_end-1 of a matrix; written "0-128,64-96"."""

    row: int
    row_end: int
    column: int
    column_end: int

    def __str__(self) -> str:
        return f"{self.row}-{self.row_end},{self.column}-{self.column_end}"


def region(text: str, shape: tuple[int, int]) -> Region:
    """The region that `text` names, within `shape`; "" is all. Raises PairError for what is none."""
    if not text:
        return Region(0, shape[0], 0, shape[1])
    match = re.fullmatch(r"(\d{1,9})-(\d{1,9}),(\d{1,9})-(\d{1,9})", text)
    ends = [int(number) for number in match.groups()] if match else []
    if not match or not (ends[0] < ends[1] <= shape[0] and ends[2] < ends[3] <= shape[1]):
        raise PairError(
            f"“{text}” is no part of a tensor of {shape[0]} × {shape[1]}; write rows and columns as in "
            f"“0-{shape[0]},0-{shape[1]}”."
        )
    return Region(*ends)


@dataclass(frozen=True, slots=True)
class DeltaMap:
    """A pooled region.

    Attributes:
        part: the region, as text. block: (rows, columns) that one value stands for; those of the last may be fewer.
        mean_abs, mean: (down, across) float32: mean of |w_B - w_A| and of w_B - w_A over each block.
        nonfinite: elements counted as unchanged because they are NaN or infinite on either side.
    """

    part: str
    block: tuple[int, int]
    mean_abs: np.ndarray
    mean: np.ndarray
    nonfinite: int


def delta_map(
    matrix: Matrix, part: str = "", *, progress: Progress | None = None, cancel: Event | None = None
) -> DeltaMap:
    """Pool a region of a matrix. Sums in float64. Raises PairError, Cancelled."""
    at = region(part, matrix.shape)
    height, width = at.row_end - at.row, at.column_end - at.column
    down, across = -(-height // SIDE), -(-width // SIDE)
    step = down * max(1, BLOCK // (down * matrix.shape[1]))
    edges = np.arange(0, width, across)
    sizes = np.outer(_sizes(height, down), _sizes(width, across))
    sums = np.zeros((2, *sizes.shape))  # in one piece: small ones kept from each block would split the free memory
    for start, a, b in matrix.blocks(at.row, at.row_end, step=step, progress=progress, cancel=cancel):
        change = (b - a)[:, at.column : at.column_end]
        starts = np.arange(0, len(change), down)
        first = (start - at.row) // down
        for place, values in enumerate((np.abs(change), change)):
            across_sums = np.add.reduceat(values, edges, axis=1)
            sums[place, first : first + len(starts)] = np.add.reduceat(across_sums, starts, axis=0)
    mean_abs, mean = (sums / sizes).astype(np.float32)
    return DeltaMap(str(at), (down, across), mean_abs, mean, matrix.nonfinite)


def _sizes(length: int, block: int) -> np.ndarray:
    """How many rows or columns each block has."""
    return np.minimum(block, length - np.arange(0, length, block))
