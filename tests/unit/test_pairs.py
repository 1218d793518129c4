"""Putting B beside A: rows, what differs, what that means, and the words in which it is said."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sfn import checkpoints, pairs
from sfn.errors import CheckpointError, PairError
from tests.builders import (
    random_tensors,
    tiny_llama,
    tiny_qwen2,
    tiny_qwen3,
    tiny_qwen3_moe,
    write_checkpoint,
    write_tokenizer,
)


def compared(a: Path, b: Path) -> pairs.Pair:
    return pairs.compare(checkpoints.open(a), checkpoints.open(b))


def topics(pair: pairs.Pair) -> dict[str, pairs.Finding]:
    return {finding.topic: finding for finding in pair.findings}


def edit_config(folder: Path, **changes: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_equal_models_match_in_everything(tmp_path: Path) -> None:
    pair = compared(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1))
    assert pair.label == "a → b"
    assert pair.n_layers == 2
    assert pair.findings == ()
    assert all(row.comparable and row.movable and not row.problem for row in pair.rows)
    assert pair.modules == (
        "embed_tokens", "input_layernorm", "q_proj", "k_proj", "v_proj", "o_proj", "post_attention_layernorm",
        "gate_proj", "up_proj", "down_proj", "norm", "lm_head",
    )  # fmt: skip
    names = [row.name for row in pair.rows]
    assert names[0] == "model.embed_tokens.weight"
    assert names[-2:] == ["model.norm.weight", "lm_head.weight"]
    assert "27 of 27 tensors can be compared, 27 can be moved" in pair.report()
    assert "nothing but the weights" in pair.report()
    assert "The same on both sides: architecture, hidden size, heads" in pair.report()


def test_key_follows_content_and_order(tmp_path: Path) -> None:
    a, b = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1)
    again = tiny_qwen2(tmp_path / "copy of b", seed=1)
    assert compared(a, b).key == compared(a, again).key
    assert compared(a, b).key != compared(b, a).key


def test_a_tied_side_lends_its_embedding(tmp_path: Path) -> None:
    pair = compared(tiny_qwen2(tmp_path / "a", tied=True), tiny_qwen2(tmp_path / "b", seed=1))
    row = pair.by_name["lm_head.weight"]
    assert row.comparable
    assert row.movable
    assert pair.info("A", "lm_head.weight").shape == (288, 32)
    assert pair.read("A", "lm_head.weight").equal(pair.a.read("model.embed_tokens.weight"))
    assert pair.read_rows("A", "lm_head.weight", 2, 5).equal(pair.a.read("model.embed_tokens.weight")[2:5])
    assert pair.read("B", "lm_head.weight").equal(pair.b.read("lm_head.weight"))
    assert "A uses its embedding as output head" in topics(pair)["tied head"].sentence


def test_two_tied_sides_both_lend(tmp_path: Path) -> None:
    pair = compared(tiny_qwen2(tmp_path / "a", tied=True), tiny_qwen2(tmp_path / "b", seed=1, tied=True))
    assert pair.by_name["lm_head.weight"].movable
    assert pair.findings == ()


def test_the_head_keeps_the_name_that_the_other_side_has(tmp_path: Path) -> None:
    shapes = {"gpt_neox.embed_in.weight": (64, 8), "gpt_neox.layers.0.attention.dense.weight": (8, 8)}
    a = write_checkpoint(tmp_path / "a", random_tensors(shapes, 0, "float32"), {"tie_word_embeddings": True})
    b = write_checkpoint(tmp_path / "b", random_tensors(shapes | {"embed_out.weight": (64, 8)}, 1, "float32"), {})
    pair = compared(a, b)
    assert pair.head_name == "embed_out.weight"
    assert pair.by_name["embed_out.weight"].movable
    assert pair.read("A", "embed_out.weight").equal(pair.a.read("gpt_neox.embed_in.weight"))


def test_reading_what_a_side_lacks(tmp_path: Path) -> None:
    pair = compared(tiny_qwen2(tmp_path / "a"), tiny_qwen3(tmp_path / "b"))
    with pytest.raises(PairError, match=r"A .* has no tensor 'model.layers.0.self_attn.q_norm.weight'"):
        pair.read("A", "model.layers.0.self_attn.q_norm.weight")
    with pytest.raises(PairError, match="has no tensor 'nonsense'"):
        pair.read("B", "nonsense")


def test_missing_tensors_and_other_shapes_are_gathered(tmp_path: Path) -> None:
    pair = compared(tiny_qwen2(tmp_path / "a"), tiny_qwen3(tmp_path / "b"))
    found = [finding.sentence for finding in pair.findings if finding.topic == "missing tensors"]
    assert "6 tensors are only in A: q_proj.bias (2 layers), k_proj.bias (2 layers), v_proj.bias (2 layers)." in found
    assert "4 tensors are only in B: q_norm.weight (2 layers), k_norm.weight (2 layers)." in found
    assert "8 tensors are of another shape" in topics(pair)["shapes"].sentence
    assert topics(pair)["architecture"].severity == "limit"
    row = pair.by_name["model.layers.0.self_attn.q_proj.weight"]
    assert (row.comparable, row.movable) == (False, False)
    assert row.problem == "The shapes differ: 32 × 32 in A, 64 × 32 in B."
    assert pair.by_name["model.layers.0.mlp.up_proj.weight"].movable


@pytest.mark.parametrize(
    ("change", "topic"), [({"layers": 3}, "depth"), ({"hidden": 64}, "hidden size")], ids=["depth", "width"]
)
def test_depth_and_width_stop_a_merge_but_nothing_else(tmp_path: Path, change: dict, topic: str) -> None:
    pair = compared(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1, **change))
    assert topics(pair)[topic].severity == "stop"
    assert pair.findings[0].severity == "stop"
    assert not pair.mergeable
    assert not any(row.movable for row in pair.rows)
    assert "Stops a merge:" in pair.report()
    if topic == "depth":
        assert pair.by_name["model.layers.1.mlp.up_proj.weight"].comparable
        assert "cannot be merged" in pair.by_name["model.layers.1.mlp.up_proj.weight"].problem


def test_nothing_in_common(tmp_path: Path) -> None:
    b = write_checkpoint(tmp_path / "b", random_tensors({"unet.conv.weight": (4, 4)}, 0, "float32"), {})
    pair = compared(tiny_qwen2(tmp_path / "a"), b)
    assert topics(pair)["names"].severity == "stop"
    assert not any(row.comparable for row in pair.rows)
    assert "one tensor name in common" in pair.report()


def test_vocabulary_sizes_may_differ(tmp_path: Path) -> None:
    pair = compared(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1, vocab=320))
    assert topics(pair)["vocabulary"].sentence == "The embedding has 288 rows in A, 320 in B."
    assert not pair.by_name["model.embed_tokens.weight"].movable
    assert pair.by_name["lm_head.weight"].comparable
    assert "first 288 rows" in topics(pair)["vocabulary"].means
    assert "shapes" not in topics(pair)
    assert pair.by_name["model.layers.0.self_attn.o_proj.weight"].movable
    assert pair.mergeable


def test_dtypes_may_differ(tmp_path: Path) -> None:
    pair = compared(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", dtype="float32"))
    assert "27 tensors are stored as BF16 in A and as F32 in B." in topics(pair)["dtype"].sentence
    assert all(row.movable for row in pair.rows)
    codes = compared(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "c", dtype="float8_e4m3fn"))
    assert topics(codes)["dtype"].severity == "limit"
    row = codes.by_name["model.norm.weight"]
    assert (row.comparable, row.movable) == (True, False)


@pytest.mark.parametrize(
    ("change", "topic", "words"),
    [
        ({"rms_norm_eps": 1e-5}, "norm", "A has 1e-06, B has 1e-05"),
        ({"rms_norm_eps": None, "layer_norm_eps": 1e-6}, "norm", "A has RMS norm, B has layer norm"),
        ({"hidden_act": "gelu"}, "activation", "A has silu, B has gelu"),
        ({"num_key_value_heads": 1}, "heads", "num_key_value_heads: A has 2, B has 1"),
        ({"max_position_embeddings": 131072}, "context", "A has 128, B has 131,072"),
        (
            {"use_sliding_window": True, "sliding_window": 64},
            "context",
            "Sliding attention window: A has none, B has 64",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantisation", "A not, B fp8"),
        ({"architectures": ["Qwen2ForRewardModel"]}, "architecture", "Qwen2ForRewardModel"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, "rope", "A has 10000.0, B has 1000000.0"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}}, "rope", "factor: A has none"),
    ],
)
def test_settings_that_differ(tmp_path: Path, change: dict, topic: str, words: str) -> None:
    pair = compared(tiny_qwen2(tmp_path / "a"), edit_config(tiny_qwen2(tmp_path / "b", seed=1), **change))
    assert [finding.topic for finding in pair.findings] == [topic]
    assert words in pair.findings[0].sentence
    assert pair.findings[0].means


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_parameters": None, "rope_theta": 10000},
        {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None},
        {"rope_parameters": None},
        {"rope_parameters": None, "rope_scaling": {"type": "default"}},
    ],
)
def test_old_and_new_spellings_of_rope_are_the_same(tmp_path: Path, spelling: dict) -> None:
    pair = compared(tiny_qwen2(tmp_path / "a"), edit_config(tiny_qwen2(tmp_path / "b", seed=1), **spelling))
    assert pair.findings == ()


def test_old_and_new_spellings_of_scaled_rope_are_the_same(tmp_path: Path) -> None:
    old = {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8}}
    new = {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000}}
    a, b = (edit_config(tiny_llama(tmp_path / name), **change) for name, change in (("a", old), ("b", new)))
    assert compared(a, b).findings == ()


def test_tokens_that_differ_are_counted(tmp_path: Path) -> None:
    a, b = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1)
    write_tokenizer(b, words=["the", "of"])
    finding = topics(compared(a, b))["tokenizer"]
    assert "3 of 263 tokens are not the same on both sides ('th', 'the', 'of')" in finding.sentence
    assert "merge rules differ" in finding.sentence
    assert finding.severity == "limit"


def test_a_token_that_is_only_marked_otherwise_is_a_note(tmp_path: Path) -> None:
    a, b = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1)
    file = b / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"][2]["special"] = False
    file.write_text(json.dumps(content))
    finding = topics(compared(a, b))["tokenizer"]
    assert "1 added tokens are marked differently ('<|user|>')" in finding.sentence
    assert finding.severity == "note"


def test_chat_template_end_token_and_generation_settings(tmp_path: Path) -> None:
    a, b = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1)
    (b / "chat_template.jinja").write_text("{{ messages }}")
    (b / "generation_config.json").write_text('{"eos_token_id": [1, 2], "temperature": 0.6}')
    found = topics(compared(a, b))
    assert found["chat template"].sentence == "The chat templates differ."
    assert found["end token"].sentence == "eos_token_id: A has 1, B has 1, 2."
    assert "temperature: A null, B 0.6" in found["generation"].sentence
    (b / "chat_template.jinja").unlink()
    assert topics(compared(a, b))["chat template"].sentence == "B has no chat template, the other side has."
    settings = json.loads((b / "tokenizer_config.json").read_text())
    template = (a / "chat_template.jinja").read_text()
    (b / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template + "\n"}))
    assert "chat template" not in topics(compared(a, b))


def test_missing_and_broken_small_files(tmp_path: Path) -> None:
    a, b = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1)
    (b / "config.json").unlink()
    (b / "tokenizer.json").unlink()
    found = topics(compared(a, b))
    assert "has no config.json" in found["config"].sentence
    assert "B has no tokenizer.json" in found["tokenizer"].sentence
    (b / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config.json is not valid JSON"):
        compared(a, b)


@pytest.mark.parametrize("value", [None, 3, "text", [], [[1]], {}, {"a": {"b": []}}, True], ids=repr)
def test_odd_values_in_small_files_never_crash(tmp_path: Path, value: object) -> None:
    a, b = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1)
    config = json.loads((b / "config.json").read_text())
    (b / "config.json").write_text(json.dumps(dict.fromkeys([*config, "quantization_config", "text_config"], value)))
    (b / "generation_config.json").write_text(json.dumps(dict.fromkeys(["eos_token_id", "top_k"], value)))
    tokenizer = json.loads((b / "tokenizer.json").read_text())
    odd = {"added_tokens": [value, {"content": value, "id": value}], "model": {"vocab": {"x": value}, "merges": value}}
    for content in (dict.fromkeys(tokenizer, value), odd):
        (b / "tokenizer.json").write_text(json.dumps(content))
        assert compared(a, b).report()
        assert compared(b, a).report()


def test_experts_stand_in_one_row(tmp_path: Path) -> None:
    pair = compared(tiny_qwen3_moe(tmp_path / "a"), tiny_qwen3_moe(tmp_path / "b", seed=1, shards=3))
    assert pair.findings == ()
    assert "experts.gate_proj" in pair.modules
    assert "2 layers, 3 files" in pair.report()


def test_same_folder_is_said(tmp_path: Path) -> None:
    a = tiny_qwen2(tmp_path / "a")
    assert topics(compared(a, a))["folder"].severity == "note"


def test_64_layers_compare_in_well_under_a_second_and_without_torch(tmp_path: Path) -> None:
    a, b = (tiny_qwen2(tmp_path / name, layers=64, hidden=8, shards=8) for name in "ab")
    code = (
        "import sys, time\nstart = time.process_time()\nimport sfn\n"
        "pair = sfn.pairs.compare(*map(sfn.checkpoints.open, sys.argv[1:]))\npair.report()\n"
        "assert 'torch' not in sys.modules\nassert pair.n_layers == 64\nprint(time.process_time() - start)"
    )
    output = subprocess.run([sys.executable, "-c", code, a, b], capture_output=True, text=True, check=True)
    assert float(output.stdout) < 1.0
    start = time.process_time()
    assert len(compared(a, b).rows) == 64 * 12 + 3
    assert time.process_time() - start < 0.5


def test_codes_with_scales_are_values(tmp_path: Path) -> None:
    shapes = {"model.embed_tokens.weight": (8, 4), "model.layers.0.mlp.up_proj.weight": (4, 4)}
    tensors = random_tensors(shapes, 0, "float32")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = torch.ones(1)
    folder = write_checkpoint(tmp_path / "a", tensors, {"quantization_config": {"quant_method": "fp8"}})
    pair = compared(folder, folder)
    assert all(row.movable for row in pair.rows)
    assert len(pair.rows) == 3  # the embedding as head, and no scale
    assert "8-bit codes with scales" in topics(pair)["format"].sentence
    assert "quantisation" not in topics(pair)
