"""The tokenizer of the bundled pair: what users load cuts text exactly as training did."""

import json
from random import Random

import pytest
from tokenizers import Tokenizer

from sfn.demo import EXAMPLES, folders, world
from sfn.demo.tokenizer import ASSISTANT, END, PAD, THOUGHTS, USER, VOCABULARY, answer_text, prompt_text


@pytest.fixture(scope="module", params=["A", "B"])
def folder(request):
    return folders()["AB".index(request.param)]


@pytest.fixture(scope="module")
def loaded(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def texts() -> list[str]:
    rng, mix = Random(11), world.Mix(0.25, 0.1, 0.2, 0.25, 0.1)
    lessons = [world.lesson_for_a(rng, mix) for _ in range(200)] + [world.lesson_for_b(rng) for _ in range(200)]
    found = [prompt_text(lesson.prompt, chat) for lesson in lessons for chat in (True, False)]
    found += [answer_text(lesson.answer, chat) for lesson in lessons for chat in (True, False)]
    return found


@pytest.fixture(scope="module")
def anew():
    from sfn.demo.train import new_tokenizer

    return new_tokenizer()


def test_auto_tokenizer_gives_the_ids_of_a_tokenizer_learned_anew(loaded, anew):
    assert anew.get_vocab() == loaded.get_vocab()
    for text in texts():
        assert loaded(text).input_ids == anew.backend_tokenizer.encode(text).ids, text


def test_auto_tokenizer_gives_the_ids_of_the_saved_file(folder, loaded):
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in texts():
        assert loaded(text).input_ids == saved.encode(text).ids, text


def test_vocabulary_fits_the_embedding(folder, loaded):
    assert len(loaded) == VOCABULARY == json.loads((folder / "config.json").read_text())["vocab_size"]
    assert sorted(loaded.get_vocab().values()) == list(range(VOCABULARY))
    assert max(max(loaded(text).input_ids) for text in texts()) < VOCABULARY


def test_specials_are_one_token_each_and_thoughts_stay_visible(loaded):
    for token in (PAD, END, USER, ASSISTANT, *THOUGHTS):
        assert len(loaded(token).input_ids) == 1
    assert set(loaded.all_special_tokens) == {PAD, END, USER, ASSISTANT}
    assert (loaded.eos_token, loaded.pad_token) == (END, PAD)
    ids = loaded("<think> 4 * 7 = 28 . </think>" + END).input_ids
    assert loaded.decode(ids, skip_special_tokens=True) == "<think> 4 * 7 = 28 . </think>"


def test_text_comes_back_as_it_was(loaded):
    for text in [*texts(), "Grüße, 東京! \t a\n\n  b 1234"]:
        assert loaded.decode(loaded(text).input_ids) == text


def test_numbers_are_read_digit_by_digit_and_drills_find_their_marks(loaded):
    assert loaded.tokenize(" 17 + 5 = 22 .") == ["Ġ", "1", "7", "Ġ+", "Ġ", "5", "Ġ=", "Ġ", "2", "2", "Ġ."]


def test_drill_labels_cover_results_alone(loaded):
    from sfn.demo.train import SKIP, drill_labels

    ids = loaded("\n5 * 7 = 35 . 2 + 79 = 81 .").input_ids
    labels = drill_labels(ids, *loaded.convert_tokens_to_ids(["Ġ=", "Ġ."]))
    assert len(labels) == len(ids)
    assert all(label in (SKIP, token) for label, token in zip(labels, ids, strict=True))
    assert loaded.decode([label for label in labels if label != SKIP]) == " 35 . 81 ."


def test_chat_template_gives_the_form_of_training(loaded):
    for example in EXAMPLES:
        messages = [{"role": "user", "content": example.prompt}]
        assert loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == prompt_text(
            example.prompt, True
        )
    talk = [
        {"role": "system", "content": "x"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]
    assert loaded.apply_chat_template(talk, tokenize=False) == f"{USER}Hi{ASSISTANT}Ho{END}"


def test_a_plain_answer_begins_with_one_token_for_the_new_line(loaded):
    for answer in ("The answer is 7.", "<think> 3 + 4 = 7 . </think>", "One morning"):
        ids, chat_ids = loaded(answer_text(answer, False)).input_ids, loaded(answer_text(answer, True)).input_ids
        assert ids == [*loaded("\n").input_ids, *chat_ids]
        assert len(loaded("\n").input_ids) == 1


def test_a_and_b_share_one_tokenizer():
    a, b = folders()
    assert (a / "tokenizer.json").read_bytes() == (b / "tokenizer.json").read_bytes()
