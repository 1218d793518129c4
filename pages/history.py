"""History: every answer that was ever generated, found again, opened and compared without computing anything."""

import streamlit as st

from sfn.ui import history_view

st.title("What was said before?")
criteria = history_view.filters()
found = history_view.listing(criteria)
history_view.downloads(found)
history_view.opened()
