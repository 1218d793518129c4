"""What each stethoscope can do with a pair on this machine, and what not, with the reason: Delta, Merge on each engine,
and the merged checkpoint.

From headers and file sizes alone, before anything is fetched or started. What of two models fits together is `pairs`'
to say, how many bytes that takes is `needs`'.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sfn import engines, needs
from sfn.engines import hardware
from sfn.errors import EngineError
from sfn.places import cache_folder

if TYPE_CHECKING:
    from sfn.pairs import Pair

Verdict = Literal["yes", "partly", "after download", "no"]

_SPARE_BYTES = 1 << 30  # of a disk, left free
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has. gpu_bytes: memory of its largest GPU, 0 without one.

    hub_free_bytes: free where downloads go; free_bytes: free where SfN writes.
    """

    memory_bytes: int
    gpu_bytes: int
    hub_free_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing that can be done with a pair, or not. sentence: what it takes, or why not."""

    what: str
    verdict: Verdict
    sentence: str


def machine() -> Machine:
    """This machine as it is now. Asks the NVIDIA driver, which may take a second the first time."""
    from huggingface_hub import constants

    return Machine(hardware.memory_bytes(), _gpu_bytes(), _free(Path(constants.HF_HUB_CACHE)), _free(cache_folder()))


def _free(folder: Path) -> int:
    """Bytes free where `folder` is or would be."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(place).free


@cache
def _gpu_bytes() -> int:
    if not hardware.has_nvidia_gpu():
        return 0
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return max(int(line) for line in told.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def abilities(pair: Pair, here: Machine) -> tuple[Ability, ...]:
    """What this pair allows on this machine, in the order of the work."""
    merges = (_merge(pair, here, backend) for backend in engines.available())
    return (_delta(pair), *merges, _checkpoint(pair, here))


def fetch_refusal(pair: Pair, here: Machine) -> str:
    """Why what an engine needs cannot be fetched, or ""."""
    needed = _to_fetch(pair)
    if not needed or needed + _SPARE_BYTES <= here.hub_free_bytes:
        return ""
    return (
        f"Downloading takes {_size(needed)} on the disk, and {_size(here.hub_free_bytes)} are free where models are "
        "kept. Make room there, or set HF_HUB_CACHE to a larger disk. Delta can still read over the network."
    )


def _to_fetch(pair: Pair) -> int:
    return pair.a.missing_bytes + (pair.b.missing_bytes if pair.b.folder != pair.a.folder else 0)


def _delta(pair: Pair) -> Ability:
    rows = [row for row in pair.rows if row.comparable]
    if not rows:
        return Ability("Delta", "no", "No tensor of B can be compared with one of A.")
    output = [row for row in rows if row.part.module == "o_proj"]
    alone = f", {_size(needs.scan_bytes(output))} for o_proj alone" if output else ""
    where = "over the network, and keeps nothing" if _to_fetch(pair) else "from this machine"
    sentence = f"Reads {_size(needs.scan_bytes(rows))} for all modules{alone}, {where}."
    left = len(pair.rows) - len(rows)
    if left:
        return Ability("Delta", "partly", f"{sentence} {_tensors(left)} cannot be compared; see below.")
    return Ability("Delta", "yes", sentence)


def _merge(pair: Pair, here: Machine, backend: engines.Backend) -> Ability:
    what = f"Merge on {backend.name}"
    why = backend.reason or _stopped(pair)
    if not why and not pair.a.config:
        why = f"{pair.a.label} has no config.json, from which an engine builds the model."
    if why:
        return Ability(what, "no", why)
    if backend.place:
        return Ability(what, "partly", f"Runs at {backend.place}, which must have both models.")
    device = hardware.device_for(backend.name)
    try:
        dtype = hardware.dtype_for(backend.name, pair, device)
    except EngineError as error:
        return Ability(what, "no", str(error))
    needed = needs.run_memory_bytes(pair.a, dtype=dtype, context_tokens=needs.CONTEXT_TOKENS)
    on_gpu = device.startswith("cuda") and bool(here.gpu_bytes)
    kind, there = ("GPU memory", here.gpu_bytes) if on_gpu else ("memory", here.memory_bytes)
    takes = f"about {_size(needed)} of {kind} in {dtype}"
    if needed > there:
        cure = (
            "Several GPUs (SFN_VLLM_ARGS), or a smaller pair."
            if on_gpu
            else "Take a machine with more, or a smaller pair."
        )
        return Ability(what, "no", f"Needs {takes}; this machine has {_size(there)}. {cure}")
    if missing := _to_fetch(pair):
        return Ability(what, "after download", f"Needs both models on this machine: {_size(missing)}. Takes {takes}.")
    unmoved = sum(row.a is not None and not row.movable for row in pair.rows)
    if unmoved:
        return Ability(what, "partly", f"Takes {takes}. {_tensors(unmoved)} stay A's; see below.")
    return Ability(what, "yes", f"Takes {takes}.")


def _checkpoint(pair: Pair, here: Machine) -> Ability:
    what = "Merged checkpoint"
    if why := _stopped(pair):
        return Ability(what, "no", why)
    written = sum(row.a.size_bytes for row in pair.rows if row.a is not None)
    if written + _SPARE_BYTES > here.free_bytes:
        sentence = f"Takes {_size(written)} on the disk, and {_size(here.free_bytes)} are free where SfN writes."
        return Ability(what, "no", f"{sentence} Make room, or set SFN_CACHE to a larger disk.")
    where = "what is not here is read over the network" if _to_fetch(pair) else "from the files on this machine"
    return Ability(what, "yes", f"Takes {_size(written)} on the disk and no engine; {where}.")


def _stopped(pair: Pair) -> str:
    stop = next((finding.sentence for finding in pair.findings if finding.severity == "stop"), "")
    if stop:
        return stop
    return "" if any(row.movable for row in pair.rows) else "No tensor of B can take the place of one of A."


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count:,} tensors"


def _size(size_bytes: float) -> str:
    unit, name = next(((unit, name) for unit, name in _UNITS if size_bytes >= unit), (1, "bytes"))
    return f"{size_bytes / unit:.3g} {name}"
