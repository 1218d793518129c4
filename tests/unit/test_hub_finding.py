"""Models found on the Hub by words, as children of another, and in the cache of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from sfn import hub as room
from sfn import paper_pairs
from sfn.errors import CheckpointError, HubError
from tests.builders import tiny_qwen2
from tests.hub_server import Hub

A = "Qwen/Qwen2.5-Math-1.5B"


def test_by_words_the_most_downloaded_first(hub: Hub, tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "m")
    for number, name in enumerate(("org/qwen-small", "org/qwen-large", "org/llama")):
        hub.add(name, folder, downloads=number, gated="manual" if "large" in name else False)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "pytorch_model.bin").write_bytes(b"content")
    hub.add("org/qwen-pickled", tmp_path / "p", downloads=99)
    found = room.search("qwen")
    assert [(one.repo, one.downloads, one.gated) for one in found] == [
        ("org/qwen-large", 1, True), ("org/qwen-small", 0, False),
    ]  # fmt: skip
    assert len(room.search("org", most=1)) == 1
    assert room.search("nothing of this name") == ()


def test_children_that_reason_come_first(hub: Hub, tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "m")
    for name, downloads in (("org/chat", 900), ("org/s1-32b", 3), ("org/deep-think", 5), ("org/arithmetic", 800)):
        hub.add(name, folder, card={"base_model": A}, downloads=downloads)
    hub.add("org/of-another", folder, card={"base_model": "org/chat"}, downloads=10**6)
    names = [one.repo for one in room.children(A)]
    assert names == ["org/deep-think", "org/s1-32b", "org/chat", "org/arithmetic"]


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError) as raised:
        room.search("qwen")
    assert raised.value.kind == "network"


def test_what_is_on_this_machine(hub: Hub, tmp_path: Path) -> None:
    assert room.on_this_machine() == ()
    commit = hub.add("org/m", tiny_qwen2(tmp_path / "m"))
    hub.add("org/seen", tiny_qwen2(tmp_path / "seen"))
    listing = room.find("org/m")
    whole = sum(file.size for name, file in listing.files.items() if name.endswith(".safetensors"))
    assert room.weights(listing).size_bytes == whole
    assert room.weights(listing).missing_bytes >= whole
    room.open_repo(room.find("org/seen"))  # its small files lie in the cache, its weights do not
    snapshot_download("org/m", endpoint=hub.endpoint, cache_dir=constants.HF_HUB_CACHE)
    assert [(one.repo, one.commit) for one in room.on_this_machine()] == [("org/m", commit)]
    assert room.weights(listing).missing_bytes == 0


def test_weights_of_what_has_none(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"content")
    hub.add("org/m", tmp_path / "m")
    with pytest.raises(CheckpointError, match="pickle format"):
        room.weights(room.find("org/m"))


@pytest.mark.parametrize(
    ("name", "repo"),
    [("org/m", "org/m"), ("https://huggingface.co/org/m", "org/m"), ("/no/such", None), ("", None),
     ("https://example.org/x/y", None), ("~nobody-here/x", None), ("a\0b/c", None)],
)  # fmt: skip
def test_what_a_name_means(name: str, repo: str | None) -> None:
    found = room.meant(name)
    assert (found.repo if found else None) == repo


def test_a_folder_wins_over_a_model_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert room.meant("org/m") is None


def test_full_commits_are_fixed() -> None:
    assert room.Address("org/m", "a" * 40).fixed
    assert not room.Address("org/m", "a" * 10).fixed
    assert not room.Address("org/m").fixed


def test_the_paper_s_pairs() -> None:
    assert paper_pairs.bases_of("deepseek-ai/deepseek-r1-distill-qwen-1.5b") == (A,)
    assert paper_pairs.children_of("Qwen/Qwen2.5-32B") == ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "Qwen/QwQ-32B")
    for pair in paper_pairs.PAIRS:
        assert room.meant(pair.a) is not None
        assert 0.03 < pair.o_proj_share < 0.1
