"""How far each row and each column of a tensor moved, and what they make up: token rows, attention heads, experts.

Computed beside the scan, one tensor at a time; which rows are a head's is read from the config and the shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Literal

import numpy as np

from sfn.checkpoints import text_config
from sfn.matrices import Matrix, Progress

if TYPE_CHECKING:
    from sfn.anatomy import Part
    from sfn.pairs import Pair

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


@dataclass(frozen=True, slots=True)
class Heads:
    """How a tensor falls into attention heads.

    Attributes:
        axis: whether a head is some rows or some columns. count, width: heads, and rows or columns of each.
        shared_by: query heads that use one of these; 1 for query heads themselves.
    """

    axis: Literal["rows", "columns"]
    count: int
    width: int
    shared_by: int = 1

    def label(self, number: int) -> str:
        """ "head 3", or "KV head 1 (heads 4 to 7)" where several query heads share it."""
        if self.shared_by == 1:
            return f"head {number}"
        first = number * self.shared_by
        return f"KV head {number} (heads {first} to {first + self.shared_by - 1})"


def heads(pair: Pair, part: Part, shape: tuple[int, ...]) -> Heads | None:
    """The heads of an attention projection, None where it has none or they cannot be told.

    By A's config: num_attention_heads, num_key_value_heads, head_dim (or hidden_size / heads); where the shape does not
    agree with these, nothing is said. A bias is cut as the rows of its weight.
    """
    config = text_config(pair.a.config)
    count = _whole(config, "num_attention_heads", "n_head")
    if part.role not in ("q_proj", "k_proj", "v_proj", "o_proj") or not count or not shape:
        return None
    hidden = _whole(config, "hidden_size", "n_embd")
    width = _whole(config, "head_dim") or (hidden // count if hidden % count == 0 else 0)
    shared = _whole(config, "num_key_value_heads") or count
    if part.role == "o_proj":
        fits = len(shape) == 2 and part.parameter == "weight" and shape[1] == count * width
        return Heads("columns", count, width) if fits and width else None
    number = count if part.role == "q_proj" else shared
    if not width or shape[0] != number * width:
        return None
    return Heads("rows", number, width, 1 if part.role == "q_proj" else max(1, count // number))


def _whole(config: Mapping[str, object], *names: str) -> int:
    """The first of these that is a whole number, 0 if none is."""
    return next((value for name in names if isinstance(value := config.get(name), int) and value > 0), 0)


def by_head(found: Slices, cut: Heads) -> tuple[np.ndarray, np.ndarray]:
    """(heads,) lengths of w_B - w_A and of w_A, each of all elements of one head."""
    shift, norm = (found.row_shift, found.row_norm) if cut.axis == "rows" else (found.column_shift, found.column_norm)
    squares = [np.square(side.astype(np.float64)).reshape(cut.count, cut.width).sum(axis=1) for side in (shift, norm)]
    return np.sqrt(squares[0]), np.sqrt(squares[1])


def relative(shift: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """shift / norm; 0 where nothing moved, NaN where what moved was 0 in A."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(norm > 0, shift / np.where(norm > 0, norm, 1), np.nan)
    return np.where(shift == 0, 0.0, found)
