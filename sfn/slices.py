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


@dataclass(frozen=True, slots=True)
class Slices:
    """Lengths of every row and column, of w_B - w_A and of w_A; squares summed in float64, kept in float32.

    Attributes:
        row_shift, row_norm: (rows,). column_shift, column_norm: (columns,), empty where rows are experts.
        nonfinite: elements left out because they are NaN or infinite on either side.
    """

    row_shift: np.ndarray
    row_norm: np.ndarray
    column_shift: np.ndarray
    column_norm: np.ndarray
    nonfinite: int


def slices(matrix: Matrix, *, progress: Progress | None = None, cancel: Event | None = None) -> Slices:
    """One pass over a matrix of both sides; of a tensor of all experts, each is one row and columns are not told.
    Raises Cancelled."""
    if matrix.experts and not matrix.is_expert:
        return _experts(matrix, progress, cancel)
    rows, columns = matrix.shape
    of_rows, of_columns = np.zeros((2, rows)), np.zeros((2, columns))
    for start, a, b in matrix.blocks(progress=progress, cancel=cancel):
        for place, values in enumerate((b - a, a)):
            of_rows[place, start : start + len(a)] = np.einsum("ij,ij->i", values, values)
            of_columns[place] += np.einsum("ij,ij->j", values, values)
    return _rooted(of_rows, of_columns, matrix.nonfinite)


def _experts(matrix: Matrix, progress: Progress | None, cancel: Event | None) -> Slices:
    """Expert by expert, each in blocks: a single one may have a hundred million elements."""
    sums, nonfinite = np.zeros((2, matrix.experts)), 0
    for number in range(matrix.experts):
        one = matrix.expert(number)

        def along(done: int, total: int, name: str, number: int = number) -> None:
            if progress is not None:
                progress(number * total + done, matrix.experts * total, name)

        for _start, a, b in one.blocks(progress=along, cancel=cancel):
            for place, values in enumerate((b - a, a)):
                sums[place, number] += np.einsum("ij,ij->", values, values)
        nonfinite += one.nonfinite
    return _rooted(sums, np.zeros((2, 0)), nonfinite)


def _rooted(of_rows: np.ndarray, of_columns: np.ndarray, nonfinite: int) -> Slices:
    return Slices(*(np.sqrt(sums).astype(np.float32) for sums in (*of_rows, *of_columns)), nonfinite)


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
