"""Ranges fetched before they are asked for: several at a time, in the order of the reading, in bounded room.

What arrives is laid down in a spool on the disk until the reading is over, so that a process that is killed goes on at
the byte; nothing of it is kept after that. Owns pieces, workers and spool; the network is `ranges`'.
"""

from __future__ import annotations

import bisect
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from threading import Condition, Event, Lock, Thread
from typing import Self

from sfn.errors import Cancelled, HubError, SfnError
from sfn.hub.ranges import RemoteFile
from sfn.hub.spool import Spool
from sfn.mapped_memory import map_range

PIECE_BYTES = 8 << 20
WINDOW_BYTES = 8 * PIECE_BYTES  # fetched or being fetched, not read yet
WORKERS = 4  # connections of one side, of which a pair has two: a far server needs several to be kept busy
NEAR_S = 0.01  # a server that answers sooner keeps one connection busy; more would only have more to repeat
_DIRECT_BYTES = 2 * PIECE_BYTES  # a single read above this is fetched by several connections
_WRITTEN_BYTES = 1 << 18  # at once
_LOOK_S = 0.1  # between two looks at the cancel event

Range = tuple[Path, int, int]  # file, first byte, byte after the last


class _Piece:
    """A part of one file. left: bytes of it that are planned to be read and were not yet. turn: place in the plan.

    run: first byte and byte after the last of what lies with it in one file of the spool; number: its place there.
    """

    __slots__ = (
        "data", "end", "error", "file", "held", "left", "number", "run", "start", "state", "turn", "writing",
    )  # fmt: skip

    def __init__(self, file: Path, start: int, end: int, turn: int, run: tuple[int, int], number: int) -> None:
        self.file, self.start, self.end, self.turn = file, start, end, turn
        self.run, self.number = run, number
        self.left = 0
        self.state = "waiting"  # "waiting", "fetching", "ready", "gone"
        self.held = False  # whether it takes room in the window
        self.writing = Lock()  # held while the spool's file grows
        self.data: bytearray | None = None  # where the spool could not take it
        self.error: SfnError | None = None

    @property
    def size(self) -> int:
        return self.end - self.start


class ReadAhead:
    """A plan of ranges that is being fetched; a context manager. `view` may be called from several threads."""

    def __init__(
        self,
        files: Mapping[Path, RemoteFile],
        ranges: Sequence[Range],
        cancel: Event | None = None,
        *,
        spool: bool = True,
    ) -> None:
        self._files = files
        self._cancel = cancel or Event()
        self._stop = Event()
        self._change = Condition()
        self._pieces = _pieces(ranges)
        self._by_file: dict[Path, list[_Piece]] = {}
        for piece in self._pieces:
            self._by_file.setdefault(piece.file, []).append(piece)
        for pieces in self._by_file.values():
            pieces.sort(key=lambda piece: piece.start)
        self._runs: dict[tuple[Path, tuple[int, int]], list[_Piece]] = {}
        for piece in self._pieces:
            self._runs.setdefault((piece.file, piece.run), []).append(piece)
        self._starts = {file: [piece.start for piece in pieces] for file, pieces in self._by_file.items()}
        for file, start, end in ranges:
            for piece in self._covering(file, start, end) or ():
                piece.left += min(piece.end, end) - max(piece.start, start)
        self._next = 0
        self._urgent: list[_Piece] = []
        self._held = 0  # bytes of the window in use
        self._spent: deque[_Piece] = deque()  # read, and kept until what they were for is finished
        self._spool = Spool({(files[p.file], *p.run) for p in self._pieces}, PIECE_BYTES) if spool else None
        self._workers = 0
        self._latency_s = math.inf

    def __enter__(self) -> Self:
        for piece in self._pieces:
            if self._reached(piece) == piece.size:
                piece.state = "ready"
        self._start_worker()
        return self

    def _start_worker(self) -> None:
        Thread(target=self._work, name="sfn-fetch", daemon=True).start()
        self._workers += 1

    def _start_others(self, file: RemoteFile) -> None:
        """More workers, once it is known that the server is far."""
        with self._change:
            self._latency_s = min(self._latency_s, file.latency_s)
            if not self._stop.is_set() and self._latency_s > NEAR_S:
                while self._workers < min(WORKERS, len(self._pieces)):
                    self._start_worker()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._stop.set()
        with self._change:
            self._change.notify_all()
        for piece in self._pieces:
            with piece.writing:  # from here on nothing is written; a thread that waits for the network ends later
                pass
        if self._spool is not None:
            self._spool.close(keep=kind is not None)

    def _reached(self, piece: _Piece) -> int:
        """Bytes of the piece that the spool has."""
        if self._spool is None:
            return 0
        return min(self._spool.reached(self._files[piece.file], piece.run, piece.number), piece.size)

    # Reading

    def view(self, file: Path, start: int, end: int) -> tuple[object, int] | None:
        """Memory that holds the range, and where in it the range begins; None if it is not in the plan.

        Waits for what is not there yet. Raises what the fetching raised; Cancelled.
        """
        pieces = self._covering(file, start, end)
        if pieces is None:
            return None
        self._drop_before(pieces[0].turn - 1)
        for piece in pieces:
            if not self._wait(piece):
                return None  # read already, and dropped: whoever reads twice fetches twice
        found = self._mapped(pieces, start, end)
        if found is None:
            data = bytearray(end - start)
            for piece in pieces:
                first, last = max(start, piece.start), min(end, piece.end)
                self._copy(piece, first, memoryview(data)[first - start : last - start])
            found = data, 0
        self._account(pieces, start, end)
        return found

    def _covering(self, file: Path, start: int, end: int) -> list[_Piece] | None:
        """The pieces that hold the range, in order; None unless they hold all of it."""
        pieces = self._by_file.get(file)
        if not pieces or start >= end:
            return None
        first = bisect.bisect_right(self._starts[file], start) - 1
        found = []
        for piece in pieces[max(first, 0) :]:
            if piece.start >= end:
                break
            found.append(piece)
        touching = all(left.end == right.start for left, right in pairwise(found))
        return found if found and found[0].start <= start and found[-1].end >= end and touching else None

    def _wait(self, piece: _Piece) -> bool:
        """Whether the piece is there now; False if it is gone for good."""
        with self._change:
            while piece.state != "ready":
                if piece.error is not None:
                    raise piece.error
                if piece.state == "gone":
                    return False
                if self._cancel.is_set():
                    raise Cancelled("Reading was cancelled; what was finished before is kept.")
                if piece.state == "waiting" and piece not in self._urgent:
                    self._urgent.append(piece)  # out of order: fetched next, whatever is in the window
                    self._change.notify_all()
                self._change.wait(_LOOK_S)
        return True

    def _mapped(self, pieces: Sequence[_Piece], start: int, end: int) -> tuple[object, int] | None:
        """The range as memory over the spool's file, where it lies in one."""
        run = pieces[0].run
        if self._spool is None or any(piece.run != run or piece.data is not None for piece in pieces):
            return None
        with self._spool.opened(self._files[pieces[0].file], run) as descriptor:
            try:
                return map_range(descriptor, start - run[0], end - run[0])
            except OSError:
                return None

    def _copy(self, piece: _Piece, start: int, into: memoryview) -> None:
        if piece.data is not None:
            into[:] = memoryview(piece.data)[start - piece.start : start - piece.start + len(into)]
            return
        assert self._spool is not None
        with self._spool.opened(self._files[piece.file], piece.run) as descriptor:
            done, at = 0, start - piece.run[0]
            while done < len(into) and (count := os.preadv(descriptor, [into[done:]], at + done)):
                done += count
        if done < len(into):
            raise HubError(f"The spool of {self._files[piece.file]} was cut by another program. Try again.", "disk")

    def _account(self, pieces: Iterable[_Piece], start: int, end: int) -> None:
        """Room in the window for what was read."""
        with self._change:
            for piece in pieces:
                before = piece.left
                piece.left -= min(piece.end, end) - max(piece.start, start)
                if before > 0 >= piece.left:
                    self._spent.append(piece)
                    self._hold(piece, False)
                    self._change.notify_all()

    def _hold(self, piece: _Piece, held: bool) -> None:
        if piece.held != held:
            piece.held = held
            self._held += piece.size if held else -piece.size

    def _drop_before(self, turn: int) -> None:
        """Let go of pieces of earlier turns that were read: what they were for is finished."""
        dropped: list[_Piece] = []
        with self._change:
            while self._spent and self._spent[0].turn < turn:
                dropped.append(self._spent.popleft())
                dropped[-1].state, dropped[-1].data = "gone", None
        if self._spool is not None:
            for file, run in dict.fromkeys((piece.file, piece.run) for piece in dropped):
                if all(piece.state == "gone" for piece in self._runs[file, run]):
                    self._spool.drop(self._files[file], run)

    # Fetching

    def _work(self) -> None:
        while (piece := self._take()) is not None:
            try:
                self._fetch(piece)
                self._start_others(self._files[piece.file])
            except SfnError as error:
                piece.error = error
            except Exception as error:  # a defect: the reader must not wait for ever
                piece.error = SfnError(f"Fetching failed unexpectedly: {type(error).__name__}: {error}")
            with self._change:
                if piece.error is None:
                    piece.state = "ready"
                self._change.notify_all()

    def _take(self) -> _Piece | None:
        """The next piece to fetch, once there is room in the window; None at the end."""
        with self._change:
            while not (self._stop.is_set() or self._cancel.is_set()):
                while self._urgent and self._urgent[0].state != "waiting":
                    self._urgent.pop(0)
                while self._next < len(self._pieces) and self._pieces[self._next].state != "waiting":
                    self._hold(self._pieces[self._next], self._pieces[self._next].left > 0)
                    self._next += 1
                piece = None
                if self._urgent:
                    piece = self._urgent.pop(0)
                elif self._next < len(self._pieces):
                    ahead = self._pieces[self._next]
                    piece = ahead if self._held + ahead.size <= WINDOW_BYTES or self._held == 0 else None
                else:
                    return None
                if piece is not None:
                    piece.state = "fetching"
                    self._hold(piece, True)
                    return piece
                self._change.wait(5 * _LOOK_S)  # a cancel is not told
        return None

    def _fetch(self, piece: _Piece) -> None:
        file = self._files[piece.file]
        if self._spool is not None and self._into_spool(self._spool, file, piece, self._reached(piece)):
            return
        piece.data = bytearray(piece.size)
        at = 0
        for part in file.stream(piece.start, piece.end, self._stop_or_cancel()):
            piece.data[at : at + len(part)] = part
            at += len(part)

    def _into_spool(self, spool: Spool, file: RemoteFile, piece: _Piece, reached: int) -> bool:
        """Whether the piece lies in the spool now; False where the disk does not take it."""
        parts: list[bytes] = []
        waiting = 0
        try:
            with spool.writer(file, piece.run, piece.number, piece.start - piece.run[0], reached) as write:
                try:
                    for part in file.stream(piece.start + reached, piece.end, self._stop_or_cancel()):
                        parts.append(part)
                        waiting += len(part)
                        if waiting >= _WRITTEN_BYTES:
                            self._write(piece, write, parts)
                            waiting = 0
                finally:
                    self._write(piece, write, parts)
        except OSError:
            return False
        return True

    def _write(self, piece: _Piece, write: Callable[[list[bytes]], None], parts: list[bytes]) -> None:
        """Let the spool's file grow, unless the reading is over: somebody else may write there then."""
        with piece.writing:
            if parts and not self._stop.is_set():
                write(parts)
            parts.clear()

    def _stop_or_cancel(self) -> Event:
        return _Either(self._stop, self._cancel)


class _Either(Event):
    """Set when one of two events is; waits for the first of them alone, looking at the second now and then."""

    def __init__(self, first: Event, second: Event) -> None:
        super().__init__()
        self._first, self._second = first, second

    def is_set(self) -> bool:
        """Whether one of the two is set."""
        return self._first.is_set() or self._second.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Until one is set, or `timeout` seconds have passed."""
        left = timeout or 0.0
        while left > 0 and not self.is_set():
            self._first.wait(min(left, _LOOK_S))
            left -= _LOOK_S
        return self.is_set()


def _pieces(ranges: Sequence[Range]) -> list[_Piece]:
    """The plan cut into pieces, no byte twice; ranges that touch in a file and follow each other share pieces."""
    pieces: list[_Piece] = []
    covered: dict[Path, list[tuple[int, int]]] = {}
    for turn, (file, start, end) in enumerate(ranges):
        for first, last in _uncovered(covered.setdefault(file, []), start, end):
            previous = pieces[-1] if pieces else None
            if previous and (previous.file, previous.end) == (file, first) and last - previous.run[0] <= PIECE_BYTES:
                previous.end, previous.turn, previous.run = last, turn, (previous.run[0], last)
                continue
            for number, at in enumerate(range(first, last, PIECE_BYTES)):
                pieces.append(_Piece(file, at, min(last, at + PIECE_BYTES), turn, (first, last), number))
        covered[file].append((start, end))
    return pieces


def _uncovered(covered: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """What of start..end no earlier range has; `covered` holds few ranges that meet this one."""
    left = [(start, end)]
    for first, last in covered:
        if first < end and last > start:
            left = [
                part
                for begin, stop in left
                for part in ((begin, min(stop, first)), (max(begin, last), stop))
                if part[0] < part[1]
            ]
    return [part for part in left if part[0] < part[1]]


def read_parallel(file: RemoteFile, start: int, end: int) -> bytearray:
    """Bytes start..end-1; by several connections where they are many. Raises HubError."""
    if end - start <= _DIRECT_BYTES:
        return file.read(start, end)
    place = Path(file.name)
    with ReadAhead({place: file}, [(place, start, end)], spool=False) as ahead:
        data = bytearray(end - start)
        for at in range(start, end, PIECE_BYTES):
            last = min(end, at + PIECE_BYTES)
            found = ahead.view(place, at, last)
            assert found is not None, "the whole range is in the plan"
            data[at - start : last - start] = memoryview(found[0])[found[1] : found[1] + last - at]
    return data
