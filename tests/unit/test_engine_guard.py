"""The guard ends a server and all that it started, however its owner goes; clean-up does so for a killed guard."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sfn.engines import vllm_guard, vllm_server
from sfn.errors import EngineError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guard watches processes through Linux's /proc")

# A server with a child of its own, both deaf to polite requests: what a hung vLLM looks like.
STUBBORN = "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN); {child}; time.sleep(600)"
SERVER = STUBBORN.format(child=f"subprocess.Popen([sys.executable, '-c', {STUBBORN.format(child='pass')!r}])")
OWNER = """
import subprocess, sys
guard = subprocess.Popen([sys.executable, "-I", sys.argv[1], sys.argv[2] + "/vllm-1.json", sys.argv[2] + "/own",
                          sys.executable, "-c", sys.argv[3]],
                         stdin=subprocess.PIPE, start_new_session=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(vllm_guard, "GRACE_S", 0.5)


@pytest.fixture
def owner(tmp_path):
    """An owner with a guarded server of two processes; its record lies in tmp_path."""
    guard = tmp_path / "guard.py"
    guard.write_text(Path(vllm_guard.__file__).read_text().replace("GRACE_S = 5.0", "GRACE_S = 0.5"))
    command = [sys.executable, "-c", OWNER, str(guard), str(tmp_path), SERVER]
    (tmp_path / "own").mkdir()
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert wait_until(lambda: (tmp_path / "vllm-1.json").exists() and len(members(tmp_path)) == 2)
    time.sleep(0.3)  # until both are deaf
    yield process
    process.kill()
    process.wait()


def wait_until(true, seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(met)


def noted(folder: Path) -> dict:
    return json.loads((folder / "vllm-1.json").read_text())


def members(folder: Path) -> set[int]:
    return vllm_guard.session_members(*noted(folder)["session"])


@pytest.mark.parametrize("end", ["kill", "close"])
def test_the_owners_end_is_the_servers(owner, tmp_path, end):
    session = noted(tmp_path)["session"]
    if end == "kill":
        owner.send_signal(signal.SIGKILL)
    else:
        owner.stdin.close()
    assert wait_until(lambda: not vllm_guard.session_members(*session))
    assert wait_until(lambda: not (tmp_path / "vllm-1.json").exists())
    assert not (tmp_path / "own").exists()


def test_the_servers_end_is_its_childrens(owner, tmp_path):
    session = noted(tmp_path)["session"]
    os.kill(session[0], signal.SIGKILL)
    assert wait_until(lambda: not vllm_guard.session_members(*session))
    assert wait_until(lambda: not (tmp_path / "vllm-1.json").exists())


def test_what_a_killed_guard_and_owner_left_is_ended_at_the_next_start(owner, tmp_path):
    record = noted(tmp_path)
    os.kill(record["guard"][0], signal.SIGKILL)
    vllm_server.clean_up(tmp_path)
    assert members(tmp_path), "the owner lives: its server is not ours to end"
    owner.kill()
    owner.wait()
    vllm_server.clean_up(tmp_path)
    assert not vllm_guard.session_members(*record["session"])
    assert not (tmp_path / "vllm-1.json").exists()
    assert not (tmp_path / "own").exists()


def test_a_number_given_to_another_process_is_left_alone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as other:
        try:
            started = vllm_guard.start_ticks(other.pid)
            assert vllm_guard.session_members(other.pid, started) == {other.pid}
            assert vllm_guard.session_members(other.pid, started - 1) == set()
            content = {"owner": [1, 1], "session": [other.pid, started - 1], "boot": vllm_guard.boot_id()}
            (tmp_path / "vllm-2.json").write_text(json.dumps(content))
            content |= {"session": [other.pid, started], "boot": "another boot"}
            (tmp_path / "vllm-3.json").write_text(json.dumps(content))
            (tmp_path / "vllm-4.json").write_text("not json")
            vllm_server.clean_up(tmp_path)
            assert other.poll() is None
            assert not list(tmp_path.glob("*.json"))
        finally:
            other.kill()


def test_a_server_that_ends_while_it_starts_is_told_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setenv("SFN_CACHE", str(tmp_path))
    server = start(monkeypatch, "print('INFO all well'); raise ValueError('no such model')")
    with pytest.raises(EngineError, match=r"ended while it started: ValueError: no such model") as caught:
        server.wait_ready(30, lambda detail: None)
    assert str(server.log) in str(caught.value)
    assert not server.alive
    assert not list((tmp_path / "run").iterdir())


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("SFN_CACHE", str(tmp_path))
    server = start(monkeypatch, "import time; print('loading for ever', flush=True); time.sleep(600)")
    heard = []
    with pytest.raises(EngineError, match="did not start within 1 s: loading for ever"):
        server.wait_ready(1, heard.append)
    assert "starting vLLM" in heard[0]
    assert not list((tmp_path / "run").iterdir())


def test_only_the_last_logs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SFN_CACHE", str(tmp_path))
    (tmp_path / "logs").mkdir()
    for number in range(14):
        (tmp_path / "logs" / f"vllm-2020010{number:02}.log").touch()
    start(monkeypatch, "pass").close()
    logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert len(logs) == 11
    assert logs[0] == "vllm-202001004.log"


def start(monkeypatch, code: str) -> vllm_server.Server:
    """A server that is no vLLM but a line of Python."""
    monkeypatch.setattr(vllm_server, "COMMAND", (sys.executable, "-c", code))
    return vllm_server.start([], {})
