"""Engines run what is on this machine: models of the Hub once fetched, adapters as B, 8-bit codes as values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfn import checkpoints, engines, pairs, recipes
from sfn.engines import orders
from sfn.errors import EngineError
from tests.builders import tiny_qwen2, write_checkpoint
from tests.hub_server import Hub
from tests.unit.test_adapters import NAME, adapter, factors
from tests.unit.test_scales import coded_model


def held(pair: pairs.Pair, recipe: str) -> dict[str, torch.Tensor]:
    """The transformers engine's weights under a recipe; it also says a word."""
    with engines.open("transformers", pair, device="cpu", dtype="float32") as engine:
        engine.be(recipes.parse(recipe))
        assert list(engine.generate("hello", max_tokens=2))
        return {name: tensor.clone() for name, tensor in engine._model.named_parameters()}


@pytest.mark.usefixtures("one_torch_thread")
def test_a_model_of_the_hub_runs_once_it_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/a", tiny_qwen2(tmp_path / "a", shards=2))
    hub.add("org/b", tiny_qwen2(tmp_path / "b", seed=1))
    pair = pairs.compare(*pairs.open_both("org/a", "org/b"))
    with pytest.raises(EngineError, match=r"org/a is not on this machine yet: an engine needs all of it"):
        engines.open("transformers", pair)
    for side in (pair.a, pair.b):
        side.fetch()
    weights = held(pair, "o_proj=B")
    assert torch.equal(weights[NAME], checkpoints.open(tmp_path / "b").read(NAME).float())
    assert torch.equal(weights["model.norm.weight"], checkpoints.open(tmp_path / "a").read("model.norm.weight").float())


@pytest.mark.usefixtures("one_torch_thread")
def test_an_adapter_is_moved_like_any_b(tmp_path: Path) -> None:
    base = tiny_qwen2(tmp_path / "a")
    pair = pairs.compare(*pairs.open_both(base, adapter(tmp_path / "b", factors())))
    assert torch.equal(held(pair, "all=B")[NAME], pair.b.read(NAME).to(torch.bfloat16).float())  # A's dtype
    plan = recipes.resolve(recipes.parse("o_proj=B"), pair)
    started = orders.start_order(pair, plan)
    carried, _ = orders.carry_out(orders.order(pair, plan), started)  # as vLLM's workers do, from the folders alone
    assert torch.equal(carried.read("B", NAME), pair.b.read(NAME))
    turned = pairs.compare(pair.b, pair.a)
    with pytest.raises(EngineError, match=r"is an adapter, which no engine starts from: choose its base as A"):
        engines.open("transformers", turned)


@pytest.mark.usefixtures("one_torch_thread")
def test_codes_run_as_values(tmp_path: Path) -> None:
    plain = checkpoints.open(tiny_qwen2(tmp_path / "b"))
    tensors = coded_model(plain)
    table = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    folder = write_checkpoint(tmp_path / "a", tensors, dict(plain.config) | {"quantization_config": table})
    pair = pairs.compare(*pairs.open_both(folder, tmp_path / "b"))
    weights = held(pair, "mlp=B")
    assert torch.allclose(weights[NAME], pair.a.read(NAME).float(), atol=2e-3)
    up = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights[up], plain.read(up).float())
    with pytest.raises(EngineError, match=r"stored as 8-bit codes, and vLLM would keep them so"):
        engines.open("vllm", pair)
