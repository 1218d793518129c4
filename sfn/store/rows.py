"""Records as rows of the database and back, and a table of answers as a file. No SQL, no connection."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from sfn.records import Generation, Histogram, Question, Sampling, TensorDelta

if TYPE_CHECKING:
    import pandas

DELTA_COLUMNS = tuple(f.name for f in fields(TensorDelta) if not f.name.startswith("histogram"))
HISTOGRAM_COLUMNS = ("pair_key", "name", "form", "counts", "below", "above", "zeros", "nonfinite")
_QUESTION_COLUMNS = ("pair_key", "plan_key", "recipe", "prompt", "mode", "tokenizer")
_SAMPLING_COLUMNS = tuple(f.name for f in fields(Sampling))
_ENGINE_COLUMNS = ("engine", "engine_version", "device", "dtype")
_ANSWER_COLUMNS = tuple(f.name for f in fields(Generation) if f.name not in ("question", "created_at"))
GENERATION_COLUMNS = (
    "created_at", *_QUESTION_COLUMNS, *_SAMPLING_COLUMNS, *_ENGINE_COLUMNS, *_ANSWER_COLUMNS,
)  # fmt: skip


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


def bindable(value: object) -> object:
    """UTC without its zone (DuckDB's zoned times need pytz); text with nothing that UTF-8 cannot hold."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, (list, tuple)):
        return [bindable(v) if isinstance(v, str) else v for v in value]
    return value


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def aware(moment: datetime) -> datetime:
    """A time of the database, which has no zone there, as the UTC that it is."""
    return moment.replace(tzinfo=UTC)


def pair_row(key: str, a: Side | str, b: Side | str, summary: Mapping[str, Any]) -> list[object]:
    """The values of SavedPair's fields, in their order. Raises TypeError where `summary` is not JSON."""
    sides = [
        (side, "", "") if isinstance(side, str) else (side.label, str(side.folder), side.fingerprint) for side in (a, b)
    ]
    return [
        key,
        *(value for both in zip(*sides, strict=True) for value in both),
        json.dumps(summary, ensure_ascii=False),
        utc_now(),
    ]


def saved_pair(row: Sequence[Any]) -> SavedPair:
    """A row of `pairs`, its columns those of SavedPair."""
    *texts, summary, saved_at = row
    return SavedPair(*texts, summary=json.loads(summary), saved_at=aware(saved_at))


def tensor_delta(row: Sequence[Any]) -> TensorDelta:
    """DELTA_COLUMNS, then form to nonfinite of both histograms."""
    width = len(DELTA_COLUMNS)
    figures = dict(zip(DELTA_COLUMNS, row[:width], strict=True))
    figures["shape"] = tuple(figures["shape"])
    script, paper = (
        Histogram(form, tuple(counts), below, above, zeros, nonfinite)
        for form, counts, below, above, zeros, nonfinite in (row[width : width + 6], row[width + 6 :])
    )
    return TensorDelta(**figures, histogram=script, histogram_paper=paper)


def delta_row(pair_key: str, delta: TensorDelta) -> list[object]:
    """pair_key, DELTA_COLUMNS, saved_at."""
    return [pair_key, *(getattr(delta, column) for column in DELTA_COLUMNS), utc_now()]


def histogram_rows(pair_key: str, delta: TensorDelta) -> list[object]:
    """HISTOGRAM_COLUMNS of the one form and of the other, in one list."""
    return [
        value
        for h in (delta.histogram, delta.histogram_paper)
        for value in (pair_key, delta.name, h.form, h.inner, h.below, h.above, h.zeros, h.nonfinite)
    ]


def generation_row(generation: Generation) -> list[object]:
    """The values of GENERATION_COLUMNS."""
    question = generation.question
    parts = (
        (generation, ("created_at",)),
        (question, _QUESTION_COLUMNS),
        (question.sampling, _SAMPLING_COLUMNS),
        (question, _ENGINE_COLUMNS),
        (generation, _ANSWER_COLUMNS),
    )
    return [getattr(record, column) for record, columns in parts for column in columns]


def generation_of(values: Sequence[Any]) -> Generation:
    """The record of a row of GENERATION_COLUMNS."""
    row = dict(zip(GENERATION_COLUMNS, values, strict=True))
    sampling = {column: row[column] for column in _SAMPLING_COLUMNS} | {"stop": tuple(row["stop"])}
    question = {column: row[column] for column in (*_QUESTION_COLUMNS, *_ENGINE_COLUMNS)}
    answer = {column: row[column] for column in _ANSWER_COLUMNS}
    asked = Question(**question, sampling=Sampling(**sampling))
    return Generation(question=asked, created_at=aware(row["created_at"]), **answer)


def file_bytes(table: pandas.DataFrame, format: str) -> bytes:
    """A table of answers as a file (csv, parquet or json); nothing is written to disk.

    Its times ("created_at") become ISO 8601 text, its stop strings ("stop", where it has them) a list.
    """
    import pandas as pd

    if format == "parquet":
        return table.to_parquet(engine="pyarrow", index=False)
    table = table.assign(created_at=[None if m is pd.NaT else m.isoformat() for m in table["created_at"]])
    if "stop" in table:
        table["stop"] = [list(stop) for stop in table["stop"]]
    if format == "csv":
        if "stop" in table:
            table["stop"] = [json.dumps(stop, ensure_ascii=False) for stop in table["stop"]]
        return table.to_csv(index=False).encode()
    rows = [
        {name: None if value is pd.NA or value != value else value for name, value in row.items()}  # NaN != NaN
        for row in table.to_dict("records")
    ]
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()
