"""Swaps in the transformers engine: equal to a cold load, exactly reversible, verified, cancelled, and A untouched."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sfn
from sfn import checkpoints, engines, pairs, recipes, surgery
from sfn.engines import layout
from sfn.errors import Cancelled, CheckpointError, EngineError
from tests import builders

PROMPT = "What is 5 + 17?"
MAKERS = {
    "untied": builders.tiny_qwen2,
    "tied": lambda folder, seed: builders.tiny_qwen2(folder, seed, tied=True),
    "A tied": lambda folder, seed: builders.tiny_qwen2(folder, seed, tied=seed == 1),
    "Qwen3": builders.tiny_qwen3,
    "MoE": builders.tiny_qwen3_moe,
}


def compare(a: Path | str, b: Path | str) -> pairs.Pair:
    return pairs.compare(checkpoints.open(a), checkpoints.open(b))


@pytest.fixture(scope="module", params=["bundled", *MAKERS])
def pair(request, tmp_path_factory: pytest.TempPathFactory) -> pairs.Pair:
    if request.param == "bundled":
        return compare(*sfn.demo.folders())
    folder = tmp_path_factory.mktemp("pair")
    return compare(*(MAKERS[request.param](folder / name, seed) for seed, name in ((1, "a"), (2, "b"))))


@pytest.fixture
def plain(tmp_path) -> pairs.Pair:
    return compare(builders.tiny_qwen2(tmp_path / "a", 1), builders.tiny_qwen2(tmp_path / "b", 2))


def some_recipe(draw: random.Random, pair: pairs.Pair) -> recipes.Recipe:
    """A recipe of one to four rules: any module, any layers, any source."""
    kinds = ("B", "A", "B:0.5", "B:-0.75", "B:1.5", "B:1", "B:0", "zero", f"reinit:{draw.randrange(100)}")
    rules = []
    for _ in range(draw.randint(1, 4)):
        row = draw.choice(pair.rows)
        if row.part.layer is None:
            rules.append(f"{row.part.module}={draw.choice(kinds)}")
            continue
        layers = sorted(draw.sample(range(pair.n_layers), draw.randint(1, pair.n_layers)))
        word = draw.choice((row.part.role, "attn", "norms", "all"))
        rules.append(f"{word}@{','.join(map(str, layers))}={draw.choice(kinds)}")
    return recipes.parse("; ".join(rules))


def fifty(pair: pairs.Pair, seed: int = 7) -> list[recipes.Recipe]:
    draw = random.Random(seed)
    return [some_recipe(draw, pair) for _ in range(50)]


def bits(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differing(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> set[str]:
    """Names whose bits differ; NaN is equal to itself, 0 and -0 are not."""
    assert some.keys() == others.keys()
    return {
        name
        for name in some
        if not torch.equal(some[name].flatten().view(torch.uint8), others[name].flatten().view(torch.uint8))
    }


def cold(folder: Path, dtype: torch.dtype = torch.float32):
    """transformers' own model of a checkpoint; a tied head as a tensor of its own, as the engine keeps it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model.eval()


@torch.inference_mode()
def logits(model, folder: Path) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
    return model(input_ids=ids).logits


def test_fifty_recipes_and_back_is_a_freshly_loaded_a(pair):
    fresh = bits(cold(pair.a.folder))
    with engines.open("transformers", pair, device="cpu", dtype="float32") as engine:
        moved = 0
        for recipe in fifty(pair):
            engine.be(recipe)
            moved += bool(differing(bits(engine._model), fresh))
        assert moved > 30
        engine.be(recipes.Recipe())
        assert differing(bits(engine._model), fresh) == set()


def test_hot_is_cold(pair, tmp_path):
    """Weights and logits after swaps are those of a model that transformers loads from the written checkpoint."""
    with engines.open("transformers", pair, device="cpu", dtype="float32") as engine:
        for n, recipe in enumerate([recipes.Recipe(), recipes.parse("all=B"), *fifty(pair, seed=11)[:6]]):
            engine.be(recipe)
            model = cold(surgery.write(pair, recipe, tmp_path / str(n)))
            assert differing(bits(engine._model), bits(model)) == set(), recipes.format(recipe)
            hot = logits(engine._model, pair.a.folder)
            expected = logits(model, pair.a.folder)
            assert torch.equal(hot.view(torch.int32), expected.view(torch.int32)), recipes.format(recipe)


def mapped_files() -> list[tuple[int, int, str]]:
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, name = line.split(maxsplit=5)
        if name.endswith(".safetensors"):
            found.append((*(int(end, 16) for end in place.split("-")), name))
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_is_untouched_on_disk_and_where_it_is_mapped(pair, dtype):
    def on_disk() -> list[str]:
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in (*pair.a.shards, *pair.b.shards)]

    def in_memory() -> list[str]:
        return [hashlib.sha256(tensor.view(torch.uint8).numpy()).hexdigest() for tensor in mapped]

    mapped = [side.read(name).reshape(-1) for side in (pair.a, pair.b) for name in side.tensors]
    before = on_disk(), in_memory()
    with engines.open("transformers", pair, device="cpu", dtype=dtype) as engine:
        for recipe in fifty(pair)[:12]:
            engine.be(recipe)
        places = mapped_files()
        assert len(places) > 0, "the test's own mappings are not seen"
        for name, parameter in engine._model.named_parameters():
            start, end = parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes
            assert not [file for low, high, file in places if start < high and end > low], f"{name} is a mapped file"
    assert (on_disk(), in_memory()) == before


def test_a_cut_file_is_an_error_and_a_comes_back(plain):
    with engines.open("transformers", plain, device="cpu") as engine:
        engine.be(recipes.Recipe())
        a = bits(engine._model)
        (shard,) = plain.b.shards
        whole = shard.read_bytes()
        shard.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match="changed since the checkpoint was opened"):
            engine.be(recipes.parse("all=B"))
        assert (engine.status.state, engine.status.recipe) == ("idle", None)
        engine.be(recipes.Recipe())
        assert differing(bits(engine._model), a) == set()
        assert engine.status.recipe == ""


def test_a_file_that_is_cut_in_mid_read_is_an_error_too(plain, monkeypatch):
    """With mapped reads this ends the process (SIGBUS)."""
    (shard,) = plain.b.shards
    preadv = os.preadv

    def cut_first(descriptor, buffers, offset):
        if os.path.sameopenfile(descriptor, opened):
            os.truncate(shard, 20_000)
        return preadv(descriptor, buffers, offset)

    with engines.open("transformers", plain, device="cpu") as engine:
        engine.be(recipes.Recipe())
        a = bits(engine._model)
        with shard.open() as file, monkeypatch.context() as patch:
            opened = file.fileno()
            patch.setattr(os, "preadv", cut_first)
            with pytest.raises(CheckpointError, match="was cut while it was being read"):
                engine.be(recipes.parse("head=B"))
        assert engine.status.state == "idle"
        engine.be(recipes.Recipe())
        assert differing(bits(engine._model), a) == set()


def test_what_was_written_by_somebody_else_is_noticed_and_mended(plain):
    with engines.open("transformers", plain, device="cpu") as engine:
        engine.be(recipes.parse("o_proj@all=B"))
        good = bits(engine._model)
        engine.be(recipes.Recipe())
        with torch.no_grad():
            engine._model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
        with pytest.raises(EngineError, match=r"layers\.1\.mlp\.up_proj\.weight does not hold what was put there"):
            engine.be(recipes.parse("o_proj@all=B"))
        assert (engine.status.state, engine.status.recipe) == ("dead", None)
        engine.be(recipes.parse("o_proj@all=B"))
        assert differing(bits(engine._model), good) == set()


def test_two_parameters_in_one_place_are_noticed(plain):
    """The trap of tied models: what is written to the head lands in the embedding."""
    with engines.open("transformers", plain, device="cpu") as engine:
        engine.be(recipes.Recipe())
        engine._model.lm_head.weight = engine._model.model.embed_tokens.weight
        with pytest.raises(EngineError, match="does not hold what was put there"):
            engine.be(recipes.parse("head=B"))


def test_a_side_that_reads_differently_the_second_time_is_noticed(plain, monkeypatch):
    with engines.open("transformers", plain, device="cpu") as engine:
        engine.be(recipes.parse("v_proj@0=B"))
        engine.be(recipes.Recipe())
        build = surgery.build
        worn = {"B": 1.1}
        monkeypatch.setattr(surgery, "build", lambda p, name, source: build(p, name, source) * worn.get(source.kind, 1))
        with pytest.raises(EngineError, match="is not what it was the first time"):
            engine.be(recipes.parse("v_proj@0=B"))


def test_large_models_are_read_back_in_turn(plain, monkeypatch):
    from sfn.engines import transformers_engine

    monkeypatch.setattr(transformers_engine, "_CHECKED_BYTES", 0)
    with engines.open("transformers", plain, device="cpu") as engine:
        engine.be(recipes.Recipe())
        read = []
        checksum = layout.checksum
        monkeypatch.setattr(layout, "checksum", lambda model, target: read.append(target) or checksum(model, target))
        for n in range(60):
            engine.be(recipes.parse("down_proj@0=B" if n % 2 == 0 else ""))
            assert read.count("model.layers.0.mlp.down_proj.weight") > n
        assert set(read) == {name for name, _ in engine._model.named_parameters()}
        assert len(read) < 60 * len(set(read)) / 2


def test_cancel_stops_between_tensors_and_leaves_what_is_known(plain, monkeypatch):
    cancel, built, told = threading.Event(), [], []
    build = surgery.build

    def slow(pair, name, source):
        built.append(name)
        told.append(engine.status)
        if len(built) == 4:
            cancel.set()
        return build(pair, name, source)

    with engines.open("transformers", plain, device="cpu") as engine:
        engine.be(recipes.Recipe())
        a = bits(engine._model)
        monkeypatch.setattr(surgery, "build", slow)
        with pytest.raises(Cancelled, match=r"with 4 of 27 parameters in place"):
            engine.be(recipes.parse("all=B"), cancel=cancel)
        assert len(built) == 4
        assert [status.state for status in told] == ["loading"] * 4
        assert told[-1].detail == "3 of 27 parameters in place"
        assert (engine.status.state, engine.status.recipe, engine.status.plan_key) == ("idle", None, None)
        assert len(differing(bits(engine._model), a)) == 4
        engine.be(recipes.Recipe())  # takes back these four, and only these
        assert sorted(built[4:]) == sorted(built[:4])
        assert differing(bits(engine._model), a) == set()


def test_a_cancelled_first_load_goes_on_where_it_was(plain, monkeypatch):
    cancel, built = threading.Event(), []
    build = surgery.build

    def slow(pair, name, source):
        built.append(name)
        if len(built) == 4:
            cancel.set()
        return build(pair, name, source)

    monkeypatch.setattr(surgery, "build", slow)
    with engines.open("transformers", plain, device="cpu", dtype="float32") as engine:
        with pytest.raises(Cancelled):
            engine.be(recipes.Recipe(), cancel=cancel)
        assert (engine.status.state, engine.status.recipe) == ("idle", None)
        engine.be(recipes.Recipe())
        assert sorted(built) == sorted(plain.a.tensors)
        assert differing(bits(engine._model), bits(cold(plain.a.folder))) == set()
