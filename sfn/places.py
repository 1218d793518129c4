"""Where SfN writes. Imports nothing of SfN, so that every room can ask."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where SfN writes: the folder that SFN_CACHE names, otherwise `cache/` of the project."""
    named = os.environ.get("SFN_CACHE", "").strip()
    return Path(named).expanduser() if named else Path(__file__).resolve().parents[1] / "cache"
