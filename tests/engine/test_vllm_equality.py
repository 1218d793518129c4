"""Weights swapped into a running vLLM give the same tokens and log-probabilities as a fresh engine on the merged
checkpoint, and nearly those of transformers."""

from __future__ import annotations

from math import exp, log
from threading import Event

import pytest

from sfn import engines, recipes
from sfn.engines import orders, vllm_swap
from sfn.errors import Cancelled, EngineError
from tests.engine.cases import MAX_TOKENS, QUESTIONS, RECIPES, Said, random_recipes

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


def test_fifty_random_recipes_leave_no_trace(engine, pair, prompts, hot):
    engine.be(recipes.Recipe())
    start, seen = tell(engine, "sfn_reread"), set()
    for text in random_recipes(pair, 50, 7):
        engine.be(recipes.parse(text))
        seen.add(engine.became.digest)
    engine.be(recipes.Recipe())
    assert tell(engine, "sfn_reread") == start
    assert start["changed"] == []
    assert len(seen) > 45
    assert [ask(engine, prompt) for prompt in prompts] == hot["A"]


def test_only_what_differs_is_moved(engine, pair):
    engine.be(recipes.parse("o_proj=B"))
    engine.be(recipes.parse("o_proj=B; gate_proj@2=B"))
    joined = sum(pair.a.tensors[f"model.layers.2.mlp.{name}_proj.weight"].size_bytes for name in ("gate", "up"))
    assert (engine.became.modules, engine.became.bytes) == (1, joined)


class AfterSome(Event):
    """Set once it was asked so often."""

    def __init__(self, asked: int) -> None:
        super().__init__()
        self.left = asked

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_change_can_be_cancelled_and_goes_on_later(engine, prompts, hot, monkeypatch):
    engine.be(recipes.Recipe())
    told = []
    tell = engine._tell
    monkeypatch.setattr(engine, "_tell", lambda *how, **what: (told.append(what.get("detail")), tell(*how, **what)))
    monkeypatch.setattr(vllm_swap, "_STEP_S", 0.0)  # an answer after every module
    with pytest.raises(Cancelled):
        engine.be(recipes.parse("all=B"), cancel=AfterSome(6))
    assert (engine.status.state, engine.status.recipe) == ("idle", None)
    assert any("5 modules in place" in str(detail) for detail in told)
    server = engine._server
    monkeypatch.undo()
    engine.be(recipes.parse("all=B"))
    assert engine._server is server  # not started again
    assert [ask(engine, prompt) for prompt in prompts] == hot["B"]


def tell(engine, method: str, **keywords: object) -> dict:
    (answer,) = engine._server.call("POST", "/collective_rpc", {"method": method, "kwargs": keywords})["results"]
    return answer


@pytest.mark.parametrize("spoil", ["raises", "not applied", "one element"])
def test_a_failure_in_the_middle_is_mended_before_anything_is_said(engine, prompts, hot, spoil):
    engine.be(recipes.Recipe())
    tell(engine, "sfn_spoil", path="lm_head", spoil=spoil)
    engine.be(recipes.parse("all=B"))
    assert engine.status.detail.startswith("all weights were put in place again after a failure")
    assert [ask(engine, prompt) for prompt in prompts] == hot["B"]
    engine.be(recipes.Recipe())
    assert engine.status.detail == ""
    assert [ask(engine, prompt) for prompt in prompts] == hot["A"]


def test_what_the_worker_refuses_leaves_all_as_it_is(engine, prompts, hot, monkeypatch):
    engine.be(recipes.Recipe())
    monkeypatch.setattr(orders, "VERSION", "0")
    with pytest.raises(EngineError, match=r"sent version 0.*It still holds what it held"):
        engine.be(recipes.parse("all=B"))
    assert (engine.status.state, engine.status.recipe) == ("idle", "")
    assert [ask(engine, prompt) for prompt in prompts] == hot["A"]


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


def test_weights_that_cannot_be_proved_are_not_used(engine):
    """The last test here: it leaves the engine without a server."""
    engine.be(recipes.Recipe())
    tell(engine, "sfn_spoil", path="lm_head", spoil="one element", times=2)
    with pytest.raises(EngineError, match=r"twice: lm_head "):
        engine.be(recipes.parse("head=B"))
    assert (engine.status.state, engine.status.recipe) == ("dead", None)
    assert engine._server is None
