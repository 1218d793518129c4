"""A LoRA adapter as B: its base with scale · B A added, exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfn import checkpoints, delta, pairs, recipes, surgery
from sfn.errors import CheckpointError
from tests.builders import tiny_qwen2, write_tokenizer

LAYER = "model.layers.0.self_attn"
NAME = f"{LAYER}.o_proj.weight"


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    """An adapter as peft saves it; names without their prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base"} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def factors(module: str = f"{LAYER}.o_proj", out: int = 32, into: int = 32, rank: int = 4) -> dict[str, torch.Tensor]:
    return {f"{module}.lora_A.weight": drawn(rank, into), f"{module}.lora_B.weight": drawn(out, rank, seed=1)}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"lora_alpha": 3}, 0.75),
        ({"alpha_pattern": {"o_proj": 16}}, 4.0),
        ({"alpha_pattern": {"q_proj": 16}, "rank_pattern": {"o_proj": 4}, "r": 64}, 2.0),
    ],
)
def test_the_change_is_scale_times_b_a(tmp_path: Path, config: dict[str, object], scale: float) -> None:
    parts = factors()
    a, b = pairs.open_both(tiny_qwen2(tmp_path / "a"), adapter(tmp_path / "b", parts, **config))
    change = scale * parts[f"{LAYER}.o_proj.lora_B.weight"] @ parts[f"{LAYER}.o_proj.lora_A.weight"]
    expected = a.read(NAME).float() + change
    assert torch.allclose(b.read(NAME), expected, atol=1e-7)
    assert torch.equal(b.read_rows(NAME, 3, 9), b.read(NAME)[3:9])
    pair = pairs.compare(a, b)
    measured = {found.name: found for found in delta.scan(pair)}
    assert math.isclose(measured[NAME].l2_shift, float(change.double().norm()), rel_tol=1e-5)
    assert [name for name, found in measured.items() if found.l2_shift] == [NAME]
    assert {row.name for row in pair.rows if row.a and row.b and row.a.dtype != row.b.dtype} == {NAME}
    assert "is an adapter" in next(f.sentence for f in pair.findings if f.topic == "adapter")


def test_embeddings_transposes_and_whole_tensors(tmp_path: Path) -> None:
    head = drawn(288, 32, seed=5).to(torch.bfloat16)
    parts = {
        "model.embed_tokens.lora_embedding_A": drawn(4, 288),
        "model.embed_tokens.lora_embedding_B": drawn(32, 4, seed=1),
        "lm_head.modules_to_save.weight": head,
        "model.norm.weight": torch.full((32,), 2.0),
    }
    a, b = pairs.open_both(tiny_qwen2(tmp_path / "a"), adapter(tmp_path / "b", parts))
    change = 2.0 * (parts["model.embed_tokens.lora_embedding_B"] @ parts["model.embed_tokens.lora_embedding_A"]).T
    name = "model.embed_tokens.weight"
    assert torch.allclose(b.read(name), a.read(name).float() + change, atol=1e-7)
    assert torch.equal(b.read("lm_head.weight"), head)
    assert torch.equal(b.read("model.norm.weight"), parts["model.norm.weight"])
    up = f"{LAYER}.k_proj"
    turned = {f"{up}.lora_A.weight": drawn(4, 16), f"{up}.lora_B.weight": drawn(32, 4, seed=1)}
    _, c = pairs.open_both(tmp_path / "a", adapter(tmp_path / "c", turned, fan_in_fan_out=True))
    change = 2.0 * (turned[f"{up}.lora_B.weight"] @ turned[f"{up}.lora_A.weight"]).T
    assert torch.allclose(c.read(f"{up}.weight"), a.read(f"{up}.weight").float() + change, atol=1e-7)


def test_a_tied_base_may_get_a_head(tmp_path: Path) -> None:
    head = drawn(288, 32).to(torch.bfloat16)
    folder = adapter(tmp_path / "b", {"lm_head.weight": head})
    a, b = pairs.open_both(tiny_qwen2(tmp_path / "a", tied=True), folder)
    pair = pairs.compare(a, b)
    assert (a.tied, b.tied) == (True, False)
    assert torch.equal(pair.read("B", "lm_head.weight"), head)
    assert torch.equal(pair.read("A", "lm_head.weight"), a.read("model.embed_tokens.weight"))
    with pytest.raises(CheckpointError, match="uses its embedding as head"):
        pairs.open_both(tmp_path / "a", adapter(tmp_path / "c", factors("lm_head", 288, 32)))


def test_merging_moves_the_change(tmp_path: Path) -> None:
    a, b = pairs.open_both(tiny_qwen2(tmp_path / "a"), adapter(tmp_path / "b", factors()))
    merged = checkpoints.open(surgery.write(pairs.compare(a, b), recipes.parse("o_proj=B"), tmp_path / "m"))
    assert torch.equal(merged.read(NAME), b.read(NAME).to(torch.bfloat16))
    other = NAME.replace("layers.0", "layers.1")
    assert torch.equal(merged.read(other), a.read(other))


def test_identity_covers_base_factors_and_settings(tmp_path: Path) -> None:
    base, parts = tiny_qwen2(tmp_path / "a"), factors()

    def identity(folder: Path, base: Path = base) -> str:
        return pairs.open_both(base, folder)[1].fingerprint

    first = identity(adapter(tmp_path / "b", parts))
    assert first == identity(adapter(tmp_path / "c", parts))
    assert first != identity(adapter(tmp_path / "d", parts, lora_alpha=9))
    assert first != identity(adapter(tmp_path / "e", {name: part * 2 for name, part in parts.items()}))
    assert first != identity(tmp_path / "b", tiny_qwen2(tmp_path / "other", seed=3))


def test_the_base_is_found_and_the_tokenizer_borrowed(tmp_path: Path) -> None:
    base = tiny_qwen2(tmp_path / "a")
    folder = adapter(tmp_path / "b", factors(), base_model_name_or_path=str(base))
    opened = checkpoints.open(folder)
    assert opened.folder == folder
    assert opened.has_file("tokenizer.json")
    assert opened.speech_folder() == base
    assert opened.config["model_type"] == "qwen2"
    write_tokenizer(folder)
    assert checkpoints.open(folder).speech_folder() == folder
    lost = adapter(tmp_path / "c", factors(), base_model_name_or_path=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"its base .*nowhere cannot be opened: .* Choose the base as A"):
        checkpoints.open(lost)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "its kind is IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"layer_replication": [[0, 1]]}, "repeats layers"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "fused tensors"),
        ({"lora_bias": True}, "biases of its own"),
    ],
)
def test_what_cannot_be_applied_is_refused(tmp_path: Path, config: dict[str, object], words: str) -> None:
    base = tiny_qwen2(tmp_path / "a")
    with pytest.raises(CheckpointError, match=rf"{words}.*merge_and_unload"):
        pairs.open_both(base, adapter(tmp_path / "b", factors(), **config))


def test_adapters_of_other_models_are_refused(tmp_path: Path) -> None:
    base = tiny_qwen2(tmp_path / "a")
    for number, (tensors, words) in enumerate(
        (
            (factors(out=48), "48 × 32, the base's tensor has the shape"),
            (factors("model.layers.7.self_attn.o_proj"), "which its base does not have"),
            ({f"{LAYER}.o_proj.lora_A.weight": drawn(4, 32)}, "only one of the two factors"),
        )
    ):
        with pytest.raises(CheckpointError, match=words):
            pairs.open_both(base, adapter(tmp_path / str(number), tensors))
