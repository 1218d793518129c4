"""One tensor of a pair as a matrix, read in blocks of bounded size: what slices, maps and spectra stand on.

Computes nothing; numbers that are NaN or infinite on either side become 0 on both and are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from threading import Event
from typing import TYPE_CHECKING, Literal

import numpy as np

from sfn import pieces
from sfn.errors import Cancelled, PairError

if TYPE_CHECKING:
    import torch

    from sfn.pairs import Pair

BLOCK = 1 << 21  # elements of one side in float64 at once, if a row is no longer: 16 MB

Progress = Callable[[int, int, str], None]
Block = tuple[int, np.ndarray, np.ndarray]  # first row, (rows, columns) of A and of B
Dtype = Literal["float64", "float32"]


class Matrix:
    """A tensor as (rows, columns).

    A vector has one column. Of a tensor that holds all experts, (experts, rows, columns), `expert` names the one that
    is meant; without it each expert is one row. Where two vocabularies differ in size, the rows that both have.

    Attributes:
        shape: (rows, columns). experts: how many the tensor holds, 0 if it is not of experts. is_expert: whether this
            is one of them. nonfinite: elements that were NaN or infinite in the last whole walk over `blocks`.
    """

    def __init__(self, pair: Pair, name: str, expert: int | None = None) -> None:
        """Raises PairError for a name that the pair cannot compare, or an expert that the tensor lacks."""
        row = pair.by_name.get(name)
        if row is None or not row.comparable:
            raise PairError(f"{name} cannot be looked at: {row.problem if row else 'the pair has no such tensor'}.")
        assert row.a is not None
        assert row.b is not None
        self._pair, self._name, self._expert = pair, name, expert
        first, *rest = row.a.shape or (1,)
        first = min(first, *(row.b.shape[:1] or (1,)))
        self.experts = first if pieces.holds_experts(row.part, tuple(row.a.shape)) else 0
        if expert is not None and not 0 <= expert < self.experts:
            held = f"has experts 0 to {self.experts - 1}" if self.experts else "holds no experts"
            raise PairError(f"{name} has no expert {expert}; it {held}.")
        if expert is None:
            self.shape = (first, math.prod(rest))
        else:
            self.shape = (rest[0], math.prod(rest[1:]))
        self.is_expert = expert is not None
        self.nonfinite = 0

    def expert(self, number: int) -> Matrix:
        """One of the experts that the tensor holds. Raises PairError."""
        return Matrix(self._pair, self._name, number)

    def blocks(
        self,
        first: int = 0,
        last: int | None = None,
        *,
        step: int = 0,
        dtype: Dtype = "float64",
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Iterator[Block]:
        """Rows first..last-1, `step` at a time (0: as many as BLOCK allows), as `dtype`.

        progress: called with (elements done, in all, name). Raises Cancelled between blocks once `cancel` is set.
        """
        last = self.shape[0] if last is None else last
        step = step or max(1, BLOCK // max(1, self.shape[1]))
        self.nonfinite = 0
        for start in range(first, last, step):
            self._go_on(cancel)
            stop = min(start + step, last)
            sides = (_values(self._rows(side, start, stop), dtype) for side in ("A", "B"))
            yield start, *self._finite(*sides)
            if progress is not None:
                progress((stop - first) * self.shape[1], (last - first) * self.shape[1], self._name)

    def columns(self, *, progress: Progress | None = None, cancel: Event | None = None) -> Iterator[Block]:
        """As `blocks` of the transpose: (first column, (columns, rows) float64 of A, of B).

        What lies in a file on this machine stays there; of what comes over a network, or is computed when it is read,
        both sides are in memory as they are stored.
        """
        rows, columns = self.shape
        whole = [self._rows(side, 0, rows) for side in ("A", "B")]
        step = max(1, BLOCK // max(1, rows))
        self.nonfinite = 0
        for start in range(0, columns, step):
            self._go_on(cancel)
            stop = min(start + step, columns)
            yield start, *self._finite(*(_values(side[:, start:stop].T, "float64") for side in whole))
            if progress is not None:
                progress(stop * rows, columns * rows, self._name)

    def _go_on(self, cancel: Event | None) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled(f"Looking at {self._name} was cancelled.")

    def _rows(self, side: str, start: int, stop: int) -> torch.Tensor:
        """(rows, columns) as stored."""
        if self._expert is None:
            return self._pair.read_rows(side, self._name, start, stop).reshape(stop - start, self.shape[1])
        whole = self._pair.read_rows(side, self._name, self._expert, self._expert + 1)  # mapped, or one expert
        return whole.reshape(self.shape)[start:stop]

    def _finite(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if np.isfinite(a.sum() + b.sum()):  # then every element is, short of sums beyond what float64 holds
            return a, b
        bad = ~(np.isfinite(a) & np.isfinite(b))
        self.nonfinite += int(bad.sum())
        return np.where(bad, 0.0, a), np.where(bad, 0.0, b)


def _values(part: torch.Tensor, dtype: Dtype) -> np.ndarray:
    import torch

    return part.detach().to(torch.float64 if dtype == "float64" else torch.float32).numpy()
