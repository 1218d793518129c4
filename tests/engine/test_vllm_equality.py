"""Weights swapped into a running vLLM give the same tokens and log-probabilities as a fresh engine on the merged
checkpoint, and nearly those of transformers."""

from __future__ import annotations

from math import exp, log

import pytest

from sfn import engines, recipes
from tests.engine.cases import MAX_TOKENS, QUESTIONS, RECIPES, Said

TEXT = " The answer is 52. Lucy found a shiny kite."


@pytest.fixture(scope="module")
def hot(engine, prompts) -> dict[str, list[Said]]:
    """What one server says while it becomes one recipe after the other, and A once more at the end."""
    said = {}
    for name, text in [*RECIPES.items(), ("back to A", "")]:
        engine.be(recipes.parse(text))
        said[name] = [ask(engine, prompt) for prompt in prompts]
    return said


def ask(engine, prompt: list[int]) -> Said:
    body = {"model": "sfn", "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "logprobs": 3}
    body |= {"ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": True}
    choice = engine._server.call("POST", "/v1/completions", body)["choices"][0]
    ranked = [sorted(step.values(), reverse=True)[:3] for step in choice["logprobs"]["top_logprobs"]]
    return Said(choice["token_ids"], ranked)


@pytest.mark.parametrize("name", RECIPES)
def test_a_swapped_recipe_equals_a_fresh_engine_on_the_merged_checkpoint(name, hot, fresh):
    assert [said.ids for said in hot[name]] == [said.ids for said in fresh[name]]
    assert [said.logprobs for said in hot[name]] == [said.logprobs for said in fresh[name]]


def test_back_to_a_is_a(hot, fresh):
    assert hot["back to A"] == hot["A"] == fresh["A"]


def test_the_recipes_differ_from_each_other(hot):
    """Or equality above would say nothing."""
    seen = [str([said.logprobs for said in hot[name]]) for name in RECIPES]
    assert len(set(seen)) == len(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_scores_are_nearly_those_of_transformers(name, engine, pair):
    engine.be(recipes.parse(RECIPES[name]))
    score = engine.score(TEXT, prompt=QUESTIONS[0])
    with engines.open("transformers", pair, device="cpu", dtype="float32") as other:
        other.be(recipes.parse(RECIPES[name]))
        expected = other.score(TEXT, prompt=QUESTIONS[0])
    assert score.token_ids == expected.token_ids
    assert score.tokens == expected.tokens
    # bfloat16 against float32: the mean must agree, and no token may be much more or less likely.
    assert log(score.perplexity) == pytest.approx(log(expected.perplexity), abs=0.1)
    for one, other in zip(score.logprobs, expected.logprobs, strict=True):
        assert exp(one) == pytest.approx(exp(other), abs=0.1)
