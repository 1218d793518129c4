"""The Sweep view: what a sweep takes, a run on the real engine, cells opened, continuing, deleting."""

from __future__ import annotations

import json

import pytest

from sfn import sweeps
from sfn.sweeps import A_ROW, B_ROW
from sfn.ui import state, sweep_grid, sweep_view

PROMPTS = "Hello there => a\nWhat is 1 + 1?"
SHORT = {"view": "sweep", "sweep_names": "attn", "sweep_prompts": PROMPTS, "max_tokens": 6}


def verdict(app) -> str:
    """The line under the form."""
    return [each.proto.body for each in app.get("html") if 'class="sfn-verdict' in each.proto.body][-1]


def grid(app) -> dict:
    """What the grid was told to draw."""
    (found,) = [each for each in app.get("bidi_component") if each.proto.component_name == "sfn_sweep_grid"]
    return json.loads(found.proto.json)


def begin(app):
    """Start the sweep of the form, wait for it, draw again."""
    app.button(key="sweep_start").click().run()
    return finish(app)


def finish(app):
    from sfn import workbench

    job = workbench.current().sweeps.job(app.session_state["sweep"])
    assert job.finished.wait(120), job.detail
    assert job.state == "done", job.error
    return app.run()


def test_it_says_before_what_it_takes(visit):
    app = visit("merge", **SHORT)
    assert "12 answers" in verdict(app)
    assert "12 answers to compute with 6 recipes" in verdict(app)
    assert "not known yet" in verdict(app)
    assert not app.button(key="sweep_start").disabled


def test_what_makes_no_sense_is_a_sentence_and_cannot_be_started(visit):
    app = visit("merge", **SHORT | {"sweep_columns": "seeds"})
    assert "At temperature 0 every seed gives the same answer" in verdict(app)
    assert app.button(key="sweep_start").disabled
    app.number_input(key="temperature").set_value(0.8).run()
    assert "24 answers" in verdict(app)
    assert not app.button(key="sweep_start").disabled


@pytest.mark.parametrize("rows", state.SWEEP_ROWS)
def test_every_kind_of_rows_can_be_chosen(visit, rows):
    app = visit("merge", **SHORT | {"sweep_rows": rows, "sweep_recipes": "o_proj=B\nmlp@0=zero"})
    assert not app.exception
    assert "answers to compute" in verdict(app)
    assert list(app.selectbox(key="sweep_columns").options)


def test_an_axis_that_no_longer_fits_falls_back(visit):
    app = visit("merge", **SHORT | {"sweep_columns": "alpha"})
    assert app.session_state["sweep_columns"] == "alpha"
    app.selectbox(key="sweep_rows").set_value("presets").run()
    assert app.session_state["sweep_columns"] == "prompts"
    assert not app.exception


def test_the_state_of_the_address_and_the_core_agree():
    assert sweeps.ROWS == state.SWEEP_ROWS
    assert set(state.SWEEP_COLUMNS) == {column for legal in sweeps.COLUMNS.values() for column in legal}
    assert tuple(sweeps.FIGURES) == state.SWEEP_FIGURES


def test_a_sweep_runs_fills_its_grid_and_is_the_same_in_another_session(visit, bench):
    app = begin(visit("merge", **SHORT))
    number = app.session_state["sweep"]
    drawn = grid(app)
    assert [row["label"] for row in drawn["rows"]] == ["A", "B", "q_proj", "k_proj", "v_proj", "o_proj"]
    assert [column["label"] for column in drawn["columns"]] == ["Hello there", "What is 1 + 1?"]
    cells = bench.store.sweeps.cells(number)
    assert len(cells) == 12
    for cell in cells:
        shown = drawn["cells"][cell.row - A_ROW][cell.column]
        assert shown["s"] == "answered"
        assert shown["t"] == (cell.generation.text.strip()[:240] or "(nothing)")
        assert shown["h"] is (("a" in cell.generation.text.lower().split()) if cell.column == 0 else None) or shown["h"]

    again = visit("merge", view="sweep", sweep=number, sweep_figure="tokens", sweep_cell="1.0")
    drawn = grid(again)
    assert drawn["open"] == [3, 0]
    assert {cell["v"] for row in drawn["cells"] for cell in row} == {str(c.generation.n_tokens) for c in cells}
    shown = [each.proto.body for each in again.get("html")]
    assert any("k_proj@all=B" in body for body in shown)
    whole = next(c.generation.text for c in cells if (c.row, c.column) == (1, 0))
    assert any(sweep_text(whole) in body for body in shown)


def sweep_text(text: str) -> str:
    from sfn.ui import words

    return words.said(text, "sfn-answer") if text.strip() else "Nothing was written."


def test_a_cell_is_taken_to_the_board(visit):
    app = begin(visit("merge", **SHORT))
    app.session_state["sweep_cell"] = "3.1"
    app.run()
    app.button(key="sweep_take").click().run()
    assert app.session_state["recipe"] == "o_proj@all=B"
    assert app.session_state["prompt"] == "What is 1 + 1?"
    assert app.session_state["view"] == "answers"
    assert not app.exception
    heads = [each.proto.body for each in app.get("html") if 'class="sfn-seat"' in each.proto.body]
    assert any("o_proj@all=B" in head for head in heads)


def test_what_was_stopped_can_be_continued(visit, bench):
    app = begin(visit("merge", **SHORT))
    number = app.session_state["sweep"]
    bench.store._write("DELETE FROM generations WHERE recipe = ?", ["k_proj@all=B"])
    app.run()
    assert any("10 of 12 cells are answered" in each.proto.body for each in app.get("html"))
    assert [cell["s"] for cell in grid(app)["cells"][3]] == ["waiting", "waiting"]
    app.button(key="sweep_continue").click().run()
    finish(app)
    assert bench.store.sweeps.get(number).answered == 12
    assert "sweep_continue" not in [button.key for button in app.button]


def test_what_the_pair_cannot_do_says_so_in_its_cell(visit):
    app = begin(visit("merge", **SHORT | {"sweep_rows": "list", "sweep_recipes": "o_proj=B\nmlp@9=B"}))
    cell = grid(app)["cells"][3][0]
    assert cell["s"] == "impossible"
    assert "layers 0-1" in cell["why"]


def test_files_hold_every_cell_with_what_made_it(visit, bench):
    app = begin(visit("merge", **SHORT | {"sweep_rows": "list", "sweep_recipes": "o_proj=B\nmlp@9=B"}))
    saved = bench.store.sweeps.get(app.session_state["sweep"])
    rows = json.loads(sweep_view.table_file(saved, "json"))
    assert len(rows) == 8
    by_cell = {(row["row"], row["column"]): row for row in rows}
    one = by_cell["o_proj=B", "What is 1 + 1?"]
    said = next(c.generation for c in bench.store.sweeps.cells(saved.id) if (c.row, c.column) == (0, 1))
    assert (one["text"], one["n_tokens"], one["recipe"]) == (said.text, said.n_tokens, "o_proj@all=B")
    assert (one["engine"], one["pair_key"], one["dtype"]) == ("transformers", saved.pair_key, said.question.dtype)
    assert "layers 0-1" in by_cell["mlp@9=B", "Hello there"]["problem"]
    assert len(sweep_view.table_file(saved, "csv").decode().splitlines()) >= 9
    assert sweep_view.table_file(saved, "parquet")[:4] == b"PAR1"
    page = sweep_view.page_file(saved).decode()
    assert "o_proj@all=B" in page
    assert "base → tuned" in page


def test_deleting_forgets_the_sweep(visit, bench, folders):
    app = begin(visit("merge", **SHORT))
    app.button(key="sweep_delete").click().run()
    assert app.session_state["sweep"] == 0
    assert "sweep_start" in [button.key for button in app.button]
    assert len(bench.store.generations()) == 12


def test_a_sweep_that_is_not_here_is_a_sentence(visit):
    app = visit("merge", view="sweep", sweep=77)
    assert any("There is no sweep 77" in each.value for each in app.error)
    assert "sweep_start" in [button.key for button in app.button]


def test_cells_have_names_in_the_address():
    for place in ((A_ROW, 0), (B_ROW, 3), (0, 0), (12, 7)):
        assert sweep_grid.place_of(sweep_grid.name_of(place)) == place
    for bad in ("", "x", "1", "1.", ".1", "C.1", "1.1.1", "-1.0", "1.-1"):
        assert sweep_grid.place_of(bad) is None


def test_what_the_browser_sends_is_read():
    assert sweep_grid.clicked({"row": 0, "column": 1}) == (A_ROW, 1)
    assert sweep_grid.clicked({"row": 2, "column": 0}) == (0, 0)
    assert sweep_grid.clicked({"row": "2"}) is None
    assert sweep_grid.clicked(None) is None
