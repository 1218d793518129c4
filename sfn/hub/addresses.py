"""What people write to mean a model on the Hub: `org/name`, `org/name@revision`, `hf://org/name`, or a page's URL."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sfn.errors import HubError

_PART = r"[A-Za-z0-9_][\w.-]*"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>\S+))?")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_OTHER_KINDS = {"datasets": "dataset", "spaces": "Space"}
_PAGES = ("tree", "blob", "resolve", "commit")  # what may stand between a repo's name and a revision


@dataclass(frozen=True, slots=True)
class Address:
    """A model on the Hub. revision: branch, tag or commit; None for the default branch."""

    repo: str
    revision: str | None = None

    @property
    def fixed(self) -> bool:
        """Whether it names a commit in full, which never changes."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision or "") is not None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def address(text: str) -> Address | None:
    """The model on the Hub that `text` means, None where it means a folder.

    Raises HubError for a URL that leads somewhere else than to a model.
    """
    text = text.strip()
    if re.match(r"(https?|hf)://", text):
        return _of_url(text)
    match = _NAME.fullmatch(text)
    return Address(match["repo"], match["revision"]) if match else None


def meant(name: str) -> Address | None:
    """The model on the Hub that `name` means; None for a folder that is there, and for what means nothing."""
    try:
        if not name or Path(name).expanduser().exists():
            return None
        return address(name)
    except (HubError, OSError, RuntimeError):
        return None


def _of_url(text: str) -> Address:
    parts = urlsplit(text)
    path = [unquote(part) for part in parts.path.split("/") if part]
    if parts.scheme == "hf":
        path = [parts.netloc, *path]
        if "@" in "/".join(path):
            path, revision = "/".join(path).split("@", 1)[0].split("/"), "/".join(path).split("@", 1)[1]
            path = [*path, "tree", revision]
        if path[0] == "models":
            path = path[1:]
    elif (parts.hostname or "") not in (*_HOSTS, urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname):
        raise HubError(
            f"{parts.hostname} is not the Hugging Face Hub. Give a model's page there, as in "
            "https://huggingface.co/Qwen/Qwen2.5-Math-1.5B, or a folder on this machine.",
            "address",
        )
    if path and path[0] in _OTHER_KINDS:
        raise HubError(
            f"{'/'.join(path[1:3])} is a {_OTHER_KINDS[path[0]]}, not a model. Give a model's page.", "not a model"
        )
    name = "/".join(path[:2])
    if not _NAME.fullmatch(name):
        raise HubError(
            f"{parts.scheme}://{parts.hostname}{parts.path} names no model: it should go on with the organisation and "
            "the model's name, as in https://huggingface.co/Qwen/Qwen2.5-Math-1.5B.",
            "address",
        )
    revision = None
    if len(path) > 3 and path[2] in _PAGES:
        revision = "/".join(path[3:6]) if path[3] == "refs" else path[3]
    return Address(name, revision)
