"""What a 32B pair on the Hub costs: checking it from headers, reading one module of it, going on after a kill.

    .venv/bin/python benchmarks/hub_reads.py [--layers 8] [--runs 3]

The server is `tests/hub_server.py` on this machine; the pair has the headers of Qwen2.5-32B and files full of holes, so
that it takes no disk. What is measured runs in processes of its own with empty caches, through huggingface_hub's real
client. `curl` fetches the same bytes in the same run: eight connections, the links of the CDN given, and written to a
file, as SfN's spool does; and once more to nowhere. The scan's own arithmetic is measured apart.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sfn.headers import encode_header  # noqa: E402
from tests.hub_server import Hub  # noqa: E402

LAYERS, HIDDEN, MLP, KV, VOCABULARY, SHARDS = 64, 5120, 27648, 1024, 152064, 17
PIECE_BYTES = 8 << 20  # sfn.hub.readahead.PIECE_BYTES: one block
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16", "hidden_size": HIDDEN,
    "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": 40, "num_key_value_heads": 8,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131072,
    "vocab_size": VOCABULARY, "tie_word_embeddings": False, "eos_token_id": 151643, "bos_token_id": 151643,
}  # fmt: skip


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of Qwen2.5-32B."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name, rows in (("q", HIDDEN), ("k", KV), ("v", KV)):
            yield f"{at}.self_attn.{name}_proj.weight", (rows, HIDDEN)
            yield f"{at}.self_attn.{name}_proj.bias", (rows,)
        yield f"{at}.self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            yield f"{at}.mlp.{name}_proj.weight", (MLP, HIDDEN)
        yield f"{at}.mlp.down_proj.weight", (HIDDEN, MLP)
        for name in ("input", "post_attention"):
            yield f"{at}.{name}_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def sparse_model(folder: Path, eos: int) -> Path:
    """The model's files: true headers, holes for weights; a tokenizer of the usual size, which differs with `eos`."""
    folder.mkdir(parents=True)
    tensors = list(shapes())
    share = -(-len(tensors) // SHARDS)
    weight_map = {}
    for number in range(SHARDS):
        part = [(name, "BF16", shape) for name, shape in tensors[number * share : (number + 1) * share]]
        name = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        header = encode_header(part, {"format": "pt", "side": str(eos)})
        size = sum(2 * (shape[0] * shape[1] if len(shape) == 2 else shape[0]) for _, _, shape in part)
        with (folder / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + size)
        weight_map |= {tensor: name for tensor, _, _ in part}
    write = {
        "config.json": CONFIG | {"eos_token_id": eos},
        "generation_config.json": {"eos_token_id": eos},
        "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "chat_template": "{{ messages }}" * 300},
        "model.safetensors.index.json": {"metadata": {"total_size": 0}, "weight_map": weight_map},
        "tokenizer.json": {"model": {"vocab": {f"token-{n:06d}-{eos}": n for n in range(230_000)}}},
    }
    for name, content in write.items():
        (folder / name).write_text(json.dumps(content))
    return folder


# What is measured, each in a process of its own.


def child(task: str, layers: int, skip: int) -> dict[str, float]:
    """Seconds and bytes of one task, once everything is imported. skip: tensors that are finished already."""
    import torch  # noqa: F401  # as in the app, which has it loaded

    from sfn import delta, pairs

    start = time.perf_counter()
    pair = pairs.compare(*pairs.open_both("org/a", "org/b"))
    compared_s = time.perf_counter() - start
    if task == "compare":
        return {
            "seconds": compared_s,
            "size_bytes": pair.a.size_bytes + pair.b.size_bytes,
            "findings": len(pair.findings),
        }
    names = [row.name for row in pair.rows if row.part.module == "o_proj" and row.part.layer < layers]
    names = names[skip:]
    rows = [pair.by_name[name] for name in names]
    start = time.perf_counter()
    with pair.read_ahead(names):
        if task == "read":
            for row in rows:
                step = delta.BLOCK // HIDDEN  # as delta reads them
                for first in range(0, HIDDEN, step):
                    for side in ("A", "B"):
                        pair.read_rows(side, row.name, first, min(HIDDEN, first + step))
        else:
            for one in delta.scan(pair, names):
                print(one.name, flush=True)
    size = sum(row.a.size_bytes + row.b.size_bytes for row in rows)
    return {"seconds": time.perf_counter() - start, "size_bytes": size}


class Bench:
    """A Hub with the pair, and children with caches of their own."""

    def __init__(self, hub: Hub, place: Path, layers: int) -> None:
        self.hub, self.place, self.layers = hub, place, layers
        for eos, name in enumerate("ab"):
            hub.add(f"org/{name}", sparse_model(place / name, eos), quick=True)

    def start(self, task: str, cache: str, skip: int = 0) -> subprocess.Popen[str]:
        """A child, running."""
        environment = os.environ | {
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(self.place / cache / "hf"),
            "SFN_CACHE": str(self.place / cache / "sfn"),
        }
        command = [sys.executable, __file__, "--child", task, "--layers", str(self.layers), "--skip", str(skip)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def run(self, task: str, cache: str, skip: int = 0) -> dict[str, float]:
        """A child's figures, with the bytes and requests that reached the server."""
        self.hub.clear()
        process = self.start(task, cache, skip)
        said, _ = process.communicate()
        assert process.returncode == 0, f"{task} failed"
        figures = json.loads(said.splitlines()[-1])
        return figures | {"sent": self.hub.bytes_sent, "requests": len(self.hub.requests)}

    def ranges(self) -> list[tuple[str, int, int]]:
        """(link, first byte, last byte) of the chosen tensors, in blocks, from the servers' own files."""
        from sfn.headers import read_header

        found = []
        for name in "ab":
            files = self.hub.repos[f"org/{name}"].commits[self.hub.repos[f"org/{name}"].refs["main"]]
            for file in files.values():
                if file.path.suffix == ".safetensors":
                    link = self.hub.link(file)
                    for info in read_header(file.path)[0].values():
                        if ".o_proj." in info.name and int(info.name.split(".")[2]) < self.layers:
                            for at in range(info.start, info.end, PIECE_BYTES):
                                found.append((link, at, min(info.end, at + PIECE_BYTES) - 1))
        return found

    def curl_s(self, target: str) -> float:
        """Seconds that curl takes for the same ranges over eight connections; target: a folder, or os.devnull."""
        lines = []
        for number, (link, first, last) in enumerate(self.ranges()):
            out = target if target == os.devnull else f"{target}/{number}"
            lines.append(f'url = "{link}"\nrange = "{first}-{last}"\noutput = "{out}"\nsilent\n')
        config = self.place / "curl.txt"
        config.write_text("next\n".join(lines))
        start = time.perf_counter()
        subprocess.run(["curl", "--parallel", "--parallel-max", "8", "--config", str(config)], check=True)
        return time.perf_counter() - start

    def killed(self) -> tuple[int, int]:
        """Bytes sent before a kill in mid-scan, and after it, to a scan that goes on with what was not finished."""
        cache = "killed"
        self.run("compare", cache)
        self.hub.clear()
        process = self.start("scan", cache)
        process.stdout.readline()  # type: ignore[union-attr]  # one tensor is finished
        time.sleep(0.15)
        process.send_signal(signal.SIGKILL)
        finished = 1 + len(process.communicate()[0].splitlines())
        time.sleep(0.5)
        before = self.hub.bytes_sent
        return before, int(self.run("read", cache, finished)["sent"])


def table(rows: list[tuple[str, str, str]]) -> None:
    """Rows of (what, measured, wanted), aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=8, help="layers whose o_proj is read (64: all of them)")
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=("compare", "read", "scan"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, given.layers, given.skip)))
        return
    with tempfile.TemporaryDirectory() as place, Hub() as hub:
        bench = Bench(hub, Path(place), given.layers)
        compared = [bench.run("compare", f"new {number}") for number in range(given.runs)]
        again = bench.run("compare", "new 0")
        (Path(place) / "curl").mkdir()
        reads, to_files, nowhere = [], [], []
        for _ in range(given.runs):  # by turns, since other work on the machine comes and goes
            reads.append(bench.run("read", "new 0"))
            to_files.append(bench.curl_s(f"{place}/curl"))
            nowhere.append(bench.curl_s(os.devnull))
        scanned = bench.run("scan", "new 0")
        before, after = bench.killed()
    size = int(reads[0]["size_bytes"])
    opened = again["sent"]
    first, read = (min(found, key=lambda run: run["seconds"]) for found in (compared, reads))
    seconds = {"SfN": read["seconds"], "files": min(to_files), "nowhere": min(nowhere), "scan": scanned["seconds"]}
    rate = {name: size / 1e9 / taken for name, taken in seconds.items()}
    twice = before + after - 2 * opened - size
    table(
        [
            ("pair", f"{first['size_bytes'] / 1e9:.1f} GB in {2 * SHARDS} files; best of {given.runs} runs each", ""),
            ("compare, nothing known", f"{first['seconds']:.2f} s", "≤ 3 s"),
            ("  fetched", f"{first['sent'] / 1e6:.2f} MB in {first['requests']} requests", "≤ 5 MB"),
            ("compare again", f"{again['seconds']:.2f} s, {opened / 1e3:.0f} kB in {again['requests']} requests", ""),
            (f"o_proj of {given.layers} layers", f"{size / 1e9:.2f} GB", ""),
            ("  fetched / bytes of the chosen tensors", f"{(read['sent'] - opened) / size:.4f}", "≤ 1.01"),
            ("  reading alone", f"{rate['SfN']:.2f} GB/s", ""),
            ("  curl, same ranges, into files", f"{rate['files']:.2f} GB/s", ""),
            ("  curl, same ranges, to /dev/null", f"{rate['nowhere']:.2f} GB/s", ""),
            ("  SfN / curl into files", f"{rate['SfN'] / rate['files']:.2f}", "≥ 0.8"),
            ("  SfN / curl to /dev/null", f"{rate['SfN'] / rate['nowhere']:.2f}", ""),
            ("  with delta's arithmetic", f"{rate['scan']:.2f} GB/s", ""),
            ("killed in mid-scan", f"after {before / 1e6:.0f} MB were sent", ""),
            ("  sent twice", f"{twice / 1e6:.2f} MB", f"≤ one block, {PIECE_BYTES / 1e6:.1f} MB"),
        ]
    )


if __name__ == "__main__":
    main()
