"""Parts of files on the Hub while they are being read: on the disk, so that they outlive a process that is killed.

A run of bytes is one file here, in whose pieces several threads write; beside it stands how far each piece came, told
only after the bytes are there. Runs are named by content (the file's digest) and by this start of the machine: what a
power failure may have left half written is never believed. One reading at a time owns a content's runs; another has a
place of its own that is not kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import mkdtemp

from sfn.hub.ranges import RemoteFile
from sfn.places import cache_folder

_PROGRESS = ".reached"
_COUNT = struct.Struct("<q")
_STALE_S = 3 * 24 * 3600.0  # runs of a reading that nobody took up again
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


Run = tuple[int, int]  # first byte and byte after the last, in the file on the Hub


class Spool:
    """The runs of one reading, in pieces of `piece_bytes`."""

    def __init__(self, runs: Iterable[tuple[RemoteFile, int, int]], piece_bytes: int) -> None:
        self._root = cache_folder() / "hub" / "spool"
        self._piece_bytes = piece_bytes
        self._folders: dict[str, Path] = {}
        self._locks: list[int] = []
        self._private: list[Path] = []
        wanted: dict[str, set[str]] = {}
        for file, start, end in runs:
            name = self._name((start, end))
            wanted.setdefault(file.etag, set()).update((name, name + _PROGRESS))
        for etag, names in wanted.items():
            with contextlib.suppress(OSError):
                self._folders[etag] = self._own(etag, names)
        _remove_stale(self._root)

    def _own(self, etag: str, names: set[str]) -> Path:
        """The folder of this content's runs, those of other readings removed; a private one if it is in use."""
        folder = self._root / f"{_boot()}-{etag[:40]}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            self._private.append(Path(mkdtemp(prefix="private-", dir=self._root)))
            return self._private[-1]
        self._locks.append(lock)
        os.utime(folder)
        for path in folder.iterdir():
            if path.name != "lock" and path.name not in names:
                path.unlink(missing_ok=True)
        return folder

    def _name(self, run: Run) -> str:
        return f"{run[0]:x}-{run[1]:x}-{self._piece_bytes:x}"  # pieces of another size would be counted otherwise

    def _path(self, file: RemoteFile, run: Run) -> Path:
        """Raises OSError where the disk has no place for the run."""
        folder = self._folders.get(file.etag)
        if folder is None:
            raise OSError("no spool")
        return folder / self._name(run)

    def reached(self, file: RemoteFile, run: Run, number: int) -> int:
        """Bytes of the run's piece that are here."""
        try:
            with open(f"{self._path(file, run)}{_PROGRESS}", "rb") as told:
                told.seek(number * _COUNT.size)
                return _COUNT.unpack(told.read(_COUNT.size))[0]
        except (OSError, struct.error):
            return 0

    @contextlib.contextmanager
    def writer(
        self, file: RemoteFile, run: Run, number: int, offset: int, reached: int
    ) -> Iterator[Callable[[list[bytes]], None]]:
        """A function that appends to the piece. offset: where the piece begins in the run. reached: bytes it has.

        Raises OSError, as the function does, where the disk does not take it.
        """
        path = self._path(file, run)
        with contextlib.ExitStack() as stack:
            descriptors = []
            for name in (path, f"{path}{_PROGRESS}"):
                descriptors.append(os.open(name, os.O_RDWR | os.O_CREAT, 0o600))
                stack.callback(os.close, descriptors[-1])
            data, told = descriptors
            at = reached

            def write(parts: list[bytes]) -> None:
                nonlocal at
                wanted = sum(map(len, parts))
                done = os.pwritev(data, parts, offset + at)
                if done < wanted:  # rare: in one piece then
                    rest = memoryview(b"".join(parts))[done:]
                    while rest:
                        count = os.pwrite(data, rest, offset + at + done)
                        done, rest = done + count, rest[count:]
                at += wanted
                os.pwrite(told, _COUNT.pack(at), number * _COUNT.size)

            yield write

    @contextlib.contextmanager
    def opened(self, file: RemoteFile, run: Run) -> Iterator[int]:
        """A descriptor that reads the run."""
        descriptor = os.open(self._path(file, run), os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def drop(self, file: RemoteFile, run: Run) -> None:
        """Remove the run; whoever has it mapped keeps it."""
        with contextlib.suppress(OSError):
            path = self._path(file, run)
            for name in (f"{path}{_PROGRESS}", path):
                Path(name).unlink(missing_ok=True)

    def close(self, *, keep: bool) -> None:
        """Let go of the runs; keep: they are wanted again."""
        for folder in self._private if keep else {*self._folders.values(), *self._private}:
            shutil.rmtree(folder, ignore_errors=True)
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()


def _boot() -> str:
    """What tells this start of the machine from others."""
    try:
        return _BOOT_ID.read_text().strip()[:8]
    except OSError:
        return "any"


def _remove_stale(root: Path) -> None:
    """Runs of earlier starts of the machine, and those that nobody wanted for days."""
    with contextlib.suppress(OSError):
        for folder in root.iterdir():
            old = time.time() - folder.stat().st_mtime > _STALE_S
            other = not folder.name.startswith((_boot(), "private-"))
            if old or other:
                shutil.rmtree(folder, ignore_errors=True)
