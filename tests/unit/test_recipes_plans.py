"""A recipe for a real pair: the source of every tensor, the figures said about it, and what is refused."""

import pickle

import pytest

from sfn import anatomy, checkpoints, pairs, recipes
from sfn.errors import RecipeError
from sfn.recipes import Source
from tests.builders import random_tensors, tiny_llama, tiny_qwen2, tiny_qwen3, tiny_qwen3_moe, write_checkpoint


def compared(a, b):
    return pairs.compare(checkpoints.open(a), checkpoints.open(b))


def made(folder, shapes, seed=0, **config):
    """A checkpoint of any names; a shape is a number of rows of 2."""
    tensors = random_tensors({name: (rows, 2) for name, rows in shapes.items()}, seed, "float32")
    return write_checkpoint(folder, tensors, {"model_type": "made", **config}, with_tokenizer=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2")
    return compared(tiny_qwen2(folder / "a", layers=4), tiny_qwen2(folder / "b", seed=1, layers=4))


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moe")
    return compared(tiny_qwen3_moe(folder / "a", layers=3), tiny_qwen3_moe(folder / "b", seed=1, layers=3))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    names = ["transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight"]
    for layer in range(2):
        for module in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            names += [f"transformer.h.{layer}.{module}.weight", f"transformer.h.{layer}.{module}.bias"]
    shapes = dict.fromkeys(names, 4)
    return compared(made(folder / "a", shapes), made(folder / "b", shapes, seed=1))


def plan_of(text, pair):
    return recipes.resolve(recipes.parse(text), pair)


def moved(text, pair):
    return {name: str(source) for name, source in plan_of(text, pair).sources.items() if source.kind != "A"}


def test_all_a(pair):
    plan = plan_of("", pair)
    assert list(plan.sources) == [row.name for row in pair.rows]
    assert set(plan.sources.values()) == {Source("A")}
    assert (plan.moved, plan.removed, plan.share_from_b, plan.tokenizer) == ((), (), 0.0, "A")
    assert plan.sentence == f"0 of {len(pair.rows)} tensors · 0 % of parameters from B"
    assert plan == plan_of("o_proj@all=B:0", pair)


def test_a_module_moves_with_its_biases_and_nothing_else_does(pair):
    plan = plan_of("q_proj@all=B", pair)
    assert set(plan.moved) == {f"model.layers.{n}.self_attn.q_proj.{p}" for n in range(4) for p in ("weight", "bias")}
    numel = {row.name: row.a.numel for row in pair.rows}
    share = sum(numel[name] for name in plan.moved) / sum(numel.values())
    assert plan.share_from_b == pytest.approx(share)
    assert plan.sentence == f"8 of {len(pair.rows)} tensors · {100 * share:.1f} % of parameters from B"


def test_later_rules_win(pair):
    sources = plan_of("all@all=B; mlp@1-2=B:0.25; down_proj@2=zero; q_proj@0=A; emb=reinit:7", pair).sources
    assert sources["model.layers.3.mlp.down_proj.weight"] == Source("B")
    assert sources["model.layers.1.mlp.down_proj.weight"] == Source("blend", 0.25)
    assert sources["model.layers.2.mlp.down_proj.weight"] == Source("zero")
    assert sources["model.layers.0.self_attn.q_proj.bias"] == Source("A")
    assert sources["model.embed_tokens.weight"] == Source("reinit", seed=7)


def test_groups_and_roles_work_on_every_architecture(gpt2):
    attention, mlp = (
        {f"transformer.h.{n}.{m}.c_proj.{p}" for n in (0, 1) for p in ("weight", "bias")} for m in ("attn", "mlp")
    )
    assert set(moved("o_proj@all=B", gpt2)) == attention
    assert set(moved("down_proj@all=B", gpt2)) == mlp
    assert set(moved("mlp.c_proj@all=B", gpt2)) == mlp
    assert set(moved("c_proj@all=B", gpt2)) == attention | mlp
    assert set(moved("qkv@1=B", gpt2)) == {f"transformer.h.1.attn.c_attn.{p}" for p in ("weight", "bias")}
    assert set(moved("head=B", gpt2)) == {"lm_head.weight"}  # tied: the embedding under the head's name
    assert set(moved("emb=B", gpt2)) == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert "transformer.ln_f.weight" in moved("norms@all=B", gpt2)
    assert "transformer.ln_f.weight" not in moved("norms@0-1=B", gpt2)


def test_experts(moe):
    assert len(moved("gate_proj@all=B", moe)) == len(moved("experts.gate_proj@all=B", moe)) == 12
    assert set(moved("experts.2.up_proj@1=B", moe)) == {"model.layers.1.mlp.experts.2.up_proj.weight"}
    assert set(moved("router@0=zero", moe)) == set(moved("gate@0=zero", moe)) == {"model.layers.0.mlp.gate.weight"}
    assert len(moved("mlp@0=B", moe)) == 13


def test_the_words_for_a_part_are_those_that_match_it():
    names = ["model.layers.3.mlp.experts.12.w1.weight", "h.0.attn.c_proj.bias", "visual.blocks.1.q_proj.weight"]
    names += ["model.norm.weight", "q_proj.bias", "model.layers.0.self_attn.indexer.wk.weight", "spam.eggs"]
    parts = [anatomy.parse(name) for name in names]
    words = {word for part in parts for word in recipes.lookup.words_for(part)} | set(anatomy.ROLES)
    words |= {word for name in names for word in (name, *name.split("."))}
    words -= set(anatomy.GROUPS)
    for part in parts:
        assert {word for word in words if recipes.matches(word, part)} == recipes.lookup.words_for(part)


def test_share_counts_a_blend_by_its_alpha_within_bounds(pair):
    whole = plan_of("mlp@all=B", pair).share_from_b
    assert plan_of("mlp@all=B:0.25", pair).share_from_b == pytest.approx(whole / 4)
    assert plan_of("mlp@all=B:3", pair).share_from_b == pytest.approx(whole)
    assert plan_of("mlp@all=B:-1", pair).share_from_b == 0
    assert plan_of("all@all=B", pair).share_from_b == 1
    assert plan_of("all@all=zero", pair).share_from_b == 0


def test_sentence_tells_of_damage(pair):
    assert plan_of("o_proj@0-1=zero; q_proj@3=reinit:1; mlp@2=B:0.5", pair).sentence.endswith(
        "from B · 3 blended · 2 set to zero · 2 drawn at random"
    )
    assert plan_of("all@1-2=remove", pair).sentence == "0 of 27 tensors · 0 % of parameters from B · layers 1-2 removed"
    assert plan_of("all@1=remove", pair).sentence.endswith("layer 1 removed")
    assert "100 % of parameters" in plan_of("all@all=B", pair).sentence
    assert "over 99.9 % of" not in plan_of("all@all=B; o_proj@all=A", pair).sentence
    tiny = plan_of("norm=B", pair)
    assert "1 of 51 tensors · 0.1 %" in tiny.sentence or "under 0.1 %" in tiny.sentence


def test_removed_layers(pair):
    plan = plan_of("all@1-2=remove; o_proj@all=B; mlp@1=zero", pair)
    assert plan.removed == (1, 2)
    gone = {name for name, source in plan.sources.items() if source.kind == "remove"}
    assert gone == {row.name for row in pair.rows if row.part.layer in (1, 2)}
    assert {name for name in plan.moved if name not in gone} == {
        f"model.layers.{n}.self_attn.o_proj.weight" for n in (0, 3)
    }
    alone = plan_of("o_proj@0,3=B", pair)
    assert plan.share_from_b > alone.share_from_b  # of fewer parameters
    assert plan.key != alone.key
    assert plan.key == plan_of("o_proj@0,3=B; all@1=remove; all@2=remove", pair).key


def test_key_is_of_the_weights_not_of_the_spelling(pair):
    same = ["o_proj@all=B", "o_proj@0-3=B", "self_attn.o_proj@0,1,2,3=B:1", "all@all=B; all@all=A; o_proj@all=B"]
    same.append("attn@all=B; qkv@all=A")
    assert len({plan_of(text, pair).key for text in same}) == 1
    assert len({plan_of(text, pair) for text in same}) == 1
    other = ["", "o_proj@0-2=B", "o_proj@all=B:0.5", "o_proj@all=B:0.25", "o_proj@all=zero", "q_proj@all=B"]
    other += ["o_proj@all=reinit:1", "o_proj@all=reinit:2", "all@3=remove", "all@2=remove"]
    assert len({plan_of(text, pair).key for text in [same[0], *other]}) == len(other) + 1


def test_key_of_all_a_is_the_same_for_every_pair(pair, moe):
    assert plan_of("", pair).key == plan_of("", moe).key
    assert plan_of("", pair) != plan_of("", moe)


def test_tokenizer_follows_the_head(pair, gpt2):
    assert [plan_of(text, pair).tokenizer for text in ("head=B", "all@all=B", "emb=B", "all@all=B; lm_head=A")] == list(
        "BBAA"
    )
    assert [plan_of(f"head=B:{alpha}", pair).tokenizer for alpha in (0.49, 0.5, 1.2)] == list("ABB")
    assert plan_of("head=zero", pair).tokenizer == "A"
    assert plan_of("head=B", gpt2).tokenizer == "B"


def test_plans_can_be_cached(pair):
    plan = plan_of("o_proj@all=B; all@1=remove", pair)
    assert pickle.loads(pickle.dumps(plan)) == plan
    with pytest.raises(AttributeError):
        plan.key = ""


@pytest.mark.parametrize("preset", recipes.PRESETS, ids=lambda preset: preset.name)
def test_presets_fit(preset, pair, moe, gpt2):
    for each in (pair, moe):
        assert bool(plan_of(preset.text, each).moved) == bool(preset.text)
    assert bool(plan_of(preset.text, gpt2).moved) == bool(preset.text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("oproj@all=B", ["'oproj'", "Did you mean 'o_proj'?", "gate_proj", "norms"]),
        ("o_proj@all=B; spam@1=zero", ["'spam'", "Modules are embed_tokens", "groups are all"]),
        ("o_proj@4=B", ["o_proj@4=B", "layers 4", "layers 0-3"]),
        ("mlp@2-9=zero", ["2-9", "0-3"]),
        ("all@7=remove", ["all@7=remove", "0-3"]),
        ("emb@2=B", ["emb@2=B", "'emb' is in no layer", "leave out"]),
        ("lm_head,o_proj@2=B", ["'lm_head' is in no layer"]),
        ("norm@0-3=B", ["'norm' is in no layer"]),
        ("q_norm@all=B", ["'q_norm'", "A does not have"]),
        ("router@all=B", ["'router'"]),
        ("oproj@all=A", ["'oproj'", "Did you mean 'o_proj'?"]),
        ("o_proj@9=B; all@all=B", ["o_proj@9=B", "layers 9"]),
        ("all@0-3=remove", ["removes all 4 layers"]),
    ],
)
def test_what_a_does_not_have_is_refused_by_name(text, words, pair):
    with pytest.raises(RecipeError) as caught:
        plan_of(text, pair)
    for word in words:
        assert word in str(caught.value)


def test_a_module_in_other_layers_only(tmp_path):
    shapes = {"model.layers.0.mlp.gate_proj.weight": 2, "model.layers.1.mlp.experts.0.gate_proj.weight": 2}
    pair = compared(made(tmp_path / "a", shapes), made(tmp_path / "b", shapes, seed=1))
    assert set(moved("gate_proj@all=B", pair)) == set(shapes)
    assert set(moved("mlp.gate_proj@0=B", pair)) == {"model.layers.0.mlp.gate_proj.weight"}
    with pytest.raises(RecipeError, match=r"'experts\.gate_proj' is only in layers 1"):
        plan_of("experts.gate_proj@0=B", pair)


def test_other_shapes_are_refused_by_name_unless_left_out(tmp_path):
    pair = compared(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1, vocab=300))
    for text in ("emb=B", "all@all=B:0.5"):
        with pytest.raises(RecipeError) as caught:
            plan_of(text, pair)
        assert "model.embed_tokens.weight" in str(caught.value)
        assert "288 × 32 in A, 300 × 32 in B" in str(caught.value)
    assert "(and 1 more)" in str(caught.value)
    way_out = "embed_tokens,lm_head=A"
    assert way_out in str(caught.value)
    assert plan_of(f"all@all=B; {way_out}", pair).tokenizer == "A"
    assert plan_of("emb=zero", pair).moved == ("model.embed_tokens.weight",)


def test_what_b_lacks_is_refused(tmp_path):
    """Qwen2 has biases that Llama has not, Qwen3 has norms."""
    pair = compared(tiny_qwen2(tmp_path / "a"), tiny_llama(tmp_path / "b", seed=1))
    with pytest.raises(RecipeError, match=r"q_proj\.bias .*Only A has this tensor"):
        plan_of("q_proj@all=B", pair)
    assert len(plan_of("o_proj@all=B", pair).moved) == 2
    assert len(plan_of("q_proj@all=zero", pair).moved) == 4


def test_what_only_b_has_is_refused_too(tmp_path):
    """A module never moves without its bias, nor attention without its norms: that would be B in part."""
    pair = compared(tiny_llama(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1))
    with pytest.raises(RecipeError, match=r"q_proj\.bias .*Only B has it"):
        plan_of("q_proj@all=B", pair)
    assert len(plan_of("o_proj,mlp@all=B", pair).moved) == 8
    with_norms = compared(tiny_llama(tmp_path / "c"), tiny_qwen3(tmp_path / "d", seed=1, hidden=64))
    with pytest.raises(RecipeError, match="only B has"):
        plan_of("q_norm@all=B", with_norms)


def test_buffers_and_towers_that_only_b_has_are_no_obstacle(tmp_path):
    shapes = {"model.layers.0.self_attn.o_proj.weight": 2, "lm_head.weight": 4}
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": 2, "visual.blocks.0.attn.qkv.weight": 2}
    pair = compared(made(tmp_path / "a", shapes), made(tmp_path / "b", shapes | more, seed=1))
    assert set(plan_of("all@all=B", pair).moved) == set(shapes)


def test_towers_move_by_their_name(tmp_path):
    shapes = {f"visual.blocks.{n}.attn.q_proj.weight": 2 for n in range(2)}
    shapes |= {"model.layers.0.self_attn.q_proj.weight": 2, "visual.merger.weight": 2}
    pair = compared(made(tmp_path / "a", shapes), made(tmp_path / "b", shapes, seed=1))
    assert set(moved("q_proj,attn@all=B", pair)) == {"model.layers.0.self_attn.q_proj.weight"}
    assert len(moved("visual=B", pair)) == 3
    assert set(moved("visual.blocks.1=B", pair)) == {"visual.blocks.1.attn.q_proj.weight"}
    assert len(moved("all=B", pair)) == 4


def test_tied_a_with_untied_b(tmp_path):
    pair = compared(tiny_qwen2(tmp_path / "a", tied=True), tiny_qwen2(tmp_path / "b", seed=1))
    assert set(moved("head=B", pair)) == {"lm_head.weight"}
    assert set(moved("emb=B", pair)) == {"model.embed_tokens.weight"}
    assert plan_of("all@all=B", pair).share_from_b == 1


def test_a_large_model_resolves_fast(tmp_path):
    """64 experts in 24 layers: about 4,600 tensors."""
    from time import perf_counter

    names = [
        f"model.layers.{n}.mlp.experts.{e}.{m}_proj.weight"
        for n in range(24)
        for e in range(64)
        for m in ("gate", "up", "down")
    ]
    folder = made(tmp_path / "a", dict.fromkeys(names, 1))
    pair = compared(folder, folder)
    start = perf_counter()
    plan = plan_of("gate_proj@all=B; up_proj@0-20=B:0.5; experts.3.down_proj@all=zero; mlp@23=A", pair)
    assert perf_counter() - start < 3
    assert len(plan.moved) == 23 * 64 + 21 * 64 + 23
