"""Closer looks at one tensor, beside the scan: its rows and columns, a map of its change, the spectrum of its change.

Knows which looks there are and how their records become JSON and back, so that each is computed once. Computes none
itself; runs no job and draws nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import fields
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from sfn import delta_map, slices, spectrum
from sfn.errors import PairError
from sfn.matrices import Matrix, Progress

if TYPE_CHECKING:
    from sfn.pairs import Pair

Look = slices.Slices | delta_map.DeltaMap | spectrum.Spectrum

_RECORDS: Mapping[str, type[Look]] = {
    "slices": slices.Slices,
    "map": delta_map.DeltaMap,
    "spectrum": spectrum.Spectrum,
}
KINDS = tuple(_RECORDS)
TITLES: Mapping[str, str] = {"slices": "Rows and columns", "map": "Map", "spectrum": "Spectrum"}
EXACT = "exact"  # part of a spectrum: all singular values, however long they take
_VERSIONS: Mapping[str, int] = {"slices": 1, "map": 1, "spectrum": 2}  # results under another number are not used


def settings(kind: str, *, expert: int | None = None, part: str = "") -> str:
    """What besides pair, tensor and kind decides a look, as the store keeps it. part: as in `compute`."""
    words = [f"v{_VERSIONS[kind]}"]
    if expert is not None:
        words.append(f"expert {expert}")
    if kind != "slices" and part:
        words.append(part)
    return " ".join(words)


def compute(
    kind: str,
    pair: Pair,
    name: str,
    *,
    expert: int | None = None,
    part: str = "",
    progress: Progress | None = None,
    cancel: Event | None = None,
) -> Look:
    """One look at one tensor, or at one of the experts that it holds.

    kind: one of KINDS. part: region of a map; of a spectrum EXACT, or "" for what is affordable. progress: called with
    (done, in all, what).
    Raises PairError, Cancelled.
    """
    matrix = Matrix(pair, name, expert)
    options = {"progress": progress, "cancel": cancel}
    if kind == "slices":
        return slices.slices(matrix, **options)
    if kind == "map":
        return delta_map.delta_map(matrix, part, **options)
    if kind == "spectrum":
        return spectrum.spectrum(matrix, exact=True if part == EXACT else None, **options)
    raise PairError(f"There is no look {kind!r}; choose one of: {', '.join(KINDS)}.")


def to_content(look: Look) -> dict[str, Any]:
    """A look as JSON; arrays as their little-endian bytes in base64, with dtype and shape."""
    return {field.name: _packed(getattr(look, field.name)) for field in fields(look)}


def from_content(kind: str, content: Mapping[str, Any]) -> Look:
    """The look that `to_content` was given."""
    return _RECORDS[kind](**{name: _unpacked(value) for name, value in content.items()})


def _packed(value: object) -> object:
    if not isinstance(value, np.ndarray):
        return value
    small = value.astype(value.dtype.newbyteorder("<"))
    return {
        "dtype": small.dtype.str,
        "shape": list(value.shape),
        "base64": base64.b64encode(small.tobytes()).decode("ascii"),
    }


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        return np.frombuffer(base64.b64decode(value["base64"]), value["dtype"]).reshape(value["shape"])
    return tuple(value) if isinstance(value, list) else value
