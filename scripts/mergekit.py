"""mergekit, to compare with: `.venv/bin/python scripts/mergekit.py` makes `.venv-mergekit` and prints its Python.

The product never imports mergekit; a test and a benchmark run it. Its own virtual environment holds mergekit and the
three packages that `.venv` lacks, and sees `.venv` for all others (torch above all), so that it is made in seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-mergekit"
LOCK = ROOT / "requirements/mergekit.txt"
STAMP = VENV / "sfn-installed"


class Unavailable(Exception):
    """mergekit cannot be had here; the message says why."""


def python(timeout_s: float = 120) -> Path:
    """The Python that has mergekit, installed on first use. Raises Unavailable, above all without a package index."""
    wanted = hashlib.sha256(LOCK.read_bytes() + sys.prefix.encode() + sys.version.encode()).hexdigest()
    found = VENV / "bin" / "python"
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # one installation at a time
        if not STAMP.exists() or STAMP.read_text() != wanted:
            _install(found, timeout_s)
            STAMP.write_text(wanted)
    finally:
        os.close(folder)
    return found


def _install(found: Path, timeout_s: float) -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    venv.create(VENV, with_pip=False, symlinks=True)
    here = sysconfig.get_paths()["purelib"]
    there = next(VENV.glob("lib/python*/site-packages"))
    (there / "sfn-venv.pth").write_text(f"{here}\n")
    command = [sys.executable, "-m", "pip", "--python", str(found), "install", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--no-input", "--timeout", "15", "--retries", "1", "-r", str(LOCK)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"installing mergekit took more than {timeout_s:.0f} s") from None
    if done.returncode:
        raise Unavailable(f"mergekit could not be installed: {(done.stderr.strip() or 'pip failed').splitlines()[-1]}")


if __name__ == "__main__":
    try:
        print(python())
    except Unavailable as reason:
        sys.exit(str(reason))
