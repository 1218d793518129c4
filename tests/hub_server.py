"""A Hub on this machine: folders served as repos over the Hub's own HTTP API, large files from a second host as its CDN
does, faults on demand. For the real `huggingface_hub` client; knows nothing of SfN. Reading only.

    with Hub() as hub:
        hub.add("org/name", folder)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE_BYTES = 10_000_000  # the Hub keeps larger files in LFS, and the endings below whatever their size
LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf", ".model")
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class File:
    """One file of one commit. sha256 is None for what is not in LFS; blob: its git id."""

    path: Path
    size: int
    blob: str
    sha256: str | None

    @property
    def etag(self) -> str:
        """What the Hub calls this content."""
        return self.sha256 or self.blob


@dataclass
class Repo:
    """A repo. commits: commit -> name -> File; refs: branch or tag -> commit; gated: False, "auto" or "manual"."""

    kind: str = "models"
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool | str = False
    private: bool = False
    disabled: bool = False
    card: dict[str, object] = field(default_factory=dict)
    downloads: int = 0


@dataclass(frozen=True)
class Request:
    """What arrived: host is "hub" or "cdn"."""

    host: str
    method: str
    path: str
    query: Mapping[str, list[str]]
    range: str
    authorization: str


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that fit.

    Attributes:
        kind: "status" (code, headers, body), "cut" (the connection ends after `after` bytes of the body), "stall" (it
            stays silent for `seconds` after `after` bytes), "slow" (`seconds` between pieces of 64 kB), "short" and
            "long" (length and range are `by` bytes too small or large), "shift" (a range that begins elsewhere),
            "etag" (another ETag), "commit" (another X-Repo-Commit), "corrupt" (`after`: byte of the file that is
            flipped), "whole" (200 with the whole file, as if ranges were unknown).
        host, path: request's host ("hub", "cdn"), and a pattern its path must hold; method.
    """

    kind: str
    host: str = "cdn"
    path: str = ""
    method: str = "GET"
    times: int = 1
    after: int = 0
    seconds: float = 0.0
    by: int = 1
    code: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    skip: int = 0


class Hub:
    """The server; a context manager.

    Attributes:
        endpoint: for HF_ENDPOINT. requests: everything that arrived. bytes_sent: bytes of bodies that were sent.
        tokens: token -> names of the gated and private repos that it may read. link_seconds: life of a CDN link.
        rate: bytes per second of each connection, None for no limit. delay_s: before each answer.
    """

    def __init__(self, *, link_seconds: float = 3600.0) -> None:
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.tokens: dict[str, set[str]] = {}
        self.requests: list[Request] = []
        self.bytes_sent = 0
        self.link_seconds = link_seconds
        self.rate: float | None = None
        self.delay_s = 0.0
        self._faults: list[Fault] = []
        self._links: dict[str, tuple[File, float]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._servers = [_server(self, "hub"), _server(self, "cdn")]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(
        self,
        name: str,
        folder: Path,
        *,
        branch: str = "main",
        kind: str = "models",
        lfs: Iterable[str] = (),
        quick: bool = False,
        **settings: object,
    ) -> str:
        """Commit the folder's files to a branch and return the commit. quick: large files get a made-up digest."""
        repo = self.repos.setdefault(name, Repo(kind))
        for key, value in settings.items():
            setattr(repo, key, value)
        files = {
            path.relative_to(folder).as_posix(): _file(path, path.name in set(lfs), quick)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        listing = "".join(f"{path}\t{file.etag}\n" for path, file in files.items())
        commit = hashlib.sha1(f"{name}\n{listing}{len(repo.commits)}".encode()).hexdigest()
        repo.commits[commit] = files
        repo.refs[branch] = commit
        return commit

    def rename(self, old: str, new: str) -> None:
        """From now on `old` redirects to `new`."""
        self.repos[new] = self.repos.pop(old)
        self.renamed[old] = new

    def fault(self, kind: str, **details: object) -> Fault:
        """Let something go wrong; see Fault."""
        fault = Fault(kind, **details)  # type: ignore[arg-type]
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget faults, requests and the bytes counted."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()
            self.bytes_sent = 0

    def expire_links(self) -> None:
        """Every CDN link given out so far answers 403 from now on."""
        with self._lock:
            self._links = {key: (file, 0.0) for key, (file, _) in self._links.items()}

    # What the request handlers use.

    def take_fault(self, request: Request) -> Fault | None:
        """The fault for this request, used up by one."""
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if (fault.host, fault.method) == (request.host, request.method) and re.search(fault.path, request.path):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    if fault.times <= 0:
                        self._faults.remove(fault)
                    return fault
        return None

    def link(self, file: File) -> str:
        """A signed link of the CDN."""
        expires = time.time() + self.link_seconds
        with self._lock:
            key = f"{next(self._numbers):x}"
            self._links[key] = (file, expires)
        return f"{self.cdn}/blobs/{file.etag}?Expires={expires:.0f}&Signature={key}"

    def linked(self, key: str) -> File | None:
        """The file of a link that has not expired."""
        with self._lock:
            file, expires = self._links.get(key, (None, 0.0))
        return file if time.time() < expires else None

    def sent(self, count: int) -> None:
        """Count bytes of bodies."""
        with self._lock:
            self.bytes_sent += count


def _server(hub: Hub, host: str) -> ThreadingHTTPServer:
    handler = type("Handler", (_HubHandler if host == "hub" else _CdnHandler,), {"hub": hub, "host": host})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.request_queue_size = 128
    return server


def _file(path: Path, lfs: bool, quick: bool) -> File:
    size = path.stat().st_size
    lfs = lfs or size > LARGE_BYTES or path.suffix in LARGE_SUFFIXES
    if not lfs:
        content = path.read_bytes()
        return File(path, size, hashlib.sha1(b"blob %d\0" % size + content).hexdigest(), None)
    with path.open("rb") as stream:
        if quick:
            digest = hashlib.sha256(f"{path.name}{size}".encode() + stream.read(1 << 20)).hexdigest()
        else:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n".encode()
    return File(path, size, hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest(), digest)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub
    host: str

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        """As GET, without a body."""
        self._answer()

    def do_GET(self) -> None:
        """Answer, or fail as told."""
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        request = Request(
            self.host, self.command, unquote(parts.path), parse_qs(parts.query, keep_blank_values=True),
            self.headers.get("Range", ""), self.headers.get("Authorization", ""),
        )  # fmt: skip
        fault = self.hub.take_fault(request)
        if self.hub.delay_s:
            time.sleep(self.hub.delay_s)
        try:
            if fault is not None and fault.kind == "status":
                self._text(fault.code, "", dict(fault.headers))
            else:
                self.respond(request, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def respond(self, request: Request, fault: Fault | None) -> None:
        """Answer a request that no fault has answered."""
        raise NotImplementedError

    def _text(self, code: int, body: str, headers: Mapping[str, str] | None = None) -> None:
        content = body.encode()
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.hub.sent(len(content))

    def _json(self, content: object, headers: Mapping[str, str] | None = None) -> None:
        self._text(200, json.dumps(content), {"Content-Type": "application/json", **(headers or {})})

    def _content(self, file: File, headers: dict[str, str], request: Request, fault: Fault | None) -> None:
        """The file or the range of it that was asked for."""
        kind = fault.kind if fault else ""
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range) if kind != "whole" else None
        start, stop = 0, file.size
        if found:
            start, stop = int(found[1]), min(file.size, int(found[2] or file.size) + 1)
            if start >= file.size:
                self._text(416, "", {"Content-Range": f"bytes */{file.size}"})
                return
        if kind == "etag":
            headers = {**headers, "ETag": '"' + "0" * 64 + '"'}
        if kind == "shift":
            start, stop = start + fault.by, stop + fault.by
        length = stop - start - (fault.by if kind == "short" else -fault.by if kind == "long" else 0)
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {start}-{start + length - 1}/{file.size}")
        for key, value in {"Accept-Ranges": "bytes", **headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send(file, start, min(start + length, file.size), fault)
            if kind == "long":
                self.close_connection = True

    def _send(self, file: File, start: int, stop: int, fault: Fault | None) -> None:
        self.wfile.flush()
        kind = fault.kind if fault else ""
        piece = 1 << 16 if kind == "slow" else _CHUNK_BYTES
        begun = start
        with file.path.open("rb") as stream:
            while start < stop:
                count = min(piece, stop - start)
                if kind in ("cut", "stall"):
                    count = min(count, begun + fault.after - start)
                    if count <= 0:
                        if kind == "cut":
                            self.close_connection = True
                            return
                        time.sleep(fault.seconds)
                        kind = ""
                        continue
                if kind == "corrupt" and start <= fault.after < start + count:
                    stream.seek(start)
                    content = bytearray(stream.read(count))
                    content[fault.after - start] ^= 0xFF
                    self.connection.sendall(content)
                else:
                    count = os.sendfile(self.connection.fileno(), stream.fileno(), start, count)
                start += count
                self.hub.sent(count)
                if kind == "slow":
                    time.sleep(fault.seconds)
                if self.hub.rate:
                    time.sleep(count / self.hub.rate)


class _CdnHandler(_Handler):
    def respond(self, request: Request, fault: Fault | None) -> None:
        """A blob, by its signed link alone: a request that carries a token is refused as storage hosts do."""
        if request.authorization:
            return self._text(400, "Only one auth mechanism allowed")
        file = self.hub.linked(request.query.get("Signature", [""])[0])
        if file is None:
            return self._text(403, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
        self._content(file, {"ETag": f'"{file.etag}"'}, request, fault)
        return None


_INFO = re.compile(r"/api/(models|datasets|spaces)/(.+?)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/models/(.+?)/tree/([^/]+)/?(.*)")
_REFS = re.compile(r"/api/models/(.+?)/refs")
_RESOLVE = re.compile(r"/(.+?)/resolve/([^/]+)/(.+)")


class _HubHandler(_Handler):
    def respond(self, request: Request, fault: Fault | None) -> None:
        """The Hub's pages for programs."""
        path = request.path
        if path == "/api/whoami-v2":
            return self._whoami()
        if path == "/api/models":
            return self._json([_short(name, repo) for name, repo in self._found(request)])
        for pattern, answer in ((_TREE, self._tree), (_REFS, self._refs), (_INFO, self._info)):
            if match := pattern.fullmatch(path):
                return answer(request, *match.groups())
        if match := _RESOLVE.fullmatch(path):
            return self._resolve(request, fault, *match.groups())
        return self._text(404, "", {"X-Error-Code": "RepoNotFound"})

    def _token(self) -> str | None:
        given = self.headers.get("Authorization", "")
        return given.removeprefix("Bearer ") if given else None

    def _whoami(self) -> None:
        token = self._token()
        if token not in self.hub.tokens:
            return self._text(401, "", {"X-Error-Message": "Invalid credentials in Authorization header"})
        return self._json({"type": "user", "id": "1", "name": "someone", "fullname": "Some One", "orgs": []})

    def _found(self, request: Request) -> Iterator[tuple[str, Repo]]:
        words = " ".join(request.query.get("search", [])).lower().split()
        wanted = {word for value in request.query.get("filter", []) for word in value.split(",")}
        author = request.query.get("author", [""])[0]
        repos = [
            (name, repo)
            for name, repo in self.hub.repos.items()
            if repo.kind == "models" and not repo.private and all(word in name.lower() for word in words)
            and wanted <= set(_tags(repo)) and name.startswith(f"{author}/" if author else "")
        ]  # fmt: skip
        repos.sort(key=lambda found: -found[1].downloads)
        return iter(repos[: int(request.query.get("limit", ["1000"])[0])])

    def _repo(self, kind: str, name: str, where: Callable[[str], str]) -> Repo | None:
        """The repo, or None once an error or a redirect has been sent; where(new name) -> path after a renaming."""
        token = self._token()
        if token is not None and token not in self.hub.tokens:
            self._text(401, "", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return None
        if name in self.hub.renamed:
            self._text(307, "", {"Location": where(self.hub.renamed[name])})
            return None
        repo = self.hub.repos.get(name)
        hidden = repo is not None and repo.private and name not in self.hub.tokens.get(token or "", set())
        if repo is None or repo.kind != kind or hidden:
            # Without a token the Hub does not tell missing from private: 401.
            message = "Repository not found" if token else "Invalid username or password."
            self._text(404 if token else 401, "", {"X-Error-Code": "RepoNotFound", "X-Error-Message": message})
            return None
        if repo.disabled:
            self._text(403, "", {"X-Error-Message": "Access to this resource is disabled."})
            return None
        return repo

    def _commit(self, repo: Repo, revision: str) -> str | None:
        revision = unquote(revision)
        commit = repo.refs.get(revision) or repo.tags.get(revision)
        if commit is None and len(revision) >= 7:
            commit = next((known for known in repo.commits if known.startswith(revision)), None)
        if commit is None:
            self._text(404, "", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        return commit

    def _info(self, request: Request, kind: str, name: str, revision: str | None) -> None:
        query = urlsplit(self.path).query
        suffix = (f"/revision/{revision}" if revision else "") + (f"?{query}" if query else "")
        repo = self._repo(kind, name, lambda new: f"/api/{kind}/{new}{suffix}")
        if repo is None or (commit := self._commit(repo, revision or "main")) is None:
            return
        blobs = "blobs" in request.query
        siblings = [_sibling(path, file, blobs) for path, file in repo.commits[commit].items()]
        self._json({**_short(name, repo), "sha": commit, "siblings": siblings})

    def _tree(self, request: Request, name: str, revision: str, under: str) -> None:
        repo = self._repo("models", name, lambda new: f"/api/models/{new}/tree/{revision}/{under}")
        if repo is None or (commit := self._commit(repo, revision)) is None:
            return
        entries = []
        for path, file in repo.commits[commit].items():
            if path.startswith(under):
                entry: dict[str, object] = {"type": "file", "oid": file.blob, "size": file.size, "path": path}
                if file.sha256:
                    entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
                entries.append(entry)
        self._json(entries)

    def _refs(self, request: Request, name: str) -> None:
        repo = self._repo("models", name, lambda new: f"/api/models/{new}/refs")
        if repo is not None:
            named = {
                key: [
                    {"name": name, "ref": f"refs/{key}/{name}", "targetCommit": commit} for name, commit in refs.items()
                ]
                for key, refs in (("branches", repo.refs), ("tags", repo.tags))
            }
            self._json({**named, "converts": []})

    def _resolve(self, request: Request, fault: Fault | None, name: str, revision: str, path: str) -> None:
        repo = self._repo("models", name, lambda new: f"/{new}/resolve/{revision}/{quote(path)}")
        if repo is None:
            return None
        if repo.gated and name not in self.hub.tokens.get(self._token() or "", set()):
            message = f"Access to model {name} is restricted."
            code = 403 if self._token() else 401
            return self._text(code, message, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        if (commit := self._commit(repo, revision)) is None:
            return None
        headers = {"X-Repo-Commit": commit}
        if fault is not None and fault.kind == "commit":
            headers["X-Repo-Commit"] = "f" * 40
        file = repo.commits[commit].get(path)
        if file is None:
            return self._text(404, "Entry not found", {**headers, "X-Error-Code": "EntryNotFound"})
        if file.sha256 is None:
            return self._content(file, {**headers, "ETag": f'"{file.blob}"'}, request, fault)
        etag = "0" * 64 if fault is not None and fault.kind == "etag" else file.sha256
        headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(file.size), "ETag": f'"{etag}"'}
        return self._text(302, "", {**headers, "Location": self.hub.link(file)})


def _tags(repo: Repo) -> list[str]:
    files = repo.commits[next(reversed(repo.commits))] if repo.commits else {}
    based = repo.card.get("base_model") or ()
    bases = [based] if isinstance(based, str) else based
    tags = ["transformers", "text-generation", *(f"base_model:finetune:{base}" for base in bases)]
    return tags + (["safetensors"] if any(path.endswith(".safetensors") for path in files) else [])


def _short(name: str, repo: Repo) -> dict[str, object]:
    return {
        "_id": hashlib.sha1(name.encode()).hexdigest()[:24], "id": name, "modelId": name, "private": repo.private,
        "gated": repo.gated, "disabled": repo.disabled, "downloads": repo.downloads, "likes": 0, "tags": _tags(repo),
        "pipeline_tag": "text-generation", "library_name": "transformers", "cardData": repo.card,
        "sha": repo.refs.get("main"),
    }  # fmt: skip


def _sibling(path: str, file: File, blobs: bool) -> dict[str, object]:
    entry: dict[str, object] = {"rfilename": path}
    if blobs:
        entry |= {"size": file.size, "blobId": file.blob}
        if file.sha256:
            entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
    return entry
