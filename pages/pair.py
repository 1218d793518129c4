"""Pair: which two models are compared, and what that comparison can be trusted for."""

import streamlit as st

from sfn.ui import opening

st.title("Which two models are compared?")
pair = opening.pair()
st.text(pair.report())
