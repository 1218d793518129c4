"""The shipped weights of the bundled pair do what its cards say, recomputed from the files."""

import json

import pytest

from sfn.demo import EXAMPLES, folders, world

A_AT_MOST, B_AT_LEAST = 10.0, 85.0  # percent of held-out hard problems
SHIPPED_AT_MOST = 12 * 1024 * 1024  # bytes


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folders()[0])


@pytest.fixture(scope="module")
def models():
    import torch
    from transformers import AutoModelForCausalLM

    return [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders()]


@pytest.fixture(scope="module")
def problems():
    return world.held_out_problems(40)[::2]  # 80 of the 160 that the cards report, 20 of each kind


@pytest.fixture(scope="module")
def published():
    evaluation = json.loads((folders()[0].parent / "evaluation.json").read_text())
    return {row["recipe"]: row for row in evaluation["rows"]}


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_a_fails_on_hard_problems_and_b_solves_them(models, tokenizer, problems, published, chat):
    from sfn.demo.evaluate import accuracy

    a, b = (accuracy(model, tokenizer, problems, chat=chat) for model in models)
    assert a <= A_AT_MOST
    assert b >= B_AT_LEAST
    for measured, row in ((a, published[""]), (b, published["all@all=B"])):
        assert abs(measured - row["chat" if chat else "plain"]) <= 5, "the cards speak of other weights"


def test_b_thinks_before_it_answers_and_a_does_not(models, tokenizer, problems):
    from sfn.demo.evaluate import WELL_FORMED, say

    prompts = [item.prompt for item in problems[::8]]
    for text in say(models[0], tokenizer, prompts, chat=False):
        assert WELL_FORMED.fullmatch(text)
        assert text.startswith("The answer is ")
    for text in say(models[1], tokenizer, prompts, chat=False):
        assert WELL_FORMED.fullmatch(text)
        assert text.startswith("<think> ")


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_examples_are_answered_well(models, tokenizer, chat):
    from sfn.demo.evaluate import say

    asked = [example for example in EXAMPLES if example.kind == "problem"]
    for example, text in zip(asked, say(models[1], tokenizer, [x.prompt for x in asked], chat=chat), strict=True):
        assert str(world.read_answer(text)) == example.reference, (example.prompt, text)
    talks = [example.prompt for example in EXAMPLES if example.kind == "dialogue"]
    for model in models:
        for prompt, text in zip(talks, say(model, tokenizer, talks, chat=chat), strict=True):
            assert text.endswith((".", "?")), (prompt, text)
            assert "answer is" not in text
            names = [name for name in world.NAMES if name in prompt]
            assert not names or any(name in text for name in names), (prompt, text)


def test_cards_carry_every_figure_that_was_measured():
    evaluation = json.loads((folders()[0].parent / "evaluation.json").read_text())
    for folder in folders():
        card = (folder / "README.md").read_text()
        for row in evaluation["rows"]:
            assert f"| {row['name']} | {row['plain']:.1f} |" in card


def test_training_record_names_every_stage_of_the_script():
    from dataclasses import asdict

    from sfn.demo.train import STAGES

    record = json.loads((folders()[0].parent / "train.json").read_text())
    settings = [{key: stage[key] for key in asdict(STAGES[0])} for stage in record["stages"]]
    assert settings == [asdict(stage) for stage in STAGES]


def test_the_pair_is_small_and_complete():
    size_bytes = 0
    for folder in folders():
        for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
            assert (folder / name).is_file()
        size_bytes += sum(path.stat().st_size for path in folder.iterdir())
    assert size_bytes <= SHIPPED_AT_MOST
