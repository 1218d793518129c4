"""One opened cell of a sweep: the whole answer beside A's and B's to the same question, and the recipe that made it."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import streamlit as st

from sfn.sweeps import A_ROW, B_ROW, Line, Reading, Sweep
from sfn.ui import state, words

if TYPE_CHECKING:
    from sfn.engine_room import Answer

Found = Mapping[tuple[int, int], Reading]

_TAKEN = "_sweep_taken"  # a cell was taken to the board, which stands outside of what is redrawn by itself
_ENDS = {"stop": "ended by itself", "length": "cut at the token limit", "cancelled": "stopped"}


def draw(
    sweep: Sweep,
    axes: tuple[Sequence[Line], Sequence[Line]],
    found: Found,
    live: Mapping[str, Answer],
    place: tuple[int, int],
) -> None:
    """The cell at `place` in full. live: answers that are still growing, by question key."""
    row, column = place
    asked = column if sweep.asks_each_column else 0
    prompt, sampling = sweep.asked(asked)
    reading = found[place]
    with st.container(border=True, key="sweep_cell_opened"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.html(_head(axes, row, column, sweep, reading))
            st.button(
                "Open on the board", key="sweep_take", disabled=bool(reading.cell.problem), on_click=_take,
                args=(sweep, reading.cell.recipe, asked), icon=":material/grid_on:",
                help="Put this recipe, prompt and settings into force and show the answers in columns.",
            )  # fmt: skip
            st.button("", key="sweep_close", icon=":material/close:", help="Close the cell", type="tertiary",
                      on_click=state.put, args=("sweep_cell", ""))  # fmt: skip
        reference = f" · reference: {prompt.reference}" if prompt.reference else ""
        drawn = f" · seed {sampling.seed}" if sampling.temperature else ""
        st.html(
            f'<div class="sfn-head">Prompt · {sweep.mode}{drawn}{html.escape(reference)}</div>{words.said(prompt.text)}'
        )
        sides = [("A", (A_ROW, asked)), ("B", (B_ROW, asked))]
        shown = [sides[0], ("cell", place), sides[1]] if row >= 0 else sides
        for holder, (name, at) in zip(st.columns(len(shown)), shown, strict=True):
            with holder:
                _answer(name, found.get(at), live)


def _head(axes: tuple[Sequence[Line], Sequence[Line]], row: int, column: int, sweep: Sweep, reading: Reading) -> str:
    rows, columns = axes
    name = {A_ROW: "A", B_ROW: "B"}.get(row) or rows[row].label
    across = f" · {columns[column].label}" if row >= 0 and sweep.columns != "prompts" else ""
    return f"<b>{html.escape(name + across)}</b> {words.chip(words.recipe(reading.cell.recipe.strip('; ')))}"


def _answer(name: str, reading: Reading | None, live: Mapping[str, Answer]) -> None:
    """One of the columns: whose answer, the text, what is known of it."""
    head = "merged" if name == "cell" else name
    st.html(f'<div class="sfn-sweep-side {name.lower()}">{head}</div>')
    if reading is None:
        st.caption("Not asked.")
        return
    answer = live.get(reading.cell.question_key)
    if reading.cell.generation is None and answer is not None and answer.active:
        st.html(words.said(answer.text or "…", "sfn-answer"))
        st.html(f'<div class="sfn-muted">{answer.n_tokens} tokens so far</div>')
        return
    if reading.cell.generation is None:
        why = reading.cell.problem or (f"Failed: {reading.cell.error}" if reading.cell.error else "Not asked yet.")
        st.text(why)
        return
    st.html(words.said(reading.text, "sfn-answer") if reading.text.strip() else "<i>Nothing was written.</i>")
    st.html(f'<div class="sfn-muted">{html.escape(" · ".join(_figures(name, reading)))}</div>')


def _figures(name: str, reading: Reading) -> list[str]:
    done = reading.cell.generation
    said = [words.many(done.n_tokens, "token"), _ENDS[done.finish]]
    if reading.contains is not None:
        said.append("✓ contains the reference" if reading.contains else "✗ does not contain the reference")
    for side, share in (("A", reading.like_a), ("B", reading.like_b)):
        if side != name and not math.isnan(share):
            said.append(f"like {side} {share:.2f}")
    return said


def _take(sweep: Sweep, recipe: str, asked: int) -> None:
    """Put what made the cell into force on the page."""
    prompt, sampling = sweep.asked(asked)
    chosen = {"recipe": recipe, "prompt": prompt.text, "mode": sweep.mode, "view": "answers"}
    chosen |= {name: getattr(sampling, name) for name in ("max_tokens", "temperature", "top_p", "top_k", "seed")}
    for name, value in chosen.items():
        state.put(name, value)
    st.session_state[_TAKEN] = True


def taken() -> bool:
    """Whether a cell was just taken to the board, so that the whole page has to follow. True once."""
    return bool(st.session_state.pop(_TAKEN, False))
