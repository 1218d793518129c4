"""Merge: what A says once it has some of B's modules, beside A and B."""

import streamlit as st

from sfn.ui import asking, columns, editing, opening, views

_BESIDE = 24  # a board of at most this many layers leaves room for the recipe and the prompt beside it

st.title("What if A had B's …?")
pair = opening.pair()
asking.prepare()
edit = editing.in_force(pair)
seats = columns.seats(pair, editing.plans(pair, edit), *asking.question())
columns.look_up(seats)
asking.carry_out(pair, seats, blocked=bool(edit.problem))

editing.draw_presets(pair, edit)
beside = pair.n_layers <= _BESIDE
if beside:
    board_place, recipe_place = st.columns([3, 2], gap="medium")
    prompt_place = recipe_place
else:
    board_place = st.container()
    recipe_place, prompt_place = st.columns(2, gap="medium")
with board_place:
    editing.draw_board(pair, edit)
with recipe_place:
    editing.draw_text(pair, edit, asking.engine_line(pair, edit.plan))
with prompt_place:
    asking.draw_prompt()
match views.choose():
    case "answers":
        asking.draw_buttons(pair, edit.plan, seats, blocked=bool(edit.problem))
        columns.draw(pair, seats, above_rem=43 if beside else 53)
