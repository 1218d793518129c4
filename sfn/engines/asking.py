"""What may be asked of an engine, checked before anything is computed. Knows no backend."""

from __future__ import annotations

from collections.abc import Mapping

from sfn.checkpoints import text_config
from sfn.errors import EngineError
from sfn.records import Sampling

MAX_TEMPERATURE = 2.0  # what vLLM allows; the same for all, so that a question can be asked of any engine


def sampling(
    *, max_tokens: int, temperature: float, top_p: float, top_k: int, seed: int, stop: tuple[str, ...]
) -> Sampling:
    """The settings as a record; raises EngineError with the value at fault and the legal ones."""
    if isinstance(stop, str):
        stop = (stop,)
    if max_tokens < 1:
        raise EngineError(f"max_tokens is {max_tokens}; ask for one token or more.")
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise EngineError(f"temperature is {temperature}; it must be from 0 (greedy) to {MAX_TEMPERATURE:g}.")
    if not 0 < top_p <= 1:
        raise EngineError(f"top_p is {top_p}; it must lie above 0 and at most at 1 (off).")
    if top_k < 0:
        raise EngineError(f"top_k is {top_k}; it must be 0 (off) or more.")
    return Sampling(max_tokens, float(temperature), float(top_p), int(top_k), int(seed), tuple(stop))


def room(n_prompt: int, limit: int | None, max_tokens: int) -> int:
    """How many tokens may be generated after a prompt of `n_prompt` in a context of `limit` (None: no limit known).

    Raises EngineError where the prompt alone fills the context.
    """
    if limit is None:
        return max_tokens
    if n_prompt >= limit:
        raise EngineError(
            f"The prompt is {n_prompt} tokens long, but this model's context holds {limit}, the answer included: "
            "shorten the prompt."
        )
    return min(max_tokens, limit - n_prompt)


def score_length(n: int, limit: int | None) -> None:
    """Raises EngineError where a text to score, with its prompt, is longer than the context."""
    if limit is not None and n > limit:
        raise EngineError(
            f"Prompt and text are {n} tokens together, but this model's context holds {limit}: score a shorter part."
        )


def context_limit(config: Mapping[str, object]) -> int | None:
    """Tokens that the model of this config.json can hold, or None where it does not say."""
    for part in (text_config(config), config):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            if isinstance(value := part.get(key), int) and value > 0:
                return value
    return None
