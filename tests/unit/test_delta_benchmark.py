"""The benchmark of a scan runs on a small pair and prints what it found."""

import re
import subprocess
import sys

import pytest

from tests.contracts.source import ROOT


@pytest.mark.timeout(300)
def test_it_prints_its_table(tmp_path):
    program = [sys.executable, "benchmarks/delta_scan.py", "--quick", "--runs", "1", "--folder", str(tmp_path)]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    for way in ("reading both files", "SfN's scan", "chunked torch calls", "the paper's way"):
        assert re.search(rf"^{way} +\d+\.\d\ds +\d+\.\d\d +\d+ MB$", run.stdout, re.MULTILINE), run.stdout
    ratio = re.search(r"the paper's way / scan: (\d+\.\d+)", run.stdout)
    assert float(ratio[1]) > 1
    assert not list(tmp_path.iterdir())
