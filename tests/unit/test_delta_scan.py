"""Scanning a whole pair: what is measured, in which order, with which progress, and how it stops."""

import os
import threading

import pytest
import torch

from sfn import checkpoints, delta, delta_kernel, pairs
from sfn.errors import Cancelled, CheckpointError, PairError
from tests.builders import random_tensors, tiny_qwen2, write_checkpoint


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    a = tiny_qwen2(folder / "a", 0, with_tokenizer=False)
    b = tiny_qwen2(folder / "b", 1, with_tokenizer=False)
    with checkpoints.open(a) as a, checkpoints.open(b) as b:
        yield pairs.compare(a, b)


def test_every_comparable_tensor_in_anatomical_order(pair):
    found = list(delta.scan(pair))
    assert [d.name for d in found] == [row.name for row in pair.rows]
    assert found[0].block == "embedding"
    assert found[-1].block == "head"
    for d in found:
        a, b = (pair.read(side, d.name).double() for side in "AB")
        assert d.l2_shift == pytest.approx(float(torch.linalg.vector_norm(b - a)), rel=1e-9)
        assert d.shape == tuple(a.shape)
        assert (d.dtype_a, d.dtype_b) == ("BF16", "BF16")


def test_each_tensor_comes_as_it_is_finished(pair):
    done = []
    scan = delta.scan(pair, progress=lambda now, total, name: done.append(name))
    assert not done
    assert next(scan).name == pair.rows[0].name
    assert set(done) == {pair.rows[0].name}


def test_names_are_measured_in_anatomical_order(pair):
    wanted = ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"]
    assert [d.name for d in delta.scan(pair, wanted)] == list(reversed(wanted))
    assert list(delta.scan(pair, ())) == []


def test_a_wrong_name_is_refused_at_once(pair):
    with pytest.raises(PairError, match=r"no tensor 'model\.layers\.9\.x'"):
        delta.scan(pair, ["model.layers.9.x"])


def test_short_stretches_and_small_blocks_change_nothing(pair, monkeypatch):
    whole = list(delta.scan(pair))
    monkeypatch.setattr(delta, "_STRETCH", delta_kernel.RUN)
    assert list(delta.scan(pair)) == whole
    monkeypatch.setattr(delta, "BLOCK", 100)
    monkeypatch.setattr(type(pair.b), "stored", lambda checkpoint, info: False)
    assert list(delta.scan(pair)) == whole


def test_progress_rises_to_all_bytes_of_both_sides(pair, monkeypatch):
    monkeypatch.setattr(delta, "_STRETCH", 300)
    seen = []
    list(delta.scan(pair, progress=lambda done, total, name: seen.append((done, total))))
    done = [now for now, _ in seen]
    assert done == sorted(done)
    assert {total for _, total in seen} == {pair.a.size_bytes + pair.b.size_bytes}
    assert done[-1] == seen[-1][1]
    assert len(done) > 2 * len(pair.rows)


def test_cancel_stops_at_once_and_keeps_what_was_yielded(pair, monkeypatch):
    monkeypatch.setattr(delta, "_STRETCH", 64)
    cancel, after = threading.Event(), []

    def progress(done, total, name):
        if cancel.is_set():
            after.append(name)
        if name == pair.rows[1].name:
            cancel.set()

    scan, finished = delta.scan(pair, progress=progress, cancel=cancel), []
    with pytest.raises(Cancelled):
        finished.extend(found.name for found in scan)
    assert len(after) <= 1
    assert finished[0] == pair.rows[0].name
    assert len(finished) < 4
    assert list(scan) == []


def test_a_file_that_is_cut_meanwhile_stops_the_scan_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(delta, "_STRETCH", 64)
    a, b = (tiny_qwen2(tmp_path / side, seed, with_tokenizer=False) for seed, side in enumerate("ab"))
    scan = delta.scan(pairs.compare(checkpoints.open(a), checkpoints.open(b)))
    next(scan)
    os.truncate(b / "model.safetensors", 4000)
    with pytest.raises(CheckpointError, match="was cut while it was being read"):
        list(scan)


def test_progress_may_stop_the_scan(pair):
    def progress(done, total, name):
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        list(delta.scan(pair, progress=progress))


def test_tied_head_and_mixed_dtypes(tmp_path):
    a = tiny_qwen2(tmp_path / "a", 0, tied=True, with_tokenizer=False)
    b = tiny_qwen2(tmp_path / "b", 1, dtype="float32", shards=2, with_tokenizer=False)
    with checkpoints.open(a) as a, checkpoints.open(b) as b:
        pair = pairs.compare(a, b)
        head = next(delta.scan(pair, ["lm_head.weight"]))
        embedding = pair.read("A", "model.embed_tokens.weight").double()
        shift = pair.read("B", "lm_head.weight").double() - embedding
        assert head.l2_shift == pytest.approx(float(torch.linalg.vector_norm(shift)), rel=1e-9)
        assert (head.dtype_a, head.dtype_b) == ("BF16", "F32")


def tensors_pair(tmp_path, a, b):
    for side, tensors in (("a", a), ("b", b)):
        write_checkpoint(tmp_path / side, tensors, {"model_type": "llama"}, with_tokenizer=False)
    return pairs.compare(checkpoints.open(tmp_path / "a"), checkpoints.open(tmp_path / "b"))


def test_what_cannot_be_compared_is_skipped_or_refused_by_name(tmp_path):
    shapes = {"model.norm.weight": (8,), "model.layers.0.mlp.up_proj.weight": (8, 4)}
    a, b = random_tensors(shapes, 0, "float32"), random_tensors(shapes | {"model.norm.weight": (9,)}, 1, "float32")
    b["model.only_here.weight"] = torch.ones(3)
    pair = tensors_pair(tmp_path, a, b)
    assert [d.name for d in delta.scan(pair)] == [row.name for row in pair.rows if row.comparable]
    assert "model.layers.0.mlp.up_proj.weight" in [d.name for d in delta.scan(pair)]
    with pytest.raises(PairError, match="only_here"):
        delta.scan(pair, ["model.only_here.weight"])


def test_rows_that_both_vocabularies_have(tmp_path):
    a, b = (random_tensors({"model.embed_tokens.weight": (rows, 4)}, 0, "bfloat16") for rows in (300, 260))
    pair = tensors_pair(tmp_path, a, b)
    seen = []
    (got,) = delta.scan(
        pair, ["model.embed_tokens.weight"], progress=lambda done, total, name: seen.append((done, total))
    )
    common = b["model.embed_tokens.weight"].double() - a["model.embed_tokens.weight"][:260].double()
    assert got.shape == (260, 4)
    assert got.l2_shift == pytest.approx(float(torch.linalg.vector_norm(common)), rel=1e-9)
    assert seen[-1] == (2 * 260 * 4 * 2,) * 2


def test_scalars_and_empty_tensors(tmp_path):
    a = {"model.layers.0.mlp.scale": torch.tensor(2.0), "model.layers.0.mlp.none": torch.empty(0, 4)}
    b = {"model.layers.0.mlp.scale": torch.tensor(3.0), "model.layers.0.mlp.none": torch.empty(0, 4)}
    found = {d.name: d for d in delta.scan(tensors_pair(tmp_path, a, b))}
    assert (found["model.layers.0.mlp.scale"].shape, found["model.layers.0.mlp.scale"].l2_shift) == ((), 1)
    assert (found["model.layers.0.mlp.none"].shape, found["model.layers.0.mlp.none"].n) == ((0, 4), 0)
