"""Answers: kept, found again by their question, searched, listed, and saved as a file."""

import csv
import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfn.errors import StoreError
from sfn.records import Generation, Question, Sampling
from sfn.store import Store

NOON = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def results(tmp_path):
    with Store(tmp_path / "sfn.duckdb") as opened:
        yield opened


def question(prompt="What is 5 + 17?", recipe="o_proj@all=B", **fields):
    values = {
        "pair_key": "pair", "plan_key": "plan", "mode": "plain", "tokenizer": "A", "engine": "transformers",
        "engine_version": "5.19.0", "device": "cpu", "dtype": "bfloat16",
        "sampling": Sampling(max_tokens=64, temperature=0.7, top_p=0.9, top_k=50, seed=2**62, stop=("\n\n", "<|end|>")),
    }  # fmt: skip
    return Question(prompt=prompt, recipe=recipe, **(values | fields))


def answer(text="22", asked=None, minutes=0, **fields):
    values = {
        "n_prompt_tokens": 9, "n_tokens": 5, "first_token_s": 0.5, "elapsed_s": 2.5, "finish": "stop",
        "a_label": "base", "b_label": "tuned",
    }  # fmt: skip
    when = NOON + timedelta(minutes=minutes)
    return Generation(asked or question(), text, created_at=when, **(values | fields))


def test_round_trip(results):
    one = answer(note="by hand")
    number = results.save_generation(one)
    assert results.generation(number) == one
    assert results.find_generation(one.question.key) == one
    assert results.generation(number).question.key == one.question.key


def test_time_is_kept_in_utc(results):
    east = answer()
    east = replace(east, created_at=NOON.astimezone(timezone(timedelta(hours=9))))
    kept = results.generation(results.save_generation(east))
    assert kept.created_at == NOON
    assert kept.created_at.utcoffset() == timedelta(0)
    table = results.generations()
    assert str(table["created_at"].dt.tz) == "UTC"
    assert table["created_at"][0].to_pydatetime() == NOON


def test_the_newest_finished_answer_is_found(results):
    key = question().key
    assert results.find_generation(key) is None
    results.save_generation(answer("cut", minutes=1, finish="cancelled"))
    assert results.find_generation(key) is None
    results.save_generation(answer("second", minutes=3))
    results.save_generation(answer("first", minutes=2, finish="length"))
    results.save_generation(answer("cut again", minutes=9, finish="cancelled"))
    assert results.find_generation(key).text == "second"
    results.save_generation(answer("same minute, later", minutes=3))
    assert results.find_generation(key).text == "same minute, later"
    assert len(results.generations()) == 5


def test_another_spelling_of_the_recipe_finds_the_answer(results):
    results.save_generation(answer(asked=question(recipe="o_proj@0-1=B")))
    assert results.find_generation(question(recipe="o_proj@all=B").key).text == "22"
    assert results.find_generation(question(plan_key="other").key) is None


def test_many_questions_are_looked_up_at_once(results):
    asked = [question(f"prompt {n}") for n in range(5)]
    for one in asked[:3]:
        results.save_generation(answer("earlier", one))
        results.save_generation(answer(one.prompt, one, minutes=1))
    results.save_generation(answer("cut", asked[3], finish="cancelled"))
    found = results.find_generations([one.key for one in asked])
    assert {key: each.text for key, each in found.items()} == {one.key: one.prompt for one in asked[:3]}
    assert results.find_generations([]) == {}


def test_answers_of_other_engines_are_found_by_the_question_alone(results):
    here, nowhere, cut = question("here"), question("nowhere"), question("cut")
    elsewhere = {"engine": "vllm", "engine_version": "0.9", "device": "cuda", "dtype": "float16"}
    results.save_generation(answer("earlier", replace(here, **elsewhere)))
    results.save_generation(answer("there", replace(here, **elsewhere, recipe="spelt otherwise"), minutes=1))
    results.save_generation(answer("not the same", replace(here, **elsewhere, mode="chat"), minutes=2))
    results.save_generation(answer("nor that", replace(here, sampling=Sampling(max_tokens=7), **elsewhere), minutes=3))
    results.save_generation(answer("its own", here, minutes=4))
    results.save_generation(answer("cut", replace(cut, **elsewhere), finish="cancelled"))
    found = results.find_elsewhere([here, nowhere, cut])
    assert {key: each.text for key, each in found.items()} == {here.key: "there"}
    assert results.find_elsewhere([]) == {}


def test_no_such_answer(results):
    with pytest.raises(StoreError, match="no answer number 7"):
        results.generation(7)


@pytest.fixture
def listed(results):
    rows = [
        answer("Nothing at all", question("Say 100% of it", recipe="", plan_key="p0"), 0, n_tokens=3),
        answer("A_B testing", question("underscores", mode="chat", plan_key="p1"), 1, n_tokens=9),
        answer("AxB", question("100 of them", engine="vllm", plan_key="p2"), 2, n_tokens=1),
        answer("back\\slash 'quoted'", question("ÉCOLE", pair_key="pair 2", plan_key="p3"), 3, finish="cancelled"),
    ]
    return [results.save_generation(row) for row in rows]


@pytest.mark.parametrize(
    "search, hits",
    [
        ("", {0, 1, 2, 3}), ("  ", {0, 1, 2, 3}), ("nothing AT", {0}), ("100%", {0}), ("%", {0}), ("a_b", {1}),
        ("_", {1, 2, 3}), ("école", {3}), ("o_PROJ@", {1, 2, 3}), ("\\", {3}), ("'", {3}), ("' OR '1'='1", set()),
    ],
)  # fmt: skip
def test_search_takes_the_text_as_it_is(results, listed, search, hits):
    assert set(results.generations(search)["id"]) == {listed[i] for i in hits}
    assert results.count_generations(search) == len(hits)


@pytest.mark.parametrize(
    "filters, hits",
    [
        ({"pair_key": "pair 2"}, {3}), ({"engine": "vllm"}, {2}), ({"mode": "chat"}, {1}), ({"recipe": ""}, {0}),
        ({"finish": "cancelled"}, {3}), ({"recipe": "o_proj@all=B", "engine": "transformers"}, {1, 3}),
        ({"search": "100", "engine": "vllm"}, {2}), ({"mode": "' OR true --"}, set()),
    ],
)  # fmt: skip
def test_filters(results, listed, filters, hits):
    assert set(results.generations(**filters)["id"]) == {listed[i] for i in hits}
    assert results.count_generations(**filters) == len(hits)


def test_order_limit_and_offset(results, listed):
    assert results.generations()["id"].tolist() == listed[::-1]
    assert results.generations(order="oldest", limit=2, offset=1)["id"].tolist() == listed[1:3]
    assert results.generations(order="longest", limit=1)["id"].tolist() == [listed[1]]
    assert results.generations(order="shortest", limit=1)["id"].tolist() == [listed[2]]
    with pytest.raises(StoreError, match="newest, oldest, longest, shortest"):
        results.generations(order="id; DROP TABLE generations")


def test_table_carries_everything(results):
    number = results.save_generation(answer())
    row = results.generations().iloc[0]
    assert (row["id"], row["prompt"], row["recipe"]) == (number, "What is 5 + 17?", "o_proj@all=B")
    assert list(row["stop"]) == ["\n\n", "<|end|>"]
    assert (row["temperature"], row["seed"], row["tokens_per_s"]) == (0.7, 2**62, 2.0)
    assert row["tokens_per_s"] == answer().tokens_per_s
    results.save_generation(answer(n_tokens=1))
    assert results.generations(order="shortest", limit=1)["tokens_per_s"].tolist() == [0.0]


ODD = 'line one\r\n"quoted", 漢字 \t\0 =1+1 👩‍🔬'


def test_export_csv(results):
    results.save_generation(answer("second", minutes=1))
    results.save_generation(answer(ODD.replace("\0", "")))
    rows = list(csv.DictReader(io.StringIO(results.export("csv").decode(), newline="")))
    assert [row["text"] for row in rows] == [ODD.replace("\0", ""), "second"]
    assert rows[0]["created_at"] == NOON.isoformat()
    assert json.loads(rows[0]["stop"]) == ["\n\n", "<|end|>"]
    assert float(rows[0]["temperature"]) == 0.7


def test_export_json(results):
    results.save_generation(answer(ODD, first_token_s=math.nan, elapsed_s=1 / 3))
    (row,) = json.loads(results.export("json"))
    assert (row["text"], row["first_token_s"], row["elapsed_s"]) == (ODD, None, 1 / 3)
    assert row["stop"] == ["\n\n", "<|end|>"]
    assert (row["seed"], row["created_at"]) == (2**62, NOON.isoformat())


def test_export_parquet(results):
    results.save_generation(answer(ODD))
    table = pyarrow.parquet.read_table(io.BytesIO(results.export("parquet")))
    (row,) = table.to_pylist()
    assert (row["text"], row["stop"], row["seed"]) == (ODD, ["\n\n", "<|end|>"], 2**62)
    assert row["created_at"] == NOON
    assert str(table.schema.field("created_at").type) == "timestamp[us, tz=UTC]"


@pytest.mark.parametrize("format", ["csv", "json", "parquet"])
def test_export_of_some_of_none_and_of_what_is_not_there(results, format, tmp_path):
    ids = [results.save_generation(answer(str(i), minutes=i)) for i in range(4)]
    count = {
        "csv": lambda data: len(list(csv.DictReader(io.StringIO(data.decode())))),
        "json": lambda data: len(json.loads(data)),
        "parquet": lambda data: pyarrow.parquet.read_table(io.BytesIO(data)).num_rows,
    }[format]
    assert count(results.export(format)) == 4
    assert count(results.export(format, ids[1:3])) == 2
    assert count(results.export(format, [])) == 0
    with pytest.raises(StoreError, match="no answer number 98, 99"):
        results.export(format, [ids[0], 99, 98])
    assert {file.name for file in tmp_path.iterdir()} <= {"sfn.duckdb", "sfn.duckdb.wal"}


def test_export_in_an_unknown_format(results):
    with pytest.raises(StoreError, match="'xlsx'; choose one of: csv, parquet, json"):
        results.export("xlsx")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8")), min_size=4, max_size=4),
    stop=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=3),
    numbers=st.lists(st.floats(0, 1e9), min_size=4, max_size=4),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_answer_round_trips(results, texts, stop, numbers, seed):
    prompt, text, recipe, note = texts
    temperature, top_p, first, elapsed = numbers
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop))
    one = answer(text, question(prompt, recipe, sampling=sampling), first_token_s=first, elapsed_s=elapsed, note=note)
    number = results.save_generation(one)
    assert results.generation(number) == one
    assert results.find_generation(one.question.key).text == text
    if prompt.strip():
        assert number in set(results.generations(prompt)["id"])
    for format in ("csv", "json", "parquet"):
        assert results.export(format, [number])
