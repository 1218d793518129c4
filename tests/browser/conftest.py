"""The real app on a free port with a cache of its own, and a real Chromium that looks at it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
START_S = 120
WAIT_MS = 60_000  # the longest that one condition may take on two busy cores
expect.set_options(timeout=WAIT_MS)
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]


@dataclass(frozen=True)
class App:
    """A running app. url: its address without a slash at the end. cache: its SFN_CACHE. log: what it printed."""

    url: str
    cache: Path
    log: Path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


@contextmanager
def run_app(folder: Path, **environment: str) -> Iterator[App]:
    """The app, started as a user starts it; ended as a terminal ends it, which must leave no process behind.

    environment: more variables of it, and others than usual.
    """
    running = App(f"http://127.0.0.1:{_free_port()}", folder / "cache", folder / "log")
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", running.url.rsplit(":", 1)[1]]
    usual = {**os.environ, "SFN_CACHE": str(running.cache), "HF_HUB_OFFLINE": "1"}
    with running.log.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=usual | environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_S
        while not _answers(running.url + "/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the app did not start:\n{running.log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One app for all tests."""
    with run_app(tmp_path_factory.mktemp("app")) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium where it is installed, else the browser that playwright brought."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def contexts(browser: Browser) -> Iterator[list[BrowserContext]]:
    """Two fresh browsers that share nothing: no cookies, no storage. Any uncaught script error fails the test."""
    errors: list[str] = []
    made = []
    for _ in range(2):
        context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
        context.set_default_timeout(WAIT_MS)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        made.append(context)
    yield made
    for context in made:
        context.close()
    assert not errors, f"uncaught errors in the browser: {errors}"


@pytest.fixture
def page(contexts: list[BrowserContext]) -> Page:
    """One page of a fresh browser."""
    return contexts[0].new_page()
