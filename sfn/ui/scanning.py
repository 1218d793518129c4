"""How far the measuring of a pair has come, for the pages that show it; starts the scan of a small pair unasked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfn.ui import cached, state, words

if TYPE_CHECKING:
    from sfn.jobs import Job
    from sfn.pairs import Pair

_SMALL_BYTES = 200e6  # pairs up to this size (both sides) are measured without being asked


class Progress:
    """How far the measuring of a pair has come.

    Attributes:
        job: the scan, if one was started in this process. running: whether it runs now. wanted: tensors to be measured.
        missing: those of them that the store does not have.
    """

    def __init__(self, pair: Pair) -> None:
        bench = cached.workbench()
        self.job: Job | None = bench.jobs.find(f"scan:{pair.key}")  # before the store: its last tensors are saved first
        self.running = self.job is not None and self.job.active
        names = [row.name for row in pair.rows if row.comparable]
        self.wanted = len(names)
        self.missing = len(bench.store.missing(pair.key, names))

    @property
    def measured(self) -> int:
        """Tensors in the store."""
        return self.wanted - self.missing


def start_if_small(pair: Pair) -> Progress:
    """Measure a small pair that nobody has measured or tried to measure; where it stands then."""
    progress = Progress(pair)
    if progress.missing and progress.job is None and pair.a.size_bytes + pair.b.size_bytes <= _SMALL_BYTES:
        cached.workbench().scan(pair, state.browser())
        progress = Progress(pair)
    return progress


def cost(pair: Pair) -> str:
    """What measuring all of it reads, in words."""
    return words.size(pair.a.size_bytes + pair.b.size_bytes)
