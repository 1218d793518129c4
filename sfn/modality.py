"""How many modes a relative change has inside ±1: dip, Ashman's D, Sarle's coefficient, and a verdict in plain words.

A pure function of a stored histogram. What lies beyond ±1 is counted apart, so that tails clipped onto the edges are
never taken for modes, and what did not change at all is taken out, since it is no mode but a spike at r = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sfn.records import Histogram, TensorDelta

Verdict = Literal["two modes", "uneven", "clipped tails", "one mode", "unknown"]

LEAST = 1000  # elements inside, below which nothing is said
LEAST_DIP = 0.01  # a smaller dip is too slight to be seen, however sure it is in millions of elements
LEAST_P = 0.01
CLEAN_D = 2.0  # Ashman's: below it two components are not cleanly apart
_LEAST_SHARE = 0.05  # of the smaller of two modes
_PILE, _LEAST_PILE = 2.0, 0.01  # a pile on an edge is this many times what lies beside it, and this share of all

_CENTRES = np.linspace(-1.0, 1.0, 201)[:-1] + 0.005
_ZERO_BIN = 100  # [0, 0.01)
# Quantiles of root n times the dip of n elements drawn evenly over 200 bins (10,000 draws of 10 million elements): of
# all distributions with one mode the one that dips most.
_NULL = ((0.337, 0.5), (0.462, 0.1), (0.506, 0.05), (0.592, 0.01), (0.696, 0.001))


@dataclass(frozen=True, slots=True)
class Modality:
    """What a histogram of the relative change says about its modes.

    Attributes:
        verdict: "two modes": two inside ±1 and cleanly apart; "uneven": more than one, but no clean two; "clipped
            tails": one inside ±1, and clipping would pile the tails onto an edge; "one mode"; "unknown": too few.
        n: elements that the figures are of: inside ±1, and changed. spike: share of all elements that did not change
            at all. outside: share of all elements beyond ±1.
        dip: Hartigan's, in [0, 0.25]; exact for the histogram, that of the elements differs by less than half the
            share of the fullest bin. p: how often n elements with one mode dip so far, at most; 0.001 means "or less".
        clipped_dip: the dip when all beyond ±1 is piled onto the edges.
        ashman_d: sqrt(2) |m1 - m2| / sqrt(s1^2 + s2^2) of two fitted normals, over 2 where they are cleanly apart.
        means, deviations: m1, m2 and s1, s2. share: of the first. sarle: (g^2 + 1) / k with the skewness g and the
            kurtosis k (3 for a normal); over 5/9 speaks for two modes, or for a long tail on one side.
    Figures are NaN where the verdict is "unknown".
    """

    verdict: Verdict
    n: int
    spike: float
    outside: float
    dip: float
    p: float
    clipped_dip: float
    ashman_d: float
    means: tuple[float, float]
    deviations: tuple[float, float]
    share: float
    sarle: float


def modality(histogram: Histogram, unchanged: int = 0) -> Modality:
    """Modes of the relative change inside ±1.

    unchanged: elements known to be the same in A and B (`unchanged_at_least`); they are taken out of the bin of r = 0.
    """
    from sfn import modality_kernel as kernel

    counts = np.asarray(histogram.inner, np.float64)
    spike = min(unchanged, histogram.inner[_ZERO_BIN])
    counts[_ZERO_BIN] -= spike
    n, total = int(counts.sum()), max(histogram.total, 1)
    outside = (histogram.below + histogram.above) / total
    if n < LEAST:
        nan = math.nan
        return Modality("unknown", n, spike / total, outside, nan, nan, nan, nan, (nan, nan), (nan, nan), nan, nan)
    dip = max(kernel.dip(counts), 0.0)
    clipped = counts.copy()
    clipped[0] += histogram.below
    clipped[-1] += histogram.above
    share, first, second, s_first, s_second = kernel.two_normals(counts, _CENTRES)
    apart = math.sqrt(2) * abs(second - first) / math.hypot(s_first, s_second)
    p = dip_p(dip, n)
    return Modality(
        verdict=_verdict(dip, p, apart, share, clipped, total),
        n=n,
        spike=spike / total,
        outside=outside,
        dip=dip,
        p=p,
        clipped_dip=max(kernel.dip(clipped), 0.0),
        ashman_d=apart,
        means=(first, second),
        deviations=(s_first, s_second),
        share=share,
        sarle=_sarle(counts),
    )


def of(delta: TensorDelta, form: str = "script") -> Modality:
    """`modality` of one measured tensor, in one form of r."""
    histogram = delta.histogram if form == "script" else delta.histogram_paper
    return modality(histogram, unchanged_at_least(histogram, delta.changed_share))


def unchanged_at_least(histogram: Histogram, changed_share: float) -> int:
    """How many elements of a histogram's bin of r = 0 are the same in A and B: exact where w_A is nowhere 0 and all is
    finite, else the least that it can be."""
    same = histogram.total - round(changed_share * histogram.total)
    return max(0, min(same - histogram.zeros - histogram.nonfinite, histogram.inner[_ZERO_BIN]))


def dip_p(dip: float, n: int) -> float:
    """How often n elements of a distribution with one mode dip so far, at most; between 0.001 ("or less") and 1.

    Against draws from an even distribution; between the quantiles in `_NULL` straight in the logarithm.
    """
    score = math.sqrt(n) * dip
    scores, levels = zip((0.0, 1.0), *_NULL, strict=True)
    return float(np.exp(np.interp(score, scores, np.log(levels))))


def _sarle(counts: np.ndarray) -> float:
    n = counts.sum()
    away = _CENTRES - (counts * _CENTRES).sum() / n
    m2, m3, m4 = ((counts * away**power).sum() / n for power in (2, 3, 4))
    if not m2:
        return math.nan
    return float((m3**2 / m2**3 + 1) / (m4 / m2**2))


def _verdict(dip: float, p: float, apart: float, share: float, clipped: np.ndarray, total: int) -> Verdict:
    if p <= LEAST_P and dip >= LEAST_DIP:
        both = min(share, 1 - share) >= _LEAST_SHARE
        return "two modes" if apart > CLEAN_D and both else "uneven"
    for pile, beside in ((clipped[0], clipped[1:6]), (clipped[-1], clipped[-6:-1])):
        if pile >= _LEAST_PILE * total and pile > _PILE * beside.mean():
            return "clipped tails"
    return "one mode"


def in_words(found: Modality) -> str:
    """The verdict as one or two plain sentences."""
    if found.verdict == "unknown":
        return (
            f"Too few changed elements lie inside ±1 to speak of modes: {found.n:,}, at least {LEAST:,} are needed."
            + _spike(found)
        )
    first, second = sorted(zip(found.means, (found.share, 1 - found.share), strict=True))
    said = {
        "two modes": f"Two inner modes, near r = {first[0]:.2f} ({first[1]:.0%}) and r = {second[0]:.2f} "
        f"({second[1]:.0%}): they are there without the clipped tails.",
        "uneven": "More than one bump inside ±1, but no two that are cleanly apart.",
        "clipped tails": f"One mode inside ±1. Clipped to ±1, the {found.outside:.1%} beyond would pile onto the "
        "edges and look like further modes; they are tails.",
        "one mode": "One mode inside ±1.",
    }[found.verdict]
    return said + _spike(found)


def _spike(found: Modality) -> str:
    if found.spike < 0.01:
        return ""
    return f" {found.spike:.1%} did not change at all: that spike at r = 0 is left out here."
