"""In which order recipes are loaded, so that few bytes move between them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan, Source


def sizes(pair: Pair) -> dict[str, int]:
    """Bytes of each of A's tensors: what writing it anew moves."""
    return {row.name: row.a.size_bytes for row in pair.rows if row.a is not None}


def moved_bytes(plans: Sequence[Plan], sizes: Mapping[str, int], start: Plan | None = None) -> int:
    """Bytes of tensors whose source changes, summed over the steps from `start` through `plans` in that order.

    The first step is free where `start` is None: what an engine holds before it starts is not known. Engines that keep
    modules fused (vLLM: q, k, v as one) move the whole fused module, which is not counted here.
    """
    route = [*([start] if start is not None else []), *plans]
    return sum(_distance(one, two, sizes) for one, two in pairwise(route))


def _distance(one: Plan, two: Plan, sizes: Mapping[str, int]) -> int:
    names = {*one.moved, *two.moved}  # elsewhere both are A
    return sum(sizes.get(name, 0) for name in names if one.sources.get(name) != two.sources.get(name))


def nearest_first(plans: Sequence[Plan], sizes: Mapping[str, int], start: Plan | None = None) -> list[int]:
    """Positions of `plans` in an order that moves no more bytes than the given one.

    Greedy nearest neighbour by bytes whose source differs, from `start` (what the engine holds) or else the first plan;
    ties go to the earlier plan. Greedy can lose to the given order, and then the given order stands. Cost: n² × tensors
    comparisons, vectorised.
    """
    given = list(range(len(plans)))
    if len(plans) < 2:
        return given
    codes, weights = _matrix([*plans, *([start] if start is not None else [])], sizes)
    left = np.ones(len(plans), dtype=bool)
    at, greedy = (len(plans), []) if start is not None else (0, [0])
    if start is None:
        left[0] = False
    while left.any():
        cost = (codes[: len(plans)] != codes[at]) @ weights  # (plans,) int64
        cost[~left] = np.iinfo(np.int64).max
        at = int(cost.argmin())
        left[at] = False
        greedy.append(at)
    saved = moved_bytes(plans, sizes, start) - moved_bytes([plans[i] for i in greedy], sizes, start)
    return greedy if saved > 0 else given


def _matrix(plans: Sequence[Plan], sizes: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """(plans, tensors) int32 numbers of sources, 0 for A; (tensors,) int64 bytes. Only what is moved at all."""
    names = sorted({name for plan in plans for name in plan.moved})
    columns = {name: at for at, name in enumerate(names)}
    numbers: dict[Source, int] = {}
    codes = np.zeros((len(plans), len(names)), dtype=np.int32)
    for row, plan in enumerate(plans):
        for name in plan.moved:
            codes[row, columns[name]] = numbers.setdefault(plan.sources[name], len(numbers) + 1)
    return codes, np.array([sizes.get(name, 0) for name in names], dtype=np.int64)
