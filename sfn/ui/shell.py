"""The frame around every page: navigation on top, the sidebar, failures as sentences. Draws no page itself.

This is the script that Streamlit runs. It must not have a `pages/` folder beside it, which would switch Streamlit's
automatic menu on and run pages without this frame; hence the absolute paths in `routes`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

_ROOT = str(Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:  # Streamlit puts this script's folder on the path, not the project's
    sys.path.insert(0, _ROOT)

from sfn.ui import cached, failures, routes, sidebar, state, style  # noqa: E402

_SIDEBAR_PX = 240  # a projector's 1280 pixels belong to the picture
_ICON = str(Path(__file__).parent / "assets" / "icon.png")  # an icon by name would be fetched from a network


def main() -> None:
    """Draw the frame, run the page in it, and let the URL follow."""
    st.set_page_config(
        page_title="Stethoscope for Networks", page_icon=_ICON, layout="wide", initial_sidebar_state=_SIDEBAR_PX
    )
    page = st.navigation(routes.pages(), position="top")
    state.read(page.url_path or routes.HOME)
    style.apply()
    try:
        with failures.shown():
            sidebar.draw()
            for notice in (cached.workbench().store.notice, *state.problems()):
                if notice:
                    st.warning(failures.escaped(notice))
            page.run()
            sidebar.catch_up()
            cached.warm_up()
    finally:
        state.write()


main()
