"""Every result that outlives a page: what is kept in one DuckDB file, and how it is found again. Nothing is computed.

All queries are here; the file itself and its schema are `sfn.store.file`'s. Knows plain records (`sfn.records`) and
errors, no checkpoint and no page. One process holds the file at a time; inside it a `Store` may be used from any number
of threads.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sfn.errors import StoreError
from sfn.records import Generation, Histogram, HistogramForm, Question, Sampling, TensorDelta
from sfn.store.file import explain, open_file, unusable

if TYPE_CHECKING:
    import duckdb
    import pandas

FileKey = tuple[str, int, int]
Statement = tuple[str, Sequence[object]]

EXPORT_FORMATS = ("csv", "parquet", "json")
ORDERS: Mapping[str, str] = {
    "newest": "created_at DESC, id DESC",
    "oldest": "created_at, id",
    "longest": "n_tokens DESC, id DESC",
    "shortest": "n_tokens, id",
}

_DELTA_COLUMNS = tuple(f.name for f in fields(TensorDelta) if not f.name.startswith("histogram"))
_QUESTION_COLUMNS = ("pair_key", "plan_key", "recipe", "prompt", "mode", "tokenizer")
_SAMPLING_COLUMNS = tuple(f.name for f in fields(Sampling))
_ENGINE_COLUMNS = ("engine", "engine_version", "device", "dtype")
_ANSWER_COLUMNS = tuple(f.name for f in fields(Generation) if f.name not in ("question", "created_at"))
_GENERATION_COLUMNS = (
    "created_at", *_QUESTION_COLUMNS, *_SAMPLING_COLUMNS, *_ENGINE_COLUMNS, *_ANSWER_COLUMNS,
)  # fmt: skip
_TOKENS_PER_S = """CASE WHEN n_tokens > 1 AND elapsed_s > first_token_s
    THEN (n_tokens - 1) / (elapsed_s - first_token_s) ELSE 0 END AS tokens_per_s"""

# Embeddings, layers from the first to the last, the norm after them, the head; in a layer as they were first saved,
# which is the order of the scan.
_ANATOMICAL = """CASE WHEN layer IS NOT NULL THEN 1 WHEN block = 'embedding' THEN 0 WHEN block = 'norm' THEN 2
    WHEN block = 'head' THEN 3 ELSE 4 END, layer, number"""


class Side(Protocol):
    """What the store keeps of one side of a pair; a `sfn.checkpoints.Checkpoint` is one."""

    @property
    def label(self) -> str: ...
    @property
    def folder(self) -> object: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True, slots=True)
class SavedPair:
    """A pair that was looked at. fingerprints: content identities ("" where unknown); summary: what its page showed."""

    key: str
    a_label: str
    b_label: str
    a_folder: str
    b_folder: str
    a_fingerprint: str
    b_fingerprint: str
    summary: dict[str, Any]
    saved_at: datetime


@dataclass(frozen=True, slots=True)
class SavedRecipe:
    """A recipe that was used on a pair: its canonical text and the key of the weights it makes. saved_at: last use."""

    text: str
    plan_key: str
    pair_key: str
    saved_at: datetime


def cache_folder() -> Path:
    """Where SfN writes: the folder that SFN_CACHE names, otherwise `cache/` of the project."""
    named = os.environ.get("SFN_CACHE", "").strip()
    return Path(named).expanduser() if named else Path(__file__).resolve().parents[2] / "cache"


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
    """

    def __init__(self, path: str | Path | None = None) -> None:
        """Open `path` (default: `default_path()`), creating or migrating it as needed.

        Raises StoreError when another process holds it, a newer SfN wrote it, or it cannot be read or written. A
        damaged file is renamed, never deleted, and a fresh one opened in its place; `notice` then says so.
        """
        self.path = Path(path) if path is not None else default_path()
        self.notice = ""
        self.file_hashes: MutableMapping[FileKey, str] = FileHashes(self)
        self._state = threading.RLock()  # guards _connection and _closed
        self._writing = threading.Lock()  # one writer at a time: DuckDB fails, not waits, when two touch the same row
        self._closed = False
        self._connection: duckdb.DuckDBPyConnection | None = self._open()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Write everything into the one file and let go of it; may be called twice."""
        with self._writing, self._state:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # Pairs

    def save_pair(self, key: str, a: Side | str, b: Side | str, summary: Mapping[str, Any]) -> None:
        """Remember the pair `key`; `summary` must be JSON. A side given as a string is a label alone."""
        row = (key, *_side(a), *_side(b), json.dumps(summary, ensure_ascii=False), _utc_now())
        self._write((_upsert("pairs", [f.name for f in fields(SavedPair)], ["key"]), _interleave_sides(row)))

    def pairs(self) -> list[SavedPair]:
        """Every pair that was saved, the newest first."""
        return [_saved_pair(row) for row in self._read("SELECT * FROM pairs ORDER BY saved_at DESC, key")]

    def pair(self, key: str) -> SavedPair | None:
        """The pair saved under `key`, if there is one."""
        rows = self._read("SELECT * FROM pairs WHERE key = ?", [key])
        return _saved_pair(rows[0]) if rows else None

    # Deltas

    def save_delta(self, pair_key: str, delta: TensorDelta) -> None:
        """Keep one tensor's figures and both its histograms, in place of what was there; durable on return."""
        figures = [list(v) if isinstance(v := getattr(delta, c), tuple) else v for c in _DELTA_COLUMNS]
        columns = ("pair_key", *_DELTA_COLUMNS, "saved_at")
        statements = [(_upsert("deltas", columns, ["pair_key", "name"]), [pair_key, *figures, _utc_now()])]
        for h in (delta.histogram, delta.histogram_paper):
            row = [pair_key, delta.name, h.form, list(h.inner), h.below, h.above, h.zeros, h.nonfinite]
            columns = ("pair_key", "name", "form", "counts", "below", "above", "zeros", "nonfinite")
            statements.append((_upsert("histograms", columns, ["pair_key", "name", "form"]), row))
        self._write(*statements)

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

    def delta_table(self, pair_key: str) -> pandas.DataFrame:
        """One row per scanned tensor, in the order of `deltas`: every field of TensorDelta but the histograms.

        `shape` is text ("128 × 384"); `layer` and `expert` are whole numbers that may be missing (Int32).
        """
        table = self._frame(
            f"SELECT {', '.join(_DELTA_COLUMNS)} FROM deltas WHERE pair_key = ? ORDER BY {_ANATOMICAL}", [pair_key]
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
        figures = ", ".join(f"d.{column}" for column in _DELTA_COLUMNS)
        counts = ", ".join(f"{t}.{c}" for t in "sp" for c in ("form", "counts", "below", "above", "zeros", "nonfinite"))
        rows = self._read(
            f"""SELECT {figures}, {counts} FROM deltas d
            JOIN histograms s ON s.pair_key = d.pair_key AND s.name = d.name AND s.form = 'script'
            JOIN histograms p ON p.pair_key = d.pair_key AND p.name = d.name AND p.form = 'paper'
            WHERE {where} ORDER BY {_ANATOMICAL}""",
            values,
        )
        return [_tensor_delta(row) for row in rows]

    # Recipes

    def save_recipe(self, text: str, plan_key: str, pair_key: str) -> None:
        """Remember that the recipe `text` (canonical) was used on the pair, and which weights it made."""
        columns = ("pair_key", "text", "plan_key", "saved_at")
        self._write((_upsert("recipes", columns, ["pair_key", "text"]), [pair_key, text, plan_key, _utc_now()]))

    def recipes(self, pair_key: str) -> list[SavedRecipe]:
        """Recipes that were used on the pair, the last used first."""
        rows = self._read(
            "SELECT text, plan_key, pair_key, saved_at FROM recipes WHERE pair_key = ? ORDER BY saved_at DESC, text",
            [pair_key],
        )
        return [SavedRecipe(*row[:-1], saved_at=_aware(row[-1])) for row in rows]

    # Generations

    def save_generation(self, generation: Generation) -> int:
        """Keep an answer and return its id. Nothing is replaced: running again adds another answer to the question."""
        columns = ("key", *_GENERATION_COLUMNS)
        sql = f"INSERT INTO generations ({', '.join(columns)}) VALUES ({_marks(columns)}) RETURNING id"
        return self._write((sql, [generation.question.key, *_generation_row(generation)]))[0][0]

    def find_generation(self, key: str) -> Generation | None:
        """The newest finished answer to the question of that `Question.key`; a cancelled one is never served."""
        return self._generation("key = ? AND finish <> 'cancelled' ORDER BY created_at DESC, id DESC LIMIT 1", key)

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
        return _file_bytes(table, format)

    def _generation(self, where: str, value: object) -> Generation | None:
        rows = self._read(f"SELECT {', '.join(_GENERATION_COLUMNS)} FROM generations WHERE {where}", [value])
        return _generation_of(dict(zip(_GENERATION_COLUMNS, rows[0], strict=True))) if rows else None

    # The connection

    def _read(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            return cursor.execute(sql, [_bindable(v) for v in values]).fetchall()

    def _frame(self, sql: str, values: Sequence[object] = ()) -> pandas.DataFrame:
        with self._cursor() as cursor:
            cursor.execute(sql, [_bindable(v) for v in values])
            texts = [name for name, kind, *_ in cursor.description if kind == "VARCHAR"]
            return cursor.df().astype(dict.fromkeys(texts, "str"))  # an empty column would come as `object`

    def _write(self, *statements: Statement) -> list[tuple[Any, ...]]:
        """All statements in one transaction; what the last of them returns."""
        with self._writing, self._cursor() as cursor:
            cursor.begin()
            for sql, values in statements:
                cursor.execute(sql, [_bindable(v) for v in values])
            rows = cursor.fetchall()
            cursor.commit()
            return rows

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of the caller's own; closing it undoes a transaction that did not reach its end."""
        import duckdb

        with self._state:
            if self._closed:
                raise StoreError(f"The results database {self.path} was closed; open it again to use it.")
            if self._connection is None:
                self._connection = self._open()
            connection = self._connection
            cursor = connection.cursor()
        try:
            yield cursor
        except duckdb.Error as error:
            if unusable(error):
                self._drop(connection)
            raise explain(error, self.path) from error
        finally:
            cursor.close()

    def _drop(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Let go of a connection that DuckDB gave up, so that the next call opens (and checks) the file anew."""
        with self._state:
            if self._connection is connection:
                self._connection = None
            connection.close()

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
        self._store._write((_upsert("file_hashes", columns, columns[:3]), [*_file_key(key), sha256]))

    def __delitem__(self, key: FileKey) -> None:
        sql = "DELETE FROM file_hashes WHERE path = ? AND size_bytes = ? AND mtime_ns = ? RETURNING path"
        if not self._store._write((sql, _file_key(key))):
            raise KeyError(key)

    def __iter__(self) -> Iterator[FileKey]:
        return iter(self._store._read("SELECT path, size_bytes, mtime_ns FROM file_hashes ORDER BY ALL"))

    def __len__(self) -> int:
        return self._store._read("SELECT count(*) FROM file_hashes")[0][0]


# Rows and records


def _upsert(table: str, columns: Sequence[str], keys: Sequence[str]) -> str:
    others = [column for column in columns if column not in keys]
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({_marks(columns)}) ON CONFLICT ({', '.join(keys)}) "
        f"DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in others)}"
    )


def _marks(columns: Sequence[str]) -> str:
    return ", ".join("?" for _ in columns)


def _bindable(value: object) -> object:
    """UTC without its zone (DuckDB's zoned times need pytz); text with nothing that UTF-8 cannot hold."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return [_bindable(v) for v in value] if isinstance(value, (list, tuple)) else value


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC)


def _side(side: Side | str) -> tuple[str, str, str]:
    return (side, "", "") if isinstance(side, str) else (side.label, str(side.folder), side.fingerprint)


def _interleave_sides(row: Sequence[object]) -> list[object]:
    """key, (label, folder, fingerprint) of A, the same of B, ... -> the order of SavedPair's fields."""
    key, a_label, a_folder, a_fingerprint, b_label, b_folder, b_fingerprint, *rest = row
    return [key, a_label, b_label, a_folder, b_folder, a_fingerprint, b_fingerprint, *rest]


def _saved_pair(row: Sequence[Any]) -> SavedPair:
    *texts, summary, saved_at = row
    return SavedPair(*texts, summary=json.loads(summary), saved_at=_aware(saved_at))


def _tensor_delta(row: Sequence[Any]) -> TensorDelta:
    width = len(_DELTA_COLUMNS)
    figures = dict(zip(_DELTA_COLUMNS, row[:width], strict=True))
    figures["shape"] = tuple(figures["shape"])
    script, paper = (
        Histogram(form, tuple(counts), below, above, zeros, nonfinite)
        for form, counts, below, above, zeros, nonfinite in (row[width : width + 6], row[width + 6 :])
    )
    return TensorDelta(**figures, histogram=script, histogram_paper=paper)


def _generation_row(generation: Generation) -> list[object]:
    question = generation.question
    sources = (
        ((generation,), ("created_at",)),
        ((question,), _QUESTION_COLUMNS),
        ((question.sampling,), _SAMPLING_COLUMNS),
        ((question,), _ENGINE_COLUMNS),
        ((generation,), _ANSWER_COLUMNS),
    )
    return [getattr(record, column) for (record,), columns in sources for column in columns]


def _generation_of(row: Mapping[str, Any]) -> Generation:
    sampling = {column: row[column] for column in _SAMPLING_COLUMNS} | {"stop": tuple(row["stop"])}
    question = {column: row[column] for column in (*_QUESTION_COLUMNS, *_ENGINE_COLUMNS)}
    answer = {column: row[column] for column in _ANSWER_COLUMNS}
    asked = Question(**question, sampling=Sampling(**sampling))
    return Generation(question=asked, created_at=_aware(row["created_at"]), **answer)


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
    return f"SELECT id, {', '.join(_GENERATION_COLUMNS)}, {_TOKENS_PER_S} FROM generations WHERE {where}"


def _utc_column(table: pandas.DataFrame) -> pandas.DataFrame:
    table["created_at"] = table["created_at"].dt.tz_localize("UTC")
    return table


def _file_bytes(table: pandas.DataFrame, format: str) -> bytes:
    """A table of generations as a file; nothing is written to disk."""
    if format == "parquet":
        return table.to_parquet(engine="pyarrow", index=False)
    table["created_at"] = [moment.isoformat() for moment in table["created_at"]]
    table["stop"] = [list(stop) for stop in table["stop"]]
    if format == "csv":
        table["stop"] = [json.dumps(stop, ensure_ascii=False) for stop in table["stop"]]
        return table.to_csv(index=False).encode()
    rows = [
        {name: None if value != value else value for name, value in row.items()}  # only NaN differs from itself
        for row in table.to_dict("records")
    ]
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def _file_key(key: FileKey) -> list[object]:
    path, size_bytes, mtime_ns = key
    return [str(path), size_bytes, mtime_ns]
