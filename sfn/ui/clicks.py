"""What the last click on a chart chose: a selection holds all that was ever clicked, and the newest is what differs."""

from __future__ import annotations

from typing import Any

import streamlit as st


def newest(chart: str, selection: str, field: str) -> Any | None:
    """The value of `field` that the last click on the chart with this key chose; None if there was none.

    For selections made with toggle="true", so that a second click on the same mark is told too. Call once a click.
    """
    picked = st.session_state[chart].selection.get(selection, [])
    values = [item[field] for item in picked if isinstance(item, dict) and field in item]
    memory = f"_clicked_{chart}"
    before = st.session_state.get(memory, [])
    st.session_state[memory] = values
    changed = [value for value in values if value not in before] or [value for value in before if value not in values]
    return changed[-1] if changed else None
