"""The way to what the process owns, and memos of what pages ask for again and again, each bounded.

Those of what was measured are in `sfn.ui.delta_memos`. The durable cache is the store.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from sfn.errors import SfnError

if TYPE_CHECKING:
    import pandas as pd

    from sfn.anatomy import Part
    from sfn.engines.text import Speech
    from sfn.jobs import Job
    from sfn.lookups import Lookups
    from sfn.pairs import Pair
    from sfn.recipes import Plan
    from sfn.store import SavedPair
    from sfn.sweeps import Grid, Reading, Sweep
    from sfn.ui.board import Row
    from sfn.workbench import Workbench

_lock = threading.Lock()
_MOST_RECENT = 30
_NEWEST = 5000  # answers that the filters of the History page are made from


class Memo:
    """Values by key, those asked for last: `st.cache_resource` would take 0.1 ms a time. Safe from several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: tuple[str, ...]) -> Any | None:
        """What is kept under `key`, None where nothing is."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: tuple[str, ...], value: Any) -> None:
        """Keep `value`, and forget what was asked for longest ago."""
        with self._lock:
            self._kept[key] = value
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)


_plans = Memo(64)


def workbench() -> Workbench:
    """Store, jobs and engine of this process.

    Raises InstallError where packages do not fit each other, StoreError where the results database cannot be used.
    """
    from sfn import workbench as room

    _check_packages()
    _offer_secret()
    return room.current()


def lookups() -> Lookups:
    """What this process asks in the background."""
    return workbench().lookups


@functools.cache
def _offer_secret() -> None:
    """A token in Streamlit's secrets counts where neither the environment nor `hf auth login` has one."""
    from sfn import hub

    if st.secrets.load_if_toml_exists() and "HF_TOKEN" in st.secrets:
        hub.offer_token(str(st.secrets["HF_TOKEN"]))


@functools.cache  # success alone is remembered: a packages' misfit is told each time until it is mended
def _check_packages() -> None:
    from sfn.engines import fit

    fit.check(thorough=False)


def bundled_folders() -> tuple[str, str]:
    """Folders of the bundled pair, A first."""
    from sfn import demo

    a, b = demo.folders()
    return str(a), str(b)


def recent_pairs() -> list[SavedPair]:
    """`Store.pairs`, at most the newest of them; asked once a second at most, since a picker asks at every letter."""
    return _recent_pairs(str(workbench().store.path), int(time.monotonic()))


@st.cache_data(max_entries=2, show_spinner=False)
def _recent_pairs(path: str, second: int) -> list[SavedPair]:
    return workbench().store.pairs()[:_MOST_RECENT]


def _stamp(folder: str) -> tuple[object, ...]:
    """What tells that a folder's files changed: names, sizes and times of its weights and configuration.

    A commit on the Hub never changes; a branch may, and is looked at again after a minute.
    """
    from sfn import hub

    if (found := hub.meant(folder)) is not None:
        return ("hub", 0 if found.fixed else int(time.monotonic() / 60))
    files = sorted(Path(folder).expanduser().glob("*.json")) + sorted(Path(folder).expanduser().glob("*.safetensors"))
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@st.cache_resource(max_entries=8, show_spinner=False)
def _opening(a: str, b: str, _owner: str, stamps: object, _known: Job | None = None) -> Job:
    return _known or workbench().open_pair(a, b, _owner)


def opening(a: str, b: str, owner: str) -> Job:
    """The job that opens and compares two checkpoints; its `result` is the `Pair`.

    Done once while the files stay as they are; a job that failed is started again after `forget_opening`.
    """
    with _lock:
        return _opening(a, b, owner, (_stamp(a), _stamp(b)))


def same_opening(job: Job, a: str, b: str) -> None:
    """From now on `opening` of these names is this job too."""
    with _lock:
        _opening(a, b, "", (_stamp(a), _stamp(b)), job)


def folder_problem(folder: str) -> str:
    """ "" or the sentence that says why `folder` cannot be opened as a checkpoint; headers are read, no weights."""
    return _folder_problem(folder, _stamp(folder))


@st.cache_data(max_entries=64, show_spinner=False)
def _folder_problem(folder: str, stamp: object) -> str:
    from sfn import checkpoints

    try:
        checkpoints.open(folder).close()
    except SfnError as error:
        return str(error)
    return ""


def forget_opening(a: str, b: str) -> None:
    """Let the next `opening` of these folders start anew."""
    _opening.clear(a, b, "", (_stamp(a), _stamp(b)))


def plan(pair: Pair, recipe: str) -> Plan:
    """What a recipe's text means for a pair. Raises RecipeError. A page asks for dozens of plans at every click."""
    from sfn import recipes

    key = (pair.key, recipe)
    found = _plans.get(key)
    if found is None:
        found = recipes.resolve(recipes.parse(recipe), pair)
        _plans.keep(key, found)
    return found


def board_rows(pair: Pair) -> tuple[Row, ...]:
    """`sfn.ui.board.rows` of a pair."""
    return _board_rows(pair.key, pair)


@st.cache_resource(max_entries=8, show_spinner=False)
def _board_rows(pair_key: str, _pair: Pair) -> tuple[Row, ...]:
    from sfn.ui import board

    return board.rows(_pair)


@st.cache_resource(max_entries=1, show_spinner=False)
def warm_up() -> threading.Thread:
    """Load what draws charts beside the first page, once: the first look at Delta does not wait for Altair then."""

    def load() -> None:
        import sfn.charts
        import sfn.readings  # noqa: F401  # loaded, not used
        from sfn import delta_kernel

        delta_kernel.make_ready()

    thread = threading.Thread(target=load, name="sfn-warm-up", daemon=True)
    thread.start()
    return thread


def known_generations() -> pd.DataFrame:
    """What the answers in the store can be filtered by: pair_key, a_label, b_label, engine, recipe, each once."""
    store = workbench().store
    return _known_generations(str(store.path), store.count_generations())


@st.cache_data(max_entries=4, show_spinner=False)
def _known_generations(path: str, many: int) -> pd.DataFrame:
    columns = ["pair_key", "a_label", "b_label", "engine", "recipe"]
    return workbench().store.generations(limit=_NEWEST)[columns].drop_duplicates(ignore_index=True)


@st.cache_data(max_entries=16, show_spinner=False)
def _template_opens_thought(pair_key: str, side: str, _pair: Pair) -> bool:
    from sfn import answer_text, tokenizer_differences

    return answer_text.template_opens_thought(tokenizer_differences.chat_template(getattr(_pair, side)) or "")


def template_opens_thought(pair: Pair, side: Literal["A", "B"]) -> bool:
    """Whether the chat template of one side puts the model into a thought that has begun."""
    return _template_opens_thought(pair.key, side.lower(), pair)


@st.cache_resource(max_entries=4, show_spinner=False)
def speech(folder: str, label: str) -> Speech:
    """A checkpoint's tokenizer and chat template, loaded. Takes seconds the first time: call it in a job."""
    from sfn.engines import text

    return text.load(Path(folder), label)


def sweep_grid(pair: Pair, sweep: Sweep) -> Grid:
    """`sfn.sweeps.expand`. Raises SweepError or RecipeError."""
    return _sweep_grid(pair.key, sweep, pair)


@st.cache_resource(max_entries=8, show_spinner=False)
def _sweep_grid(pair_key: str, sweep: Sweep, _pair: Pair) -> Grid:
    from sfn import sweeps

    return sweeps.expand(sweep, _pair)


def sweep_readings(number: int, sweep: Sweep) -> Mapping[tuple[int, int], Reading]:
    """`sfn.sweeps.readings` of a sweep in the store; read anew once another cell was answered or failed."""
    store = workbench().store
    return _sweep_readings(str(store.path), number, store.sweeps.progress(number), sweep)


@st.cache_resource(max_entries=4, show_spinner=False)
def _sweep_readings(
    path: str, number: int, progress: tuple[int, int], _sweep: Sweep
) -> Mapping[tuple[int, int], Reading]:
    from sfn import sweeps

    return sweeps.readings(_sweep, workbench().store.sweeps.cells(number))


def explanation(part: Part) -> str:
    """One plain sentence on what a tensor does."""
    from sfn import anatomy

    return anatomy.explain(part)
