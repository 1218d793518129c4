"""The columns of answers: which there are, which question each is to answer, and which answers they show.

Owns the answers on screen of one viewer; the engine's queue and the store decide where an answer comes from. What is on
screen keeps the recipe and the prompt that produced it. How it looks is `columns_view`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import streamlit as st

from sfn import recipes
from sfn.errors import EngineError, RecipeError
from sfn.ui import cached, continuing, state
from sfn.ui.answers import Whole

if TYPE_CHECKING:
    from sfn.engine_room import Answer
    from sfn.pairs import Pair
    from sfn.recipes import Plan
    from sfn.records import Generation, PromptMode, Question, Sampling

Side = Literal["A", "merged", "B"]
SIDES: tuple[Side, ...] = ("A", "merged", "B")
ALL_B = "all@all=B"  # what the column B holds: B's weights in A's frame
MOST = state.MOST_COLUMNS

_SHOWN = "_answers_shown"  # (column, sample) -> Answer
_PINNED = "_answers_pinned"  # column -> {sample: Whole}
_KEPT = "_answers_kept"  # (how many answers the store had, key of a question -> what it had for it)
_MOST_KEPT = 1000
APART = "pages_apart"  # key of the switch: columns page one by one
_PAGES = "_own_pages"  # column -> sample


@dataclass(frozen=True, slots=True)
class Seat:
    """What one column is to show of one sample: the question for it, or the sentence that says why there is none.

    Attributes:
        id: "A", "merged" (the board's recipe), "B", or the text of a recipe. name: whose answer it is, in a few words.
        plan: weights of the column, None where `problem` says why not. question: decides the answer; None where there
            is no plan or no prompt. sample: which of several answers, counted from 0.
    """

    id: str
    name: str
    plan: Plan | None
    question: Question | None
    problem: str = ""
    sample: int = 0


# ---------------------------------------------------------------- which columns there are


def ids() -> tuple[str, ...]:
    """The chosen columns, from left to right."""
    return tuple(state.get("columns").split(state.BETWEEN_COLUMNS)) if state.get("columns") else SIDES


def choose(pair: Pair, wanted: list[str]) -> None:
    """Show these columns; recipes in any spelling. None at all means A, merged and B."""
    found = tuple(dict.fromkeys(_id(pair, text) for text in wanted))[:MOST]
    state.put("columns", "" if found in ((), SIDES) else state.BETWEEN_COLUMNS.join(found))
    pinned = _pinned()
    for gone in pinned.keys() - set(found or SIDES):
        del pinned[gone]


def _id(pair: Pair, text: str) -> str:
    """A column's name in the address: canonical; what cannot be read stays, so that its column can say why."""
    if text in SIDES:
        return text
    text = text.replace(state.BETWEEN_COLUMNS, " ").strip()
    plan = _plan(pair, text)
    if isinstance(plan, str):
        return text
    for side, all_of_it in (("A", ""), ("B", ALL_B)):
        if not isinstance(whole := _plan(pair, all_of_it), str) and whole.key == plan.key:
            return side
    return recipes.format(plan.recipe)


def keep(pair: Pair, plan: Plan) -> None:
    """Make the board's recipe a column of its own, right of the board's."""
    now = list(ids())
    at = now.index("merged") + 1 if "merged" in now else len(now)
    choose(pair, [*now[:at], recipes.format(plan.recipe), *now[at:]])


def can_keep(pair: Pair, plan: Plan | None) -> bool:
    """Whether the board's recipe may become a column: it moves something, is none yet, and there is room."""
    return plan is not None and _id(pair, recipes.format(plan.recipe)) not in ids() and len(ids()) < MOST


def move(pair: Pair, id: str, by: int) -> None:
    """Move a column to the left (-1) or to the right (1)."""
    now = list(ids())
    at = now.index(id)
    to = min(max(at + by, 0), len(now) - 1)
    now[at], now[to] = now[to], now[at]
    choose(pair, now)


def options(pair: Pair) -> list[str]:
    """Columns to choose from: those that are chosen, A, merged, B, the presets, and recipes that were asked before."""
    saved = (saved.text for saved in cached.workbench().store.recipes(pair.key))
    presets = (_id(pair, preset.text) for preset in recipes.PRESETS)
    return list(dict.fromkeys([*ids(), *SIDES, *presets, *(_id(pair, text) for text in saved)]))


def name(pair: Pair, id: str) -> str:
    """What a column is called in a few words."""
    if id in SIDES:
        return {"A": pair.a.label, "merged": "the board's recipe", "B": pair.b.label}[id]
    plan = _plan(pair, id)
    if isinstance(plan, str):
        return id
    presets = ((preset, _plan(pair, preset.text)) for preset in recipes.PRESETS)
    return next((preset.label for preset, its in presets if not isinstance(its, str) and its.key == plan.key), id)


def title(pair: Pair, id: str) -> str:
    """What a column is called among those to choose from."""
    return f"{id}: {name(pair, id)}" if id in SIDES else name(pair, id)


def seats(
    pair: Pair,
    plans: dict[Side, Plan | str],
    prompt: str,
    mode: PromptMode,
    sampling: Sampling,
    samples: int = 1,
) -> tuple[Seat, ...]:
    """The chosen columns for what is chosen now, one seat for each of their samples (seeds that follow each other).

    A plan given as text is the sentence that says why there is none.
    """
    room = cached.workbench().engines
    found = []
    for id in ids():
        plan = plans[id] if id in SIDES else _plan(pair, id)
        if isinstance(plan, str):
            found.append(Seat(id, name(pair, id), None, None, plan))
            continue
        for sample in range(samples):
            drawn = replace(sampling, seed=(sampling.seed + sample) % 2**31)
            try:
                question, problem = room.question(pair, plan, prompt, mode, drawn) if prompt.strip() else None, ""
            except EngineError as error:  # a server elsewhere that was never reached: no telling which answers are its
                question, problem = None, str(error)
            found.append(Seat(id, name(pair, id), plan, question, problem, sample))
    return tuple(found)


def _plan(pair: Pair, id: str) -> Plan | str:
    try:
        return cached.plan(pair, id)
    except RecipeError as error:
        return str(error)


# ---------------------------------------------------------------- which sample is in sight


def page(id: str, samples: int) -> int:
    """The sample that a column shows, counted from 0."""
    wanted = st.session_state.get(_PAGES, {}).get(id) if st.session_state.get(APART) else None
    return min(state.get("sample") - 1 if wanted is None else wanted, samples - 1)


def turn(id: str, by: int, samples: int) -> None:
    """Go on by `by` samples: every column, or this one alone where the viewer wants that."""
    to = min(max(page(id, samples) + by, 0), samples - 1)
    if st.session_state.get(APART):
        st.session_state.setdefault(_PAGES, {})[id] = to
    else:
        state.put("sample", to + 1)


# ---------------------------------------------------------------- which answers are on screen


def _shown() -> dict[tuple[str, int], Answer]:
    return st.session_state.setdefault(_SHOWN, {})


def _pinned() -> dict[str, dict[int, Whole]]:
    return st.session_state.setdefault(_PINNED, {})


def is_pinned(id: str) -> bool:
    """Whether the viewer holds this column fast while the others change."""
    return id in _pinned()


def pin(columns: tuple[Seat, ...], id: str) -> None:
    """Hold fast what a column shows, or let it go again."""
    if _pinned().pop(id, None) is None:
        found = {seat.sample: whole(seat) for seat in columns if seat.id == id}
        _pinned()[id] = {sample: answer for sample, answer in found.items() if answer is not None}


def whole(seat: Seat) -> Whole | None:
    """What the column shows, with what continued it; None where it shows nothing."""
    if seat.id in _pinned():
        return _pinned()[seat.id].get(seat.sample)
    first = _shown().get((seat.id, seat.sample))
    return None if first is None else Whole((first, *continuing.parts(first)))


def is_current(seat: Seat, answer: Answer | None) -> bool:
    """Whether `answer` is to the very question of the column."""
    return answer is not None and seat.question is not None and answer.question.key == seat.question.key


def is_elsewhere(seat: Seat, answer: Answer) -> bool:
    """Whether `answer` is to the question of the column, given by another engine, version, device or dtype."""
    now = seat.question
    if now is None or answer.question.key == now.key or answer.question.plan_key != now.plan_key:
        return False
    frame = {field: getattr(now, field) for field in ("engine", "engine_version", "device", "dtype")}
    return replace(answer.question, **frame).key == now.key


def look_up(columns: tuple[Seat, ...]) -> None:
    """Show what the store or the engine's queue already has for each seat. Runs nothing.

    Where only another engine has answered, its answer is shown, and says so.
    """
    from sfn.engine_room import Answer

    shown, room = _shown(), cached.workbench().engines
    open_seats = [
        seat
        for seat in columns
        if seat.question is not None
        and not is_pinned(seat.id)
        and not is_current(seat, shown.get((seat.id, seat.sample)))
    ]
    coming = [room.in_flight(seat.question.key) for seat in open_seats]  # first: what ends meanwhile is in the store
    kept = _kept([seat.question for seat, answer in zip(open_seats, coming, strict=True) if answer is None])
    for seat, answer in zip(open_seats, coming, strict=True):
        if answer is None and (generation := kept.get(seat.question.key)) is not None:
            answer = Answer.stored(generation)
        if answer is not None:
            shown[seat.id, seat.sample] = answer
    samples = 1 + max((seat.sample for seat in columns), default=0)
    for gone in shown.keys() - {(seat.id, sample) for seat in columns for sample in range(samples)}:
        if not shown[gone].active:
            del shown[gone]


def _kept(questions: list[Question]) -> dict[str, Generation | None]:
    """Key of each question -> what the store has for it, from this engine or else from another. It is asked for all at
    once, and once for each as long as it has no more answers than before."""
    if not questions:
        return {}
    store = cached.workbench().store
    many = store.count_generations()
    then, known = st.session_state.get(_KEPT, (many, {}))
    if then != many or len(known) > _MOST_KEPT:
        known = {}
    if asked := [question for question in questions if question.key not in known]:
        here = store.find_generations([question.key for question in asked])
        elsewhere = store.find_elsewhere([question for question in asked if question.key not in here])
        known |= dict.fromkeys((question.key for question in asked), None) | elsewhere | here
    st.session_state[_KEPT] = (many, known)
    return known


def missing(columns: tuple[Seat, ...]) -> tuple[Seat, ...]:
    """Seats whose answer is neither here nor on its way, in the order of asking: the board's first.

    What is on its way for another viewer alone counts as missing: it ends when they want it no more.
    """
    shown = _shown()
    wanted = [
        seat
        for seat in columns
        if seat.question is not None
        and not is_pinned(seat.id)
        and not (is_current(seat, answer := shown.get((seat.id, seat.sample))) and _is_had(answer))
    ]
    return tuple(sorted(wanted, key=lambda seat: (seat.sample, seat.id != "merged")))


def _is_had(answer: Answer) -> bool:
    """Whether an answer need not be asked for by this viewer."""
    return state.browser() in answer.owners if answer.active else answer.state in ("stored", "done")


def on_screen() -> tuple[Whole, ...]:
    """Every answer that this viewer has before them."""
    pinned = [whole for samples in _pinned().values() for whole in samples.values()]
    return (*(Whole((first, *continuing.parts(first))) for first in _shown().values()), *pinned)


def running() -> bool:
    """Whether any answer on screen is still to come or still growing."""
    return any(answer.active for answer in on_screen()) or continuing.pending()


def mine(whole: Whole) -> bool:
    """Whether an answer is on its way because this viewer asked for it."""
    return whole.active and state.browser() in whole.last.owners


def ask(pair: Pair, columns: tuple[Seat, ...]) -> None:
    """Put what is missing into the engine's queue; withdraw what this viewer asked before and wants no more."""
    room, owner, shown = cached.workbench().engines, state.browser(), _shown()
    wanted = missing(columns)
    for seat in columns:
        answer = shown.get((seat.id, seat.sample))
        if answer is not None and answer.active and not is_current(seat, answer) and not is_pinned(seat.id):
            room.cancel(answer, owner)
    for seat in wanted:
        question = seat.question
        shown[seat.id, seat.sample] = room.ask(
            pair, seat.plan, question.prompt, question.mode, question.sampling, owner
        )


def stop(id: str = "") -> None:
    """Withdraw from every answer on screen that is still to come, or from those of one column; what there is stays."""
    room, owner = cached.workbench().engines, state.browser()
    spots = [(column, Whole((first, *continuing.parts(first)))) for (column, _sample), first in _shown().items()]
    spots += [(column, whole) for column, samples in _pinned().items() for whole in samples.values()]
    for column, answer in spots:
        if answer.active and id in ("", column):
            room.cancel(answer.last, owner)
