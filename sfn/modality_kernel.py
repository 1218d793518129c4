"""The arithmetic of `sfn.modality`, compiled: Hartigan's dip and a two-component fit, both on counts in equal bins.

Knows numbers alone. Compiled by numba on first use and kept beside this file.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_STEPS, _SETTLED = 400, 1e-8  # of the fit: most rounds, and the gain of log-likelihood per element that ends it


@njit(nogil=True, cache=True)
def _hull(heights, first, last, sign, out):
    """Greatest convex minorant (sign 1) or least concave majorant (-1) of a polygon between two knots.

    heights: the polygon's value at knots 0, 1, 2, ...; out: filled with the knots that the hull touches, in order.
    Returns how many.
    """
    size = 0
    for knot in range(first, last + 1):
        while size >= 2:
            before, middle = out[size - 2], out[size - 1]
            rise = (heights[middle] - heights[before]) * (knot - middle)
            if sign * rise < sign * (heights[knot] - heights[middle]) * (middle - before):
                break
            size -= 1
        out[size] = knot
        size += 1
    return size


@njit(nogil=True, cache=True)
def _along(heights, touches, size, out):
    """The hull's value at every knot from its first touch to its last."""
    for piece in range(size - 1):
        left, right = touches[piece], touches[piece + 1]
        slope = (heights[right] - heights[left]) / (right - left)
        for knot in range(left, right):
            out[knot] = heights[left] + slope * (knot - left)
    out[touches[size - 1]] = heights[touches[size - 1]]


@njit(nogil=True, cache=True)
def dip(counts: np.ndarray) -> float:
    """Hartigan's dip of the distribution whose density is flat within each bin; in [0, 0.25], 0 for one mode.

    The algorithm of Hartigan and Hartigan, "The dip test of unimodality" (Annals of Statistics 13, 1985), section 4,
    on the polygon that the distribution function then is.

    counts: (bins,) float64, not all 0.
    """
    bins = len(counts)
    heights = np.zeros(bins + 1)
    for place in range(bins):
        heights[place + 1] = heights[place] + counts[place]
    heights /= heights[bins]
    low, high, found = 0, bins, 0.0
    under, over = np.empty(bins + 1, np.int64), np.empty(bins + 1, np.int64)
    convex, concave = np.empty(bins + 1), np.empty(bins + 1)
    while high > low:
        n_under, n_over = _hull(heights, low, high, 1, under), _hull(heights, low, high, -1, over)
        _along(heights, under, n_under, convex)
        _along(heights, over, n_over, concave)
        widest, new_low, new_high = -1.0, low, high
        for place in range(n_under):  # the widest gap at a knot that the minorant touches
            knot = under[place]
            if concave[knot] - convex[knot] > widest:
                widest, new_low = concave[knot] - convex[knot], knot
                new_high = over[np.searchsorted(over[:n_over], knot)]
        for place in range(n_over):
            knot = over[place]
            if concave[knot] - convex[knot] >= widest:
                widest, new_high = concave[knot] - convex[knot], knot
                new_low = under[np.searchsorted(under[:n_under], knot, side="right") - 1]
        if widest <= found:
            break
        for knot in range(low, new_low + 1):
            found = max(found, heights[knot] - convex[knot])
        for knot in range(new_high, high + 1):
            found = max(found, concave[knot] - heights[knot])
        if (new_low, new_high) == (low, high):
            break
        low, high = new_low, new_high
    return found / 2


@njit(nogil=True, cache=True)
def two_normals(counts: np.ndarray, centres: np.ndarray) -> tuple[float, float, float, float, float]:
    """Two normal components fitted by expectation-maximisation: share of the first, both means, both deviations.

    counts, centres: (bins,) float64, at equal steps; every element counts as at its bin's centre. It begins at the mean
    less and plus the standard deviation. No deviation falls under that of a single bin, its width by root 12.
    """
    total = counts.sum()
    mean = (counts * centres).sum() / total
    width = centres[1] - centres[0]
    floor = width / math.sqrt(12.0)
    spread = max(math.sqrt((counts * (centres - mean) ** 2).sum() / total), floor)
    share, first, second, s_first, s_second = 0.5, mean - spread, mean + spread, spread / 2, spread / 2
    s_first, s_second = max(s_first, floor), max(s_second, floor)
    before = -np.inf
    for _ in range(_STEPS):
        likely = m0 = m1 = x0 = x1 = q0 = q1 = 0.0
        for place in range(len(counts)):
            if counts[place] == 0:
                continue
            x = centres[place]
            p0 = share / s_first * math.exp(-0.5 * ((x - first) / s_first) ** 2)
            p1 = (1 - share) / s_second * math.exp(-0.5 * ((x - second) / s_second) ** 2)
            both = max(p0 + p1, 1e-300)
            likely += counts[place] * math.log(both)
            w0, w1 = counts[place] * p0 / both, counts[place] * p1 / both
            m0 += w0
            m1 += w1
            x0 += w0 * x
            x1 += w1 * x
            q0 += w0 * x * x
            q1 += w1 * x * x
        if m0 < 1e-9 * total or m1 < 1e-9 * total:
            break
        share, first, second = m0 / total, x0 / m0, x1 / m1
        s_first = max(math.sqrt(max(q0 / m0 - first * first, 0.0)), floor)
        s_second = max(math.sqrt(max(q1 / m1 - second * second, 0.0)), floor)
        if likely - before < _SETTLED * total:
            break
        before = likely
    return share, first, second, s_first, s_second
