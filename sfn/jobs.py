"""Background work with progress and cancel: scans, hashing, writing. Knows no page, draws nothing, owns no engine.

What a job finds is in the store as soon as it is found, so that a cancelled or killed job loses nothing finished.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from sfn.errors import Cancelled, JobError, SfnError

log = logging.getLogger(__name__)

JobState = Literal["queued", "running", "done", "failed", "cancelled"]

_KEPT_JOBS = 50
_SAMPLES, _SAMPLE_S = 60, 1.0  # of a job's progress: its last minute


def sentence_of(error: Exception) -> str:
    """What a person reads of `error`; a defect is logged with its traceback and named as one."""
    if isinstance(error, SfnError):
        return str(error)
    log.error("defect in background work", exc_info=error)
    return f"An unexpected error stopped this: {type(error).__name__}: {error}. The server's log has the details."


class Job:
    """One piece of background work. Fields are written by its thread and may be read from any.

    Attributes:
        done, total: progress in `unit`; total 0 while unknown. detail: what is being worked on now.
        error: the sentence of a failed job; failure: the error itself where it was an SfnError. result: what `work`
            returned.
        owners: the viewers who want it; it is cancelled when the last of them cancels.
    """

    def __init__(self, number: int, title: str, key: str, owner: str) -> None:
        self.id = number
        self.title = title
        self.key = key
        self.owners = {owner}
        self.state: JobState = "queued"
        self.done = 0.0
        self.total = 0.0
        self.unit = ""
        self.detail = ""
        self.error = ""
        self.failure: SfnError | None = None
        self.result: Any = None
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self._samples: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)  # (time, done), for the rate of late
        self.cancel_event = threading.Event()
        self.finished = threading.Event()

    def report(self, done: float, total: float, detail: str = "", unit: str = "") -> None:
        """Set the progress; raises Cancelled once the job was cancelled, so that work stops at its next report."""
        self.done, self.total, self.detail, self.unit = done, total, detail, unit or self.unit
        now = time.monotonic()
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now, done))
        if self.cancel_event.is_set():
            raise Cancelled(f"{self.title} was cancelled.")

    @property
    def active(self) -> bool:
        """Whether the job still waits or runs."""
        return self.state in ("queued", "running")

    @property
    def share(self) -> float:
        """Progress in [0, 1]."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def rate(self) -> float | None:
        """Progress per second of late, in `unit`, pauses of the last minute included; None while it cannot be told."""
        if self.state != "running" or not self._samples:
            return None
        then, done = self._samples[0]
        passed = time.monotonic() - then
        return (self.done - done) / passed if passed > 0 and self.done > done else None

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the rate of late; None while that cannot be told."""
        rate = self.rate
        return None if not rate or not self.total else max(0.0, self.total - self.done) / rate

    @property
    def finished_ago_s(self) -> float | None:
        """Seconds since the job ended; None while it has not."""
        return None if self.finished_at is None else time.monotonic() - self.finished_at


class Jobs:
    """The background jobs of this process. Thread-safe."""

    def __init__(self, workers: int = 4) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="sfn-job")
        self._lock = threading.RLock()
        self._jobs: OrderedDict[int, Job] = OrderedDict()
        self._numbers = itertools.count(1)

    def start(self, title: str, work: Callable[[Job], Any], *, key: str, owner: str) -> Job:
        """Run `work(job)` in the background; a job with the same key that still runs is joined instead."""
        with self._lock:
            running = self.find(key)
            if running is not None and running.active and not running.cancel_event.is_set():
                running.owners.add(owner)
                return running
            job = Job(next(self._numbers), title, key, owner)
            self._jobs[job.id] = job
            self._forget_old()
            self._pool.submit(self._run, job, work)
            return job

    def _run(self, job: Job, work: Callable[[Job], Any]) -> None:
        if not job.cancel_event.is_set():
            job.state, job.started_at = "running", time.monotonic()
            try:
                job.result = work(job)
                state: JobState = "done"
            except Cancelled:
                state = "cancelled"
            except Exception as error:
                job.error, state = sentence_of(error), "failed"
                job.failure = error if isinstance(error, SfnError) else None
        else:
            state = "cancelled"
        job.finished_at, job.state = time.monotonic(), state
        job.finished.set()

    def _forget_old(self) -> None:
        ended = [number for number, job in self._jobs.items() if not job.active]
        for number in ended[: max(0, len(self._jobs) - _KEPT_JOBS)]:
            del self._jobs[number]

    def find(self, key: str) -> Job | None:
        """The newest job with this key, or None."""
        with self._lock:
            return next((job for job in reversed(self._jobs.values()) if job.key == key), None)

    def latest(self, beginning: str) -> Job | None:
        """The newest job that runs, else the newest, of those whose keys begin so; None if there is none."""
        with self._lock:
            found = [job for job in reversed(self._jobs.values()) if job.key.startswith(beginning)]
        return next((job for job in found if job.active), found[0] if found else None)

    def active(self) -> list[Job]:
        """Jobs that wait or run, oldest first."""
        with self._lock:
            return [job for job in self._jobs.values() if job.active]

    def recent(self, seconds: float = 8.0) -> list[Job]:
        """Active jobs, and those that ended at most `seconds` ago."""
        with self._lock:
            return [job for job in self._jobs.values() if job.active or (job.finished_ago_s or 0.0) <= seconds]

    def cancel(self, number: int, owner: str) -> None:
        """Withdraw `owner` from a job; it stops when nobody is left who wants it. Raises JobError."""
        with self._lock:
            job = self._jobs.get(number)
            if job is None:
                raise JobError(f"There is no job {number}; it may have ended long ago.")
            if owner not in job.owners:
                raise JobError(f"“{job.title}” was started by another viewer; only they can cancel it.")
            job.owners.discard(owner)
            if not job.owners:
                job.cancel_event.set()

    def close(self) -> None:
        """Cancel everything and wait until the threads have let go."""
        with self._lock:
            for job in self._jobs.values():
                job.cancel_event.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
