"""Merge: what A says once it has some of B's modules, beside A and B."""

import streamlit as st

from sfn.ui import asking, columns, columns_view, editing, fetching, opening, style, sweep_view, take_view, views

_BESIDE = 24  # a board of at most this many layers leaves room for the recipe and the prompt beside it

on_stage = style.presenter()
with st.container(horizontal=True, vertical_alignment="center", gap="large", key="title_bar"):
    if not on_stage:
        st.title("What if A had B's …?", width="content")
    view = views.choose()
    folded = st.popover("Recipe and prompt") if on_stage else None  # board and answers are what the room looks at
pair = opening.pair()
fetching.notice(pair)
asking.prepare()
edit = editing.in_force(pair)
seats = columns.seats(pair, editing.plans(pair, edit), *asking.question(), asking.samples())
columns.look_up(seats)
asking.carry_out(pair, seats, blocked=bool(edit.problem))

beside = pair.n_layers <= _BESIDE
with views.above():
    editing.draw_presets(pair, edit)
    if folded is not None:
        board_place = st.container()
        recipe_place = prompt_place = folded
    elif beside:
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
        asking.draw_prompt(settings=view == "answers")
match view:
    case "answers":
        asking.draw_buttons(pair, seats, blocked=bool(edit.problem))
        columns_view.draw(pair, seats, above_rem=42 if beside else 52)
    case "sweep":
        sweep_view.draw(pair, edit.plan)
    case "take":
        take_view.draw(pair, edit)
