"""The app's frame and pages as AppTest runs them, on a results database of their own and a tiny pair."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from huggingface_hub import constants
from streamlit.testing.v1 import AppTest

from sfn import workbench
from tests.builders import tiny_qwen2

ROOT = Path(__file__).resolve().parents[2]
SHELL = ROOT / "sfn" / "ui" / "shell.py"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two tiny checkpoints of one architecture."""
    place = tmp_path_factory.mktemp("pair")
    return str(tiny_qwen2(place / "base", 0)), str(tiny_qwen2(place / "tuned", 1))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[workbench.Workbench]:
    """The workbench of this process, on an empty results database, without the Hub unless `hub` is there too."""
    if not os.environ.get("HF_ENDPOINT", "").startswith("http://127.0.0.1"):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("SFN_CACHE", str(tmp_path / "cache"))
    workbench.close()
    st.cache_resource.clear()  # pairs that the jobs of another test opened; `cache_data` is keyed by content
    yield workbench.current()
    workbench.close()


@pytest.fixture
def visit(bench: workbench.Workbench, folders: tuple[str, str]) -> Callable[..., AppTest]:
    """visit(page, **query) -> the page of a fresh session that was opened at that address, with the tiny pair."""

    def open_at(page: str = "pair", **query: object) -> AppTest:
        app = AppTest.from_file(str(SHELL), default_timeout=60)
        for name, value in ({"a": folders[0], "b": folders[1]} | query).items():
            if value:
                app.query_params[name] = str(value)
        if page != "pair":
            app.switch_page(str(ROOT / "pages" / f"{page}.py"))
        return app.run()

    return open_at


def switch(app: AppTest, page: str, **query: str) -> AppTest:
    """The same session on another page, led there by the navigation, or by a link that carries `query`."""
    for name in dict(app.query_params):  # the navigation's links carry nothing; AppTest would keep what was there
        del app.query_params[name]
    for name, value in query.items():
        app.query_params[name] = value
    return app.switch_page(str(ROOT / "pages" / f"{page}.py")).run()


def finish_scan(bench: workbench.Workbench) -> None:
    """Wait until every background job has ended."""
    for job in bench.jobs.active():
        assert job.finished.wait(30), f"{job.title} did not end"
