"""The recipe's text box: a line of text whose edits are events. Knows no recipe grammar and keeps no state.

Streamlit's own text input holds a value, which comes back from the browser with every click and every timer. A click
that overtakes a run brings an old value along, which cannot be told from an edit and would undo what the click before
it did. Here Python hears of a text only when a person has written it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

_ASSETS = Path(__file__).parent / "assets"
_mount = st.components.v2.component(
    "sfn_recipe_box",
    html='<input type="text" autocomplete="off" spellcheck="false">',
    css=(_ASSETS / "recipe_box.css").read_text(),
    js=(_ASSETS / "recipe_box.js").read_text(),
)


@dataclass(frozen=True, slots=True)
class Edit:
    """What a person wrote. ack: (box, number of the edit), to be given back to `draw`."""

    text: str
    ack: tuple[str, int]


def edit(value: object, ack: tuple[str, int]) -> Edit | None:
    """The edit in what the browser sent; None where there is none, or where `ack` says that it was followed already."""
    match value:
        case {"instance": str(instance), "seq": int(seq), "text": str(text)} if (instance, seq) != ack:
            return Edit(text, (instance, seq))
    return None


def draw(text: str, *, key: str, ack: tuple[str, int], placeholder: str, on_edit: Callable[[], None]) -> None:
    """Draw the box. In `on_edit`, `st.session_state[key].edit` is what `edit` reads."""
    shown = {"text": text, "label": "Recipe", "placeholder": placeholder, "ack": list(ack)}
    _mount(key=key, data=shown, on_edit_change=on_edit)
