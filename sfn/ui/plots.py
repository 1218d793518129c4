"""How charts get onto a page: data and specification are sent apart, so that new numbers never rebuild a chart.

What was drawn is kept for as long as a page asks for it (`gathering`), so that it can be saved.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from sfn.ui import delta_memos, style

if TYPE_CHECKING:
    import pandas as pd

    from sfn.charts import Chart
    from sfn.tables import Packed


_LARGE = {
    "axis": {"labelFontSize": 15, "titleFontSize": 16},
    "legend": {"labelFontSize": 15, "titleFontSize": 16},
    "title": {"fontSize": 20},
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A chart as it stands on the page, and what it takes to save it.

    Attributes:
        draw, table, options, more: what `show` was given. title: in place of the chart's own. name: what the chart is
            called. alt: one sentence on it. formula: how its figures are computed. make_data: makes the table as
            people compute with it, None where that is `table`.
    """

    draw: Callable[..., Chart]
    table: pd.DataFrame
    options: tuple[Hashable, ...]
    more: tuple[tuple[str, Hashable], ...]
    title: str | None
    name: str
    alt: str
    formula: str
    make_data: Callable[[], pd.DataFrame] | None

    def light_spec(self) -> dict[str, Any]:
        """Its specification, without data, in light colours whatever the theme."""
        light = tuple((name, False if name == "dark" else value) for name, value in self.more)
        return _titled(
            delta_memos.chart_spec(self.draw.__name__, self.options, light, self.draw, self.table), self.title
        )

    def data(self) -> pd.DataFrame:
        """What is saved as its data."""
        return self.table if self.make_data is None else self.make_data()


_gathered: ContextVar[list[Shown] | None] = ContextVar("_gathered", default=None)


@contextmanager
def gathering() -> Iterator[list[Shown]]:
    """Every chart that `show` draws meanwhile."""
    shown: list[Shown] = []
    token = _gathered.set(shown)
    try:
        yield shown
    finally:
        _gathered.reset(token)


def dark() -> bool:
    """Whether the viewer sees the dark theme."""
    return st.context.theme.type == "dark"


def show(
    draw: Callable[..., Chart],
    table: pd.DataFrame | Packed,
    *options: Hashable,
    alt: str,
    title: str | None = None,
    formula: str = "",
    data: Callable[[], pd.DataFrame] | None = None,
    name: str | None = None,
    key: str | None = None,
    on_select: Callable[[], None] | None = None,
    selection: str | None = None,
    canvas: bool = False,
    **more: Hashable,
) -> None:
    """Draw `draw(table, *options, **more)` (a function of `sfn.charts`) as wide as its place.

    Args:
        table: packed already, where it is drawn more often than made.
        title: in place of the chart's own, so that charts alike share one specification.
        alt: what a person who cannot see it is told. formula: how its figures are computed, for the caption of a file.
        data: makes what is saved as its data, where that is not `table`. name: what it is called in the list of charts
            to save, where the title alone would not tell.
        on_select: called when parameter `selection` changes; the selection is then in `st.session_state[key]`.
        canvas: draw it as one picture, not as an element for each mark: for charts of hundreds of marks.
    """
    from sfn import tables

    packed = table if isinstance(table, tables.Packed) else tables.pack(table)
    wanted = tuple(sorted(more.items()))
    spec = _titled(delta_memos.chart_spec(draw.__name__, options, wanted, draw, packed.table), title)
    if (gathered := _gathered.get()) is not None:
        gathered.append(
            Shown(draw, packed.table, options, wanted, title, name or _title(spec), alt, formula, data)
        )  # fmt: skip
    if canvas:
        spec["usermeta"] = {"embedOptions": {"renderer": "canvas"}}
    if style.presenter():
        spec["config"] = spec.get("config", {}) | _LARGE
    if on_select is None:
        st.vega_lite_chart(packed.arrow, spec, width="stretch", alt=alt, key=key)
    else:
        st.vega_lite_chart(
            packed.arrow, spec, width="stretch", alt=alt, key=key, on_select=on_select, selection_mode=selection
        )


def _titled(spec: dict[str, Any], title: str | None) -> dict[str, Any]:
    return spec if title is None else {**spec, "title": {"text": title, "fontSize": 13}}


def _title(spec: dict[str, Any]) -> str:
    title = spec.get("title", "chart")
    return title if isinstance(title, str) else title["text"]
