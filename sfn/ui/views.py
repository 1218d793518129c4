"""What the Merge page does with the recipe on its board: one view at a time, chosen here. Draws no view itself."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from sfn.ui import failures, state, words

# View in the address -> what it is called; `pages/merge.py` draws it.
VIEWS = {"answers": "Answers", "sweep": "Sweep", "take": "Take it with you"}


def above() -> DeltaGenerator:
    """The place for board, recipe and prompt: folded where the view needs the room."""
    if state.get("view") in ("sweep", "take"):
        recipe = failures.escaped(words.recipe(state.get("recipe")))
        return st.expander(f"Board, recipe and prompt · {recipe}", key="above")
    return st.container()


def choose() -> str:
    """Draw the choice of views and return the chosen one; an expensive view is not drawn until it is chosen."""
    state.prepare("view")
    if len(VIEWS) > 1:
        st.segmented_control(
            "View", list(VIEWS), key="view", format_func=VIEWS.get, required=True, label_visibility="collapsed",
            **state.KEEP,
        )  # fmt: skip
    return state.get("view")
