"""A checkpoint: an index of its tensors (from headers only) and a reader of one tensor, or some rows of it, at a time.

Where the bytes come from is its source's: `folders` on this machine, `hub` by ranges. Does not know what the tensors
mean (`anatomy`), nor how two checkpoints fit (`pairs`). Imports torch only to read a tensor.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Self, Union

from sfn import adapters, hub, scales
from sfn.anatomy import parse
from sfn.errors import CheckpointError
from sfn.fingerprints import Memo, Progress
from sfn.folders import Files, FolderFiles, listed, read_folder, read_json
from sfn.headers import DTYPE_BITS, TensorInfo
from sfn.shards import CONFIG_FILES, TOKENIZER_FILES, small_names
from sfn.tensors import over, torch_dtype

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "Files", "TensorInfo", "open", "read_json", "text_config"]

_SNAPSHOT = re.compile(r"models--(.+)")


def open(
    folder_or_repo: str | os.PathLike[str],
    revision: str | None = None,
    *,
    base: Base = None,
) -> Checkpoint:
    """The checkpoint in a folder, or of a model on the Hub: headers and config are read and checked, weights are not.

    The Hub is meant by `org/name`, `org/name@revision` or a page's URL, where there is no such folder. Its weights are
    read by ranges when they are asked for.

    A folder holds one safetensors file or several, with or without `model.safetensors.index.json`; `config.json` may be
    missing, but not broken. A snapshot folder of a Hub cache carries its repo's name and commit. Float8 codes with
    scales read as values (`sfn.scales`). An adapter (LoRA) reads as `base` (or what it returns, when needed) with it
    applied (`sfn.adapters`); without `base`, as the model that the adapter names.

    Raises CheckpointError: no such folder, no safetensors, pickled weights only, or a file that breaks the format;
    HubError: no such model, no access, no network.
    """
    folder = Path(folder_or_repo).expanduser()
    if isinstance(folder_or_repo, str) and not folder.exists() and (meant := hub.address(folder_or_repo)) is not None:
        return _of_hub(hub.find(meant.repo, revision or meant.revision), base)
    _check_folder(folder)
    label, found_revision = _label(folder)
    if revision is not None and revision != found_revision:
        commit = f" at commit {found_revision}" if found_revision else ""
        raise CheckpointError(
            f"{folder} is a folder on this machine{commit}; it has no revision {revision!r}. "
            f"Leave the revision out, or give the folder of that revision."
        )
    if adapters.is_adapter(listed(folder)):
        tensors, files = read_folder(folder, [adapters.WEIGHTS_NAME])
        return _adapter(label, found_revision, files, tensors, base, ())
    tensors, files = read_folder(folder)
    return _as_values(label, found_revision, files, tensors, read_json(folder / "config.json"), ())


def _of_hub(listing: hub.Listing, base: Base) -> Checkpoint:
    if adapters.is_adapter(name for name in listing.files if "/" not in name):
        opened = hub.open_repo(listing, [adapters.WEIGHTS_NAME])
        return _adapter(listing.repo, listing.commit, opened.files, opened.tensors, base, listing.notes)
    opened = hub.open_repo(listing)
    return _as_values(listing.repo, listing.commit, opened.files, opened.tensors, opened.config, listing.notes)


def _as_values(
    label: str,
    revision: str | None,
    files: FolderFiles | hub.HubFiles,
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, object],
    notes: tuple[Note, ...],
) -> Checkpoint:
    values, shown, plain, note = scales.decoded(files, tensors, config)
    more = (("format", note),) if note else ()
    return Checkpoint(label, files.folder, revision, shown, plain, values, (*notes, *more))


def _adapter(
    label: str,
    revision: str | None,
    files: FolderFiles | hub.HubFiles,
    factors: Mapping[str, TensorInfo],
    base: Base,
    notes: tuple[Note, ...],
) -> Checkpoint:
    config = read_json(files.path(adapters.CONFIG_NAME))
    adapters.check(label, config)
    named = str(config.get("base_model_name_or_path") or "")
    if callable(base):
        base = base()
    if base is None:
        try:
            base = open(named)
        except CheckpointError as error:
            raise CheckpointError(
                f"{label} is an adapter, and its base {named or '(not named)'} cannot be opened: {error} Choose the "
                "base as A."
            ) from error
    shown, tensors = adapters.adapted(label, config, files, factors, base.files, base.tensors)
    note = f"{label} is an adapter: it is shown as {base.label} with the adapter applied, in float32."
    if named and named not in (base.label, str(base.folder)) and Path(named).name != base.label:
        note += f" It was trained on {named}."
    return Checkpoint(label, files.folder, revision, tensors, base.config, shown, (*notes, ("adapter", note)))


def text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """The part of a config that describes the language model: nested in multimodal ones, else all of it."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(nested := config.get(key), Mapping):
            return nested
    return config


Note = tuple[str, str]  # topic, sentence
Base = Union["Checkpoint", "Callable[[], Checkpoint]", None]


class Checkpoint:
    """An opened checkpoint. Safe to use from several threads; nothing is held open between reads.

    Attributes:
        label: short name for people: the folder's, or the repo's for a Hub snapshot. revision: commit of such.
        tensors: name -> TensorInfo, in the order of files and bytes. config: content of config.json, {} without one.
        folder: where its files lie; of a model on the Hub, where those that were fetched lie, the weights not among
            them. files: where its bytes come from. notes: (topic, sentence) that a viewer should read.
    """

    def __init__(
        self,
        label: str,
        folder: Path,
        revision: str | None,
        tensors: Mapping[str, TensorInfo],
        config: Mapping[str, object],
        files: Files,
        notes: Iterable[Note] = (),
    ) -> None:
        self.label, self.folder, self.revision = label, folder, revision
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(tensors))
        self.config: Mapping[str, object] = MappingProxyType(dict(config))
        self.files = files
        self.notes = tuple(notes)
        self._closed = False

    def __repr__(self) -> str:
        return f"<Checkpoint {self.label}: {len(self.tensors)} tensors, {self.parameters:,} parameters>"

    @property
    def form(self) -> Literal["stored", "decoded", "adapted"]:
        """Whether tensors read as they are stored, some from 8-bit codes as values, or a base with an adapter."""
        forms = {scales.ScaledFiles: "decoded", adapters.AdaptedFiles: "adapted"}
        return forms.get(type(self.files), "stored")  # type: ignore[return-value]

    @cached_property
    def parameters(self) -> int:
        """Number of stored elements; a tied head is not stored and not counted."""
        return sum(info.numel for info in self.tensors.values())

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.size_bytes for info in self.tensors.values())

    @cached_property
    def embedding_name(self) -> str | None:
        """Name of the token embedding's weight, None if there is none."""
        return self._name_of_role("embed_tokens")

    @cached_property
    def head_name(self) -> str | None:
        """Name of the output head's stored weight, None if there is none (as in a tied checkpoint)."""
        return self._name_of_role("lm_head")

    def _name_of_role(self, role: str) -> str | None:
        parts = (parse(name) for name in self.tensors)
        found = [part.name for part in parts if part.role == role and part.parameter == "weight" and part.layer is None]
        return min(found, key=len, default=None)  # towers and draft heads nest deeper than the model's own

    @cached_property
    def tied(self) -> bool:
        """Whether the embedding serves as output head: none is stored, and the config does not deny it.

        A head that is stored counts, whatever the config says: transformers 5 uses it too when the two differ.
        """
        if self.head_name is not None or self.embedding_name is None:
            return False
        flags = [part.get("tie_word_embeddings") for part in (text_config(self.config), self.config)]
        given = [bool(flag) for flag in flags if flag is not None]
        return any(given) or not given

    @property
    def shards(self) -> tuple[Path, ...]:
        """The safetensors files, in order."""
        return self.files.shards

    @property
    def identity_files(self) -> tuple[Path, ...]:
        """Files that enter the fingerprint: weights, config, generation config, tokenizer and chat templates."""
        return self.files.identity_files

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content of `identity_files` and their names; reads every byte once, on first use."""
        return self.fingerprint_with({})

    def fingerprint_with(self, memo: Memo, progress: Progress | None = None) -> str:
        """The same as `fingerprint`, with the files' hashes looked up in and added to `memo`.

        progress(done_bytes, total_bytes, file name) counts what must be read; it may raise (Cancelled) to stop.
        """
        found = self.__dict__.get("fingerprint")
        if found is None:
            found = self.files.fingerprint(memo, progress)
            self.__dict__["fingerprint"] = found  # fills the cached property
        return found

    def known_fingerprint(self, memo: Memo) -> str | None:
        """The fingerprint if it can be had without reading weights: known already, or from `memo`; else None."""
        if "fingerprint" in self.__dict__ or self.files.weights_known(memo):
            return self.fingerprint_with(memo)
        return None

    def info(self, name: str) -> TensorInfo:
        """The tensor's entry in the index; raises CheckpointError for a name that is not there."""
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.folder} holds no tensor {name!r}.") from None

    def read(self, name: str, *, copy: bool = False) -> torch.Tensor:
        """One tensor on the CPU in its stored dtype.

        Memory mapped, not copied: pages are read when touched, writing into the tensor changes neither the file nor
        other reads, and the tensor stays good after `close`. If the file is cut while a mapped tensor is in use, the
        system kills the process (SIGBUS); `copy=True` reads into memory of its own and can only raise. A file that was
        replaced or cut since the checkpoint was opened raises CheckpointError.
        """
        info = self.info(name)
        return self._read_range(info, info.shape, info.start, info.end, copy)

    def read_rows(self, name: str, start: int, stop: int, *, copy: bool = False) -> torch.Tensor:
        """Rows start..stop-1 along the first dimension, as `read` would give them; a scalar counts as one row."""
        info = self.info(name)
        rows, *rest = info.shape or (1,)
        if not 0 <= start <= stop <= rows:
            raise CheckpointError(f"{info.file}, tensor {name!r}: rows {start} to {stop} asked for, it has {rows}.")
        bits = math.prod(rest) * DTYPE_BITS[info.dtype]
        first, last = info.start + start * bits // 8, info.start + stop * bits // 8
        return self._read_range(info, (stop - start, *rest), first, last, copy)

    def _read_range(self, info: TensorInfo, shape: tuple[int, ...], start: int, end: int, copy: bool) -> torch.Tensor:
        if self._closed:
            raise CheckpointError(f"{self.folder} was closed; open it again to read from it.")
        dtype = torch_dtype(info.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{info.file}, tensor {info.name!r}: {info.dtype} cannot be read into a torch tensor."
            )
        if start == end:
            return over(b"", 0, dtype, shape)
        # A copy also where the bytes are not aligned to their dtype, as in a file that mixes widths carelessly.
        copy = copy or start % dtype.itemsize != 0
        data, skipped = (self.files.read(info, start, end), 0) if copy else self.files.view(info, start, end)
        return over(data, skipped, dtype, shape)

    def read_bytes(self, info: TensorInfo, start: int, end: int) -> bytearray:
        """Bytes start..end-1 of the tensor's file, in memory of their own."""
        return self.files.read(info, start, end)

    def stored(self, info: TensorInfo) -> bool:
        """Whether the tensor's bytes lie just so in a file on this machine, for `open_file` to give."""
        return self.files.stored(info)

    def open_file(self, info: TensorInfo) -> int:
        """A descriptor, for the caller to close, of the tensor's file; raises CheckpointError if that changed by now.

        `info` may stand under another name than its own, as a lent head does: its file and byte range count. Only for
        what is `stored`.
        """
        return self.files.open(info)

    def read_ahead(
        self, ranges: Iterable[tuple[TensorInfo, int, int]], cancel: Event | None = None
    ) -> AbstractContextManager[None]:
        """While entered, these byte ranges are fetched ahead, in this order, where they must come over a network.

        A read that is not among them, or comes out of order, still works. Set `cancel` to end waiting reads with
        Cancelled.
        """
        return self.files.read_ahead(ranges, cancel)

    def unchanged(self) -> bool:
        """Whether the weight files are still those whose headers were read; asks the file system only."""
        return self.files.unchanged()

    def has_file(self, name: str) -> bool:
        """Whether the checkpoint comes with this small file (config, tokenizer, chat template)."""
        return self.files.has(name)

    def file(self, name: str) -> Path:
        """The small file's path on this machine, fetched if it must be; there may be no such file, see `has_file`."""
        return self.files.path(name)

    def speech_folder(self) -> Path:
        """The folder that holds tokenizer, chat templates and configs, fetched if they must be.

        That of the weights, but for an adapter, which often has its base's.
        """
        return self.files.speech_folder()

    @property
    def missing_bytes(self) -> int:
        """Bytes of the files that an engine loads and that are not on this machine yet; 0 for a folder."""
        return self.files.missing_bytes

    def fetch(self, progress: Progress | None = None, cancel: Event | None = None) -> None:
        """Bring all files to `folder`, as an engine needs them; nothing to do for a folder.

        progress(done_bytes, total_bytes, file name). What was fetched before a cancel or a failure is kept. Raises
        HubError (no room, no access, no network), Cancelled.
        """
        self.files.fetch(progress, cancel)

    def close(self) -> None:
        """Refuse further reads. Tensors read before stay good; may be called twice."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def small_files(folder: Path, *, names: tuple[str, ...] = (*CONFIG_FILES, *TOKENIZER_FILES)) -> tuple[Path, ...]:
    """Config, tokenizer and chat template files that `folder` has; further chat templates and *.tiktoken among them."""
    return tuple(folder / name for name in small_names(listed(folder), names))


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file. Give the folder that holds it, with its config and tokenizer.")
    raise CheckpointError(
        f"There is no folder {folder}. Give a folder on this machine that holds .safetensors files, or a model on the "
        "Hub as organisation/name."
    )


def _label(folder: Path) -> tuple[str, str | None]:
    """Name and commit: `models--org--name/snapshots/<commit>` of a Hub cache gives ("org/name", commit)."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots" and (match := _SNAPSHOT.fullmatch(folder.parent.parent.name)):
        return match[1].replace("--", "/"), folder.name
    return folder.resolve().name or str(folder), None
