"""A checkpoint's files on the Hub: small ones fetched into huggingface_hub's cache when they are needed, weights read
by ranges, and whatever that cache already holds of this commit read from there.

One of the two places that a checkpoint's bytes come from; the other is `sfn.folders`, where the methods that both have
are documented.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, RLock
from typing import TYPE_CHECKING

from sfn.errors import Cancelled, HubError
from sfn.fingerprints import Memo, Progress, fingerprint
from sfn.folders import FolderFiles
from sfn.headers import TensorInfo
from sfn.hub import access
from sfn.hub.listing import Listing, snapshot_folder
from sfn.hub.ranges import RemoteFile, patiently, quiet
from sfn.hub.readahead import ReadAhead, read_parallel
from sfn.shards import small_names

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENGINE_SUFFIXES = (".json", ".py", ".jinja", ".txt", ".model", ".tiktoken")  # beside the weights, at top level
_SPARE_BYTES = 1 << 30  # room that a download leaves on the disk
_PARALLEL = 8


class HubFiles:
    """The files of one model at one commit. Safe to use from several threads.

    Attributes:
        listing: what there is. folder: where huggingface_hub's cache keeps this commit.
    """

    def __init__(self, listing: Listing, shards: Iterable[str]) -> None:
        self.listing = listing
        self.folder = snapshot_folder(listing.repo, listing.commit)
        self._shards = {self.folder / name: name for name in shards}
        self._remote = {
            path: RemoteFile(listing.repo, listing.commit, name, file.size, file.etag)
            for path, name in self._shards.items()
            for file in (listing.files[name],)
        }
        self._cached = FolderFiles(self.folder, {})
        self._ahead: list[ReadAhead] = []
        self._lock = RLock()

    @property
    def shards(self) -> tuple[Path, ...]:
        """The safetensors files, in order; they need not be on this machine."""
        return tuple(self._shards)

    def remote(self, file: Path) -> RemoteFile:
        """This shard on the Hub."""
        return self._remote[file]

    @property
    def fetched_bytes(self) -> int:
        """Bytes of weights that came over the network so far."""
        return sum(file.fetched_bytes for file in self._remote.values())

    # Small files

    def has(self, name: str) -> bool:
        """Whether there is such a small file."""
        return name in self.listing.files

    def at_hand(self, name: str) -> bool:
        """Whether the small file is on this machine."""
        return (self.folder / name).is_file()

    def size(self, name: str) -> int:
        """Bytes of the small file."""
        return self.listing.files[name].size

    def content_key(self, name: str) -> object:
        """The content's git id, and its SHA-256 where it has one."""
        return self.listing.files[name].blob

    def path(self, name: str) -> Path:
        """Where the small file lies now, fetched if it did not yet."""
        path = self.folder / name
        file = self.listing.files.get(name)
        if file is not None and not path.is_file():
            with self._lock:
                if not path.is_file():
                    self._download(name)
        return path

    def prepare(self, names: Iterable[str]) -> None:
        """Fetch those of these small files that there are, several at a time."""
        missing = [name for name in names if self.has(name) and not (self.folder / name).is_file()]
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="sfn-hub") as pool:
            for job in [pool.submit(self._download, name) for name in missing]:
                job.result()

    def _download(self, name: str, add: Callable[[int], None] | None = None, cancel: Event | None = None) -> None:
        from huggingface_hub import hf_hub_download

        quiet()
        repo, commit = self.listing.repo, self.listing.commit
        given = {"revision": commit, "endpoint": access.endpoint(), "token": access.token() or False}
        bar = _bar(add)
        patiently(
            lambda: hf_hub_download(repo, name, library_name="sfn", tqdm_class=bar, **given),
            repo, revision=commit, file=name, cancel=cancel,
        )  # fmt: skip

    # Identity

    @property
    def identity_files(self) -> tuple[Path, ...]:
        """Files that enter the fingerprint; they need not be on this machine."""
        return (*self.shards, *(self.folder / name for name in small_names(self.listing.files)))

    def fingerprint(self, memo: Memo, progress: Progress | None) -> str:
        """The same as of a folder with these files. The Hub tells large files' digests; small ones are fetched."""
        files = {path.relative_to(self.folder).as_posix(): path for path in self.identity_files}
        known = {name: self.listing.files[name].sha256 or memo.get(self._memo_key(name)) for name in files}
        unknown = [name for name, digest in known.items() if digest is None]
        total, done = sum(self.size(name) for name in unknown), 0
        for name in unknown:
            if progress is not None:
                progress(done, total, name)
            self.path(name)
            done += self.size(name)
        told = {files[name]: digest for name, digest in known.items() if digest is not None}
        for name in unknown:
            # One file's fingerprint is not its digest, so each is hashed by itself first.
            memo[self._memo_key(name)] = told[files[name]] = _sha256(files[name], self.listing.files[name].blob)
        if progress is not None:
            progress(total, total, "")
        return fingerprint(self.folder, files.values(), memo, None, told)

    def _memo_key(self, name: str) -> tuple[str, int, int]:
        file = self.listing.files[name]
        return f"git blob {file.blob}", file.size, 0

    def weights_known(self, memo: Memo) -> bool:
        """Whether the fingerprint can be had without reading weights."""
        return all(self.listing.files[name].sha256 for name in self._shards.values())

    # Weights

    def here(self, file: Path) -> bool:
        """Whether huggingface_hub's cache holds this shard whole."""
        with self._lock:
            if file in self._cached.shards:
                return True
            if file.is_file() and file.stat().st_size == self._remote[file].size:
                self._cached.adopt(file)
                return True
        return False

    def stored(self, info: TensorInfo) -> bool:
        """Whether the tensor's bytes lie in a file on this machine."""
        return self.here(info.file)

    def unchanged(self) -> bool:
        """Whether what is read from this machine is still the same; a commit never changes."""
        return self._cached.unchanged()

    def open(self, info: TensorInfo) -> int:
        """A descriptor of the tensor's file. Raises HubError where it is not on this machine."""
        if not self.here(info.file):
            raise HubError(f"{info.file.name} of {self.listing.repo} is not on this machine.", "file")
        return self._cached.open(info)

    def view(self, info: TensorInfo, start: int, end: int) -> tuple[object, int]:
        """Memory that holds the range, and where in it the range begins."""
        if self.here(info.file):
            return self._cached.view(info, start, end)
        for ahead in reversed(self._ahead):
            if (found := ahead.view(info.file, start, end)) is not None:
                return found
        return read_parallel(self._remote[info.file], start, end), 0

    def read(self, info: TensorInfo, start: int, end: int) -> bytearray:
        """Bytes start..end-1 of the tensor's file, in memory of their own."""
        if self.here(info.file):
            return self._cached.read(info, start, end)
        data, skipped = self.view(info, start, end)
        if isinstance(data, bytearray) and not skipped and len(data) == end - start:
            return data
        return bytearray(memoryview(data).cast("B")[skipped : skipped + end - start])  # type: ignore[arg-type]

    @contextmanager
    def read_ahead(self, ranges: Iterable[tuple[TensorInfo, int, int]], cancel: Event | None = None) -> Iterator[None]:
        """While entered, these ranges are fetched ahead, in this order; see `Checkpoint.read_ahead`."""
        wanted = [(info.file, start, end) for info, start, end in ranges if not self.here(info.file)]
        if not wanted:
            yield
            return
        with ReadAhead(self._remote, wanted, cancel) as ahead:
            self._ahead.append(ahead)
            try:
                yield
            finally:
                self._ahead.remove(ahead)

    # Everything

    def speech_folder(self) -> Path:
        """Where tokenizer, chat templates and configs lie, fetched if they did not yet."""
        self.prepare(name for name in self._engine_names() if self.folder / name not in self._shards)
        return self.folder

    def _engine_names(self) -> list[str]:
        small = [name for name in self.listing.files if "/" not in name and name.endswith(_ENGINE_SUFFIXES)]
        return list(dict.fromkeys([*small, *small_names(self.listing.files), *self._shards.values()]))

    def _missing(self) -> list[str]:
        return [name for name in self._engine_names() if not (self.folder / name).is_file()]

    @property
    def missing_bytes(self) -> int:
        """Bytes of the files that an engine loads and that are not on this machine."""
        return sum(self.size(name) for name in self._missing())

    def fetch(self, progress: Progress | None = None, cancel: Event | None = None) -> None:
        """Bring what an engine loads to `folder`; see `Checkpoint.fetch`."""
        missing = self._missing()
        total = sum(self.size(name) for name in missing)
        if not missing:
            return
        self._check_room(total)
        stop, lock, done = cancel or Event(), RLock(), [0]

        def fetch_one(name: str) -> None:
            def add(count: int) -> None:
                if stop.is_set():
                    raise Cancelled("Fetching was cancelled; files that are complete are kept.")
                with lock:
                    done[0] += count
                    if progress is not None:
                        progress(min(done[0], total), total, name)

            self._download(name, add, stop)

        with ThreadPoolExecutor(_PARALLEL // 2, thread_name_prefix="sfn-fetch") as pool:
            jobs = [pool.submit(fetch_one, name) for name in missing]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _check_room(self, needed: int) -> None:
        place = next(place for place in (self.folder, *self.folder.parents) if place.is_dir())
        free = shutil.disk_usage(place).free
        if needed + _SPARE_BYTES > free:
            raise HubError(
                f"{self.listing.repo} takes {needed / 1e9:,.1f} GB more on the disk, and {place} has {free / 1e9:,.1f} "
                "GB left. Make room there, or set HF_HUB_CACHE to a larger disk.",
                "disk",
            )


def _bar(add: Callable[[int], None] | None) -> type:
    """A progress bar that shows nothing and tells `add` what arrived."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *given: object, **named: object) -> None:
            super().__init__(*given, **{**named, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if add is not None and n:
                add(int(n))

    return Bar


def _sha256(file: Path, blob: str) -> str:
    """SHA-256 of a small file whose git id must be `blob`."""
    import hashlib

    content = file.read_bytes()
    if blob and hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() != blob:
        raise HubError(
            f"{file} is not the file that the Hub names: it was changed on this machine. Delete it and open the model "
            "again.",
            "changed",
        )
    return hashlib.sha256(content).hexdigest()
