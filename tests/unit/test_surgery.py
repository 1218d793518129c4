"""Building merged tensors and writing merged checkpoints: every value from where the recipe says, and loadable."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import sfn
from sfn import checkpoints, pairs, recipes, surgery
from sfn.errors import RecipeError, SurgeryError
from sfn.recipes import Source
from tests.builders import tiny_llama, tiny_qwen2, tiny_qwen3, tiny_qwen3_moe, write_checkpoint

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def open_pair(a: Path, b: Path) -> pairs.Pair:
    return pairs.compare(checkpoints.open(a), checkpoints.open(b))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> pairs.Pair:
    root = tmp_path_factory.mktemp("qwen2")
    return open_pair(tiny_qwen2(root / "a"), tiny_qwen2(root / "b", seed=1))


def written(pair: pairs.Pair, text: str, folder: Path, **options: object) -> dict[str, torch.Tensor]:
    """Tensors of the merged checkpoint, read with the reference reader."""
    target = surgery.write(pair, recipes.parse(text), folder, **options)
    tensors = {}
    for file in sorted(target.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    return tensors


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """State dict as transformers loads it; fails on any tensor missing, unexpected or misshapen."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.state_dict()


# One tensor at a time.


def test_a_and_b_come_bit_for_bit(qwen2: pairs.Pair) -> None:
    for name in qwen2.by_name:
        assert bits(surgery.build(qwen2, name, Source("A"))) == bits(qwen2.a.read(name))
        assert bits(surgery.build(qwen2, name, Source("B"))) == bits(qwen2.b.read(name))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9, 1.5, -0.25])
def test_blend_is_rounded_once(qwen2: pairs.Pair, alpha: float) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    a, b = qwen2.a.read(name).float(), qwen2.b.read(name).float()
    expected = ((1 - alpha) * a + alpha * b).to(torch.bfloat16)
    assert bits(surgery.build(qwen2, name, Source("blend", alpha))) == bits(expected)


def test_zero_has_dtype_and_shape_of_a(qwen2: pairs.Pair) -> None:
    tensor = surgery.build(qwen2, "model.layers.1.self_attn.q_proj.bias", Source("zero"))
    assert tensor.dtype == torch.bfloat16
    assert tensor.shape == (32,)
    assert not tensor.any()


def test_b_is_cast_to_the_dtype_of_a(tmp_path: Path) -> None:
    pair = open_pair(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1, dtype="float32"))
    name = "model.layers.0.self_attn.o_proj.weight"
    assert bits(surgery.build(pair, name, Source("B"))) == bits(pair.b.read(name).to(torch.bfloat16))
    merged = written(pair, "o_proj=B", tmp_path / "m")
    assert bits(merged[name]) == bits(pair.b.read(name).to(torch.bfloat16))
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}


def test_reinit_draws_matrices_and_neutralises_vectors(tmp_path: Path) -> None:
    pair = open_pair(tiny_qwen2(tmp_path / "a", hidden=128), tiny_qwen2(tmp_path / "b", seed=1, hidden=128))
    matrix = surgery.build(pair, "model.embed_tokens.weight", Source("reinit", seed=3)).float()
    assert matrix.std().item() == pytest.approx(0.02, rel=0.03)
    assert matrix.mean().item() == pytest.approx(0, abs=5e-4)
    assert surgery.build(pair, "model.norm.weight", Source("reinit", seed=3)).eq(1).all()
    assert surgery.build(pair, "model.layers.0.self_attn.k_proj.bias", Source("reinit", seed=3)).eq(0).all()


def test_reinit_depends_on_seed_and_name_alone(qwen2: pairs.Pair) -> None:
    up, gate = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    first = surgery.build(qwen2, up, Source("reinit", seed=3))
    torch.manual_seed(99)
    assert bits(surgery.build(qwen2, up, Source("reinit", seed=3))) == bits(first)
    assert bits(surgery.build(qwen2, up, Source("reinit", seed=4))) != bits(first)
    assert bits(surgery.build(qwen2, gate, Source("reinit", seed=3))) != bits(first)
    # Frozen: results kept under this seed must mean the same weights in a later version.
    assert first.flatten()[:4].tolist() == pytest.approx(
        [0.0069580078125, 0.0234375, -0.01519775390625, -0.001800537109375], rel=0.01
    )


@pytest.mark.parametrize("kind", ["blend", "zero", "reinit", "B"])
def test_blocks_join_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    pair = open_pair(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1, dtype="float32"))
    source = Source(kind, alpha=0.3, seed=1)
    name = "model.layers.0.mlp.down_proj.weight"
    whole = surgery.build(pair, name, source)
    monkeypatch.setattr(surgery, "_BLOCK_ELEMENTS", 100)
    pieces = surgery.build(pair, name, source)
    assert pieces.shape == whole.shape == (32, 48)
    if kind == "reinit":  # what is drawn depends on the cut, which is why the block size is fixed
        assert pieces.float().std().item() == pytest.approx(0.02, rel=0.1)
    else:
        assert bits(pieces) == bits(whole)


def test_norms_that_multiply_by_one_plus_weight_become_zero(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a", model_type="gemma2")
    pair = open_pair(folder, folder)
    assert surgery.build(pair, "model.norm.weight", Source("reinit")).eq(0).all()


def test_what_cannot_be_built_is_said(tmp_path: Path) -> None:
    pair = open_pair(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", vocab=320))
    with pytest.raises(SurgeryError, match=r"embed_tokens.weight cannot come from B. The shapes differ: 288 × 32"):
        surgery.build(pair, "model.embed_tokens.weight", Source("B"))
    with pytest.raises(SurgeryError, match="has no tensor 'nonsense'"):
        surgery.build(pair, "nonsense", Source("A"))
    with pytest.raises(SurgeryError, match="removed layer"):
        surgery.build(pair, "model.norm.weight", Source("remove"))
    codes = tiny_qwen2(tmp_path / "codes", dtype="float8_e4m3fn")
    with pytest.raises(SurgeryError, match="stored as F8_E4M3"):
        surgery.build(open_pair(codes, codes), "lm_head.weight", Source("reinit"))


# Whole checkpoints.

RECIPES = [
    "", "o_proj=B", "q_proj=B", "o_proj@1=B; mlp@0=B:0.5", "norms=B", "emb=B", "head=B", "emb,head=B", "all=B",
    "gate_proj=zero", "v_proj@1=reinit:7", "norms@0=reinit:7", "all@1=remove",
]  # fmt: skip


@pytest.mark.parametrize("text", RECIPES)
@pytest.mark.parametrize("layout", ["untied", "tied", "sharded"])
def test_transformers_loads_exactly_the_planned_tensors(tmp_path: Path, layout: str, text: str) -> None:
    options = {"tied": {"tied": True}, "sharded": {"shards": 3}}.get(layout, {})
    pair = open_pair(tiny_qwen2(tmp_path / "a", **options), tiny_qwen2(tmp_path / "b", seed=1))
    recipe = recipes.parse(text)
    plan = recipes.resolve(recipe, pair)
    target = surgery.write(pair, recipe, tmp_path / "m", max_shard_bytes=20_000 if layout == "sharded" else 10**9)
    state = loaded(target)
    expected = {n: surgery.build(pair, n, s) for n, s in plan.sources.items() if s.kind != "remove"}
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert bits(state[name]) == bits(tensor), name
    parted = text in ("emb=B", "head=B", "emb,head=B", "all=B")
    assert checkpoints.open(target).tied == (layout == "tied" and not parted)
    assert (target / "model.safetensors.index.json").exists() == (layout == "sharded")


def test_removing_a_layer_renumbers_the_rest(tmp_path: Path) -> None:
    pair = open_pair(tiny_qwen2(tmp_path / "a", layers=4), tiny_qwen2(tmp_path / "b", seed=1, layers=4))
    merged = written(pair, "all@0,2=remove; o_proj@3=B", tmp_path / "m")
    assert bits(merged["model.layers.0.mlp.up_proj.weight"]) == bits(pair.a.read("model.layers.1.mlp.up_proj.weight"))
    o_proj = "model.layers.{}.self_attn.o_proj.weight"
    assert bits(merged[o_proj.format(1)]) == bits(pair.b.read(o_proj.format(3)))
    assert not any(name.startswith("model.layers.2.") for name in merged)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert config["layer_types"] == ["full_attention"] * 2
    assert config["max_window_layers"] == 2
    loaded(tmp_path / "m")


def test_a_silenced_layer_equals_a_removed_one(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    pair = open_pair(
        tiny_qwen2(tmp_path / "a", dtype="float32", layers=3), tiny_qwen2(tmp_path / "b", dtype="float32", layers=3)
    )
    recipe = recipes.parse("all@1=remove")
    plan = recipes.resolve(recipe, pair)
    live = surgery.live_sources(pair, plan)
    assert live.keys() == {row.name for row in pair.rows}
    model = AutoModelForCausalLM.from_pretrained(pair.a.folder)
    model.load_state_dict({name: surgery.build(pair, name, source) for name, source in live.items()})
    short = AutoModelForCausalLM.from_pretrained(surgery.write(pair, recipe, tmp_path / "m"))
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model(tokens).logits, short(tokens).logits)


def test_live_sources_leave_other_layers_alone(qwen2: pairs.Pair) -> None:
    plan = recipes.resolve(recipes.parse("o_proj=B; all@1=remove"), qwen2)
    live = surgery.live_sources(qwen2, plan)
    assert live["model.layers.0.self_attn.o_proj.weight"] == Source("B")
    assert live["model.layers.1.self_attn.o_proj.weight"] == Source("zero")
    assert live["model.layers.1.self_attn.q_proj.bias"] == Source("zero")
    assert live["model.layers.1.input_layernorm.weight"] == Source("A")
    assert live["lm_head.weight"] == Source("A")


def test_the_tie_holds_only_where_both_come_from_one_tied_side(tmp_path: Path) -> None:
    a, b = tiny_qwen2(tmp_path / "a", tied=True), tiny_qwen2(tmp_path / "b", seed=1, tied=True)
    pair = open_pair(a, b)
    for number, (text, tied) in enumerate(
        [("", True), ("emb,head=B", True), ("emb,head=B:0.5", True), ("emb=B", False), ("head=B:0.5", False),
         ("emb,head=reinit:1", False)]
    ):  # fmt: skip
        folder = surgery.write(pair, recipes.parse(text), tmp_path / f"m{number}")
        merged = checkpoints.open(folder)
        assert merged.tied is tied, text
        assert merged.config["tie_word_embeddings"] is tied
        assert ("lm_head.weight" in merged.tensors) is not tied
        assert loaded(folder).keys() == {row.name for row in pair.rows}
    untied = open_pair(tiny_qwen2(tmp_path / "c"), b)  # A has a head, B ties: moving both brings the tie
    assert checkpoints.open(surgery.write(untied, recipes.parse("emb,head=B"), tmp_path / "n")).tied
    assert not checkpoints.open(surgery.write(untied, recipes.parse("head=B"), tmp_path / "o")).tied


@pytest.mark.parametrize("build", [tiny_qwen3, tiny_qwen3_moe, tiny_llama])
def test_other_architectures_survive(tmp_path: Path, build: object) -> None:
    pair = open_pair(build(tmp_path / "a"), build(tmp_path / "b", seed=1))
    merged = written(pair, "o_proj=B; mlp@1=B; all@0=remove", tmp_path / "m")
    expected = {name.replace("layers.1.", "layers.0.") for name in pair.by_name if "layers.0." not in name}
    assert merged.keys() == expected
    assert checkpoints.open(tmp_path / "m").config["model_type"] == pair.a.config["model_type"]
    state = loaded(tmp_path / "m")
    name = "model.layers.0.self_attn.o_proj.weight"
    assert bits(state[name]) == bits(pair.b.read(name.replace("0", "1")))


def test_experts_keep_their_names_on_disk(tmp_path: Path) -> None:
    pair = open_pair(tiny_qwen3_moe(tmp_path / "a", shards=2), tiny_qwen3_moe(tmp_path / "b", seed=1))
    merged = written(pair, "down_proj@1=B; router=B", tmp_path / "m")
    assert merged.keys() == pair.a.tensors.keys()
    for name, tensor in merged.items():
        from_b = ("layers.1." in name and "down_proj" in name) or name.endswith("mlp.gate.weight")
        assert bits(tensor) == bits((pair.b if from_b else pair.a).read(name)), name


def test_the_speaking_side_gives_tokenizer_and_token_ids(tmp_path: Path) -> None:
    a, b = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1, eos_token_id=2)
    (b / "chat_template.jinja").write_text("of B")
    (b / "generation_config.json").write_text('{"eos_token_id": 2}')
    (a / "added_tokens.json").write_text("{}")
    pair = open_pair(a, b)
    from_a = surgery.write(pair, recipes.parse("o_proj=B"), tmp_path / "m")
    from_b = surgery.write(pair, recipes.parse("head=B"), tmp_path / "n")
    for folder, side, eos in ((from_a, a, 1), (from_b, b, 2)):
        for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            assert (folder / name).read_bytes() == (side / name).read_bytes()
        assert json.loads((folder / "config.json").read_text())["eos_token_id"] == eos
    assert (from_a / "added_tokens.json").exists()
    assert not (from_b / "added_tokens.json").exists()


def test_the_checkpoint_says_from_what_it_was_made(qwen2: pairs.Pair, tmp_path: Path) -> None:
    recipe = recipes.parse(" O_proj @ all = b ".replace("O", "o"))
    assert qwen2.key  # known from here on
    folder = surgery.write(qwen2, recipe, tmp_path / "m")
    said = json.loads((folder / "sfn_recipe.json").read_text())
    assert said["recipe"] == recipes.format(recipe)
    assert said["plan_key"] == recipes.resolve(recipe, qwen2).key
    assert said["pair_key"] == qwen2.key
    assert said["a"] == {"label": "a", "revision": None, "fingerprint": qwen2.a.fingerprint}
    assert said["b"]["fingerprint"] == qwen2.b.fingerprint
    assert sfn.__version__ in said["made_with"]
    assert said["created_at"].endswith("+00:00")
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["sfn_recipe"] == recipes.format(recipe)
    assert str(tmp_path) not in (folder / "sfn_recipe.json").read_text() + str(metadata)


def test_weights_are_not_read_only_to_name_them(tmp_path: Path) -> None:
    a, b = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1)
    unread = json.loads(
        (surgery.write(open_pair(a, b), recipes.Recipe(), tmp_path / "m") / "sfn_recipe.json").read_text()
    )
    assert unread["pair_key"] is unread["a"]["fingerprint"] is unread["b"]["fingerprint"] is None
    memo: dict[tuple[str, int, int], str] = {}
    known = [checkpoints.open(folder).fingerprint_with(memo) for folder in (a, b)]
    folder = surgery.write(open_pair(a, b), recipes.Recipe(), tmp_path / "n", memo=memo)
    read = json.loads((folder / "sfn_recipe.json").read_text())
    assert [read["a"]["fingerprint"], read["b"]["fingerprint"]] == known
    assert read["pair_key"] == open_pair(a, b).key


def test_writing_twice_gives_the_same_weights(qwen2: pairs.Pair, tmp_path: Path) -> None:
    recipe = recipes.parse("mlp=reinit:5; o_proj=B:0.3")
    first, second = (surgery.write(qwen2, recipe, tmp_path / name) for name in "mn")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_a_merged_checkpoint_can_be_a_side_of_a_pair(qwen2: pairs.Pair, tmp_path: Path) -> None:
    merged = checkpoints.open(surgery.write(qwen2, recipes.parse("o_proj=B"), tmp_path / "m"))
    pair = pairs.compare(qwen2.a, merged)
    assert pair.findings == ()
    differing = {row.part.row for row in pair.rows if bits(pair.read("A", row.name)) != bits(pair.read("B", row.name))}
    assert differing == {"o_proj"}


_NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norms", "attn", "mlp"]
_RULES = st.tuples(st.sampled_from(_NAMES), st.sampled_from(["0", "1", "0-1"]), st.sampled_from("AB"))


@given(rules=st.lists(_RULES, max_size=6), ends=st.sets(st.sampled_from(["emb=B", "head=B", "norm=B"])))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_merged_tensor_is_of_a_or_of_b(
    qwen2: pairs.Pair, tmp_path_factory: pytest.TempPathFactory, rules: list[tuple[str, str, str]], ends: set[str]
) -> None:
    recipe = recipes.parse("; ".join([*(f"{what}@{where}={source}" for what, where, source in rules), *ends]))
    plan = recipes.resolve(recipe, qwen2)
    merged = written(qwen2, recipes.format(recipe), tmp_path_factory.mktemp("merged") / "m", max_shard_bytes=30_000)
    assert merged.keys() == qwen2.a.tensors.keys()
    for name, tensor in merged.items():
        sides = {side: bits(qwen2.read(side, name)) for side in ("A", "B")}
        assert sides["A"] != sides["B"]
        assert bits(tensor) == sides[plan.sources[name].kind]


def test_mixed_dtypes_stay_aligned_and_as_they_were(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": torch.randn(6, 4).to(torch.bfloat16),
        "model.layers.0.self_attn.o_proj.weight": torch.randn(4, 4).to(torch.float8_e4m3fn),
        "model.layers.0.self_attn.o_proj.input_scale": torch.tensor(0.5),
        "model.layers.0.mlp.up_proj.weight": torch.randint(-5, 5, (3, 3), dtype=torch.int8),
        "model.layers.0.mlp.up_proj.g_idx": torch.arange(3, dtype=torch.int64),
        "model.norm.weight": torch.ones(4, dtype=torch.float64),
        "lm_head.weight": torch.randn(6, 4).to(torch.float16),
    }
    config = {"model_type": "llama", "hidden_size": 4, "tie_word_embeddings": False}
    folder = write_checkpoint(tmp_path / "a", tensors, config)
    merged = written(open_pair(folder, folder), "o_proj=B; up_proj@0=zero", tmp_path / "m")
    assert merged.keys() == tensors.keys()
    o_proj = "model.layers.0.self_attn.o_proj.weight"
    assert bits(merged[o_proj]) == bits(tensors[o_proj])
    assert not merged["model.layers.0.mlp.up_proj.weight"].any()
    assert merged["model.layers.0.self_attn.o_proj.input_scale"].shape == ()
    for info in checkpoints.open(tmp_path / "m").tensors.values():
        assert info.start % (checkpoints.DTYPE_BITS[info.dtype] // 8) == 0


def test_a_recipe_that_does_not_fit_writes_nothing(qwen2: pairs.Pair, tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        surgery.write(qwen2, recipes.parse("nonsense=B"), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_without_config_is_refused(tmp_path: Path) -> None:
    a, b = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1)
    (a / "config.json").unlink()
    with pytest.raises(SurgeryError, match=r"has no config.json"):
        surgery.write(open_pair(a, b), recipes.parse("o_proj=B"), tmp_path / "m")


def test_layers_at_every_nth_place_cannot_be_removed(tmp_path: Path) -> None:
    a, b = (tiny_qwen3_moe(tmp_path / name, decoder_sparse_step=2) for name in "ab")
    with pytest.raises(SurgeryError, match="decoder_sparse_step = 2"):
        surgery.write(open_pair(a, b), recipes.parse("all@0=remove"), tmp_path / "m")
