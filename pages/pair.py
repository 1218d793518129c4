"""Pair: which two models are compared, what differs between them, and what can still be done with them."""

import streamlit as st

from sfn.ui import opening, pair_view, routes

st.title("Which two models are compared?")
pair_view.chooser()
pair = opening.pair()
pair_view.fit(pair)
routes.link("delta", "Next: Delta, what changed between A and B →")
pair_view.summary(pair)
pair_view.findings(pair)
