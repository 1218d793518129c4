"""Sweeps in the store: what was asked for, and where each cell stands. Part of the only SQL; computes no figure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sfn.errors import StoreError
from sfn.records import SweepCell
from sfn.store.rows import GENERATION_COLUMNS, aware, bindable, generation_of, utc_now

if TYPE_CHECKING:
    from sfn.store import Store

_CELLS = ("at_row", "at_column", "recipe", "alpha", "question_key", "problem", "error")
_FRAME = ("engine", "engine_version", "device", "dtype")
_SWEEPS = ("id", "pair_key", "title", "definition", *_FRAME, "created_at")
# The newest finished answer to each question of a sweep, as `Store.find_generation` would find it.
_ANSWERS = """SELECT {columns} FROM generations
    WHERE finish <> 'cancelled' AND key IN (SELECT question_key FROM sweep_cells WHERE sweep_id = ?)
    QUALIFY row_number() OVER (PARTITION BY key ORDER BY created_at DESC, id DESC) = 1"""


@dataclass(frozen=True, slots=True)
class SavedSweep:
    """A sweep as it was begun.

    Attributes:
        definition: what was asked for, with the labels of rows and columns, as JSON's types.
        engine, engine_version, device, dtype: the one engine that all of its cells are asked of.
        cells: cells that an engine can answer. answered: those that have an answer.
    """

    id: int
    pair_key: str
    title: str
    definition: dict[str, Any]
    engine: str
    engine_version: str
    device: str
    dtype: str
    created_at: datetime
    cells: int
    answered: int


@dataclass(frozen=True, slots=True)
class Pace:
    """How long answers took on one engine with one pair.

    Attributes:
        answers: how many were measured. answer_s: mean seconds of one, cut to the tokens asked for; None without any.
        token_s: mean seconds of one token; None without any.
        swaps: how many changes of weights were measured. swap_s: median seconds of one; None without any.
    """

    answers: int
    answer_s: float | None
    token_s: float | None
    swaps: int
    swap_s: float | None


class SweepShelf:
    """The sweeps of a store; safe to use from many threads. Every write is on disk when the call returns."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def save(
        self,
        pair_key: str,
        title: str,
        definition: Mapping[str, Any],
        frame: Mapping[str, str],
        cells: Iterable[SweepCell],
    ) -> int:
        """Keep a sweep with all of its cells, or nothing of it; returns its number.

        `frame` holds engine, engine_version, device and dtype; `definition` must be JSON.
        """
        values = [pair_key, title, json.dumps(definition, ensure_ascii=False), *(frame[f] for f in _FRAME), utc_now()]
        marks = ", ".join("?" for _ in _SWEEPS[1:])
        with self._store._transaction() as cursor:
            sql = f"INSERT INTO sweeps ({', '.join(_SWEEPS[1:])}) VALUES ({marks}) RETURNING id"
            (number,) = cursor.execute(sql, [bindable(value) for value in values]).fetchone()
            rows = [[number, *map(bindable, _row(cell))] for cell in cells]
            marks = f"({', '.join('?' for _ in (number, *_CELLS))})"
            sql = f"INSERT INTO sweep_cells (sweep_id, {', '.join(_CELLS)}) VALUES {', '.join([marks] * len(rows))}"
            cursor.execute(sql, [value for row in rows for value in row])
        return number

    def of_pair(self, pair_key: str) -> list[SavedSweep]:
        """Every sweep of the pair, the newest first."""
        return self._sweeps("pair_key = ? ORDER BY created_at DESC, id DESC", pair_key)

    def get(self, number: int) -> SavedSweep:
        """The sweep of that number. Raises StoreError where there is none."""
        found = self._sweeps("id = ?", number)
        if not found:
            raise StoreError(f"There is no sweep number {number} in {self._store.path}; it may have been deleted.")
        return found[0]

    def _sweeps(self, where: str, value: object) -> list[SavedSweep]:
        rows = self._store._read(
            f"""SELECT {", ".join(_SWEEPS)},
            (SELECT count(*) FROM sweep_cells c WHERE c.sweep_id = s.id AND c.question_key <> ''),
            (SELECT count(*) FROM sweep_cells c WHERE c.sweep_id = s.id AND c.question_key IN
                (SELECT key FROM generations WHERE finish <> 'cancelled'))
            FROM sweeps s WHERE {where}""",
            [value],
        )
        found = []
        for row in rows:
            fields = dict(zip((*_SWEEPS, "cells", "answered"), row, strict=True))
            fields |= {"definition": json.loads(fields["definition"]), "created_at": aware(fields["created_at"])}
            found.append(SavedSweep(**fields))
        return found

    def cells(self, number: int) -> list[SweepCell]:
        """The cells of a sweep with their answers as far as they are there, row by row, A's and B's first."""
        columns = ", ".join(("key", *GENERATION_COLUMNS))
        answers = {
            key: generation_of(values) for key, *values in self._store._read(_ANSWERS.format(columns=columns), [number])
        }
        rows = self._store._read(
            f"SELECT {', '.join(_CELLS)} FROM sweep_cells WHERE sweep_id = ? ORDER BY at_row, at_column", [number]
        )
        return [SweepCell(*row, generation=answers.get(row[_CELLS.index("question_key")])) for row in rows]

    def progress(self, number: int) -> tuple[int, int]:
        """(cells with an answer, cells that failed): cheap, and changes whenever `cells` does while a sweep runs."""
        (counts,) = self._store._read(
            """SELECT count(*) FILTER (question_key IN (SELECT key FROM generations WHERE finish <> 'cancelled')),
            count(*) FILTER (error <> '') FROM sweep_cells WHERE sweep_id = ?""",
            [number],
        )
        return counts

    def note(self, number: int, question_key: str, *, error: str = "", swap_s: float | None = None) -> None:
        """Keep how a question of a sweep went: why it failed ("" = it did not), and how long its weights took."""
        self._store._write(
            "UPDATE sweep_cells SET error = ?, swap_s = coalesce(?, swap_s) WHERE sweep_id = ? AND question_key = ?",
            [error, swap_s, number, question_key],
        )

    def forgive(self, number: int) -> None:
        """Forget what failed, so that it is tried again."""
        self._store._write("UPDATE sweep_cells SET error = '' WHERE sweep_id = ? AND error <> ''", [number])

    def delete(self, number: int) -> None:
        """Forget a sweep; the answers stay, as any other answer does. Raises StoreError where there is none."""
        self.get(number)
        with self._store._transaction() as cursor:
            cursor.execute("DELETE FROM sweep_cells WHERE sweep_id = ?", [number])
            cursor.execute("DELETE FROM sweeps WHERE id = ?", [number])

    def known(self, question_keys: Sequence[str]) -> set[str]:
        """Those of the questions that have a finished answer."""
        sql = "SELECT DISTINCT key FROM generations WHERE finish <> 'cancelled' AND list_contains(?, key)"
        return {key for (key,) in self._store._read(sql, [list(question_keys)])}

    def pace(self, pair_key: str, frame: Mapping[str, str], mode: str, max_tokens: int) -> Pace:
        """What was measured so far of this pair on this engine, in this prompt mode."""
        values = [pair_key, *(frame[f] for f in _FRAME)]
        of_frame = " AND ".join(f"{column} = ?" for column in ("pair_key", *_FRAME))
        answers, answer_s, token_s = self._store._read(
            f"""SELECT count(*), avg(elapsed_s * least(n_tokens, ?) / n_tokens), sum(elapsed_s) / sum(n_tokens)
            FROM generations
            WHERE {of_frame} AND mode = ? AND finish <> 'cancelled' AND n_tokens > 0""",
            [max_tokens, *values, mode],
        )[0]
        swaps, swap_s = self._store._read(
            f"""SELECT count(swap_s), median(swap_s) FROM sweep_cells JOIN sweeps ON sweeps.id = sweep_id
            WHERE {of_frame}""",
            values,
        )[0]
        return Pace(answers, answer_s, token_s, swaps, swap_s)


def _row(cell: SweepCell) -> list[object]:
    return [cell.row, cell.column, cell.recipe, cell.alpha, cell.question_key, cell.problem, cell.error]
