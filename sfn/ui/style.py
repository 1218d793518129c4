"""The few CSS rules that the theme file cannot express: tabular figures, long names, type for the back row."""

from __future__ import annotations

import streamlit as st

_RULES = """
.stApp, .stApp button, .stApp input { font-variant-numeric: tabular-nums; }
"""
_PRESENTER = "html { font-size: 125%; }"


def apply(*, presenter: bool) -> None:
    """Put the rules into the page; `presenter` makes all type a quarter larger."""
    st.html(f"<style>{_RULES}{_PRESENTER if presenter else ''}</style>")
