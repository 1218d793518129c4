"""Whether the installed torch companions fit the installed torch. Imports torch only where there is one to try.

`transformers` imports torchvision when it is there; one built for another torch dies in that import ("operator
torchvision::nms does not exist") and takes every text model with it, though no text model needs it.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib import metadata

from sfn.errors import InstallError

# torchcodec is left out: nothing imports it for text.
COMPANIONS = ("torchvision", "torchaudio")


def check(*, thorough: bool = True) -> None:
    """Raise InstallError, with the command that mends it, where a companion does not fit.

    Without `thorough` only the packages' metadata are compared (milliseconds); with it, those that are installed are
    also imported, once per process.
    """
    for package in COMPANIONS:
        version = _version(package)
        if not version:
            continue
        reason = _metadata_reason(package, version, _version("torch")) or (_import_reason(package) if thorough else "")
        if reason:
            remove = " ".join(filter(_version, COMPANIONS))
            raise InstallError(
                f"{package} {version} does not fit torch {_version('torch')} ({reason}), and it would break the "
                f"loading of every model. SfN does not need it; run: pip uninstall -y {remove}"
            )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _metadata_reason(package: str, version: str, torch_version: str) -> str:
    """Why metadata alone show a misfit, or "": another torch is required, or a GPU build meets a CPU torch."""
    from packaging.requirements import Requirement

    if not torch_version:
        return "torch itself is not installed"
    for line in metadata.requires(package) or ():
        need = Requirement(line)
        if need.name == "torch" and not need.specifier.contains(torch_version, prereleases=True):
            return f"it was built for torch{need.specifier}"
    torch_build, build = torch_version.partition("+")[2], version.partition("+")[2]
    if torch_build == "cpu" and build != "cpu":
        return "it is a GPU build, and torch is a CPU build"
    return ""


@cache
def _import_reason(package: str) -> str:
    """What importing the package raises, in a line, or ""."""
    try:
        importlib.import_module(package)
    except Exception as error:  # a binary that does not fit raises RuntimeError, OSError, AttributeError, ...
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""
