"""A checkpoint: an index of its tensors (from headers only) and a reader of one tensor, or some rows of it, at a time.

Owns what a folder of safetensors must look like. Does not know what the tensors mean (`anatomy`), nor how two
checkpoints fit (`pairs`). Imports torch only to read a tensor.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from sfn.anatomy import parse
from sfn.errors import CheckpointError
from sfn.fingerprints import Memo, Progress, fingerprint, known
from sfn.headers import DTYPE_BITS, FileState, TensorInfo, read_header
from sfn.mapped_memory import map_range

if TYPE_CHECKING:
    import ctypes

    import torch

__all__ = ["Checkpoint", "TensorInfo", "open", "text_config"]

INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "tiktoken.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
CONFIG_FILES = ("config.json", "generation_config.json")

_SHARD = re.compile(r"(.+)-(\d{5,6})-of-(\d{5,6})\.safetensors")
_SNAPSHOT = re.compile(r"models--(.+)")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


def open(folder_or_repo: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """The checkpoint in a folder: headers and config are read and checked, weights are not touched.

    A folder holds one safetensors file or several, with or without `model.safetensors.index.json`; `config.json` may be
    missing, but not broken. A snapshot folder of a Hub cache carries its repo's name and commit.

    Raises CheckpointError: no such folder, no safetensors, pickled weights only, or a file that breaks the format.
    """
    folder = Path(folder_or_repo).expanduser()
    _check_folder(folder)
    label, found_revision = _label(folder)
    if revision is not None and revision != found_revision:
        commit = f" at commit {found_revision}" if found_revision else ""
        raise CheckpointError(
            f"{folder} is a folder on this machine{commit}; it has no revision {revision!r}. "
            f"Leave the revision out, or give the folder of that revision."
        )
    tensors, states = _index(folder)
    return Checkpoint(label, folder, found_revision, tensors, _read_config(folder), states)


def text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """The part of a config that describes the language model: nested in multimodal ones, else all of it."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(nested := config.get(key), Mapping):
            return nested
    return config


class Checkpoint:
    """An opened checkpoint. Safe to use from several threads; nothing is held open between reads.

    Attributes:
        label: short name for people: the folder's, or the repo's for a Hub snapshot. revision: commit of such.
        tensors: name -> TensorInfo, in the order of files and bytes. config: content of config.json, {} without one.
    """

    def __init__(
        self,
        label: str,
        folder: Path,
        revision: str | None,
        tensors: Mapping[str, TensorInfo],
        config: Mapping[str, object],
        states: Mapping[Path, FileState],
    ) -> None:
        self.label, self.folder, self.revision = label, folder, revision
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(tensors))
        self.config: Mapping[str, object] = MappingProxyType(dict(config))
        self._states = dict(states)
        self._closed = False

    def __repr__(self) -> str:
        return f"<Checkpoint {self.label}: {len(self.tensors)} tensors, {self.parameters:,} parameters>"

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
        return tuple(self._states)

    @property
    def identity_files(self) -> tuple[Path, ...]:
        """Files that enter the fingerprint: weights, config, generation config, tokenizer and chat templates."""
        return (*self.shards, *small_files(self.folder))

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
            found = fingerprint(self.folder, self.identity_files, memo, progress)
            self.__dict__["fingerprint"] = found  # fills the cached property
        return found

    def known_fingerprint(self, memo: Memo) -> str | None:
        """The fingerprint if it can be had without reading weights: known already, or from `memo`; else None."""
        if "fingerprint" in self.__dict__ or known(self.shards, memo):
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
        import torch

        if self._closed:
            raise CheckpointError(f"{self.folder} was closed; open it again to read from it.")
        if info.dtype not in _TORCH_NAMES:
            raise CheckpointError(
                f"{info.file}, tensor {info.name!r}: {info.dtype} cannot be read into a torch tensor."
            )
        dtype = getattr(torch, _TORCH_NAMES[info.dtype])
        if start == end:
            return torch.empty(shape, dtype=dtype)
        # A copy also where the bytes are not aligned to their dtype, as in a file that mixes widths carelessly.
        copy = copy or start % dtype.itemsize != 0
        data, skipped = (self.read_bytes(info, start, end), 0) if copy else self._map(info, start, end)
        return torch.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=skipped).reshape(shape)

    def open_file(self, info: TensorInfo) -> int:
        """A descriptor, for the caller to close, of the tensor's file; raises CheckpointError if that changed by now.

        `info` may stand under another name than its own, as a lent head does: its file and byte range count.
        """
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

    def _map(self, info: TensorInfo, start: int, end: int) -> tuple[ctypes.Array[ctypes.c_char], int]:
        """Memory over the pages around the range, living as long as the tensor over it, and where the range begins."""
        descriptor = self.open_file(info)
        try:
            return map_range(descriptor, start, end)
        except OSError as error:
            where = f"{info.file}, tensor {info.name!r}"
            raise CheckpointError(f"{where}: cannot be mapped into memory: {error.strerror}.") from error
        finally:
            os.close(descriptor)

    def read_bytes(self, info: TensorInfo, start: int, end: int) -> bytearray:
        """Bytes start..end-1 of the tensor's file, in memory of their own."""
        data = bytearray(end - start)
        view, done = memoryview(data), 0
        descriptor = self.open_file(info)
        try:
            while done < len(data) and (count := os.preadv(descriptor, [view[done:]], start + done)):
                done += count
        except OSError as error:
            raise CheckpointError(
                f"{info.file}, tensor {info.name!r}: cannot be read: {error.strerror or error}."
            ) from error
        finally:
            os.close(descriptor)
        if done < len(data):
            raise CheckpointError(f"{info.file}, tensor {info.name!r}: the file was cut while it was being read.")
        return data

    def unchanged(self) -> bool:
        """Whether the weight files are still those whose headers were read; asks the file system only."""
        try:
            return all(FileState.of(file.stat()) == state for file, state in self._states.items())
        except OSError:
            return False

    def close(self) -> None:
        """Refuse further reads. Tensors read before stay good; may be called twice."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def small_files(folder: Path, *, names: tuple[str, ...] = (*CONFIG_FILES, *TOKENIZER_FILES)) -> tuple[Path, ...]:
    """Config, tokenizer and chat template files that `folder` has; further chat templates and *.tiktoken among them."""
    found = [folder / name for name in names if (folder / name).is_file()]
    if set(TOKENIZER_FILES) <= set(names):
        found += sorted(folder.glob("additional_chat_templates/*.jinja")) + sorted(folder.glob("*.tiktoken"))
    return tuple(found)


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


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file. Give the folder that holds it, with its config and tokenizer.")
    hint = ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        hint = f" For a model on the Hub, download it first: hf download {folder} --local-dir models/{folder.name}"
    raise CheckpointError(
        f"There is no folder {folder}.{hint} Give a folder on this machine that holds .safetensors files."
    )


def _label(folder: Path) -> tuple[str, str | None]:
    """Name and commit: `models--org--name/snapshots/<commit>` of a Hub cache gives ("org/name", commit)."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots" and (match := _SNAPSHOT.fullmatch(folder.parent.parent.name)):
        return match[1].replace("--", "/"), folder.name
    return folder.resolve().name or str(folder), None


def _read_config(folder: Path) -> dict[str, object]:
    return read_json(folder / "config.json")


def _index(folder: Path) -> tuple[dict[str, TensorInfo], dict[Path, FileState]]:
    try:
        weight_map = _weight_map(folder)
        files = _shard_files(folder, weight_map)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed: {error.strerror or error}.") from error
    tensors: dict[str, TensorInfo] = {}
    states: dict[Path, FileState] = {}
    for file in files:
        found, _, states[file] = read_header(file)
        for name, info in found.items():
            if name in tensors:
                raise CheckpointError(
                    f"{folder}: tensor {name!r} stands in {tensors[name].file.name} and again in {file.name}. Remove "
                    "the file that does not belong to this checkpoint."
                )
            tensors[name] = info
    for name, shard in (weight_map or {}).items():
        if name not in tensors or tensors[name].file.name != shard:
            raise CheckpointError(
                f"{folder / INDEX_NAME}: tensor {name!r} should be in {shard}, which does not hold it. The index and "
                "the shards are of different versions: download the checkpoint again."
            )
    if not tensors:
        raise CheckpointError(f"{folder}: its safetensors files hold no tensor.")
    return tensors, states


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Tensor -> shard of the index file, None without one."""
    file = folder / INDEX_NAME
    if not file.is_file():
        return None
    content = read_json(file).get("weight_map")
    if not isinstance(content, dict) or not all(isinstance(shard, str) for shard in content.values()) or not content:
        raise CheckpointError(f"{file} has no `weight_map` from tensor to shard. Download it again.")
    for name, shard in content.items():
        if not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise CheckpointError(f"{file}: tensor {name!r} should be in {shard!r}, which is no safetensors file here.")
    return content


def _shard_files(folder: Path, weight_map: dict[str, str] | None) -> list[Path]:
    present = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if weight_map is not None:
        shards = sorted(set(weight_map.values()))
        if (folder / "model.safetensors") in present and "model.safetensors" not in shards:
            raise CheckpointError(
                f"{folder} holds model.safetensors and also an index of other shards; programs differ in which they "
                "take. Remove the one that does not belong here."
            )
        for shard in shards:
            if not (folder / shard).is_file():
                raise CheckpointError(f"{folder} lacks the shard {shard} that its index names. Download it again.")
        return [folder / shard for shard in shards]
    own = [file for file in present if not file.name.startswith(("consolidated", "adapter_"))]
    if not own:
        own = [file for file in present if not file.name.startswith("adapter_")]
    if not own:
        raise CheckpointError(_why_nothing(folder, present))
    _check_complete(folder, own)
    return own


def _check_complete(folder: Path, files: list[Path]) -> None:
    """Without an index, the numbers in the shards' names tell whether one is missing."""
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            stem, number, total = match.groups()
            for k in range(1, min(int(total), 10_000) + 1):
                shard = f"{stem}-{k:0{len(number)}d}-of-{total}.safetensors"
                if folder / shard not in files:
                    raise CheckpointError(f"{folder} lacks the shard {shard}. Download it again.")


def _why_nothing(folder: Path, present: list[Path]) -> str:
    if present:
        return (
            f"{folder} holds only an adapter ({present[0].name}), no model. Merge the adapter into its base model and "
            "save the result as safetensors."
        )
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)
    if pickled:
        return (
            f"{folder} holds its weights as {pickled[0]}, in Python's pickle format, which can run any code when it is "
            "loaded; SfN does not open it. Take a revision with safetensors, or convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )
    return f"{folder} holds no safetensors file. Give the folder that has the model's *.safetensors and config.json."
