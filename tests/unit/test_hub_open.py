"""A model on the Hub opens by name, from headers alone, and is the same model as the folder with its files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, snapshot_download

from sfn import checkpoints, delta, pairs, recipes, surgery
from sfn.errors import CheckpointError, HubError
from sfn.hub import Address, address
from tests.builders import tiny_llama, tiny_qwen2, tiny_qwen3_moe, write_checkpoint, write_tokenizer
from tests.hub_server import Hub


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("org/name", Address("org/name")),
        ("org/name@v1.0", Address("org/name", "v1.0")),
        ("Qwen/Qwen2.5-Math-1.5B", Address("Qwen/Qwen2.5-Math-1.5B")),
        ("https://huggingface.co/org/name", Address("org/name")),
        ("https://huggingface.co/org/name/tree/main", Address("org/name", "main")),
        ("https://huggingface.co/org/name/blob/abc123/config.json", Address("org/name", "abc123")),
        ("https://hf.co/org/name/tree/refs%2Fpr%2F1", Address("org/name", "refs/pr/1")),
        ("https://huggingface.co/org/name/commit/abc123?x=1", Address("org/name", "abc123")),
        ("hf://org/name@dev", Address("org/name", "dev")),
        ("hf://models/org/name", Address("org/name")),
        ("/models/name", None), ("./models/name", None), ("a/b/c", None), ("name", None), ("~/name", None), ("", None),
    ],
)  # fmt: skip
def test_addresses(text: str, meant: Address | None) -> None:
    assert address(text) == meant


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://huggingface.co/datasets/org/name", "org/name is a dataset, not a model"),
        ("https://huggingface.co/spaces/org/name", "is a Space, not a model"),
        ("https://example.org/org/name", "example.org is not the Hugging Face Hub"),
        ("https://someone:secret@example.org/org/name", "example.org is not the Hugging Face Hub"),
        ("https://huggingface.co/org", "names no model"),
    ],
)
def test_addresses_of_something_else(text: str, words: str) -> None:
    with pytest.raises(HubError, match=words) as raised:
        address(text)
    assert "secret" not in str(raised.value)


def same(one: checkpoints.Checkpoint, other: checkpoints.Checkpoint) -> None:
    """Both have the same tensors, bit by bit, the same config and the same identity."""
    assert {n: (i.dtype, i.shape) for n, i in one.tensors.items()} == {
        n: (i.dtype, i.shape) for n, i in other.tensors.items()
    }
    for name in one.tensors:
        assert torch.equal(one.read(name), other.read(name))
    assert one.config == other.config
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("shards", [1, 3])
def test_it_is_the_folder_s_model(hub: Hub, tmp_path: Path, shards: int) -> None:
    folder = tiny_qwen2(tmp_path / "m", shards=shards)
    commit = hub.add("org/m", folder)
    opened = checkpoints.open("org/m")
    assert (opened.label, opened.revision) == ("org/m", commit)
    assert opened.folder.name == commit
    same(opened, checkpoints.open(folder))
    assert not list((tmp_path / "hf").rglob("*.safetensors"))  # weights are not kept
    name = "model.embed_tokens.weight"
    assert torch.equal(opened.read_rows(name, 5, 9), checkpoints.open(folder).read(name)[5:9])
    tensor = opened.read(name)
    tensor.zero_()
    assert opened.read(name).any()


def test_large_small_files_count_by_their_content(hub: Hub, tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "m")
    hub.add("org/m", folder, lfs=["tokenizer.json"])
    assert checkpoints.open("org/m").fingerprint == checkpoints.open(folder).fingerprint
    assert not any("tokenizer.json" in request.path for request in hub.requests)


def test_revisions(hub: Hub, tmp_path: Path) -> None:
    first = hub.add("org/m", tiny_qwen2(tmp_path / "1"))
    second = hub.add("org/m", tiny_qwen2(tmp_path / "2", seed=1), branch="dev")
    hub.repos["org/m"].tags["v1"] = first
    for text, commit in (
        ("org/m", first), ("org/m@dev", second), ("org/m@v1", first), (f"org/m@{second}", second),
        (f"org/m@{second[:8]}", second), (f"https://huggingface.co/org/m/tree/{second}", second),
    ):  # fmt: skip
        assert checkpoints.open(text).revision == commit
    assert checkpoints.open("org/m", "dev").revision == second
    with pytest.raises(HubError, match=r"org/m has no revision 'nope'; it has main, dev, v1") as raised:
        checkpoints.open("org/m@nope")
    assert raised.value.kind == "revision"


def test_a_second_look_costs_one_request_and_a_commit_none(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add("org/m", tiny_qwen2(tmp_path / "m", shards=3))
    checkpoints.open("org/m")
    hub.clear()
    checkpoints.open("org/m")
    assert [request.path for request in hub.requests] == ["/api/models/org/m"]
    hub.clear()
    checkpoints.open(f"org/m@{commit}")
    assert not hub.requests


def test_a_moved_branch_is_said(hub: Hub, tmp_path: Path) -> None:
    first = hub.add("org/m", tiny_qwen2(tmp_path / "1"))
    assert not checkpoints.open("org/m").notes
    second = hub.add("org/m", tiny_qwen2(tmp_path / "2", seed=1))
    for _ in range(2):  # and stays said
        opened = checkpoints.open("org/m")
        assert opened.revision == second
        pair = pairs.compare(opened, opened)
        said = next(finding.sentence for finding in pair.findings if finding.topic == "commit")
        assert first[:12] in said
        assert second[:12] in said
    assert checkpoints.open(f"org/m@{first[:12]}").revision == first


def test_a_renamed_model_is_followed_and_said(hub: Hub, tmp_path: Path) -> None:
    hub.add("old/m", tiny_qwen2(tmp_path / "m"))
    hub.rename("old/m", "new/m")
    opened = checkpoints.open("old/m")
    assert opened.label == "new/m"
    assert opened.notes == (("name", "old/m is now called new/m; it was opened under that name."),)
    assert opened.read("model.norm.weight").shape == (32,)


def test_what_the_hub_s_cache_holds_is_read_from_there(hub: Hub, tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "m", shards=2)
    commit = hub.add("org/m", folder)
    opened = checkpoints.open("org/m")
    assert opened.missing_bytes > sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    seen: list[tuple[int, int, str]] = []
    opened.fetch(lambda *step: seen.append(step))
    assert opened.missing_bytes == 0
    assert seen[-1][0] == seen[-1][1] > 0
    hub.clear()
    again = checkpoints.open(f"org/m@{commit}")
    same(again, checkpoints.open(folder))
    assert all(again.stored(info) for info in again.tensors.values())
    assert not hub.requests
    assert checkpoints.open(again.folder).fingerprint == again.fingerprint  # the snapshot as a folder


def test_a_model_that_others_fetched_opens_without_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_qwen2(tmp_path / "m")
    commit = hub.add("org/m", folder)
    snapshot_download("org/m", endpoint=hub.endpoint)
    hub.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    opened = checkpoints.open("org/m")
    assert opened.revision == commit
    assert opened.notes[0][0] == "offline"
    assert "HF_HUB_OFFLINE" in opened.notes[0][1]
    same(opened, checkpoints.open(folder))
    assert not hub.requests
    with pytest.raises(HubError, match=r"org/other is not on this machine, and HF_HUB_OFFLINE"):
        checkpoints.open("org/other")


def test_a_model_that_was_seen_opens_without_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add("org/m", tiny_qwen2(tmp_path / "m", shards=2))
    before = checkpoints.open("org/m").fingerprint
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    opened = checkpoints.open("org/m")
    assert (opened.revision, opened.fingerprint) == (commit, before)
    assert "the Hub cannot be reached" in opened.notes[0][1]
    with pytest.raises(HubError, match="Check the network") as raised:
        opened.read("model.norm.weight")
    assert raised.value.kind == "network"
    with pytest.raises(HubError, match="cannot be reached from here"):
        checkpoints.open("org/other")


def test_pairs_of_hub_and_folder_share_results(hub: Hub, tmp_path: Path) -> None:
    a, b = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", seed=1, shards=2)
    hub.add("org/a", a)
    hub.add("org/b", b)
    far, near = pairs.compare(*pairs.open_both("org/a", "org/b")), pairs.compare(*pairs.open_both(a, b))
    assert far.key == near.key
    assert far.report().replace("org/", "") == near.report()
    assert list(delta.scan(far)) == list(delta.scan(near))


def test_a_scan_fetches_the_chosen_tensors_and_no_byte_more(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/a", tiny_qwen2(tmp_path / "a", shards=3))
    hub.add("org/b", tiny_qwen2(tmp_path / "b", seed=1, vocab=300))
    pair = pairs.compare(*pairs.open_both("org/a", "org/b"))
    names = [row.name for row in pair.rows if "o_proj" in row.name or row.part.block == "embedding"]
    hub.clear()
    with pair.read_ahead(names):
        found = list(delta.scan(pair, names))
    assert [one.name for one in found] == names
    common = sum(288 * 32 * 2 if "embed" in name else 32 * 32 * 2 for name in names)
    assert hub.bytes_sent == 2 * common
    near = pairs.compare(checkpoints.open(tmp_path / "a"), checkpoints.open(tmp_path / "b"))
    assert found == list(delta.scan(near, names))
    assert not list((tmp_path / "sfn").rglob("spool/*"))


def test_tokenizers_are_compared_without_fetching_what_is_equal(hub: Hub, tmp_path: Path) -> None:
    a, b, c = (tiny_qwen2(tmp_path / name, seed) for seed, name in enumerate("abc"))
    write_tokenizer(b, words=["hello"])
    for name, folder in (("a", a), ("b", b), ("c", c)):
        hub.add(f"org/{name}", folder)
    pairs.compare(*pairs.open_both("org/a", "org/c"))
    assert not any(request.path.endswith("tokenizer.json") for request in hub.requests)
    pair = pairs.compare(*pairs.open_both("org/a", "org/b"))
    assert any("tokens are not the same" in finding.sentence for finding in pair.findings)


def test_large_tokenizers_are_not_fetched_for_comparing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfn import tokenizer_differences

    monkeypatch.setattr(tokenizer_differences, "_FETCHED_BYTES", 1000)
    b = tiny_qwen2(tmp_path / "b")
    write_tokenizer(b, words=["hello"])
    hub.add("org/a", tiny_qwen2(tmp_path / "a"))
    hub.add("org/b", b)
    sides = pairs.open_both("org/a", "org/b")
    said = [finding.sentence for finding in pairs.compare(*sides).findings if finding.topic == "tokenizer"]
    assert "Which tokens differ is told once they are on this machine" in said[0]
    assert not any(request.path.endswith("tokenizer.json") for request in hub.requests)
    for side in sides:
        side.speech_folder()
    said = [finding.sentence for finding in pairs.compare(*sides).findings if finding.topic == "tokenizer"]
    assert "tokens are not the same" in said[0]


def test_merging_reads_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    a, b = tiny_qwen2(tmp_path / "a", shards=2), tiny_qwen2(tmp_path / "b", seed=1)
    hub.add("org/a", a)
    hub.add("org/b", b)
    far, near = pairs.compare(*pairs.open_both("org/a", "org/b")), pairs.compare(*pairs.open_both(a, b))
    recipe = recipes.parse("o_proj=B; mlp@0=B:0.5; emb,head=B")
    one, two = (
        checkpoints.open(surgery.write(pair, recipe, tmp_path / name)) for pair, name in ((far, "x"), (near, "y"))
    )
    same_tensors = [torch.equal(one.read(name), two.read(name)) for name in two.tensors]
    assert all(same_tensors)
    assert {path.name for path in one.folder.iterdir()} == {path.name for path in two.folder.iterdir()}


def test_adapters_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    from tests.unit.test_adapters import adapter, factors

    folder = adapter(tmp_path / "b", factors())
    hub.add("org/base", tiny_qwen2(tmp_path / "a"))
    hub.add("org/lora", folder)
    far = pairs.compare(*pairs.open_both("org/base", "org/lora"))
    near = pairs.compare(*pairs.open_both(tmp_path / "a", folder))
    assert far.key == near.key
    with far.read_ahead([row.name for row in far.rows]):
        assert list(delta.scan(far)) == list(delta.scan(near))
    assert checkpoints.open("org/lora").fingerprint == far.b.fingerprint  # its base found by name


def test_towers_and_experts(hub: Hub, tmp_path: Path) -> None:
    plain = checkpoints.open(tiny_llama(tmp_path / "text"))
    tensors = {f"language_model.{name}": plain.read(name, copy=True) for name in plain.tensors}
    tensors["vision_tower.encoder.layers.5.self_attn.q_proj.weight"] = torch.ones(4, 4)
    config = {"model_type": "llava", "text_config": dict(plain.config), "tie_word_embeddings": False}
    hub.add("org/vl", write_checkpoint(tmp_path / "vl", tensors, config))
    hub.add("org/moe", tiny_qwen3_moe(tmp_path / "moe", shards=2))
    pair = pairs.compare(*pairs.open_both("org/vl", "org/vl"))
    assert pair.n_layers == 2
    assert all(row.comparable for row in pair.rows)
    same(checkpoints.open("org/moe"), checkpoints.open(tmp_path / "moe"))


def test_fused_experts(hub: Hub, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        drawn = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
        tensors = {"model.layers.0.mlp.experts.gate_up_proj": drawn, "model.layers.0.mlp.gate.weight": drawn[0].clone()}
        hub.add(f"org/{name}", write_checkpoint(tmp_path / name, tensors, {}, with_tokenizer=False))
    far = pairs.compare(*pairs.open_both("org/a", "org/b"))
    with far.read_ahead([row.name for row in far.rows]):
        found = list(delta.scan(far))
    assert found == list(delta.scan(pairs.compare(*pairs.open_both(tmp_path / "a", tmp_path / "b"))))
    assert {one.shape for one in found} == {(4, 8, 16), (8, 16)}
    name = "model.layers.0.mlp.experts.gate_up_proj"  # one expert is one row
    assert torch.equal(far.read_rows("B", name, 2, 3)[0], checkpoints.open(tmp_path / "b").read(name)[2])


def test_160_shards(hub: Hub, tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path / "m", {f"model.layers.{n}.self_attn.o_proj.weight": torch.full((2, 2), n) for n in range(160)}, {},
        shards=160,
    )  # fmt: skip
    hub.add("org/m", folder)
    opened = checkpoints.open("org/m")
    assert len(opened.shards) == len(opened.tensors) == 160
    assert opened.read("model.layers.77.self_attn.o_proj.weight")[0, 0] == 77


def test_the_environment_is_honoured(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/m", tiny_qwen2(tmp_path / "m"), private=True)
    hub.tokens["hf_secret"] = {"org/m"}
    code = "import sfn.checkpoints as c; m = c.open('org/m'); m.read('model.norm.weight'); print(m.folder)"
    given = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "SFN_CACHE": str(tmp_path / "sfn")}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | given
    for token, works in (("hf_secret", True), ("hf_other", False)):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | {"HF_TOKEN": token}, capture_output=True, text=True
        )
        assert (done.returncode == 0) == works, done.stderr
        assert "hf_" not in done.stdout + done.stderr
        if works:
            assert str(tmp_path / "home") in done.stdout
        for place in ("home", "sfn"):
            shutil.rmtree(tmp_path / place, ignore_errors=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "pickle format"),
        ("model-Q4.gguf", "rounded to a few bits"),
        ("notes.txt", "no safetensors"),
    ],
)
def test_no_safetensors(hub: Hub, tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / name).write_bytes(b"content")
    hub.add("org/m", tmp_path / "m")
    with pytest.raises(CheckpointError, match=rf"org/m holds.*{words}"):
        checkpoints.open("org/m")
