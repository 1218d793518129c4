"""Tests that need an NVIDIA GPU; elsewhere each is skipped and says so. The vLLM ones share their fixtures with
tests/engine, whose server they are not: this folder is meant to be run by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfn.engines import hardware
from tests.engine.conftest import cache, engine, fresh, fresh_run, merged, pair, prompts

__all__ = ["cache", "engine", "fresh", "fresh_run", "merged", "pair", "prompts"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "" if hardware.has_nvidia_gpu() else "needs an NVIDIA GPU, and this machine has none"
    for item in items:
        if Path(__file__).parent in item.path.parents and reason:
            item.add_marker(pytest.mark.skip(reason=reason))
