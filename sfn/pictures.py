"""Charts as files for a talk or a paper: PNG, SVG, Vega-Lite, and their data as CSV or Parquet, each with its caption.

No browser and no network: vl-convert draws. Files are light whatever theme is on the screen. Which charts there are is
`charts`; what a caption says of a pair, `Caption`.
"""

from __future__ import annotations

import html
import io
import json
import re
import struct
import textwrap
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

import sfn

if TYPE_CHECKING:
    import pandas as pd

    from sfn.charts import Chart

Kind = Literal["png", "svg", "json", "csv", "parquet"]

KINDS: dict[Kind, tuple[str, str]] = {
    "png": ("PNG", "image/png"),
    "svg": ("SVG", "image/svg+xml"),
    "json": ("Vega-Lite", "application/json"),
    "csv": ("CSV", "text/csv"),
    "parquet": ("Parquet", "application/vnd.apache.parquet"),
}  # kind -> (what a button says, media type)

WIDTH = 860  # pixels of a chart that is as wide as its place
_PIXELS = 3  # of a PNG for each of those: over 300 to the inch at a column's width of 8 inches
_LINE_HEIGHT, _CHARACTER, _MARGIN = 14, 6.2, 10  # of the caption below a picture, in pixels
_FONT = "DejaVu Sans, Liberation Sans, Arial, Helvetica, sans-serif"  # the first of these has the signs of formulas
_CONFIG = {
    "background": "white",
    "padding": 10,
    "font": _FONT,
    "axis": {"labelColor": "#1F2328", "titleColor": "#1F2328", "titleFontWeight": "normal", "labelFontSize": 11,
             "titleFontSize": 12},
    "legend": {"labelColor": "#1F2328", "titleColor": "#1F2328", "titleFontWeight": "normal"},
    "title": {"anchor": "start", "color": "#1F2328", "fontSize": 14},
}  # fmt: skip


class _Checkpoint(Protocol):
    @property
    def label(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Caption:
    """What goes along with a chart, so that whoever meets it alone can trace it.

    Attributes:
        what: one sentence on what is drawn. formula: how it is computed, "" where `what` says it. pairs: each pair in
            words (`names`). made: the day.
    """

    what: str
    formula: str
    pairs: tuple[str, ...]
    made: datetime

    @property
    def text(self) -> str:
        """The caption in one paragraph."""
        said = [self.what, self.formula, *self.pairs, f"Made on {self.made:%Y-%m-%d} with SfN {sfn.__version__}"]
        return " ".join(f"{part[0].upper()}{part[1:].rstrip('.')}." for part in said if part)


def caption(what: str, formula: str, *pairs: str) -> Caption:
    """A caption of today (UTC)."""
    return Caption(what, formula, pairs, datetime.now(UTC))


def names(a: _Checkpoint, b: _Checkpoint) -> str:
    """ "A: org/base @ 0123456789; B: org/tuned (content 89abcdef01)": the commit, or what a folder's files hash to."""
    return f"A: {_name(a)}; B: {_name(b)}"


def _name(side: _Checkpoint) -> str:
    return f"{side.label} @ {side.revision}" if side.revision else f"{side.label} (content {side.fingerprint[:12]})"


def without_data(chart: Chart) -> dict[str, Any]:
    """A chart's specification; its data are left out, so that it depends on the chart's options alone."""
    from altair import NamedData

    chart.data = NamedData(name="table")

    def bare(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: bare(value) for key, value in part.items() if key != "data"}
        return [bare(value) for value in part] if isinstance(part, list) else part

    return bare(chart.to_dict(validate=False))  # a third of the time; the tests validate


def make(kind: Kind, spec: Mapping[str, Any], table: pd.DataFrame, data: pd.DataFrame, about: Caption) -> bytes:
    """One file.

    Args:
        spec: a chart's Vega-Lite specification without data, in light colours. table: what it draws.
        data: the same as people compute with it, for CSV and Parquet.
    """
    if kind == "csv":
        lines = "".join(f"# {line}\n" for line in textwrap.wrap(about.text, 116))
        return (lines + data.to_csv(index=False)).encode()
    if kind == "parquet":
        return _parquet(data, about.text)
    whole = _whole(spec, table, about.text)
    if kind == "json":
        return json.dumps(whole, ensure_ascii=False, indent=1).encode()
    picture = _with_caption(_drawn(whole), about)
    return picture.encode() if kind == "svg" else _png(picture, about.text)


def _whole(spec: Mapping[str, Any], table: pd.DataFrame, text: str) -> dict[str, Any]:
    """The specification with its data inside, as it stands on its own."""
    records = json.loads(table.to_json(orient="records"))  # NaN becomes null
    whole = {**spec, "data": {"values": records}, "description": text, "usermeta": {"caption": text}}
    if not {"hconcat", "vconcat", "concat", "facet", "repeat"} & set(whole):
        whole["width"] = WIDTH
    whole["config"] = _joined(_CONFIG, whole.get("config", {}))
    return whole


def _joined(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with what `over` says otherwise, one level deep."""
    both = {**under, **over}
    for key in set(under) & set(over):
        if isinstance(under[key], dict) and isinstance(over[key], dict):
            both[key] = {**under[key], **over[key]}
    return both


def _drawn(whole: Mapping[str, Any]) -> str:
    import vl_convert

    version = re.search(r"/v(\d+\.\d+)", whole.get("$schema", ""))  # the Vega-Lite that Altair wrote it for
    known = vl_convert.get_vegalite_versions()
    return vl_convert.vegalite_to_svg(whole, vl_version=version[1] if version and version[1] in known else known[-1])


def _with_caption(picture: str, about: Caption) -> str:
    """An SVG with the caption written below it and in its description, for those who see it and those who do not."""
    head = re.match(r"<svg\b[^>]*>", picture)
    size = {name: float(re.search(rf'\b{name}="([\d.]+)"', head[0])[1]) for name in ("width", "height")}
    lines = textwrap.wrap(about.text, max(40, int((size["width"] - 2 * _MARGIN) / _CHARACTER)))
    top = size["height"]
    height = top + _LINE_HEIGHT * len(lines) + _MARGIN
    opening = re.sub(r'\bheight="[\d.]+"', f'height="{height:g}"', head[0])
    opening = re.sub(r'\bviewBox="[^"]*"', f'viewBox="0 0 {size["width"]:g} {height:g}"', opening)
    rows = "".join(
        f'<text x="{_MARGIN}" y="{top + _LINE_HEIGHT * (place + 0.7):g}">{html.escape(line)}</text>'
        for place, line in enumerate(lines)
    )
    return (
        f"{opening}<desc>{html.escape(about.text)}</desc>"
        f'<rect width="{size["width"]:g}" height="{height:g}" fill="white"/>'
        f"{picture[head.end() : picture.rindex('</svg>')]}"
        f'<g font-family="{_FONT}" font-size="10.5" fill="#57606A">{rows}</g></svg>'
    )


def _png(picture: str, text: str) -> bytes:
    """The SVG as PNG, the caption in its metadata (an iTXt chunk "Description", UTF-8; PNG specification, 11.3.3.4)."""
    import vl_convert

    drawn = vl_convert.svg_to_png(picture, scale=_PIXELS)
    body = b"iTXt" + b"Description\0\0\0\0\0" + text.encode()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    end = 8 + 25  # signature, IHDR
    return drawn[:end] + chunk + drawn[end:]


def _parquet(data: pd.DataFrame, text: str) -> bytes:
    """Parquet with the caption among its metadata, where pandas finds it again as `attrs["caption"]`."""
    data = data.copy(deep=False)
    data.attrs = {"caption": text}
    into = io.BytesIO()
    data.to_parquet(into, engine="pyarrow", index=False)
    return into.getvalue()
