"""Fixtures for tests of more than one kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine that huggingface_hub talks to, with caches of its own, no token, and short pauses."""
    from huggingface_hub import constants

    from sfn.hub import access, ranges

    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("SFN_CACHE", str(tmp_path / "sfn"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(ranges, "FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr(ranges, "LONGEST_PAUSE_S", 0.05)
        access.offer_token(None)
        yield server
        access.offer_token(None)
