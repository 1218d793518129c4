"""Every result that outlives a page: what is kept in one DuckDB file, and how it is found again. Nothing is computed.

All queries are here, those of sweeps in `sfn.store.sweep_queries`; the file itself and its schema are
`sfn.store.file`'s. Knows plain records (`sfn.records`) and errors, no checkpoint and no page. One process holds the
file at a time; inside it a `Store` may be used from any number of threads.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sfn.errors import StoreError
from sfn.places import cache_folder
from sfn.records import Generation, HistogramForm, Question, TensorDelta
from sfn.store.file import explain, open_file, unusable
from sfn.store.rows import (
    DELTA_COLUMNS,
    GENERATION_COLUMNS,
    HISTOGRAM_COLUMNS,
    SavedPair,
    SavedRecipe,
    Side,
    aware,
    bindable,
    delta_row,
    file_bytes,
    generation_of,
    generation_row,
    histogram_rows,
    pair_row,
    saved_pair,
    tensor_delta,
    utc_now,
)
from sfn.store.sweep_queries import Pace, SavedSweep, SweepShelf

if TYPE_CHECKING:
    import duckdb
    import pandas

__all__ = [
    "EXPORT_FORMATS",
    "ORDERS",
    "FileHashes",
    "Pace",
    "SavedPair",
    "SavedRecipe",
    "SavedSweep",
    "Store",
    "SweepShelf",
    "cache_folder",
    "default_path",
    "file_bytes",
]

FileKey = tuple[str, int, int]

EXPORT_FORMATS = ("csv", "parquet", "json")
ORDERS: Mapping[str, str] = {
    "newest": "created_at DESC, id DESC",
    "oldest": "created_at, id",
    "longest": "n_tokens DESC, id DESC",
    "shortest": "n_tokens, id",
}

_PAIR_COLUMNS = tuple(f.name for f in fields(SavedPair))
_SELECT_PAIRS = f"SELECT {', '.join(_PAIR_COLUMNS)} FROM pairs"
_TOKENS_PER_S = """CASE WHEN n_tokens > 1 AND elapsed_s > first_token_s
    THEN (n_tokens - 1) / (elapsed_s - first_token_s) ELSE 0 END AS tokens_per_s"""

# Embeddings, layers from the first to the last, the norm after them, the head; in a layer as they were first saved,
# which is the order of the scan.
_ANATOMICAL = """CASE WHEN layer IS NOT NULL THEN 1 WHEN block = 'embedding' THEN 0 WHEN block = 'norm' THEN 2
    WHEN block = 'head' THEN 3 ELSE 4 END, layer, number"""


def default_path() -> Path:
    """The file of results: `sfn.duckdb` in `cache_folder()`."""
    return cache_folder() / "sfn.duckdb"


class Store:
    """Results in one DuckDB file; a context manager; safe to use from many threads.

    Every write is one transaction that is on disk when the call returns, so a killed process loses nothing that was
    saved. Times are kept in UTC.

    Attributes:
        path: the file. notice: "" or one sentence for the page, when a damaged file was set aside on opening.
        file_hashes: mapping (path, size in bytes, mtime in ns) -> SHA-256 hex, kept in the same file.
        sweeps: the sweeps that were begun, and where each of their cells stands.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        """Open `path` (default: `default_path()`), creating or migrating it as needed.

        Raises StoreError when another process holds it, a newer SfN wrote it, or it cannot be read or written. A
        damaged file is renamed, never deleted, and a fresh one opened in its place; `notice` then says so.
        """
        self.path = Path(path) if path is not None else default_path()
        self.notice = ""
        self.file_hashes: MutableMapping[FileKey, str] = FileHashes(self)
        self.sweeps = SweepShelf(self)
        self._state = threading.Condition()  # guards the four below
        self._in_use = 0  # cursors: closing the connection would break them, so it waits for them
        self._broken = self._closed = False
        self._connection: duckdb.DuckDBPyConnection | None = self._open()
        self._writing = threading.Lock()  # one writer at a time: DuckDB fails, not waits, when two touch the same row

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Write everything into the one file and let go of it, once running calls have ended; may be called twice."""
        with self._state:
            self._closed = True
            self._let_go()

    # Pairs

    def save_pair(self, key: str, a: Side | str, b: Side | str, summary: Mapping[str, Any]) -> None:
        """Remember the pair `key`; `summary` must be JSON. A side given as a string is a label alone."""
        self._write(_upsert("pairs", _PAIR_COLUMNS, ["key"]), pair_row(key, a, b, summary))

    def pairs(self) -> list[SavedPair]:
        """Every pair that was saved, the newest first."""
        return [saved_pair(row) for row in self._read(f"{_SELECT_PAIRS} ORDER BY saved_at DESC, key")]

    def pair(self, key: str) -> SavedPair | None:
        """The pair saved under `key`, if there is one."""
        rows = self._read(f"{_SELECT_PAIRS} WHERE key = ?", [key])
        return saved_pair(rows[0]) if rows else None

    # Deltas

    def save_delta(self, pair_key: str, delta: TensorDelta) -> None:
        """Keep one tensor's figures and both its histograms, in place of what was there; durable on return."""
        columns = ("pair_key", *DELTA_COLUMNS, "saved_at")
        with self._transaction() as cursor:
            known = cursor.execute("SELECT 1 FROM deltas WHERE pair_key = ? AND name = ?", [pair_key, delta.name])
            write = _upsert if known.fetchone() else _insert  # which takes a third of the time
            figures, counts = delta_row(pair_key, delta), histogram_rows(pair_key, delta)
            cursor.execute(write("deltas", columns, columns[:2]), [bindable(v) for v in figures])
            sql = write("histograms", HISTOGRAM_COLUMNS, HISTOGRAM_COLUMNS[:3], rows=2)
            cursor.execute(sql, [bindable(v) for v in counts])

    def deltas(self, pair_key: str) -> list[TensorDelta]:
        """Every tensor of the pair that was scanned so far: embeddings, layers in order, last norm, head."""
        return self._deltas("d.pair_key = ?", [pair_key])

    def delta(self, pair_key: str, name: str) -> TensorDelta | None:
        """One tensor's result, if it was scanned."""
        found = self._deltas("d.pair_key = ? AND d.name = ?", [pair_key, name])
        return found[0] if found else None

    def missing(self, pair_key: str, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names`, in their order, that have no result yet."""
        there = {name for (name,) in self._read("SELECT name FROM deltas WHERE pair_key = ?", [pair_key])}
        return tuple(name for name in names if name not in there)

    def measured(self) -> dict[str, int]:
        """Key of each pair of which tensors were measured -> how many."""
        return dict(self._read("SELECT pair_key, count(*) FROM deltas GROUP BY pair_key"))

    def delta_table(self, pair_key: str) -> pandas.DataFrame:
        """One row per scanned tensor, in the order of `deltas`: every field of TensorDelta but the histograms.

        `shape` is text ("128 × 384"); `layer` and `expert` are whole numbers that may be missing (Int32).
        """
        table = self._frame(
            f"SELECT {', '.join(DELTA_COLUMNS)} FROM deltas WHERE pair_key = ? ORDER BY {_ANATOMICAL}", [pair_key]
        )
        table["shape"] = [" × ".join(str(size) for size in shape) for shape in table["shape"]]
        return table.astype({"shape": "str", "layer": "Int32", "expert": "Int32"})

    def histograms(
        self,
        pair_key: str,
        modules: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        form: HistogramForm = "script",
    ) -> pandas.DataFrame:
        """One row per scanned tensor: name, layer, block, module, parameter, expert, n, counts, below, above, zeros,
        nonfinite. `counts` holds 200 numbers over equal bins on [-1, 1]. `modules` and `layers` narrow it; None is all.
        """
        where, values = ["d.pair_key = ?", "h.form = ?"], [pair_key, form]
        for column, wanted in (("d.module", modules), ("d.layer", layers)):
            if wanted is not None:
                where.append(f"list_contains(?, {column})")
                values.append(list(wanted))
        table = self._frame(
            f"""SELECT d.name, d.layer, d.block, d.module, d.parameter, d.expert, d.n, h.counts, h.below, h.above,
            h.zeros, h.nonfinite FROM deltas d JOIN histograms h USING (pair_key, name)
            WHERE {" AND ".join(where)} ORDER BY {_ANATOMICAL}""",
            values,
        )
        return table.astype({"layer": "Int32", "expert": "Int32"})

    def _deltas(self, where: str, values: Sequence[object]) -> list[TensorDelta]:
        figures = ", ".join(f"d.{column}" for column in DELTA_COLUMNS)
        counts = ", ".join(f"{t}.{c}" for t in "sp" for c in HISTOGRAM_COLUMNS[2:])
        rows = self._read(
            f"""SELECT {figures}, {counts} FROM deltas d
            JOIN histograms s ON s.pair_key = d.pair_key AND s.name = d.name AND s.form = 'script'
            JOIN histograms p ON p.pair_key = d.pair_key AND p.name = d.name AND p.form = 'paper'
            WHERE {where} ORDER BY {_ANATOMICAL}""",
            values,
        )
        return [tensor_delta(row) for row in rows]

    # Looks: what is computed of one tensor beside its figures

    def save_look(self, pair_key: str, name: str, kind: str, settings: str, content: Mapping[str, Any]) -> None:
        """Keep a closer look at one tensor (`sfn.looks`), in place of what was there; `content` must be JSON."""
        columns = ("pair_key", "name", "kind", "settings", "content", "saved_at")
        values = [pair_key, name, kind, settings, json.dumps(content), utc_now()]
        self._write(_upsert("looks", columns, columns[:4]), values)

    def look(self, pair_key: str, name: str, kind: str, settings: str) -> dict[str, Any] | None:
        """The content that was saved so, if there is any."""
        where = "pair_key = ? AND name = ? AND kind = ? AND settings = ?"
        rows = self._read(f"SELECT content FROM looks WHERE {where}", [pair_key, name, kind, settings])
        return json.loads(rows[0][0]) if rows else None

    def looked_at(self, pair_key: str, kind: str, settings: str) -> frozenset[str]:
        """Names of the pair's tensors that have such a look."""
        where = "pair_key = ? AND kind = ? AND settings = ?"
        return frozenset(
            name for (name,) in self._read(f"SELECT name FROM looks WHERE {where}", [pair_key, kind, settings])
        )

    # Recipes

    def save_recipe(self, text: str, plan_key: str, pair_key: str) -> None:
        """Remember that the recipe `text` (canonical) was used on the pair, and which weights it made."""
        columns = ("pair_key", "text", "plan_key", "saved_at")
        self._write(_upsert("recipes", columns, columns[:2]), [pair_key, text, plan_key, utc_now()])

    def recipes(self, pair_key: str) -> list[SavedRecipe]:
        """Recipes that were used on the pair, the last used first."""
        rows = self._read(
            "SELECT text, plan_key, pair_key, saved_at FROM recipes WHERE pair_key = ? ORDER BY saved_at DESC, text",
            [pair_key],
        )
        return [SavedRecipe(*row[:-1], saved_at=aware(row[-1])) for row in rows]

    # Generations

    def save_generation(self, generation: Generation) -> int:
        """Keep an answer and return its id. Nothing is replaced: running again adds another answer to the question."""
        columns = ("key", *GENERATION_COLUMNS)
        values = [generation.question.key, *generation_row(generation)]
        return self._write(f"{_insert('generations', columns)} RETURNING id", values)[0][0]

    def find_generation(self, key: str) -> Generation | None:
        """The newest finished answer to the question of that `Question.key`; a cancelled one is never served."""
        return self.find_generations([key]).get(key)

    def find_generations(self, keys: Sequence[str]) -> dict[str, Generation]:
        """`find_generation` of many questions at once; keys that have no answer are left out."""
        found = self._finished({"key": keys})
        return {generation.question.key: generation for generation in found}

    def find_elsewhere(self, questions: Sequence[Question]) -> dict[str, Generation]:
        """Key of a question -> the newest finished answer to it by another engine, version, device or dtype, where
        there is one.

        Never a substitute for `find_generation`: whoever shows it says which engine it is from.
        """
        asked = {_anywhere(question): question.key for question in questions}
        of = {name: {getattr(question, name) for question in questions} for name in ("pair_key", "plan_key", "prompt")}
        found = self._finished(of | {"seed": {question.sampling.seed for question in questions}})
        keys = ((asked.get(_anywhere(each.question)), each) for each in found)
        return {key: each for key, each in keys if key is not None and key != each.question.key}

    def generation(self, id: int) -> Generation:
        """The answer of that id, cancelled or not. Raises StoreError where there is none."""
        found = self._generation("id = ?", id)
        if found is None:
            raise StoreError(f"There is no answer number {id} in {self.path}; the History page lists those there are.")
        return found

    def generations(
        self,
        search: str = "",
        *,
        pair_key: str | None = None,
        engine: str | None = None,
        mode: str | None = None,
        recipe: str | None = None,
        finish: str | None = None,
        limit: int | None = None,
        offset: int = 0,
        order: str = "newest",
    ) -> pandas.DataFrame:
        """Answers as a table: id, created_at (UTC), every field of Question, Sampling and Generation, tokens_per_s.

        `search` is a piece of the prompt, the text or the recipe, whatever the case of its letters; the others match
        exactly, None matches all (a recipe of "" is all A). `order`: one of `ORDERS`, else StoreError.
        """
        if order not in ORDERS:
            raise StoreError(f"Answers cannot be ordered by {order!r}; choose one of: {', '.join(ORDERS)}.")
        where, values = _matching(search, pair_key, engine, mode, recipe, finish)
        sql = f"{_select_generations(where)} ORDER BY {ORDERS[order]} LIMIT ? OFFSET ?"
        return _utc_column(self._frame(sql, [*values, limit, offset]))

    def count_generations(
        self,
        search: str = "",
        *,
        pair_key: str | None = None,
        engine: str | None = None,
        mode: str | None = None,
        recipe: str | None = None,
        finish: str | None = None,
    ) -> int:
        """How many answers `generations` would list without a limit."""
        where, values = _matching(search, pair_key, engine, mode, recipe, finish)
        return self._read(f"SELECT count(*) FROM generations WHERE {where}", values)[0][0]

    def export(self, format: Literal["csv", "parquet", "json"], ids: Sequence[int] | None = None) -> bytes:
        """Answers as the bytes of a file, the columns of `generations`, the oldest first. ids None: all of them.

        Times are UTC (ISO 8601 in CSV and JSON); stop strings are a JSON list in CSV; NaN is null in JSON. Raises
        StoreError for an unknown format or an id that is not there.
        """
        if format not in EXPORT_FORMATS:
            raise StoreError(f"Answers cannot be saved as {format!r}; choose one of: {', '.join(EXPORT_FORMATS)}.")
        where, values = ("true", []) if ids is None else ("list_contains(?, id)", [list(ids)])
        table = _utc_column(self._frame(f"{_select_generations(where)} ORDER BY {ORDERS['oldest']}", values))
        absent = sorted(set(ids or ()) - set(table["id"].tolist()))
        if absent:
            raise StoreError(f"There is no answer number {', '.join(map(str, absent))} in {self.path} to save.")
        return file_bytes(table, format)

    def _generation(self, where: str, *values: object) -> Generation | None:
        rows = self._read(f"SELECT {', '.join(GENERATION_COLUMNS)} FROM generations WHERE {where}", values)
        return generation_of(rows[0]) if rows else None

    def _finished(self, columns: Mapping[str, Collection[object]]) -> list[Generation]:
        """Finished answers whose columns have one of these values each, the newest last."""
        if not all(columns.values()):
            return []
        where = " AND ".join(f"{name} IN ({', '.join('?' * len(values))})" for name, values in columns.items())
        sql = f"SELECT {', '.join(GENERATION_COLUMNS)} FROM generations WHERE {where} AND finish <> 'cancelled'"
        rows = self._read(f"{sql} ORDER BY created_at, id", [value for values in columns.values() for value in values])
        return [generation_of(row) for row in rows]

    # The connection

    def _read(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            return cursor.execute(sql, [bindable(v) for v in values]).fetchall()

    def _frame(self, sql: str, values: Sequence[object] = ()) -> pandas.DataFrame:
        with self._cursor() as cursor:
            cursor.execute(sql, [bindable(v) for v in values])
            texts = [name for name, kind, *_ in cursor.description if kind == "VARCHAR"]
            return cursor.df().astype(dict.fromkeys(texts, "str"))  # an empty column would come as `object`

    def _write(self, sql: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._transaction() as cursor:
            return cursor.execute(sql, [bindable(v) for v in values]).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """All that is done in it is kept together, or nothing of it; no other thread writes meanwhile."""
        with self._writing, self._cursor() as cursor:
            cursor.begin()
            yield cursor
            cursor.commit()

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of the caller's own; closing it undoes a transaction that did not reach its end."""
        import duckdb

        with self._state:
            cursor = self._connected().cursor()
            self._in_use += 1
        try:
            yield cursor
        except duckdb.Error as error:
            self._broken = self._broken or unusable(error)
            raise explain(error, self.path) from error
        finally:
            cursor.close()
            with self._state:
                self._in_use -= 1
                self._state.notify_all()

    def _connected(self) -> duckdb.DuckDBPyConnection:
        """The connection; opened (and the file checked) anew if DuckDB gave up the last one."""
        if self._broken:
            self._let_go()
        if self._closed:
            raise StoreError(f"The results database {self.path} was closed; open it again to use it.")
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    def _let_go(self) -> None:
        self._state.wait_for(lambda: not self._in_use)
        if self._connection is not None:
            self._connection.close()
        self._connection, self._broken = None, False

    def _open(self) -> duckdb.DuckDBPyConnection:
        connection, notice = open_file(self.path)
        self.notice = notice or self.notice
        return connection


class FileHashes(MutableMapping[FileKey, str]):
    """(path, size in bytes, mtime in ns) -> SHA-256 hex, in the store: a file that did not change is hashed once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, key: FileKey) -> str:
        sql = "SELECT sha256 FROM file_hashes WHERE path = ? AND size_bytes = ? AND mtime_ns = ?"
        rows = self._store._read(sql, _file_key(key))
        if not rows:
            raise KeyError(key)
        return rows[0][0]

    def __setitem__(self, key: FileKey, sha256: str) -> None:
        columns = ("path", "size_bytes", "mtime_ns", "sha256")
        self._store._write(_upsert("file_hashes", columns, columns[:3]), [*_file_key(key), sha256])

    def __delitem__(self, key: FileKey) -> None:
        sql = "DELETE FROM file_hashes WHERE path = ? AND size_bytes = ? AND mtime_ns = ? RETURNING path"
        if not self._store._write(sql, _file_key(key)):
            raise KeyError(key)

    def __iter__(self) -> Iterator[FileKey]:
        return iter(self._store._read("SELECT path, size_bytes, mtime_ns FROM file_hashes ORDER BY ALL"))

    def __len__(self) -> int:
        return self._store._read("SELECT count(*) FROM file_hashes")[0][0]


# Statements


def _insert(table: str, columns: Sequence[str], keys: Sequence[str] = (), rows: int = 1) -> str:
    """INSERT of `rows` rows; `keys` is for its likeness to `_upsert`."""
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([f'({_marks(columns)})'] * rows)}"


def _upsert(table: str, columns: Sequence[str], keys: Sequence[str], rows: int = 1) -> str:
    """The same, in place of the row with the same `keys` where there is one."""
    others = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in keys)
    return f"{_insert(table, columns, rows=rows)} ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {others}"


def _marks(columns: Sequence[str]) -> str:
    return ", ".join("?" for _ in columns)


def _anywhere(question: Question) -> Question:
    """The question without its recipe's spelling and without what would answer it: equal for all engines."""
    return replace(question, recipe="", engine="", engine_version="", device="", dtype="")


def _matching(
    search: str, pair_key: str | None, engine: str | None, mode: str | None, recipe: str | None, finish: str | None
) -> tuple[str, list[object]]:
    """The condition of a search, and the values that it binds."""
    where: list[str] = ["true"]
    values: list[object] = []
    if search.strip():  # `contains` takes the text as it is: % and _ mean themselves
        columns = ("prompt", "text", "recipe")
        where.append(f"({' OR '.join(f'contains(lower({column}), lower(?))' for column in columns)})")
        values += [search.strip()] * len(columns)
    exact = {"pair_key": pair_key, "engine": engine, "mode": mode, "recipe": recipe, "finish": finish}
    for column, value in exact.items():
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    return " AND ".join(where), values


def _select_generations(where: str) -> str:
    return f"SELECT id, {', '.join(GENERATION_COLUMNS)}, {_TOKENS_PER_S} FROM generations WHERE {where}"


def _utc_column(table: pandas.DataFrame) -> pandas.DataFrame:
    table["created_at"] = table["created_at"].dt.tz_localize("UTC")
    return table


def _file_key(key: FileKey) -> list[object]:
    path, size_bytes, mtime_ns = key
    return [str(path), size_bytes, mtime_ns]
