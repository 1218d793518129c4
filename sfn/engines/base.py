"""The one protocol that every engine speaks. Knows no backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event
from typing import Literal, Protocol

from sfn.recipes import Recipe
from sfn.records import FinishReason, PromptMode

EngineState = Literal["stopped", "starting", "loading", "idle", "busy", "dead"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer as it streams.

    Attributes:
        text: text that is new since the last piece; whole characters only.
        n_tokens: tokens generated so far. n_prompt_tokens: tokens of the prompt.
        elapsed_s: seconds since the request, weights in place. finish: set on the last piece alone.
    """

    text: str
    n_tokens: int
    n_prompt_tokens: int
    elapsed_s: float
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a text is under the loaded weights.

    Attributes:
        token_ids: tokens of the text. logprobs: natural log-probability of each given those before; the first token of
            the whole sequence has none and is left out. tokens: the text of each scored token.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]

    @property
    def perplexity(self) -> float:
        """exp(-mean logprob); NaN for a text of no scored token."""
        from math import exp, nan

        return exp(-sum(self.logprobs) / len(self.logprobs)) if self.logprobs else nan


@dataclass(frozen=True, slots=True)
class Status:
    """What an engine is and holds now. recipe: canonical text of what is loaded, None while unknown or not started.
    place: host and port of an engine that runs elsewhere, "" for one on this machine."""

    backend: str
    version: str
    device: str
    dtype: str
    state: EngineState
    recipe: str | None
    plan_key: str | None
    detail: str = ""
    place: str = ""


class Engine(Protocol):
    """A model that can become any recipe of its pair, and speak.

    Created by `sfn.engines.open`; a context manager; `close()` may be called twice. Not thread-safe: one owner drives
    it (`sfn.engine_room`), but `status` may be read, and a generation's `cancel` event set, from any thread.
    """

    def be(self, recipe: Recipe, *, cancel: Event | None = None) -> None:
        """Hold the weights of `recipe`.

        Setting `cancel` ends it with Cancelled where the engine can stop: nothing is broken then, `status.recipe` is
        None unless the old weights are still whole, and the next `be` or `generate` goes on from there. Raises
        RecipeError with nothing touched yet, EngineError if it fails midway.
        """

    def generate(
        self,
        prompt: str,
        *,
        mode: PromptMode = "plain",
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: tuple[str, ...] = (),
        cancel: Event | None = None,
    ) -> Iterator[Piece]:
        """Stream an answer from the weights held now; setting `cancel` ends it with finish "cancelled"."""

    def score(self, text: str, *, prompt: str = "", mode: PromptMode = "plain") -> Score:
        """Log-probabilities of `text` after `prompt` under the weights held now."""

    @property
    def status(self) -> Status:
        """What the engine is and holds now."""

    def close(self) -> None:
        """Free everything; no process is left behind."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exc: object) -> None: ...
