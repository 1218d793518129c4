"""Charts of closer looks: map, spectrum, alignment, heads and experts of a tensor; heads of all layers. As in
`sfn.charts`: tables -> Altair, no Streamlit, no figure computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

from sfn import delta_map, raster, spectrum
from sfn.charts import COLOUR_A, COLOUR_DAMAGE, FAINT, FIT, INK, SCHEME, more_is_nearer
from sfn.figures import FIGURES

if TYPE_CHECKING:
    from sfn.charts import Chart

_TOLD = 64  # tiles each way that tell their value on hover
_RIGHT, _LEFT = "#1B9E77", "#A6761D"  # neither A's blue nor B's orange
SIDES = ("inputs", "outputs")


# Map


def map_values(found: delta_map.DeltaMap, *, signed: bool) -> tuple[np.ndarray, float, float]:
    """The numbers drawn, and where the colours begin and end: the 99.5th percentile, so that few blocks do not flatten
    the rest."""
    values = found.mean if signed else found.mean_abs
    high = float(np.quantile(np.abs(values), 0.995)) or float(np.abs(values).max())
    return values, -high if signed else 0.0, high


def map_table(found: delta_map.DeltaMap, shape: tuple[int, int], *, signed: bool) -> pd.DataFrame:
    """Two rows with the picture (column `url`), on light and on dark, and one for each tile that tells its value: at
    most 64 x 64."""
    values, low, high = map_values(found, signed=signed)
    at = delta_map.region(found.part, shape)
    step = [-(-size // _TOLD) for size in values.shape]
    tiles = [
        (row, column) for row in range(0, values.shape[0], step[0]) for column in range(0, values.shape[1], step[1])
    ]
    rows = [at.row + row * found.block[0] for row, _ in tiles]
    columns = [at.column + column * found.block[1] for _, column in tiles]
    table = pd.DataFrame(
        {
            "row": rows,
            "row2": [min(row + step[0] * found.block[0], at.row_end) for row in rows],
            "column": columns,
            "column2": [min(column + step[1] * found.block[1], at.column_end) for column in columns],
            "value": [float(values[r : r + step[0], c : c + step[1]].mean()) for r, c in tiles],
        }
    )
    urls = [raster.data_url(values, low, high, raster.colours(signed=signed, dark=dark)) for dark in (False, True)]
    picture = pd.DataFrame({"url": urls, "theme": ["light", "dark"], "row": at.row, "column": at.column})
    return pd.concat([picture, table], ignore_index=True)


def delta_map_chart(
    table: pd.DataFrame,
    part: delta_map.Region,
    low: float,
    high: float,
    *,
    signed: bool,
    dark: bool,
    height: int,
    sides: tuple[str, str],
) -> Chart:
    """The pooled change (`map_table`); rows run downwards. A brush selects a part: parameter "zoom".

    sides: what a row and what a column is: "output" and "input", "token" and "feature".
    """
    of_row, of_column = f"row ({sides[0]})", f"column ({sides[1]})"
    said = "mean of w_B − w_A" if signed else "mean of |w_B − w_A|"
    x = alt.Scale(domain=[part.column, part.column_end], nice=False, zero=False)
    y = alt.Scale(domain=[part.row, part.row_end], nice=False, zero=False, reverse=True)
    axis = alt.Axis(format="d", tickMinStep=1, grid=False, tickCount=5)
    stops = raster.colours(signed=signed, dark=dark)
    domain = [float(stop) for stop in np.linspace(low, high, len(stops))] if high > low else [0.0, 1.0]
    colour = alt.Scale(domain=domain, range=list(stops[: len(domain)]), interpolate="rgb", clamp=True)
    picture = (
        alt.Chart(table)
        .transform_filter(f"datum.theme == '{'dark' if dark else 'light'}'")
        .mark_image(
            aspect=False,
            smooth=False,
            align="left",
            baseline="top",
            width=alt.ExprRef("width"),
            height=alt.ExprRef("height"),
        )
        .encode(url="url:N", x=alt.value(0), y=alt.value(0))
    )
    brush = alt.selection_interval(name="zoom", encodings=["x", "y"])
    tiles = (
        alt.Chart(table)
        .transform_filter("!isValid(datum.url)")
        .mark_rect(opacity=0)
        .encode(
            x=alt.X("column:Q", title=of_column, scale=x, axis=axis),
            x2="column2:Q",
            y=alt.Y("row:Q", title=of_row, scale=y, axis=axis),
            y2="row2:Q",
            color=alt.Color(
                "value:Q",
                title=None,
                scale=colour,
                legend=alt.Legend(gradientLength=180, gradientOpacity=1, format=".2~g", tickCount=4),
            ),
            tooltip=[
                alt.Tooltip("row:Q", title="from row"),
                alt.Tooltip("row2:Q", title="to before"),
                alt.Tooltip("column:Q", title="from column"),
                alt.Tooltip("column2:Q", title="to before"),
                alt.Tooltip("value:Q", title=said, format=".3~e"),
            ],
        )
        .add_params(brush)
    )
    return alt.layer(picture, tiles).properties(autosize=FIT, height=height, title=f"Where it changed: {said}")


# Spectrum


def spectrum_table(found: spectrum.Spectrum, k: int) -> pd.DataFrame:
    """Share of the energy in each direction of the change, that of a random matrix, and one row for k."""
    rows = []
    random = spectrum.random_shares(found.shape, len(found.values))
    for kind, shares in (("ΔW", found.shares), ("random", random)):
        rows.append(
            pd.DataFrame(
                {
                    "kind": kind,
                    "direction": np.arange(1, len(shares) + 1),
                    "share": np.where(shares > 1e-14, shares, np.nan),
                    "together": np.cumsum(shares),
                }
            )
        )
    rows.append(pd.DataFrame({"kind": ["k"], "direction": [k]}))
    return pd.concat(rows, ignore_index=True)


def spectrum_chart(table: pd.DataFrame, last: int) -> Chart:
    """Energy s_i² / Σ s_i² of direction i beside that of a random matrix of the same shape and norm; a rule at k."""
    base = alt.Chart(table)
    x = alt.X(
        "direction:Q", title="direction i", scale=alt.Scale(type="log", domain=[1, max(2, last)], nice=False)
    ).axis(format="d", grid=False, tickCount=5)
    curve = (
        base.transform_filter("isValid(datum.share)")
        .mark_line(strokeWidth=2)
        .encode(
            x=x,
            y=alt.Y("share:Q", title="share of energy", scale=alt.Scale(type="log")).axis(
                format=".1~e", gridOpacity=0.4, tickCount=5
            ),
            color=alt.Color(
                "kind:N", title=None, scale=alt.Scale(domain=["ΔW", "random"], range=[COLOUR_A, COLOUR_DAMAGE])
            ).legend(orient="top"),
            strokeDash=alt.StrokeDash(
                "kind:N", scale=alt.Scale(domain=["ΔW", "random"], range=[[1, 0], [5, 3]]), legend=None
            ),
            tooltip=[
                alt.Tooltip("kind:N", title="matrix"),
                alt.Tooltip("direction:Q"),
                alt.Tooltip("share:Q", title="share of energy", format=".3~%"),
                alt.Tooltip("together:Q", title="first to this one", format=".3~%"),
            ],
        )
    )
    rule = base.transform_filter("datum.kind == 'k'").mark_rule(strokeDash=[2, 3], color=COLOUR_DAMAGE).encode(x=x)
    return alt.layer(rule, curve).properties(autosize=FIT, height=230, title="Spectrum of ΔW")


def sides(found: spectrum.Spectrum, *, rows_are_inputs: bool) -> list[tuple[str, np.ndarray, int]]:
    """Inputs and outputs: what each is called, its overlaps with w_A, its size."""
    of_columns, of_rows = (found.right, found.shape[1]), (found.left, found.shape[0])
    both = (of_rows, of_columns) if rows_are_inputs else (of_columns, of_rows)
    return [(side, *overlap) for side, overlap in zip(SIDES, both, strict=True)]


def alignment_table(found: spectrum.Spectrum, k: int, *, rows_are_inputs: bool = False) -> pd.DataFrame:
    """Overlap of the first k directions with w_A's, on either side, and by chance."""
    count = np.arange(1, len(found.left) + 1)
    lines = []
    for side, overlap, size in sides(found, rows_are_inputs=rows_are_inputs):
        lines += [(side, "overlap", overlap), (side, "chance", count / size)]
    tables = [pd.DataFrame({"kind": side, "line": line, "k": count, "overlap": y}) for side, line, y in lines]
    return pd.concat([*tables, pd.DataFrame({"kind": ["k"], "k": [k]})], ignore_index=True)


def alignment_chart(table: pd.DataFrame, last: int) -> Chart:
    """Overlap with w_A's leading directions against k."""
    base = alt.Chart(table)
    x = alt.X("k:Q", title="k", scale=alt.Scale(domain=[1, max(2, last)], nice=False)).axis(format="d", grid=False)
    scale = alt.Scale(domain=list(SIDES), range=[_RIGHT, _LEFT])
    curve = (
        base.transform_filter("datum.kind != 'k'")
        .mark_line(strokeWidth=2)
        .encode(
            x=x,
            y=alt.Y("overlap:Q", title="overlap", scale=alt.Scale(domainMin=0)).axis(
                format="~%", gridOpacity=0.4, tickCount=4
            ),
            color=alt.Color("kind:N", title=None, scale=scale).legend(orient="top"),
            strokeDash=alt.StrokeDash(
                "line:N", title=None, scale=alt.Scale(domain=["overlap", "chance"], range=[[1, 0], [3, 3]])
            ).legend(orient="top"),
            tooltip=[
                alt.Tooltip("kind:N", title="side"),
                alt.Tooltip("line:N", title="overlap"),
                "k:Q",
                alt.Tooltip("overlap:Q", format=".2%"),
            ],
        )
    )
    rule = base.transform_filter("datum.kind == 'k'").mark_rule(strokeDash=[2, 3], color=COLOUR_DAMAGE).encode(x=x)
    return alt.layer(rule, curve).properties(
        autosize=FIT, height=150, title="Do the first k directions lie along w_A's?"
    )


# Heads, experts


def pieces_table(labels: Sequence[str], shift: np.ndarray, relative: np.ndarray) -> pd.DataFrame:
    """One row per head or expert: number, label, L2 and relative shift."""
    return pd.DataFrame(
        {"number": range(len(labels)), "piece": list(labels), "l2_shift": shift, "relative_shift": relative}
    )


def pieces_chart(table: pd.DataFrame, figure: str, what: str) -> Chart:
    """One bar per head or expert, by one figure; the dashed rule is their median."""
    base = alt.Chart(table)
    bars = base.mark_bar(color=COLOUR_A).encode(
        x=alt.X("piece:N" if what == "half" else "number:O", sort=None, title=what).axis(
            labelAngle=0, labelOverlap=True, ticks=False, grid=False
        ),
        y=alt.Y(f"{figure}:Q", title=FIGURES[figure].title).axis(format=".3~g", tickCount=4, gridOpacity=0.4),
        tooltip=[
            alt.Tooltip("piece:N", title=what),
            *_length_tips(),
        ],
    )
    rule = base.mark_rule(strokeDash=[4, 3], color=COLOUR_DAMAGE).encode(y=f"median({figure}):Q")
    return alt.layer(bars, rule).properties(
        autosize=FIT, height=180, title=f"{FIGURES[figure].title[0].upper()}{FIGURES[figure].title[1:]} of each {what}"
    )


def _length_tips() -> list[alt.Tooltip]:
    """What is told of every piece's lengths."""
    return [alt.Tooltip(f"{key}:Q", title=FIGURES[key].title, format=".4~g") for key in ("l2_shift", "relative_shift")]


def heads_chart(table: pd.DataFrame, figure: str, layers: Sequence[int], most: int, what: str, *, dark: bool) -> Chart:
    """Layers × heads, coloured by one figure (`sfn.head_maps.table`). A click selects a layer: parameter "head".

    most: heads of the layer that has most. Heads whose tensor was not looked at yet are faint.
    """
    title = FIGURES[figure].title
    step = max(6, min(20, 400 // len(layers)))
    x = alt.X("number:O", title=what, scale=alt.Scale(domain=list(range(most)), paddingInner=0.06)).axis(
        labelAngle=0, labelOverlap=True, ticks=False, domain=False, grid=False
    )
    y = alt.Y("layer:O", title="layer", scale=alt.Scale(domain=list(layers), paddingInner=0.08)).axis(
        labelOverlap=True, ticks=False, domain=False, grid=False
    )
    colour = alt.Color(
        f"{figure}:Q",
        title=title,
        scale=alt.Scale(scheme=SCHEME, reverse=more_is_nearer(dark), zero=True, nice=False),
        legend=alt.Legend(
            gradientLength=max(60, min(180, step * len(layers) - 30)),
            labelExpr="isNaN(datum.value) ? '' : format(datum.value, '.3~g')",  # nothing is known yet
            tickCount=5,
        ),
    )
    base = alt.Chart(table).encode(x=x, y=y)
    waiting = base.transform_filter(f"!isValid(datum.{figure})").mark_rect(color=FAINT[dark], aria=False)
    known = base.transform_filter(f"isValid(datum.{figure})").mark_rect(aria=False).encode(color=colour)
    head = alt.selection_point(name="head", fields=["layer"], on="click", clear=False, toggle="true")
    top = (
        base.mark_rect(fill="transparent", strokeWidth=1.5, cursor="pointer", aria=False)
        .encode(
            stroke=alt.condition("datum.chosen", alt.value(INK[dark]), alt.value(None)),
            tooltip=[
                alt.Tooltip("layer:O"),
                alt.Tooltip("head:N", title=what),
                *_length_tips(),
            ],
        )
        .add_params(head)
    )
    return (
        alt.layer(waiting, known, top)
        .properties(
            autosize=FIT,
            height=step * len(layers),
            title=f"{title[0].upper()}{title[1:]} of every {what} in every layer",
        )
        .configure_view(stroke=None)
    )
