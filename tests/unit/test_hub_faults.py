"""Whatever goes wrong between the Hub and here: the right bytes or the right sentence, and finished work is kept."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from sfn import checkpoints, delta, pairs
from sfn.errors import Cancelled, HubError
from sfn.hub import ranges, readahead
from sfn.hub.ranges import RemoteFile
from sfn.workbench import Workbench
from tests.builders import tiny_qwen2, write_checkpoint
from tests.hub_server import Hub

SIZE = 300_000
CONTENT = b"".join(hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(SIZE // 32 + 1))[:SIZE]


@pytest.fixture
def remote(hub: Hub, tmp_path: Path) -> RemoteFile:
    """One large file on the Hub, served by the CDN."""
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "w.bin").write_bytes(CONTENT)
    commit = hub.add("org/f", tmp_path / "f")
    return RemoteFile("org/f", commit, "w.bin", SIZE, hashlib.sha256(CONTENT).hexdigest())


@pytest.mark.parametrize(
    ("kind", "details"),
    [
        ("cut", {"after": 0}), ("cut", {"after": 1}), ("cut", {"after": 70_000, "times": 3}),
        ("cut", {"after": 0, "times": 4}), ("slow", {"seconds": 0.01}), ("stall", {"after": 1000, "seconds": 0.7}),
        ("status", {"code": 500}), ("status", {"code": 503, "times": 3}), ("status", {"code": 504, "host": "hub"}),
        ("status", {"code": 429, "headers": {"Retry-After": "0"}, "host": "hub", "times": 2}),
        ("status", {"code": 403}), ("status", {"code": 401}), ("status", {"code": 408}),
    ],
)  # fmt: skip
def test_what_passes_is_waited_out(
    hub: Hub, remote: RemoteFile, monkeypatch: pytest.MonkeyPatch, kind: str, details: dict[str, object]
) -> None:
    monkeypatch.setattr(ranges, "READ_TIMEOUT_S", 0.3)
    hub.fault(kind, **details)
    assert remote.read(5, SIZE - 7) == CONTENT[5:-7]
    assert remote.read(0, SIZE) == CONTENT


def test_a_cut_connection_goes_on_at_the_byte(hub: Hub, remote: RemoteFile) -> None:
    hub.fault("cut", after=100_000)
    assert remote.read(10, SIZE) == CONTENT[10:]
    asked = [request.range for request in hub.requests if request.host == "cdn"]
    assert asked == [f"bytes=10-{SIZE - 1}", f"bytes=100010-{SIZE - 1}"]
    assert hub.bytes_sent == SIZE - 10


def test_an_expired_link_is_renewed(hub: Hub, remote: RemoteFile) -> None:
    assert remote.read(0, 10) == CONTENT[:10]
    hub.expire_links()
    hub.clear()
    assert remote.read(10, 20) == CONTENT[10:20]
    assert [request.host for request in hub.requests] == ["cdn", "hub", "cdn"]
    assert remote.read(20, 30) == CONTENT[20:30]
    assert [request.host for request in hub.requests][3:] == ["cdn"]


@pytest.mark.parametrize(
    ("kind", "details", "words"),
    [
        ("etag", {"skip": 1}, "is not the content that this commit names"),
        ("etag", {"host": "hub"}, "is not the content that this commit names"),
        ("commit", {"host": "hub"}, "comes from another commit"),
        ("short", {}, "another range than the one that was asked for"),
        ("long", {}, "another range than the one that was asked for"),
        ("shift", {}, "another range than the one that was asked for"),
        ("whole", {}, "cannot be had in parts"),
    ],
)
def test_wrong_answers_are_refused(
    hub: Hub, remote: RemoteFile, kind: str, details: dict[str, object], words: str
) -> None:
    hub.fault(kind, times=5, **details)
    with pytest.raises(HubError, match=words) as raised:
        for start in (1, 1000):
            assert remote.read(start, start + 500) == CONTENT[start : start + 500]
    assert raised.value.kind == "changed"
    hub.clear()
    assert remote.read(1, 500) == CONTENT[1:500]


def test_a_storage_s_own_etag_must_stay(hub: Hub, remote: RemoteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = iter(['"multipart-1"', '"multipart-1"', '"multipart-2"'])
    check = ranges.RemoteFile._check_constant
    monkeypatch.setattr(ranges.RemoteFile, "_check_constant", lambda self, url, _etag: check(self, url, next(tags)))
    assert remote.read(0, 10) + remote.read(10, 20) == CONTENT[:20]
    with pytest.raises(HubError, match="changed while it was being read"):
        remote.read(20, 30)


@pytest.mark.parametrize(
    ("details", "kind", "words"),
    [
        ({"kind": "status", "code": 429, "headers": {"Retry-After": "3600"}}, "rate limit", r"Go on in 3600 s"),
        ({"kind": "status", "code": 500}, "server", r"an error of its own \(500\)"),
        ({"kind": "status", "code": 403}, "server", r"refuses .* also with a new link"),
        ({"kind": "cut", "after": 0}, "network", r"connection"),
    ],
)
def test_what_does_not_pass_ends_in_a_sentence(
    hub: Hub, remote: RemoteFile, details: dict[str, object], kind: str, words: str
) -> None:
    hub.fault(times=1000, **details)
    with pytest.raises(HubError, match=words) as raised:
        remote.read(0, 100)
    assert raised.value.kind == kind
    assert "Signature" not in str(raised.value)


def test_retry_after_is_waited(hub: Hub, remote: RemoteFile) -> None:
    hub.fault("status", code=429, headers={"Retry-After": "1"})
    started = time.monotonic()
    assert remote.read(0, 10) == CONTENT[:10]
    assert time.monotonic() - started >= 1.0


def test_a_corrupted_header_is_read_again_then_refused(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/m", tiny_qwen2(tmp_path / "m"))
    hub.fault("corrupt", after=9)
    assert len(checkpoints.open("org/m").tensors) == 27
    hub.add("org/n", tiny_qwen2(tmp_path / "n"))
    hub.fault("corrupt", after=9, times=2)
    with pytest.raises(checkpoints.CheckpointError, match=r"model.safetensors has a header that is not valid JSON"):
        checkpoints.open("org/n")
    assert len(checkpoints.open("org/n").tensors) == 27  # nothing of it was kept


@pytest.mark.parametrize("code", [500, 429])
def test_opening_waits_for_a_busy_hub(hub: Hub, tmp_path: Path, code: int) -> None:
    hub.add("org/m", tiny_qwen2(tmp_path / "m"))
    hub.fault("status", host="hub", code=code, times=2, path="/api/models/", headers={"Retry-After": "0"})
    hub.fault("status", host="hub", code=code, path="config.json")
    assert len(checkpoints.open("org/m").tensors) == 27


# Reading ahead


@pytest.fixture
def pair(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pairs.Pair:
    """A pair whose tensors take many pieces, which are made small."""
    monkeypatch.setattr(readahead, "PIECE_BYTES", 3000)
    monkeypatch.setattr(readahead, "WINDOW_BYTES", 24_000)
    for seed, name in enumerate(("a", "b")):
        hub.add(f"org/{name}", tiny_qwen2(tmp_path / name, seed, shards=2, hidden=64, layers=3))
    found = pairs.compare(*pairs.open_both("org/a", "org/b"))
    hub.clear()
    return found


def near(tmp_path: Path) -> pairs.Pair:
    return pairs.compare(*pairs.open_both(tmp_path / "a", tmp_path / "b"))


@pytest.mark.parametrize("fault", ["cut", "500", "429", "slow", "expired", "none"])
def test_scans_come_out_right_through_faults(hub: Hub, tmp_path: Path, pair: pairs.Pair, fault: str) -> None:
    for skip in range(0, 60, 7):
        if fault == "cut":
            hub.fault("cut", after=1000, skip=skip)
        elif fault in ("500", "429"):
            hub.fault("status", code=int(fault), skip=skip, headers={"Retry-After": "0"})
        elif fault == "slow":
            hub.fault("slow", seconds=0.01, skip=skip)
    names = [row.name for row in pair.rows]
    with pair.read_ahead(names):
        found = []
        for one in delta.scan(pair):
            found.append(one)
            if fault == "expired":
                hub.expire_links()
    assert found == list(delta.scan(near(tmp_path)))
    if fault != "expired":  # whose refusals have words of their own
        assert hub.bytes_sent == pair.a.size_bytes + pair.b.size_bytes
    assert not list((tmp_path / "sfn" / "hub" / "spool").iterdir())


def test_reading_in_any_order_and_twice(hub: Hub, tmp_path: Path, pair: pairs.Pair) -> None:
    names = [row.name for row in pair.rows]
    reference = near(tmp_path)
    with pair.read_ahead(names):
        for name in (*reversed(names), *names):
            assert torch.equal(pair.read("B", name), reference.read("B", name))
            assert torch.equal(pair.read_rows("A", name, 1, 7), reference.read_rows("A", name, 1, 7))


def test_the_window_bounds_what_is_fetched(hub: Hub, pair: pairs.Pair) -> None:
    names = [row.name for row in pair.rows]
    with pair.read_ahead(names):
        time.sleep(1.0)
        assert 0 < hub.bytes_sent <= 2 * (readahead.WINDOW_BYTES + readahead.PIECE_BYTES)


def test_a_failure_keeps_what_came_and_the_next_scan_goes_on(hub: Hub, tmp_path: Path, pair: pairs.Pair) -> None:
    names = [row.name for row in pair.rows]
    hub.fault("short", times=1000, skip=40)
    found = []
    with pytest.raises(HubError, match="another range"), pair.read_ahead(names):
        found.extend(delta.scan(pair))
    assert found
    hub.clear()
    left = names[len(found) :]
    with pair.read_ahead(left):
        found += list(delta.scan(pair, left))
    assert found == list(delta.scan(near(tmp_path)))


def test_no_room_for_the_spool(hub: Hub, tmp_path: Path, pair: pairs.Pair) -> None:
    (tmp_path / "sfn" / "hub" / "spool").write_text("a file where the folder should be")
    names = [row.name for row in pair.rows]
    with pair.read_ahead(names):
        assert list(delta.scan(pair)) == list(delta.scan(near(tmp_path)))


def test_two_readings_of_the_same_model_at_once(hub: Hub, tmp_path: Path, pair: pairs.Pair) -> None:
    names = [row.name for row in pair.rows]
    other = pairs.compare(*pairs.open_both("org/a", "org/b"))
    expected = list(delta.scan(near(tmp_path)))
    with pair.read_ahead(names), other.read_ahead(names):
        assert [list(delta.scan(one)) for one in (pair, other)] == [expected, expected]


@pytest.mark.parametrize("fault", ["stall", "503", "slow"])
def test_cancel_is_heard_at_once(hub: Hub, pair: pairs.Pair, fault: str) -> None:
    names = [row.name for row in pair.rows]
    if fault == "503":
        hub.fault("status", code=503, times=1000, headers={"Retry-After": "60"})
    else:
        hub.fault(fault, after=10, seconds=3.0, times=1000)
    cancel = threading.Event()
    threading.Timer(0.5, cancel.set).start()
    started = time.monotonic()
    with pytest.raises(Cancelled), pair.read_ahead(names, cancel):
        list(delta.scan(pair, cancel=cancel))
    assert time.monotonic() - started < 1.5


# A whole scan, as the app does it


def workbench_scan(bench: Workbench, names: list[str] | None = None) -> object:
    job = bench.open_pair("org/a", "org/b", "me")
    assert job.finished.wait(60), job.detail
    assert job.state == "done", job.error
    scan = bench.scan(job.result, "me", names)
    assert scan.finished.wait(60)
    return scan


def test_a_failed_scan_is_taken_up_where_it_stopped(hub: Hub, tmp_path: Path, pair: pairs.Pair) -> None:
    bench = Workbench(tmp_path / "sfn.duckdb")
    try:
        hub.fault("status", code=404, host="cdn", times=1000, skip=60)
        scan = workbench_scan(bench)
        assert scan.state == "failed"
        assert "Nothing finished" in scan.error or "nothing finished" in scan.error
        done = len(bench.store.deltas(near(tmp_path).key))
        assert 0 < done < len(pair.rows)
        hub.clear()
        assert workbench_scan(bench).state == "done"
        assert len(bench.store.deltas(near(tmp_path).key)) == len(pair.rows)
        measured = sum(row.a.size_bytes + row.b.size_bytes for row in pair.rows[:done])
        assert hub.bytes_sent <= pair.a.size_bytes + pair.b.size_bytes - measured
        assert workbench_scan(bench).result == 0  # nothing left, nothing read
    finally:
        bench.close()


KILLED = """
import sys
from sfn import delta, pairs
from sfn.hub import readahead
readahead.PIECE_BYTES = 100_000
readahead.WINDOW_BYTES = 800_000
pair = pairs.compare(*pairs.open_both("org/a", "org/b"))
with pair.read_ahead([row.name for row in pair.rows]):
    for one in delta.scan(pair):
        print(one.name, flush=True)
"""


def test_a_killed_scan_repeats_less_than_a_piece(hub: Hub, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"model.layers.{n}.self_attn.o_proj.weight": torch.randn(500, 500, generator=generator) for n in range(6)
        }
        hub.add(f"org/{name}", write_checkpoint(tmp_path / name, tensors, {}, with_tokenizer=False))
    hub.rate = 600_000
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "SFN_CACHE": str(tmp_path / "sfn")}
    process = subprocess.Popen([sys.executable, "-c", KILLED], env=environment, stdout=subprocess.PIPE, text=True)
    finished = process.stdout.readline().strip()
    time.sleep(0.7)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)
    hub.rate = None
    before = hub.bytes_sent
    pair = pairs.compare(*pairs.open_both("org/a", "org/b"))
    headers = hub.bytes_sent - before
    left = [row.name for row in pair.rows if row.name != finished]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readahead, "PIECE_BYTES", 100_000)
        with pair.read_ahead(left):
            assert list(delta.scan(pair, left)) == list(delta.scan(near(tmp_path), left))
    total = pair.a.size_bytes + pair.b.size_bytes
    repeated = hub.bytes_sent - 2 * headers - total
    assert before > headers + 500 * 500 * 8  # it was killed in the middle
    assert repeated < 16 * 100_000 // 2, f"{repeated:,} of {total:,} bytes were sent twice"


# Secrets


def test_no_token_leaves_the_hub_and_none_is_logged(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    hub.add("org/m", tiny_qwen2(tmp_path / "m"), private=True)
    hub.tokens["hf_verysecret"] = {"org/m"}
    opened = checkpoints.open("org/m")
    opened.read("model.norm.weight")
    opened.fetch()
    hub.fault("status", code=403, times=1000)
    hub.add("org/n", tiny_qwen2(tmp_path / "n"))
    with pytest.raises(HubError) as raised:
        checkpoints.open("org/n")
    assert {request.authorization for request in hub.requests if request.host == "cdn"} == {""}
    sent = {request.authorization for request in hub.requests if request.host == "hub" and "/org/" in request.path}
    assert sent == {"Bearer hf_verysecret"}
    logged = "\n".join(record.getMessage() for record in caplog.records if record.name != "httpcore2.http11")
    said = f"{raised.value!r} {opened!r} {opened.files.remote(opened.shards[0])!r}"
    for text in (logged, said):
        assert "verysecret" not in text
    assert "Signature=" not in said
    assert not any(b"verysecret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
