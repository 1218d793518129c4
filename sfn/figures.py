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

SHAPES: dict[str, Figure] = {
    figure.key: figure
    for figure in (
        Figure(
            "dip",
            "dip",
            "Hartigan's dip of r inside ±1: distance between its distribution function and the nearest one with "
            "a single mode",
            "0 is one mode, 0.25 two that have nothing in common. Exact for the 200 bins; what did not change is left "
            "out. p: how often as many elements with one mode dip so far, at most.",
            ".4f",
        ),
        Figure(
            "clipped_dip",
            "dip with tails clipped",
            "the dip when all beyond ±1 is piled onto the edges, as in the paper's plots",
            "What dips only here has no inner modes: it is tails that were clipped.",
            ".4f",
        ),
        Figure(
            "ashman_d",
            "Ashman's D",
            "√2 |μ₁ − μ₂| / √(σ₁² + σ₂²) of two normal components fitted to r inside ±1 by expectation-maximisation",
            "Over 2 the two stand apart. Alone it proves nothing: an even distribution has about 3.",
            ".2f",
        ),
        Figure(
            "sarle",
            "Sarle's b",
            "(g² + 1) / k, g the skewness and k the kurtosis of r inside ±1",
            "Over 5/9 = 0.556 it speaks for two modes, or for one long tail.",
            ".3f",
        ),
        Figure(
            "outside",
            "share beyond ±1",
            "number of elements with |r| > 1 / n",
            "What clipping to ±1 would pile onto the edges.",
            ".2%",
        ),
    )
}
"""Figures of the shape of the relative change r, by their names in `sfn.modality.Modality`."""

ALL: dict[str, Figure] = FIGURES | SHAPES
