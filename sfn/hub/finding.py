"""Models found: on the Hub by words of their names, as what was fine-tuned from another, and in huggingface_hub's cache
on this machine. Reads no file of a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfn.errors import CheckpointError
from sfn.hub import access
from sfn.hub.files import HubFiles
from sfn.hub.listing import Listing
from sfn.hub.ranges import patiently
from sfn.shards import shard_names

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_TIMEOUT_S = 10.0
_USABLE = ("text-generation", "safetensors")
_MOST_CHILDREN = 60  # asked for, of which the likeliest are offered
_REASONING = re.compile(r"(^|[^a-z])(r1|s1|o1|qwq|reason\w*|think\w*|distill\w*|cot|math)([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """A model that the Hub offers. downloads: in the last 30 days; parameters: None where the Hub does not tell."""

    repo: str
    downloads: int
    gated: bool
    parameters: int | None = None


@dataclass(frozen=True, slots=True)
class Here:
    """A model in huggingface_hub's cache with weights. commit: the newest there; size_bytes: of that commit's files."""

    repo: str
    commit: str
    branches: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Weights:
    """What a listing tells of a model's weights: bytes of all its safetensors, and of what is not on this machine."""

    size_bytes: int
    missing_bytes: int


def search(words: str, most: int = 8) -> tuple[Found, ...]:
    """Models with `words` in their names that generate text and come as safetensors, the most downloaded first.

    Raises HubError.
    """
    return _listed(words, most, search=words, filter=list(_USABLE))


def children(repo: str, most: int = 4) -> tuple[Found, ...]:
    """Models whose cards say that they were fine-tuned from `repo`: first those whose names speak of reasoning, then
    by downloads. Raises HubError.
    """
    found = _listed(repo, _MOST_CHILDREN, filter=[f"base_model:finetune:{repo}", *_USABLE])
    return tuple(sorted(found, key=lambda one: not _REASONING.search(one.repo.partition("/")[2])))[:most]


def _listed(what: str, most: int, **criteria: object) -> tuple[Found, ...]:
    """One page of the Hub's list. `HfApi.list_models` asks again for half a minute where there is no network; who types
    is told at once."""
    from huggingface_hub.hf_api import ModelInfo
    from huggingface_hub.utils import get_session, hf_raise_for_status

    if access.offline():
        raise access.unreached(what, "offline")
    wanted = {"sort": "downloads", "limit": most, "expand": ["downloads", "gated", "safetensors"], **criteria}

    def ask() -> list[ModelInfo]:
        url, headers = f"{access.endpoint()}/api/models", access.headers()
        answer = get_session().get(url, params=wanted, headers=headers, timeout=_TIMEOUT_S)
        hf_raise_for_status(answer)
        return [ModelInfo(**item) for item in answer.json()]

    return tuple(_found(info) for info in patiently(ask, what))


def _found(info: ModelInfo) -> Found:
    parameters = info.safetensors.total if info.safetensors else None
    return Found(info.id, info.downloads or 0, bool(info.gated), parameters)


def on_this_machine() -> tuple[Here, ...]:
    """Models of huggingface_hub's cache that have weights there, the one used last first. May take a second."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError, ValueError):  # none yet; or a cache that huggingface_hub cannot make sense of
        return ()
    found = []
    for repo in sorted(repos, key=lambda repo: -(repo.last_modified or 0)):
        whole = [
            revision
            for revision in repo.revisions
            if any(file.file_name.endswith(".safetensors") for file in revision.files)
        ]
        if repo.repo_type == "model" and whole:
            newest = max(whole, key=lambda revision: revision.last_modified)
            found.append(Here(repo.repo_id, newest.commit_hash, tuple(sorted(newest.refs)), newest.size_on_disk))
    return tuple(found)


def weights(listing: Listing) -> Weights:
    """How large the model is, and how much of it would have to be fetched. Raises CheckpointError: no safetensors."""
    names = shards_of(listing)
    size = sum(listing.files[name].size for name in names)
    return Weights(size, HubFiles(listing, names).missing_bytes)


def shards_of(listing: Listing) -> Sequence[str]:
    """Names of the model's safetensors files, from the listing alone. Raises CheckpointError: there are none."""
    try:
        return shard_names(listing.repo, [name for name in listing.files if "/" not in name], None)
    except CheckpointError:
        if "adapter_model.safetensors" in listing.files:
            return ["adapter_model.safetensors"]
        raise
