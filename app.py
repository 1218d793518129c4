"""The composition root: the ASGI app, and what starts and stops with the server. Run it with `streamlit run app.py`.

Owns no page: `sfn/ui/shell.py` draws the frame, `pages/` the pages.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import sfn
from sfn import workbench
from sfn.engines import fit
from sfn.errors import SfnError

if TYPE_CHECKING:
    from starlette.requests import Request


@asynccontextmanager
async def lifespan(_app: st.App) -> AsyncIterator[dict[str, Any]]:
    """Open the workbench with the server and close it with it, so that nothing outlives the app.

    A workbench that cannot be opened does not stop the server: every page then says why in one sentence.
    """
    problem = _problem()
    if problem:
        print(f"SfN: {problem}", flush=True)
    try:
        yield {}
    finally:
        workbench.close()


def _problem() -> str:
    """ "" or the sentence that says why the app cannot be used."""
    try:
        fit.check(thorough=False)
        workbench.current()
    except SfnError as error:
        return str(error)
    return ""


async def health(_request: Request) -> JSONResponse:
    """`/health`: whether the app can be used, and the sentence that says why not."""
    if problem := _problem():
        return JSONResponse({"status": "unusable", "version": sfn.__version__, "problem": problem}, status_code=503)
    return JSONResponse({"status": "ok", "version": sfn.__version__})


# For each run of a page Streamlit puts the script's folder into sys.path, unless it is there, and takes it out again.
# An import that another thread makes meanwhile may then skip a folder: "No module named 'altair'". So let it be there.
_UI = Path(sfn.__file__).absolute().parent / "ui"
if str(_UI) not in sys.path:
    sys.path.append(str(_UI))

_KATEX = _UI / "assets" / "katex"  # sets formulas; see its README.md

app = st.App(
    "sfn/ui/shell.py",
    lifespan=lifespan,
    routes=[Route("/health", health), Mount("/vendor/katex", StaticFiles(directory=_KATEX))],
)
