"""A merged checkpoint appears whole or not at all: occupied, full, cancelled, killed, failing halfway."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sfn import checkpoints, folder_writer, pairs, recipes, surgery
from sfn.errors import Cancelled, CheckpointError, SurgeryError
from tests.builders import tiny_qwen2

RECIPE = recipes.parse("o_proj=B; mlp@0=B:0.5")


@pytest.fixture
def pair(tmp_path: Path) -> pairs.Pair:
    a, b = tiny_qwen2(tmp_path / "in" / "a"), tiny_qwen2(tmp_path / "in" / "b", seed=1)
    return pairs.compare(checkpoints.open(a), checkpoints.open(b))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def left_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_an_empty_folder_and_missing_parents_are_fine(pair: pairs.Pair, out: Path) -> None:
    (out / "empty").mkdir()
    assert surgery.write(pair, RECIPE, out / "empty") == out / "empty"
    deep = surgery.write(pair, RECIPE, out / "x" / "y" / "merged")
    assert len(checkpoints.open(deep).tensors) == 27
    assert left_in(deep.parent) == ["merged"]


def test_nothing_is_overwritten(pair: pairs.Pair, out: Path) -> None:
    (out / "full").mkdir()
    (out / "full" / "note.txt").write_text("mine")
    with pytest.raises(SurgeryError, match="full is there already and not empty"):
        surgery.write(pair, RECIPE, out / "full")
    assert left_in(out / "full") == ["note.txt"]
    (out / "file").write_text("mine")
    with pytest.raises(SurgeryError, match="is not a folder"):
        surgery.write(pair, RECIPE, out / "file")
    (out / "link").symlink_to(out / "nowhere")
    with pytest.raises(SurgeryError, match="is not a folder"):
        surgery.write(pair, RECIPE, out / "link")
    with pytest.raises(SurgeryError, match="not empty"):
        surgery.write(pair, RECIPE, pair.a.folder)
    assert left_in(out) == ["file", "full", "link"]


def test_somebody_else_takes_the_place_meanwhile(pair: pairs.Pair, out: Path) -> None:
    def occupy(done: int, total: int, name: str) -> None:
        if done:
            (out / "m").mkdir(exist_ok=True)
            (out / "m" / "note.txt").write_text("mine")

    with pytest.raises(SurgeryError, match="could not be written: Directory not empty"):
        surgery.write(pair, RECIPE, out / "m", progress=occupy)
    assert left_in(out / "m") == ["note.txt"]
    assert left_in(out) == ["m"]


def test_cancel_leaves_nothing(pair: pairs.Pair, out: Path) -> None:
    cancel, seen = threading.Event(), []

    def after_three(done: int, total: int, name: str) -> None:
        if done:
            seen.append(name)
        if len(set(seen)) == 3:
            cancel.set()

    with pytest.raises(Cancelled, match="was cancelled; nothing was left"):
        surgery.write(pair, RECIPE, out / "m", cancel=cancel, progress=after_three)
    assert len(set(seen)) == 3
    assert left_in(out) == []
    with pytest.raises(Cancelled):
        surgery.write(pair, RECIPE, out / "m", cancel=cancel)
    assert left_in(out) == []


def test_progress_counts_bytes_to_the_end(pair: pairs.Pair, out: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    surgery.write(pair, RECIPE, out / "m", progress=lambda *step: steps.append(step))
    written = [step for step in steps if not step[2].startswith("reading ")]
    assert written[-1][:2] == (pair.a.size_bytes, pair.a.size_bytes)
    assert [done for done, _, _ in written] == sorted(done for done, _, _ in written)
    assert {name for _, _, name in written} == set(pair.a.tensors)


def test_an_error_in_progress_leaves_nothing(pair: pairs.Pair, out: Path) -> None:
    def fail(done: int, total: int, name: str) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surgery.write(pair, RECIPE, out / "m", progress=fail)
    assert left_in(out) == []


def test_a_source_that_changes_meanwhile_leaves_nothing(pair: pairs.Pair, out: Path) -> None:
    def cut(done: int, total: int, name: str) -> None:
        if done:
            os.truncate(pair.a.shards[0], 5000)

    with pytest.raises(CheckpointError, match="changed since"):
        surgery.write(pair, RECIPE, out / "m", progress=cut)
    assert left_in(out) == []


def test_where_the_system_cannot_copy_bytes_go_through_a_buffer(
    pair: pairs.Pair, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = surgery.write(pair, RECIPE, out / "m", max_shard_bytes=30_000)

    def other_disk(*_: object, **__: object) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", other_disk)
    monkeypatch.setattr(folder_writer, "_BUFFER_BYTES", 1000)
    through = surgery.write(pair, RECIPE, out / "n", max_shard_bytes=30_000)
    shards = sorted(file.name for file in copied.glob("*.safetensors"))
    assert len(shards) > 2
    assert all((copied / name).read_bytes() == (through / name).read_bytes() for name in shards)


def test_a_file_that_is_cut_during_the_copy_is_noticed(
    pair: pairs.Pair, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, shard = os.copy_file_range, pair.a.shards[0]

    def cut_first(*arguments: object, **options: object) -> int:
        os.truncate(shard, 4000)
        return copy(*arguments, **options)

    monkeypatch.setattr(os, "copy_file_range", cut_first)
    with pytest.raises(CheckpointError, match=r"model.safetensors, tensor '.*': the file was cut while"):
        surgery.write(pair, RECIPE, out / "m")
    assert left_in(out) == []


@pytest.mark.parametrize("durable", [False, True])
def test_the_disk_is_waited_for_only_on_request(
    pair: pairs.Pair, out: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "fsync", note)
    surgery.write(pair, RECIPE, out / "m", durable=durable)
    assert ({"model.safetensors", "config.json", "out"} <= set(synced)) is durable


def test_too_little_room_is_seen_before_anything_is_read(
    pair: pairs.Pair, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1_000_000})
    monkeypatch.setattr(folder_writer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SurgeryError, match=r"needs 1.1 MB, but only 1.0 MB are free"):
        surgery.write(pair, RECIPE, out / "m", progress=lambda *step: pytest.fail("something was read"))
    assert left_in(out) == []


def test_a_disk_that_fills_up_halfway_leaves_nothing(pair: pairs.Pair, out: Path) -> None:
    pair.key  # reading is over before the limit holds
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (30_000, hard)
    )  # the system then refuses to write on, as a full disk does
    try:
        with pytest.raises(SurgeryError, match=r"could not be written: File too large. Nothing was left there"):
            surgery.write(pair, RECIPE, out / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert left_in(out) == []


def test_places_where_nobody_can_write(pair: pairs.Pair, out: Path) -> None:
    (out / "file").write_text("")
    with pytest.raises(SurgeryError, match=r"file is a file. Choose another folder"):
        surgery.write(pair, RECIPE, out / "file" / "m")
    with pytest.raises(SurgeryError, match=r"/proc/m needs 1.1 MB, but only 0.0 MB are free"):
        surgery.write(pair, RECIPE, Path("/proc/m"))
    with pytest.raises(SurgeryError, match="File name too long"):
        surgery.write(pair, RECIPE, out / ("x" * 300))


def test_a_folder_without_permission(pair: pairs.Pair, out: Path) -> None:
    pair.key  # reading is over before the right to is gone
    out.chmod(0o500)
    user = os.geteuid()
    if user == 0:  # root may write anywhere
        os.seteuid(65534)
    try:
        with pytest.raises(SurgeryError, match="Permission denied"):
            surgery.write(pair, RECIPE, out / "m")
    finally:
        os.seteuid(user)
        out.chmod(0o700)
    assert left_in(out) == []


KILLED = """
import sys, time
from sfn import checkpoints, pairs, recipes, surgery
a, b, target = sys.argv[1:]
def wait(done, total, name):
    if done > total // 2:
        print("halfway", flush=True)
        time.sleep(60)
surgery.write(pairs.compare(checkpoints.open(a), checkpoints.open(b)), recipes.parse("o_proj=B"), target, progress=wait,
              max_shard_bytes=int(1e9))
"""


def test_a_killed_write_leaves_nothing_that_looks_whole(pair: pairs.Pair, out: Path) -> None:
    command = [sys.executable, "-c", KILLED, pair.a.folder, pair.b.folder, out / "m"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "halfway\n"
        [partial] = left_in(out)
        alive = surgery.write(pair, RECIPE, out / "n")  # beside a living writer, which is left alone
        assert alive.exists()
        assert left_in(out) == [partial, "n"]
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    assert left_in(out) == [partial, "n"]
    assert partial.startswith(".m.partial-")
    assert not (out / partial / "config.json").exists()
    with pytest.raises(CheckpointError, match="cut off"):
        checkpoints.open(out / partial)
    surgery.write(pair, RECIPE, out / "m")  # the next write to the same place cleans up
    assert left_in(out) == ["m", "n"]


def test_a_living_writer_of_the_same_target_is_left_alone(pair: pairs.Pair, out: Path) -> None:
    def write_too(done: int, total: int, name: str) -> None:
        if done and not (out / "m").exists():
            surgery.write(pair, RECIPE, out / "m")

    with pytest.raises(SurgeryError, match="Directory not empty"):
        surgery.write(pair, RECIPE, out / "m", progress=write_too)
    assert left_in(out) == ["m"]
    assert len(checkpoints.open(out / "m").tensors) == 27
