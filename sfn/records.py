"""Plain records that travel between rooms: results of scans, answers, sweeps. No behaviour, no heavy imports."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Literal

HistogramForm = Literal["script", "paper"]
PromptMode = Literal["plain", "chat"]
FinishReason = Literal["stop", "length", "cancelled"]


def content_key(*parts: object) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of `parts`: the one way in which SfN makes keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of the relative change r of one tensor's elements (paper, figures 3 and 8).

    Attributes:
        form: "script": r = (b - a) / (|a| + 1e-8), as in the paper's released scripts; "paper": r = (b - a) / a.
        inner: 200 counts over equal bins on [-1, 1]; the last bin is closed on both sides.
        below, above: elements with r < -1 and r > 1.
        zeros: elements with a = 0, in no bin. nonfinite: elements that are NaN or infinite on either side.

    inner + below + above + zeros + nonfinite = number of elements, always.
    """

    form: HistogramForm
    inner: tuple[int, ...]
    below: int
    above: int
    zeros: int
    nonfinite: int

    @property
    def total(self) -> int:
        """Number of elements counted."""
        return sum(self.inner) + self.below + self.above + self.zeros + self.nonfinite


@dataclass(frozen=True, slots=True)
class TensorDelta:
    """What changed between tensor `name` of A and of B.

    Attributes:
        layer, block, module, parameter, expert: the name's anatomy (`sfn.anatomy.parse`).
        shape: shape compared. n: number of elements. dtype_a, dtype_b: safetensors codes ("BF16").
        l2_shift: ||b - a||_2 (paper, figures 2 and 7). rms_shift: l2_shift / sqrt(n).
        relative_shift: l2_shift / ||a||_2; NaN where A's norm is 0 and B's is not, 0 where nothing changed.
        cosine: <a, b> / (||a|| ||b||); NaN where one norm is 0.
        changed_share: share of elements whose stored bits differ, in [0, 1]; across dtypes: whose values differ.
        max_abs_shift: max |b - a|.
        nonfinite: elements that are NaN or infinite on either side; they are left out of every figure above
            but changed_share.
        histogram, histogram_paper: relative change in the scripts' and in the paper's form.
    """

    name: str
    layer: int | None
    block: str
    module: str
    parameter: str
    expert: int | None
    shape: tuple[int, ...]
    n: int
    dtype_a: str
    dtype_b: str
    l2_shift: float
    rms_shift: float
    relative_shift: float
    cosine: float
    changed_share: float
    max_abs_shift: float
    nonfinite: int
    histogram: Histogram
    histogram_paper: Histogram


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; top_k 0 and top_p 1 switch those filters off."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # One number, one key: a temperature given as 0 is the temperature 0.0.
        object.__setattr__(self, "temperature", float(self.temperature))
        object.__setattr__(self, "top_p", float(self.top_p))


@dataclass(frozen=True, slots=True)
class Question:
    """Everything that decides a generation; its `key` is what the store finds an answer by.

    Attributes:
        pair_key: content key of the pair (`Pair.key`). plan_key: content key of the weights (`Plan.key`).
        recipe: canonical text of the recipe ("" = all A). prompt: as typed. mode: "plain" completion or "chat".
        tokenizer: whose tokenizer and chat template are used, "A" or "B".
        engine, engine_version: "transformers" or "vllm", and its version. device: "cpu", "cuda". dtype: "bfloat16".
    """

    pair_key: str
    plan_key: str
    recipe: str
    prompt: str
    mode: PromptMode
    tokenizer: Literal["A", "B"]
    sampling: Sampling
    engine: str
    engine_version: str
    device: str
    dtype: str

    @property
    def key(self) -> str:
        """Content key; the recipe's spelling does not enter, what it resolves to (`plan_key`) does."""
        return _question_key(self)


@lru_cache(maxsize=512)  # pages ask for the keys of a few dozen questions again and again, and each takes 40 µs
def _question_key(question: Question) -> str:
    fields = asdict(question)
    del fields["recipe"]
    return content_key(fields)


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished answer.

    Attributes:
        text: generated text, prompt not included. n_prompt_tokens, n_tokens: token counts.
        first_token_s: seconds from request to first token, weights in place. elapsed_s: seconds to the last token.
        finish: "stop" (end token or stop string), "length" (max_tokens or context), "cancelled" (kept, never served as
            a cached answer).
        a_label, b_label: short names of the models. created_at: UTC.
    """

    question: Question
    text: str
    n_prompt_tokens: int
    n_tokens: int
    first_token_s: float
    elapsed_s: float
    finish: FinishReason
    a_label: str
    b_label: str
    created_at: datetime
    note: str = field(default="")

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second after the first one; 0 where there is only one."""
        rest = self.elapsed_s - self.first_token_s
        return (self.n_tokens - 1) / rest if self.n_tokens > 1 and rest > 0 else 0.0


@dataclass(frozen=True, slots=True)
class SweepCell:
    """One cell of a sweep as it is kept, with its answer as far as there is one.

    Attributes:
        row: from 0; -2 is A's own answer, -1 is B's. column: from 0.
        recipe: canonical text. alpha: share of B that is laid, where an axis of the sweep is alpha.
        question_key: `Question.key` that its answer is found by; "" where `problem` says why the pair cannot do it.
        error: the sentence of an answer that failed; "" where none did. generation: the newest finished answer.
    """

    row: int
    column: int
    recipe: str
    alpha: float | None
    question_key: str
    problem: str = ""
    error: str = ""
    generation: Generation | None = None
