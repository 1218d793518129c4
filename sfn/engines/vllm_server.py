"""Starts, watches and ends one vLLM server process of SfN's own, which is spoken with over a private socket. Does not
know its options, nor pairs, recipes or prompts.

The server listens on a Unix socket in a folder that only this user can enter: its development endpoints, which swapping
needs, have no access control of their own.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sfn.engines import vllm_guard
from sfn.engines.vllm_command import COMMAND
from sfn.engines.vllm_http import HttpServer
from sfn.errors import EngineError
from sfn.store import cache_folder

_KEPT_LOGS = 10
_STAGES = (  # what its log says, latest first -> what a person reads
    ("Starting vLLM server on", "almost there"),
    ("KV cache size", "opening its door"),
    ("Starting to load model", "loading the weights"),
    ("Initializing a V1 LLM engine", "starting its worker"),
    ("Resolved architecture", "starting its engine"),
)


class Server(HttpServer):
    """A running vLLM server. Made by `start`, which returns before the server is ready; `wait_ready` waits."""

    def __init__(self, guard: subprocess.Popen, folder: Path, record: Path, log: Path) -> None:
        super().__init__()
        self._guard, self._record, self.log = guard, record, log
        self._socket = folder / "http"
        self._crew: dict[int, int] = {}  # once it is ready: vLLM's engine core and workers, with their start times
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether the server runs, all of it: its API process may outlive its engine core and never answer again."""
        return not self._closed and self._guard.poll() is None and not self._crew_is_short()

    def _crew_is_short(self) -> bool:
        return any(not vllm_guard.runs(pid, started) for pid, started in self._crew.items())

    def wait_ready(self, timeout_s: float, tell: Callable[[str], None]) -> None:
        """Return once the server answers; `tell` hears what it does meanwhile. Raises EngineError, the server ended."""
        started = time.monotonic()
        while True:
            elapsed = time.monotonic() - started
            if not self.alive:
                self._give_up("vLLM ended while it started")
            if elapsed > timeout_s:
                self._give_up(f"vLLM did not start within {timeout_s:.0f} s")
            tell(f"starting vLLM: {self._stage()}, {elapsed:.0f} s (20 to 60 are usual)")
            try:
                self.call("GET", "/health", timeout_s=5)
                break
            except EngineError:
                time.sleep(0.25)
        session = _read_record(self._record).get("session") or (0, 0)
        crew = filter(_is_of_vllm, vllm_guard.session_members(*session))
        self._crew = {pid: vllm_guard.start_ticks(pid) for pid in crew}

    def _give_up(self, what: str) -> None:
        self.close()
        raise EngineError(f"{what}: {self.last_words()}")

    def _stage(self) -> str:
        text = _tail(self.log, 20_000)
        return next((told for mark, told in _STAGES if mark in text), "importing its libraries")

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection, open; raises OSError where there is nobody."""
        connection = _UnixConnection(str(self._socket), timeout=timeout_s)
        connection.connect()
        return connection

    def trouble(self) -> str:
        """Why no answer will come, or ""."""
        return "one of its processes ended, or was killed" if self._crew_is_short() else ""

    def last_words(self) -> str:
        """The error in the log, if there is one, the last lines, and where the log is."""
        lines = [line for line in map(_plain, _tail(self.log, 40_000).splitlines()) if line]
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        reason = errors[0] if errors else lines[-1] if lines else "it said nothing"
        return f"{reason[:600]}\nThe last lines of its log ({self.log}):\n" + "\n".join(lines[-12:])

    def close(self) -> None:
        """End the server and everything it started; returns when they are gone."""
        if self._closed:
            return
        self._closed = True
        if self._guard.stdin:
            self._guard.stdin.close()  # the guard's sign to end everything
        try:
            self._guard.wait(timeout=2 * vllm_guard.GRACE_S + 2)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        _end_recorded(self._record)  # where the guard itself was killed, it is still there


def start(arguments: Sequence[str], environment: dict[str, str]) -> Server:
    """Start `vllm serve` with `arguments`; first, end what an owner that was killed may have left behind."""
    cache = cache_folder().absolute()
    runs, logs = cache / "run", cache / "logs"
    for folder in (runs, logs):
        folder.mkdir(parents=True, exist_ok=True)
    clean_up(runs)
    for old in sorted(logs.glob("vllm-*.log"))[:-_KEPT_LOGS]:
        old.unlink(missing_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="sfn-vllm-"))  # short: a socket's path must fit 107 bytes; mode 0700
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{folder.name.rpartition('-')[2]}"
    log, record = logs / f"vllm-{stamp}.log", runs / f"vllm-{stamp}.json"
    command = [*COMMAND, "--uds", str(folder / "http"), *arguments]
    with log.open("w", encoding="utf-8") as out:
        out.write(f"{' '.join(command)}\n")
        out.flush()
        guard = subprocess.Popen(
            [sys.executable, "-I", vllm_guard.__file__, str(record), str(folder), *command],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # a Ctrl-C in the terminal is the owner's to handle
        )
    return Server(guard, folder, record, log)


def clean_up(runs: Path) -> None:
    """End the servers of owners that are gone, guards included; those of living owners are left alone."""
    for record in runs.glob("vllm-*.json"):
        content = _read_record(record)
        if content.get("boot") == vllm_guard.boot_id() and _lives(content.get("owner")):
            continue
        _end_recorded(record)


def _end_recorded(record: Path) -> None:
    """End the session that `record` notes, if it still runs, and remove the record."""
    content = _read_record(record)
    if content.get("boot") == vllm_guard.boot_id() and content.get("session"):
        vllm_guard.end_session(*content["session"])
    if folder := content.get("folder"):
        shutil.rmtree(folder, ignore_errors=True)
    record.unlink(missing_ok=True)


def _read_record(record: Path) -> dict[str, Any]:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _lives(process: list[int] | None) -> bool:
    return bool(process) and vllm_guard.start_ticks(process[0]) == process[1] != 0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _is_of_vllm(pid: int) -> bool:
    """Whether a process carries one of the names that vLLM gives to its engine core and workers."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"VLLM::")
    except OSError:
        return False


def _tail(path: Path, size: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


_NOISE = re.compile(
    r"\x1b\[[0-9;]*m|^\((?:APIServer|EngineCore|Worker)[^)]*\)\s*|^(?:INFO|WARNING|ERROR) \S+ \S+ (?=\[)"
)


def _plain(line: str) -> str:
    """A log line without colours, process names and times."""
    for _ in range(3):
        line = _NOISE.sub("", line).strip()
    return re.sub(r"^\[[\w./]+:\d+\] ?", "", line).strip()
