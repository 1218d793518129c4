"""The merge page: recipe, presets and undo in step; real answers of a real engine; what is stored comes back."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import pytest
import streamlit as st

from sfn import checkpoints, engines, pairs, recipes
from sfn.engines import text
from sfn.ui import columns, words
from tests.builders import tiny_qwen2
from tests.pages.conftest import finish_scan

PROMPT = "What is 1 + 1?"
SHORT = {"prompt": PROMPT, "max_tokens": 12}


def recipe(app) -> str:
    """The recipe's text; nothing is in the session as long as nothing was chosen."""
    return app.session_state["recipe"] if "recipe" in app.session_state else ""  # noqa: SIM401 (it has no `get`)


def write(app, text: str):
    """Another recipe, as the text box hands it over."""
    app.session_state["recipe"] = text
    return app.run()


def lit(app) -> list[str]:
    """The presets that are in force."""
    return [each.label for each in app.button if each.key.startswith("preset_") and each.proto.type == "primary"]


def verdict(app) -> str:
    """The line under the recipe."""
    return next(each.proto.body for each in app.get("html") if 'class="sfn-verdict' in each.proto.body)


def feet(app) -> list[str]:
    """The lines under A, merged, B."""
    lines = [each.proto.body for each in app.get("html") if 'class="sfn-seat-foot' in each.proto.body]
    return [line.split(">", 1)[1].split("<")[0] for line in lines]


def heads(app) -> list[str]:
    """Titles of A, merged, B."""
    return [each.proto.body for each in app.get("html") if 'class="sfn-seat"' in each.proto.body]


def passages(app) -> list[list[dict]]:
    """What the columns that show an answer are given to draw, from left to right."""
    given = [json.loads(node.proto.json) for node in app.main if node.type == "bidi_component"]
    return [each["passages"] for each in given if "passages" in each]


def answers(app) -> list[str]:
    """What stands in the columns: model text, or what is said in its place."""
    found = []
    for node in app.main:
        if node.type == "bidi_component" and "passages" in (given := json.loads(node.proto.json)):
            found.append("".join(piece[1] for passage in given["passages"] for piece in passage["pieces"]))
        elif node.type == "text":
            found.append(node.value)
    return found


def until_done(app):
    """Wait until every answer on screen is finished, then draw once more."""
    for answer in app.session_state["_answers_shown"].values():
        assert answer.finished.wait(120), answer.state
    return app.run()


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """What the transformers engine says by itself for all A, o_proj of B, all B: {recipe: text}."""
    place = tmp_path_factory.mktemp("alone")
    a, b = (checkpoints.open(tiny_qwen2(place / name, seed)) for seed, name in enumerate(("base", "tuned")))
    found = {}
    with engines.open("transformers", pairs.compare(a, b)) as engine:
        for text in ("", "o_proj@all=B", "all@all=B"):
            engine.be(recipes.parse(text))
            found[text] = "".join(piece.text for piece in engine.generate(PROMPT, max_tokens=12))
    return found


def test_it_opens_with_nothing_moved_and_a_prompt_that_suits(visit):
    app = visit("merge")
    assert recipe(app) == ""
    assert "0 of 27 tensors" in verdict(app)
    assert app.text_area(key="prompt").value.startswith("Can you write a short paragraph")
    assert app.button(key="run").label == "Start the engine and run"
    assert app.button(key="stop").disabled
    assert answers(app)[0] == "Not asked yet."
    assert "exactly as A does" in answers(app)[1]


def test_the_address_decides_recipe_and_settings(visit):
    app = visit("merge", recipe="o_proj@all=B", prompt="Hello", mode="chat", max_tokens=7, temperature="0.5", seed=3)
    assert "2 of 27 tensors" in verdict(app)
    assert app.text_area(key="prompt").value == "Hello"
    assert app.number_input(key="max_tokens").value == 7
    assert app.number_input(key="seed").value == 3
    assert app.session_state["mode"] == "chat"


def test_a_bad_recipe_is_a_sentence_and_the_last_good_one_stays(visit):
    app = visit("merge", recipe="o_proj@all=B")
    write(app, "o_prj@all=B")
    assert not app.exception
    assert "sfn-bad" in verdict(app)
    assert "o_prj" in verdict(app)
    assert app.button(key="run").disabled
    assert "o_proj@all=B" in heads(app)[1]
    write(app, "q_proj@0=B")
    assert "sfn-bad" not in verdict(app)
    assert "2 of 27 tensors" in verdict(app)  # weight and bias


def test_a_sentence_about_a_recipe_is_never_read_as_html(visit):
    app = visit("merge", recipe="<img src=x onerror=alert(1)>@all=B")
    assert "<img" not in verdict(app)
    assert "&lt;img" in verdict(app)


def test_presets_undo_redo_and_clear_keep_the_text_in_step(visit):
    app = visit("merge")
    app.button(key="preset_m1").click().run()
    assert recipe(app) == "o_proj@all=B"
    write(app, "mlp@1=B")
    app.button(key="recipe_undo").click().run()
    assert recipe(app) == "o_proj@all=B"
    assert lit(app) == ["o_proj (M1)"]
    app.button(key="recipe_undo").click().run()
    assert recipe(app) == ""
    assert app.button(key="recipe_undo").disabled
    app.button(key="recipe_redo").click().run()
    app.button(key="recipe_redo").click().run()
    assert recipe(app) == "mlp@1=B"
    assert lit(app) == []
    app.button(key="recipe_clear").click().run()
    assert recipe(app) == ""
    app.button(key="recipe_undo").click().run()
    assert recipe(app) == "mlp@1=B"


def test_the_three_columns_say_what_the_engine_says_and_the_store_keeps_it(visit, bench, spoken):
    app = visit("merge", recipe="o_proj@all=B", **SHORT)
    app.button(key="run").click().run()
    until_done(app)
    assert answers(app) == [spoken[""], spoken["o_proj@all=B"], spoken["all@all=B"]]
    assert len(set(answers(app))) > 1
    assert len(bench.store.generations()) == 3
    assert app.button(key="run").disabled

    again = visit("merge", recipe="o_proj@0-1=B", **SHORT)  # another spelling, a fresh session
    assert answers(again) == answers(app)
    assert all("from the store" in foot for foot in feet(again))
    assert len(bench.store.generations()) == 3


def test_after_a_toggle_the_old_answer_keeps_its_recipe_and_is_dimmed(visit, bench):
    app = visit("merge", recipe="o_proj@all=B", **SHORT)
    app.button(key="run").click().run()
    until_done(app)
    old = answers(app)[1]
    write(app, "mlp@all=B")
    assert answers(app)[1] == old
    assert "o_proj@all=B" in heads(app)[1]
    assert "of an earlier recipe" in heads(app)[1]
    assert any("st-key-answer_merged" in each.proto.body and "0.4" in each.proto.body for each in app.get("html"))
    assert app.button(key="run").label.startswith("Swap ")
    app.text_area(key="prompt").set_value(" ").run()
    assert all("to an earlier prompt" in head for head in heads(app))


def test_a_click_that_breaks_off_the_run_of_the_click_before_does_not_undo_it(visit, bench, monkeypatch):
    app = visit("merge", recipe="o_proj@all=B", **SHORT)
    ask, broken_off = columns.ask, []

    def asked(*of_it) -> None:
        if not broken_off:
            broken_off.append(True)
            st.rerun()  # as the next touch of the session does when a further click has arrived
        ask(*of_it)

    monkeypatch.setattr(columns, "ask", asked)
    app.button(key="run").click().run()
    assert broken_off
    until_done(app)
    assert len(bench.store.generations()) == 3


def test_again_draws_with_the_next_seed_and_greedy_explains_itself(visit, bench):
    app = visit("merge", recipe="o_proj@all=B", **SHORT)
    assert app.button(key="again").disabled
    assert "same answer every time" in app.button(key="again").help
    app.number_input(key="temperature").set_value(1.0).run()
    assert not app.button(key="again").disabled
    app.button(key="again").click().run()
    until_done(app)
    assert app.number_input(key="seed").value == 1
    assert {row.seed for row in bench.store.generations().itertuples()} == {1}


def test_run_on_change_asks_by_itself(visit, bench, spoken):
    app = visit("merge", **SHORT)
    app.toggle(key="run_on_change").set_value(True).run()
    write(app, "o_proj@all=B")
    until_done(app)
    assert answers(app)[1] == spoken["o_proj@all=B"]


def test_a_column_that_cannot_be_leaves_the_others_alone(visit, bench, tmp_path, spoken):
    wider = str(tiny_qwen2(tmp_path / "wider", 1, vocab=300))
    app = visit("merge", b=wider, recipe="o_proj@all=B", **SHORT)
    assert "Not asked yet." in answers(app)[0]
    assert "vocabulary" in answers(app)[2] or "shape" in answers(app)[2]
    app.button(key="run").click().run()
    until_done(app)
    assert answers(app)[:2] == [spoken[""], spoken["o_proj@all=B"]]


def test_a_failure_is_a_sentence_in_its_column_with_a_way_to_try_again(visit, bench, tmp_path):
    bare = tiny_qwen2(tmp_path / "bare", 0)
    (bare / "chat_template.jinja").unlink()
    app = visit("merge", a=str(bare), recipe="o_proj@all=B", mode="chat", **SHORT)
    app.button(key="run").click().run()
    until_done(app)
    assert feet(app)[0] == "failed"
    assert "template" in answers(app)[0]
    assert feet(app)[2] != "failed"  # B has its own template
    app.button(key="again_A").click().run()
    until_done(app)
    assert feet(app)[0] == "failed"


def test_model_text_is_shown_as_it_is():
    text = "    indented\n\n   \n<b>bold</b> $x$ **y** <script>alert(1)</script>\r\n  "
    drawn = words.said(text)
    assert "\n" not in drawn
    assert "<b>" not in drawn
    assert "<script>" not in drawn
    assert html.unescape(drawn.split(">", 1)[1].removesuffix("</div>")) == text
    assert words.said("\n\n  so") == words.said("  so")


# ---------------------------------------------------------------- more columns, samples, other engines


def test_the_address_decides_which_columns_there_are(visit, bench, spoken):
    app = visit("merge", recipe="q_proj@0=B", columns="B|o_proj@0-1=B|A", **SHORT)
    assert [bool(name in head) for name, head in zip(("<b>B</b>", "o_proj@all=B", "<b>A</b>"), heads(app), strict=True)]
    app.button(key="run").click().run()
    until_done(app)
    assert answers(app) == [spoken["all@all=B"], spoken["o_proj@all=B"], spoken[""]]


def test_a_column_whose_recipe_is_wrong_says_so_and_the_others_answer(visit, bench, spoken):
    app = visit("merge", columns="A|o_prj@all=B", **SHORT)
    assert "o_prj" in answers(app)[1]
    app.button(key="run").click().run()
    until_done(app)
    assert answers(app)[0] == spoken[""]


def test_too_many_columns_are_a_sentence(visit):
    app = visit("merge", columns="|".join(f"o_proj@{layer}=B" for layer in range(7)))
    assert not app.exception
    assert "at most 6" in app.warning[0].value.replace("\\", "")
    assert len(heads(app)) == 3


def test_columns_are_chosen_by_name_or_written_and_the_address_follows(visit, folders):
    app = visit("merge", **SHORT)
    app.multiselect(key="columns_choice").set_value(["A", "q_proj@1=B;mlp@0=B"]).run()
    assert app.session_state["columns"] == "A|q_proj@1=B; mlp@0=B"
    assert len(heads(app)) == 2
    app.multiselect(key="columns_choice").set_value([]).run()
    assert len(heads(app)) == 3


def test_samples_are_questions_of_their_own_and_can_be_paged(visit, bench):
    app = visit("merge", recipe="o_proj@all=B", temperature="1.5", samples=3, seed=5, **SHORT)
    app.button(key="run").click().run()
    until_done(app)
    table = bench.store.generations()
    assert sorted(table["seed"]) == [5, 5, 5, 6, 6, 6, 7, 7, 7]
    assert all("3 of 3 samples" in each for each in bodies(app, "sfn-seat-foot"))
    first = answers(app)
    app.button(key="turn_chevron_right_all").click().run()
    assert app.session_state["sample"] == 2
    drawn = {text.lstrip("\r\n") for text in table[table["seed"] == 6]["text"]}
    assert set(answers(app)) <= drawn
    assert answers(app) != first


def bodies(app, kind: str) -> list[str]:
    return [each.proto.body for each in app.get("html") if f'class="{kind}"' in each.proto.body]


def test_greedy_has_one_sample_and_says_why(visit, bench):
    app = visit("merge", samples=8, **SHORT)
    assert any("one sample" in each.value for each in app.caption)
    app.button(key="run").click().run()
    until_done(app)
    assert len(bench.store.generations()) == 2  # A and, the board moving nothing, merged are one question; and B


def test_an_answer_of_another_engine_is_shown_with_its_name_and_may_still_be_asked(visit, bench):
    app = visit("merge", recipe="o_proj@all=B", **SHORT)
    app.button(key="run").click().run()
    until_done(app)
    answer = app.session_state["_answers_shown"]["B", 0].generation
    foreign = replace(
        answer.question, engine="vllm", engine_version="0.9", device="cuda", dtype="bfloat16", prompt="Hi"
    )
    bench.store.save_generation(replace(answer, question=foreign, text="from afar"))

    app = visit("merge", recipe="o_proj@all=B", **(SHORT | {"prompt": "Hi"}))
    assert answers(app)[2] == "from afar"
    assert "from vllm 0.9 on cuda, bfloat16" in feet(app)[2]
    assert "from another engine" in heads(app)[2]
    assert answers(app)[0] == "Not asked yet."
    app.button(key="run").click().run()
    until_done(app)
    assert "from afar" not in answers(app)
    assert "vllm" not in feet(app)[2]


def test_what_differs_from_a_is_marked_and_nothing_else(visit, bench, spoken):
    app = visit("merge", recipe="o_proj@all=B", show="difference", **SHORT)
    app.button(key="run").click().run()
    until_done(app)
    of_a, of_merged, _of_b = passages(app)
    assert {piece[0] for passage in of_a for piece in passage["pieces"]} <= {"text", "formula", "display"}
    marked = [piece for passage in of_merged for piece in passage["pieces"]]
    assert {piece[0] for piece in marked} & {"inserted", "deleted"}
    assert "".join(piece[1] for piece in marked if piece[0] != "deleted") == spoken["o_proj@all=B"].lstrip("\r\n")


@pytest.mark.parametrize("mode", ["plain", "chat"])
def test_a_cut_answer_goes_on_as_one_text_of_two_questions(visit, bench, folders, mode):
    app = visit("merge", columns="A", show="plain", prompt=PROMPT, max_tokens=6, mode=mode)
    app.button(key="run").click().run()
    until_done(app)
    begun = answers(app)[0]
    app.button(key="continue_A").click().run()
    finish_scan(bench)  # the tokenizer's job
    app.run()
    [(_key, [part])] = app.session_state["_answer_parts"].items()
    assert part.finished.wait(60)
    app.run()
    second, first = bench.store.generations().itertuples()
    assert answers(app)[0] == (first.text + second.text).lstrip("\r\n")
    assert answers(app)[0].startswith(begun)
    assert "12 tokens in 2 parts" in feet(app)[0]
    if mode == "plain":
        assert second.prompt == PROMPT + first.text
    else:
        speech = text.load(Path(folders[0]), "A")
        assert speech.prompt_ids(second.prompt, "plain")[: len(ids := speech.prompt_ids(PROMPT, "chat"))] == ids
        assert second.prompt.endswith(first.text)
    assert second.mode == "plain"


def test_a_pinned_column_stays_while_the_others_change(visit, bench):
    app = visit("merge", recipe="o_proj@all=B", **SHORT)
    app.button(key="run").click().run()
    until_done(app)
    before = answers(app)
    choose(app, "menu_merged", "Pin this answer while the others change")
    app.text_area(key="prompt").set_value("Something else").run()
    assert app.button(key="run").label == "Run A and B"
    app.button(key="run").click().run()
    until_done(app)
    assert answers(app)[1] == before[1]
    assert answers(app)[0] != before[0]
    assert "pinned" in heads(app)[1]
    assert f"asked: {PROMPT}" in bodies(app, "sfn-seat-foot")[1]
    assert any("answer_merged" in each.proto.body and "opacity: 1" in each.proto.body for each in app.get("html"))
    choose(app, "menu_merged", "Unpin")
    assert "to an earlier prompt" in heads(app)[1]


def test_the_boards_recipe_is_kept_as_a_column_moved_and_removed(visit, bench):
    app = visit("merge", recipe="o_proj@all=B", **SHORT)
    choose(app, "menu_merged", "Keep this recipe as a column")
    assert app.session_state["columns"] == "A|merged|o_proj@all=B|B"
    choose(app, "menu_c3", "Move to the right")
    assert app.session_state["columns"] == "A|merged|B|o_proj@all=B"
    choose(app, "menu_c4", "Remove")
    assert app.session_state["columns"] == ""
    assert len(heads(app)) == 3


def choose(app, key: str, what: str) -> None:
    """Choose from a column's menu."""
    next(each for each in app.get("menu_button") if each.key == key).click(what).run()
