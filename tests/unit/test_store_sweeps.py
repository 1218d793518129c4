"""Sweeps in the store: kept whole, found again with their answers, migrated into older files."""

import itertools
import json

import duckdb
import pytest

from sfn.errors import StoreError
from sfn.records import SweepCell
from sfn.store import Store, file, file_bytes
from sfn.sweeps import Line, Prompt, Sweep, table
from tests.unit.test_store_generations import answer, question

FRAME = {"engine": "transformers", "engine_version": "5.19.0", "device": "cpu", "dtype": "bfloat16"}


@pytest.fixture
def results(tmp_path):
    with Store(tmp_path / "sfn.duckdb") as opened:
        yield opened


def asked(row, column):
    return question(prompt=f"prompt {column}", plan_key=f"plan {row}")


def begin(results, rows=2, columns=2, title="each module"):
    cells = [
        SweepCell(row, column, f"recipe {row}", 0.5 if row else None, asked(row, column).key)
        for row, column in itertools.product(range(rows), range(columns))
    ]
    cells.append(SweepCell(rows, 0, "head=B", None, "", problem="It does not fit."))
    return results.sweeps.save("pair", title, {"rows": ["ä", "b"], "columns": ["1", "2"]}, FRAME, cells), cells


def test_a_sweep_comes_back_as_it_was(results):
    number, cells = begin(results)
    saved = results.sweeps.get(number)
    assert (saved.title, saved.pair_key, saved.engine, saved.dtype) == (
        "each module",
        "pair",
        "transformers",
        "bfloat16",
    )
    assert saved.definition == {"rows": ["ä", "b"], "columns": ["1", "2"]}
    assert (saved.cells, saved.answered) == (4, 0)
    assert results.sweeps.cells(number) == cells
    later, _ = begin(results, title="later")
    assert [s.id for s in results.sweeps.of_pair("pair")] == [later, number]
    assert results.sweeps.of_pair("another pair") == []


def test_answers_are_found_by_their_question_the_newest_finished_one(results):
    number, _ = begin(results)
    other, _ = begin(results)
    results.save_generation(answer("old", asked(0, 1), minutes=0))
    results.save_generation(answer("new", asked(0, 1), minutes=5))
    results.save_generation(answer("half", asked(0, 1), minutes=9, finish="cancelled"))
    results.save_generation(answer("half", asked(1, 1), minutes=9, finish="cancelled"))
    for each in (number, other):  # both have the same questions
        texts = {(c.row, c.column): c.generation.text for c in results.sweeps.cells(each) if c.generation}
        assert texts == {(0, 1): "new"}
        assert results.sweeps.progress(each) == (1, 0)
    assert results.sweeps.get(number).answered == 1
    assert results.sweeps.known([asked(0, 1).key, asked(1, 1).key, "no such key"]) == {asked(0, 1).key}


def test_failures_are_kept_and_forgiven(results):
    number, _ = begin(results)
    results.sweeps.note(number, asked(1, 0).key, error="The engine died.", swap_s=0.25)
    assert [c.error for c in results.sweeps.cells(number)] == ["", "", "The engine died.", "", ""]
    assert results.sweeps.progress(number) == (0, 1)
    results.sweeps.forgive(number)
    assert results.sweeps.progress(number) == (0, 0)


def test_delete_forgets_the_sweep_and_keeps_the_answers(results):
    number, _ = begin(results)
    kept = results.save_generation(answer("said", asked(0, 0)))
    results.sweeps.delete(number)
    with pytest.raises(StoreError, match=f"no sweep number {number}"):
        results.sweeps.get(number)
    with pytest.raises(StoreError, match="may have been deleted"):
        results.sweeps.delete(number)
    assert results.sweeps.cells(number) == []
    assert results.generation(kept).text == "said"


def test_pace_is_measured_on_the_same_engine_alone(results):
    number, _ = begin(results)
    nothing = results.sweeps.pace("pair", FRAME, "plain", 64)
    assert (nothing.answers, nothing.answer_s, nothing.token_s, nothing.swaps, nothing.swap_s) == (
        0,
        None,
        None,
        0,
        None,
    )
    results.save_generation(answer(asked=asked(0, 0), n_tokens=10, elapsed_s=2.0))
    results.save_generation(answer(asked=asked(0, 1), n_tokens=40, elapsed_s=4.0))
    results.save_generation(answer(asked=question(device="cuda"), n_tokens=1, elapsed_s=100.0))
    results.save_generation(answer(asked=question(mode="chat"), n_tokens=1, elapsed_s=100.0))
    for row, swap_s in ((0, 0.1), (1, 0.3)):
        results.sweeps.note(number, asked(row, 0).key, swap_s=swap_s)
    pace = results.sweeps.pace("pair", FRAME, "plain", 20)
    assert pace.answers == 2
    assert pace.answer_s == pytest.approx((2.0 + 2.0) / 2)  # the longer one cut to 20 of its 40 tokens
    assert pace.token_s == pytest.approx(6 / 50)
    assert (pace.swaps, pace.swap_s) == (2, pytest.approx(0.2))


def test_the_schema_before_sweeps_is_migrated_and_keeps_its_answers(tmp_path, monkeypatch):
    path = tmp_path / "sfn.duckdb"
    monkeypatch.setattr(file, "MIGRATIONS", file.MIGRATIONS[:1])
    with Store(path) as old:
        old.save_generation(answer("said before", asked(0, 0)))
    monkeypatch.undo()
    with duckdb.connect(str(path)) as raw:
        assert raw.execute("SELECT max(version) FROM schema_version").fetchone() == (1,)
    with Store(path) as results:
        number, _ = begin(results)
        assert results.sweeps.cells(number)[0].generation.text == "said before"
    assert len([found for found in tmp_path.iterdir() if "schema-1" in found.name]) == 1


def test_a_table_of_cells_becomes_a_file(results):
    number, _ = begin(results)
    results.save_generation(answer("it is 22", asked(0, 0)))
    sweep = Sweep("list", "prompts", (Prompt("prompt 0", "22"), Prompt("prompt 1")), recipes=("recipe 0", "b", "c"))
    cells = results.sweeps.cells(number)
    shown = table(sweep, [Line("ä"), Line("b"), Line("c")], [Line("1"), Line("2")], cells)
    rows = json.loads(file_bytes(shown, "json"))
    assert rows[0]["contains_reference"] is True
    assert rows[0]["created_at"].endswith("+00:00")
    assert (rows[1]["text"], rows[1]["n_tokens"], rows[1]["created_at"]) == ("", None, None)
    assert rows[-1]["problem"] == "It does not fit."
    assert file_bytes(shown, "csv").decode().splitlines()[0].startswith("row,column,recipe,alpha,prompt")
    assert file_bytes(shown, "parquet")[:4] == b"PAR1"
