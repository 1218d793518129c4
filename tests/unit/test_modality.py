"""How many modes a relative change has: verdict and figures on mixtures that are known, the dip by its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sfn import modality, modality_kernel
from sfn.records import Histogram

N = 200_000


def histogram(r: np.ndarray, zeros: int = 0) -> Histogram:
    inner = np.histogram(r, np.arange(-100, 101) / 100)[0]
    return Histogram("script", tuple(inner.tolist()), int((r < -1).sum()), int((r > 1).sum()), zeros, 0)


def draw(*parts: tuple[float, float, float], kind: str = "normal", n: int = N) -> np.ndarray:
    """(share, middle, width) of each component."""
    random = np.random.default_rng(7)
    return np.concatenate([getattr(random, kind)(at, width, int(share * n)) for share, at, width in parts])


# One mode


@pytest.mark.parametrize(
    "r",
    [
        draw((1, 0, 0.2)),
        draw((1, 0.4, 0.1)),
        draw((1, 0, 0.1), kind="laplace"),
        draw((1, -1, 1), kind="uniform") * 2 + 1,  # even over [-1, 1], where two fitted normals stand apart
        draw((0.5, 0, 0.02), (0.5, 0, 0.3)),  # a peak on a broad foot
        draw((0.5, -0.09, 0.1), (0.5, 0.09, 0.1)),  # two components that overlap into one hill
        np.abs(draw((1, 0, 0.3))),
    ],
    ids=["normal", "shifted", "laplace", "even", "peaked", "overlapping", "one-sided"],
)
def test_one_mode_is_called_one(r: np.ndarray):
    found = modality.modality(histogram(r[np.abs(r) <= 1]))
    assert found.verdict == "one mode"
    assert found.dip < modality.LEAST_DIP
    assert modality.in_words(found).startswith("One mode")


def test_random_histograms_with_one_mode_rarely_dip():
    """The p-value keeps what it promises: 5 % of even draws fall under 5 %."""
    random = np.random.default_rng(3)
    drawn = [random.multinomial(10_000, np.full(200, 1 / 200)).astype(float) for _ in range(2000)]
    under = np.mean([modality.dip_p(modality_kernel.dip(counts), 10_000) <= 0.05 for counts in drawn])
    assert 0.02 < under < 0.08


# Two modes


@pytest.mark.parametrize(
    ("r", "means"),
    [
        (draw((0.5, -0.4, 0.1), (0.5, 0.4, 0.1)), (-0.4, 0.4)),
        (draw((0.3, -0.2, 0.05), (0.7, 0.3, 0.1)), (-0.2, 0.3)),
        (draw((0.9, 0, 0.05), (0.1, 0.5, 0.05)), (0.0, 0.5)),
    ],
    ids=["symmetric", "unequal", "small second"],
)
def test_two_inner_modes_are_found_where_they_were_put(r: np.ndarray, means: tuple[float, float]):
    found = modality.modality(histogram(r))
    assert found.verdict == "two modes"
    assert found.means == pytest.approx(means, abs=0.01)
    assert found.p == pytest.approx(0.001)


def test_ashmans_d_and_sarles_coefficient_are_those_of_the_mixture():
    found = modality.modality(histogram(draw((0.5, -0.4, 0.1), (0.5, 0.4, 0.1))))
    assert found.ashman_d == pytest.approx(math.sqrt(2) * 0.8 / math.sqrt(0.02), rel=0.01)
    assert found.sarle == pytest.approx(1 / ((0.4**4 + 6 * 0.16 * 0.01 + 3 * 0.0001) / 0.17**2), rel=0.01)
    normal = modality.modality(histogram(draw((1, 0, 0.1))))
    assert normal.sarle == pytest.approx(1 / 3, rel=0.02)
    assert normal.ashman_d < modality.CLEAN_D


def test_three_modes_are_no_clean_two():
    found = modality.modality(histogram(draw((0.34, -0.6, 0.05), (0.32, 0, 0.05), (0.34, 0.6, 0.05))))
    assert found.verdict in ("uneven", "two modes")
    assert found.dip > modality.LEAST_DIP


# What is no mode


def test_clipped_tails_are_no_modes():
    r = draw((1, 0, 1), kind="laplace")
    found = modality.modality(histogram(r))
    assert found.verdict == "clipped tails"
    assert found.dip < modality.LEAST_DIP < found.clipped_dip
    assert found.outside == pytest.approx(math.exp(-1), abs=0.01)
    assert "tails" in modality.in_words(found)


def test_two_inner_modes_stay_two_beside_heavy_tails():
    r = np.concatenate([draw((0.4, -0.4, 0.1), (0.4, 0.4, 0.1)), draw((0.2, 0, 3))])
    assert modality.modality(histogram(r)).verdict == "two modes"


def test_what_did_not_change_is_a_spike_and_no_mode():
    r = np.concatenate([np.zeros(N), draw((1, 0.4, 0.1))])
    assert modality.modality(histogram(r)).verdict == "two modes"  # for who does not know
    found = modality.modality(histogram(r), unchanged=N)
    assert found.verdict == "one mode"
    assert found.n == N
    assert found.spike == pytest.approx(0.5)
    assert "50.0% did not change at all" in modality.in_words(found)


def test_unchanged_elements_are_counted_from_below():
    one = histogram(np.concatenate([np.zeros(600), np.full(400, 0.5)]))
    assert modality.unchanged_at_least(one, 0.4) == 600
    with_zeros = histogram(np.concatenate([np.zeros(500), np.full(400, 0.5)]), zeros=100)
    assert modality.unchanged_at_least(with_zeros, 0.4) == 500  # were those with w_A = 0 unchanged, it is exact
    assert modality.unchanged_at_least(with_zeros, 0.5) == 400


def test_too_few_elements_have_no_verdict():
    found = modality.modality(histogram(np.full(999, 0.3)))
    assert found.verdict == "unknown"
    assert math.isnan(found.dip)
    assert "999" in modality.in_words(found)
    assert modality.modality(histogram(np.zeros(5000)), unchanged=5000).verdict == "unknown"


def test_all_elements_in_one_bin():
    found = modality.modality(histogram(np.full(5000, 0.303)))
    assert found.verdict == "one mode"
    assert found.dip == 0


# The dip by its definition: the smallest distance to any distribution function with one mode


def minorant(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lowest = y.copy()
    for middle in range(len(x)):
        for left in range(middle):
            for right in range(middle + 1, len(x)):
                along = (x[middle] - x[left]) / (x[right] - x[left])
                lowest[middle] = min(lowest[middle], y[left] + (y[right] - y[left]) * along)
    return lowest


def lowest_end(f: np.ndarray, distance: float) -> float:
    """Lowest value at the last knot of a convex function that stays within `distance` of f, infinite if none does."""
    x = np.concatenate([[-1000.0], np.arange(len(f))])
    f = np.concatenate([[0.0], f])
    low, high = np.maximum(f - distance, 0), f + distance

    def fits(end: float) -> bool:
        return bool(np.all(minorant(x, np.append(high[:-1], end)) >= low - 1e-12))

    if not fits(high[-1]):
        return math.inf
    bottom, top = low[-1], high[-1]
    for _ in range(30):
        middle = (bottom + top) / 2
        bottom, top = (bottom, middle) if fits(middle) else (middle, top)
    return top


def defined_dip(counts: np.ndarray) -> float:
    f = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()

    def reached(distance: float) -> bool:
        return any(
            lowest_end(f[: mode + 1], distance) <= 1 - lowest_end(1 - f[mode:][::-1], distance) + 1e-9
            for mode in range(len(f))
        )

    low, high = 0.0, 0.26
    for _ in range(18):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


@pytest.mark.parametrize("seed", range(8))
def test_the_dip_is_the_distance_to_one_mode(seed: int):
    random = np.random.default_rng(seed)
    counts = random.integers(0, 9, random.integers(4, 8)).astype(float)
    counts[0] += 1
    assert modality_kernel.dip(counts) == pytest.approx(defined_dip(counts), abs=1e-5)
