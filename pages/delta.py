"""Delta: what changed between A and B, by module and layer; a click on a cell opens that tensor."""

import streamlit as st

from sfn.ui import delta_view, opening

st.title("What changed between A and B?")
delta_view.draw(opening.pair())
