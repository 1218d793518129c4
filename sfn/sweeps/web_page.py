"""A sweep as one web page that stands for itself: the grid with whole answers, readable without this program. Pure."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from sfn.sweeps.definition import Sweep
from sfn.sweeps.figures import Reading
from sfn.sweeps.grids import A_ROW, B_ROW, Line

_STYLE = """body{font:14px/1.45 system-ui,sans-serif;margin:2rem;color:#1f2328;background:#fff}
table{border-collapse:collapse}th,td{border:1px solid #c9ced4;padding:.4rem .6rem;vertical-align:top;text-align:left}
th{background:#f4f5f7;font-weight:600}td{min-width:12rem;max-width:26rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font:inherit;margin:0 0 .4rem}
small{color:#57606a}code{font-size:.9em;overflow-wrap:anywhere}"""


def web_page(
    sweep: Sweep,
    rows: Sequence[Line],
    columns: Sequence[Line],
    readings: Mapping[tuple[int, int], Reading],
    facts: Sequence[str],
) -> str:
    """The whole document; model text and everything else is escaped. facts: lines on where the answers come from."""
    heads = "".join(f"<th>{_text(line.label)}<br><small>{_text(line.explain)}</small></th>" for line in columns)
    names = {A_ROW: Line("A", "A's own answer"), B_ROW: Line("B", "B's own answer")} | dict(enumerate(rows))
    body = []
    for row, name in sorted(names.items()):
        cells = [readings[row, column] for column in range(len(columns)) if (row, column) in readings]
        span = f' colspan="{len(columns)}"' if row < 0 and not sweep.asks_each_column else ""
        drawn = "".join(f"<td{span}>{_cell(reading)}</td>" for reading in cells)
        body.append(f"<tr><th>{_text(name.label)}<br><small>{_text(name.explain)}</small></th>{drawn}</tr>")
    title = _text(sweep.title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head><body><h1>{title}</h1>{''.join(f'<p>{_text(fact)}</p>' for fact in facts if fact)}"
        f"<table><thead><tr><th>recipe</th>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></body></html>"
    )


def _cell(reading: Reading) -> str:
    cell = reading.cell
    recipe = f"<code>{_text(cell.recipe or 'all A')}</code>"
    if cell.generation is None:
        return f"<small>{_text(cell.problem or cell.error or 'not asked')}</small><br>{recipe}"
    said = [f"{reading.tokens} tokens", cell.generation.finish]
    if reading.contains is not None:
        said.append("✓ contains the reference" if reading.contains else "✗ does not contain the reference")
    for name, share in (("A", reading.like_a), ("B", reading.like_b)):
        if not math.isnan(share):
            said.append(f"like {name} {share:.2f}")
    return f"<pre>{_text(reading.text)}</pre><small>{_text(' · '.join(said))}</small><br>{recipe}"


def _text(words: str) -> str:
    return html.escape(words)
