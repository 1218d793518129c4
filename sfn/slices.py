"""How far each row and each column of a tensor moved, and each piece that they make up (`sfn.pieces`).

Computed beside the scan, one tensor at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from sfn.matrices import Matrix, Progress

if TYPE_CHECKING:
    from sfn.pieces import Pieces

_WIDEST = 1 << 20  # columns beyond this (experts as rows) are not told apart


@dataclass(frozen=True, slots=True)
class Slices:
    """Lengths of every row and column, of w_B - w_A and of w_A; squares summed in float64, kept in float32.

    Attributes:
        row_shift, row_norm: (rows,). column_shift, column_norm: (columns,), or empty where there are too many.
        nonfinite: elements left out because they are NaN or infinite on either side.
    """

    row_shift: np.ndarray
    row_norm: np.ndarray
    column_shift: np.ndarray
    column_norm: np.ndarray
    nonfinite: int


def slices(matrix: Matrix, *, progress: Progress | None = None, cancel: Event | None = None) -> Slices:
    """One pass over a matrix of both sides. Raises Cancelled."""
    rows, columns = matrix.shape
    of_rows = np.zeros((2, rows))
    of_columns = np.zeros((2, columns if columns <= _WIDEST else 0))
    nonfinite = 0
    for start, a, b in matrix.blocks(progress=progress, cancel=cancel):
        for place, values in enumerate((b - a, a)):
            of_rows[place, start : start + len(a)] = np.einsum("ij,ij->i", values, values)
            if of_columns.shape[1]:
                of_columns[place] += np.einsum("ij,ij->j", values, values)
        nonfinite = matrix.nonfinite
    rooted = [np.sqrt(sums).astype(np.float32) for sums in (*of_rows, *of_columns)]
    return Slices(*rooted, nonfinite)


def by_piece(found: Slices, cut: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """(pieces,) lengths of w_B - w_A and of w_A, each of all elements of one piece."""
    shift, norm = (found.row_shift, found.row_norm) if cut.axis == "rows" else (found.column_shift, found.column_norm)
    places = np.array(cut.starts)[:, None] + cut.step * np.arange(cut.width)  # (pieces, width)
    squares = [np.square(side.astype(np.float64))[places].sum(axis=1) for side in (shift, norm)]
    return np.sqrt(squares[0]), np.sqrt(squares[1])


def relative(shift: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """shift / norm; 0 where nothing moved, NaN where what moved was 0 in A."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(norm > 0, shift / np.where(norm > 0, norm, 1), np.nan)
    return np.where(shift == 0, 0.0, found)
