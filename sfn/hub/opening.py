"""What `sfn.checkpoints` makes a checkpoint of: a model's tensors and config, from the headers of its files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sfn.errors import CheckpointError
from sfn.folders import read_json
from sfn.headers import TensorInfo, header_length, parse_header
from sfn.hub.files import HubFiles
from sfn.hub.listing import Listing, keep
from sfn.hub.ranges import RemoteFile
from sfn.shards import INDEX_NAME, gathered, shard_names, weight_map

COMPARED_FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_ENTRY_BYTES = 170  # of one tensor in a header, at most, in nearly all models
_FIRST_BYTES = 128 << 10  # asked for where nothing tells how many tensors a file has
_PARALLEL = 16


@dataclass(frozen=True, slots=True)
class Opened:
    """A model on the Hub, opened. config: {} without config.json. Its commit and name are in files.listing."""

    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, object]
    files: HubFiles


def open_repo(listing: Listing, shards: Sequence[str] | None = None) -> Opened:
    """What `listing` lists, headers and small files read, weights not. shards: the safetensors files, if known.

    Raises HubError (no access, no network), CheckpointError (no safetensors, broken files).
    """
    top = [name for name in listing.files if "/" not in name]
    small = HubFiles(listing, [])
    small.prepare([*COMPARED_FILES, INDEX_NAME])
    mapped = None
    if INDEX_NAME in top:
        mapped = weight_map(small.folder / INDEX_NAME, read_json(small.path(INDEX_NAME)).get("weight_map"))
    names = shard_names(listing.repo, top, mapped) if shards is None else shards
    files = HubFiles(listing, names)
    tensors = gathered(files.folder, _headers(files, mapped), mapped)
    return Opened(tensors, read_json(files.path("config.json")), files)


def _headers(files: HubFiles, mapped: Mapping[str, str] | None) -> list[dict[str, TensorInfo]]:
    """Every shard's tensors, in order; headers that were read before come from the listing that is kept."""
    listing = files.listing
    counts = Counter((mapped or {}).values())
    unread = [path for path in files.shards if path.name not in listing.headers]
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="sfn-headers") as pool:
        jobs = {path: pool.submit(_header, files, path, counts.get(path.name, 0)) for path in unread}
        try:
            read = {path: job.result() for path, job in jobs.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for path, (text, _) in read.items():
        listing.headers[path.name] = text
    if read and not listing.offline:
        keep(listing)
    return [
        read[path][1]
        if path in read
        else parse_header(path, listing.headers[path.name].encode(), files.remote(path).size)[0]
        for path in files.shards
    ]


def _header(files: HubFiles, path: Path, count: int) -> tuple[str, dict[str, TensorInfo]]:
    """One shard's header as text and as tensors; read once more if it makes no sense, and then refused."""
    file = files.remote(path)
    if files.here(path):
        with path.open("rb") as stream:
            raw = stream.read(header_length(path, stream.read(8), file.size))
        return raw.decode("utf-8", "replace"), parse_header(path, raw, file.size)[0]
    try:
        return _read_header(file, path, count)
    except CheckpointError as error:
        if getattr(error, "kind", None):
            raise
    return _read_header(file, path, count)


def _read_header(file: RemoteFile, path: Path, count: int) -> tuple[str, dict[str, TensorInfo]]:
    guess = min(file.size, max(4096, count * _ENTRY_BYTES) if count else _FIRST_BYTES)
    start = file.read(0, guess)
    length = header_length(path, bytes(start[:8]), file.size)
    if 8 + length > len(start):
        start += file.read(len(start), 8 + length)
    raw = bytes(start[8 : 8 + length])
    return raw.decode("utf-8", "replace"), parse_header(path, raw, file.size)[0]
