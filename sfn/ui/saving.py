"""Saving what a page draws: any of its charts as a file, with a caption that says where it is from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st

from sfn import pictures

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.store import SavedPair
    from sfn.ui.plots import Shown

_CHOSEN, _MENU = "save_chart", "save_menu"


def menu(shown: Sequence[Shown], pairs: Sequence[str]) -> None:
    """A button that opens a list of the charts on the page, and for the chosen one a button for each kind of file.

    pairs: what captions say of the pairs (`names`). What is inside is drawn only while it is open.
    """
    opened = st.popover("Save", icon=":material/download:", key=_MENU, on_change="rerun", help="Charts as files")
    if not opened.open:
        return
    with opened:
        if not shown:
            st.caption("Nothing is drawn yet.")
            return
        titles = list(dict.fromkeys(chart.name for chart in shown))
        if st.session_state.get(_CHOSEN) not in titles:
            st.session_state[_CHOSEN] = titles[0]
        title = st.selectbox("Chart", titles, key=_CHOSEN)
        files(next(chart for chart in shown if chart.name == title), pairs, "menu")


def names(pair: Pair) -> str:
    """What captions say of a pair: names, commits or content."""
    return pictures.names(pair.a, pair.b)


def saved_names(pair: SavedPair) -> str:
    """The same of a pair that is not open."""
    return (
        f"A: {pair.a_label} (content {pair.a_fingerprint[:12]}); B: {pair.b_label} (content {pair.b_fingerprint[:12]})"
    )


def files(chart: Shown, pairs: Sequence[str], key: str) -> None:
    """A button for each kind of file of one chart, and its caption to copy. Files are made when they are asked for."""
    about = pictures.caption(chart.alt, chart.formula, *pairs)
    row = st.container(horizontal=True, gap="small")
    for kind, (label, media) in pictures.KINDS.items():
        row.download_button(
            label,
            lambda kind=kind: _make(kind, chart, about),
            f"sfn-{_slug(chart.name)}.{kind if kind != 'json' else 'vl.json'}",
            media,
            key=f"save_{key}_{kind}",
            on_click="ignore",
        )
    st.code(about.text, language=None, wrap_lines=True)
    st.caption("The caption stands in the file too. Files are light, whatever the page's appearance.")


def _make(kind: pictures.Kind, chart: Shown, about: pictures.Caption) -> bytes:
    return pictures.make(kind, chart.light_spec(), chart.table, chart.data(), about)


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60]
