"""The sidebar: pair, engine, jobs, presenter mode, always in this order. Nothing else lives there."""

from __future__ import annotations

import streamlit as st

from sfn.errors import SfnError
from sfn.ui import opening, state

_PRESENTER = "presenter"


def presenter() -> bool:
    """Whether type is larger for the back row."""
    return bool(st.session_state.get(_PRESENTER, False))


def draw() -> None:
    """Draw the sidebar."""
    with st.sidebar:
        st.caption("Pair")
        try:
            job = opening.opening()
            st.text(job.result.label if job.result is not None else "opening …")
        except SfnError as error:
            st.caption(str(error))
        st.toggle("Presenter mode", key=_PRESENTER, **state.KEEP)
