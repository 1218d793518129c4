"""The file that the store keeps: opening it, its schema and migrations, and what its errors mean to a person.

Holds no query; `sfn.store` does. Together they are the only SQL.
"""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sfn.errors import StoreError

if TYPE_CHECKING:
    import duckdb

# One script for each version of the schema, oldest first; a script that was released is never edited, only followed.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE pairs (
        key VARCHAR PRIMARY KEY, a_label VARCHAR NOT NULL, b_label VARCHAR NOT NULL, a_folder VARCHAR NOT NULL,
        b_folder VARCHAR NOT NULL, a_fingerprint VARCHAR NOT NULL, b_fingerprint VARCHAR NOT NULL,
        summary VARCHAR NOT NULL, saved_at TIMESTAMP NOT NULL
    );
    CREATE SEQUENCE delta_number;
    CREATE TABLE deltas (
        pair_key VARCHAR, name VARCHAR, number BIGINT DEFAULT nextval('delta_number'), layer INTEGER,
        block VARCHAR NOT NULL, module VARCHAR NOT NULL, parameter VARCHAR NOT NULL, expert INTEGER,
        shape BIGINT[] NOT NULL, n BIGINT NOT NULL, dtype_a VARCHAR NOT NULL, dtype_b VARCHAR NOT NULL,
        l2_shift DOUBLE NOT NULL, rms_shift DOUBLE NOT NULL, relative_shift DOUBLE NOT NULL, cosine DOUBLE NOT NULL,
        changed_share DOUBLE NOT NULL, max_abs_shift DOUBLE NOT NULL, nonfinite BIGINT NOT NULL,
        saved_at TIMESTAMP NOT NULL, PRIMARY KEY (pair_key, name)
    );
    CREATE TABLE histograms (
        pair_key VARCHAR, name VARCHAR, form VARCHAR, counts BIGINT[] NOT NULL, below BIGINT NOT NULL,
        above BIGINT NOT NULL, zeros BIGINT NOT NULL, nonfinite BIGINT NOT NULL, PRIMARY KEY (pair_key, name, form)
    );
    CREATE TABLE recipes (
        pair_key VARCHAR, text VARCHAR, plan_key VARCHAR NOT NULL, saved_at TIMESTAMP NOT NULL,
        PRIMARY KEY (pair_key, text)
    );
    CREATE SEQUENCE generation_id;
    CREATE TABLE generations (
        id BIGINT PRIMARY KEY DEFAULT nextval('generation_id'), key VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL,
        pair_key VARCHAR NOT NULL, plan_key VARCHAR NOT NULL, recipe VARCHAR NOT NULL, prompt VARCHAR NOT NULL,
        mode VARCHAR NOT NULL, tokenizer VARCHAR NOT NULL, max_tokens BIGINT NOT NULL, temperature DOUBLE NOT NULL,
        top_p DOUBLE NOT NULL, top_k BIGINT NOT NULL, seed BIGINT NOT NULL, stop VARCHAR[] NOT NULL,
        engine VARCHAR NOT NULL, engine_version VARCHAR NOT NULL, device VARCHAR NOT NULL, dtype VARCHAR NOT NULL,
        text VARCHAR NOT NULL, n_prompt_tokens BIGINT NOT NULL, n_tokens BIGINT NOT NULL, first_token_s DOUBLE NOT NULL,
        elapsed_s DOUBLE NOT NULL, finish VARCHAR NOT NULL, a_label VARCHAR NOT NULL, b_label VARCHAR NOT NULL,
        note VARCHAR NOT NULL
    );
    CREATE INDEX generations_by_key ON generations (key);
    CREATE TABLE file_hashes (
        path VARCHAR, size_bytes BIGINT, mtime_ns BIGINT, sha256 VARCHAR NOT NULL,
        PRIMARY KEY (path, size_bytes, mtime_ns)
    );
    """,
    """
    CREATE SEQUENCE sweep_id;
    CREATE TABLE sweeps (
        id BIGINT PRIMARY KEY DEFAULT nextval('sweep_id'), pair_key VARCHAR NOT NULL, title VARCHAR NOT NULL,
        definition VARCHAR NOT NULL, engine VARCHAR NOT NULL, engine_version VARCHAR NOT NULL, device VARCHAR NOT NULL,
        dtype VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL
    );
    CREATE TABLE sweep_cells (
        sweep_id BIGINT, at_row INTEGER, at_column INTEGER, recipe VARCHAR NOT NULL, alpha DOUBLE,
        question_key VARCHAR NOT NULL, problem VARCHAR NOT NULL, error VARCHAR NOT NULL, swap_s DOUBLE,
        PRIMARY KEY (sweep_id, at_row, at_column)
    );
    """,
    """
    CREATE TABLE looks (
        pair_key VARCHAR, name VARCHAR, kind VARCHAR, settings VARCHAR, content VARCHAR NOT NULL,
        saved_at TIMESTAMP NOT NULL, PRIMARY KEY (pair_key, name, kind, settings)
    );
    """,
)

# The file is shared with torch and an engine: the database stays small beside them, and never reaches for a network.
_SETTINGS = {
    "threads": 1,
    "memory_limit": "1GB",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
_HELD = re.compile(r"Conflicting lock is held in (?P<program>.+?) \(PID (?P<pid>\d+)\)")
_DAMAGE = re.compile(
    r"not a valid DuckDB database|Corrupt database|checksum|Could not read enough bytes|[Ff]ailed to deserialize"
    r"|[Ss]erialization Error|replaying WAL|INTERNAL Error",
)


class _DamagedFile(Exception):
    """The file cannot be read as a database, or not whole."""


def open_file(path: Path) -> tuple[duckdb.DuckDBPyConnection, str]:
    """A connection to the database at `path`, its schema up to date, and "" or one sentence for the page.

    Made where it does not exist, migrated where it is older (a copy is kept first). A damaged file is renamed, never
    deleted, and a fresh one opened; the sentence says so. Raises StoreError when another process holds the file, a
    newer SfN wrote it, or it cannot be read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The folder {path.parent} for results cannot be made ({error.strerror}); "
            "name one that can be written to with SFN_CACHE=/some/folder."
        ) from error
    try:
        return _migrated(_checked_connection(path), path), ""
    except _DamagedFile as damage:
        notice = _set_aside(path, str(damage))
    return _migrated(_checked_connection(path), path), notice


def _checked_connection(path: Path) -> duckdb.DuckDBPyConnection:
    """A connection to a file that was read through once: DuckDB checks a block only when it reads it."""
    import duckdb

    connection = None
    try:
        connection = duckdb.connect(str(path), config=_SETTINGS)
        for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall():
            connection.execute(f'SELECT bit_xor(hash(t)) FROM "{table}" t').fetchall()
        return connection
    except duckdb.Error as error:
        if connection is not None:
            connection.close()
        if _HELD.search(str(error)) is None and _DAMAGE.search(str(error)):
            raise _DamagedFile(_first_line(error)) from error
        raise explain(error, path) from error


def _migrated(connection: duckdb.DuckDBPyConnection, path: Path) -> duckdb.DuckDBPyConnection:
    """The connection, its schema brought up to the newest version; an existing file is copied before that."""
    import duckdb

    try:
        version = _schema_version(connection, path)
        if 0 < version < len(MIGRATIONS):
            connection.close()  # only a closed file is whole; and opening it twice would lose the lock on it
            _copy_before_migration(path, version)
            connection = duckdb.connect(str(path), config=_SETTINGS)
        if version < len(MIGRATIONS):
            _migrate(connection, version)
    except duckdb.Error as error:
        connection.close()
        raise explain(error, path) from error
    except StoreError:
        connection.close()
        raise
    return connection


def _schema_version(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """0 for a file without tables. Raises StoreError for a newer schema and for somebody else's database."""
    tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if not tables:
        return 0
    if "schema_version" not in tables:
        raise StoreError(
            f"The file {path} is a database that SfN did not make (it has the table {min(tables)!r}); "
            "move it elsewhere, or name another folder with SFN_CACHE=/some/folder."
        )
    (version,) = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError(
            f"The results in {path} were written by a newer SfN (schema {version}, this one knows up to "
            f"{len(MIGRATIONS)}); update SfN, or name another folder with SFN_CACHE=/some/folder."
        )
    return version


def _migrate(connection: duckdb.DuckDBPyConnection, version: int) -> None:
    """Run every migration after `version`, all in one transaction."""
    connection.begin()
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, applied_at TIMESTAMP)")
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.execute(script)
        connection.execute("INSERT INTO schema_version VALUES (?, ?)", [number, datetime.now(UTC).replace(tzinfo=None)])
    connection.commit()


def _copy_before_migration(path: Path, version: int) -> None:
    """Copy the closed file, and the log beside it where closing could not fold it in."""
    copy = _free_name(path, f"schema-{version}")
    try:
        shutil.copy2(path, copy)
        if _log(path).exists():
            shutil.copy2(_log(path), _log(copy))
    except OSError as error:
        raise StoreError(
            f"The results in {path} need a new schema, but the copy {copy} that is kept first cannot be written "
            f"({error.strerror}); make room there, then start again."
        ) from error


def _set_aside(path: Path, reason: str) -> str:
    """Rename a damaged file and its write-ahead log; the sentence that says so."""
    aside = _free_name(path, "damaged")
    try:
        path.rename(aside)
        if _log(path).exists():
            _log(path).rename(_log(aside))
    except OSError as error:
        raise StoreError(
            f"The results database {path} is damaged and cannot be set aside ({error.strerror}); move it away by hand."
        ) from error
    return (
        f"The results database was damaged ({reason}), so it was set aside as {aside} and an empty one was begun; "
        "nothing was deleted, and results are computed again when they are asked for."
    )


def _log(path: Path) -> Path:
    """DuckDB's write-ahead log of a file."""
    return path.with_name(path.name + ".wal")


def _free_name(path: Path, word: str) -> Path:
    """A name beside `path` that is not taken: sfn.duckdb.damaged-20250131T120000Z."""
    stem = f"{path.name}.{word}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    candidates = (path.with_name(stem if not i else f"{stem}-{i}") for i in range(1000))
    return next(name for name in candidates if not name.exists())


def explain(error: Exception, path: Path) -> StoreError:
    """What a DuckDB error means to a person, in one sentence."""
    text = _first_line(error)
    if held := _HELD.search(str(error)):
        return StoreError(
            f"The results in {path} are held by {_program(held['program'], int(held['pid']))}, and only one process "
            "can hold them at a time: use that one, end it, or give this one a folder of its own with "
            "SFN_CACHE=/some/folder."
        )
    if re.search(r"No space left|File too large|[Dd]isk (is )?full|quota exceeded", text):
        return StoreError(
            f"The results database {path} cannot grow because its disk is full ({text}); make room there and try "
            "again: what was saved before is kept."
        )
    if re.search(r"Permission denied|Read-only file system|Operation not permitted", text):
        return StoreError(
            f"The results database {path} cannot be written to ({text}); make it writable, or name another folder "
            "with SFN_CACHE=/some/folder."
        )
    if "version number" in text:
        return StoreError(
            f"The results in {path} were written by another version of DuckDB ({text}); install the version that "
            "SfN's requirements name, or name another folder with SFN_CACHE=/some/folder."
        )
    if _DAMAGE.search(text):
        return StoreError(
            f"The results database {path} is damaged ({text}); it is set aside, not deleted, and a fresh one is begun "
            "the next time it is used: try again."
        )
    return StoreError(f"The results database {path} refused ({text}).")


def _program(program: str, pid: int) -> str:
    """Name, process number and, where the system tells, command line of the process that holds the file."""
    name = Path(program).name
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = ""
    if len(command) > 100:
        command = command[:99] + "…"
    return f"{name} (process {pid}, started as “{command}”)" if command else f"{name} (process {pid})"


def unusable(error: Exception) -> bool:
    """Whether DuckDB will refuse everything on this connection from now on, or read damage again."""
    import duckdb

    return isinstance(error, duckdb.FatalException) or bool(_DAMAGE.search(str(error)))


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
