"""Recipes as mergekit configs and back: the same plan again, a sentence for what one of the two cannot say."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfn import checkpoints, pairs, recipes
from sfn.errors import RecipeError
from tests.builders import tiny_llama, tiny_qwen2, tiny_qwen3_moe

WORDS = ["q_proj", "k_proj", "o_proj", "qkv", "attn", "mlp", "up_proj", "norms", "input_layernorm", "all"]
ENDS = ["emb", "head", "norm"]
SOURCES = ["A", "B", "B:0.5", "B:0.3", "B:1.25", "B:-0.5", "B:1e-07", "zero"]


def open_pair(a: Path, b: Path) -> pairs.Pair:
    return pairs.compare(checkpoints.open(a), checkpoints.open(b))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pairs.Pair]:
    root = tmp_path_factory.mktemp("made")
    llamas = [tiny_llama(root / name, seed, layers=5) for seed, name in enumerate(("llama-a", "llama-b"))]
    for folder in llamas:  # as real Llama configs are
        config = json.loads((folder / "config.json").read_text())
        del config["layer_types"]
        (folder / "config.json").write_text(json.dumps(config))
    return {
        "qwen2": open_pair(tiny_qwen2(root / "a", layers=6), tiny_qwen2(root / "b", 1, layers=6)),
        "tied": open_pair(tiny_qwen2(root / "ta", tied=True), tiny_qwen2(root / "tb", 1, tied=True)),
        "tied a": open_pair(tiny_qwen2(root / "ua", tied=True), tiny_qwen2(root / "ub", 1)),
        "experts": open_pair(tiny_qwen3_moe(root / "ma"), tiny_qwen3_moe(root / "mb", 1)),
        "llama": open_pair(*llamas),
    }


@pytest.fixture
def pair(made: dict[str, pairs.Pair]) -> pairs.Pair:
    return made["qwen2"]


def plan_of(text: str, pair: pairs.Pair) -> recipes.Plan:
    return recipes.resolve(recipes.parse(text), pair)


def imported(text: str, pair: pairs.Pair) -> str:
    return recipes.format(recipes.from_mergekit(text, pair).recipe)


# There and back.

_WHERE = st.one_of(st.just("all"), st.integers(0, 1).map(str), st.just("0-1"))
_RULES = st.lists(st.builds("{}@{}={}".format, st.sampled_from(WORDS), _WHERE, st.sampled_from(SOURCES)), max_size=5)
_ENDS = st.lists(st.builds("{}={}".format, st.sampled_from(ENDS), st.sampled_from(SOURCES)), max_size=3)


@given(kind=st.sampled_from(["qwen2", "tied", "tied a", "experts", "llama"]), rules=_RULES, ends=_ENDS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_there_and_back_is_the_same_plan(
    made: dict[str, pairs.Pair], kind: str, rules: list[str], ends: list[str]
) -> None:
    pair = made[kind]
    plan = plan_of("; ".join([*rules, *ends]), pair)
    try:
        config = recipes.to_mergekit(plan, pair)
    except RecipeError as error:
        embedding, head = plan.sources["model.embed_tokens.weight"], plan.sources["lm_head.weight"]
        if not ((kind == "tied" and embedding != head) or (kind == "experts" and "experts" in str(error))):
            raise
        return
    back = recipes.from_mergekit(config.yaml, pair)
    assert recipes.resolve(back.recipe, pair) == plan
    assert back.notes == ()


@given(gone=st.sets(st.integers(0, 4), min_size=1, max_size=4), rules=_RULES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_removed_layers_go_there_and_back(made: dict[str, pairs.Pair], gone: set[int], rules: list[str]) -> None:
    pair = made["llama"]
    plan = plan_of("; ".join([*rules, f"all@{','.join(map(str, gone))}=remove"]), pair)
    assert recipes.resolve(recipes.from_mergekit(recipes.to_mergekit(plan, pair).yaml, pair).recipe, pair) == plan


# What is written.


def test_names_of_models_folder_repo_or_as_asked(made: dict[str, pairs.Pair], tmp_path: Path) -> None:
    snapshot = tiny_qwen2(tmp_path / "models--org--name" / "snapshots" / ("0123456789" * 4), layers=6)
    odd = tiny_qwen2(tmp_path / "x+y@z", layers=6)
    pair = open_pair(snapshot, odd)
    plan = plan_of("o_proj=B", pair)
    content = yaml.safe_load(recipes.to_mergekit(plan, pair).yaml)
    assert content["base_model"] == "org/name@" + "0123456789" * 4
    assert content["models"][1]["model"] == {"model": {"path": str(odd)}}  # else "+" and "@" would mean something
    named = yaml.safe_load(recipes.to_mergekit(plan, pair, a="one", b="two").yaml)
    assert [entry["model"] for entry in named["models"]] == ["one", "two"]
    assert imported(recipes.to_mergekit(plan, pair).yaml, pair) == "o_proj@all=B"


def test_whole_layers_pass_through(pair: pairs.Pair) -> None:
    config = recipes.to_mergekit(plan_of("all@1-2=B; emb=B; all@5=B; head,norm=B", pair), pair, a="a", b="b")
    content = yaml.safe_load(config.yaml)
    assert content["merge_method"] == "passthrough"
    ranges = [(s["sources"][0]["model"], *s["sources"][0]["layer_range"]) for s in content["slices"]]
    assert ranges == [("b", 0, 0), ("a", 0, 1), ("b", 1, 3), ("a", 3, 5), ("b", 5, 6)]
    assert "every tensor bit for bit" in config.exactness


def test_how_near_is_said(pair: pairs.Pair) -> None:
    assert "-0.0" in recipes.to_mergekit(plan_of("o_proj=B", pair), pair).exactness
    assert "last bit" in recipes.to_mergekit(plan_of("o_proj=B:0.5", pair), pair).exactness


def test_what_mergekit_does_otherwise_is_said(made: dict[str, pairs.Pair], tmp_path: Path) -> None:
    b = tiny_qwen2(tmp_path / "b", 1, layers=6, eos_token_id=2)
    (b / "generation_config.json").write_text('{"eos_token_id": 2}')
    pair = open_pair(made["qwen2"].a.folder, b)
    config = recipes.to_mergekit(plan_of("head=B", pair), pair)
    assert any("copy B's tokenizer" in note for note in config.notes)
    assert all(f"# {note}" in config.yaml for note in config.notes)
    assert not recipes.to_mergekit(plan_of("o_proj=B", pair), pair).notes
    assert any("tied" in note for note in recipes.to_mergekit(plan_of("", made["tied a"]), made["tied a"]).notes)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("qwen2", "o_proj=B; q_proj@1=reinit:3", r"rule q_proj@1=reinit:3 draws random weights"),
        ("qwen2", "all@1=remove", r"rule all@1=remove drops layers.*write the checkpoint with SfN"),
        ("tied", "emb=B", r"cannot take the embedding from B and the head from A.*emb,head=B"),
        ("experts", "up_proj@1=B", r"experts of a layer as one tensor: .*experts.0.gate_proj.* from A"),
    ],
)
def test_what_mergekit_cannot_say(made: dict[str, pairs.Pair], kind: str, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.to_mergekit(plan_of(text, made[kind]), made[kind])


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    a = tiny_qwen2(tmp_path / "a")
    vocabulary = open_pair(a, tiny_qwen2(tmp_path / "b", 1, vocab=320))
    assert "passthrough" in recipes.to_mergekit(plan_of("all@1=B", vocabulary), vocabulary).yaml
    with pytest.raises(RecipeError, match=r"cannot take model.norm.weight from B.*lm_head.weight does not fit.*288"):
        recipes.to_mergekit(plan_of("norm=B", vocabulary), vocabulary)
    codes = tiny_qwen2(tmp_path / "codes", dtype="float8_e4m3fn")
    eighths = open_pair(codes, codes)
    with pytest.raises(RecipeError, match=r"stored as F8_E4M3, with which mergekit cannot compute"):
        recipes.to_mergekit(plan_of("o_proj=B", eighths), eighths)
    assert "passthrough" in recipes.to_mergekit(plan_of("all@1=B", eighths), eighths).yaml
    wide = open_pair(a, tiny_qwen2(tmp_path / "wide", 1, dtype="float32"))
    assert "out_dtype: bfloat16" in recipes.to_mergekit(plan_of("o_proj=B", wide), wide).yaml


# What is read.

HEAD = "base_model: a\nmerge_method: "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("merge_method: passthrough\nslices:\n- sources:\n  - {model: b, layer_range: [0, 6]}", "all@all=B"),
        (
            "slices:\n- sources: [{model: a, layer_range: [0, 2]}]\n- sources: [{model: b, layer_range: [2, 6]}]\n"
            "merge_method: passthrough",
            "norm,head=B; all@2-5=B",
        ),
        ("merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [1, 6]}", "all@0=remove"),
        ("models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: 1}", "all@all=B:0.5"),
        (
            "models:\n- {model: a, parameters: {weight: 3}}\n- {model: b, parameters: {weight: 1}}\n"
            "merge_method: linear",
            "all@all=B:0.25",
        ),
        (
            "models:\n- model: a\n  parameters: {weight: [{filter: o_proj, value: 0}, {filter: '*', value: 1}]}\n"
            "- model: b\n  parameters: {weight: [{filter: o_proj, value: 1}, 0.0]}\nmerge_method: linear",
            None,
        ),
        (
            "models:\n- model: a\n  parameters: {weight: [{filter: o_proj, value: 0}, {filter: '*', value: 1}]}\n"
            "- model: b\n  parameters: {weight: [{filter: o_proj, value: 1}, {value: 0.0}]}\nmerge_method: linear",
            "o_proj@all=B",
        ),
        (  # over the layers of the slice from 1 to 0
            "slices:\n- sources:\n  - {model: a, layer_range: [0, 6], parameters: {weight: [1, 0]}}\n"
            "  - {model: b, layer_range: [0, 6], parameters: {weight: [0, 1]}}\nmerge_method: linear",
            "all@5=B; all@1=B:0.2; all@2=B:0.4; all@3=B:0.6; all@4=B:0.8",
        ),
        (
            HEAD + "task_arithmetic\nmodels: [{model: b, parameters: {weight: 0.25}}]\ndtype: bfloat16",
            "all@all=B:0.25",
        ),
        ("modules: {default: {models: [{model: b, parameters: {weight: 1e0}}]}}\nmerge_method: linear", "all@all=B"),
        (  # read as mergekit reads it: a text, and a number all the same
            "models:\n- {model: a, parameters: {weight: '1e-1'}}\n- {model: b, parameters: {weight: 0.9}}\n"
            "merge_method: linear",
            "all@all=B:0.9",
        ),
    ],
)
def test_configs_written_by_hand(pair: pairs.Pair, text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(RecipeError, match=r"weight: 0.0 should be \{filter: NAME, value: NUMBER\}"):
            imported(text, pair)
    else:
        assert plan_of(imported(text, pair), pair) == plan_of(expected, pair)


SLICE = "slices:\n- sources:\n  - {{model: {}, layer_range: {}}}\nmerge_method: passthrough\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no mergekit config"),
        ("- a\n- b", "no mergekit config"),
        ("models: [{model: a}]", "it has no merge_method"),
        ("merge_method: [linear]\nmodels: []", "has no counterpart"),
        ("a: [1, 2", r"not valid YAML in line 1: .*Paste"),
        ("x: " + "[" * 5000, "not valid YAML"),
        ("merge_method: slerp\nmodels: []", "'slerp' has no counterpart in a recipe: it turns .* on a sphere"),
        ("merge_method: ties\nmodels: []", "'ties' has no counterpart in a recipe"),
        ("merge_method: linear", "no list of slices"),
        ("merge_method: linear\nmodels: 3", "no list of models"),
        ("merge_method: linear\nmodels: [x]", "should be a mapping"),
        ("merge_method: linear\nmodels: [{parameters: {weight: 1}}]", "has no name"),
        (
            "merge_method: linear\nmodels: [{model: other/thing, parameters: {weight: 1}}]",
            r"'other/thing', which cannot",
        ),
        ("merge_method: linear\nmodels: [{model: a+adapter, parameters: {weight: 1}}]", "has an adapter"),
        ("merge_method: linear\nmodels: [{model: a}, {model: b}]", "gives A no weight"),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: much}}]", "'much' is no number"),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: .nan}}]", "nan is no number"),
        ("merge_method: linear\nmodels: [{model: a, parameters: 1}]", "should be a mapping"),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: 0}}]", "add up to 0"),
        ("merge_method: linear\nmodels: [{model: a}, {model: a}]\nparameters: {weight: 1}", "stands twice"),
        (
            "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.8, normalize: false}",
            "together 1.6.*must add up to 1",
        ),
        (
            "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\ntokenizer_source: union",
            "new vocabulary",
        ),
        (HEAD + "task_arithmetic\nmodels: [{model: b, parameters: {weight: 1, density: 0.5}}]", "density: 0.5 has no"),
        ("merge_method: task_arithmetic\nmodels: [{model: b, parameters: {weight: 1}}]", "needs a base_model"),
        (SLICE.format("a", "[0, 7]"), r"\[0, 7\] is no range of this pair's layers: .* from \[0, 6\]"),
        (SLICE.format("a", "all"), "'all' is no range"),
        (SLICE.format("a", "[3, 3]"), "hold no layer"),
        (SLICE.format("a", "[0, 6]") + "parameters: {scale: 0.5}", "scaled by 0.5"),
        (
            "slices:\n- sources: [{model: a, layer_range: [0, 4]}]\n- sources: [{model: a, layer_range: [2, 6]}]\n"
            "merge_method: passthrough",
            "put layer 2 after layer 3: .* neither repeat them",
        ),
        (
            "slices:\n- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [2, 4]}]\n"
            "merge_method: linear\nparameters: {weight: 1}",
            "puts layers 0-1 of A onto 2-3 of B",
        ),
        ("modules: {text: {models: []}, vision: {models: []}}\nmerge_method: linear", "names several parts of a model"),
        (
            "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: {filter: q_proj.bias, value: 0}}}\n"
            "- {model: b, parameters: {weight: 1}}\nparameters: {weight: 1}",
            "Weight and bias",
        ),
    ],
)
def test_what_no_recipe_says(pair: pairs.Pair, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.from_mergekit(text, pair)


def test_notes_on_what_is_left_out(pair: pairs.Pair) -> None:
    text = (
        "merge_method: linear\ndtype: float16\nchat_template: auto\nname: mine\n"
        "models: [{model: a, parameters: {weight: 1}}]"
    )
    found = recipes.from_mergekit(text, pair)
    assert not found.recipe
    assert [note.split()[0] for note in found.notes] == ["'name'", "dtype", "Tokenizer"]


def test_a_config_that_grows_without_end_is_refused_quickly(pair: pairs.Pair) -> None:
    lines = ["merge_method: linear", "a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    with pytest.raises(RecipeError, match="should be a mapping"):
        recipes.from_mergekit("\n".join([*lines, "models: *a59"]), pair)
    with pytest.raises(RecipeError, match="at most 500,000 are read"):
        recipes.from_mergekit("#" * 500_001, pair)
    with pytest.raises(RecipeError, match="is no number"):
        recipes.from_mergekit("merge_method: linear\nmodels: [{model: a, parameters: {weight: &w [*w]}}]", pair)


KEYS = ["model", "models", "slices", "sources", "weight", "value", "filter", "parameters", "layer_range", "base_model"]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["a", "b"])
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(ANYTHING, st.sampled_from(["linear", "passthrough", "task_arithmetic"]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_yaml_is_a_recipe_or_a_sentence(pair: pairs.Pair, body: object, method: str) -> None:
    content = {"merge_method": method, **(body if isinstance(body, dict) else {"models": body})}
    with contextlib.suppress(RecipeError):
        found = recipes.from_mergekit(yaml.safe_dump(content), pair)
        assert recipes.resolve(found.recipe, pair)
