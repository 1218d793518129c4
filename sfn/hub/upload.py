"""A checkpoint's folder to a new repo on the Hub: asked for by name, private unless told otherwise, never overwriting.

Owns the process that sends (`sfn.hub.upload_worker`) and the sentences for what the Hub refuses. It is a process of its
own because huggingface_hub cannot be cancelled in mid-file: ending it ends the upload at once. The token goes to it
through a pipe and nowhere else.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from sfn.errors import Cancelled, HubError
from sfn.hub import access

Progress = Callable[[int, int, str], None]  # (done bytes, total bytes, what is going on); may raise to stop the work

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Where a checkpoint now is. repo: "owner/name". url: its page. commit: of the upload."""

    repo: str
    url: str
    commit: str


def check_name(repo: str) -> str:
    """`repo` if it can be the name of a repo, "name" or "owner/name"; raises HubError."""
    name = repo.strip()
    if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
        raise HubError(
            f"{name!r} cannot be the name of a repo on the Hub. Write name, or organisation/name: letters, digits, "
            "“-”, “_” and “.”, at most 96 of them, neither “--” nor “..”.",
            "address",
        )
    return name


def upload(
    folder: Path, repo: str, *, private: bool = True, progress: Progress | None = None, cancel: Event | None = None
) -> Uploaded:
    """Create `repo` and send every file of `folder` in one commit.

    Raises HubError with the reason: no token, a name that is taken or not allowed, no network; Cancelled. A repo that
    was created stays, empty: SfN deletes nothing on the Hub.
    """
    repo = check_name(repo)
    if access.offline():
        raise HubError("HF_HUB_OFFLINE forbids any request to the Hub: unset it to upload.", "offline")
    token = access.token()
    if token is None:
        raise HubError(f"Uploading needs a token with the right to write: {access.LOGIN}.", "token")
    if not (folder / "config.json").is_file():
        raise HubError(f"{folder} holds no checkpoint: it has no config.json.", "file")
    order = {"folder": str(folder), "repo": repo, "private": private, "token": token, "endpoint": access.endpoint()}
    with _Worker(order) as worker:
        return worker.result(repo, progress, cancel)


class _Worker:
    """The process that sends. It ends when its owner does: what it was told through stays open as long."""

    def __init__(self, order: dict[str, object]) -> None:
        command = [sys.executable, "-m", "sfn.hub.upload_worker"]
        root = Path(__file__).resolve().parents[2]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self.said: deque[dict[str, object]] = deque(maxlen=2)
        self.news = Event()
        self.reader = threading.Thread(target=self._read, name="sfn-upload", daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))
            self.news.set()
        self.news.set()

    def result(self, repo: str, progress: Progress | None, cancel: Event | None) -> Uploaded:
        """Pass on what the process says until it is done."""
        while True:
            over = not self.reader.is_alive()
            self.news.wait(0.2)
            self.news.clear()
            if cancel is not None and cancel.is_set():
                raise Cancelled(f"The upload to {repo} was cancelled. If its repo was created already, it is empty.")
            while self.said:
                message = self.said.popleft()
                if "error" in message:
                    raise HubError(str(message["error"]), str(message["kind"]))
                if "commit" in message:
                    return Uploaded(str(message["repo"]), str(message["url"]), str(message["commit"]))
                if progress is not None:
                    progress(int(message["done"]), int(message["total"]), str(message["detail"]))  # type: ignore[call-overload]
            if over:
                raise HubError(
                    f"The upload to {repo} ended without a word (its process was killed, perhaps for memory). Try "
                    "again under another name, or go on with `hf upload`.",
                    "server",
                )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
