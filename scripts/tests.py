"""Run every test: those that start vLLM servers in one process, the rest in another beside it. Standard library alone.

    .venv/bin/python scripts/tests.py [pytest's arguments]

With arguments, one pytest runs with them. A vLLM server spends most of its start waiting for itself, so that the two
together take hardly longer than the longer of them. What the one in the background printed comes last.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVERS = "tests/engine"
_NO_TESTS = 5  # pytest's code for a run that found none


def main(arguments: list[str]) -> int:
    """pytest's exit code, the worse of the two."""
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        return subprocess.run([*pytest, *arguments], cwd=ROOT).returncode
    with tempfile.TemporaryFile("w+") as output:
        beside = subprocess.Popen([*pytest, SERVERS], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            here = subprocess.run([*pytest, "tests", f"--ignore={SERVERS}"], cwd=ROOT).returncode
            print(f"\nStill waiting for {SERVERS} …" if beside.poll() is None else "", flush=True)
            there = beside.wait()
        finally:
            beside.terminate()
        output.seek(0)
        print(output.read(), flush=True)
    return max(here, there if there != _NO_TESTS else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
