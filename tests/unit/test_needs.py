"""What a pair takes, before anything is fetched: counted where it can be, estimated where not, refused in words."""

from __future__ import annotations

from pathlib import Path

from sfn import delta, pairs
from sfn.needs import kv_cache_bytes, needs, run_memory_bytes
from tests.builders import tiny_qwen2, tiny_qwen3
from tests.hub_server import Hub


def lines(pair: pairs.Pair, **given: object) -> dict[str, object]:
    return {need.topic: need for need in needs(pair, **given)}


def test_bytes_to_scan_are_those_that_a_scan_reads(tmp_path: Path) -> None:
    pair = pairs.compare(*pairs.open_both(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", 1, vocab=300)))
    totals: list[int] = []
    list(delta.scan(pair, progress=lambda done, total, name: totals.append(total)))
    assert lines(pair)["scan"].needed == totals[0]
    chosen = [row.name for row in pair.rows if "o_proj" in row.name]
    assert lines(pair, names=chosen)["scan"].needed == 2 * 2 * 32 * 32 * 2
    assert lines(pair)["fetch to scan"].needed == lines(pair)["fetch to run"].needed == 0


def test_bytes_to_fetch_are_those_that_are_not_here(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/a", tiny_qwen2(tmp_path / "a", shards=2))
    pair = pairs.compare(*pairs.open_both("org/a", tiny_qwen2(tmp_path / "b", 1)))
    found = lines(pair)
    assert found["fetch to scan"].needed == found["scan"].needed // 2 == pair.a.size_bytes
    assert found["fetch to run"].needed == pair.a.missing_bytes > pair.a.size_bytes
    pair.a.fetch()
    found = lines(pair)
    assert found["fetch to scan"].needed == found["fetch to run"].needed == 0


def test_memory_is_weights_cache_and_some_more(tmp_path: Path) -> None:
    pair = pairs.compare(*pairs.open_both(tiny_qwen3(tmp_path / "a", tied=True), tmp_path / "a"))
    assert kv_cache_bytes(pair.a, 100, 2) == 2 * 2 * 2 * 16 * 100 * 2  # K and V, layers, heads, size, tokens, bytes
    weights = (pair.a.parameters + 288 * 32) * 4  # the head apart
    expected = round((weights + kv_cache_bytes(pair.a, 1000, 4)) * 1.1) + 10**9
    assert run_memory_bytes(pair.a, dtype="float32", context_tokens=1000) == expected


def test_what_cannot_fit_is_refused_in_words(tmp_path: Path) -> None:
    pair = pairs.compare(*pairs.open_both(tiny_qwen2(tmp_path / "a"), tmp_path / "a"))
    refused = lines(pair, memory_bytes=10**9, device="this graphics card")["memory to run"]
    assert not refused.fits
    assert "1.0 GB of memory are needed, and this graphics card has 1.0 GB. Scanning still works" in refused.refusal
    assert all(need.fits for need in needs(pair, memory_bytes=2 * 10**9))
    assert all(need.fits for need in needs(pair))


def test_a_full_disk_is_refused_in_words(hub: Hub, tmp_path: Path, monkeypatch: object) -> None:
    import shutil

    hub.add("org/a", tiny_qwen2(tmp_path / "a"))
    pair = pairs.compare(*pairs.open_both("org/a", tmp_path / "a"))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "set HF_HUB_CACHE to a larger disk" in lines(pair)["disk"].refusal
