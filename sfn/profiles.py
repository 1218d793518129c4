"""What the lines over the layers and the histograms of a pair show, each in one computed sentence.

Pure, from the tables that the charts draw. The sentence on the whole pair is `readings`'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sfn.figures import ALL

if TYPE_CHECKING:
    import pandas as pd

_STEADY = 1.1  # the last third against the first: less than 10 % apart is no rise and no fall
_OUTLIER = 1.5  # a layer stands out that is this many times its module's median
_LEAST_LAYERS = 3


def _sizes(board: pd.DataFrame, figure: str) -> dict[str, pd.Series]:
    """Module -> size of its change in each layer, by layer; the cosine counts by its distance from 1."""
    inside = board[board["layer"].notna()]
    value = inside[figure].astype("float64")
    if ALL[figure].falls:
        value = (1.0 - value).clip(lower=0.0)
    sizes = value.set_axis(inside["layer"].astype(int)).groupby(inside["row"].to_numpy(), sort=False)
    return {row: known.sort_index() for row, found in sizes if len(known := found.dropna())}


def over_layers(board: pd.DataFrame, figure: str) -> str:
    """How modules differ along the layers; "" where too few layers are measured to say it.

    Compares the mean of the last third of the layers with that of the first, and each layer with its module's median.
    """
    sizes = {
        row: size for row, size in _sizes(board, figure).items() if len(size) >= _LEAST_LAYERS and size.median() > 0
    }
    if not sizes:
        return ""
    trends = {row: _last_against_first(size) for row, size in sizes.items()}
    row, trend = max(trends.items(), key=lambda item: abs(math.log(item[1])) if item[1] > 0 else -1.0)
    if trend <= 0 or max(trend, 1 / trend) < _STEADY:
        said = "From the first third of the layers to the last, no module changes by 10 % or more"
    else:
        way, ratio = ("rises", trend) if trend > 1 else ("falls", 1 / trend)
        said = f"{row} {way} most along the layers: between the first third and the last by a factor of {_times(ratio)}"
    peak_row, layer, ratio = max(
        ((row, int(size.idxmax()), float(size.max() / size.median())) for row, size in sizes.items()),
        key=lambda peak: peak[2],
    )
    if ratio < _OUTLIER:
        return f"{said}; no layer stands out from its module by half or more."
    return f"{said}; layer {layer} of {peak_row} stands out most, at {_times(ratio)} times its module's median."


def modes(board: pd.DataFrame) -> str:
    """How many tensors have two inner modes and how many merely clipped tails (`sfn.tables.with_shapes`); "" for none.

    Names the tensor with the clearest two.
    """
    known = board[board["verdict"].notna() & (board["verdict"] != "unknown")]
    if known.empty:
        return ""
    many = known["verdict"].value_counts()
    two = known[known["verdict"] == "two modes"]
    if two.empty:
        said = f"None of {len(known)} modules and layers has two clean modes inside ±1"
    else:
        best = two.loc[two["dip"].idxmax()]
        where = f" of layer {best['column']}" if str(best["column"]).isdigit() else ""
        said = (
            f"{len(two)} of {len(known)} modules and layers {'has' if len(two) == 1 else 'have'} two inner modes, most "
            f"clearly {best['row']}{where} (dip {best['dip']:.3f}, Ashman's D {best['ashman_d']:.1f})"
        )
    rest = [
        f"{many[verdict]} {words}"
        for verdict, words in (
            ("clipped tails", "would only look so with their tails clipped onto the edges"),
            ("uneven", "more than one bump, but no clean two"),
            ("one mode", "one mode"),
        )
        if verdict in many
    ]
    return f"{said}; {', '.join(rest)}." if rest else f"{said}."


def _last_against_first(size: pd.Series) -> float:
    third = max(1, len(size) // 3)
    first = float(size.iloc[:third].mean())
    return float(size.iloc[-third:].mean()) / first if first > 0 else 0.0


def beside(board: pd.DataFrame, other: pd.DataFrame, figure: str) -> str:
    """How the second pair's modules compare with the first's, by the median over the layers; "" where none compares."""
    here, there = _sizes(board, figure), _sizes(other, figure)
    ratios = {
        row: float(there[row].median() / here[row].median())
        for row in here
        if row in there and here[row].median() > 0 and there[row].median() > 0
    }
    if not ratios:
        return ""
    high, low = max(ratios, key=ratios.__getitem__), min(ratios, key=ratios.__getitem__)
    if high == low:
        return f"In the second pair {high} is {_times(ratios[high])} times that of the first (median over the layers)."
    return (
        f"In the second pair, by the median over the layers, {high} is {_times(ratios[high])} times that of the first "
        f"and {low} {_times(ratios[low])} times; the other modules lie between."
    )


def beyond(grid: Mapping[str, pd.DataFrame]) -> str:
    """How much lies beyond ±1, by module, in the layers that are shown; "" where nothing is.

    `grid`: row of the board -> `tables.histogram_table`.
    """
    shares = {row: _outside(table) for row, table in grid.items()}
    if not shares:
        return ""
    most, least = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
    if shares[most] == 0:
        return "In the layers shown, no element changed by more than its own size in A."
    said = f"In the layers shown, {most} has most beyond ±1: {shares[most]:.1%} of its elements"
    return f"{said}; {least} has least: {shares[least]:.1%}." if least != most else f"{said}."


def _outside(table: pd.DataFrame) -> float:
    tails = table[table["kind"] == "tail"]
    return float(tails["share"].sum() / max(1, tails["layer"].nunique()))


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 0.1 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"
