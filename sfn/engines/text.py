"""Prompt -> token ids -> text, the same for every engine: tokenising, chat templates, end tokens, and the decoding of
a stream into whole characters. Knows no model and no weights; `transformers` is imported late.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfn.errors import EngineError
from sfn.records import PromptMode

# How many prompt tokens the decoder looks back on: enough for a tokenizer whose first token loses its leading space.
_CONTEXT = 6
# Tokens that may be held back while they do not form whole characters; a character is at most four bytes.
_PATIENCE = 8
_BROKEN = "\ufffd"


@dataclass(frozen=True)
class Speech:
    """One side's way to speak: its tokenizer and chat template, and the token ids that end an answer.

    Attributes:
        label: whose it is, for messages. tokenizer: a transformers tokenizer. end_ids: ids after which an answer ends.
        hidden_ids: ids that never show in a text (end, padding, begin); all other special tokens do, such as <think>.
    """

    label: str
    tokenizer: Any
    end_ids: frozenset[int]
    hidden_ids: frozenset[int]

    def prompt_ids(self, prompt: str, mode: PromptMode) -> list[int]:
        """Token ids that the model is given for `prompt`; raises EngineError where there is nothing to give it."""
        if mode == "chat":
            return self._chat_ids(prompt)
        if mode != "plain":
            raise EngineError(f'There is no prompt mode "{mode}"; there are "plain" and "chat".')
        ids = list(self.tokenizer.encode(prompt))
        if ids:
            return ids
        if self.tokenizer.bos_token_id is not None:
            return [self.tokenizer.bos_token_id]
        raise EngineError(
            f"The prompt is empty, and the tokenizer of {self.label} has no begin token to start from: type something."
        )

    def _chat_ids(self, prompt: str) -> list[int]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise EngineError(f"{self.label} has no chat template; ask in the plain mode instead.")
        messages = [{"role": "user", "content": prompt}]
        try:
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template is a program from the checkpoint: whatever it raises is its fault
            raise EngineError(f"The chat template of {self.label} failed: {error}. Ask in the plain mode.") from error
        return list(ids)

    def continued(self, prompt: str, so_far: str) -> str:
        """The plain prompt that stands for a chat message `prompt` and the beginning `so_far` of its answer.

        A begin token that a plain prompt gets anyway is left out. Raises EngineError as `prompt_ids` does.
        """
        text = self.decode(self._chat_ids(prompt))
        begin = self.tokenizer.bos_token
        if begin and text.startswith(begin) and self.tokenizer.encode("")[:1] == [self.tokenizer.bos_token_id]:
            text = text[len(begin) :]
        return text + so_far

    def scored_ids(self, text: str, prompt: str, mode: PromptMode) -> tuple[list[int], list[int]]:
        """(ids before the text, ids of the text). A plain prompt and its text are tokenised in one go where the seam
        falls between two tokens, so that a text is cut up as it would be in a document."""
        if mode == "plain" and not prompt:
            before: list[int] = []
            ids = list(self.tokenizer.encode(text))
        else:
            before = self.prompt_ids(prompt, mode)
            joint = list(self.tokenizer.encode(prompt + text)) if mode == "plain" else []
            if joint[: len(before)] == before:
                ids = joint[len(before) :]
            else:
                ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        if not ids:
            raise EngineError("There is no text to score: it is empty.")
        return before, ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` as it stands, special tokens included, spaces untouched."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def token_texts(self, before: Sequence[int], ids: Sequence[int]) -> tuple[str, ...]:
        """The text of each of `ids`; joined they are the whole text, so parts of one character share its last token."""
        stream = Stream(self, before, hide=False)
        texts = [stream.push(token) for token in ids]
        if texts:
            texts[-1] += stream.flush()
        return tuple(texts)


def load(folder: Path, label: str, *, extra_end_ids: Iterable[int] = ()) -> Speech:
    """The speech of the checkpoint in `folder`; `extra_end_ids` end an answer as well. Raises EngineError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever a broken tokenizer file raises, it is about that file
        raise EngineError(
            f"The tokenizer of {label} in {folder} cannot be loaded: {error}. Check that tokenizer.json and "
            "tokenizer_config.json lie beside the weights."
        ) from error
    ends = set(extra_end_ids) | end_ids(folder)
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    hidden = ends | {i for i in (tokenizer.pad_token_id, tokenizer.bos_token_id) if i is not None}
    return Speech(label, tokenizer, frozenset(ends), frozenset(hidden))


def token_texts(speech: Speech, ids: Iterable[int]) -> tuple[str, ...]:
    """What each token stands for by itself, on one line that shows all of it: spaces as ␣, what cannot be seen as its
    code, a piece of a character as the tokenizer writes it; "" for a number that is no token's."""
    return tuple(_token_text(speech.tokenizer, number) for number in ids)


def _token_text(tokenizer: Any, number: int) -> str:
    if not 0 <= number < len(tokenizer):
        return ""
    text = tokenizer.decode([number], clean_up_tokenization_spaces=False)
    if not text or _BROKEN in text:
        text = tokenizer.convert_ids_to_tokens(number) or ""
    seen = (letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text.replace("\n", "⏎"))
    return "".join("␣" if letter == " " else letter for letter in seen)


def end_ids(folder: Path) -> set[int]:
    """End token ids that generation_config.json and config.json in `folder` name."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        try:
            config = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # neither file has to exist; what must be readable is read elsewhere, with its own error
        for part in (config, config.get("text_config") or {}):
            value = part.get("eos_token_id")
            found.update(i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int))
    return found


class Stream:
    """Token ids in, text out: whole characters only, leading spaces kept, hidden tokens left out.

    A token's text is what the decoded tail gains by it, seen with the tokens before it, so that tokenizers which
    decode the first token differently, or spread one character over several tokens, come out right.
    """

    def __init__(self, speech: Speech, prompt_ids: Sequence[int] = (), *, hide: bool = True) -> None:
        self._speech = speech
        self._hidden = speech.hidden_ids if hide else frozenset()
        self._ids = list(prompt_ids)[-_CONTEXT:]
        self._from = 0  # the tail that is decoded starts here
        self._told = len(self._ids)  # tokens whose text is out already

    def push(self, token_id: int) -> str:
        """Text that is whole now that `token_id` has come; "" while a character is incomplete."""
        if token_id in self._hidden:
            return ""
        self._ids.append(token_id)
        return self._take(patient=len(self._ids) - self._told < _PATIENCE)

    def flush(self) -> str:
        """What was held back, replacement characters included; to be called once, at the end."""
        return self._take(patient=False)

    def _take(self, *, patient: bool) -> str:
        told = self._speech.decode(self._ids[self._from : self._told])
        text = self._speech.decode(self._ids[self._from :])
        if len(text) <= len(told) or (patient and text.endswith(_BROKEN)):
            return ""
        self._from, self._told = self._told, len(self._ids)
        if self._from > 64:  # the tail alone is needed
            self._ids = self._ids[self._from :]
            self._told -= self._from
            self._from = 0
        return text[len(told) :]


class StopCut:
    """Cuts a stream at the first stop string, which is left out; holds back what may become one."""

    def __init__(self, stop: Iterable[str]) -> None:
        self._stop = tuple(s for s in stop if s)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string was met)."""
        self._held += text
        # The one that is complete first, so that it does not matter in which pieces a text comes.
        met = min(((i + len(s), i) for s in self._stop if (i := self._held.find(s)) >= 0), default=None)
        if met is not None:
            shown, self._held = self._held[: met[1]], ""
            return shown, True
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, shorter than `stop` itself."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Answer:
    """Text and end of one answer, from its token ids: the part of generating that no backend may do differently."""

    def __init__(self, speech: Speech, prompt_ids: Sequence[int], stop: Iterable[str]) -> None:
        self._end_ids = speech.end_ids
        self._stream = Stream(speech, prompt_ids)
        self._cut = StopCut(stop)

    def push(self, token_id: int) -> tuple[str, bool]:
        """(new text, whether the answer ends with this token: an end token or a stop string)."""
        if token_id in self._end_ids:
            text, met = self._cut.push(self._stream.flush())
            return text if met else text + self._cut.flush(), True
        return self._cut.push(self._stream.push(token_id))

    def push_all(self, token_ids: Iterable[int]) -> tuple[str, int, bool]:
        """(new text, tokens taken, whether the answer ends with the last one taken)."""
        text, taken = "", 0
        for token_id in token_ids:
            more, ended = self.push(token_id)
            text, taken = text + more, taken + 1
            if ended:
                return text, taken, True
        return text, taken, False

    def flush(self) -> str:
        """What was held back, where an answer ends for another reason."""
        text, met = self._cut.push(self._stream.flush())
        return text if met else text + self._cut.flush()
