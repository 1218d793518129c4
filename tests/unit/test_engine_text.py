"""Streams of token ids become text: whole characters, spaces kept, ends and stop strings cut."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sfn.engines import text
from sfn.errors import EngineError
from tests import builders


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> text.Speech:
    return text.load(builders.write_tokenizer(tmp_path_factory.mktemp("bytes"), words=["one", "two"]), "A")


@pytest.fixture(scope="module")
def llama_like() -> text.Speech:
    """A tokenizer in the manner of sentencepiece: "▁" for a space, dropped before the first token; byte fallback."""
    words = ["<unk>", "<s>", "</s>", "<think>", *(f"<0x{n:02X}>" for n in range(256)), "▁Hello", "▁you", ",", "▁", "!"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(w, special=True) for w in ("<s>", "</s>", "<think>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return text.Speech("A", fast, frozenset([2]), frozenset([1, 2]))


def stream(speech: text.Speech, ids: list[int], before: list[int] = ()) -> list[str]:
    """Text after each id, and what is flushed."""
    decoder = text.Stream(speech, before)
    return [*map(decoder.push, ids), decoder.flush()]


@settings(max_examples=150, deadline=None)
@given(content=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_whole(speech, content):
    pieces = stream(speech, speech.tokenizer.encode(content))
    assert "".join(pieces) == content
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in content


def test_a_character_of_several_tokens_comes_in_one_piece(speech):
    ids = speech.tokenizer.encode("a🎓b")
    assert len(ids) == 6
    assert stream(speech, ids) == ["a", "", "", "", "🎓", "b", ""]


def test_half_a_character_at_the_end_is_flushed(speech):
    ids = speech.tokenizer.encode("é")
    assert stream(speech, ids[:1]) == ["", "\ufffd"]


def test_bytes_that_never_make_a_character_do_not_wait_for_ever(speech):
    broken = speech.tokenizer.encode("é")[:1] * 40
    pieces = stream(speech, broken)
    assert "\ufffd" in "".join(pieces[:-1])


def test_a_long_stream_is_the_whole_text(speech):
    content = "one two, é🎓 three. " * 60
    assert "".join(stream(speech, speech.tokenizer.encode(content))) == content


def test_spaces_survive_where_the_first_token_loses_its_own(llama_like):
    hello, you, comma = 260, 261, 262
    assert "".join(stream(llama_like, [you, comma, hello], before=[1, hello])) == " you, Hello"


def test_bytes_of_a_fallback_join(llama_like):
    ids = [4 + byte for byte in "✓".encode()]
    assert stream(llama_like, [*ids, 264], before=[1, 260])[:-1] == ["", "", "✓", "!"]


def test_ends_are_hidden_and_other_special_tokens_are_not(llama_like):
    assert "".join(stream(llama_like, [3, 261, 2], before=[1, 260])) == "<think> you"


@pytest.mark.parametrize(
    ("pieces", "stop", "shown"),
    [
        (["ab", "cd"], ("bc",), "a"),
        (["ab", "cd"], ("x",), "abcd"),
        (["a", "b", "a", "b", "c"], ("abc",), "ab"),
        (["aab"], ("ab", "aa"), ""),
        (["ends in a"], ("ab",), "ends in a"),
        (["some", "thing"], ("", "thin"), "some"),
    ],
)
def test_stop_strings(pieces, stop, shown):
    cut, out = text.StopCut(stop), ""
    for piece in pieces:
        more, met = cut.push(piece)
        out += more
        if met:
            break
    else:
        out += cut.flush()
    assert out == shown


@given(
    content=st.text("abc", max_size=30),
    stop=st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    cuts=st.lists(st.integers(0, 30)),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(content, stop, cuts):
    edges = [0, *sorted(c for c in cuts if c < len(content)), len(content)]
    cut, out, met = text.StopCut(stop), "", False
    for start, end in itertools.pairwise(edges):
        more, met = cut.push(content[start:end])
        out += more
        if met:
            break
    if not met:
        out += cut.flush()
    first = min(((content.index(s) + len(s), content.index(s)) for s in stop if s in content), default=None)
    assert met == (first is not None)
    assert out == (content if first is None else content[: first[1]])


def test_end_ids_come_from_both_configs(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 5}, "eos_token_id": None}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    assert text.end_ids(tmp_path) == {1, 5, 7}


def test_an_answer_ends_at_an_end_token_with_all_of_its_text(speech):
    answer = text.Answer(speech, [], stop=("one!",))
    ids = speech.tokenizer.encode("a one")
    shown = [answer.push(token) for token in [*ids, 1]]
    assert "".join(new for new, _ in shown) == "a one"
    assert [ended for _, ended in shown] == [False] * len(ids) + [True]


def test_a_missing_tokenizer_names_the_folder(tmp_path):
    with pytest.raises(EngineError, match=str(tmp_path)):
        text.load(tmp_path, "A")


def test_a_missing_or_broken_template_is_said(tmp_path):
    builders.write_tokenizer(tmp_path, template="{{ raise_exception('no users here') }}")
    with pytest.raises(EngineError, match="no users here"):
        text.load(tmp_path, "A").prompt_ids("Hi", "chat")
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(EngineError, match="no chat template"):
        text.load(tmp_path, "A").prompt_ids("Hi", "chat")


def test_an_empty_prompt_becomes_the_begin_token(llama_like):
    assert llama_like.prompt_ids("", "plain") == [1]


def test_scored_text_is_cut_up_as_in_a_document(speech):
    before, ids = speech.scored_ids("two", "one", "plain")
    assert (before, ids) == (speech.tokenizer.encode("one"), speech.tokenizer.encode("two"))
    # The prompt's last letters and the text's first ones would be one token in a document: the prompt stays as it was.
    before, ids = speech.scored_ids("ne", "o", "plain")
    assert speech.decode([*before, *ids]) == "one"
    assert len(before) == 1


def test_tokens_are_told_on_one_line_with_all_that_is_in_them(tmp_path):
    builders.write_tokenizer(tmp_path, words=("Ġone", "two"))
    found = text.load(tmp_path, "A")
    ids = found.tokenizer.get_vocab()
    wanted = {"<|end|>": "<|end|>", "Ġone": "␣one", "two": "two", "Ċ": "⏎", "Ā": "\\u0000", "<": "<"}
    assert text.token_texts(found, [ids[token] for token in wanted]) == tuple(wanted.values())
    piece = text.token_texts(found, [ids["Ã"]])[0]  # a byte that is no character by itself
    assert piece == "Ã"
    assert text.token_texts(found, [len(found.tokenizer), -1]) == ("", "")
