"""Models of several kinds whose weights change while vLLM runs: equal to fresh engines with vLLM's own loader, without
drift, and a spoiled weight is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfn import checkpoints, pairs
from sfn.engines import hardware, vllm_guard
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


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What swapping.py is asked to do."""
    folder, kinds = tmp_path_factory.mktemp("kinds"), {}
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


@pytest.fixture(scope="module")
def found(work, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What it says, by kind."""
    folder = tmp_path_factory.mktemp("swapping")
    (folder / "work.json").write_text(json.dumps(work))
    program = [sys.executable, str(Path(__file__).with_name("swapping.py")), str(folder / "work.json")]
    guard = [sys.executable, "-I", vllm_guard.__file__, str(folder / "record"), str(folder / "own"), *program]
    with (folder / "out").open("w") as out, (folder / "errors").open("w") as errors:
        run = subprocess.Popen(guard, stdin=subprocess.PIPE, stdout=out, stderr=errors, start_new_session=True)
    try:
        assert run.wait(timeout=550) == 0, (folder / "errors").read_text()[-3000:]
    finally:
        run.stdin.close()
        run.wait(timeout=30)
    return json.loads((folder / "out").read_text().splitlines()[-1])


@pytest.mark.parametrize("kind", MADE)
def test_changed_weights_equal_a_fresh_engine_on_the_merged_checkpoint(kind, found, work):
    said, fresh = found[kind]["said"], found[kind]["fresh"]
    assert list(said) == [*work["kinds"][kind]["recipes"], *map(str, ASKED)]
    for name in said:
        assert said[name] == fresh[name], name
    everything = [found[kind]["said at first"], *said.values()]
    assert len({json.dumps(text) for text in everything}) == len(everything)  # or equality would say nothing


@pytest.mark.parametrize("kind", MADE)
def test_fifty_random_recipes_leave_no_trace(kind, found):
    run = found[kind]
    answers = [run["proved"], *run["answers"], run["back"]]
    assert [answer for answer in answers if "error" in answer or "fixed" in answer] == []
    assert all(answer["left"] == 0 for answer in answers)
    assert run["back"]["digest"] == run["proved"]["digest"]
    assert run["said again"] == run["said at first"]
    assert run["reread"] == {"digest": run["proved"]["digest"], "changed": []}
    assert len({answer["digest"] for answer in run["answers"]}) > 45  # nearly all of them are different models


@pytest.mark.parametrize("kind", MADE)
def test_only_what_differs_is_moved(kind, found, work):
    """And all of what makes one module of vLLM's."""
    run = found[kind]
    q_alone = run["answers"][list(RECIPES).index("q alone")]
    assert q_alone["modules"] == 2  # the joined q, k and v of two layers
    tensors = checkpoints.open(work["kinds"][kind]["a"]).tensors
    joined = [info for name, info in tensors.items() if any(f".{each}_proj." in name for each in "qkv")]
    assert q_alone["bytes"] == sum(info.size_bytes for info in joined)
    assert run["proved"]["modules"] == run["proved"]["bytes"] == 0  # what was loaded is proved, not moved
    assert run["proved"]["nowhere"] == []


@pytest.mark.parametrize("kind", MADE)
def test_a_spoiled_weight_is_found_and_mended(kind, found, work):
    run = found[kind]
    for (module, spoil, _), seen in zip(work["kinds"][kind]["spoils"], run["spoiled"], strict=True):
        assert seen["first"]["touched"] is True, (module, spoil, seen)
        told = "the disk went away" if spoil == "raises" else module
        assert told in seen["first"]["error"], (module, spoil, seen)
        assert "error" not in seen["again"], (module, spoil, seen)
        assert seen["again"]["left"] == 0
    spoiled_kinds = {seen["kind"] for seen in run["spoiled"]}
    assert spoiled_kinds == {"Packed", "Live"} | ({"Experts"} if kind == "moe" else set())


@pytest.mark.parametrize("kind", MADE)
def test_a_weight_that_changes_later_is_found_when_all_are_read_again(kind, found, work):
    run = found[kind]
    corrupted = [module for module, spoil, _ in work["kinds"][kind]["spoils"] if spoil not in ("raises", "not applied")]
    assert run["corrupted"] == [[module] for module in corrupted]
    assert run["mended"] == run["reread"]
