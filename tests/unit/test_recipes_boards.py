"""From cells of the board to a recipe and back."""

import re
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfn import anatomy, checkpoints, pairs, recipes
from sfn.errors import RecipeError
from sfn.recipes import Source
from tests.builders import random_tensors, tiny_qwen2, tiny_qwen3_moe, write_checkpoint


def made_pair(folder, names):
    """A pair with tensors of these names, all movable."""
    for side, seed in (("a", 0), ("b", 1)):
        tensors = random_tensors(dict.fromkeys(names, (2, 2)), seed, "float32")
        write_checkpoint(folder / side, tensors, {"model_type": "made"}, with_tokenizer=False)
    return pairs.compare(checkpoints.open(folder / "a"), checkpoints.open(folder / "b"))


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2")
    sides = (tiny_qwen2(folder / name, seed=seed, layers=6) for seed, name in enumerate("ab"))
    return pairs.compare(*map(checkpoints.open, sides))


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    """Dense and expert layers, GPT-2's double c_proj, a norm in layers and one outside, a tower, unknown names."""
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "spam.weight", "visual.0.qkv.weight"]
    for n in range(4):
        names += [f"model.layers.{n}.self_attn.{m}_proj.{p}" for m in "qo" for p in ("weight", "bias")]
        names += [f"model.layers.{n}.norm.weight", f"model.layers.{n}.attn.c_proj.weight"]
        names += [f"model.layers.{n}.mlp.c_proj.weight", f"model.layers.{n}.spam.eggs.weight"]
        expert = [f"experts.{e}.gate_proj" for e in range(2)] + ["shared_expert.gate_proj", "gate"]
        names += [f"model.layers.{n}.mlp.{m}.weight" for m in (["gate_proj"] if n == 0 else expert)]
    return made_pair(tmp_path_factory.mktemp("awkward"), names)


def resolved(text, pair):
    return recipes.resolve(recipes.parse(text), pair)


def compacted(text, pair):
    return str(recipes.compact(pair, resolved(text, pair).sources))


words = st.sampled_from(["all", "attn", "qkv", "mlp", "norms", "emb", "head", "q_proj", "o_proj", "gate_proj", "norm"])
wheres = st.sampled_from(["all", "0", "1-2", "3", "0,2", "1-3", "0-3"])
rules = st.builds("{}@{}={}".format, words, wheres, st.sampled_from(["A", "B", "B", "B:0.5", "zero", "reinit:3"]))
more_rules = st.builds(
    "{}@{}={}".format,
    st.sampled_from(["experts.gate_proj", "experts.1.gate_proj", "shared_expert.gate_proj", "gate", "spam", "eggs"])
    | st.sampled_from(["c_proj", "mlp.c_proj", "visual", "visual.0.qkv"]),
    wheres,
    st.sampled_from(["A", "B", "zero"]),
)
removals = st.sampled_from(["all@1=remove", "all@2-3=remove"])


def resolved_or_none(texts, pair):
    """The plan of the rules that fit the pair."""
    kept: list[str] = []
    for text in texts:
        try:
            resolved(";".join([*kept, text]), pair)
        except RecipeError:
            continue
        kept.append(text)
    return resolved(";".join(kept), pair)


@settings(max_examples=80, deadline=None)
@given(texts=st.lists(rules | rules | removals, max_size=5))
def test_compact_says_the_same(texts, qwen2):
    plan = resolved_or_none(texts, qwen2)
    recipe = recipes.compact(qwen2, plan.sources)
    again = recipes.resolve(recipe, qwen2)
    assert again == plan
    assert again.sources == plan.sources
    assert again.removed == plan.removed
    assert recipes.cells(again) == recipes.cells(plan)
    assert recipes.compact(qwen2, again.sources) == recipe


@settings(max_examples=80, deadline=None)
@given(texts=st.lists(rules | more_rules | more_rules | removals, max_size=5))
def test_compact_says_the_same_on_an_awkward_model(texts, awkward):
    plan = resolved_or_none(texts, awkward)
    again = recipes.resolve(recipes.compact(awkward, plan.sources), awkward)
    assert again.sources == plan.sources


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_picture_on_the_board_has_a_recipe(data, awkward):
    places = list(recipes.cells(resolved("", awkward)))
    states = [Source("A"), Source("A"), Source("B"), Source("B"), Source("zero"), Source("blend", 0.5)]
    picture = {place: data.draw(st.sampled_from(states)) for place in places}
    sources = {row.name: picture[recipes.place(row.part)] for row in awkward.rows}
    assert recipes.resolve(recipes.compact(awkward, sources), awkward).sources == sources


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(rules | removals, max_size=3), data=st.data())
def test_paint_sets_its_cells_and_leaves_the_others(texts, data, qwen2):
    plan = resolved_or_none(texts, qwen2)
    before = recipes.cells(plan)
    places = data.draw(
        st.sets(st.sampled_from([place for place, state in before.items() if state != "removed"]), max_size=9)
    )
    source = data.draw(st.sampled_from(["A", "B", "B:0.25", "zero"]))
    after = recipes.cells(recipes.resolve(recipes.paint(plan.recipe, qwen2, dict.fromkeys(places, source)), qwen2))
    state = "blend" if ":" in source else source
    assert after == {place: state if place in places else held for place, held in before.items()}


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("", ""),
        ("o_proj@0=B; o_proj@1=B; o_proj@2-5=B", "o_proj@all=B"),
        ("o_proj@0,1,2,4=B", "o_proj@0-2,4=B"),
        ("o_proj@all=B; o_proj@3=A", "o_proj@0-2,4-5=B"),
        ("q_proj,k_proj,v_proj@all=B", "qkv@all=B"),
        ("q_proj,k_proj,v_proj,o_proj@1-2=zero", "attn@1-2=zero"),
        ("all@0-5=B; emb,head=B; norm=B", "all@all=B"),
        ("all@all=B; o_proj@all=A", "all@all=B; o_proj@all=A"),
        ("all@3=B", "all@3=B"),
        ("o_proj@all=B; all@3=B", "o_proj@all=B; all@3=B"),
        ("o_proj,emb,head,norms@all=B", "emb,norms,o_proj,head@all=B"),
        ("embed_tokens=B", "emb=B"),
        ("all@2-3=remove; o_proj@0,1,4,5=B", "o_proj@all=B; all@2-3=remove"),
        ("mlp@1-3=B:0.5; down_proj@2=B:0.5", "mlp@1-3=B:0.5"),
    ],
)
def test_compact_is_short(text, short, qwen2):
    assert compacted(text, qwen2) == short


@pytest.mark.parametrize("preset", recipes.PRESETS, ids=lambda preset: preset.name)
def test_presets_come_back_as_they_are_written(preset, qwen2):
    assert compacted(preset.text, qwen2) == preset.text


def test_words_that_mean_two_things_are_told_apart(awkward):
    assert compacted("o_proj@all=B", awkward) == "attn.c_proj,self_attn.o_proj@all=B"
    assert compacted("mlp.c_proj@1=B", awkward) == "mlp.c_proj@1=B"
    assert compacted("experts.1.gate_proj@2=B", awkward) == "experts.1.gate_proj@2=B"
    assert compacted("mlp.gate_proj@0=B", awkward) == "mlp.gate_proj@0=B"
    assert compacted("norm@all=B; norm@0-3=A", awkward) == "norm=B; norm@0-3=A"


def test_cells(awkward):
    cells = recipes.cells(
        resolved("o_proj@1=B; mlp@2=B:0.5; experts.0.gate_proj@3=zero; all@0=remove; spam=reinit:1", awkward)
    )
    assert cells[1, "o_proj"] == "B"
    assert cells[2, "o_proj"] == "A"
    assert cells[2, "experts.gate_proj"] == "blend"
    assert cells[3, "experts.gate_proj"] == "mixed"
    assert {state for (layer, _), state in cells.items() if layer == 0} == {"removed"}
    assert cells[None, "spam"] == "reinit"
    assert (0, "experts.gate_proj") not in cells
    assert next(iter(cells)) == (None, "embed_tokens")


def test_paint_writes_what_a_person_would(qwen2):
    recipe = recipes.Recipe()
    for layer in range(6):
        recipe = recipes.paint(recipe, qwen2, {(layer, "o_proj"): "B"})
    assert str(recipe) == "o_proj@all=B"
    assert str(recipes.paint(recipe, qwen2, {(2, "o_proj"): "A"})) == "o_proj@0-1,3-5=B"
    column = [place for place in recipes.cells(resolved("", qwen2)) if place[0] == 4]
    assert str(recipes.paint(recipe, qwen2, dict.fromkeys(column, Source("zero")))) == "o_proj@all=B; all@4=zero"


def test_painting_a_cell_of_a_removed_layer_brings_it_back(qwen2):
    recipe = recipes.paint(recipes.parse("all@1-2=remove"), qwen2, {(1, "o_proj"): "B"})
    assert str(recipe) == "all@2=remove; o_proj@1=B"


@pytest.mark.parametrize(
    ("places", "source", "words"),
    [
        ([(9, "o_proj")], "B", "'o_proj' in layer 9"),
        ([(None, "o_proj")], "B", "outside the layers"),
        ([(0, "spam")], "A", "'spam'"),
        ([(0, "o_proj")], "C", "'C'"),
        ([(0, "o_proj")], "remove", "all@5=remove"),
    ],
)
def test_paint_refuses_what_cannot_be(places, source, words, qwen2):
    with pytest.raises(RecipeError, match=words):
        recipes.paint(recipes.Recipe(), qwen2, dict.fromkeys(places, source))


def test_paint_to_b_needs_bs_tensor(tmp_path):
    a, b = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1, vocab=300)
    pair = pairs.compare(checkpoints.open(a), checkpoints.open(b))
    with pytest.raises(RecipeError, match="lm_head"):
        recipes.paint(recipes.Recipe(), pair, {(None, "lm_head"): "B"})


def test_many_cells_of_different_sources_at_once(qwen2):
    wanted = {(n, "o_proj"): "B:0.5" for n in range(6)} | {(n, "up_proj"): "zero" for n in (0, 1, 2)}
    recipe = recipes.paint(recipes.Recipe(), qwen2, wanted | {(3, "q_proj"): "reinit:7"})
    assert str(recipe) == "o_proj@all=B:0.5; q_proj@3=reinit:7; up_proj@0-2=zero"


def test_invert_swaps_a_and_b_turns_blends_round_and_leaves_damage(qwen2):
    recipe = recipes.parse("o_proj@0-2=B; k_proj@all=B:0.3; v_proj@all=B:-0.5; up_proj@1=zero; all@5=remove")
    places = [(n, row) for n in range(6) for row in ("o_proj", "k_proj", "v_proj", "up_proj")]
    there = recipes.resolve(recipes.invert(recipe, qwen2, places), qwen2).sources
    named = "model.layers.{}.{}.weight".format
    assert [str(there[named(n, "self_attn.o_proj")]) for n in range(6)] == ["A", "A", "A", "B", "B", "remove"]
    assert str(there[named(0, "self_attn.k_proj")]) == "B:0.7"
    assert str(there[named(0, "self_attn.v_proj")]) == "B:1.5"
    assert [str(there[named(n, "mlp.up_proj")]) for n in (0, 1)] == ["B", "zero"]
    assert str(there[named(0, "self_attn.q_proj")]) == "A"


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(rules | removals, max_size=3))
def test_inverting_twice_changes_nothing(texts, qwen2):
    recipe = resolved_or_none(texts, qwen2).recipe
    places = list(recipes.cells(recipes.resolve(recipe, qwen2)))
    twice = recipes.invert(recipes.invert(recipe, qwen2, places), qwen2, places)
    assert recipes.resolve(twice, qwen2) == recipes.resolve(recipe, qwen2)


def test_a_tower_is_one_cell_and_one_word(tmp_path):
    layers = [f"model.layers.{n}.self_attn.{m}_proj.weight" for n in range(2) for m in "qo"]
    tower = [f"model.visual.blocks.{n}.{module}.weight" for n in range(9) for module in ("qkv", "mlp.fc1", "norm1")]
    pair = made_pair(tmp_path, [*layers, *tower, "visual_head.weight"])
    assert list(recipes.cells(resolved("", pair)))[4:] == [(None, "model.visual"), (None, "visual_head")]
    recipe = recipes.paint(recipes.parse("o_proj@1=B"), pair, {(None, "model.visual"): "zero"})
    assert str(recipe) == "o_proj@1=B; model.visual@all=zero"
    part = recipes.resolve(recipes.parse("model.visual.blocks.3@all=B"), pair)
    assert recipes.cells(part)[None, "model.visual"] == "mixed"
    assert recipes.resolve(recipes.compact(pair, part.sources), pair) == part


def test_an_expert_of_its_own_is_an_exception_to_its_row(tmp_path):
    sides = tiny_qwen3_moe(tmp_path / "a", layers=3), tiny_qwen3_moe(tmp_path / "b", seed=1, layers=3)
    pair = pairs.compare(*map(checkpoints.open, sides))
    recipe = recipes.paint(recipes.parse("experts.2.up_proj@0=zero"), pair, {(1, "experts.up_proj"): "B"})
    assert str(recipe) == "experts.2.up_proj@0=zero; experts.up_proj@1=B"
    recipe = recipes.parse("experts.down_proj@all=B; experts.1.down_proj@all=A; experts.3.down_proj@2=B:0.5")
    assert compacted(str(recipe), pair) == str(recipe)
    back = recipes.paint(recipe, pair, {(n, "experts.down_proj"): "A" for n in range(3)})
    assert str(back) == ""


def test_what_only_b_has_is_not_asked_for(tmp_path):
    """B has biases that A has no place for: what fits is still painted, without a word that would mean them too."""
    names = [f"model.layers.{n}.mlp.{m}_proj.weight" for n in range(2) for m in ("gate", "up", "down")]
    tensors = random_tensors(dict.fromkeys(names, (2, 2)), 0, "float32")
    extra = random_tensors({"model.layers.1.mlp.up_proj.bias": (2, 2)}, 0, "float32")
    write_checkpoint(tmp_path / "a", tensors, {"model_type": "made"}, with_tokenizer=False)
    write_checkpoint(tmp_path / "b", tensors | extra, {"model_type": "made"}, with_tokenizer=False)
    pair = pairs.compare(checkpoints.open(tmp_path / "a"), checkpoints.open(tmp_path / "b"))
    wanted = [place for place in recipes.cells(resolved("", pair)) if place != (1, "up_proj")]
    recipe = recipes.paint(recipes.Recipe(), pair, dict.fromkeys(wanted, "B"))
    assert {place for place, state in recipes.cells(recipes.resolve(recipe, pair)).items() if state == "B"} == {*wanted}
    assert [row.name for row in pair.rows if recipes.obstacle(row)] == ["model.layers.1.mlp.up_proj.bias"]


def test_a_board_of_many_experts_is_followed_quickly(tmp_path):
    """Headers of 48 layers with 128 experts each; the time is several times what a quiet machine takes."""
    small = tiny_qwen3_moe(tmp_path / "a"), tiny_qwen3_moe(tmp_path / "b", seed=1)
    of_layers = [row for row in pairs.compare(*map(checkpoints.open, small)).rows if row.part.layer == 0]
    names = [re.sub(r"layers\.0", f"layers.{n}", row.name) for n in range(48) for row in of_layers]
    more = [
        re.sub(r"experts\.0", f"experts.{e}", name) for name in names if "experts.0." in name for e in range(4, 128)
    ]
    rows = [replace(of_layers[0], name=name, part=anatomy.parse(name)) for name in [*names, *more]]
    pair = pairs.Pair(*map(checkpoints.open, small), rows, [], "lm_head.weight")
    assert len(pair.rows) > 18_000
    recipe = recipes.paint(recipes.Recipe(), pair, {(3, "o_proj"): "B"})  # what is found once is found now
    start = time.perf_counter()
    recipe = recipes.paint(recipe, pair, {(n, "experts.up_proj"): "B:0.5" for n in range(0, 48, 2)})
    recipe = recipes.paint(recipe, pair, {(7, "experts.gate_proj"): "zero"})
    assert time.perf_counter() - start < 2.0
    assert str(recipe).startswith("o_proj@3=B; experts.gate_proj@7=zero; experts.up_proj@0,2,4,")


def test_what_the_grammar_cannot_say_is_refused(qwen2):
    with pytest.raises(RecipeError, match="whole layers"):
        recipes.compact(qwen2, {"model.layers.0.self_attn.o_proj.weight": Source("remove")})
    with pytest.raises(RecipeError, match="go together"):
        recipes.compact(qwen2, {"model.layers.0.self_attn.q_proj.bias": Source("B")})
