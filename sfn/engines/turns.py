"""Whose turn it is among several SfN that drive one vLLM server: one at a time, in the order in which they came, and
none for longer than it gives a sign of life. Kept by the server's workers; knows no vLLM, and no clock of its own.
"""

from __future__ import annotations

_PATIENCE_S = 3.0  # who has not asked for so long waits no more


class Turns:
    """One turn at a time. Times are seconds of any clock that only goes forward. last: who had the last turn."""

    def __init__(self) -> None:
        self.last = ""
        self._holder = ""
        self._until = 0.0
        self._waiting: dict[str, float] = {}  # who waits, the first first, and when they last asked

    def take(self, owner: str, seconds: float, now: float) -> bool:
        """Whether it is `owner`'s turn, from now on for `seconds` unless it asks again; if not, it waits in line."""
        self._waiting = {name: at for name, at in self._waiting.items() if now - at <= _PATIENCE_S}
        if now >= self._until:
            self._holder = ""
        first = next(iter(self._waiting), owner)
        if self._holder != owner and (self._holder or first != owner):
            self._waiting[owner] = now
            return False
        self._waiting.pop(owner, None)
        self._holder, self._until, self.last = owner, now + seconds, owner
        return True

    def leave(self, owner: str) -> None:
        """End the turn of `owner`, or its waiting for one."""
        self._waiting.pop(owner, None)
        if self._holder == owner:
            self._holder = ""
