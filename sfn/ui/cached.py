"""Every memo of the app, each bounded, and the way to what the process owns. The durable cache is the store."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from sfn.errors import SfnError

if TYPE_CHECKING:
    from sfn.jobs import Job
    from sfn.workbench import Workbench

_lock = threading.Lock()


def workbench() -> Workbench:
    """Store, jobs and engine of this process. Raises StoreError or InstallError where they cannot be used."""
    from sfn import workbench as room

    return room.current()


def open_workbench() -> str:
    """Open the workbench; returns "" or the sentence that says why it cannot be opened."""
    try:
        workbench()
    except SfnError as error:
        return str(error)
    return ""


def close_workbench() -> None:
    """Close the workbench of this process, if it is open."""
    from sfn import workbench as room

    room.close()


def bundled_folders() -> tuple[str, str]:
    """Folders of the bundled pair, A first."""
    from sfn import demo

    a, b = demo.folders()
    return str(a), str(b)


def _stamp(folder: str) -> tuple[tuple[str, int, int], ...]:
    """What tells that a folder's files changed: names, sizes and times of its weights and configuration."""
    files = sorted(Path(folder).expanduser().glob("*.json")) + sorted(Path(folder).expanduser().glob("*.safetensors"))
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@st.cache_resource(max_entries=8, show_spinner=False)
def _opening(a: str, b: str, _owner: str, stamps: object) -> Job:
    return workbench().open_pair(a, b, _owner)


def opening(a: str, b: str, owner: str) -> Job:
    """The job that opens and compares two checkpoints; its `result` is the `Pair`.

    Done once while the files stay as they are. A job that failed or was cancelled is started again on the next call after `forget_opening`.
    """
    with _lock:
        return _opening(a, b, owner, (_stamp(a), _stamp(b)))


def forget_opening(a: str, b: str) -> None:
    """Let the next `opening` of these folders start anew."""
    _opening.clear(a, b, "", (_stamp(a), _stamp(b)))
