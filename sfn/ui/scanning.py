"""How far the measuring of a pair has come, for the pages that show it; which of its tensors are chosen to be measured;
starts the scan of a small pair unasked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfn import needs
from sfn.ui import cached, delta_memos, state, words

if TYPE_CHECKING:
    from sfn.jobs import Job
    from sfn.pairs import Pair, TensorPair

_SMALL_BYTES = 200e6  # pairs up to this size (both sides) are measured without being asked
_CHOICE = re.compile(r"(?P<modules>[^@]*)(?:@(?P<first>\d+)(?:-(?P<last>\d+))?)?")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tensors are to be measured. modules: rows of the board, () for all; layers: first and last, None for all.

    Its text, as it stands in the address: "", "o_proj", "o_proj,v_proj@0-9", "@5".
    """

    modules: tuple[str, ...] = ()
    layers: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Any text is a choice; what cannot be read chooses everything, and names that a pair lacks choose nothing."""
        match = _CHOICE.fullmatch(text.replace(" ", ""))
        if match is None:
            return cls()
        first, last = match["first"], match["last"] or match["first"]
        modules = tuple(filter(None, match["modules"].split(",")))
        return cls(modules, (int(first), int(last)) if first is not None else None)

    def __str__(self) -> str:
        layers = "" if self.layers is None else f"@{self.layers[0]}-{self.layers[1]}"
        return ",".join(self.modules) + layers

    def rows(self, pair: Pair) -> list[TensorPair]:
        """The tensors of `pair` that are chosen and can be compared. Layers leave out what stands in no layer."""
        return [row for row in pair.rows if row.comparable and self._holds(row)]

    def _holds(self, row: TensorPair) -> bool:
        if self.modules and row.part.row not in self.modules:
            return False
        if self.layers is None:
            return True
        return row.part.layer is not None and self.layers[0] <= row.part.layer <= self.layers[1]

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.modules and self.layers is None

    @property
    def label(self) -> str:
        """What a button says of it."""
        if self.everything:
            return "everything"
        shown = ", ".join(self.modules[:2]) + (", …" if len(self.modules) > 2 else "") if self.modules else "all"
        if self.layers is None:
            return f"{shown} only"
        first, last = self.layers
        return f"{shown}, layer {first}" if first == last else f"{shown}, layers {first} to {last}"


def chosen() -> Choice:
    """What is chosen to be measured now."""
    return Choice.parse(state.get("scan"))


class Progress:
    """How far the measuring of a pair has come.

    Attributes:
        job: the scan, if one was started in this process. running: whether it runs now. wanted: tensors to be measured.
        missing: those of them that the store does not have.
    """

    def __init__(self, pair: Pair) -> None:
        bench = cached.workbench()
        self.job: Job | None = bench.jobs.latest(bench.scan_key(pair))  # before the store: its last tensors come first
        self.running = self.job is not None and self.job.active
        names = [row.name for row in pair.rows if row.comparable]
        self.wanted = len(names)
        self._missing = frozenset(delta_memos.missing(pair.key, names))

    @property
    def missing(self) -> int:
        """How many tensors the store does not have."""
        return len(self._missing)

    @property
    def measured(self) -> int:
        """Tensors in the store."""
        return self.wanted - self.missing

    def left(self, rows: Sequence[TensorPair]) -> list[TensorPair]:
        """Those of `rows` that are not measured yet."""
        return [row for row in rows if row.name in self._missing]


def start_if_small(pair: Pair) -> Progress:
    """Measure a small pair on this machine that nobody has measured or tried to measure; where it stands then."""
    progress = Progress(pair)
    small = pair.a.size_bytes + pair.b.size_bytes <= _SMALL_BYTES
    if progress.missing and progress.job is None and small and not from_network(pair):
        cached.workbench().scan(pair, state.browser())
        progress = Progress(pair)
    return progress


def from_network(pair: Pair) -> bool:
    """Whether measuring reads over the network."""
    return bool(pair.a.missing_bytes or pair.b.missing_bytes)


def cost(pair: Pair, rows: Sequence[TensorPair] | None = None) -> str:
    """What measuring these tensors reads (None: all), in words."""
    size = words.size(needs.scan_bytes([row for row in pair.rows if row.comparable] if rows is None else rows))
    return f"{size} over the network" if from_network(pair) else size
