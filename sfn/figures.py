"""The figures of a tensor's change: what each is called, how it is computed, how it is written. Draws nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of `sfn.records.TensorDelta`.

    Attributes:
        key: field name. title: its name, axis and legend title. formula: how it is computed, w_A and w_B being the
            tensor's elements on either side. meaning: one plain sentence. format: d3 and Python number format.
        falls: whether a *smaller* value means a larger change (the cosine).
    """

    key: str
    title: str
    formula: str
    meaning: str
    format: str = ".4g"
    falls: bool = False

    @property
    def log_title(self) -> str:
        """Title on a logarithmic scale, where the cosine is drawn as its distance from 1."""
        return f"1 − {self.title}" if self.falls else self.title

    def write(self, value: float) -> str:
        """`value` as text; "not defined" where it is NaN."""
        return "not defined" if math.isnan(value) else f"{value:{self.format}}"


FIGURES: dict[str, Figure] = {
    figure.key: figure
    for figure in (
        Figure(
            "l2_shift",
            "L2 shift",
            "‖w_B − w_A‖₂ = √Σ (w_B − w_A)²",
            "How far the whole tensor moved (the paper's figures 2 and 7). Larger tensors move further by size alone.",
        ),
        Figure(
            "rms_shift",
            "RMS shift",
            "‖w_B − w_A‖₂ / √n, n = number of elements",
            "How far one element moved, typically: modules of different size compare fairly.",
        ),
        Figure(
            "relative_shift",
            "relative shift",
            "‖w_B − w_A‖₂ / ‖w_A‖₂",
            "How far the tensor moved, measured by its own length in A.",
        ),
        Figure(
            "cosine",
            "cosine",
            "⟨w_A, w_B⟩ / (‖w_A‖₂ ‖w_B‖₂)",
            "Whether the tensor still points the same way: 1 is the same direction, 0 is none in common.",
            ".6f",
            falls=True,
        ),
        Figure(
            "changed_share",
            "changed share",
            "number of elements whose stored bits differ / n",
            "How much of the tensor was touched at all: exactly 0 for a module that was frozen in training.",
            ".2%",
        ),
        Figure(
            "max_abs_shift",
            "largest change",
            "max |w_B − w_A|",
            "The element that moved furthest.",
        ),
    )
}
