"""What each stethoscope can do with a pair on a machine, and the reason where it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sfn import abilities, engines, pairs
from sfn.abilities import Machine
from tests.builders import tiny_qwen2
from tests.hub_server import Hub

ROOMY = Machine(memory_bytes=10**12, gpu_bytes=0, hub_free_bytes=10**12, free_bytes=10**12)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both engines, on a CPU."""
    both = [engines.Backend("transformers", "5", ""), engines.Backend("vllm", "", "vllm is not installed here.")]
    monkeypatch.setattr(engines, "available", lambda: both)
    monkeypatch.setattr("sfn.engines.hardware.device_for", lambda backend, wanted=None: "cpu")


def of(pair: pairs.Pair, machine: Machine = ROOMY) -> dict[str, tuple[str, str]]:
    return {one.what: (one.verdict, one.sentence) for one in abilities.abilities(pair, machine)}


def test_two_folders(tmp_path: Path) -> None:
    pair = pairs.compare(*pairs.open_both(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", 1)))
    found = of(pair)
    assert found["Delta"][0] == found["Merge on transformers"][0] == found["Merged checkpoint"][0] == "yes"
    assert found["Merge on vllm"] == ("no", "vllm is not installed here.")
    assert "8.19 kB for o_proj alone, from this machine" in found["Delta"][1]  # 2 sides, 2 layers, 32 x 32, 2 bytes
    assert not abilities.fetch_refusal(pair, replace(ROOMY, hub_free_bytes=0))


def test_a_pair_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/a", tiny_qwen2(tmp_path / "a"))
    hub.add("org/b", tiny_qwen2(tmp_path / "b", 1))
    pair = pairs.compare(*pairs.open_both("org/a", "org/b"))
    found = of(pair)
    assert found["Merge on transformers"][0] == "after download"
    assert "keeps nothing" in found["Delta"][1]
    assert "read over the network" in found["Merged checkpoint"][1]
    assert "set HF_HUB_CACHE" in abilities.fetch_refusal(pair, replace(ROOMY, hub_free_bytes=10**6))
    assert not abilities.fetch_refusal(pair, ROOMY)


def test_too_little_memory_and_disk(tmp_path: Path) -> None:
    pair = pairs.compare(*pairs.open_both(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", 1)))
    found = of(pair, replace(ROOMY, memory_bytes=10**8, free_bytes=10**6))
    assert found["Merge on transformers"][0] == "no"
    assert "this machine has 100 MB" in found["Merge on transformers"][1]
    assert found["Merged checkpoint"][0] == "no"
    assert "set SFN_CACHE" in found["Merged checkpoint"][1]


def test_depths_and_vocabularies_that_differ(tmp_path: Path) -> None:
    base = tiny_qwen2(tmp_path / "a")
    deep = of(pairs.compare(*pairs.open_both(base, tiny_qwen2(tmp_path / "deep", 1, layers=3))))
    assert deep["Merge on transformers"] == ("no", "A has 2 layers, B has 3.")
    assert deep["Merged checkpoint"][0] == "no"
    assert deep["Delta"][0] == "partly"
    wide = of(pairs.compare(*pairs.open_both(base, tiny_qwen2(tmp_path / "wide", 1, vocab=300))))
    assert wide["Merge on transformers"][0] == "partly"
    assert "2 tensors stay A's" in wide["Merge on transformers"][1]


def test_this_machine() -> None:
    here = abilities.machine()
    assert here.memory_bytes > 0
    assert here.hub_free_bytes > 0
    assert here.free_bytes > 0
