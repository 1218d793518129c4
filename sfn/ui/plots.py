"""How charts get onto a page: data and specification are sent apart, so that new numbers never rebuild a chart."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import streamlit as st

from sfn.ui import cached, style

if TYPE_CHECKING:
    import pandas as pd

    from sfn.charts import Chart


_LARGE = {
    "axis": {"labelFontSize": 15, "titleFontSize": 16},
    "legend": {"labelFontSize": 15, "titleFontSize": 16},
    "title": {"fontSize": 20},
}


def dark() -> bool:
    """Whether the viewer sees the dark theme."""
    return st.context.theme.type == "dark"


def show(
    draw: Callable[..., Chart],
    table: pd.DataFrame,
    *options: Hashable,
    alt: str,
    title: str | None = None,
    key: str | None = None,
    on_select: Callable[[], None] | None = None,
    selection: str | None = None,
    **more: Hashable,
) -> None:
    """Draw `draw(table, *options, **more)` (a function of `sfn.charts`) as wide as its place.

    Args:
        title: in place of the chart's own, so that charts alike share one specification.
        alt: what a person who cannot see it is told.
        on_select: called when parameter `selection` changes; the selection is then in `st.session_state[key]`.
    """
    spec = cached.chart_spec(draw.__name__, options, tuple(sorted(more.items())), draw, table)
    if title is not None:
        spec["title"] = {"text": title, "fontSize": 13}
    if style.presenter():
        spec["config"] = spec.get("config", {}) | _LARGE
    if on_select is None:
        st.vega_lite_chart(table, spec, width="stretch", alt=alt, key=key)
    else:
        st.vega_lite_chart(
            table, spec, width="stretch", alt=alt, key=key, on_select=on_select, selection_mode=selection
        )
