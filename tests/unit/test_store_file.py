"""The database file: who holds it, older and newer schemas, damage, full and read-only disks, sudden death."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import duckdb
import pytest

from sfn import store
from sfn.errors import StoreError
from sfn.store import Store, file

ROOT = Path(__file__).resolve().parents[2]
NOW = len(file.MIGRATIONS)  # the schema's version


def python(program: str, *arguments: object) -> subprocess.Popen:
    """A fresh Python that runs `program` with sfn on its path."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)  # fmt: skip


def filled(path: Path, n: int = 3) -> Path:
    """A database of `n` file hashes, closed."""
    with Store(path) as results:
        for i in range(n):
            results.file_hashes[f"/m/{i}", i, i] = f"{i:064x}"
    return path


def beside(path: Path, word: str) -> list[Path]:
    return sorted(found for found in path.parent.iterdir() if word in found.name)


# Where it is


def test_default_path(monkeypatch, tmp_path):
    monkeypatch.delenv("SFN_CACHE", raising=False)
    assert store.default_path() == ROOT / "cache" / "sfn.duckdb"
    monkeypatch.setenv("SFN_CACHE", str(tmp_path / "elsewhere"))
    assert store.cache_folder() == tmp_path / "elsewhere"
    with Store() as results:
        assert results.path == tmp_path / "elsewhere" / "sfn.duckdb"
        assert results.path.exists()
    monkeypatch.setenv("SFN_CACHE", "~/there")
    assert store.default_path() == Path.home() / "there" / "sfn.duckdb"


# Who holds it


def test_a_second_process_is_told_who_holds_it(tmp_path):
    path = filled(tmp_path / "sfn.duckdb")
    holder = python(
        """
        import sys
        from sfn.store import Store
        results = Store(sys.argv[1])
        print("open", flush=True)
        sys.stdin.read()
        results.close()
        """,
        path,
    )
    try:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StoreError) as refused:
            Store(path)
        message = str(refused.value)
        assert f"process {holder.pid}" in message
        assert "python" in message
        assert "SFN_CACHE=" in message
        assert message.count(". ") == 0  # one sentence
        assert beside(path, "damaged") == []
    finally:
        holder.communicate("", timeout=30)
    with Store(path) as results:
        assert len(results.file_hashes) == 3


# Schemas


def test_a_newer_schema_is_refused_and_left_alone(tmp_path):
    path = filled(tmp_path / "sfn.duckdb")
    with duckdb.connect(str(path)) as raw:
        raw.execute("INSERT INTO schema_version VALUES (99, NULL)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"newer SfN \(schema 99, this one knows up to {NOW}\).*update"):
        Store(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_somebody_elses_database_is_refused(tmp_path):
    path = tmp_path / "sfn.duckdb"
    with duckdb.connect(str(path)) as raw:
        raw.execute("CREATE TABLE customers (name VARCHAR)")
    with pytest.raises(StoreError, match=r"SfN did not make \(it has the table 'customers'\)"):
        Store(path)
    with duckdb.connect(str(path)) as raw:
        assert raw.execute("SELECT count(*) FROM customers").fetchone() == (0,)


def test_an_older_schema_is_migrated_and_a_copy_kept(tmp_path, monkeypatch):
    path = filled(tmp_path / "sfn.duckdb")
    added = "ALTER TABLE file_hashes ADD COLUMN note VARCHAR; UPDATE file_hashes SET note = 'n' || size_bytes;"
    monkeypatch.setattr(file, "MIGRATIONS", (*file.MIGRATIONS, added, "CREATE TABLE extra (x INTEGER)"))
    with Store(path) as results:
        assert results.notice == ""
        assert results._read("SELECT note FROM file_hashes ORDER BY 1") == [("n0",), ("n1",), ("n2",)]
        assert results._read("SELECT version FROM schema_version ORDER BY 1") == [(n,) for n in range(1, NOW + 3)]
        assert len(results.file_hashes) == 3
    (copy,) = beside(path, f"schema-{NOW}-")
    monkeypatch.undo()
    with Store(copy) as old:
        assert len(old.file_hashes) == 3
    Store(path.with_name("new.duckdb")).close()
    assert len(beside(path, "schema-")) == 1  # a new file is made in one go, without a copy


def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    path = filled(tmp_path / "sfn.duckdb")
    broken = ("DROP TABLE pairs; CREATE TABLE half (x INTEGER);", "SELECT * FROM nowhere")
    monkeypatch.setattr(file, "MIGRATIONS", (*file.MIGRATIONS, *broken))
    with pytest.raises(StoreError, match="nowhere"):
        Store(path)
    monkeypatch.undo()
    with Store(path) as results:
        assert len(results.file_hashes) == 3
        assert results.pairs() == []
        assert results._read("SELECT max(version) FROM schema_version") == [(NOW,)]


# Damage


def garbage(path: Path) -> None:
    path.write_bytes(b"this was never a database\n" * 1000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def headless(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    """One bit of every table's data turned over; DuckDB notices when it reads the block."""
    data = bytearray(path.read_bytes())
    for place in range(3 * 4096 + 2000, len(data), 50_000):
        data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [garbage, empty, headless, half, flipped])
def test_a_damaged_file_is_set_aside_and_a_fresh_one_begun(tmp_path, damage):
    path = filled(tmp_path / "sfn.duckdb", 20)
    damage(path)
    path.with_name("sfn.duckdb.wal").write_bytes(b"log")
    damaged = path.read_bytes()
    with Store(path) as results:
        aside, log = beside(path, "damaged")
        assert aside.read_bytes() == damaged
        assert aside.name.startswith("sfn.duckdb.damaged-20")
        assert (log.name, log.read_bytes()) == (aside.name + ".wal", b"log")
        assert str(aside) in results.notice
        assert "nothing was deleted" in results.notice
        assert len(results.file_hashes) == 0
        results.file_hashes["a", 1, 1] = "x"
    with Store(path) as results:
        assert (results.notice, len(results.file_hashes)) == ("", 1)


def test_two_damaged_files_in_one_second_are_both_kept(tmp_path):
    path = tmp_path / "sfn.duckdb"
    for content in (b"one", b"two", b"three"):
        path.write_bytes(content)
        Store(path).close()
    assert {found.read_bytes() for found in beside(path, "damaged")} == {b"one", b"two", b"three"}


# Disks


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"folder .*file/cache for results cannot be made .*SFN_CACHE"):
        Store(tmp_path / "file" / "cache" / "sfn.duckdb")


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "sfn.duckdb").mkdir()
    with pytest.raises(StoreError, match="Is a directory"):
        Store(tmp_path / "sfn.duckdb")


def test_what_cannot_be_written_is_a_sentence(tmp_path):
    """As nobody, if the tests run as root: root may write anywhere."""
    path = filled(tmp_path / "sfn.duckdb")
    program = """
        import os, sys
        import duckdb
        from sfn.store import Store
        from sfn.errors import StoreError
        duckdb.connect().execute("SELECT 1").fetchall()
        os.chdir(sys.argv[1])
        os.chmod("sfn.duckdb", 0o444)
        os.chmod(".", 0o555)
        if os.geteuid() == 0:
            os.setgid(65534), os.setuid(65534)
        for name in ("sfn.duckdb", "new.duckdb"):
            try:
                Store(name)
            except StoreError as error:
                print(error)
        """
    out, errors = python(program, tmp_path).communicate(timeout=60)
    tmp_path.chmod(0o755)
    assert errors == ""
    old, new = out.splitlines()
    for message in (old, new):
        assert "cannot be written to" in message
        assert "SFN_CACHE=" in message
    assert path.exists()
    assert beside(path, "damaged") == []


def test_a_full_disk_is_a_sentence_and_room_mends_it(tmp_path):
    """The disk's end is played by the limit on a file's size, which gives the same kind of error."""
    program = """
        import os, resource, sys
        from sfn.store import Store
        from sfn.errors import StoreError
        with Store(sys.argv[1]) as results:
            results.file_hashes["first", 1, 1] = "x"
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
            try:
                for i in range(100):
                    results.file_hashes[os.urandom(40_000).hex(), i, i] = "x"
            except StoreError as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            results.file_hashes["last", 1, 1] = "x"
            saved = i + 2
        with Store(sys.argv[1]) as results:
            print(len(results.file_hashes) == saved, repr(results.notice))
        """
    out, errors = python(program, tmp_path / "sfn.duckdb").communicate(timeout=120)
    assert errors == ""
    message, after = out.splitlines()
    assert "disk is full" in message
    assert "kept" in message
    assert after == "True ''"


# Death


def test_what_was_saved_survives_a_kill(tmp_path):
    path = tmp_path / "sfn.duckdb"
    program = """
        import sys
        from sfn import delta
        from sfn.store import Store
        import torch
        results = Store(sys.argv[1])
        for i in range(10_000):
            a = torch.ones(8)
            one = delta.measure(f"t{i}", [a], [a + i], shape=(8,), dtypes=("F32", "F32"))
            results.save_delta("pair", one)
            print(i, flush=True)
        """
    scan = python(program, path)
    for line in scan.stdout:
        if int(line) == 20:
            scan.send_signal(signal.SIGKILL)
            break
    said = 20 + len(scan.communicate(timeout=60)[0].splitlines())
    assert scan.returncode == -signal.SIGKILL
    with Store(path) as results:
        found = results.deltas("pair")
        assert results.notice == ""
    assert [d.name for d in found] == [f"t{i}" for i in range(len(found))]
    assert len(found) in (said + 1, said + 2)  # the last one may have been saved and not said
    assert [d.max_abs_shift for d in found] == list(range(len(found)))
    assert all(d.histogram.total == d.histogram_paper.total == 8 for d in found)


# Cost


def test_the_store_is_light(tmp_path):
    """The first page opens it: what is heavy comes with the first table, not before."""
    program = """
        import sys
        import sfn.store
        print([name for name in ("duckdb", "pandas", "numpy", "torch", "pyarrow") if name in sys.modules])
        with sfn.store.Store(sys.argv[1]) as results:
            results.pairs()
        print([name for name in ("pandas", "numpy", "torch", "pyarrow") if name in sys.modules])
        """
    out, errors = python(program, tmp_path / "sfn.duckdb").communicate(timeout=60)
    assert out.splitlines() == ["[]", "[]"], errors


def test_opening_a_filled_store_is_quick(tmp_path):
    path = filled(tmp_path / "sfn.duckdb", 50)
    began = time.perf_counter()
    Store(path).close()
    assert time.perf_counter() - began < 2
