"""The view “Take it with you” of the Merge page: the recipe as a link, as text and as a mergekit config, both ways.

The checkpoint of it, on this machine and on the Hub, is `take_checkpoint`'s.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import streamlit as st

from sfn import recipes, surgery
from sfn.errors import RecipeError
from sfn.ui import cached, failures, state, take_checkpoint

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan
    from sfn.ui.editing import Edit

_PASTED = "take_pasted"
_IMPORTED = "_take_imported"  # (whether it worked, sentences) of the last config that was pasted
_YAML_PX = 236
_DOWN = ":material/download:"


def draw(pair: Pair, edit: Edit) -> None:
    """Everything that can be taken along of the recipe in force."""
    if edit.problem:
        failures.sentence(f"The recipe in the box cannot be used; what is here is the last good one. {edit.problem}")
    left, right = st.columns(2, gap="medium")
    with left:
        _draw_link(pair, edit.plan)
        _draw_export(pair, edit.plan)
    with right:
        take_checkpoint.draw(pair, edit.plan)
        _draw_import(pair)


def _block(title: str, key: str) -> st.delta_generator.DeltaGenerator:
    place = st.container(border=True, key=key, gap="small")
    place.markdown(f"**{title}**")
    return place


# ---------------------------------------------------------------- link and text


def _draw_link(pair: Pair, plan: Plan) -> None:
    text = recipes.format(plan.recipe)
    with _block("Link and text", "take_link"):
        st.code(link(text), language=None)
        st.code(text or "(all A: the empty recipe)", language=None)
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.download_button(
                "Text", f"{text}\n", "recipe.txt", "text/plain", key="take_txt", on_click="ignore", icon=_DOWN
            )
            st.download_button(
                "JSON", _json(pair, plan), "recipe.json", "application/json", key="take_json", on_click="ignore",
                icon=_DOWN, help="The recipe with the names, commits and fingerprints of both models.",
            )  # fmt: skip
            st.caption("The link shows pair, recipe and question to whoever can reach this app.")


def link(text: str) -> str:
    """The whole address of what is on the Merge page now, with this recipe, opening on the answers."""
    query = state.link("merge") | {"recipe": text}
    query = {name: value for name, value in query.items() if value and name != "view"}
    here = (st.context.url or "http://127.0.0.1:8501/merge").rstrip("/")
    return f"{here}?{urlencode(query)}" if query else here


def _json(pair: Pair, plan: Plan) -> str:
    content = surgery.lineage(pair, plan, cached.workbench().store.file_hashes)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------- mergekit


def _draw_export(pair: Pair, plan: Plan) -> None:
    with _block("As a mergekit config", "take_export"):
        try:
            config = recipes.to_mergekit(plan, pair)
        except RecipeError as error:
            st.caption(failures.escaped(str(error)))
            return
        st.code(config.yaml, language="yaml", height=_YAML_PX)
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.download_button(
                "YAML", config.yaml, "config.yml", "application/yaml", key="take_yaml", on_click="ignore", icon=_DOWN,
                help="For mergekit 0.1.5: mergekit-yaml config.yml FOLDER",
            )  # fmt: skip
            st.caption(failures.escaped(" ".join((config.exactness, *config.notes))))


def _draw_import(pair: Pair) -> None:
    with _block("From a mergekit config", "take_import"):
        st.text_area(
            "A mergekit config for these two models", key=_PASTED, height=130, placeholder="merge_method: linear …",
            label_visibility="collapsed", **state.KEEP,
        )  # fmt: skip
        st.button("Take this recipe", key="take_in", on_click=_import, args=(pair,))
        worked, sentences = st.session_state.get(_IMPORTED, (True, ()))
        for sentence in sentences:
            if worked:
                st.caption(failures.escaped(sentence))
            else:
                failures.sentence(sentence)


def _import(pair: Pair) -> None:
    """Bring the pasted config's recipe into force; undo takes it back."""
    try:
        found = recipes.from_mergekit(st.session_state.get(_PASTED) or "", pair)
    except RecipeError as error:
        st.session_state[_IMPORTED] = (False, (str(error),))
        return
    text = recipes.format(found.recipe)
    state.put("recipe", text)
    st.session_state[_IMPORTED] = (True, (f"Now in force: {text or 'all A'}.", *found.notes))
