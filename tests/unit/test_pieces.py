"""Which rows or columns are a head's or a gate's: in made tensors of each known order where one piece alone changed."""

from __future__ import annotations

import numpy as np
import pytest

from sfn import anatomy, checkpoints, looks, pairs, pieces, slices
from tests.builders import tiny_qwen2

CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}


def division(name: str, shape: tuple[int, ...], **config: object) -> pieces.Division:
    return pieces.of(CONFIG | config, anatomy.parse(name), shape)


def cut(name: str, shape: tuple[int, ...], **config: object) -> tuple[object, ...]:
    """axis, what, pieces, width of a tensor with one kind of pieces."""
    (kind,) = division(f"model.layers.0.self_attn.{name}", shape, **config).kinds
    assert kind.starts == tuple(range(0, len(kind.labels) * kind.width, kind.width))
    return kind.axis, kind.what, len(kind.labels), kind.width


def test_heads_by_config_and_shape():
    assert cut("o_proj.weight", (32, 32)) == ("columns", "head", 4, 8)
    assert cut("q_proj.weight", (32, 32)) == ("rows", "head", 4, 8)
    assert cut("k_proj.weight", (16, 32)) == ("rows", "KV head", 2, 8)
    assert cut("v_proj.bias", (16,)) == ("rows", "KV head", 2, 8)
    assert cut("q_proj.weight", (64, 32), head_dim=16) == ("rows", "head", 4, 16)
    assert cut("k_proj.weight", (32, 32), num_key_value_heads=None) == ("rows", "head", 4, 8)
    (kind,) = division("model.layers.0.self_attn.k_proj.weight", (16, 32)).kinds
    assert kind.labels == ("KV head 0 (heads 0 to 1)", "KV head 1 (heads 2 to 3)")


@pytest.mark.parametrize(
    ("name", "shape", "config", "why"),
    [
        ("q_proj.weight", (64, 32), {}, "4 heads of 8, as A's config.json has them, are not its 64 rows"),
        ("o_proj.weight", (32, 48), {}, "are not its 48 columns"),
        ("q_proj.weight", (32, 32), {"num_attention_heads": None}, "does not say how many heads"),
        ("q_proj.weight", (32, 32), {"num_attention_heads": 5}, "does not say how many heads"),
        ("qkv_proj.weight", (64, 32), {"model_type": "codegen"}, "order of query, key and value in it is not known"),
        ("qkv_proj.weight", (64, 32), {}, "not known for this model"),
        ("query_key_value.weight", (64, 32), {"model_type": "chatglm"}, "not known for chatglm"),
        ("qkv_proj.weight", (96, 32), {"model_type": "phi3"}, "4 query and 2 × 2 key and value heads of 8"),
    ],
)
def test_heads_that_cannot_be_told_are_said(name, shape, config, why):
    found = division(f"model.layers.0.self_attn.{name}", shape, **config)
    assert not found.kinds
    assert why in found.problem
    assert found.problem.startswith(f"The heads of {name.split('.')[0]} cannot be told apart: ")


@pytest.mark.parametrize("name", ["self_attn.o_proj.bias", "self_attn.q_norm.weight", "mlp.down_proj.weight"])
def test_what_has_no_heads_is_no_problem(name):
    assert division(f"model.layers.0.{name}", (32,)) == pieces.Division()


# Fused tensors. Each view says how the model's own code splits the product, independently of `pieces`.


def changed(shape: tuple[int, ...], view, at) -> slices.Slices:
    """A look at a tensor of which `view(tensor)[at]` alone changed."""
    change, a = np.zeros(shape), np.ones(shape)
    view(change)[at] += 1.0
    lengths = [np.linalg.norm(side.reshape(shape[0], -1), axis=axis) for axis in (1, 0) for side in (change, a)]
    return slices.Slices(*lengths, 0)


def blocks(part: int):
    """[queries; keys; values], 4 and 2 and 2 heads of 8."""
    first, last = ((0, 32), (32, 48), (48, 64))[part]
    return lambda w: w[first:last].reshape(-1, 8, *w.shape[1:])


def conv1d(part: int):
    """GPT-2: (inputs, outputs), the outputs in three blocks of 4 heads of 8."""
    return lambda w: np.moveaxis(w.reshape(*w.shape[:-1], 3, 4, 8), (-3, -2), (0, 1))[part]


ORDERS = {
    "Phi-3": ({"model_type": "phi3"}, "self_attn.qkv_proj.weight", (64, 32), blocks),
    "GPT-2": ({"model_type": "gpt2", "num_key_value_heads": None}, "attn.c_attn.weight", (32, 96), conv1d),
    "GPT-2, bias": ({"model_type": "gpt2", "num_key_value_heads": None}, "attn.c_attn.bias", (96,), conv1d),
    "GPT-NeoX": (
        {"model_type": "gpt_neox", "num_key_value_heads": None}, "attention.query_key_value.weight", (96, 32),
        lambda part: lambda w: w.reshape(4, 3, 8, 32)[:, part],
    ),
    "GPT-NeoX, bias": (
        {"model_type": "gpt_neox", "num_key_value_heads": None}, "attention.query_key_value.bias", (96,),
        lambda part: lambda w: w.reshape(4, 3, 8)[:, part],
    ),
    "Falcon-40B": (
        {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, "num_key_value_heads": None},
        "self_attention.query_key_value.weight", (64, 32),
        lambda part: lambda w: Grouped(w.reshape(2, 4, 8, 32), part),
    ),
    "Falcon-7B": (
        {"model_type": "falcon", "num_kv_heads": 4}, "self_attention.query_key_value.weight", (48, 32),
        lambda part: lambda w: w.reshape(6, 8, 32)[[slice(0, 4), slice(4, 5), slice(5, 6)][part]],
    ),
    "Falcon-RW": (
        {"model_type": "falcon", "multi_query": False}, "self_attention.query_key_value.weight", (96, 32),
        lambda part: lambda w: w.reshape(4, 3, 8, 32)[:, part],
    ),
    "Qwen-1": (
        {"model_type": "qwen", "num_key_value_heads": None}, "attn.c_attn.weight", (96, 32),
        lambda part: lambda w: w.reshape(3, 4, 8, 32)[part],
    ),
    "Baichuan": (
        {"model_type": "baichuan", "num_key_value_heads": None}, "self_attn.W_pack.weight", (96, 32),
        lambda part: lambda w: w.reshape(3, 4, 8, 32)[part],
    ),
}  # fmt: skip


class Grouped:
    """Head by head of one part of (groups, 2 queries and key and value, 8, inputs)."""

    def __init__(self, w: np.ndarray, part: int) -> None:
        self.w, self.part = w, part

    def _place(self, head: int) -> tuple[int, int]:
        return (head // 2, head % 2) if self.part == 0 else (head, self.part + 1)

    def __getitem__(self, head: int) -> np.ndarray:
        return self.w[self._place(head)]

    def __setitem__(self, head: int, value: np.ndarray) -> None:
        self.w[self._place(head)] = value


@pytest.mark.parametrize("model", ORDERS)
@pytest.mark.parametrize("part", [0, 1, 2])
def test_one_changed_head_of_a_fused_tensor_is_found(model, part):
    config, name, shape, view = ORDERS[model]
    kinds = division(f"model.layers.0.{name}", shape, **config).kinds
    assert [kind.what for kind in kinds] == ["query head", "key head", "value head"]
    assert sorted(start for kind in kinds for start in kind.starts) == list(range(0, max(shape), 8))  # all, each once
    for head in range(len(kinds[part].labels)):
        found = changed(shape, view(part), head)
        for number, kind in enumerate(kinds):
            shift, norm = slices.by_piece(found, kind)
            expected = np.zeros(len(kind.labels))
            if number == part:
                expected[head] = norm[head]  # every element of it moved from 1 to 2
                assert kind.labels[head].startswith(f"{kind.what} {head}")
            np.testing.assert_allclose(shift, expected, rtol=1e-6)


def test_the_output_of_gpt_2_takes_heads_as_rows():
    config = CONFIG | {"model_type": "gpt2", "num_key_value_heads": None}
    (kind,) = pieces.of(config, anatomy.parse("h.0.attn.c_proj.weight"), (32, 32)).kinds
    assert (kind.axis, len(kind.labels), kind.width) == ("rows", 4, 8)
    assert pieces.of(config, anatomy.parse("h.0.mlp.c_proj.weight"), (128, 32)) == pieces.Division()


@pytest.mark.parametrize(
    ("config", "name", "shape", "axis", "up"),
    [
        ({"model_type": "phi3"}, "mlp.gate_up_proj.weight", (96, 32), "rows", range(48, 96)),
        ({"model_type": "llama4_text", "intermediate_size": 48}, "feed_forward.experts.gate_up_proj", (32, 96),
         "columns", range(48, 96)),
        ({"model_type": "qwen3_moe", "moe_intermediate_size": 48}, "mlp.experts.gate_up_proj", (96, 32), "rows",
         range(48, 96)),
        ({"model_type": "qwen3_moe", "moe_intermediate_size": 48}, "mlp.experts.gate_up_proj", (96, 96), "rows",
         range(48, 96)),
        ({"model_type": "qwen3_vl_moe_text", "moe_intermediate_size": 48}, "mlp.experts.gate_up_proj", (32, 96),
         "columns", range(48, 96)),
        ({"model_type": "gpt_oss", "intermediate_size": 48}, "mlp.experts.gate_up_proj", (48, 96), "columns",
         range(1, 96, 2)),
    ],
)  # fmt: skip
def test_gate_and_up_in_one_tensor(config, name, shape, axis, up):
    (kind,) = division(f"model.layers.0.{name}", shape, **config).kinds
    assert (kind.axis, kind.labels) == (axis, ("gate", "up"))
    found = changed(shape, lambda w: w if axis == "rows" else w.T, list(up))
    shift, norm = slices.by_piece(found, kind)
    np.testing.assert_allclose(shift, [0, norm[1]], rtol=1e-6)


def test_gate_and_up_whose_order_is_not_known_are_said():
    said = "Gate and up cannot be told apart in gate_up_proj: their order is not known for mystery"
    assert division("model.layers.0.mlp.gate_up_proj.weight", (96, 32), model_type="mystery").problem.startswith(said)
    other = {"model_type": "qwen3_moe", "moe_intermediate_size": 40}
    assert division("model.layers.0.mlp.experts.gate_up_proj", (96, 96), **other).problem


def test_a_head_is_its_rows_or_columns(tmp_path):
    with checkpoints.open(tiny_qwen2(tmp_path / "a", 0)) as a, checkpoints.open(tiny_qwen2(tmp_path / "b", 1)) as b:
        pair = pairs.compare(a, b)
        for name in ("o_proj.weight", "k_proj.weight", "k_proj.bias"):
            name = f"model.layers.1.self_attn.{name}"
            row = pair.by_name[name]
            (kind,) = pieces.of(pair.a.config, row.part, row.a.shape).kinds
            shift, norm = slices.by_piece(looks.compute("slices", pair, name), kind)
            w_a, w_b = (pair.read(side, name).double().numpy() for side in "AB")
            for number, start in enumerate(kind.starts):
                at = slice(start, start + 8)
                place = (slice(None), at) if kind.axis == "columns" else at
                assert shift[number] == pytest.approx(np.linalg.norm((w_b - w_a)[place]), rel=1e-6)
                assert norm[number] == pytest.approx(np.linalg.norm(w_a[place]), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "experts"),
    [
        ("mlp.experts.gate_up_proj", (4, 96, 32), True),
        ("block_sparse_moe.input_linear.weight", (4, 96, 32), True),
        ("linear_attn.conv1d.weight", (96, 1, 4), False),
        ("mixer.conv1d.weight", (96, 1, 4), False),
        ("mlp.down_proj.weight", (32, 96), False),
    ],
)
def test_a_convolution_holds_no_experts(name, shape, experts):
    assert pieces.holds_experts(anatomy.parse(f"model.layers.0.{name}"), shape) == experts


@pytest.mark.parametrize(
    ("model", "name", "inputs"),
    [
        ("gpt2", "attn.c_attn.weight", True),
        ("gpt2", "attn.c_attn.bias", False),
        ("llama4_text", "feed_forward.experts.down_proj", True),
        ("llama4_text", "feed_forward.shared_expert.down_proj.weight", False),
        ("qwen3_moe", "mlp.experts.down_proj", False),
    ],
)
def test_which_side_of_a_matrix_its_inputs_are(model, name, inputs):
    assert pieces.rows_are_inputs({"model_type": model}, anatomy.parse(f"model.layers.0.{name}")) == inputs
