"""Pieces of files on the Hub while they are being read: on the disk, so that they outlive a process that is killed.

A piece is one file that only grows; its length says how far it came. Pieces are named by content (the file's digest)
and by this start of the machine: what a power failure may have left half written is never believed. One reading at a
time owns a content's pieces; another has a place of its own that is not kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp

from sfn.hub.ranges import RemoteFile
from sfn.places import cache_folder

_STALE_S = 3 * 24 * 3600.0  # pieces of a reading that nobody took up again
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Spool:
    """The pieces of one reading: (file, first byte, byte after the last) each."""

    def __init__(self, pieces: Sequence[tuple[RemoteFile, int, int]]) -> None:
        self._root = cache_folder() / "hub" / "spool"
        self._folders: dict[str, Path] = {}
        self._locks: list[int] = []
        self._private: list[Path] = []
        wanted: dict[str, set[str]] = {}
        for file, start, end in pieces:
            wanted.setdefault(file.etag, set()).add(_name(start, end))
        for etag, names in wanted.items():
            with contextlib.suppress(OSError):
                self._folders[etag] = self._own(etag, names)
        _remove_stale(self._root)

    def _own(self, etag: str, names: set[str]) -> Path:
        """The folder of this content's pieces, those of other readings removed; a private one if it is in use."""
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

    def _path(self, file: RemoteFile, start: int, end: int) -> Path | None:
        folder = self._folders.get(file.etag)
        return None if folder is None else folder / _name(start, end)

    def reached(self, file: RemoteFile, start: int, end: int) -> int:
        """Bytes of the piece that are here."""
        path = self._path(file, start, end)
        try:
            size = path.stat().st_size if path is not None else 0
        except OSError:
            return 0
        return size if size <= end - start else 0

    def append(self, file: RemoteFile, start: int, end: int) -> int:
        """A descriptor that appends to the piece. Raises OSError where the disk does not take it."""
        path = self._path(file, start, end)
        if path is None:
            raise OSError("no spool")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        if self.reached(file, start, end) == 0:
            flags |= os.O_TRUNC
        return os.open(path, flags, 0o600)

    @contextlib.contextmanager
    def opened(self, file: RemoteFile, start: int, end: int) -> Iterator[int]:
        """A descriptor that reads the piece."""
        descriptor = os.open(self._folders[file.etag] / _name(start, end), os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def drop(self, file: RemoteFile, start: int, end: int) -> None:
        """Remove the piece; whoever has it mapped keeps it."""
        path = self._path(file, start, end)
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def close(self, *, keep: bool) -> None:
        """Let go of the pieces; keep: they are wanted again."""
        for folder in self._private if keep else {*self._folders.values(), *self._private}:
            shutil.rmtree(folder, ignore_errors=True)
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()


def _name(start: int, end: int) -> str:
    return f"{start:x}-{end:x}"


def _boot() -> str:
    """What tells this start of the machine from others."""
    try:
        return _BOOT_ID.read_text().strip()[:8]
    except OSError:
        return "any"


def _remove_stale(root: Path) -> None:
    """Pieces of earlier starts of the machine, and those that nobody wanted for days."""
    with contextlib.suppress(OSError):
        for folder in root.iterdir():
            old = time.time() - folder.stat().st_mtime > _STALE_S
            other = not folder.name.startswith((_boot(), "private-"))
            if old or other:
                shutil.rmtree(folder, ignore_errors=True)
