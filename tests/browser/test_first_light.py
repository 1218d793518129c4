"""The benchmark of a newcomer's waits runs as it stands. Its limits are for a quiet machine and not tested here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.browser
@pytest.mark.slow
def test_every_wait_is_measured():
    command = [sys.executable, "benchmarks/first_light.py", "--runs", "1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert "Traceback" not in run.stderr, run.stderr
    lines = re.findall(r"^(\w.+?)  +(\d+\.\d+)s +(\d+\.\d+)s +(\d+\.\d+)s +(\d+\.\d)s", run.stdout, re.MULTILINE)
    assert len(lines) == 4, run.stdout
    assert all(0 < float(median) < 60 for _, median, *_ in lines)
