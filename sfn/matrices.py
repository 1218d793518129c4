"""One tensor of a pair as a matrix, read in blocks of bounded size as float64: what slices, maps and spectra stand on.

Computes nothing; numbers that are NaN or infinite on either side become 0 on both and are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from sfn.errors import Cancelled, PairError

if TYPE_CHECKING:
    import torch

    from sfn.pairs import Pair

BLOCK = 1 << 21  # elements of one side in float64 at once, if a row is no longer: 16 MB

Progress = Callable[[int, int, str], None]
Block = tuple[int, np.ndarray, np.ndarray]  # first row, (rows, columns) float64 of A and of B


class Matrix:
    """A tensor as (rows, columns).

    A vector has one column. Of a tensor that holds all experts, (experts, rows, columns), `expert` names the one that
    is meant; without it each expert is one row. Where two vocabularies differ in size, the rows that both have.

    Attributes:
        shape: (rows, columns). experts: how many the tensor holds, 0 if it is not of experts. nonfinite: elements that
            were NaN or infinite in the last whole walk over `blocks`.
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
        self.experts = first if len(rest) >= 2 else 0
        if expert is not None and not 0 <= expert < self.experts:
            held = f"has experts 0 to {self.experts - 1}" if self.experts else "holds no experts"
            raise PairError(f"{name} has no expert {expert}; it {held}.")
        if expert is None:
            self.shape = (first, math.prod(rest))
        else:
            self.shape = (rest[0], math.prod(rest[1:]))
        self.nonfinite = 0

    def blocks(
        self,
        first: int = 0,
        last: int | None = None,
        *,
        step: int = 0,
        passes: tuple[int, int] = (0, 1),
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Iterator[Block]:
        """Rows first..last-1, `step` at a time (0: as many as BLOCK allows).

        passes: (passes over the matrix before this one, passes in all), for `progress` (elements done, in all, name).
        Raises Cancelled between blocks once `cancel` is set.
        """
        last = self.shape[0] if last is None else last
        width = max(1, self.shape[1])
        step = step or max(1, BLOCK // width)
        self.nonfinite = 0
        before, number = passes
        for start in range(first, last, step):
            if cancel is not None and cancel.is_set():
                raise Cancelled(f"Looking at {self._name} was cancelled.")
            stop = min(start + step, last)
            yield start, *self._finite(self._read("A", start, stop), self._read("B", start, stop))
            if progress is not None:
                done = before * (last - first) + stop - first
                progress(done * width, number * (last - first) * width, self._name)

    def _read(self, side: str, start: int, stop: int) -> np.ndarray:
        if self._expert is None:
            part = self._pair.read_rows(side, self._name, start, stop)
            return _values(part).reshape(stop - start, self.shape[1])
        whole = self._pair.read_rows(side, self._name, self._expert, self._expert + 1)  # mapped, or one expert
        return _values(whole.reshape(self.shape)[start:stop])

    def _finite(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if np.isfinite(a.sum() + b.sum()):  # then every element is, short of sums beyond what float64 holds
            return a, b
        bad = ~(np.isfinite(a) & np.isfinite(b))
        self.nonfinite += int(bad.sum())
        return np.where(bad, 0.0, a), np.where(bad, 0.0, b)


def _values(part: torch.Tensor) -> np.ndarray:
    import torch

    return part.detach().to(torch.float64).numpy()
