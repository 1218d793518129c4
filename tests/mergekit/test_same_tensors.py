"""What SfN exports, mergekit 0.1.5 merges to the same tensors, bit for bit where SfN says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sfn import checkpoints, demo, pairs, recipes, surgery
from tests.builders import random_tensors, tiny_llama, tiny_qwen2, tiny_qwen3, tiny_qwen3_moe, write_checkpoint
from tests.mergekit.conftest import Merge

PLAIN = [
    "", "o_proj=B", "q_proj=B", "mlp@1-3=B", "norms=B", "norm=B", "emb=B", "head=B", "emb,head=B", "all=B",
    "o_proj=B; mlp@2-4=B; k_proj@0,5=B; emb=B", "all=B; o_proj=A", "all@2-3=B", "emb=B; all@0-2=B",
    "qkv@1=B; norms@5=B", "gate_proj=zero", "all@3=zero; head=B",
]  # fmt: skip
BLENDS = ["o_proj=B:0.5", "mlp@1-3=B:0.3; emb=B:0.7; q_proj=B", "all=B:0.1", "attn=B:1.5; norms@0=B:-0.25"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            found |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    return found


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def planned(pair: pairs.Pair, text: str) -> dict[str, torch.Tensor]:
    """Every tensor of the recipe's plan, head included, under the number its layer has in the result."""
    plan = recipes.resolve(recipes.parse(text), pair)
    kept = [n for n in range(pair.n_layers) if n not in plan.removed]
    found = {}
    for name, source in plan.sources.items():
        layer = pair.by_name[name].part.layer
        if source.kind != "remove":
            new = name if layer is None else name.replace(f"layers.{layer}.", f"layers.{kept.index(layer)}.")
            found[new] = surgery.build(pair, name, source)
    return fused(found)


def fused(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts of a layer as one tensor each for down and for gate and up, as mergekit and transformers 5 have them."""
    layers = sorted({name.partition(".experts.")[0] for name in found if ".experts." in name})
    for layer in layers:
        numbers = range(sum(name.startswith(f"{layer}.experts.") and "down" in name for name in found))
        held = {
            kind: [found.pop(f"{layer}.experts.{n}.{kind}_proj.weight") for n in numbers]
            for kind in ("down", "gate", "up")
        }
        both = [torch.cat(pair) for pair in zip(held["gate"], held["up"], strict=True)]
        found |= {f"{layer}.experts.down_proj": torch.stack(held["down"])}
        found |= {f"{layer}.experts.gate_up_proj": torch.stack(both)}
    return found


def exported(pair: pairs.Pair, texts: list[str]) -> dict[str, str]:
    plans = [recipes.resolve(recipes.parse(text), pair) for text in texts]
    return {f"{n:02}": recipes.to_mergekit(plan, pair).yaml for n, plan in enumerate(plans)}


def without_list_of_layers(folder: Path) -> Path:
    """As real Llama configs are."""
    config = json.loads((folder / "config.json").read_text())
    del config["layer_types"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_same_bits(pair: pairs.Pair, text: str, folder: Path) -> None:
    merged = tensors(folder)
    expected = planned(pair, text)
    missing = expected.keys() - merged.keys()
    assert missing <= {pair.head_name}
    assert merged.keys() <= expected.keys()
    if missing:  # tied: loaders take the embedding
        merged[pair.head_name] = merged[pair.a.embedding_name]
    for name, tensor in expected.items():
        assert merged[name].dtype == tensor.dtype, (text, name)
        assert bits(merged[name]) == bits(tensor), (text, name)


@pytest.fixture(scope="module")
def bundled() -> pairs.Pair:
    return pairs.compare(*map(checkpoints.open, demo.folders()))


def test_the_bundled_pair_has_no_negative_zero(bundled: pairs.Pair) -> None:
    """The one weight that mergekit's `linear` does not keep."""
    for checkpoint in (bundled.a, bundled.b):
        for name in checkpoint.tensors:
            tensor = checkpoint.read(name)
            assert not (torch.signbit(tensor) & (tensor == 0)).any(), name


def test_plain_moves_are_bit_identical_and_blends_near(bundled: pairs.Pair, merge: Merge) -> None:
    folders = merge(exported(bundled, PLAIN + BLENDS))
    for text, folder in zip(PLAIN + BLENDS, folders.values(), strict=True):
        if text in PLAIN:
            assert_same_bits(bundled, text, folder)
    differing = total = 0
    for text, folder in zip(BLENDS, list(folders.values())[len(PLAIN) :], strict=True):
        merged, sources = tensors(folder), recipes.resolve(recipes.parse(text), bundled).sources
        for name, expected in planned(bundled, text).items():
            if sources[name].kind != "blend":
                assert bits(merged[name]) == bits(expected), (text, name)
                continue
            a, b = (bundled.read(side, name).float().abs() for side in "AB")
            last_bit = torch.maximum(a, b) * max(1, abs(sources[name].alpha)) * 2**-7  # of bfloat16, 8 bits
            assert ((merged[name].float() - expected.float()).abs() <= last_bit).all(), (text, name)
            differing += int((merged[name] != expected).sum())
            total += expected.numel()
    assert differing / total < 1e-3  # "about one weight of ten thousand"


def test_ties_dtypes_shapes_and_removed_layers(merge: Merge, tmp_path: Path) -> None:
    """What real pairs differ in: who ties its head, in what dtype, with how many rows; and families beside Qwen2."""
    no_list = [without_list_of_layers(tiny_llama(tmp_path / name, n, layers=4)) for n, name in enumerate("ab")]
    made = {
        "tied": (tiny_qwen2(tmp_path / "1a", tied=True), tiny_qwen2(tmp_path / "1b", 1, tied=True)),
        "tied-a": (tiny_qwen2(tmp_path / "2a", tied=True), tiny_qwen2(tmp_path / "2b", 1)),
        "tied-b": (tiny_qwen2(tmp_path / "3a"), tiny_qwen2(tmp_path / "3b", 1, tied=True)),
        "wide-b": (tiny_qwen2(tmp_path / "4a"), tiny_qwen2(tmp_path / "4b", 1, dtype="float32")),
        "wide-a": (tiny_qwen2(tmp_path / "5a", dtype="float32"), tiny_qwen2(tmp_path / "5b", 1, dtype="float16")),
        "half": (tiny_qwen2(tmp_path / "6a", dtype="float16"), tiny_qwen2(tmp_path / "6b", 1)),
        "vocabulary": (tiny_qwen2(tmp_path / "7a"), tiny_qwen2(tmp_path / "7b", 1, vocab=320)),
        "qwen3": (tiny_qwen3(tmp_path / "8a", shards=2), tiny_qwen3(tmp_path / "8b", 1)),
        "experts": (tiny_qwen3_moe(tmp_path / "9a"), tiny_qwen3_moe(tmp_path / "9b", 1)),
        "removed": no_list,
        "plus@path": (tiny_qwen2(tmp_path / "x+y@z"), tiny_qwen2(tmp_path / "ab", 1)),
    }
    everywhere = ["", "o_proj=B", "mlp@1=B; norms@0=B", "all@1=B"]
    wanted = dict.fromkeys(made, everywhere) | {
        "tied": [*everywhere, "emb,head=B", "all=B"],
        "tied-a": [*everywhere, "emb=B", "head=B", "emb,head=B", "all=B"],
        "tied-b": [*everywhere, "emb=B", "head=B", "emb,head=B", "all=B", "all=B; head=A"],
        "experts": [*everywhere, "down_proj@1=B; router=B", "gate_proj,up_proj@0=B", "all=B"],
        "removed": ["all@1=remove", "all@0,2=remove; o_proj=B; mlp@3=B", "all@2=remove; all@3=B; emb=B"],
    }
    cases, texts = [], {}
    for name, folders in made.items():
        pair = pairs.compare(*map(checkpoints.open, folders))
        for key, text in exported(pair, wanted[name]).items():
            cases.append((pair, wanted[name][int(key)]))
            texts[f"{name}-{key}"] = text
    for (pair, text), folder in zip(cases, merge(texts).values(), strict=True):
        assert_same_bits(pair, text, folder)


def test_passthrough_keeps_what_linear_would_not(merge: Merge, tmp_path: Path) -> None:
    """-0.0: kept by whole layers, and made +0.0 elsewhere, as the config's own comment says."""
    sides = []
    for seed, name in enumerate("ab"):
        made = checkpoints.open(tiny_llama(tmp_path / f"made-{name}", seed))
        held = random_tensors({key: info.shape for key, info in made.tensors.items()}, seed, "bfloat16")
        for tensor in held.values():
            tensor.view(-1)[::3] = -0.0
        sides.append(write_checkpoint(tmp_path / name, held, made.config))
    pair = pairs.compare(*map(checkpoints.open, sides))
    texts = exported(pair, ["all@0=B", "o_proj=B"])
    folders = list(merge(texts).values())
    assert_same_bits(pair, "all@0=B", folders[0])
    assert "-0.0" not in texts["00"]
    merged = tensors(folders[1])
    assert "-0.0" in texts["01"]
    for name, tensor in planned(pair, "o_proj=B").items():
        assert torch.equal(merged[name], tensor)  # as numbers
        assert bits(merged[name]) == bits(tensor + 0.0)
        assert bits(merged[name]) != bits(tensor)


def test_the_benchmark_runs_and_finds_the_same_tensors(mergekit_python: Path) -> None:
    """On a small pair, whose times say nothing."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, root / "benchmarks" / "write_merge.py", "--quick", "--runs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same tensors, bit for bit" in done.stdout
