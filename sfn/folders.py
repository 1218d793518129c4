"""A checkpoint's files in a folder on this machine: their headers, their bytes, and that they are still the same.

One of the two places that a checkpoint's bytes come from; the other is `sfn.hub.files`. Knows nothing of dtypes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event
from typing import Protocol

from sfn.errors import CheckpointError
from sfn.fingerprints import Memo, Progress, fingerprint, known
from sfn.headers import FileState, TensorInfo, read_header
from sfn.mapped_memory import map_range
from sfn.shards import INDEX_NAME, gathered, shard_names, small_names, weight_map


class Files(Protocol):
    """Where a checkpoint's bytes come from; `FolderFiles` documents each of these."""

    @property
    def shards(self) -> tuple[Path, ...]: ...
    @property
    def identity_files(self) -> tuple[Path, ...]: ...
    @property
    def missing_bytes(self) -> int: ...
    def has(self, name: str) -> bool: ...
    def path(self, name: str) -> Path: ...
    def at_hand(self, name: str) -> bool: ...
    def size(self, name: str) -> int: ...
    def content_key(self, name: str) -> object: ...
    def fingerprint(self, memo: Memo, progress: Progress | None) -> str: ...
    def weights_known(self, memo: Memo) -> bool: ...
    def stored(self, info: TensorInfo) -> bool: ...
    def unchanged(self) -> bool: ...
    def open(self, info: TensorInfo) -> int: ...
    def view(self, info: TensorInfo, start: int, end: int) -> tuple[object, int]: ...
    def read(self, info: TensorInfo, start: int, end: int) -> bytearray: ...
    def read_ahead(
        self, ranges: Iterable[tuple[TensorInfo, int, int]], cancel: Event | None
    ) -> AbstractContextManager[None]: ...
    def speech_folder(self) -> Path: ...
    def fetch(self, progress: Progress | None = None, cancel: Event | None = None) -> None: ...


class FolderFiles:
    """The files of one folder. Nothing is held open between reads.

    Attributes:
        folder: where they are. shards: the safetensors files, in order.
    """

    def __init__(self, folder: Path, states: Mapping[Path, FileState]) -> None:
        self.folder = folder
        self._states = dict(states)

    def adopt(self, file: Path) -> None:
        """Count `file` among the shards as it is now."""
        self._states[file] = FileState.of(file.stat())

    @property
    def shards(self) -> tuple[Path, ...]:
        """The safetensors files, in order."""
        return tuple(self._states)

    def has(self, name: str) -> bool:
        """Whether there is such a small file."""
        return (self.folder / name).is_file()

    def path(self, name: str) -> Path:
        """Where the small file lies, if there is one."""
        return self.folder / name

    def content_key(self, name: str) -> object:
        """Equal for files of equal content, as far as that can be told without reading; None: cannot be told."""
        return None

    def at_hand(self, name: str) -> bool:
        """Whether the small file can be read without fetching it."""
        return self.has(name)

    def size(self, name: str) -> int:
        """Bytes of the small file."""
        return (self.folder / name).stat().st_size

    @property
    def identity_files(self) -> tuple[Path, ...]:
        """Files that enter the fingerprint."""
        return (*self.shards, *(self.folder / name for name in small_names(listed(self.folder))))

    def fingerprint(self, memo: Memo, progress: Progress | None) -> str:
        """See `Checkpoint.fingerprint_with`."""
        return fingerprint(self.folder, self.identity_files, memo, progress)

    def weights_known(self, memo: Memo) -> bool:
        """Whether the fingerprint can be had without reading weights."""
        return known(self.shards, memo)

    def stored(self, info: TensorInfo) -> bool:
        """Whether the tensor's bytes lie just so in a file on this machine."""
        return True

    @property
    def missing_bytes(self) -> int:
        """Bytes of the weight files that would have to be fetched before an engine can load them."""
        return 0

    def speech_folder(self) -> Path:
        """Where tokenizer, chat templates and configs lie."""
        return self.folder

    def fetch(self, progress: Progress | None = None, cancel: Event | None = None) -> None:
        """Bring every file to this machine: they are here."""

    def unchanged(self) -> bool:
        """Whether the weight files are still those whose headers were read; asks the file system only."""
        try:
            return all(FileState.of(file.stat()) == state for file, state in self._states.items())
        except OSError:
            return False

    def open(self, info: TensorInfo) -> int:
        """A descriptor of the tensor's file; raises CheckpointError if it is another one by now."""
        try:
            descriptor = os.open(info.file, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(
                f"{info.file}, tensor {info.name!r}: cannot be read: {error.strerror or error}."
            ) from error
        if FileState.of(os.fstat(descriptor)) != self._states[info.file]:
            os.close(descriptor)
            raise CheckpointError(
                f"{info.file}, tensor {info.name!r}: the file changed since the checkpoint was opened. Open it again."
            )
        return descriptor

    def view(self, info: TensorInfo, start: int, end: int) -> tuple[object, int]:
        """Memory over the pages around the range, living as long as the tensor over it, and where the range begins."""
        descriptor = self.open(info)
        try:
            return map_range(descriptor, start, end)
        except OSError as error:
            where = f"{info.file}, tensor {info.name!r}"
            raise CheckpointError(f"{where}: cannot be mapped into memory: {error.strerror}.") from error
        finally:
            os.close(descriptor)

    def read(self, info: TensorInfo, start: int, end: int) -> bytearray:
        """Bytes start..end-1 of the tensor's file, in memory of their own."""
        data = bytearray(end - start)
        descriptor = self.open(info)
        try:
            fill(memoryview(data), info, descriptor, start)
        finally:
            os.close(descriptor)
        return data

    def read_ahead(
        self, ranges: Iterable[tuple[TensorInfo, int, int]], cancel: Event | None
    ) -> AbstractContextManager[None]:
        """Nothing to fetch: the system reads ahead by itself."""
        return contextlib.nullcontext()


def fill(memory: memoryview, info: TensorInfo, descriptor: int, start: int) -> None:
    """Fill `memory` from byte `start` of the tensor's open file on; raises CheckpointError where that ends before."""
    done = 0
    try:
        while done < len(memory) and (count := os.preadv(descriptor, [memory[done:]], start + done)):
            done += count
    except OSError as error:
        raise CheckpointError(
            f"{info.file}, tensor {info.name!r}: cannot be read: {error.strerror or error}."
        ) from error
    if done < len(memory):
        raise CheckpointError(f"{info.file}, tensor {info.name!r}: the file was cut while it was being read.")


def read_folder(folder: Path, shards: Iterable[str] | None = None) -> tuple[dict[str, TensorInfo], FolderFiles]:
    """Tensors by name and the files of a folder; headers are read, weights are not.

    shards: the safetensors files, if known. Raises CheckpointError.
    """
    try:
        present = listed(folder)
        mapped = None
        if INDEX_NAME in present:
            mapped = weight_map(folder / INDEX_NAME, read_json(folder / INDEX_NAME).get("weight_map"))
        top = [name for name in present if "/" not in name]
        names = shard_names(folder, top, mapped) if shards is None else shards
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed: {error.strerror or error}.") from error
    headers, states = [], {}
    for name in names:
        found, _, states[folder / name] = read_header(folder / name)
        headers.append(found)
    return gathered(folder, headers, mapped), FolderFiles(folder, states)


def listed(folder: Path) -> set[str]:
    """Names of the files in `folder`, and of the chat templates in their own folder below it."""
    names = {file.name for file in folder.iterdir() if file.is_file()}
    return names | {f"{file.parent.name}/{file.name}" for file in folder.glob("additional_chat_templates/*.jinja")}


def read_json(file: Path) -> dict[str, object]:
    """A JSON object from `file`, {} if there is no such file; raises CheckpointError if it is broken."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}. Download or copy it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} holds a JSON {type(content).__name__}, not an object. Download or copy it again."
        )
    return content
