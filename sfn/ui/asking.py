"""The question: prompt, examples that suit the pair, sampling settings, and the buttons that run and stop it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sfn import demo, recipes
from sfn.records import Sampling
from sfn.ui import cached, columns, columns_view, failures, opening, state, style, words

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan
    from sfn.records import PromptMode

_SETTINGS = ("prompt", "mode", "max_tokens", "temperature", "top_p", "top_k", "seed", "samples", "show")
_ORDERS = "_run_orders"  # what the buttons asked for; carried out once all of this run's choices are known
_EXAMPLE = "example"
_COLUMNS = "columns_choice"
_ON_CHANGE = "run_on_change"
_PAPER_PROMPTS = (
    "Can you write a short paragraph about the importance of reading books?",  # the paper's one prompt for damage
    "What is 5 + 17 + 26 + 4?",
)
_MODES = {"plain": "plain completion", "chat": "chat template"}


def is_bundled() -> bool:
    """Whether the chosen pair is the one that comes with SfN."""
    return opening.folders() == cached.bundled_folders()


def examples() -> list[str]:
    """Prompts that suit the chosen pair, the first one is where a session begins."""
    return [example.prompt for example in demo.EXAMPLES] if is_bundled() else list(_PAPER_PROMPTS)


def prepare() -> None:
    """Give every choice of the question a value before anything is drawn."""
    if "prompt" not in st.session_state:
        state.put("prompt", examples()[0])
    state.prepare(*_SETTINGS)


def sampling() -> Sampling:
    """The settings chosen now."""
    return Sampling(
        max_tokens=state.get("max_tokens"),
        temperature=float(state.get("temperature")),
        top_p=float(state.get("top_p")),
        top_k=state.get("top_k"),
        seed=state.get("seed"),
    )


def question() -> tuple[str, PromptMode, Sampling]:
    """Prompt, mode and settings chosen now."""
    return state.get("prompt"), state.get("mode"), sampling()


def samples() -> int:
    """How many answers each column gives, with seeds that follow each other; greedily there is but one."""
    return state.get("samples") if state.get("temperature") else 1


# ---------------------------------------------------------------- what is carried out


def _take_example() -> None:
    if st.session_state.get(_EXAMPLE):
        state.put("prompt", st.session_state[_EXAMPLE])


def _order(what: str) -> None:
    if what == "again":
        state.put("seed", (state.get("seed") + samples()) % 2**31)
    _orders()["what"] = what


def _orders() -> dict[str, object]:
    """What a button asked for ("what") and what was last seen to be asked for ("change")."""
    return st.session_state.setdefault(_ORDERS, {})


def carry_out(pair: Pair, seats: tuple[columns.Seat, ...], blocked: bool) -> None:
    """Do what a button asked for in this run; with “run on change”, ask what a change left unanswered, once.

    A further click breaks a run off wherever it next touches the session. So an order is forgotten only after it was
    carried out, and without touching the session in between: the run that follows finds it done, or does it.
    """
    orders, on_change = _orders(), st.session_state.get(_ON_CHANGE)
    order = orders.get("what")
    change = tuple(seat.question.key if seat.question else "" for seat in seats)
    changed = orders.get("change") != change
    try:
        if order == "stop":
            columns.stop()
        elif not blocked and (order in ("run", "again") or (changed and on_change)):
            columns.ask(pair, seats)
    except Exception:  # it failed, and says so: not to be tried again by itself
        orders.update(what=None, change=change)
        raise
    orders.update(what=None, change=change)


def what_run_does(pair: Pair, missing: tuple[columns.Seat, ...]) -> str:
    """The words on the button: what has to happen before the answers come."""
    if not missing:
        return "Running" if columns.running() else "All answers are here"
    if missing[0].id != "merged" and all(seat.id in columns.SIDES for seat in missing):
        return "Run " + " and ".join(dict.fromkeys(seat.id for seat in missing))
    room = cached.workbench().engines
    status = room.status
    if status.state in ("stopped", "dead") or status.backend != room.backend:
        return "Start the engine and run"
    moved = swaps(pair, missing[0].plan, status.recipe) if room.pair_key == pair.key else None
    if moved is None:
        return "Load the weights and run"
    return f"Swap {words.many(moved, 'tensor')} and run" if moved else "Run"


def swaps(pair: Pair, plan: Plan, held: str | None) -> int | None:
    """How many tensors differ between what the engine holds for `pair` and `plan`; None where that is not known."""
    if held is None:
        return None
    now = recipes.resolve(recipes.parse(held), pair).sources
    names = now.keys() | plan.sources.keys()
    return sum(now.get(name) != plan.sources.get(name) for name in names)


def engine_line(pair: Pair, plan: Plan) -> str:
    """Whether the weights of `plan` are those that the engine holds now."""
    room = cached.workbench().engines
    status = room.status
    if status.state == "starting":
        return "the engine is starting"
    held = status.backend == room.backend and room.pair_key == pair.key and status.plan_key == plan.key
    return "loaded in the engine" if held else "not yet loaded"


# ---------------------------------------------------------------- drawing


def draw_prompt(*, settings: bool) -> None:
    """The prompt, for the bundled pair what may be expected of it, examples, and the settings where they are wanted."""
    expect = " (a toy pair: sums to 99, a few stories)" if is_bundled() else ""
    st.text_area(f"Prompt{expect}", key="prompt", height=84, **state.KEEP)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
        st.menu_button(
            "Examples",
            examples(),
            key=_EXAMPLE,
            on_click=_take_example,
            icon=":material/lightbulb:",
            format_func=failures.escaped,
        )
        if settings and not style.presenter():  # settings are for before the talk
            draw_settings()


def draw_settings() -> None:
    """Prompt mode, length and sampling, behind a button that sums them up."""
    with st.popover(_summary(), icon=":material/tune:", help="Prompt mode, length, temperature, seed"):
        st.segmented_control(
            "Prompt mode",
            list(_MODES),
            key="mode",
            format_func=_MODES.get,
            required=True,
            help="Plain completion continues the prompt as it stands. The chat template wraps it as in a conversation.",
            **state.KEEP,
        )
        left, right = st.columns(2)
        left.number_input("Most tokens", 1, 131_072, key="max_tokens", step=32, **state.KEEP)
        right.number_input(
            "Temperature", 0.0, 2.0, key="temperature", step=0.1, format="%.2f",
            help="0 always takes the likeliest token; higher draws more freely.", **state.KEEP,
        )  # fmt: skip
        left.number_input(
            "Top p", 0.01, 1.0, key="top_p", step=0.05, format="%.2f",
            help="Draw only from the likeliest tokens that together reach this probability; 1 is off.", **state.KEEP,
        )  # fmt: skip
        right.number_input(
            "Top k",
            0,
            1_000_000,
            key="top_k",
            step=1,
            help="Draw only from the k likeliest tokens; 0 is off.",
            **state.KEEP,
        )
        left.number_input(
            "Seed", 0, 2**31 - 1, key="seed", step=1, help="The same seed draws the same answer again.", **state.KEEP
        )
        greedy = not state.get("temperature")
        right.number_input(
            "Samples", 1, state.MOST_SAMPLES, key="samples", step=1, disabled=greedy,
            help="Answers that each column draws, with seeds that follow each other.", **state.KEEP,
        )  # fmt: skip
        if greedy:
            st.caption("Greedy decoding says the same every time, so there is one sample.")


def _summary() -> str:
    chosen = sampling()
    drawn = f"temperature {chosen.temperature:g}, seed {chosen.seed}" if chosen.temperature else "greedy"
    if samples() > 1:
        drawn += f" to {chosen.seed + samples() - 1}"
    return f"{state.get('mode')} · {chosen.max_tokens} tokens · {drawn}"


def draw_buttons(pair: Pair, seats: tuple[columns.Seat, ...], blocked: bool) -> None:
    """Run (its label says what that does), stop, new seed, “run on change” for the stage; how answers are shown."""
    missing, running = columns.missing(seats), columns.running()
    unreached = any(seat.plan is not None and seat.problem for seat in seats)
    greedy = not state.get("temperature")
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.button(
            "Reach the engine again" if unreached else what_run_does(pair, missing),
            type="primary",
            key="run",
            width=210,
            disabled=blocked or not (missing or unreached),
            on_click=_order,
            args=("run",),
        )
        st.button("Stop", key="stop", icon=":material/stop:", disabled=not running, on_click=_order, args=("stop",))
        if not style.presenter():
            st.button(
                "",
                key="again",
                icon=":material/casino:",
                disabled=blocked or greedy or running,
                on_click=_order,
                args=("again",),
                help=_GREEDY if greedy else "Draw other answers, with the next seed.",
            )
        st.toggle("Run on change", key=_ON_CHANGE, help=_STAGE, **state.KEEP)
        _draw_view(pair)


def _draw_view(pair: Pair) -> None:
    """Which columns there are, which sample is in sight, and how answers are shown."""
    if not style.presenter():
        _draw_columns(pair)
    st.segmented_control(
        "Answers", list(_SHOW), key="show", format_func=_SHOW.get, required=True, label_visibility="collapsed",
        **state.KEEP,
    )  # fmt: skip
    if samples() > 1:
        if not st.session_state.get(columns.APART):
            columns_view.draw_pager(samples())
        st.toggle("Page one by one", key=columns.APART, help="Each column turns its own pages.", **state.KEEP)


_SHOW = {"drawn": "Typeset", "plain": "Plain", "difference": "Difference to A"}


def _draw_columns(pair: Pair) -> None:
    st.session_state[_COLUMNS] = list(columns.ids())
    with st.popover("Columns", icon=":material/view_column:", help="Which answers stand side by side, up to six"):
        st.multiselect(
            "Columns, from left to right",
            columns.options(pair),
            key=_COLUMNS,
            format_func=lambda column: columns.title(pair, column),
            accept_new_options=True,
            max_selections=columns.MOST,
            placeholder="choose, or write a recipe",
            on_change=lambda: columns.choose(pair, st.session_state[_COLUMNS]),
        )
        st.caption(
            "A, B, the recipe on the board, presets, recipes that were asked before, or one that you write here."
        )


_STAGE = "Every change runs by itself: for the stage."
_GREEDY = "Greedy decoding (temperature 0) gives the same answer every time. Raise the temperature to draw others."
