"""Small questions to a slow place (the Hub, a large disk), asked in the background and remembered for a while.

What has progress and must be cancelled is a job (`sfn.jobs`); this is for what fills a line of a page in.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Literal

from sfn.errors import SfnError

log = logging.getLogger(__name__)

_FAILURE_FRESH_S = 20.0  # a refusal is worth asking about again, but not at every look at the page
_MOST_WAITING = 64


@dataclass(frozen=True, slots=True)
class Lookup:
    """What is known by now. value: None while asking. problem: why it could not be had; the SfnError itself."""

    state: Literal["asking", "done", "failed"]
    value: Any = None
    problem: SfnError | None = None
    at: float = 0.0

    @property
    def error(self) -> str:
        """The sentence of a lookup that failed, else ""."""
        return str(self.problem) if self.problem else ""


_ASKING = Lookup("asking")


class Lookups:
    """Answers by key. Thread-safe; the newest question is asked first, since a person waits for that one."""

    def __init__(self, workers: int = 6, most: int = 512) -> None:
        self._lock = threading.RLock()
        self._change = threading.Condition(self._lock)
        self._found: OrderedDict[Hashable, Lookup] = OrderedDict()
        self._waiting: OrderedDict[Hashable, Callable[[], Any]] = OrderedDict()
        self._asked: set[Hashable] = set()
        self._workers, self._most, self._running = workers, most, 0

    def ask(self, key: Hashable, work: Callable[[], Any], fresh_s: float = 600.0) -> Lookup:
        """What `work()` returned at most `fresh_s` ago, or what is known while it is asked (again) in the background.

        An SfnError of `work` is an answer too; any other error is logged and told as a defect.
        """
        with self._lock:
            known = self._found.get(key)
            fresh = known is not None and time.monotonic() - known.at < (
                fresh_s if known.state == "done" else min(fresh_s, _FAILURE_FRESH_S)
            )
            if not fresh and key not in self._asked:
                self._waiting.pop(key, None)
                self._waiting[key] = work
                if len(self._waiting) > _MOST_WAITING:
                    self._waiting.popitem(last=False)
                if self._running < self._workers:
                    self._running += 1
                    threading.Thread(target=self._work, name="sfn-lookup", daemon=True).start()
            return known or _ASKING

    def forget(self, which: Callable[[Any], bool]) -> None:
        """Let the next `ask` of these keys ask anew; what is known is shown until then."""
        with self._lock:
            for key, known in self._found.items():
                if which(key):
                    self._found[key] = replace(known, at=-math.inf)

    def recent(self, seconds: float) -> list[Lookup]:
        """Answers that came at most so long ago, the newest first."""
        with self._lock:
            found = sorted(self._found.values(), key=lambda known: -known.at)
        return [known for known in found if time.monotonic() - known.at <= seconds]

    def wait(self, key: Hashable, timeout_s: float) -> Lookup:
        """What was asked under `key`, once it is known or `timeout_s` has passed."""
        with self._change:
            self._change.wait_for(lambda: key not in self._waiting and key not in self._asked, timeout_s)
            return self._found.get(key, _ASKING)

    def busy(self) -> bool:
        """Whether anything is being asked."""
        with self._lock:
            return bool(self._waiting or self._asked)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                key, work = self._waiting.popitem()
                self._asked.add(key)
            found = _answer(work)
            with self._lock:
                self._asked.discard(key)
                self._found[key] = found
                self._found.move_to_end(key)
                if len(self._found) > self._most:
                    self._found.popitem(last=False)
                self._change.notify_all()


def _answer(work: Callable[[], Any]) -> Lookup:
    try:
        return Lookup("done", work(), at=time.monotonic())
    except SfnError as error:
        return Lookup("failed", problem=error, at=time.monotonic())
    except Exception as error:
        log.error("defect in a lookup", exc_info=error)
        problem = SfnError(f"An unexpected error: {type(error).__name__}: {error}. The server's log has the details.")
        return Lookup("failed", problem=problem, at=time.monotonic())
