"""Models of several kinds and what is to happen to them while vLLM runs: the work that swapping.py is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfn import checkpoints, pairs
from sfn.engines import hardware
from tests import builders
from tests.engine.cases import random_recipes

RECIPES = {
    "q alone": "q_proj@all=B",
    "mix": "o_proj@all=B:-0.4; mlp@0=B; emb=B:1.6; head=B; norms@1=B; k_proj@1=zero; v_proj@0=reinit:3",
}
EXPERTS = {"one projection of one expert": "experts.1.up_proj@0=B", "router": "mlp.gate@all=B; down_proj@1=B:0.5"}
MADE = {
    "untied": lambda folder, seed: builders.tiny_qwen2(folder, seed, hidden=128, shards=2),
    "tied": lambda folder, seed: builders.tiny_qwen2(folder, seed, hidden=128, tied=True),
    "qwen3": lambda folder, seed: builders.tiny_qwen3(folder, seed, hidden=64, head_dim=32),
    "moe": lambda folder, seed: builders.tiny_qwen3_moe(folder, seed, hidden=64, head_dim=32, width=32),
}
ASKED = (29, 49)  # of the random recipes: these are compared with fresh engines
LAYER = "model.layers.0"
SPOILS = [
    ("lm_head", "not applied", "head=B"),
    ("lm_head", "rows swapped", "head=B"),
    ("lm_head", "one element", "head=B"),
    (f"{LAYER}.self_attn.o_proj", "columns swapped", "o_proj=B"),
    (f"{LAYER}.self_attn.qkv_proj", "half of it", "q_proj=B"),
    (f"{LAYER}.self_attn.qkv_proj", "raises", "q_proj=B"),
    ("model.embed_tokens", "one element", "emb=B"),
    ("model.norm", "one element", "norms=B"),
]
SPOILED_EXPERTS = [
    (f"{LAYER}.mlp.experts.routed_experts", "not packed", "gate_proj=B"),
    (f"{LAYER}.mlp.experts.routed_experts", "one element", "down_proj=B"),
    (f"{LAYER}.mlp.gate", "rows swapped", "mlp.gate=B"),
]


def work(folder: Path) -> dict[str, Any]:
    """What swapping.py is asked to do, with checkpoints made in `folder`."""
    kinds = {}
    for name, make in MADE.items():
        a, b = make(folder / name / "A", 1), make(folder / name / "B", 2)
        pair = pairs.compare(checkpoints.open(a), checkpoints.open(b))
        experts = name == "moe"
        kinds[name] = {
            "a": str(a),
            "b": str(b),
            "recipes": RECIPES | (EXPERTS if experts else {}),
            "random": random_recipes(pair, 50, 11, words=("mlp.gate", "experts.1", "experts.0.w1") if experts else ()),
            "asked": ASKED,
            "spoils": SPOILS + (SPOILED_EXPERTS if experts else []),
        }
    options = {"dtype": "bfloat16", "max_model_len": 128, "max_num_seqs": 4, "enforce_eager": True}
    options |= {"enable_prefix_caching": False, "gpu_memory_utilization": 0.3}
    if hardware.device_for("vllm") == "cpu":
        options["kv_cache_memory_bytes"] = 2**26
    prompts = [[5, 6, 7, 8, 9, 10, 11], [200, 100, 50, 25]]
    return {"kinds": kinds, "merged": str(folder / "merged"), "prompts": prompts, "max_tokens": 6, "options": options}
