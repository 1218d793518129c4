"""Which pages there are, and links from one to another. Draws no page."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from sfn.ui import state

ROOT = Path(__file__).resolve().parents[2]
TITLES = {"pair": "Pair", "delta": "Delta", "merge": "Merge", "history": "History"}  # in the order of the work
HOME = "pair"


def _file(name: str) -> Path:
    return ROOT / "pages" / f"{name}.py"


def pages() -> list[st.Page]:
    """The pages that exist, in the order of the work; last, home by its own name (Streamlit serves it at "/" alone)."""
    shown = [
        st.Page(_file(name), title=title, url_path="home" if name == HOME else name, default=name == HOME)
        for name, title in TITLES.items()
        if _file(name).exists()
    ]
    return [*shown, st.Page(_file(HOME), title=TITLES[HOME], url_path=HOME, visibility="hidden")]


def link(name: str, label: str, *, query: dict[str, str] | None = None, help: str | None = None) -> None:
    """Draw a link to a page; nothing where that page does not exist. `query`: what this viewer has chosen for it."""
    if _file(name).exists():
        query = state.link(name) if query is None else query
        st.page_link(str(_file(name)), label=label, query_params=query, help=help)
