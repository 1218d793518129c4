"""A small process that stands between SfN and a vLLM server and outlives neither: when its owner goes away, however it
goes, it ends the server and every process that the server started. Standard library only; run by path, never imported
by the app.

    python vllm_guard.py RECORD FOLDER COMMAND...

stdin is a pipe that only the owner holds open: its end is the owner's end. RECORD is where the guard notes what it
started (JSON), so that a later start can clean up should guard and owner be killed together. FOLDER is the server's own
(its socket lies there) and goes with it.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

GRACE_S = 5.0  # what a server gets to end by itself
_PR_SET_PDEATHSIG = 1


def main(record: str, folder: str, command: list[str]) -> int:
    """Run `command` until it ends or the owner does; returns its exit status."""
    owner = os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))  # runs the `finally` below
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent)
    try:
        write_record(record, owner=owner, session=server.pid, folder=folder)
        while server.poll() is None:
            if select.select([0], [], [], 0.5)[0] and not os.read(0, 4096):
                return 0
        return server.returncode
    finally:
        end_session(server.pid, start_ticks(server.pid), server.poll)
        shutil.rmtree(folder, ignore_errors=True)
        if os.path.exists(record):
            os.unlink(record)


def _die_with_parent() -> None:
    """Should the guard itself be killed, the server is asked to end (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def write_record(path: str, *, owner: int, session: int, folder: str) -> None:
    """Note owner, guard and session with their start times: a process id alone may be given out again."""
    content = {
        "owner": [owner, start_ticks(owner)],
        "guard": [os.getpid(), start_ticks(os.getpid())],
        "session": [session, start_ticks(session)],
        "boot": boot_id(),
        "folder": folder,
    }
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(path + ".part", path)


def end_session(session: int, started: int, reap: Callable[[], object] = lambda: None) -> None:
    """End every process of `session`: politely, then not. `reap` collects a child's exit status meanwhile."""
    for number, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        deadline = time.monotonic() + patience
        asked: set[int] = set()
        while members := session_members(session, started):
            for pid in members - asked:
                _send(pid, number)
            asked |= members
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
            reap()


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it ended by itself meanwhile


def session_members(session: int, started: int) -> set[int]:
    """Live processes of a session whose leader started at `started` (clock ticks since boot); none if the number was
    given to another process since."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))) is not None:
            state, of_session, ticks = stat
            if int(entry) == session and started and ticks != started:
                return set()
            if of_session == session and ticks >= started and state != "Z":
                found.add(int(entry))
    return found


def runs(pid: int, started: int) -> bool:
    """Whether the process that started at `started` under this number still runs."""
    stat = _stat(pid)
    return stat is not None and stat[0] != "Z" and stat[2] == started


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where there is none."""
    stat = _stat(pid)
    return stat[2] if stat else 0


def _stat(pid: int):
    """(state, session, start time) of a process, or None."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()  # what precedes may hold spaces and brackets
    except OSError:
        return None
    return fields[0], int(fields[3]), int(fields[19])


def boot_id() -> str:
    """Changes with every boot: start times and process ids mean nothing across it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
