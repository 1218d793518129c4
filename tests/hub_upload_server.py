"""A Hub on this machine that takes uploads: what the real `huggingface_hub` client asks of the Hub to create a repo and
commit a folder, large files through Git LFS, and refusals on demand. Knows nothing of SfN.

    with UploadHub() as hub:
        hub.tokens["hf_x"] = "someone"
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_PIECE_BYTES = 1 << 16


@dataclass
class UploadedRepo:
    """A repo that was created. files: name -> content, once committed."""

    visibility: str
    files: dict[str, bytes] = field(default_factory=dict)
    message: str = ""


class UploadHub:
    """The server; a context manager.

    Attributes:
        endpoint: for HF_ENDPOINT. tokens: token -> account that it may write to. repos: by name. blobs: what LFS
            holds, by SHA-256. refuse: (method, pattern of the path) -> status to answer with. seen: "METHOD path" of
            every request. piece_s: pause after each 64 kB of a large file. organisations: that exist beside accounts.
    """

    def __init__(self) -> None:
        self.tokens: dict[str, str] = {}
        self.organisations: set[str] = set()
        self.repos: dict[str, UploadedRepo] = {}
        self.blobs: dict[str, bytes] = {}
        self.refuse: dict[tuple[str, str], int] = {}
        self.seen: list[str] = []
        self.received = 0
        self.piece_s = 0.0
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: UploadHub

    def handle(self) -> None:
        """A client that is killed cuts its connection."""
        with contextlib.suppress(ConnectionResetError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        """whoami."""
        self._answer()

    def do_POST(self) -> None:
        """Everything else but content."""
        self._answer()

    def do_PUT(self) -> None:
        """Content of a large file."""
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.seen.append(f"{self.command} {path}")
        try:
            body = self._body()
            for (method, pattern), status in self.hub.refuse.items():
                if method == self.command and re.search(pattern, path):
                    return self._json(status, {"error": "refused"}, {"X-Error-Message": "refused for a test"})
            for pattern, method in _ROUTES:
                if match := re.fullmatch(pattern, path):
                    return method(self, body, *match.groups())
            return self._json(404, {"error": "Not Found"}, {"X-Error-Code": "RepoNotFound"})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _body(self) -> bytes:
        left, pieces = int(self.headers.get("Content-Length", 0)), []
        while left and (piece := self.rfile.read(min(left, _PIECE_BYTES))):
            pieces.append(piece)
            left -= len(piece)
            if self.command == "PUT":
                self.hub.received += len(piece)
                time.sleep(self.hub.piece_s)
        if left:
            raise ConnectionResetError
        return b"".join(pieces)

    def _json(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _account(self) -> str | None:
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _unknown(self) -> None:
        self._json(401, {"error": "no"}, {"X-Error-Message": "Invalid credentials in Authorization header"})

    def whoami(self, body: bytes) -> None:
        """Whose token it is."""
        account = self._account()
        return self._unknown() if account is None else self._json(200, {"type": "user", "name": account, "orgs": []})

    def create(self, body: bytes) -> None:
        """A new repo."""
        order, account = json.loads(body), self._account()
        if account is None:
            return self._unknown()
        owner = order["organization"] or account
        if owner != account:
            status = 403 if owner in self.hub.organisations else 404
            return self._json(status, {"error": "You don't have the rights" if status == 403 else "no such"})
        repo = f"{owner}/{order['name']}"
        if repo in self.hub.repos:
            return self._json(409, {"error": "You already created this model repo"})
        self.hub.repos[repo] = UploadedRepo(order.get("visibility", "public"))
        return self._json(200, {"url": f"{self.hub.endpoint}/{repo}", "name": repo, "id": "1"})

    def card(self, body: bytes) -> None:
        """The Hub's check of a model card."""
        self._json(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str) -> None:
        """Which files go through LFS."""
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
             "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]  # fmt: skip
        self._json(200, {"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        """Where to put large files."""
        objects = [
            {"oid": o["oid"], "size": o["size"], "actions": {
                "upload": {"href": f"{self.hub.endpoint}/lfs/{o['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.endpoint}/verify", "header": {}}}}
            for o in json.loads(body)["objects"]
        ]  # fmt: skip
        self._json(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        """A large file's content."""
        if hashlib.sha256(body).hexdigest() != oid:
            return self._json(400, {"error": "digest"})
        self.hub.blobs[oid] = body
        return self._json(200, {})

    def verify(self, body: bytes) -> None:
        """Whether a large file has arrived."""
        told = json.loads(body)
        there = self.hub.blobs.get(told["oid"])
        self._json(200 if there is not None and len(there) == told["size"] else 404, {})

    def commit(self, body: bytes, repo: str) -> None:
        """All files at once."""
        if self._account() is None:
            return self._unknown()
        held = self.hub.repos[repo]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                held.message = value["summary"]
            elif entry["key"] == "file":
                held.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                held.files[value["path"]] = self.hub.blobs[value["oid"]]
        oid = hashlib.sha1(body).hexdigest()
        return self._json(200, {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid})


_ROUTES = (
    (r"/api/whoami-v2", _Handler.whoami),
    (r"/api/repos/create", _Handler.create),
    (r"/api/validate-yaml", _Handler.card),
    (r"/api/models/(.+?)/preupload/main", _Handler.preupload),
    (r"/(.+?)\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/lfs/([0-9a-f]{64})", _Handler.put),
    (r"/verify", _Handler.verify),
    (r"/api/models/(.+?)/commit/main", _Handler.commit),
)
