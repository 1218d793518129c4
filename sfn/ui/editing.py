"""The recipe that is being edited: text box, board, presets and undo, always in step.

The parameter `recipe` is the one source of truth (and part of the permalink); the last text that was good for the pair
is kept beside it, so that a bad one leaves board and answers as they were.

No widget holds the recipe: board and box send what a person did, and each is followed once (see `recipe_box`).
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from sfn import recipes
from sfn.errors import RecipeError
from sfn.ui import board, cached, columns, delta_memos, recipe_box, scanning, state

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan

_GOOD = "_recipe_good"  # (pair key, text)
_PAST, _FUTURE = "_recipe_past", "_recipe_future"
_ACK = "_board_ack"
_BOARD = "board"
_NOBODY = ("", 0)  # acknowledges nothing
_BOX, _BOX_ACK = "recipe_box", "_recipe_box_ack"
_REFUSED = "_board_refused"  # why the last click on the board could not be followed
_PRESET_KEYS = "_preset_keys"  # pair key -> {preset's name: key of its plan}
_LONGEST_PAST = 200
_LOOKS_AT_A_SCAN = 8


@dataclass(frozen=True, slots=True)
class Edit:
    """What is in force. plan: of the text in the box, or of the last good text where `problem` says what is wrong."""

    plan: Plan
    problem: str = ""


def in_force(pair: Pair) -> Edit:
    """The plan in force for the text in the box; remembers good texts for undo."""
    text = state.get("recipe")
    try:
        plan = cached.plan(pair, text)
    except RecipeError as error:
        return Edit(cached.plan(pair, _good(pair)), str(error))
    key, good = st.session_state.get(_GOOD, (pair.key, text))
    if key != pair.key:
        st.session_state[_PAST], st.session_state[_FUTURE] = [], []  # another pair has a history of its own
    elif text != good:
        st.session_state[_PAST] = [*st.session_state.get(_PAST, []), good][-_LONGEST_PAST:]
        st.session_state[_FUTURE] = []
    st.session_state[_GOOD] = (pair.key, text)
    return Edit(plan)


def plans(pair: Pair, edit: Edit) -> dict[columns.Side, Plan | str]:
    """The plan of each column; all of B may not fit into A's frame, and then it is the sentence that says so."""
    try:
        all_b: Plan | str = cached.plan(pair, "all@all=B")
    except RecipeError as error:
        all_b = f"B as a whole does not fit into A's frame, so it cannot answer here. {error}"
    return {"A": cached.plan(pair, ""), "merged": edit.plan, "B": all_b}


def _good(pair: Pair) -> str:
    key, text = st.session_state.get(_GOOD, (pair.key, ""))
    return text if key == pair.key else ""


def _base(pair: Pair) -> str:
    """The text that a click on the board changes: that of the box, or the last good one where that is bad."""
    try:
        cached.plan(pair, state.get("recipe"))
    except RecipeError:
        return _good(pair)
    return state.get("recipe")


# ---------------------------------------------------------------- what the controls do


def _on_edit() -> None:
    found = recipe_box.edit(_sent(_BOX, "edit"), st.session_state.get(_BOX_ACK, _NOBODY))
    if found is not None:
        st.session_state[_BOX_ACK] = found.ack
        state.put("recipe", found.text)


def _on_board(pair: Pair) -> None:
    _on_edit()  # what was written came before the click, also where both arrive together
    found, st.session_state[_ACK] = board.gestures(_sent(_BOARD, "gesture"), st.session_state.get(_ACK, _NOBODY))
    for gesture in found:
        try:
            _follow(pair, gesture)
        except RecipeError as error:
            st.session_state[_REFUSED] = str(error)


def _follow(pair: Pair, gesture: board.Gesture) -> None:
    """Do what one gesture on the board asks for; each is one step back for undo. Raises RecipeError."""
    if gesture.act == "undo":
        _step(pair, _PAST, _FUTURE)
    elif gesture.act == "redo":
        _step(pair, _FUTURE, _PAST)
    else:
        before = recipes.parse(_base(pair))
        if gesture.act == "invert":
            after = recipes.invert(before, pair, gesture.places)
        else:
            after = recipes.paint(before, pair, dict.fromkeys(gesture.places, gesture.source))
        if after != before or state.get("recipe") != _base(pair):
            _enter(pair, recipes.format(after))


def _enter(pair: Pair, text: str) -> None:
    """Bring a good text into force as a step of its own: a run may follow several at once."""
    base = _base(pair)
    past = st.session_state.get(_PAST, [])
    if base != _good(pair):  # a text that was written, and no run has seen yet
        past = [*past, _good(pair)]
    st.session_state[_PAST] = [*past, base][-_LONGEST_PAST:]
    st.session_state[_FUTURE] = []
    st.session_state[_GOOD] = (pair.key, text)
    state.put("recipe", text)


def _sent(key: str, event: str) -> object:
    """What the component `key` sent with this run, if anything."""
    return st.session_state[key].get(event) if key in st.session_state else None


def _preset_key(preset: recipes.Preset) -> str:
    return f"preset_{preset.name}"


def _step(pair: Pair, back: str, forth: str) -> None:
    """Undo and redo: the last text of `back` comes into force, the one in force goes to `forth`."""
    texts = st.session_state.get(back, [])
    if not texts:
        return
    st.session_state[forth] = [*st.session_state.get(forth, []), _good(pair)]
    st.session_state[back] = texts[:-1]
    st.session_state[_GOOD] = (pair.key, texts[-1])
    state.put("recipe", texts[-1])


def _put(text: str) -> None:
    state.put("recipe", text)


# ---------------------------------------------------------------- drawing


def draw_presets(pair: Pair, edit: Edit) -> None:
    """Presets; the one in force is lit."""
    keys = _preset_plan_keys(pair)
    with st.container(horizontal=True, gap="xsmall", key="presets"):
        for preset in recipes.PRESETS:
            lit = not edit.problem and keys.get(preset.name) == edit.plan.key
            st.button(
                preset.label,
                key=_preset_key(preset),
                help=preset.help,
                type="primary" if lit else "secondary",
                on_click=_put,
                args=(preset.text,),
            )


def _preset_plan_keys(pair: Pair) -> dict[str, str]:
    """Plan keys of the presets that fit the pair, by name."""
    found = st.session_state.get(_PRESET_KEYS, {})
    if pair.key not in found:
        found = {pair.key: {}}
        for preset in recipes.PRESETS:
            try:
                found[pair.key][preset.name] = cached.plan(pair, preset.text).key
            except RecipeError:  # it moves what this pair cannot move; its button says so when it is pressed
                continue
        st.session_state[_PRESET_KEYS] = found
    return found[pair.key]


def draw_board(pair: Pair, edit: Edit) -> None:
    """The board of the plan in force, shaded by how far each cell moved as far as that was measured."""
    progress = scanning.start_if_small(pair)
    measured = progress.measured
    if progress.running:  # a few times while it runs, not at every run of the page
        measured -= measured % max(1, progress.wanted // _LOOKS_AT_A_SCAN)
    board.draw(
        pair,
        cached.board_rows(pair),
        edit.plan,
        delta_memos.shifts(pair.key, measured),
        note=_note(pair, progress),
        key=_BOARD,
        ack=st.session_state.get(_ACK, _NOBODY),
        on_gesture=lambda: _on_board(pair),
    )


def _note(pair: Pair, progress: scanning.Progress) -> str:
    """What is to be said about the board's shade while it is not whole."""
    if progress.running:
        return "Shade: how far each cell moved is being measured."
    if progress.missing == progress.wanted:
        return f"No shade yet: the page Delta measures how far each cell moved (reads {scanning.cost(pair)})."
    if progress.missing:
        return f"{progress.measured:,} of {progress.wanted:,} tensors measured; the page Delta goes on."
    return ""


def draw_text(pair: Pair, edit: Edit, engine_line: str) -> None:
    """The recipe as text, undo, redo, clear; in the line under it what it moves, or what is wrong with it."""
    with st.container(gap="xxsmall", key="recipe_field"):
        st.markdown("Recipe", help=_GRAMMAR)
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            recipe_box.draw(
                state.get("recipe"),
                key=_BOX,
                ack=st.session_state.get(_BOX_ACK, _NOBODY),
                placeholder="all A; try o_proj@all=B",
                on_edit=_on_edit,
            )
            _draw_steps(pair)
    problem = edit.problem or st.session_state.pop(_REFUSED, "")
    if problem:
        line = f'<div class="sfn-verdict sfn-bad" role="alert">{html.escape(problem)}</div>'
    else:
        line = f'<div class="sfn-verdict">{html.escape(edit.plan.sentence)} · {html.escape(engine_line)}</div>'
    st.html(line)


def _draw_steps(pair: Pair) -> None:
    past, future = st.session_state.get(_PAST, []), st.session_state.get(_FUTURE, [])
    for name, icon, what, enabled, work, arguments in (
        ("undo", "undo", "Undo the last change of the recipe", past, _step, (pair, _PAST, _FUTURE)),
        ("redo", "redo", "Redo what was undone", future, _step, (pair, _FUTURE, _PAST)),
        ("clear", "backspace", "Clear the recipe: all A", state.get("recipe"), _put, ("",)),
    ):
        st.button(
            "",
            key=f"recipe_{name}",
            icon=f":material/{icon}:",
            help=what,
            type="tertiary",
            disabled=not enabled,
            on_click=work,
            args=arguments,
        )


_GRAMMAR = """Rules joined by `;`, each `WHAT@WHERE=SOURCE`; later rules win, everything unnamed comes from A.

- **WHAT**: a module (`o_proj`) or a group (`qkv attn mlp norms emb head all`), several joined by `,`
- **WHERE**: `all`, a layer, or ranges counted from 0 (`0-2,5`); left out for what has no layer
- **SOURCE**: `A`, `B`, `B:0.5` (blend), `zero`, `reinit:SEED`, `remove` (whole layers)

`o_proj@all=B; mlp@2-4=B:0.5; emb=B`"""
