"""What writing a merged checkpoint takes, beside `cp` of as many bytes and mergekit 0.1.5 doing the same merge.

    .venv/bin/python benchmarks/write_merge.py [--quick] [--folder FOLDER]

Makes a pair of the shape of Qwen2.5-1.5B (3.1 GB a side, 12 GB of disk for the time of the run; --quick: 0.1 GB) with
all files in the page cache, and moves o_proj from B into A. Each side runs in a process of its own; the time is from
opening the pair to the finished folder, libraries loaded. Anonymous memory is sampled every 10 ms (RssAnon of
/proc/PID/status). The two results are compared bit for bit. Fails where a figure is over what is wanted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RECIPE = "o_proj@all=B"
WANTED = {"of cp": 1.3, "mergekit / SfN": 15.0, "anonymous memory, MB": 500.0}

# Layers, hidden, intermediate, key/value width, vocabulary: Qwen2.5-1.5B, whose head is tied.
SHAPE, QUICK = (28, 1536, 8960, 256, 151_936), (4, 512, 2048, 128, 32_000)


def tensor_shapes(layers: int, hidden: int, intermediate: int, kv: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a tied Qwen2."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name, width in (("q", hidden), ("k", kv), ("v", kv)):
            shapes[f"{at}.self_attn.{name}_proj.weight"] = (width, hidden)
            shapes[f"{at}.self_attn.{name}_proj.bias"] = (width,)
        shapes[f"{at}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{at}.mlp.gate_proj.weight"] = shapes[f"{at}.mlp.up_proj.weight"] = (intermediate, hidden)
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, intermediate)
        shapes[f"{at}.input_layernorm.weight"] = shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
    return shapes


def make_side(folder: Path, seed: int, shape: tuple[int, int, int, int, int], *, near: int | None = None) -> Path:
    """One checkpoint: random bfloat16 weights (one draw of 16 M elements, repeated), config, tokenizer.

    `near`: the seed of another side, whose weights these are but for a small change of most, as after a fine-tuning.
    """
    import torch

    from sfn import demo
    from sfn.checkpoints import small_files
    from sfn.headers import encode_header

    folder.mkdir(parents=True)
    a = demo.folders()[0]
    for file in small_files(a):
        shutil.copyfile(file, folder / file.name)
    layers, hidden, intermediate, kv, vocab = shape
    config = json.loads((a / "config.json").read_text()) | {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate, "vocab_size": vocab,
        "num_attention_heads": hidden // 128, "num_key_value_heads": kv // 128, "tie_word_embeddings": True,
        "layer_types": ["full_attention"] * layers,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(seed if near is None else near)
    drawn = torch.randn(1 << 24).mul_(0.02)
    if near is not None:
        torch.manual_seed(seed)
        drawn += torch.randn(1 << 24).mul_(5e-4)
    drawn = drawn.to(torch.bfloat16)
    drawn[drawn == 0] = 1e-3  # no -0.0, which mergekit does not keep
    block = memoryview(drawn.view(torch.uint8).numpy())
    shapes = tensor_shapes(*shape)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(encode_header(((name, "BF16", sizes) for name, sizes in shapes.items()), {"format": "pt"}))
        for sizes in shapes.values():
            left = 2 * torch.Size(sizes).numel()
            while left:
                left -= file.write(block[: min(left, len(block))])
    return folder


@dataclass(frozen=True, slots=True)
class Run:
    """One measured process: seconds that it says its work took, seconds in all, peak of anonymous memory in bytes."""

    work_s: float
    whole_s: float
    anonymous_bytes: int


def watched(command: list[object]) -> Run:
    """Run a command that prints its seconds as its last line."""
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    peak = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous_bytes(process.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    output = process.communicate()[0]
    done.set()
    sampler.join()
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(map(str, command))}\n{output}")
    return Run(float(output.split()[-1]), time.perf_counter() - start, peak)


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process and of those that it started, 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        started = [word for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]
    except OSError:
        return 0
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
    return own + sum(anonymous_bytes(int(child)) for child in started)


_SFN = """
import sys, time
from sfn import checkpoints, pairs, recipes, surgery
a, b, recipe, folder, durable = sys.argv[1:]
start = time.perf_counter()
pair = pairs.compare(checkpoints.open(a), checkpoints.open(b))
surgery.write(pair, recipes.parse(recipe), folder, durable=durable == "durable")
print(time.perf_counter() - start)
"""
_MERGEKIT = """
import sys, time, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
text, folder = open(sys.argv[1]).read(), sys.argv[2]
start = time.perf_counter()
run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), folder, MergeOptions(quiet=True), config_source=text)
print(time.perf_counter() - start)
"""
_CP = (
    'start=$(date +%s.%N); cp "$1" "$2"; [ -z "$3" ] || sync "$2"; echo "$(date +%s.%N) $start" | awk \'{print $1-$2}\''
)


class Bench:
    """A pair in a folder, and one place for results, emptied before each run."""

    def __init__(self, folder: Path, shape: tuple[int, int, int, int, int]) -> None:
        self.folder = folder
        self.a, self.b = (make_side(folder / name, seed, shape) for seed, name in enumerate("ab"))
        self.size_bytes = (self.a / "model.safetensors").stat().st_size

    def out(self) -> Path:
        """Where the next result goes; the last one is gone, and the disk is at rest."""
        place = self.folder / "out"
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run(["sync"], check=True)
        for side in (self.a, self.b):  # into the page cache
            subprocess.run(["cat", side / "model.safetensors"], stdout=subprocess.DEVNULL, check=True)
        return place

    def cp(self, sync: str = "") -> Run:
        """`cp` of A's weights, with `sync` until the disk has them."""
        place = self.out()
        place.mkdir()
        return watched(["sh", "-c", _CP, "sh", self.a / "model.safetensors", place / "model.safetensors", sync])

    def sfn(self, recipe: str = RECIPE, durable: str = "") -> Run:
        """SfN in a fresh process."""
        return watched([sys.executable, "-c", _SFN, self.a, self.b, recipe, self.out(), durable])

    def mergekit(self, python: Path) -> Run:
        """mergekit with the config that SfN exports, result kept in `mergekit`."""
        from sfn import checkpoints, pairs, recipes

        pair = pairs.compare(checkpoints.open(self.a), checkpoints.open(self.b))
        config = self.folder / "config.yml"
        config.write_text(recipes.to_mergekit(recipes.resolve(recipes.parse(RECIPE), pair), pair).yaml)
        self.out()
        return watched([python, "-c", _MERGEKIT, config, self.folder / "mergekit"])

    def same_bits(self) -> bool:
        """Whether SfN's last result and mergekit's hold the same tensors."""
        from sfn import checkpoints

        ours, theirs = checkpoints.open(self.folder / "out"), checkpoints.open(self.folder / "mergekit")
        pairs_of_bytes = (
            (ours.read_bytes(info, info.start, info.end), theirs.read_bytes(other, other.start, other.end))
            for name, info in ours.tensors.items()
            if (other := theirs.tensors.get(name)) is not None
        )
        return ours.tensors.keys() == theirs.tensors.keys() and all(one == two for one, two in pairs_of_bytes)


def median(runs: list[Run]) -> Run:
    """The run with the median time of its work."""
    return sorted(runs, key=lambda run: run.work_s)[len(runs) // 2]


def rows(bench: Bench, python: Path | None, runs: int) -> Iterator[tuple[str, Run]]:
    """What was measured, in the order of the table; `cp` and SfN take turns, as other work comes and goes."""
    turns: dict[str, tuple[Callable[[], Run], list[Run]]] = {
        "cp": (bench.cp, []),
        "SfN": (bench.sfn, []),
        "cp, then sync": (lambda: bench.cp("sync"), []),
        "SfN, durable": (lambda: bench.sfn(durable="durable"), []),
    }
    for _ in range(runs):
        for measure, found in turns.values():
            found.append(measure())
    yield from ((name, median(found)) for name, (_, found) in turns.items())
    if python is not None:
        yield "mergekit 0.1.5", bench.mergekit(python)
        bench.sfn()
        if not bench.same_bits():
            raise SystemExit("SfN's tensors and mergekit's differ.")
        shutil.rmtree(bench.folder / "mergekit")
    yield "SfN, all blended 0.5", bench.sfn("all@all=B:0.5")


def main() -> None:
    """Measure, print the table, and fail where a figure is over what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small pair: whether it works, not how fast")
    parser.add_argument("--folder", help="where the files go for the time of the run (default: the temporary folder)")
    parser.add_argument("--runs", type=int, default=3, help="runs of cp and SfN each; the median counts")
    options = parser.parse_args()

    from scripts import mergekit

    try:
        python: Path | None = mergekit.python()
    except mergekit.Unavailable as reason:
        python = None
        print(f"without mergekit: {reason}")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="sfn-write-merge-") as folder:
        bench = Bench(Path(folder), QUICK if options.quick else SHAPE)
        print(f"{bench.size_bytes / 1e9:.2f} GB a side, {RECIPE}\n")
        print(f"{'':22} {'seconds':>8} {'GB/s':>6} {'whole process':>14} {'anonymous memory':>17}")
        found = {}
        for name, run in rows(bench, python, options.runs):
            found[name] = run
            print(
                f"{name:22} {run.work_s:7.2f}s {bench.size_bytes / 1e9 / run.work_s:6.2f} {run.whole_s:13.2f}s "
                f"{run.anonymous_bytes / 1e6:14.0f} MB"
            )
    judge(found, options.quick)


def judge(found: dict[str, Run], quick: bool) -> None:
    """Print the ratios; exit with those that miss what is wanted (not of a small pair, whose times say nothing)."""
    ours = found["SfN"]
    of_cp = ours.work_s / found["cp"].work_s
    durable = found["SfN, durable"].work_s / found["cp, then sync"].work_s
    print(f"\nSfN / cp: {of_cp:.2f} (wanted {WANTED['of cp']}); durable / cp and sync: {durable:.2f}")
    missed = [] if of_cp <= WANTED["of cp"] else ["time beside cp"]
    if "mergekit 0.1.5" in found:
        faster = found["mergekit 0.1.5"].work_s / ours.work_s
        print(f"mergekit / SfN: {faster:.1f} (wanted {WANTED['mergekit / SfN']:g}); the same tensors, bit for bit")
        missed += [] if faster >= WANTED["mergekit / SfN"] else ["time beside mergekit"]
    most = max(run.anonymous_bytes for name, run in found.items() if name.startswith("SfN")) / 1e6
    print(f"anonymous memory of SfN: {most:.0f} MB at most (wanted {WANTED['anonymous memory, MB']:g})")
    missed += [] if most <= WANTED["anonymous memory, MB"] else ["anonymous memory"]
    if missed and not quick:
        sys.exit(f"misses what is wanted: {', '.join(missed)}")


if __name__ == "__main__":
    main()
