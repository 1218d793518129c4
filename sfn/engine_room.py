"""The one owner of the engine: takes questions from all viewers, and has the thread that answers them.

Whose turn it is, `engine_queue` says. Answers grow in `Answer` objects that pages read; finished ones go to the store.
Knows no page and draws nothing.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sfn import engines, recipes
from sfn.engine_queue import Answer, Queue, Said, Task
from sfn.engines.base import Engine, Status
from sfn.errors import Cancelled, EngineError, JobError
from sfn.jobs import sentence_of
from sfn.records import Generation, PromptMode, Question, Sampling

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan
    from sfn.store import Store

__all__ = ["Answer", "EngineRoom"]

log = logging.getLogger(__name__)


class EngineRoom:
    """The one owner of the one engine. Thread-safe.

    A question that several viewers ask while it waits or runs is answered once; each has a view of it (`Answer`), and
    it goes on as long as one of them wants it. Finished answers go to the store.
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
        self._queue = Queue()
        self._current: Task | None = None
        self._numbers = itertools.count(1)
        self._recipes: set[tuple[str, str]] = set()  # (pair key, recipe) that this process has saved
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

    def in_flight(self, key: str) -> Answer | None:
        """A view of the answer to the question of that `Question.key` that waits or is being worked on; None where
        none is. Asks for nothing: what is found so stops when those who asked want it no more."""
        with self._changed:
            task = self._in_flight(key)
            return None if task is None else Answer(task)

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
        background: bool = False,
    ) -> Answer:
        """Answer from the store when known (unless `fresh`), else queue the question and return at once.

        background: the question waits until nobody has another one waiting, and is set back when somebody asks.
        """
        question = self.question(pair, plan, prompt, mode, sampling)
        joined = self._join(question.key, owner, background)
        if joined is not None:
            return joined
        known = None if fresh else self._store.find_generation(question.key)
        if known is not None:
            return Answer.stored(known)
        if not background or (question.pair_key, question.recipe) not in self._recipes:
            self._store.save_recipe(question.recipe, question.plan_key, question.pair_key)
            self._recipes.add((question.pair_key, question.recipe))
        with self._changed:
            joined = self._join(question.key, owner, background)
            if joined is not None:
                return joined
            task = Task(question, pair, plan, next(self._numbers))
            answer = _view(task, owner, background)
            self._queue.add(task)
            self._set_back()
            self._ensure_thread()
            self._changed.notify_all()
        return answer

    def _join(self, key: str, owner: str, background: bool) -> Answer | None:
        """A view of the task that works on this question already, if one does."""
        with self._changed:
            if self._closing:
                raise JobError("The app is shutting down; start it again to ask.")
            task = self._in_flight(key)
            if task is None:
                return None
            answer = _view(task, owner, background)
            self._queue.changed()
            self._set_back()
            return answer

    def cancel(self, answer: Answer, owner: str) -> None:
        """Let `owner` leave an answer: for them it stays as it is now. It stops when nobody is left who wants it.

        One that was found, not asked for, is left too, with whatever `owner` asked of it elsewhere. Raises JobError
        where the answer is another viewer's.
        """
        with self._changed:
            if answer.owner not in (owner, ""):
                raise JobError("This answer was asked for by another viewer; only they can stop it.")
            if not answer.active:
                return
            task = answer.task
            leaving = [view for view in task.wanted if view is answer or (not answer.owner and view.owner == owner)]
            for view in {answer, *leaving}:
                view.leave()
            self._queue.changed()
            if not leaving or task.wanted:
                return
            if task in self._queue:
                self._queue.remove(task)
                task.end("cancelled", finish="cancelled")
            else:
                self._stop(task)

    def position(self, answer: Answer) -> int:
        """How many questions are before this one, as things stand; 0 when it is being answered or has ended."""
        with self._changed:
            if not answer.active or answer.task not in self._queue:
                return 0
            return self._queue.before(answer.task) + (self._current is not None)

    def asked_by(self, owner: str) -> list[Answer]:
        """What a viewer has asked and is still to come, in the order in which it will."""
        with self._changed:
            tasks = [*([self._current] if self._current is not None else []), *self._queue]
            views = [view for task in tasks for view in task.wanted if view.owner == owner and view.active]
            return sorted(views, key=self.position)

    @property
    def queue_length(self) -> int:
        """Questions that wait, the one being answered not counted."""
        return len(self._queue)

    @property
    def background_length(self) -> int:
        """How many of them are background work."""
        with self._changed:
            return len(self._queue) - self._queue.foreground

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
        backend = next(backend for backend in engines.available() if backend.name == self._backend)
        return Status(
            backend=self._backend,
            version=backend.version,
            device="",
            dtype="",
            state="starting" if self._starting else "dead" if self._failure else "stopped",
            recipe=None,
            plan_key=None,
            detail=self._starting or self._failure,
            place=backend.place,
        )

    # ---------------------------------------------------------------- the engine's thread

    def _in_flight(self, key: str) -> Task | None:
        current = [self._current] if self._current is not None else []
        for task in [*current, *self._queue]:
            if task.key == key and task.said.active and task.wanted:
                return task
        return None

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._serve, name="sfn-engine", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not len(self._queue) and not self._closing:
                    self._changed.wait()
                if self._closing:
                    break
                task = self._current = self._queue.take()
                self._queue.loaded(task.weights)
            try:
                self._answer(task)
            except Exception as error:
                with self._changed:
                    task.end("failed", error=sentence_of(error))
                self._after_failure()
            finally:
                with self._changed:
                    self._current = None
                    self._queue.loaded(self._weights())
        self._shut_engine()

    def _weights(self) -> tuple[str, str, str] | None:
        """What the engine holds now, as a question names what it needs."""
        if self._engine is None or self._held is None:
            return None
        return (*self._held, self._engine.status.plan_key or "")

    def _answer(self, task: Task) -> None:
        task.say(state="loading")
        try:
            engine = self._engine_for(task)
            engine.be(task.plan.recipe, cancel=task.stop)
        except Cancelled:
            self._let_go(task)
            return
        with self._changed:
            self._set_back()
        if task.stop.is_set() or not task.wanted:
            self._let_go(task)
            return
        task.say(state="running")
        question = task.question
        pieces = engine.generate(question.prompt, mode=question.mode, cancel=task.stop, **asdict(question.sampling))
        with closing(pieces):
            for piece in pieces:
                said = task.said
                task.say(
                    text=said.text + piece.text,
                    n_tokens=piece.n_tokens,
                    n_prompt_tokens=piece.n_prompt_tokens,
                    first_token_s=said.first_token_s if said.n_tokens or not piece.n_tokens else piece.elapsed_s,
                    elapsed_s=piece.elapsed_s,
                    finish=piece.finish,
                )
                if task.protected_until:
                    with self._changed:
                        self._set_back()
        if task.said.finish != "cancelled" or not task.wanted:
            self._keep(task)
        elif task.stop.is_set():
            self._let_go(task)
        else:
            raise EngineError("The engine broke this answer off by itself. Ask again.")

    def _set_back(self) -> None:
        """Make a background answer that is being worked on give way to a question of the foreground."""
        task = self._current
        if task is not None and task.background and self._queue.foreground and time.monotonic() > task.protected_until:
            self._stop(task)

    def _stop(self, task: Task) -> None:
        """Stop the task that is being worked on, but not the start of an engine that others are waiting for."""
        starting = task.said.state == "loading" and self.status.state == "starting"
        if not (starting and any(other.weights[:2] == task.weights[:2] for other in self._queue)):
            task.stop.set()

    def _let_go(self, task: Task) -> None:
        """A task that was stopped: it waits again if somebody wants it."""
        with self._changed:
            self._current = None
            if task.wanted and not self._closing:
                task.stop = threading.Event()
                task.said = Said()
                self._queue.add(task)
            else:
                task.end("cancelled", finish="cancelled")

    def _keep(self, task: Task) -> None:
        """Store a finished answer, then tell everybody that it is finished."""
        said, pair = task.said, task.pair
        generation = Generation(
            question=task.question,
            text=said.text,
            n_prompt_tokens=said.n_prompt_tokens,
            n_tokens=said.n_tokens,
            first_token_s=said.first_token_s,
            elapsed_s=said.elapsed_s,
            finish=said.finish or "cancelled",
            a_label=pair.a.label,
            b_label=pair.b.label,
            created_at=datetime.now(UTC),
        )
        self._store.save_generation(generation)
        with self._changed:
            task.end("cancelled" if said.finish == "cancelled" else "done", generation=generation)

    def _engine_for(self, task: Task) -> Engine:
        wanted = (task.question.engine, task.question.pair_key)
        if self._engine is not None and self._held == wanted:
            return self._engine
        self._shut_engine()
        self._failure = ""
        self._starting = f"starting {task.question.engine} with {task.pair.label}"
        try:
            self._engine = self._open_engine(
                task.question.engine, task.pair, device=task.question.device, dtype=task.question.dtype
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
            try:
                engine.close()
            except Exception:  # the queue must go on
                log.exception("the engine did not close cleanly")

    def close(self) -> None:
        """Cancel every question, let the engine go, and wait for both."""
        with self._changed:
            self._closing = True
            if self._current is not None:
                self._current.wanted = []
                self._current.stop.set()
            for task in list(self._queue):
                self._queue.remove(task)
                task.end("cancelled", finish="cancelled")
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=60)


def _view(task: Task, owner: str, background: bool) -> Answer:
    answer = Answer(task, owner, background=background)
    task.wanted.append(answer)
    return answer
