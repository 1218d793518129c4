"""On CUDA as on the CPU: recipes in place equal merged checkpoints, for transformers and for vLLM."""

from __future__ import annotations

import threading

import pytest

from sfn import engines, recipes
from sfn.engines import hardware
from sfn.records import Sampling
from tests.engine.cases import MAX_TOKENS, RECIPES
from tests.engine.test_vllm_equality import (
    hot,
    test_a_swapped_recipe_equals_a_fresh_engine_on_the_merged_checkpoint,
    test_back_to_a_is_a,
    test_scores_are_nearly_those_of_transformers,
    test_the_recipes_differ_from_each_other,
)

__all__ = [
    "hot",
    "test_a_swapped_recipe_equals_a_fresh_engine_on_the_merged_checkpoint",
    "test_back_to_a_is_a",
    "test_scores_are_nearly_those_of_transformers",
    "test_the_recipes_differ_from_each_other",
]


@pytest.fixture(scope="module")
def on_cuda(pair):
    with engines.open("transformers", pair, device="cuda") as engine:
        yield engine


def test_the_gpu_is_the_default(on_cuda, pair):
    assert on_cuda.status.device == "cuda"
    assert on_cuda.status.dtype == "bfloat16"
    assert engines.frame("transformers", pair) == ("cuda", "bfloat16")
    assert engines.default_backend() == "vllm"
    assert hardware.device_for("vllm") == "cuda"


@pytest.mark.parametrize("name", RECIPES)
def test_transformers_equals_the_merged_checkpoint(name, on_cuda, merged, prompts):
    import torch
    from transformers import AutoModelForCausalLM

    on_cuda.be(recipes.parse(RECIPES[name]))
    model = AutoModelForCausalLM.from_pretrained(merged[name], dtype=torch.bfloat16).to("cuda")
    model.generation_config.eos_token_id = None  # no end is heeded, nor kept from being said
    state = model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in on_cuda._model.state_dict().items())
    for prompt in prompts:
        ids = torch.tensor([prompt], device="cuda")
        how = {"do_sample": False, "max_new_tokens": MAX_TOKENS, "pad_token_id": 0}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **how)[0, len(prompt) :].tolist()
        tokens = on_cuda._tokens(prompt, Sampling(), threading.Event())
        assert [next(tokens) for _ in range(MAX_TOKENS)] == out


def test_seeds_decide_samples(on_cuda):
    on_cuda.be(recipes.Recipe())
    how = {"max_tokens": 24, "temperature": 1.5}
    some = ["".join(p.text for p in on_cuda.generate("Lucy", seed=seed, **how)) for seed in (1, 1, 2)]
    assert some[0] == some[1] != some[2]
