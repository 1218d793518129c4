"""What a new sweep is to be: its axes, modules, amounts and prompts, as a person chooses them. Starts nothing.

Every choice is a parameter of the address (`state`), so that a link opens the same form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from sfn import anatomy, demo, recipes, sweeps
from sfn.sweeps import Prompt, Sweep
from sfn.ui import asking, state, words

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan
    from sfn.sweep_room import Outlook

_ROWS = {
    "each": "each module alone",
    "but": "all but one module",
    "thirds": "each third of the layers",
    "layers": "each layer",
    "alpha": "α, from A to B",
    "presets": "the presets",
    "list": "a list of recipes",
}
_COLUMNS = {
    "prompts": "several prompts",
    "seeds": "several seeds",
    "thirds": "thirds of the layers",
    "layers": "layers",
    "alpha": "α, from A to B",
}
_BASES = {"a": "all A", "board": "the board's recipe", "b": "all B"}
_SOURCES = {"B": "from B", "A": "from A", "zero": "as zeros (damage)", "reinit:1": "at random (damage)"}
_WHOLE = ("presets", "list")  # rows that are whole recipes: nothing is laid over anything
_NUMBERS = ("sweep_width", "sweep_step", "sweep_low", "sweep_high", "sweep_steps", "sweep_seeds")
_CHOICES = ("sweep_rows", "sweep_columns", "sweep_base", "sweep_source", *_NUMBERS, "sweep_recipes", "sweep_reference")
_NAMES = "_sweep_names"  # the widget's list; the parameter is its text
_PROMPTS = "_sweep_prompts"  # the widget's text; the parameter is "" while it is the examples
_HEIGHT_PX = 118


def chosen(pair: Pair, plan: Plan) -> Sweep:
    """The sweep that is chosen now, whether or not it makes sense for the pair."""
    rows, columns = state.get("sweep_rows"), state.get("sweep_columns")
    base = {"a": "", "b": sweeps.ALL_B, "board": recipes.format(plan.recipe)}[state.get("sweep_base")]
    names = tuple(name for name in state.get("sweep_names").split(",") if name)
    text, mode, sampling = asking.question()
    prompts = (Prompt(text, reference()),)
    if columns == "prompts":
        prompts = sweeps.read_prompts(state.get("sweep_prompts") or default_prompts())
    return Sweep(
        rows=rows,
        columns=columns,
        prompts=prompts,
        base="" if rows in _WHOLE else base,
        source=state.get("sweep_source") or "B",
        names=names or ("all",),
        width=state.get("sweep_width"),
        step=state.get("sweep_step"),
        low=float(state.get("sweep_low")),
        high=float(state.get("sweep_high")),
        steps=state.get("sweep_steps"),
        recipes=sweeps.read_recipes(state.get("sweep_recipes")) if rows == "list" else (),
        seeds=state.get("sweep_seeds"),
        mode=mode,
        sampling=sampling,
    )


def default_prompts() -> str:
    """Prompts that suit the pair, with the references that are known."""
    if not asking.is_bundled():
        return "\n".join(asking.examples())
    problems = [example for example in demo.EXAMPLES if example.reference][:4]
    return sweeps.write_prompts(tuple(Prompt(example.prompt, example.reference) for example in problems))


def reference() -> str:
    """The reference to the page's own prompt: what was written, or what is known of an example."""
    written = state.get("sweep_reference")
    return written or (_known_reference(state.get("prompt")) if asking.is_bundled() else "")


def _known_reference(prompt: str) -> str:
    return next((example.reference for example in demo.EXAMPLES if example.prompt == prompt), "")


# ---------------------------------------------------------------- drawing


def draw(pair: Pair) -> None:
    """The axes, and under them what the chosen axes need."""
    state.prepare(*_CHOICES)
    rows = state.get("sweep_rows")
    legal = sweeps.COLUMNS[rows]
    if state.get("sweep_columns") not in legal:
        state.put("sweep_columns", legal[0])
    first, second, third = st.columns([1, 1, 1.6])
    first.selectbox("Rows: recipes", list(_ROWS), key="sweep_rows", format_func=_ROWS.get, **state.KEEP)
    second.selectbox("Columns", list(legal), key="sweep_columns", format_func=_COLUMNS.get, **state.KEEP)
    if rows not in _WHOLE:
        _draw_names(pair, third)
    axes = (rows, state.get("sweep_columns"))
    with st.container(horizontal=True, gap="small"):
        _draw_amounts(axes)
    if rows == "list":
        st.text_area(
            "Recipes, one per line", key="sweep_recipes", height=_HEIGHT_PX,
            placeholder="o_proj@all=B\nmlp@2-4=B:0.5; emb=B", **state.KEEP,
        )  # fmt: skip
    _draw_questions(axes[1])


def _draw_names(pair: Pair, place: DeltaGenerator) -> None:
    options = [*(group for group in anatomy.GROUPS if group != "all"), *sweeps.modules(pair, ("all",))]
    given = [name for name in state.get("sweep_names").split(",") if name]
    st.session_state[_NAMES] = given
    place.multiselect(
        "Modules",
        [*options, *(name for name in given if name not in options)],
        key=_NAMES,
        placeholder="all modules",
        help="Groups or modules that are swept; empty means all.",
        on_change=lambda: state.put("sweep_names", ",".join(st.session_state[_NAMES])),
    )


def _draw_amounts(axes: tuple[str, str]) -> None:
    """The base, then windows of layers, α or the source, as far as the axes leave them open."""
    if axes[0] not in _WHOLE:
        st.selectbox(
            "Starting from", list(_BASES), key="sweep_base", format_func=_BASES.get, width=190,
            help="What every recipe of the sweep is laid over.", **state.KEEP,
        )  # fmt: skip
    if "alpha" in axes:
        for name, label in (("sweep_low", "α from"), ("sweep_high", "to")):
            st.number_input(
                label, -100.0, 100.0, key=name, step=0.25, width=120,
                help="(1 − α) A + α B: 0 is A, 1 is B; below 0 and above 1 it goes beyond them.", **state.KEEP,
            )  # fmt: skip
        st.number_input("in steps", 1, 101, key="sweep_steps", step=1, width=120, **state.KEEP)
    elif axes[0] not in _WHOLE:
        given = state.get("sweep_source")
        st.selectbox(
            "Modules come", [*_SOURCES, *([given] if given not in _SOURCES else [])], key="sweep_source",
            format_func=lambda source: _SOURCES.get(source, source), accept_new_options=True, width=230,
            help="A source as recipes write it: B, A, zero, reinit:1, B:0.5.", **state.KEEP,
        )  # fmt: skip
    if "layers" in axes:
        st.number_input("Layers in a window", 1, 9999, key="sweep_width", step=1, width=150, **state.KEEP)
        st.number_input(
            "from one to the next", 1, 9999, key="sweep_step", step=1, width=150,
            help="1: a window begins at every layer.", **state.KEEP,
        )  # fmt: skip
    if "seeds" in axes:
        st.number_input(
            "Seeds", 1, 64, key="sweep_seeds", step=1, width=120,
            help="How many, beginning with the seed of the settings.", **state.KEEP,
        )  # fmt: skip
    if "prompts" not in axes:
        known = _known_reference(state.get("prompt")) if asking.is_bundled() else ""
        st.text_input(
            "Reference answer", key="sweep_reference", width=220, placeholder=known or "none",
            help="What a right answer contains: a word, a number, or /a regular expression/.", **state.KEEP,
        )  # fmt: skip


def _draw_questions(columns: str) -> None:
    if columns != "prompts":
        st.html(f'<div class="sfn-head">Prompt, as it stands above</div>{words.said(state.get("prompt"))}')
        return
    st.session_state[_PROMPTS] = state.get("sweep_prompts") or default_prompts()
    st.text_area(
        "Prompts, one per line; => gives the reference that a right answer contains",
        key=_PROMPTS,
        height=_HEIGHT_PX,
        on_change=_take_prompts,
        help="“What is 5 + 17? => 22”. The reference is a word, a number, or /a regular expression/. A line break "
        "inside a prompt is written \\n.",
    )


def _take_prompts() -> None:
    text = st.session_state[_PROMPTS]
    state.put("sweep_prompts", "" if text == default_prompts() else text)


def outlook_line(outlook: Outlook) -> str:
    """What starting would take, in a sentence or two."""
    beside = []
    if outlook.known:
        beside.append(f"{outlook.known} of them in the store already")
    if outlook.impossible:
        beside.append(f"beside {words.many(outlook.impossible, 'cell')} that this pair cannot do")
    all_of_it = ", ".join([words.many(outlook.answers, "answer"), *beside])
    if not outlook.missing:
        return f"{all_of_it}: nothing has to be computed."
    begin = f"{all_of_it}. {outlook.missing:,}" if beside else words.many(outlook.answers, "answer")
    moved = f", {words.size(outlook.moved_bytes)} moved in all" if outlook.moved_bytes else ""
    return f"{begin} to compute with {words.many(outlook.loads, 'recipe')}{moved}; {_time_line(outlook)}."


def _time_line(outlook: Outlook) -> str:
    pace = outlook.pace
    if outlook.answers_s is None:
        return "how long that takes is not known yet: nothing was measured with this pair on this engine"
    basis = f"by {words.many(pace.answers, 'answer')}"
    swaps_s = outlook.swaps_s or 0.0
    longest = f"at most {words.seconds(outlook.longest_s + swaps_s)} if every answer goes on to its last token"
    about = f"about {words.seconds(outlook.answers_s + swaps_s)}, {longest}"
    if outlook.swaps_s is None:
        return f"{about}, both without swaps, which were not measured yet ({basis} so far)"
    return f"{about} ({basis} and {words.many(pace.swaps, 'swap')} measured so far)"
