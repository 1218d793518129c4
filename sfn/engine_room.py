"""The one owner of the engine: a queue of questions from all viewers, and the thread that answers them.

Answers grow in `Answer` objects that pages read; finished ones go to the store. Knows no page and draws nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from sfn import engines, recipes
from sfn.engines.base import Engine, Status
from sfn.errors import JobError
from sfn.jobs import sentence_of
from sfn.records import Generation, PromptMode, Question, Sampling

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan
    from sfn.store import Store

AnswerState = Literal["stored", "queued", "loading", "running", "done", "failed", "cancelled"]

_PATIENCE_S = 20.0  # a question never waits longer than this for others that need the loaded weights


class Answer:
    """One question in the engine's queue, and its answer as it grows. Written by the engine's thread, read by any.

    Attributes:
        text: generated so far. generation: the finished record; also set when it came from the store.
        error: the sentence of a failed answer. detail: what the engine does before the first token.
    """

    def __init__(self, question: Question, pair: Pair | None, plan: Plan | None, owner: str) -> None:
        self.question = question
        self.pair = pair
        self.plan = plan
        self.owners = {owner}
        self.state: AnswerState = "queued"
        self.text = ""
        self.n_tokens = 0
        self.n_prompt_tokens = 0
        self.first_token_s = 0.0
        self.elapsed_s = 0.0
        self.finish: str | None = None
        self.error = ""
        self.detail = ""
        self.generation: Generation | None = None
        self.asked_at = time.monotonic()
        self.cancel_event = threading.Event()
        self.finished = threading.Event()

    @classmethod
    def stored(cls, generation: Generation) -> Answer:
        """An answer that was found in the store."""
        answer = cls(generation.question, None, None, "")
        answer.generation, answer.state, answer.finish = generation, "stored", generation.finish
        answer.text, answer.n_tokens = generation.text, generation.n_tokens
        answer.n_prompt_tokens = generation.n_prompt_tokens
        answer.first_token_s, answer.elapsed_s = generation.first_token_s, generation.elapsed_s
        answer.finished.set()
        return answer

    @property
    def active(self) -> bool:
        """Whether the answer is still to come or still growing."""
        return self.state in ("queued", "loading", "running")

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second after the first one, so far; 0 where that cannot be told yet."""
        rest = self.elapsed_s - self.first_token_s
        return (self.n_tokens - 1) / rest if self.n_tokens > 1 and rest > 0 else 0.0


class EngineRoom:
    """The one owner of the one engine: a queue of questions and the thread that answers them.

    Questions that need the weights which are loaded are answered first, as long as nobody waits longer than
    20 s for that. The same question asked twice while it runs is answered once. Finished answers go to the store.
    """

    def __init__(
        self, store: Store, backend: str | None = None, open_engine: Callable[..., Engine] = engines.open
    ) -> None:
        self._store = store
        self._backend = backend or engines.default_backend()
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self._held: tuple[str, str] | None = None  # (backend, pair key) of the engine that is open
        self._starting = ""
        self._failure = ""
        self._waiting: list[Answer] = []
        self._current: Answer | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    # ---------------------------------------------------------------- what is asked

    @property
    def backend(self) -> str:
        """The engine that new questions go to."""
        return self._backend

    def choose(self, backend: str) -> None:
        """Send new questions to `backend`; the engine changes when the next question is answered."""
        if backend not in engines.BACKENDS:
            raise JobError(f"There is no engine {backend!r}; there are {', '.join(engines.BACKENDS)}.")
        self._backend = backend

    def question(self, pair: Pair, plan: Plan, prompt: str, mode: PromptMode, sampling: Sampling) -> Question:
        """The record that decides the answer, for the engine chosen now; starts nothing."""
        device, dtype = engines.frame(self._backend, pair)
        return Question(
            pair_key=pair.key,
            plan_key=plan.key,
            recipe=recipes.format(plan.recipe),
            prompt=prompt,
            mode=mode,
            tokenizer=plan.tokenizer,
            sampling=sampling,
            engine=self._backend,
            engine_version=engines.version_of(self._backend),
            device=device,
            dtype=dtype,
        )

    def find(self, question: Question) -> Answer | None:
        """The answer that is being worked on or in the store; None where there is neither. Starts nothing."""
        with self._changed:
            answer = self._in_flight(question.key)
        if answer is not None:
            return answer
        generation = self._store.find_generation(question.key)
        return None if generation is None else Answer.stored(generation)

    def ask(
        self,
        pair: Pair,
        plan: Plan,
        prompt: str,
        mode: PromptMode,
        sampling: Sampling,
        owner: str,
        *,
        fresh: bool = False,
    ) -> Answer:
        """Answer from the store when known (unless `fresh`), else queue the question and return at once."""
        question = self.question(pair, plan, prompt, mode, sampling)
        if not fresh:
            known = self.find(question)
            if known is not None and not known.active:
                return known
        with self._changed:
            if self._closing:
                raise JobError("The app is shutting down; start it again to ask.")
            answer = self._in_flight(question.key)
            if answer is not None:
                answer.owners.add(owner)
                return answer
            answer = Answer(question, pair, plan, owner)
            self._store.save_recipe(question.recipe, plan.key, pair.key)
            self._waiting.append(answer)
            self._ensure_thread()
            self._changed.notify_all()
        return answer

    def cancel(self, answer: Answer, owner: str) -> None:
        """Withdraw `owner` from an answer; it stops when nobody is left who wants it."""
        with self._changed:
            answer.owners.discard(owner)
            if answer.owners or not answer.active:
                return
            answer.cancel_event.set()
            if answer in self._waiting:
                self._waiting.remove(answer)
                answer.finish = "cancelled"
                self._end(answer, "cancelled")

    def position(self, answer: Answer) -> int:
        """How many questions are before this one; 0 when it is being answered or is finished."""
        with self._changed:
            if answer not in self._waiting:
                return 0
            return self._waiting.index(answer) + (self._current is not None)

    @property
    def queue_length(self) -> int:
        """Questions that wait, the one being answered not counted."""
        return len(self._waiting)

    @property
    def pair_key(self) -> str | None:
        """Content key of the pair whose weights the open engine holds; None where none is open."""
        held = self._held
        return held[1] if self._engine is not None and held is not None else None

    @property
    def status(self) -> Status:
        """What the engine is and holds now; before the first question: stopped."""
        engine = self._engine
        if engine is not None and not self._starting:
            return engine.status
        return Status(
            backend=self._backend,
            version=engines.version_of(self._backend),
            device="",
            dtype="",
            state="starting" if self._starting else "dead" if self._failure else "stopped",
            recipe=None,
            plan_key=None,
            detail=self._starting or self._failure,
        )

    # ---------------------------------------------------------------- the engine's thread

    def _in_flight(self, key: str) -> Answer | None:
        current = [self._current] if self._current is not None else []
        for answer in [*current, *self._waiting]:
            if answer.question.key == key and answer.active and not answer.cancel_event.is_set():
                return answer
        return None

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._serve, name="sfn-engine", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if self._closing:
                    break
                answer = self._next()
                self._waiting.remove(answer)
                self._current = answer
            try:
                self._answer(answer)
            except Exception as error:
                answer.error = sentence_of(error)
                self._end(answer, "failed")
                self._after_failure()
            finally:
                with self._changed:
                    self._current = None
        self._shut_engine()

    def _next(self) -> Answer:
        """The oldest question, or the oldest that needs the loaded weights if the oldest of all can still wait."""
        oldest = self._waiting[0]
        if self._engine is None or time.monotonic() - oldest.asked_at > _PATIENCE_S:
            return oldest
        loaded = (self._held, self._engine.status.plan_key)
        for answer in self._waiting:
            if ((answer.question.engine, answer.question.pair_key), answer.question.plan_key) == loaded:
                return answer
        return oldest

    def _answer(self, answer: Answer) -> None:
        if answer.pair is None or answer.plan is None:
            raise JobError("A stored answer cannot be asked again.")  # stored answers never enter the queue
        answer.state = "loading"
        engine = self._engine_for(answer)
        if answer.cancel_event.is_set():
            answer.finish = "cancelled"
            self._end(answer, "cancelled")
            return
        engine.be(answer.plan.recipe)
        answer.state = "running"
        sampling = asdict(answer.question.sampling)
        pieces = engine.generate(
            answer.question.prompt, mode=answer.question.mode, cancel=answer.cancel_event, **sampling
        )
        for piece in pieces:
            if not answer.n_tokens and piece.n_tokens:
                answer.first_token_s = piece.elapsed_s
            answer.text += piece.text
            answer.n_tokens, answer.n_prompt_tokens = piece.n_tokens, piece.n_prompt_tokens
            answer.elapsed_s, answer.finish = piece.elapsed_s, piece.finish
        self._keep(answer)

    def _keep(self, answer: Answer) -> None:
        """Store a finished answer, then tell everybody that it is finished."""
        pair = answer.pair
        answer.generation = Generation(
            question=answer.question,
            text=answer.text,
            n_prompt_tokens=answer.n_prompt_tokens,
            n_tokens=answer.n_tokens,
            first_token_s=answer.first_token_s,
            elapsed_s=answer.elapsed_s,
            finish=answer.finish or "cancelled",
            a_label=pair.a.label,
            b_label=pair.b.label,
            created_at=datetime.now(UTC),
        )
        self._store.save_generation(answer.generation)
        self._end(answer, "cancelled" if answer.finish == "cancelled" else "done")

    def _end(self, answer: Answer, state: AnswerState) -> None:
        answer.state = state
        answer.pair = answer.plan = None  # a finished answer must not keep files mapped
        answer.finished.set()

    def _engine_for(self, answer: Answer) -> Engine:
        wanted = (answer.question.engine, answer.question.pair_key)
        if self._engine is not None and self._held == wanted:
            return self._engine
        self._shut_engine()
        self._failure = ""
        self._starting = f"starting {answer.question.engine} with {answer.pair.label}"
        try:
            self._engine = self._open_engine(
                answer.question.engine, answer.pair, device=answer.question.device, dtype=answer.question.dtype
            )
            self._held = wanted
        except Exception as error:
            self._failure = str(error)
            raise
        finally:
            self._starting = ""
        return self._engine

    def _after_failure(self) -> None:
        """A dead engine is put away; the next question starts another."""
        if self._engine is not None and self._engine.status.state == "dead":
            self._failure = self._engine.status.detail or "the engine died"
            self._shut_engine()

    def _shut_engine(self) -> None:
        engine, self._engine, self._held = self._engine, None, None
        if engine is not None:
            engine.close()

    def close(self) -> None:
        """Cancel every question, let the engine go, and wait for both."""
        with self._changed:
            self._closing = True
            for answer in [*self._waiting, *([self._current] if self._current else [])]:
                answer.cancel_event.set()
            for answer in self._waiting:
                self._end(answer, "cancelled")
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=60)
