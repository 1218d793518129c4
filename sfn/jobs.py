"""Background work with progress and cancel, and the one owner of the engine. Knows no page and draws nothing.

`Jobs` runs scans, file hashing and the like in threads; what they find is in the store as soon as it is found.
`EngineRoom` owns the one engine of this process: viewers put questions into its queue, a single thread answers them.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from sfn import engines, recipes
from sfn.engines.base import Engine, Status
from sfn.errors import Cancelled, JobError, SfnError
from sfn.records import Generation, PromptMode, Question, Sampling

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan
    from sfn.store import Store

log = logging.getLogger(__name__)

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
AnswerState = Literal["stored", "queued", "loading", "running", "done", "failed", "cancelled"]

_KEPT_JOBS = 50
_PATIENCE_S = 20.0  # a question never waits longer than this for others that need the loaded weights


def _sentence(error: Exception) -> str:
    """What a person reads of `error`; a defect is logged with its traceback and named as one."""
    if isinstance(error, SfnError):
        return str(error)
    log.error("defect in background work", exc_info=error)
    return f"An unexpected error stopped this: {type(error).__name__}: {error}. The server's log has the details."


class Job:
    """One piece of background work. Fields are written by its thread and may be read from any.

    Attributes:
        done, total: progress in `unit`; total 0 while unknown. detail: what is being worked on now.
        error: the sentence of a failed job. result: what `work` returned.
        owners: the viewers who want it; it is cancelled when the last of them cancels.
    """

    def __init__(self, number: int, title: str, key: str, owner: str) -> None:
        self.id = number
        self.title = title
        self.key = key
        self.owners = {owner}
        self.state: JobState = "queued"
        self.done = 0.0
        self.total = 0.0
        self.unit = ""
        self.detail = ""
        self.error = ""
        self.result: Any = None
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.cancel_event = threading.Event()
        self.finished = threading.Event()

    def report(self, done: float, total: float, detail: str = "", unit: str = "") -> None:
        """Set the progress; raises Cancelled once the job was cancelled, so that work stops at its next report."""
        self.done, self.total, self.detail, self.unit = done, total, detail, unit or self.unit
        if self.cancel_event.is_set():
            raise Cancelled(f"{self.title} was cancelled.")

    @property
    def active(self) -> bool:
        """Whether the job still waits or runs."""
        return self.state in ("queued", "running")

    @property
    def share(self) -> float:
        """Progress in [0, 1]."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the rate so far; None while that cannot be told."""
        if self.state != "running" or not self.done or not self.total or self.started_at is None:
            return None
        return (time.monotonic() - self.started_at) * (self.total - self.done) / self.done

    @property
    def finished_ago_s(self) -> float | None:
        """Seconds since the job ended; None while it has not."""
        return None if self.finished_at is None else time.monotonic() - self.finished_at


class Jobs:
    """The background jobs of this process. Thread-safe."""

    def __init__(self, workers: int = 4) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="sfn-job")
        self._lock = threading.RLock()
        self._jobs: OrderedDict[int, Job] = OrderedDict()
        self._numbers = itertools.count(1)

    def start(self, title: str, work: Callable[[Job], Any], *, key: str, owner: str) -> Job:
        """Run `work(job)` in the background; a job with the same key that still runs is joined instead."""
        with self._lock:
            running = self.find(key)
            if running is not None and running.active and not running.cancel_event.is_set():
                running.owners.add(owner)
                return running
            job = Job(next(self._numbers), title, key, owner)
            self._jobs[job.id] = job
            self._forget_old()
            self._pool.submit(self._run, job, work)
            return job

    def _run(self, job: Job, work: Callable[[Job], Any]) -> None:
        if not job.cancel_event.is_set():
            job.state, job.started_at = "running", time.monotonic()
            try:
                job.result = work(job)
                state: JobState = "done"
            except Cancelled:
                state = "cancelled"
            except Exception as error:
                job.error, state = _sentence(error), "failed"
        else:
            state = "cancelled"
        job.finished_at, job.state = time.monotonic(), state
        job.finished.set()

    def _forget_old(self) -> None:
        ended = [number for number, job in self._jobs.items() if not job.active]
        for number in ended[: max(0, len(self._jobs) - _KEPT_JOBS)]:
            del self._jobs[number]

    def find(self, key: str) -> Job | None:
        """The newest job with this key, or None."""
        with self._lock:
            return next((job for job in reversed(self._jobs.values()) if job.key == key), None)

    def active(self) -> list[Job]:
        """Jobs that wait or run, oldest first."""
        with self._lock:
            return [job for job in self._jobs.values() if job.active]

    def recent(self, seconds: float = 8.0) -> list[Job]:
        """Active jobs, and those that ended at most `seconds` ago."""
        with self._lock:
            return [job for job in self._jobs.values() if job.active or (job.finished_ago_s or 0.0) <= seconds]

    def cancel(self, number: int, owner: str) -> None:
        """Withdraw `owner` from a job; it stops when nobody is left who wants it. Raises JobError."""
        with self._lock:
            job = self._jobs.get(number)
            if job is None:
                raise JobError(f"There is no job {number}; it may have ended long ago.")
            if owner not in job.owners:
                raise JobError(f"“{job.title}” was started by another viewer; only they can cancel it.")
            job.owners.discard(owner)
            if not job.owners:
                job.cancel_event.set()

    def close(self) -> None:
        """Cancel everything and wait until the threads have let go."""
        with self._lock:
            for job in self._jobs.values():
                job.cancel_event.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


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
                answer.error = _sentence(error)
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
