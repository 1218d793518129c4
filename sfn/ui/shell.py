"""The frame around every page: navigation on top, the sidebar, failures as sentences. Draws no page itself.

This is the script that Streamlit runs. It must not have a `pages/` folder beside it, which would switch Streamlit's
automatic menu on and run pages without this frame; hence the absolute paths.
"""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # Streamlit puts this script's folder on the path, not the project's
    sys.path.insert(0, str(ROOT))

from sfn.errors import SfnError  # noqa: E402
from sfn.ui import sidebar, state, style  # noqa: E402

TITLES = {"pair": "Pair", "delta": "Delta", "merge": "Merge", "history": "History"}


def page_list() -> list[st.Page]:
    """The pages that exist, in the order of the work; the first is the default."""
    files = {name: ROOT / "pages" / f"{name}.py" for name in TITLES}
    return [
        st.Page(file, title=TITLES[name], url_path=name, default=name == "pair")
        for name, file in files.items()
        if file.exists()
    ]


def main() -> None:
    """Draw the frame, run the page in it, and let the URL follow."""
    st.set_page_config(page_title="Stethoscope for Networks", page_icon=":material/stethoscope:", layout="wide")
    page = st.navigation(page_list(), position="top")
    name = page.url_path or "pair"
    state.read(name)
    style.apply(presenter=sidebar.presenter())
    try:
        sidebar.draw()
        for problem in state.problems():
            st.warning(problem)
        page.run()
    except SfnError as error:
        st.error(str(error))
    finally:
        state.write()


main()
