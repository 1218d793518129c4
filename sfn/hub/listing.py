"""What a model on the Hub consists of, at the commit that a name stands for now: file names, sizes and digests.

Listings and headers of a commit never change and are kept on this machine (`cache/hub`), so that a model that was seen
once opens without the network; so is, for each branch, which commits it was seen at. Weights are never kept here.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from sfn.errors import HubError
from sfn.hub import access
from sfn.hub.ranges import patiently
from sfn.places import cache_folder

if TYPE_CHECKING:
    from huggingface_hub.hf_api import HfApi, RepoSibling

DEFAULT_BRANCH = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ASK_TIMEOUT_S = 15.0
_FORMAT = 1  # of the kept listings; others are ignored
_BRANCHES_NAMED = 8


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a commit. blob: its git id. sha256: of its content; None for small files: their git id tells."""

    size: int
    blob: str
    sha256: str | None = None

    @property
    def etag(self) -> str:
        """What the Hub calls this content."""
        return self.sha256 or self.blob


@dataclass(frozen=True, slots=True)
class Listing:
    """A model at one commit.

    Attributes:
        repo: its name now. revision: what was asked for. files: name -> HubFile, subfolders included.
        gated: whether a licence must be accepted. licence: as the model card names it, "" if it does not.
        base_models: what the model card says it was made from. notes: (topic, sentence) that a viewer should read.
        offline: whether the Hub could not be asked, so that this is what the revision was when last seen.
    """

    repo: str
    revision: str
    commit: str
    files: Mapping[str, HubFile]
    gated: bool = False
    licence: str = ""
    base_models: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    offline: bool = False
    headers: dict[str, str] = field(default_factory=dict, compare=False)  # shard -> JSON of its header, once read


def find(repo: str, revision: str | None = None) -> Listing:
    """The model `repo` at `revision` (branch, tag, commit; None: the default branch), resolved to a commit.

    One request, none for a full commit that was seen before. Where the Hub cannot be asked, what it was when last seen.
    Raises HubError: no such model or revision, no access, no network and never seen.
    """
    revision = revision or DEFAULT_BRANCH
    if _COMMIT.fullmatch(revision) and (kept := _kept(repo, revision)) is not None:
        return kept
    try:
        found = _asked(repo, revision)
    except HubError as error:
        if access.unreachable(error) and (last := _last_seen(repo, revision, error)) is not None:
            return last
        raise
    keep(found)
    return replace(found, notes=(*found.notes, *_moved(found)))


def _asked(repo: str, revision: str) -> Listing:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=access.endpoint(), token=access.token() or False, library_name="sfn")

    def ask() -> object:
        given = None if revision == DEFAULT_BRANCH else revision
        return api.model_info(repo, revision=given, files_metadata=True, timeout=_ASK_TIMEOUT_S)

    try:
        info = patiently(ask, repo, revision=revision)
    except HubError as error:
        raise _told_better(api, repo, revision, error) from None
    card = info.card_data or {}
    if info.disabled:
        raise access.refusal(repo, 403, {"x-error-message": "Access to this resource is disabled."})
    files = {entry.rfilename: _file(entry) for entry in info.siblings or ()}
    based = card.get("base_model") or ()
    kept = _kept(info.id, info.sha)
    return Listing(
        info.id,
        revision,
        info.sha,
        files,
        gated=bool(info.gated),
        licence=str(card.get("license") or ""),
        base_models=(based,) if isinstance(based, str) else tuple(map(str, based)),
        notes=(("name", f"{repo} is now called {info.id}; it was opened under that name."),) if info.id != repo else (),
        headers=kept.headers if kept else {},
    )


def _file(entry: RepoSibling) -> HubFile:
    if entry.lfs is None:
        return HubFile(entry.size or 0, entry.blob_id or "")
    return HubFile(entry.lfs.size, entry.blob_id or "", entry.lfs.sha256)


def _told_better(api: HfApi, repo: str, revision: str, error: HubError) -> HubError:
    """The same error, or a more telling one: a data set, a Space, the revisions that there are."""
    with contextlib.suppress(Exception):
        if error.kind == "missing":
            for kind, ask in (("data set", api.dataset_info), ("Space", api.space_info)):
                with contextlib.suppress(Exception):
                    ask(repo, timeout=_ASK_TIMEOUT_S)
                    return HubError(f"{repo} is a {kind}, not a model. Give the name of a model.", "not a model")
        if error.kind == "revision":
            refs = api.list_repo_refs(repo)
            names = [ref.name for ref in (*refs.branches, *refs.tags)]
            shown = ", ".join(names[:_BRANCHES_NAMED]) + (", …" if len(names) > _BRANCHES_NAMED else "")
            return HubError(
                f"{repo} has no revision {revision!r}; it has {shown}. A commit's full hash can be given too.",
                "revision",
            )
    return error


# What is kept


def _place(repo: str) -> Path:
    return cache_folder() / "hub" / f"models--{repo.replace('/', '--')}"


def keep(listing: Listing) -> None:
    """Remember the listing and its headers for the next time; a full disk is no reason to fail."""
    content = {
        "format": _FORMAT,
        "files": {name: asdict(file) for name, file in listing.files.items()},
        "gated": listing.gated,
        "licence": listing.licence,
        "base_models": listing.base_models,
        "headers": listing.headers,
    }
    packed = gzip.compress(json.dumps(content).encode(), compresslevel=4, mtime=0)
    with contextlib.suppress(OSError):
        _write(_place(listing.repo) / f"{listing.commit}.json.gz", packed)


def _kept(repo: str, commit: str) -> Listing | None:
    try:
        content = json.loads(gzip.decompress((_place(repo) / f"{commit}.json.gz").read_bytes()))
        if content["format"] != _FORMAT:
            return None
        files = {name: HubFile(**file) for name, file in content["files"].items()}
    except (OSError, EOFError, ValueError, KeyError, TypeError):  # never seen, or damaged: asked again
        return None
    return Listing(
        repo, commit, commit, files, gated=content["gated"], licence=content["licence"],
        base_models=tuple(content["base_models"]), headers=content["headers"],
    )  # fmt: skip


def _moved(found: Listing) -> tuple[tuple[str, str], ...]:
    """Remember where a branch stands; a sentence if it was elsewhere before."""
    if found.revision == found.commit:
        return ()
    seen = [entry for entry in _seen(found.repo, found.revision) if entry["commit"] != found.commit]
    now = {"commit": found.commit, "on": date.today().isoformat()}
    with contextlib.suppress(OSError):
        _write(_branch_file(found.repo, found.revision), json.dumps([*seen, now]).encode())
    if not seen:
        return ()
    last = seen[-1]
    sentence = (
        f"{found.repo} has changed: {found.revision!r} is commit {found.commit[:12]} now and was {last['commit'][:12]} "
        f"on {last['on']}. What was computed for that is kept, and opens as {found.repo}@{last['commit'][:12]}."
    )
    return (("commit", sentence),)


def _branch_file(repo: str, revision: str) -> Path:
    return _place(repo) / "branches" / f"{revision.replace('/', '--')}.json"


def _seen(repo: str, revision: str) -> list[dict[str, str]]:
    """Commits that a branch was seen at, the newest last; of huggingface_hub's own cache where SfN saw none."""
    try:
        entries = json.loads(_branch_file(repo, revision).read_text())
        return [entry for entry in entries if _COMMIT.fullmatch(entry["commit"]) and entry["on"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    reference = _hub_cache(repo) / "refs" / revision
    try:
        commit, day = reference.read_text().strip(), date.fromtimestamp(reference.stat().st_mtime)
    except (OSError, ValueError):
        return []
    return [{"commit": commit, "on": day.isoformat()}] if _COMMIT.fullmatch(commit) else []


def _last_seen(repo: str, revision: str, error: HubError) -> Listing | None:
    """What the revision was when last seen, where the Hub cannot be asked."""
    commit = next((entry["commit"] for entry in reversed(_seen(repo, revision))), None)
    if commit is None:
        kept = [path.name.partition(".")[0] for path in _place(repo).glob(f"{revision}*.json.gz")]
        commit = kept[0] if len(kept) == 1 and len(revision) >= 7 else None
    listing = _kept(repo, commit) if commit else None
    if listing is None and commit and (snapshot := snapshot_folder(repo, commit)).is_dir():
        listing = Listing(repo, revision, commit, _files_in(snapshot))
    if listing is None:
        return None
    why = "HF_HUB_OFFLINE is set" if error.kind == "offline" else "the Hub cannot be reached"
    note = f"{repo} is shown as it was when last seen (commit {commit[:12]}), since {why}."
    return replace(listing, revision=revision, offline=True, notes=(("offline", note),))


def _files_in(snapshot: Path) -> dict[str, HubFile]:
    """The listing of a snapshot that another program fetched, as far as it goes."""
    files = {}
    for path in sorted(snapshot.rglob("*")):
        if path.is_file():
            digest = path.resolve().name
            large = re.fullmatch(r"[0-9a-f]{64}", digest) is not None
            blob = digest if re.fullmatch(r"[0-9a-f]{40}", digest) else ""
            files[path.relative_to(snapshot).as_posix()] = HubFile(path.stat().st_size, blob, digest if large else None)
    return files


def _hub_cache(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def snapshot_folder(repo: str, commit: str) -> Path:
    """Where huggingface_hub keeps the files of this commit; it need not exist."""
    return _hub_cache(repo) / "snapshots" / commit


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=".partial-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(partial, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
