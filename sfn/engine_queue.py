"""Questions on their way to the engine: who wants each of them, what is said so far, and whose turn it is.

Bookkeeping only: no thread, no engine, no store. `engine_room` drives it, under its lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal
from weakref import WeakSet

from sfn.records import FinishReason, Generation, Question

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan

AnswerState = Literal["stored", "queued", "loading", "running", "done", "failed", "cancelled"]

PATIENCE_S = 20.0  # nobody waits longer than this so that others may use the weights that are loaded
BACKGROUND_PATIENCE_S = 60.0  # after which background work gets one turn, however many viewers wait
_MOST_OWNERS = 1000  # whose last turn is remembered

Weights = tuple[str, str, str]  # engine, pair key, plan key
Held = tuple[Weights | None, float]  # what is loaded, and since when


@dataclass(frozen=True, slots=True)
class Said:
    """How far an answer is. Never changed, only replaced: text and counts of one reading belong together.

    Attributes:
        text: generated so far. generation: the finished record; also set when it came from the store.
        error: the sentence of a failed answer.
    """

    state: AnswerState = "queued"
    text: str = ""
    n_tokens: int = 0
    n_prompt_tokens: int = 0
    first_token_s: float = 0.0
    elapsed_s: float = 0.0
    finish: FinishReason | None = None
    error: str = ""
    generation: Generation | None = None

    @property
    def active(self) -> bool:
        """Whether the answer is still to come or still growing."""
        return self.state in ("queued", "loading", "running")


class Task:
    """A question that is worked on once, however many viewers want its answer. Written by the engine's thread.

    Attributes:
        key: the question's. pair, plan: None once it has ended, so that a finished answer keeps no files mapped.
        wanted: the views of those who asked and did not leave. watched: all views, also of those who only look.
        stop: set when the engine shall let go of it, because nobody wants it or because others go first.
        number: order of arrival. protected_until: monotonic time before which a background answer is not set back.
    """

    def __init__(self, question: Question, pair: Pair | None, plan: Plan | None, number: int = 0) -> None:
        self.question, self.key, self.pair, self.plan, self.number = question, question.key, pair, plan, number
        self.said = Said()
        self.asked_at = time.monotonic()
        self.protected_until = 0.0
        self.stop = threading.Event()
        self.wanted: list[Answer] = []
        self.watched: WeakSet[Answer] = WeakSet()

    @property
    def weights(self) -> Weights:
        """Which engine must hold which weights of which pair to answer."""
        return self.question.engine, self.question.pair_key, self.question.plan_key

    @property
    def owners(self) -> frozenset[str]:
        """The viewers who want it."""
        return frozenset(view.owner for view in self.wanted)

    @property
    def background(self) -> bool:
        """Whether nobody waits for it before a page: all who want it asked in the background."""
        return all(view.background for view in self.wanted)

    def say(self, **changes: object) -> None:
        """Replace what is said so far."""
        self.said = replace(self.said, **changes)

    def end(self, state: AnswerState, **changes: object) -> None:
        """It will not change any more; tell everybody who waits."""
        self.say(state=state, **changes)
        self.pair = self.plan = None
        self.wanted = []
        for view in list(self.watched):
            view.finished.set()


class Answer:
    """A viewer's own view of a question and its answer as it grows; read from any thread.

    It follows the task that works on the question until the task ends or the viewer leaves; then it stays as it is.

    Attributes:
        owner: the viewer who asked, "" for one who only looks. background: asked as background work.
        asked_at: monotonic time. finished: set once nothing will change any more.
    """

    def __init__(self, task: Task, owner: str = "", *, background: bool = False) -> None:
        self.owner, self.background = owner, background
        self.asked_at = time.monotonic()
        self.finished = threading.Event()
        self._task = task
        self._left: Said | None = None
        task.watched.add(self)
        if not task.said.active:
            self.finished.set()

    @classmethod
    def stored(cls, generation: Generation) -> Answer:
        """An answer that was found in the store."""
        task = Task(generation.question, None, None)
        task.said = Said(
            state="stored",
            text=generation.text,
            n_tokens=generation.n_tokens,
            n_prompt_tokens=generation.n_prompt_tokens,
            first_token_s=generation.first_token_s,
            elapsed_s=generation.elapsed_s,
            finish=generation.finish,
            generation=generation,
        )
        return cls(task)

    def leave(self) -> None:
        """Keep what was said so far as stopped, whatever becomes of the task."""
        self._left = replace(self._task.said, state="cancelled", finish="cancelled")
        if self in self._task.wanted:
            self._task.wanted.remove(self)
        self.finished.set()

    @property
    def task(self) -> Task:
        """What works on the question."""
        return self._task

    @property
    def owners(self) -> frozenset[str]:
        """The viewers who want it; nobody once it has ended."""
        return self._task.owners

    @property
    def said(self) -> Said:
        """How far the answer is, for this viewer; one reading whose parts belong together."""
        return self._left or self._task.said

    @property
    def question(self) -> Question:
        """What decides the answer."""
        return self._task.question

    @property
    def state(self) -> AnswerState:
        """Where the answer stands."""
        return self.said.state

    @property
    def active(self) -> bool:
        """Whether the answer is still to come or still growing."""
        return self.said.active

    @property
    def text(self) -> str:
        """Generated so far."""
        return self.said.text

    @property
    def n_tokens(self) -> int:
        """Tokens generated so far."""
        return self.said.n_tokens

    @property
    def n_prompt_tokens(self) -> int:
        """Tokens of the prompt; 0 before the first token."""
        return self.said.n_prompt_tokens

    @property
    def first_token_s(self) -> float:
        """Seconds from the request to the first token, weights in place."""
        return self.said.first_token_s

    @property
    def elapsed_s(self) -> float:
        """Seconds from the request to the last token so far, weights in place."""
        return self.said.elapsed_s

    @property
    def finish(self) -> FinishReason | None:
        """Why it ended; None while it has not."""
        return self.said.finish

    @property
    def error(self) -> str:
        """The sentence of a failed answer."""
        return self.said.error

    @property
    def generation(self) -> Generation | None:
        """The finished record; None while there is none."""
        return self.said.generation

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second after the first one, so far; 0 where that cannot be told yet."""
        said = self.said
        rest = said.elapsed_s - said.first_token_s
        return (said.n_tokens - 1) / rest if said.n_tokens > 1 and rest > 0 else 0.0


class Queue:
    """Questions that wait, and whose turn it is.

    The rules. Viewers take turns, so that one who asked twenty things does not hold up one who asked a single one. Who
    needs the weights that are loaded goes first, and who needs another engine or another pair goes last, but nobody
    waits for that longer than 20 s. Background work is done while nobody else waits, grouped by the weights it needs,
    its owners in turn; where it never would be, it gets one turn a minute.
    """

    def __init__(self) -> None:
        self._tasks: list[Task] = []
        self._turns: dict[str, int] = {}  # viewer -> number of the turn that they had last
        self._turn = 0
        self._background_at = 0.0  # when background work was last done
        self._held: Held = (None, 0.0)
        self._places: dict[Task, int] | None = None  # as they were found last, while nothing has changed
        self._places_at = 0.0

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def __contains__(self, task: Task) -> bool:
        return task in self._tasks

    @property
    def foreground(self) -> int:
        """How many questions wait that are no background work."""
        return sum(not task.background for task in self._tasks)

    def add(self, task: Task) -> None:
        """Let a task wait."""
        self._tasks.append(task)
        self._tasks.sort(key=lambda waiting: waiting.number)  # one that was set back keeps its place
        self.changed()

    def remove(self, task: Task) -> None:
        """A task waits no more."""
        self._tasks.remove(task)
        self.changed()

    def changed(self) -> None:
        """Who wants what has changed."""
        self._places = None

    def loaded(self, weights: Weights | None) -> None:
        """Tell what the engine holds now."""
        if weights != self._held[0]:
            self._held = (weights, time.monotonic())
            self.changed()

    def take(self) -> Task:
        """The task whose turn it is, taken out; at least one must wait."""
        now = time.monotonic()
        task = next(self._in_turn(now))
        self._tasks.remove(task)
        self._turn += 1
        self._turns |= dict.fromkeys(task.owners, self._turn)
        if len(self._turns) > _MOST_OWNERS:
            kept = sorted(self._turns, key=self._turns.__getitem__)[_MOST_OWNERS // 2 :]
            self._turns = {owner: self._turns[owner] for owner in kept}
        if task.background:
            self._background_at = now
            task.protected_until = now + PATIENCE_S if self.foreground else 0.0
        self.changed()
        return task

    def before(self, task: Task) -> int:
        """How many of those that wait have their turn before this one, as things stand; 0 if it does not wait."""
        now = time.monotonic()
        if self._places is None or now - self._places_at > 1.0:  # patience ends some second or other
            self._places = {waiting: place for place, waiting in enumerate(self._in_turn(now))}
            self._places_at = now
        return self._places.get(task, 0)

    def _in_turn(self, now: float) -> Iterator[Task]:
        """All that wait, in the order in which they would be answered if no time passed and nobody else asked."""
        front = [task for task in self._tasks if not task.background]
        back = [task for task in self._tasks if task.background]
        turns, held = dict(self._turns), self._held
        if front and back and now - max(self._background_at, back[0].asked_at) > BACKGROUND_PATIENCE_S:
            early = next(_arrange(back, turns, held, now, patient=True))
            back.remove(early)
            yield early
            held = _after(early, held, now)
        for tasks, patient in ((front, False), (back, True)):
            for task in _arrange(tasks, turns, held, now, patient=patient):
                yield task
                held = _after(task, held, now)


def _after(task: Task, held: Held, now: float) -> Held:
    """What is loaded once `task` was answered."""
    return held if task.weights == held[0] else (task.weights, now)


def _arrange(tasks: Iterable[Task], turns: dict[str, int], held: Held, now: float, *, patient: bool) -> Iterator[Task]:
    """`tasks`, given in order of arrival, in the order of their turns; `turns` follows.

    patient: an owner's own questions for other weights wait without end, as suits background work.
    """
    waiting: dict[str, list[Task]] = {}
    for task in tasks:
        for owner in task.owners:
            waiting.setdefault(owner, []).append(task)
    turn = max(turns.values(), default=0)
    while waiting:
        task = _pick(waiting, turns, held, now, patient)
        yield task
        turn += 1
        for owner in task.owners & waiting.keys():
            turns[owner] = turn
            waiting[owner].remove(task)
            if not waiting[owner]:
                del waiting[owner]
        held = _after(task, held, now)


def _pick(waiting: dict[str, list[Task]], turns: dict[str, int], held: Held, now: float, patient: bool) -> Task:
    """The next of what waits, by viewer: of the viewer who had no turn for longest, unless that can wait a little."""
    loaded, since = held
    owners = sorted(waiting, key=lambda owner: (turns.get(owner, 0), waiting[owner][0].number))
    own = waiting[owners[0]]
    if loaded is None:
        return own[0]
    can_wait = now - max(own[0].asked_at, since) <= PATIENCE_S
    if can_wait or patient:
        for task in own:
            if task.weights == loaded:
                return task
    if can_wait:
        for same in (3, 2):  # engine, pair and plan; engine and pair
            for owner in owners:
                for task in waiting[owner]:
                    if task.weights[:same] == loaded[:same]:
                        return task
    return own[0]
