"""What closer looks at one tensor take: rows and columns, map, sketch of the spectrum, all singular values.

    .venv/bin/python benchmarks/closer_looks.py [--shapes 1536x8960 3584x18944] [--looks slices map sketch exact]

Makes a pair of one bfloat16 tensor of each shape, B being A but for small noise, files in the page cache. Each look
runs in a process of its own; anonymous memory, that of processes it starts included, is sampled every 10 ms. Beside the
time of all singular values stands what the page would have announced on this machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.write_merge import watched  # noqa: E402
from sfn.headers import encode_header  # noqa: E402

NAME = "model.layers.0.mlp.down_proj.weight"
LOOKS = ("slices", "map", "sketch", "exact")

_LOOK = """
import sys, time
import numpy, torch
from sfn import checkpoints, matrices, pairs, slices, delta_map, spectrum
a, b, name, look = sys.argv[1:]
pair = pairs.compare(checkpoints.open(a), checkpoints.open(b))
matrix = matrices.Matrix(pair, name)
start = time.perf_counter()
if look == "slices":
    slices.slices(matrix)
elif look == "map":
    delta_map.delta_map(matrix)
else:
    found = spectrum.spectrum(matrix, exact=look == "exact")
    numpy.save(f"{a}/{look}.npy", found.values)
print(time.perf_counter() - start)
"""


def make_pair(folder: Path, shape: tuple[int, int]) -> tuple[Path, Path]:
    """Two checkpoints of one tensor: normal weights, and the same with small noise."""
    import torch

    sides = [folder / "a", folder / "b"]
    header = encode_header([(NAME, "BF16", shape)], {"format": "pt"})
    for side in sides:
        side.mkdir(parents=True)
        (side / "config.json").write_text("{}")
        (side / "model.safetensors").write_bytes(header)
    drawn = torch.Generator().manual_seed(0)
    step = max(1, (1 << 24) // shape[1])
    for start in range(0, shape[0], step):
        size = (min(step, shape[0] - start), shape[1])
        a = torch.empty(size).normal_(0, 0.02, generator=drawn)
        b = a + torch.empty(size).normal_(0, 1e-3, generator=drawn)
        for side, values in zip(sides, (a, b), strict=True):
            with (side / "model.safetensors").open("ab") as file:
                file.write(memoryview(values.to(torch.bfloat16).view(torch.uint8).numpy()).cast("B"))
    return sides[0], sides[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["1536x8960"])
    parser.add_argument("--looks", nargs="+", choices=LOOKS, default=LOOKS)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    for text in asked.shapes:
        rows, columns = map(int, text.split("x"))
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            sides = make_pair(Path(folder), (rows, columns))
            for look in asked.looks:
                run = watched([sys.executable, "-c", _LOOK, *sides, NAME, look])
                print(f"{text:14} {look:7} {run.work_s:7.1f} s {run.anonymous_bytes / 1e6:8,.0f} MB", flush=True)
            _compare(sides[0], (rows, columns))


def _compare(side: Path, shape: tuple[int, int]) -> None:
    """How far the sketch is below, and what the page announces for all singular values."""
    from sfn import spectrum

    sketch, exact = side / "sketch.npy", side / "exact.npy"
    print(f"{'':14} announced for all singular values: {spectrum.exact_s(shape):.1f} s")
    if sketch.exists() and exact.exists():
        low = 1 - np.load(sketch) / np.load(exact)[: spectrum.KEPT]
        print(f"{'':14} the sketch's first value is {low[0]:.2%} low, its last {low[-1]:.2%}, at most {low.max():.2%}")


if __name__ == "__main__":
    main()
