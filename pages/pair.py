"""Pair: which two models are compared, what can be done with them and what that takes, what differs between them."""

import streamlit as st

from sfn.ui import fetching, opening, pair_view, routes

st.title("Which two models are compared?")
pair_view.chooser()
pair = opening.pair()
pair_view.fit(pair)
routes.link("delta", "Next: Delta, what changed between A and B →")
pair_view.abilities(pair)
fetching.draw(pair)
pair_view.summary(pair)
pair_view.findings(pair)
