"""Keys: what decides an answer enters, what does not stays out."""

from dataclasses import replace

from sfn.records import Question, Sampling, content_key

QUESTION = Question(
    "pair", "plan", "o_proj@all=B", "Hello", "plain", "A", Sampling(), "transformers", "5", "cpu", "float32"
)


def test_the_spelling_of_a_recipe_does_not_enter_the_key():
    assert replace(QUESTION, recipe="O_PROJ@ALL=B").key == QUESTION.key


def test_everything_else_enters_the_key():
    others = [
        replace(QUESTION, **{name: "other"})
        for name in (
            "pair_key",
            "plan_key",
            "prompt",
            "mode",
            "tokenizer",
            "engine",
            "engine_version",
            "device",
            "dtype",
        )
    ]
    others += [
        replace(QUESTION, sampling=replace(Sampling(), **change))
        for change in (
            {"max_tokens": 3}, {"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 3}, {"seed": 3}, {"stop": ("x",)},
        )
    ]  # fmt: skip
    assert len({question.key for question in [QUESTION, *others]}) == len(others) + 1


def test_numbers_have_one_spelling():
    assert Sampling(temperature=0, top_p=1) == Sampling(temperature=0.0, top_p=1.0)
    assert content_key(Sampling(temperature=1).temperature) == content_key(1.0)
