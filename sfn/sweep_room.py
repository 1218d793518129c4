"""Runs sweeps: a background job that asks the engine room cell by cell, and what can be said before it starts.

A sweep lives in the store: its cells find their answers by question, so what is finished is never lost, and a sweep
that was stopped, by a person, a failure or the end of the app, goes on with what is missing. Knows no page.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sfn import recipes, sweeps
from sfn.errors import SweepError
from sfn.records import Question, Sampling, SweepCell
from sfn.sweeps import Grid, Line, Sweep

if TYPE_CHECKING:
    from sfn.engine_room import Answer, EngineRoom
    from sfn.jobs import Job, Jobs
    from sfn.pairs import Pair
    from sfn.recipes import Plan
    from sfn.store import Pace, SavedSweep, Store

_IN_QUEUE = 2  # one that is answered and one that is next: the engine never idles, and others wait for one at most
_TRIES = 2  # of one question, where its answer fails
_GIVE_UP = 4  # questions that fail one after another: then it is not the question
_MOST_RUNNING = 2  # each holds one of the threads for background work
_LOOK_S = 0.2
_FRAME = ("engine", "engine_version", "device", "dtype")


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a sweep would take, before it starts.

    Attributes:
        answers: different questions of all cells, A's and B's own included. known: those that the store has already.
        impossible: cells that the pair cannot do. loads: different weights that have to be loaded.
        moved_bytes: bytes that change between them, in the order they are loaded.
        answers_s, swaps_s: estimates from the `pace` that was measured of this pair on this engine, for the answers and
            for the changes of weights; None where nothing was measured yet. longest_s: of the answers, if each of them
            goes on to its last token.
    """

    answers: int
    known: int
    impossible: int
    loads: int
    moved_bytes: int
    answers_s: float | None
    longest_s: float | None
    swaps_s: float | None
    pace: Pace

    @property
    def missing(self) -> int:
        """Answers that have to be computed."""
        return self.answers - self.known


@dataclass(frozen=True, slots=True)
class _Task:
    """One question to be asked; cells that share it are answered together."""

    key: str
    plan: Plan
    prompt: str
    sampling: Sampling


class _Run:
    """A sweep that is being run. Written by its job's thread; `asked` may be read from any."""

    def __init__(self, number: int, pair: Pair, sweep: Sweep, tasks: Sequence[_Task]) -> None:
        self.number = number
        self.pair = pair
        self.sweep = sweep
        self.total = len(tasks)
        self.pending = deque(tasks)
        self.asked: deque[tuple[_Task, Answer]] = deque()
        self.tries: dict[str, int] = {}
        self.done = self.failures = 0
        self.last_plan: str | None = None
        self.last_end = 0.0


class SweepRoom:
    """Begins, runs and resumes sweeps. Thread-safe as far as its store, jobs and engine room are."""

    def __init__(self, store: Store, jobs: Jobs, engines: EngineRoom) -> None:
        self._store = store
        self._jobs = jobs
        self._engines = engines
        self._runs: dict[int, _Run] = {}
        self._lock = threading.Lock()

    # ---------------------------------------------------------------- before it starts

    def outlook(self, pair: Pair, sweep: Sweep, grid: Grid) -> Outlook:
        """What the sweep would take now; asks the store, runs nothing."""
        keys = self._keys(pair, sweep, grid)
        known = self._store.sweeps.known(list(keys.values()))
        missing = [
            spot.plan for spot in grid.spots if spot.plan is not None and keys[spot.row, spot.column] not in known
        ]
        plans = list({plan.key: plan for plan in missing}.values())
        plans, sizes = self._ordered(pair, plans), sweeps.sizes(pair)
        answers = len(set(keys.values()))
        missing_answers = answers - len(known)
        frame = self._frame(pair, sweep)
        pace = self._store.sweeps.pace(pair.key, frame, sweep.mode, sweep.sampling.max_tokens)
        return Outlook(
            answers,
            len(known),
            sum(spot.plan is None for spot in grid.spots if spot.row >= 0),
            len(plans),
            sweeps.moved_bytes(plans, sizes, self._held(pair)),
            None if pace.answer_s is None else missing_answers * pace.answer_s,
            None if pace.token_s is None else missing_answers * pace.token_s * sweep.sampling.max_tokens,
            None if pace.swap_s is None else len(plans) * pace.swap_s,
            pace,
        )

    def _frame(self, pair: Pair, sweep: Sweep) -> dict[str, str]:
        """The engine that new questions go to, as questions name it."""
        question = self._question(pair, sweep)
        return {field: getattr(question, field) for field in _FRAME}

    def _question(self, pair: Pair, sweep: Sweep) -> Question:
        prompt, sampling = sweep.asked(0)
        all_a = recipes.resolve(recipes.Recipe(), pair)
        return self._engines.question(pair, all_a, prompt.text, sweep.mode, sampling)

    def _keys(self, pair: Pair, sweep: Sweep, grid: Grid) -> dict[tuple[int, int], str]:
        """Key of every cell's question on the engine chosen now; cells that cannot be asked are left out."""
        like = self._question(pair, sweep)
        found = {}
        for spot in grid.spots:
            if spot.plan is not None:
                prompt, sampling = _asked(sweep, spot.column)
                found[spot.row, spot.column] = replace(
                    like,
                    plan_key=spot.plan.key,
                    recipe=spot.recipe,
                    prompt=prompt,
                    tokenizer=spot.plan.tokenizer,
                    sampling=sampling,
                ).key
        return found

    def _held(self, pair: Pair) -> Plan | None:
        """What the engine holds of this pair now."""
        text = self._engines.status.recipe
        if text is None or self._engines.pair_key != pair.key:
            return None
        return recipes.resolve(recipes.parse(text), pair)

    def _ordered(self, pair: Pair, plans: list[Plan]) -> list[Plan]:
        return [plans[at] for at in sweeps.nearest_first(plans, sweeps.sizes(pair), self._held(pair))]

    # ---------------------------------------------------------------- beginning and resuming

    def begin(self, pair: Pair, sweep: Sweep, owner: str) -> int:
        """Keep a new sweep and start it; returns its number.

        Raises SweepError where it makes no sense for the pair or too many run, RecipeError for words outside the
        grammar.
        """
        grid = sweeps.expand(sweep, pair)
        for prompt in sweep.prompts:
            if prompt.reference:
                sweeps.pattern(prompt.reference)
        self._refuse_too_many()
        keys = self._keys(pair, sweep, grid)
        cells = [
            SweepCell(
                spot.row, spot.column, spot.recipe, spot.alpha, keys.get((spot.row, spot.column), ""), spot.problem
            )
            for spot in grid.spots
        ]
        definition = {
            "sweep": sweeps.to_json(sweep),
            "rows": [[line.label, line.explain] for line in grid.rows],
            "columns": [[line.label, line.explain] for line in grid.columns],
        }
        frame = self._frame(pair, sweep)
        number = self._store.sweeps.save(pair.key, sweep.title, definition, frame, cells)
        plans = {spot.recipe: spot.plan for spot in grid.spots if spot.plan is not None}
        self._start(pair, number, sweep, cells, plans, owner)
        return number

    def resume(self, pair: Pair, number: int, owner: str) -> Job:
        """Go on with a sweep: what is missing is asked, what failed is tried again. A running one is joined.

        Raises SweepError where the engine or the pair is not the one that the sweep was begun with.
        """
        running = self.job(number)
        if running is not None and running.active and not running.cancel_event.is_set():
            running.owners.add(owner)
            return running
        saved = self._store.sweeps.get(number)
        sweep = sweeps.from_json(saved.definition["sweep"])
        if saved.pair_key != pair.key:
            raise SweepError(f"Sweep {number} was begun with another pair; open that one on the Pair page to go on.")
        self._check_frame(pair, sweep, saved)
        self._refuse_too_many()
        self._store.sweeps.forgive(number)
        cells = [cell for cell in self._store.sweeps.cells(number) if cell.question_key and cell.generation is None]
        plans = {text: recipes.resolve(recipes.parse(text), pair) for text in {cell.recipe for cell in cells}}
        return self._start(pair, number, sweep, cells, plans, owner)

    def _check_frame(self, pair: Pair, sweep: Sweep, saved: SavedSweep) -> None:
        now, then = self._frame(pair, sweep), {field: getattr(saved, field) for field in _FRAME}
        if now != then:
            raise SweepError(
                f"This sweep was begun with {' '.join(then.values())}, and the engine is now {' '.join(now.values())}: "
                "answers of two engines in one grid would not compare. Choose that engine again and continue, or begin "
                "a new sweep."
            )

    def _refuse_too_many(self) -> None:
        running = sum(job.key.startswith("sweep:") for job in self._jobs.active())
        if running >= _MOST_RUNNING:
            raise SweepError(f"{running} sweeps run already and wait for the same engine: cancel one, or wait for it.")

    def _start(
        self, pair: Pair, number: int, sweep: Sweep, cells: Iterable[SweepCell], plans: Mapping[str, Plan], owner: str
    ) -> Job:
        """Start the job for what is not answered yet. plans: by the recipe's text."""
        asked = {cell.question_key: cell for cell in cells if cell.question_key}
        known = self._store.sweeps.known(list(asked))
        todo = {key: cell for key, cell in asked.items() if key not in known}
        needed = {plans[cell.recipe].key: plans[cell.recipe] for cell in todo.values()}
        rank = {plan.key: at for at, plan in enumerate(self._ordered(pair, list(needed.values())))}
        tasks = [_Task(key, plans[cell.recipe], *_asked(sweep, cell.column)) for key, cell in todo.items()]
        run = _Run(number, pair, sweep, sorted(tasks, key=lambda task: rank[task.plan.key]))
        with self._lock:
            self._runs[number] = run
        title = f"Sweep {number}: {sweep.title}"
        return self._jobs.start(title, lambda job: self._work(run, job), key=f"sweep:{number}", owner=owner)

    # ---------------------------------------------------------------- while it runs

    def job(self, number: int) -> Job | None:
        """The newest job of a sweep in this process; None where there was none since the app was started."""
        return self._jobs.find(f"sweep:{number}")

    def live(self, number: int) -> dict[str, Answer]:
        """Answers of a sweep that are queued or growing, by question key."""
        run = self._runs.get(number)
        return {task.key: answer for task, answer in list(run.asked)} if run is not None else {}

    def _work(self, run: _Run, job: Job) -> dict[str, Any]:
        """Ask and settle until nothing is left; on the way out, withdraw what was asked."""
        try:
            while run.pending or run.asked:
                job.report(run.done, run.total, f"{run.done} of {run.total} answers", "answers")
                self._fill(run)
                task, answer = run.asked[0]
                if answer.finished.wait(_LOOK_S):
                    run.asked.popleft()
                    self._settle(run, task, answer)
            job.report(run.done, run.total, f"{run.done} of {run.total} answers", "answers")
        finally:
            for _, answer in run.asked:
                self._engines.cancel(answer, _owner(run))
            with self._lock:
                if self._runs.get(run.number) is run:
                    del self._runs[run.number]
        return {"answered": run.done}

    def _fill(self, run: _Run) -> None:
        """Keep a few questions in the engine's queue."""
        while run.pending and len(run.asked) < _IN_QUEUE:
            task = run.pending.popleft()
            answer = self._engines.ask(
                run.pair, task.plan, task.prompt, run.sweep.mode, task.sampling, _owner(run), background=True
            )
            run.asked.append((task, answer))
            if answer.question.key != task.key:
                self._check_frame(run.pair, run.sweep, self._store.sweeps.get(run.number))
                raise SweepError("This sweep was begun by another version of SfN and cannot go on; begin a new one.")

    def _settle(self, run: _Run, task: _Task, answer: Answer) -> None:
        """Count a finished answer; ask a failed one again, and keep the reason when it fails again."""
        now = time.monotonic()
        began, run.last_end = max(answer.asked_at, run.last_end), now
        swapped = run.last_plan is not None and run.last_plan != task.plan.key
        if answer.state in ("done", "stored"):
            run.last_plan = task.plan.key
            swap_s = max(0.0, now - began - answer.elapsed_s) if swapped and answer.state == "done" else None
            if swap_s is not None:
                self._store.sweeps.note(run.number, task.key, swap_s=swap_s)
            run.done, run.failures = run.done + 1, 0
            return
        run.last_plan = None  # whatever comes next loads more than what differs
        run.tries[task.key] = run.tries.get(task.key, 0) + 1
        if run.tries[task.key] < _TRIES:
            run.pending.appendleft(task)
            return
        error = answer.error or "It was cancelled from elsewhere."
        self._store.sweeps.note(run.number, task.key, error=error)
        run.done, run.failures = run.done + 1, run.failures + 1
        if run.failures >= _GIVE_UP:
            raise SweepError(
                f"{run.failures} answers failed one after another, so this sweep stopped. The last: {error}"
            )


def lines(saved: SavedSweep) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    """Rows and columns of a saved sweep."""
    rows, columns = (tuple(Line(*line) for line in saved.definition[axis]) for axis in ("rows", "columns"))
    return rows, columns


def _asked(sweep: Sweep, column: int) -> tuple[str, Sampling]:
    prompt, sampling = sweep.asked(column if sweep.asks_each_column else 0)
    return prompt.text, sampling


def _owner(run: _Run) -> str:
    """Who a sweep is to the engine's queue: nobody else's click ends its questions."""
    return f"sweep:{run.number}"
