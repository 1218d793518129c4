"""What a scan of a pair takes, beside reading its files once, chunked torch calls, and the paper's way.

    .venv/bin/python benchmarks/delta_scan.py [--quick] [--folder FOLDER] [--runs 3]

Makes a pair of the shape of Qwen2.5-1.5B in bfloat16 (3.1 GB a side; --quick: 0.1 GB), B being A but for small changes,
all files in the page cache. Each way runs in a process of its own; the time is from the opened files to the last
figure, libraries loaded and kernels compiled. Anonymous memory is sampled every 10 ms. The paper's way is what its
scripts do: both models loaded whole by transformers in float16, differences in float32, their norm and a histogram of
the relative change, without drawing. Fails where a figure is over what is wanted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.write_merge import QUICK, SHAPE, Run, make_side, median, watched  # noqa: E402

WANTED = {"scan / reading": 1.5, "the paper's way / scan": 25.0, "anonymous memory, MB": 500.0}

_READING = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
def read(file):
    buffer = bytearray(1 << 20)
    with open(file, "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
start = time.perf_counter()
with ThreadPoolExecutor(THREADS) as pool:
    list(pool.map(read, [f"{folder}/model.safetensors" for folder in sys.argv[1:]]))
print(time.perf_counter() - start)
"""
_SCAN = """
import sys, time
import torch
from sfn import checkpoints, delta, delta_kernel, pairs
delta_kernel.make_ready()
start = time.perf_counter()
found = list(delta.scan(pairs.compare(*map(checkpoints.open, sys.argv[1:]))))
print(time.perf_counter() - start)
"""
_CHUNKED = """
import sys, time
import torch
from safetensors import safe_open
start = time.perf_counter()
a, b = (safe_open(f"{folder}/model.safetensors", "pt") for folder in sys.argv[1:])
for name in a.keys():
    flat_a, flat_b = a.get_tensor(name).reshape(-1), b.get_tensor(name).reshape(-1)
    sums, counts = torch.zeros(4, dtype=torch.float64), torch.zeros(200)
    for at in range(0, flat_a.numel(), 1 << 20):
        x, y = flat_a[at : at + (1 << 20)], flat_b[at : at + (1 << 20)]
        changed = (x != y).sum()
        x, y = x.float(), y.float()
        shift = y - x
        sums += torch.stack([shift.dot(shift), x.dot(x), y.dot(y), x.dot(y)])
        largest = shift.abs().max()
        counts += torch.histc(shift / (x.abs() + 1e-8), 200, -1, 1)
print(time.perf_counter() - start)
"""
_PAPER = """
import sys, time
import numpy, torch
from transformers import AutoModelForCausalLM
start = time.perf_counter()
a, b = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16) for folder in sys.argv[1:])
with torch.no_grad():
    for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters()):
        x, y = x.float(), y.float()
        norm = torch.norm(y - x).item()
        relative = ((y - x) / (x.abs() + 1e-8)).clamp(-1, 1).flatten().numpy()
        counts = numpy.histogram(relative, bins=200, range=(-1, 1))
print(time.perf_counter() - start)
"""
WAYS = {
    "reading both files": _READING.replace("THREADS", "1"),
    "reading, two threads": _READING.replace("THREADS", "2"),
    "SfN's scan": _SCAN,
    "chunked torch calls": _CHUNKED,
    "the paper's way": _PAPER,
}
_BY_TURNS = ("reading both files", "reading, two threads", "SfN's scan")


def measure(sides: tuple[Path, Path], runs: int) -> dict[str, Run]:
    """One run of each way by its name; reading and scan take turns, and the median of theirs counts."""

    def run(way: str) -> Run:
        for side in sides:  # into the page cache
            subprocess.run(["cat", side / "model.safetensors"], stdout=subprocess.DEVNULL, check=True)
        return watched([sys.executable, "-c", WAYS[way], *sides])

    turns = [{way: run(way) for way in _BY_TURNS} for _ in range(runs)]
    found = {way: median([turn[way] for turn in turns]) for way in _BY_TURNS}
    return found | {way: run(way) for way in WAYS if way not in _BY_TURNS}


def main() -> None:
    """Measure, print the table, and fail where a figure is over what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small pair: whether it works, not how fast")
    parser.add_argument("--folder", help="where the files go for the time of the run (default: the temporary folder)")
    parser.add_argument("--runs", type=int, default=3, help="runs of reading and scan; the median counts")
    options = parser.parse_args()
    shape = QUICK if options.quick else SHAPE
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="sfn-delta-scan-") as folder:
        a = make_side(Path(folder) / "a", 0, shape)
        b = make_side(Path(folder) / "b", 1, shape, near=0)
        size = (a / "model.safetensors").stat().st_size
        print(f"{size / 1e9:.2f} GB a side\n\n{'':22} {'seconds':>8} {'GB/s':>6} {'anonymous memory':>17}")
        found = measure((a, b), options.runs)
    for way, run in found.items():
        memory = run.anonymous_bytes / 1e6
        print(f"{way:22} {run.work_s:7.2f}s {2 * size / 1e9 / run.work_s:6.2f} {memory:14.0f} MB")
    judge(found, options.quick)


def judge(found: dict[str, Run], quick: bool) -> None:
    """Print the ratios; exit with those that miss what is wanted (not of a small pair, whose times say nothing)."""
    scan = found["SfN's scan"]
    ratios = {
        "scan / reading": scan.work_s / found["reading both files"].work_s,
        "the paper's way / scan": found["the paper's way"].work_s / scan.work_s,
        "anonymous memory, MB": scan.anonymous_bytes / 1e6,
    }
    print(f"\nscan / reading with two threads: {scan.work_s / found['reading, two threads'].work_s:.2f}")
    for name, value in ratios.items():
        print(f"{name}: {value:.2f} (wanted {WANTED[name]:g})")
    missed = [
        name
        for name, value in ratios.items()
        if (value < WANTED[name] if name == "the paper's way / scan" else value > WANTED[name])
    ]
    if missed and not quick:
        sys.exit(f"misses what is wanted: {', '.join(missed)}")


if __name__ == "__main__":
    main()
