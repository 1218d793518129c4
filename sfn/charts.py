"""Tables (`sfn.tables`) -> Altair charts. Knows no Streamlit, computes no figure; every colour is chosen here, once.

A chart's specification depends on its options alone, never on the numbers in its table: while a scan runs, only data
changes, and nothing on the screen moves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from sfn.figures import ALL, FIGURES, SHAPES, Figure
from sfn.tables import EMB, OUT

if TYPE_CHECKING:
    Chart = alt.Chart | alt.LayerChart

COLOUR_A, COLOUR_B, COLOUR_MERGED, COLOUR_DAMAGE = "#4C78A8", "#F58518", "#8A5FBF", "#6B7280"
MAGNITUDES = "viridis"
SCHEME = alt.SchemeParams(name=MAGNITUDES, extent=[0.0, 0.93])  # its brightest yellow is too loud on white
ROW_HEIGHT = 22  # pixels of one row of the board
NORM_DASH = [4, 2]
FIT = alt.AutoSizeParams(type="fit-x", contains="padding")  # as wide as its place; the height is the plot's own

# One hue per row wherever lines are drawn, none of them A's blue, B's orange or the merged purple; a dash for norms.
_LINE_COLOURS = (
    "#5F6B6D", "#1B9E77", "#66A61E", "#17A2B8", "#D62246", "#9AA3A5", "#A6761D", "#E7298A", "#8C8C2B", "#7A4B2A",
)  # fmt: skip
FAINT = {False: "#E6E8EB", True: "#2B3036"}  # a cell that is not measured yet, on light and on dark
INK = {False: "#1F2328", True: "#F0F3F6"}
_ON_MOST = {False: "#FFFFFF", True: "#1F2328"}  # on the colour of the largest value
_MUTED = {False: "#57606A", True: "#9BA5B0"}


def more_is_nearer(dark: bool) -> bool:
    """Whether viridis is reversed: the end that stands out from the background must mean "more"."""
    return not dark


def _figure_value(table: pd.DataFrame, figure: Figure, log: bool) -> pd.Series:
    """What is coloured or plotted: the figure; on a log scale the cosine's distance from 1; nothing for 0 there."""
    value = table[figure.key].astype("float64")
    if not log:
        return value
    if figure.falls:
        value = 1.0 - value
    return value.where(value > 0)


def heatmap_texts(board: pd.DataFrame) -> pd.DataFrame:
    """What the heatmap says of each cell whichever figure is drawn: name, place in words, every figure as text."""
    table = board[["name", "row", "column", "shape"]].copy()  # in the order of the table that a reader may ask for
    measured = board["state"] == "measured"
    for key, other in FIGURES.items():
        table[key] = [other.write(x) if ready else "–" for x, ready in zip(board[key], measured, strict=True)]
    why = {"apart": "cannot be compared", "waiting": "not measured yet"}
    table["place"] = [
        " · ".join(
            word for word in (place_name(column), why.get(state, ""), problem if state == "apart" else "") if word
        )
        for column, state, problem in zip(board["column"], board["state"], board["problem"], strict=True)
    ]
    table["explanation"] = board["explanation"]
    return table


def heatmap_table(
    board: pd.DataFrame, figure: str, *, log: bool, chosen: str = "", texts: pd.DataFrame | None = None
) -> pd.DataFrame:
    """What the heatmap draws: value, sign (what is written in a cell without colour), chosen, and `heatmap_texts`.

    `texts`: the latter, where they are at hand.
    """
    spec = ALL[figure]
    value, sign = _figure_value(board, spec, log), pd.Series("", index=board.index)
    if not log:
        value, beyond = _within_layers(value, board["layer"].notna(), falls=spec.falls)
        sign[beyond] = "▲"
    sign[(board["state"] == "measured") & value.isna()] = "0" if log else "–"
    sign[board["state"] == "apart"] = "×"
    is_chosen = [bool(chosen) and name == chosen for name in board["name"]]
    return (heatmap_texts(board) if texts is None else texts).assign(value=value, sign=sign, chosen=is_chosen)


def _within_layers(value: pd.Series, inside: pd.Series, *, falls: bool) -> tuple[pd.Series, pd.Series]:
    """Values cut at what the layers reach, so that a head that moved far does not flatten them, and which were cut."""
    layers = value[inside].dropna()
    if layers.empty:
        return value, pd.Series(False, index=value.index)
    edge = layers.min() if falls else layers.max()
    return (value.clip(lower=edge), value < edge) if falls else (value.clip(upper=edge), value > edge)


def place_name(column: str) -> str:
    """A column of the board in words."""
    return {EMB: "before the layers", OUT: "after the layers"}.get(column, f"layer {column}")


def columns_of(board: pd.DataFrame) -> list[str]:
    """Column labels from left to right, with blank ones that set the embedding and the end apart from the layers."""
    there = set(board["column"])
    layers = sorted((column for column in there if column not in (EMB, OUT)), key=int)
    left = [EMB, " "] if EMB in there else []
    return [*left, *layers, *(["  ", OUT] if OUT in there else [])]


def _labelled(columns: Sequence[str]) -> list[str]:
    """Columns that carry a label: both ends, and of many layers every second, fourth, … so that none is crowded out."""
    layers = [column for column in columns if column.isdigit()]
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64) if len(layers) <= 32 * step or step == 64)
    return [column for column in columns if column in (EMB, OUT) or (column.isdigit() and int(column) % step == 0)]


def rows_of(board: pd.DataFrame) -> list[str]:
    """Row labels from top to bottom."""
    return board.drop_duplicates("row").sort_values("rank")["row"].tolist()


def heatmap(
    table: pd.DataFrame, figure: str, rows: Sequence[str], columns: Sequence[str], *, log: bool, dark: bool
) -> Chart:
    """Modules × layers, coloured by one figure (`heatmap_table`). A click selects the cell's tensor: parameter "cell".

    Cells that are not measured yet are faint; × cannot be compared, – is not defined, 0 is no change (log scale), ▲
    lies beyond what the layers reach, where the linear scale ends.
    """
    spec = ALL[figure]
    title = spec.log_title if log else spec.title
    falls = spec.falls and not log
    x = alt.X("column:N", sort=None, scale=alt.Scale(domain=list(columns), paddingInner=0.06)).axis(
        title="layer",
        values=_labelled(columns),
        labelAngle=0,
        labelOverlap=False,
        labelFlush=False,
        ticks=False,
        domain=False,
        grid=False,
    )
    y = alt.Y("row:N", sort=None, scale=alt.Scale(domain=list(rows), paddingInner=0.08)).axis(
        title="module", labelFlush=False, ticks=False, domain=False, labelLimit=240, labelPadding=6, grid=False
    )
    scale = alt.Scale(
        type="log" if log else "linear",
        scheme=SCHEME,
        reverse=more_is_nearer(dark) != falls,
        zero=not spec.falls and not log,
        nice=False,
    )
    legend = alt.Legend(
        gradientLength=min(180, ROW_HEIGHT * max(4, len(rows) - 4)),
        labelExpr="isNaN(datum.value) ? '' : format(datum.value, '.3~g')",  # nothing is measured yet
        titleLimit=120,
        tickCount=5,
    )
    base = alt.Chart(table).encode(x=x, y=y)
    cell = alt.selection_point(name="cell", fields=["name"], on="click", clear=False, toggle="true")
    cells = (  # one mark for each: the browser draws hundreds of them at every change of figure
        base.transform_calculate(tip=tip(_board_tip(figure)))
        .mark_rect(strokeWidth=2, cursor="pointer", aria=False, invalid=None)
        .encode(
            color=alt.Color("value:Q", title=title, scale=scale, legend=legend),
            stroke=alt.condition("datum.chosen", alt.value(INK[dark]), alt.value(None)),
            tooltip="tip:N",
        )
        .add_params(cell)
    )
    signs = (
        base.transform_filter("isValid(datum.sign) && datum.sign != ''")
        .mark_text(fontSize=12, aria=False)
        .encode(
            text="sign:N",
            color=alt.condition("datum.sign == '▲'", alt.value(_ON_MOST[dark]), alt.value(_MUTED[dark])),
        )
    )
    return (
        alt.layer(cells, signs)
        .properties(
            autosize=FIT,
            height=ROW_HEIGHT * len(rows),
            title=f"{title[0].upper()}{title[1:]} of every module in every layer",
        )
        .configure_view(stroke=None)
        .configure_scale(invalid={"color": {"value": FAINT[dark]}})
    )


def _board_tip(figure: str) -> dict[str, str]:
    shape = SHAPES.get(figure)
    return {
        "module": "datum.row",
        "where": "datum.place",
        "what it does": "datum.explanation",
        **({shape.title: f"isValid(datum.value) ? format(datum.value, '{shape.format}') : '–'"} if shape else {}),
        **{other.title: f"datum.{key}" for key, other in FIGURES.items()},
        "shape": "datum.shape",
        "tensor": "datum.name",
    }


def tip(told: Mapping[str, str]) -> str:
    """What is told of a mark, title -> expression, as one expression for a column of its own.

    To fit a chart into its place the browser works out every mark four times, and with it every line of a tooltip.
    """
    return "{" + ", ".join(f"{json.dumps(title)}: {value}" for title, value in told.items()) + "}"


def line_colours(many: int) -> list[str]:
    """A colour for each of that many modules."""
    return [_LINE_COLOURS[place % len(_LINE_COLOURS)] for place in range(many)]


def lines_table(board: pd.DataFrame, figure: str, *, log: bool) -> pd.DataFrame:
    """What the lines draw: one point per module and layer; modules without layers are left out."""
    spec = ALL[figure]
    inside = board[board["layer"].notna()]
    table = inside[["name", "row", "block"]].copy()
    table["layer"] = inside["layer"].astype("float64")
    table["value"] = _figure_value(inside, spec, log)
    table["text"] = [spec.write(x) if x == x else "" for x in inside[figure]]
    table["kind"] = ["norm" if block == "norm" else "matrix" for block in table["block"]]
    return table.drop(columns="block")


def lines(table: pd.DataFrame, figure: str, rows: Sequence[str], last: int, *, log: bool) -> Chart:
    """One line per module over layers 0 to `last` (paper, figure 2). A click on the legend singles a module out."""
    spec = ALL[figure]
    title = spec.log_title if log else spec.title
    one = alt.selection_point(name="module", fields=["row"], bind="legend")
    colours = line_colours(len(rows))
    scale = alt.Scale(type="log", nice=True) if log else alt.Scale(zero=not spec.falls)
    base = (
        alt.Chart(table)
        .transform_filter("isValid(datum.value)")
        .encode(
            x=alt.X("layer:Q", title="layer", scale=alt.Scale(domain=[0, max(1, last)], nice=False)).axis(
                tickMinStep=1, format="d", grid=False
            ),
            y=alt.Y("value:Q", title=title, scale=scale).axis(format=".3~g", gridOpacity=0.4, tickCount=5),
            color=alt.Color(
                "row:N", sort=None, scale=alt.Scale(domain=list(rows), range=colours),
                legend=alt.Legend(title="module", labelLimit=220),
            ),
            opacity=alt.condition(one, alt.value(1.0), alt.value(0.12)),
        )
    )  # fmt: skip
    told = {"module": "datum.row", "layer": "datum.layer", spec.title: "datum.text", "tensor": "datum.name"}
    strokes = base.mark_line(strokeWidth=2, aria=False).encode(
        strokeDash=alt.StrokeDash(
            "kind:N", scale=alt.Scale(domain=["matrix", "norm"], range=[[1, 0], NORM_DASH]), legend=None
        )
    )
    points = base.transform_calculate(tip=tip(told)).mark_point(filled=True, size=36, aria=False)
    points = points.encode(tooltip="tip:N").add_params(one)
    return alt.layer(strokes, points).properties(
        autosize=FIT, height=300, title=f"{title[0].upper()}{title[1:]} over the layers"
    )


_RATIO = {
    "script": "relative change r = (w_B − w_A) / (|w_A| + 1e-8)",
    "paper": "relative change r = (w_B − w_A) / w_A",
}


def ratio_title(form: str) -> str:
    """The relative change in the form in use, as written on every plot of it."""
    return _RATIO[form]


def histogram_small(table: pd.DataFrame, layers: Sequence[int], *, dark: bool, top: float) -> Chart:
    """One module's relative change, one line per shown layer (paper, figure 3); clipped tails as bars of their own.

    Args:
        table: `sfn.tables.histogram_table`. The title, the module's name, is given where the chart is drawn.
        top: top of the right-hand axis, a share; the same for all modules, so that their tails compare.
    """
    domain = [float(layer) for layer in layers]
    scale = alt.Scale(domain=domain, scheme=SCHEME, reverse=more_is_nearer(dark))
    colour = alt.Color("layer:O", title="layer", scale=scale, legend=None)
    inner = alt.Chart(table).mark_line(strokeWidth=1.4, interpolate="step").encode(color=colour, detail="name:N")
    tails = alt.Chart(table).mark_rect().encode(color=colour)
    return _tailed(inner, tails, None, top, "r").properties(autosize=FIT, height=140, title="module")


def histogram_one(table: pd.DataFrame, form: str, *, dark: bool, top: float, log: bool = False) -> Chart:
    """One tensor's relative change: 200 inner bins, and what lies beyond ±1 as two bars apart, each with its share.

    Dashed rules stand where clipping to ±1 would pile those up. log: shares per bin on a logarithmic axis, which is
    linear below one in a million, so that an empty bin has a place.
    """
    inner = alt.Chart(table).mark_rect(color=COLOUR_A)
    tails = alt.Chart(table).mark_rect(color=COLOUR_DAMAGE)
    labels = alt.Chart(table).mark_text(dy=-8, fontSize=12, color=INK[dark]).encode(text="label:N")
    rules = [
        alt.Chart(table).mark_rule(strokeDash=[3, 3], color=_MUTED[dark]).encode(x=alt.datum(edge)) for edge in (-1, 1)
    ]
    return _tailed(inner, tails, labels, top, ratio_title(form), log=log, rules=rules).properties(
        autosize=FIT, height=240, title="Relative change of every element"
    )


def _tailed(
    inner: alt.Chart,
    tails: alt.Chart,
    labels: alt.Chart | None,
    top: float,
    title: str,
    *,
    log: bool = False,
    rules: Sequence[alt.Chart] = (),
) -> alt.LayerChart:
    """Inner bins on the left axis, tails beyond ±1 on the right one: two scales, so that neither hides the other."""
    x_scale = alt.Scale(domain=[-1.42, 1.42], nice=False)
    x_axis = alt.Axis(values=[-1, -0.5, 0, 0.5, 1], title=title, grid=False)
    where = [alt.Tooltip("name:N", title="tensor"), alt.Tooltip("layer:Q", title="layer")]
    scale = alt.Scale(type="symlog", constant=1e-6) if log else alt.Scale(zero=True)
    axis = {"format": "~%", "tickCount": 4}
    if log:  # "~%" would round these to 0
        written = "format(100 * datum.value, '.1~g') + '%'"
        axis = {"values": [0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1], "labelExpr": written, "labelOverlap": False}
    left = alt.Y("share:Q", title="share per bin", scale=scale).axis(grid=False, **axis)
    right = alt.Y("share:Q", title="share beyond ±1", scale=alt.Scale(domain=[0, top])).axis(
        format="~%", tickCount=4, grid=False, orient="right"
    )
    tip = [alt.Tooltip("r:Q", format=".3f"), alt.Tooltip("share:Q", title="share", format=".3%")]
    middle = alt.X("r:Q", scale=x_scale, axis=x_axis)
    edge = alt.X("x:Q", scale=x_scale, axis=x_axis)
    drawn = inner.transform_filter("datum.kind == 'bin'").encode(y=left, tooltip=[*where, *tip])
    drawn = drawn.encode(x=middle) if inner.mark.type == "line" else drawn.encode(x=edge, x2="x2:Q", y2=alt.datum(0))
    beyond = alt.Tooltip("side:N", title="part")
    bars = tails.transform_filter("datum.kind == 'tail'").encode(
        x=edge, x2="x2:Q", y=right, y2=alt.datum(0), tooltip=[*where, beyond, tip[1]]
    )
    outer = [bars]
    if labels is not None:
        outer.append(labels.transform_filter("datum.kind == 'tail'").encode(x=middle, y=right))
    parts = [alt.layer(*outer)] if labels is not None else outer
    return alt.layer(*rules, drawn, *parts).resolve_scale(y="independent")


def tail_top(tails: pd.DataFrame) -> float:
    """Top of the axis of the tails: one of a few round shares, so that neighbouring plots rarely differ in it."""
    largest = float(tails["share"].max()) if len(tails) else 0.0
    return next((top for top in (0.05, 0.1, 0.2, 0.5) if 1.15 * largest <= top), 1.0)
