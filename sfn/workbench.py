"""What one process of SfN owns: the store, the background jobs, the engine. Opened once, closed with the server."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sfn import checkpoints, delta, pairs
from sfn.engine_room import EngineRoom
from sfn.jobs import Job, Jobs
from sfn.store import Store, default_path
from sfn.sweep_room import SweepRoom

if TYPE_CHECKING:
    from sfn.pairs import Pair

_lock = threading.Lock()
_current: Workbench | None = None


class Workbench:
    """Store, jobs and engine of this process. Raises StoreError where the results database cannot be used."""

    def __init__(self, path: Path | None = None) -> None:
        self.store = Store(path or default_path())
        self.jobs = Jobs()
        self.engines = EngineRoom(self.store)
        self.sweeps = SweepRoom(self.store, self.jobs, self.engines)

    def open_pair(self, a: str, b: str, owner: str) -> Job:
        """Open and compare two checkpoints in the background; the job's result is the `Pair`, recorded in the store.

        Files are hashed once and remembered, so only the first look at a large checkpoint takes long.
        """

        def work(job: Job) -> Pair:
            pair = pairs.compare(checkpoints.open(a), checkpoints.open(b))
            done = 0.0
            for side in (pair.a, pair.b):
                base = done

                def progress(bytes_done: int, _total: int, name: str, base: float = base) -> None:
                    job.report(base + bytes_done, pair.a.size_bytes + pair.b.size_bytes, name, "bytes")

                side.fingerprint_with(self.store.file_hashes, progress)
                done += side.size_bytes
            self.store.save_pair(pair.key, pair.a, pair.b, {"report": pair.report()})
            return pair

        return self.jobs.start("Opening the pair", work, key=f"open:{a}\n{b}", owner=owner)

    def scan(self, pair: Pair, owner: str) -> Job:
        """Measure what changed, tensor by tensor; finished tensors are in the store at once and never read again."""

        def work(job: Job) -> int:
            missing = self.store.missing(pair.key, [row.name for row in pair.rows if row.comparable])
            for measured in delta.scan(
                pair, missing, progress=lambda done, total, name: job.report(done, total, name, "bytes")
            ):
                self.store.save_delta(pair.key, measured)
            return len(missing)

        return self.jobs.start(f"Scanning {pair.label}", work, key=f"scan:{pair.key}", owner=owner)

    def close(self) -> None:
        """Stop everything and let the database go."""
        self.jobs.close()
        self.engines.close()
        self.store.close()


def current() -> Workbench:
    """The workbench of this process, opened on first use."""
    global _current
    with _lock:
        if _current is None:
            _current = Workbench()
        return _current


def close() -> None:
    """Close the workbench of this process, if it is open."""
    global _current
    with _lock:
        if _current is not None:
            _current.close()
            _current = None
