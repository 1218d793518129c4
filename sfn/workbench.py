"""What one process of SfN owns: the store, the background jobs, the engine. Opened once, closed with the server."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfn import delta, hub, looks, pairs, surgery
from sfn.engine_room import EngineRoom
from sfn.jobs import Job, Jobs
from sfn.lookups import Lookups
from sfn.records import content_key
from sfn.store import Store, default_path
from sfn.sweep_room import SweepRoom

if TYPE_CHECKING:
    from sfn.checkpoints import Checkpoint
    from sfn.pairs import Pair
    from sfn.recipes import Plan

_lock = threading.Lock()
_current: Workbench | None = None


class Workbench:
    """Store, jobs and engine of this process. Raises StoreError where the results database cannot be used."""

    def __init__(self, path: Path | None = None) -> None:
        self.store = Store(path or default_path())
        self.jobs = Jobs()
        self.lookups = Lookups()
        self.engines = EngineRoom(self.store)
        self.sweeps = SweepRoom(self.store, self.jobs, self.engines)

    def open_pair(self, a: str, b: str, owner: str) -> Job:
        """Open and compare two checkpoints in the background; the job's result is the `Pair`, recorded in the store.

        a, b: folders, or models on the Hub. A folder's files are hashed once and remembered, so only the first look at
        a large checkpoint takes long; of the Hub's, only small files are fetched.
        """

        def work(job: Job) -> Pair:
            job.report(0, 0, "reading headers")
            sides = pairs.open_both(a, b)
            for side in sides:

                def progress(done: int, total: int, name: str, label: str = side.label) -> None:
                    job.report(done, total, f"{label}: {name}", "bytes")

                side.fingerprint_with(self.store.file_hashes, progress)
            job.report(0, 0, "comparing configs and tokenizers")
            pair = pairs.compare(*sides)
            named = {"a": lasting_name(a, pair.a), "b": lasting_name(b, pair.b)}
            self.store.save_pair(pair.key, pair.a, pair.b, {"report": pair.report()} | named)
            return pair

        return self.jobs.start("Opening the pair", work, key=f"open:{a}\n{b}", owner=owner)

    def scan(self, pair: Pair, owner: str, names: Iterable[str] | None = None) -> Job:
        """Measure what changed, tensor by tensor; finished tensors are in the store at once and never read again.

        names: the tensors to measure, None for all that compare. Of a model on the Hub, those alone are fetched.
        """
        wanted = None if names is None else set(names)
        chosen = [row.name for row in pair.rows if (row.comparable if wanted is None else row.name in wanted)]

        def work(job: Job) -> int:
            unmeasured = set(self.store.missing(pair.key, chosen))
            missing = [name for name in chosen if name in unmeasured]

            def report(done: int, total: int, name: str) -> None:
                job.report(done, total, name, "bytes")

            with pair.read_ahead(missing, job.cancel_event):
                for measured in delta.scan(pair, missing, progress=report, cancel=job.cancel_event):
                    self.store.save_delta(pair.key, measured)
            return len(missing)

        key = self.scan_key(pair, None if names is None else chosen)
        return self.jobs.start(f"Scanning {pair.label}", work, key=key, owner=owner)

    @staticmethod
    def scan_key(pair: Pair, names: Sequence[str] | None = None) -> str:
        """Key of the job that measures these tensors, in the pair's order; all of a pair begin as without names."""
        return f"scan:{pair.key}" if names is None else f"scan:{pair.key}:{content_key(list(names))}"

    def look(self, pair: Pair, name: str, kind: str, owner: str, *, expert: int | None = None, part: str = "") -> Job:
        """Look closer at one tensor (`looks.KINDS`); what is found is in the store when the job is done."""
        settings = looks.settings(kind, expert=expert, part=part)

        def work(job: Job) -> None:
            if self.store.look(pair.key, name, kind, settings) is not None:
                return

            def report(done: int, total: int, what: str) -> None:
                job.report(done, total, what, "elements")

            found = looks.compute(
                kind, pair, name, expert=expert, part=part, progress=report, cancel=job.cancel_event
            )  # fmt: skip
            self.store.save_look(pair.key, name, kind, settings, looks.to_content(found))

        key = self.look_key(pair, name, kind, settings)
        return self.jobs.start(f"{looks.TITLES[kind]} of {name}", work, key=key, owner=owner)

    def look_at_all(self, pair: Pair, names: Sequence[str], kind: str, owner: str) -> Job:
        """The same look at several tensors, one after the other; each is in the store as soon as it is found, and what
        is there already is not computed again."""
        settings = looks.settings(kind)

        def work(job: Job) -> None:
            there = self.store.looked_at(pair.key, kind, settings)
            missing = [name for name in names if name not in there]
            sizes = [info.numel for name in missing if (info := pair.by_name[name].a) is not None]
            before, total = 0, sum(sizes)
            with pair.read_ahead(missing, job.cancel_event):
                for name, size in zip(missing, sizes, strict=True):

                    def report(done: int, _of: int, what: str, before: int = before) -> None:
                        job.report(before + done, total, what, "elements")

                    found = looks.compute(kind, pair, name, progress=report, cancel=job.cancel_event)
                    self.store.save_look(pair.key, name, kind, settings, looks.to_content(found))
                    before += size

        key = self.looks_key(pair, names, kind)
        return self.jobs.start(f"{looks.TITLES[kind]} of {len(names)} tensors", work, key=key, owner=owner)

    @staticmethod
    def looks_key(pair: Pair, names: Sequence[str], kind: str) -> str:
        """Key of the job that looks so at all these tensors."""
        return f"looks:{pair.key}:{kind}:{content_key(list(names))}"

    @staticmethod
    def look_key(pair: Pair, name: str, kind: str, settings: str) -> str:
        """Key of the job that looks so at a tensor."""
        return f"look:{pair.key}:{name}:{kind}:{settings}"

    def fetch(self, pair: Pair, owner: str) -> Job:
        """Bring both sides' files to this machine, as an engine needs them; nothing to do for folders."""

        def work(job: Job) -> None:
            sides = [side for side in (pair.a, pair.b) if side.missing_bytes]
            total, before = sum(side.missing_bytes for side in sides), 0
            for side in sides:
                base, size = before, side.missing_bytes

                def report(done: int, _total: int, name: str, base: int = base) -> None:
                    job.report(base + done, total, name, "bytes")

                side.fetch(report, job.cancel_event)
                before += size

        return self.jobs.start(f"Fetching {pair.label}", work, key=f"fetch:{pair.key}", owner=owner)

    def write_merge(self, pair: Pair, plan: Plan, folder: Path, owner: str) -> Job:
        """Write the merged checkpoint of `plan`; the job's result is its folder. Cancelled, it leaves nothing."""

        def work(job: Job) -> Path:
            def report(done: int, total: int, name: str) -> None:
                job.report(done, total, name, "bytes")

            return surgery.write(
                pair, plan.recipe, folder,
                progress=report, cancel=job.cancel_event, memo=self.store.file_hashes,
            )  # fmt: skip

        return self.jobs.start(f"Writing {folder.name}", work, key=self.write_key(pair, plan, folder), owner=owner)

    @staticmethod
    def write_key(pair: Pair, plan: Plan, folder: Path) -> str:
        """Key of the job that writes `plan` of `pair` to `folder`."""
        return f"write:{pair.key}:{plan.key}:{folder}"

    def upload(self, folder: Path, repo: str, private: bool, owner: str) -> Job:
        """Send a checkpoint's folder to a new repo on the Hub; the job's result is `hub.Uploaded`."""

        def work(job: Job) -> hub.Uploaded:
            def report(done: int, total: int, what: str) -> None:
                job.report(done, total, what, "bytes")

            return hub.upload(folder, repo, private=private, progress=report, cancel=job.cancel_event)

        return self.jobs.start(f"Uploading {repo}", work, key=self.upload_key(folder), owner=owner)

    @staticmethod
    def upload_key(folder: Path) -> str:
        """Key of the job that uploads `folder`."""
        return f"upload:{folder}"

    def close(self) -> None:
        """Stop everything and let the database go."""
        self.jobs.close()
        self.engines.close()
        self.store.close()


def lasting_name(name: str, opened: Checkpoint) -> str:
    """A name that always means what was opened under `name`: of a model on the Hub, its commit with it."""
    if hub.meant(name) is None or opened.revision is None:
        return name
    return f"{opened.label}@{opened.revision}"


def current() -> Workbench:
    """The workbench of this process, opened on first use."""
    global _current
    with _lock:
        if _current is None:
            _current = Workbench()
        return _current


def close() -> None:
    """Close the workbench of this process, if it is open."""
    global _current
    with _lock:
        if _current is not None:
            _current.close()
            _current = None
