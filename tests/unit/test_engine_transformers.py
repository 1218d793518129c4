"""The transformers engine: recipes in place and back, token loop, sampling, cancel, and recovery after a failure."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sfn import checkpoints, engines, pairs, recipes, surgery
from sfn.errors import EngineError, RecipeError
from tests import builders

PROMPT = "Count: one, two"
RECIPES = (
    "o_proj@all=B",
    "q_proj@all=B",
    "gate_proj@all=B",
    "norms=B",
    "emb=B",
    "head=B",
    "o_proj@all=B; mlp@1=B:0.5; emb=B",
    "mlp@0=zero; v_proj@1=reinit:3",
    "all=B",
)


def compare(a: Path, b: Path) -> pairs.Pair:
    return pairs.compare(checkpoints.open(a), checkpoints.open(b))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> pairs.Pair:
    folder = tmp_path_factory.mktemp("qwen2")
    return compare(builders.tiny_qwen2(folder / "a", 1), builders.tiny_qwen2(folder / "b", 2, shards=2))


@pytest.fixture(scope="module")
def engine(pair: pairs.Pair):
    with engines.open("transformers", pair, device="cpu", dtype="float32") as engine:
        yield engine


def weights(engine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine._model.state_dict().items()}


def equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def say(engine, **how) -> str:
    return "".join(piece.text for piece in engine.generate(PROMPT, **how))


def reference(folder: Path, prompt: str, n: int) -> list[int]:
    """Greedy token ids of transformers' own `generate` on a checkpoint on disk, without stopping at an end token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    ids = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt").input_ids
    out = model.generate(ids, do_sample=False, max_new_tokens=n, pad_token_id=0)
    return out[0, ids.shape[1] :].tolist()


def greedy(engine, prompt: str, n: int) -> list[int]:
    """Token ids of the engine's own loop, ends not heeded."""
    from sfn.records import Sampling

    ids = engine._ready().prompt_ids(prompt, "plain")
    tokens = engine._tokens(ids, Sampling(), threading.Event())
    return [next(tokens) for _ in range(n)]


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_speaks_like_the_merged_checkpoint_on_disk(engine, pair, tmp_path, text):
    merged = surgery.write(pair, recipes.parse(text), tmp_path / "merged")
    engine.be(recipes.parse(text))
    on_disk = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert equal(weights(engine), dict(on_disk.state_dict()))
    assert greedy(engine, PROMPT, 24) == reference(merged, PROMPT, 24)


def test_back_to_a_is_bit_equal(engine, pair):
    engine.be(recipes.Recipe())
    fresh = AutoModelForCausalLM.from_pretrained(pair.a.folder, dtype=torch.float32).state_dict()
    for text in RECIPES:
        engine.be(recipes.parse(text))
    assert not equal(weights(engine), dict(fresh))
    engine.be(recipes.Recipe())
    assert equal(weights(engine), dict(fresh))


def test_only_what_differs_is_read(engine, monkeypatch):
    engine.be(recipes.parse("o_proj@all=B"))
    read = []
    build = surgery.build
    monkeypatch.setattr(surgery, "build", lambda pair, name, source: read.append(name) or build(pair, name, source))
    engine.be(recipes.parse("o_proj@all=B; q_proj@1=B"))
    assert read == ["model.layers.1.self_attn.q_proj.bias", "model.layers.1.self_attn.q_proj.weight"]


@pytest.mark.parametrize("make", [builders.tiny_qwen3, builders.tiny_llama])
def test_other_architectures(tmp_path, make):
    pair = compare(make(tmp_path / "a", 1), make(tmp_path / "b", 2))
    merged = surgery.write(pair, recipes.parse("attn@all=B; norms@0=B"), tmp_path / "merged")
    with engines.open("transformers", pair, dtype="float32") as engine:
        engine.be(recipes.parse("attn@all=B; norms@0=B"))
        assert greedy(engine, PROMPT, 16) == reference(merged, PROMPT, 16)


def test_a_tied_model_moves_embedding_and_head_apart(tmp_path):
    pair = compare(builders.tiny_qwen2(tmp_path / "a", 1, tied=True), builders.tiny_qwen2(tmp_path / "b", 2, tied=True))
    with engines.open("transformers", pair, dtype="float32") as engine:
        engine.be(recipes.Recipe())
        tied = reference(pair.a.folder, PROMPT, 16)
        assert greedy(engine, PROMPT, 16) == tied
        for text in ("head=B", "emb=B"):
            engine.be(recipes.parse(text))
            merged = surgery.write(pair, recipes.parse(text), tmp_path / text)
            state = engine._model.state_dict()
            assert not torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
            assert greedy(engine, PROMPT, 16) == reference(merged, PROMPT, 16)
        engine.be(recipes.Recipe())
        assert greedy(engine, PROMPT, 16) == tied


def test_experts_fused_in_memory_come_from_both_sides(tmp_path):
    pair = compare(builders.tiny_qwen3_moe(tmp_path / "a", 1), builders.tiny_qwen3_moe(tmp_path / "b", 2))
    text = "experts.2.gate_proj@0=B; down_proj@1=B; gate@all=B"
    merged = surgery.write(pair, recipes.parse(text), tmp_path / "merged")
    with engines.open("transformers", pair, dtype="float32") as engine:
        engine.be(recipes.Recipe())
        before = weights(engine)
        engine.be(recipes.parse(text))
        on_disk = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).state_dict()
        assert equal(weights(engine), dict(on_disk))
        assert greedy(engine, PROMPT, 12) == reference(merged, PROMPT, 12)
        engine.be(recipes.Recipe())
        assert equal(weights(engine), before)


def test_a_removed_layer_is_the_shorter_checkpoint(tmp_path):
    pair = compare(builders.tiny_qwen2(tmp_path / "a", 1, layers=4), builders.tiny_qwen2(tmp_path / "b", 2, layers=4))
    merged = surgery.write(pair, recipes.parse("all@1-2=remove"), tmp_path / "merged")
    with engines.open("transformers", pair, dtype="float32") as engine:
        engine.be(recipes.parse("all@1-2=remove"))
        assert greedy(engine, PROMPT, 24) == reference(merged, PROMPT, 24)


def test_sliding_windows_and_prompts_in_several_pieces(tmp_path, monkeypatch):
    from sfn.engines import transformers_engine

    options = {
        "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"],
    }  # fmt: skip
    pair = compare(builders.tiny_qwen2(tmp_path / "a", 1, **options), builders.tiny_qwen2(tmp_path / "b", 2, **options))
    prompt = "A prompt that is longer than the window"
    expected = reference(pair.a.folder, prompt, 20)
    with engines.open("transformers", pair, dtype="float32") as engine:
        assert greedy(engine, prompt, 20) == expected
        monkeypatch.setattr(transformers_engine, "_PREFILL", 5)
        assert greedy(engine, prompt, 20) == expected


def test_seeded_sampling_is_reproducible_and_leaves_the_global_state(engine):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    some = [say(engine, temperature=1.0, top_p=0.9, top_k=40, seed=seed, max_tokens=24) for seed in (7, 7, 8)]
    assert some[0] == some[1] != some[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_pieces_count_up_and_the_last_one_says_why_it_ended(engine):
    engine.be(recipes.Recipe())
    pieces = list(engine.generate(PROMPT, max_tokens=6, temperature=1.0, seed=1))
    assert [piece.n_tokens for piece in pieces] == list(range(1, len(pieces) + 1))
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish == "length"
    assert pieces[-1].n_prompt_tokens == len(PROMPT)
    assert pieces[0].elapsed_s <= pieces[-1].elapsed_s
    assert engine.status.state == "idle"


def test_cancel_is_heeded_at_the_next_token(engine):
    cancel = threading.Event()
    seen = []
    for piece in engine.generate(PROMPT, max_tokens=100, temperature=1.0, cancel=cancel):
        seen.append(piece)
        if len(seen) == 3:
            assert engine.status.state == "busy"
            cancel.set()
    assert seen[-1].finish == "cancelled"
    assert seen[-1].n_tokens == 3
    assert engine.status.state == "idle"


def test_leaving_a_stream_early_leaves_the_engine_idle(engine):
    stream = engine.generate(PROMPT, max_tokens=100)
    next(stream)
    stream.close()
    assert engine.status.state == "idle"


def test_a_stop_string_ends_the_answer_and_is_left_out(engine):
    whole = say(engine, temperature=1.0, seed=4, max_tokens=40)
    stop = whole[10:13]
    pieces = list(engine.generate(PROMPT, temperature=1.0, seed=4, max_tokens=40, stop=(stop, "not in it")))
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish == "stop"


def test_the_context_limits_answers_and_prompts(engine):
    pieces = list(engine.generate("x" * 120, max_tokens=50, temperature=1.0, seed=2))
    assert pieces[-1].n_tokens == 8
    assert pieces[-1].finish == "length"
    with pytest.raises(EngineError, match=r"prompt is 128 tokens long.*holds 128"):
        engine.generate("x" * 128)


def test_an_empty_prompt_needs_a_begin_token(engine):
    with pytest.raises(EngineError, match="no begin token"):
        engine.generate("")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 2.5}, r"temperature is 2\.5; it must be from 0 \(greedy\) to 2"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"top_k": -2}, "top_k is -2"),
        ({"mode": "story"}, 'no prompt mode "story"'),
    ],
)
def test_what_cannot_be_asked_is_said(engine, how, words):
    with pytest.raises(EngineError, match=words):
        engine.generate(PROMPT, **how)


def test_scores_are_the_models_own_logprobs(engine, pair, monkeypatch):
    from sfn.engines import transformers_engine

    engine.be(recipes.Recipe())
    model = AutoModelForCausalLM.from_pretrained(pair.a.folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(pair.a.folder)("one, two, three", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    score = engine.score("one, two, three")
    assert score.token_ids == tuple(ids[0].tolist())
    assert "".join(score.tokens) == "ne, two, three"
    torch.testing.assert_close(torch.tensor(score.logprobs), expected)
    assert score.perplexity == pytest.approx(float((-expected.mean()).exp()), rel=1e-5)
    monkeypatch.setattr(transformers_engine, "_PREFILL", 4)
    after = engine.score(" three", prompt="one, two,")
    torch.testing.assert_close(torch.tensor(after.logprobs), expected[-6:])
    assert "".join(after.tokens) == " three"


def test_a_score_must_fit_the_context(engine):
    with pytest.raises(EngineError, match="are 130 tokens together"):
        engine.score("x" * 130)
    with pytest.raises(EngineError, match="no text to score"):
        engine.score("")


def test_a_wrong_recipe_touches_nothing(engine):
    engine.be(recipes.parse("o_proj@all=B"))
    before = weights(engine)
    with pytest.raises(RecipeError):
        engine.be(recipes.parse("o_proj@7=B"))
    assert equal(weights(engine), before)
    assert engine.status.recipe == recipes.format(recipes.parse("o_proj@all=B"))
    assert engine.status.state == "idle"


def test_a_failure_midway_is_told_and_the_next_request_mends_it(engine, pair, monkeypatch):
    engine.be(recipes.Recipe())
    good = weights(engine)
    build, calls = surgery.build, []

    def failing(pair, name, source):
        calls.append(name)
        if len(calls) == 3:
            raise OSError("disk gone")
        return build(pair, name, source)

    monkeypatch.setattr(surgery, "build", failing)
    with pytest.raises(EngineError, match="disk gone"):
        engine.be(recipes.parse("all=B"))
    assert (engine.status.state, engine.status.recipe) == ("dead", None)
    monkeypatch.setattr(surgery, "build", build)
    engine.be(recipes.Recipe())
    assert equal(weights(engine), good)
    assert engine.status.state == "idle"


def test_a_dead_engine_comes_back_with_the_recipe_that_was_wanted(engine, monkeypatch):
    engine.be(recipes.parse("o_proj@all=B"))
    expected, before = say(engine, max_tokens=12), weights(engine)
    with monkeypatch.context() as broken:
        broken.setattr(engine, "_forward", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("device lost")))
        with pytest.raises(EngineError, match="device lost"):
            say(engine)
    assert engine.status.state == "dead"
    assert say(engine, max_tokens=12) == expected
    assert equal(weights(engine), before)


def test_it_speaks_with_the_tokenizer_of_the_heads_side(tmp_path):
    a, b = builders.tiny_qwen2(tmp_path / "a", 1), builders.tiny_qwen2(tmp_path / "b", 2)
    builders.write_tokenizer(b, words=["three"])
    with engines.open("transformers", compare(a, b), dtype="float32") as engine:
        engine.be(recipes.parse("o_proj@all=B"))
        assert next(engine.generate("three")).n_prompt_tokens == 5
        engine.be(recipes.parse("head=B"))
        assert next(engine.generate("three")).n_prompt_tokens == 1


def test_chat_mode_uses_the_template(engine, pair):
    engine.be(recipes.Recipe())
    tokenizer = AutoTokenizer.from_pretrained(pair.a.folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    assert next(engine.generate("Hi", mode="chat")).n_prompt_tokens == len(ids) != 2


def test_it_starts_by_itself_and_ends_for_good(pair):
    engine = engines.open("transformers", pair)
    assert (engine.status.state, engine.status.dtype, engine.status.device) == (
        "stopped",
        *engines.frame("transformers", pair)[::-1],
    )
    assert say(engine, max_tokens=3) is not None
    assert (engine.status.state, engine.status.recipe) == ("idle", "")
    engine.close()
    engine.close()
    assert (engine.status.state, engine.status.recipe) == ("stopped", None)


def test_an_incomplete_checkpoint_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    a = builders.tiny_qwen2(tmp_path / "a", 1)
    tensors = load_file(a / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, a / "model.safetensors", metadata={"format": "pt"})
    with engines.open("transformers", compare(a, builders.tiny_qwen2(tmp_path / "b", 2))) as engine:
        with pytest.raises(EngineError, match=r"no tensor for model\.layers\.1\.mlp\.up_proj\.weight"):
            engine.be(recipes.Recipe())
        assert engine.status.state == "dead"


@pytest.mark.parametrize(("how", "words"), [({"device": "abacus"}, '"abacus"'), ({"dtype": "int3"}, '"int3"')])
def test_unknown_devices_and_dtypes_are_refused(pair, how, words):
    with pytest.raises(EngineError, match=words):
        engines.open("transformers", pair, **how)
