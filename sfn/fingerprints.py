"""Content identity of files: SHA-256 of each, remembered, and one digest over all. Knows nothing of what is in them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from sfn.errors import CheckpointError

Progress = Callable[[int, int, str], None]  # (done bytes, total bytes, file name); may raise to stop the work
Memo = MutableMapping[tuple[str, int, int], str]  # (path, size in bytes, mtime in ns) -> hex digest

_CHUNK_BYTES = 1 << 20
_BLOB = re.compile(r"[0-9a-f]{64}")


def fingerprint(
    root: Path,
    files: Iterable[Path],
    memo: Memo,
    progress: Progress | None = None,
    told: Mapping[Path, str] | None = None,
) -> str:
    """SHA-256 (hex) over the sorted lines "name, tab, SHA-256 of content" of `files`; names are relative to `root`.

    A file whose path, size and mtime are in `memo` is not read again, nor is a link into a Hub cache
    (`blobs/<sha256>`), nor one whose digest is `told`, which need not exist. The others are read by up to four
    threads. Raises CheckpointError if one cannot be read or
    changes meanwhile.
    """
    files = sorted(files)
    digests = dict(told or {})
    unread: list[tuple[Path, tuple[str, int, int]]] = []
    for file in files:
        if file in digests:
            continue
        key = _key(file)
        known = _digest_of_blob(file) or memo.get(key)
        if known is None:
            unread.append((file, key))
        else:
            digests[file] = known
    meter = _Meter(sum(key[1] for _, key in unread), progress)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="sfn-hash") as pool:
        jobs = [(file, key, pool.submit(_hash_file, file, key, meter)) for file, key in unread]
        try:
            for file, key, job in jobs:
                digests[file] = memo[key] = job.result()
        except BaseException:
            meter.stopped = True  # the threads look at it once per chunk
            for _, _, job in jobs:
                job.cancel()
            raise
    lines = "".join(f"{file.relative_to(root).as_posix()}\t{digests[file]}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def known(files: Iterable[Path], memo: Memo) -> bool:
    """Whether `fingerprint` would read none of these files: each is in `memo`, or a Hub cache names it by content."""
    return all(_digest_of_blob(file) or memo.get(_key(file)) for file in files)


class _Meter:
    """Adds up the bytes that several threads have read and reports them one at a time."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done, self.stopped, self.lock = total, progress, 0, False, Lock()

    def add(self, count: int, name: str) -> None:
        with self.lock:
            self.done += count
            if self.progress is not None and not self.stopped:
                self.progress(self.done, self.total, name)


def _key(file: Path) -> tuple[str, int, int]:
    try:
        path = file.resolve()
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from error
    return str(path), status.st_size, status.st_mtime_ns


def _digest_of_blob(file: Path) -> str | None:
    """The digest that a Hub cache has put into the name of the file that `file` links to, if it is such a link.

    Large files are named by their SHA-256 (64 hex digits), small ones by their git SHA-1 (40), which is no use here.
    """
    if not file.is_symlink():
        return None
    target = file.resolve()
    return target.name if target.parent.name == "blobs" and _BLOB.fullmatch(target.name) else None


def _hash_file(file: Path, key: tuple[str, int, int], meter: _Meter) -> str:
    digest, buffer = hashlib.sha256(), bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    try:
        with open(file, "rb", buffering=0) as stream:
            while not meter.stopped and (count := stream.readinto(view)):
                digest.update(view[:count])  # lets go of the interpreter lock
                meter.add(count, file.name)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from error
    if _key(file) != key:
        raise CheckpointError(f"{file} changed while it was being read. Open the checkpoint again once it is complete.")
    return digest.hexdigest()
