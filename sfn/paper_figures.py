"""Figures of the paper, drawn as it draws them, and two pairs over each other: tables (`sfn.tables`) -> Altair charts.

The instrument's own charts are `charts`; these are for a talk or a paper, where clipping is done as the paper did it
and its share is said. Source: Shao & Wu, arXiv:2505.20993, figures 2 and 7 (lines), 3 and 8 (histograms).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

from sfn import charts
from sfn.figures import ALL, FIGURES

if TYPE_CHECKING:
    Chart = alt.Chart | alt.LayerChart | alt.FacetChart

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # those that the paper draws
STEP = 5  # figures 3 and 8: every fifth layer
_COLUMNS = 4
_SHAPES, _DASHES = ("circle", "triangle-up"), ([1, 0], [5, 3])  # of the first pair and of the second
_WHICH = ("first", "second")
_BINS = 200


def modules_in(rows: Sequence[str]) -> list[str]:
    """Those of a board's rows that the paper draws; all of them where it has none of these (another architecture)."""
    return [row for row in rows if row in MODULES] or list(rows)


def lines(table: pd.DataFrame, rows: Sequence[str], last: int) -> Chart:
    """L2 shift, one line per module over layers 0 to `last` (`charts.lines_table`; paper, figures 2 and 7)."""
    figure = FIGURES["l2_shift"]
    base = alt.Chart(table).encode(
        x=alt.X("layer:Q", title="layer", scale=alt.Scale(domain=[0, max(1, last)], nice=False)).axis(
            tickMinStep=1, format="d", grid=False
        ),
        y=alt.Y("value:Q", title="‖w_B − w_A‖₂", scale=alt.Scale(zero=True)).axis(format=".3~g", gridOpacity=0.4),
        color=alt.Color(
            "row:N", title=None, sort=None, scale=alt.Scale(domain=list(rows), range=charts.line_colours(len(rows)))
        ),
        shape=alt.Shape("row:N", title=None, sort=None, scale=alt.Scale(domain=list(rows))),
        tooltip=[
            alt.Tooltip("row:N", title="module"),
            alt.Tooltip("layer:Q", title="layer"),
            alt.Tooltip("text:N", title=figure.title),
        ],
    )
    points = base.mark_point(filled=True, size=30)
    return alt.layer(base.mark_line(strokeWidth=1.8).encode(shape=alt.Undefined), points).properties(
        autosize=charts.FIT, height=340, title="L2 shift of each module over the layers"
    )


def clipped_table(grid: Mapping[str, pd.DataFrame], rows: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Histograms as the paper clips them, and what the clipping moved.

    `grid`: row of the board -> `tables.histogram_table`. The first table has a row per module, layer and bin: row,
    layer, r (middle of the bin), share (of all the tensor's elements); what lies beyond ±1 is in the outermost bins, as
    clipping to [−1, 1] puts it there. The second has a row per module: row, clipped (share of its elements in these
    layers that was moved so), label (module and share).
    """
    bins, moved = [], []
    for row in rows:
        table = grid[row]
        inner = table[table["kind"] == "bin"]
        tails = table[table["kind"] == "tail"]
        shares = inner["share"].to_numpy().reshape(-1, _BINS).copy()  # (layers, bins)
        below = tails.loc[tails["side"].str.startswith("below"), "share"].to_numpy()
        above = tails.loc[tails["side"].str.startswith("above"), "share"].to_numpy()
        shares[:, 0] += below
        shares[:, -1] += above
        layers = inner["layer"].to_numpy().reshape(-1, _BINS)[:, 0]
        share = float(np.mean(below + above))  # all layers of a module are of one size
        label = f"{row} · {share:.1%} clipped"
        moved.append({"row": row, "clipped": share, "label": label})
        bins.append(
            pd.DataFrame(
                {
                    "row": label,
                    "layer": layers.repeat(_BINS).astype("int32"),
                    "r": np.tile(inner["r"].to_numpy()[:_BINS].astype("float32"), len(layers)),
                    "share": shares.ravel().astype("float32"),
                }
            )
        )
    return pd.concat(bins, ignore_index=True), pd.DataFrame(moved)


def histograms(table: pd.DataFrame, labels: Sequence[str], layers: Sequence[int], form: str) -> Chart:
    """One small plot per module, one line per layer, clipped to [−1, 1] (`clipped_table`; paper, figures 3 and 8)."""
    scale = alt.Scale(domain=[float(layer) for layer in layers], scheme=charts.SCHEME, reverse=True)
    small = (
        alt.Chart(table)
        .mark_line(strokeWidth=1.1, interpolate="step", clip=True)
        .encode(
            x=alt.X("r:Q", title=None, scale=alt.Scale(domain=[-1, 1], nice=False)).axis(values=[-1, 0, 1], grid=False),
            y=alt.Y("share:Q", title="share per bin").axis(format="~%", tickCount=4, grid=False),
            color=alt.Color("layer:O", title="layer", scale=scale),
            tooltip=[
                alt.Tooltip("layer:O", title="layer"),
                alt.Tooltip("r:Q", format=".3f"),
                alt.Tooltip("share:Q", title="share", format=".3%"),
            ],
        )
        .properties(width=140, height=115)
    )
    title = charts.ratio_title(form)
    return (
        small.facet(
            facet=alt.Facet("row:N", title=None, sort=list(labels)).header(labelFontSize=12, labelAnchor="start"),
            columns=_COLUMNS,
            spacing=14,
        )
        .resolve_scale(y="independent")
        .properties(title=f"{title[0].upper()}{title[1:]}, clipped to [−1, 1], 200 bins")
    )


def beside_table(boards: Sequence[pd.DataFrame], names: Sequence[str], figure: str, *, log: bool) -> pd.DataFrame:
    """`charts.lines_table` of two pairs in one, with pair (its name), which ("first" or "second") and depth: layer /
    (number of layers − 1)."""
    tables = []
    for board, name, which in zip(boards, names, _WHICH, strict=True):
        table = charts.lines_table(board, figure, log=log)
        deepest = table["layer"].max() or 1.0
        tables.append(table.assign(pair=name, which=which, depth=table["layer"] / deepest))
    return pd.concat(tables, ignore_index=True)


def beside(table: pd.DataFrame, figure: str, rows: Sequence[str], names: Sequence[str], *, log: bool) -> Chart:
    """Two pairs over each other on normalised depth: a colour for each module, dash and shape tell the pairs apart.

    Two legends, so that neither speaks of both: swatches of colour for the modules, where a click singles one out, and
    strokes without colour for the pairs.
    """
    spec = ALL[figure]
    title = spec.log_title if log else spec.title
    one = alt.selection_point(name="module", fields=["row"], bind="legend")
    scale = alt.Scale(type="log", nice=True) if log else alt.Scale(zero=not spec.falls)
    pairs = alt.Legend(
        title="pair", orient="top", direction="vertical", labelLimit=760, symbolType="stroke", symbolSize=1200,
        symbolStrokeWidth=2, symbolStrokeColor=charts.COLOUR_DAMAGE, symbolFillColor=charts.COLOUR_DAMAGE,
    )  # fmt: skip
    modules = alt.Legend(title="module", symbolType="square", symbolSize=110, symbolStrokeWidth=0, labelLimit=220)
    base = (
        alt.Chart(table)
        .transform_filter("isValid(datum.value)")
        .encode(
            x=alt.X("depth:Q", title="depth: layer / (layers − 1)", scale=alt.Scale(domain=[0, 1], nice=False)).axis(
                format=".1f", tickCount=11, grid=False
            ),
            y=alt.Y("value:Q", title=title, scale=scale).axis(format=".3~g", gridOpacity=0.4, tickCount=5),
            color=alt.Color(
                "row:N", sort=None, legend=modules,
                scale=alt.Scale(domain=list(rows), range=charts.line_colours(len(rows))),
            ),
            opacity=alt.condition(one, alt.value(1.0), alt.value(0.1)),
        )
    )  # fmt: skip
    told = {
        "pair": "datum.pair", "module": "datum.row", "layer": "datum.layer", "depth": "format(datum.depth, '.2f')",
        spec.title: "datum.text",
    }  # fmt: skip
    dash = alt.StrokeDash("pair:N", sort=None, scale=alt.Scale(domain=list(names), range=list(_DASHES)), legend=pairs)
    # By a column of its own: Vega-Lite would draw shapes into the legend of dashes if both were of the same.
    shape = alt.Shape("which:N", sort=None, scale=alt.Scale(domain=list(_WHICH), range=list(_SHAPES)), legend=None)
    strokes = base.mark_line(strokeWidth=1.8, aria=False).encode(strokeDash=dash)
    points = base.transform_calculate(tip=charts.tip(told)).mark_point(filled=True, size=34, aria=False)
    points = points.encode(shape=shape, tooltip="tip:N").add_params(one)
    return alt.layer(strokes, points).properties(
        autosize=charts.FIT, height=340, title=f"{title[0].upper()}{title[1:]} of two pairs over their depth"
    )
