"""The layout "heads" of the page Delta: every head of one module over all layers, filled in as it is computed.

A map is the collection of the looks at its tensors (`sfn.head_maps`), so that nothing is computed twice. A click on a
head opens its tensor below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sfn import needs
from sfn.figures import FIGURES
from sfn.ui import (
    cached,
    clicks,
    delta_charts,
    delta_memos,
    failures,
    looking,
    opening,
    plots,
    scanning,
    state,
    tensor_view,
    words,
)

if TYPE_CHECKING:
    from sfn.head_maps import HeadMap
    from sfn.jobs import Job
    from sfn.pairs import Pair

_CHART = "heads_map"
_MODULE = "_heads_of"
_NAMES = "_heads_names"  # layer -> tensor of the map on screen


def begun(pair: Pair) -> bool:
    """Begin what needs no click; whether heads are being computed now."""
    chosen = _chosen(pair)
    if chosen is None:
        return False
    _begin_if_small(pair, chosen)
    return _active(pair, chosen)


def draw(pair: Pair, _progress: scanning.Progress, _part: str) -> None:
    """Choice of the module, progress, map, and what is seen in it."""
    chosen = _chosen(pair)
    if chosen is not None:
        figure = _choices(pair, chosen)
        known = delta_memos.head_lengths(pair, chosen)
        _status(pair, chosen, len(known))
        _map(chosen, known, figure)
    else:
        st.markdown("This pair has no attention whose heads can be told apart.")
    for problem in delta_memos.head_maps(pair).problems:
        st.caption(failures.escaped(problem))


def _chosen(pair: Pair) -> HeadMap | None:
    """The map that the address names, else the output projection's, which the paper is about, else the first."""
    maps = {found.key: found for found in delta_memos.head_maps(pair).maps}
    output = (found for found in maps.values() if pair.by_name[found.names[0]].part.role == "o_proj")
    return maps.get(state.get("heads_of")) or next(output, None) or next(iter(maps.values()), None)


def _choices(pair: Pair, chosen: HeadMap) -> str:
    """The module is chosen here too; the figure is returned."""
    state.prepare("heads_by")
    keys = [found.key for found in delta_memos.head_maps(pair).maps]
    st.session_state[_MODULE] = chosen.key
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    row.segmented_control("Module", keys, key=_MODULE, required=True, on_change=_put_module)
    return row.segmented_control(
        "Figure of a head",
        state.ROWS_BY,
        key="heads_by",
        required=True,
        format_func=lambda key: FIGURES[key].title,
        help="L2 shift: ‖w_B − w_A‖₂ over the rows or columns of a head. Relative shift: that by ‖w_A‖₂ of the same.",
        **state.KEEP,
    )


def _put_module() -> None:
    state.put("heads_of", st.session_state[_MODULE])


def _job(pair: Pair, chosen: HeadMap) -> Job | None:
    bench = cached.workbench()
    return bench.jobs.find(bench.looks_key(pair, chosen.names, "slices"))


def _active(pair: Pair, chosen: HeadMap) -> bool:
    job = _job(pair, chosen)
    return job is not None and job.active


def _missing(pair: Pair, chosen: HeadMap) -> list[str]:
    known = delta_memos.head_lengths(pair, chosen)
    return [name for name in chosen.names if name not in known]


def _begin_if_small(pair: Pair, chosen: HeadMap) -> None:
    """What is small and on this machine is computed without a click, once."""
    if scanning.from_network(pair) or _job(pair, chosen) is not None:
        return
    missing = _missing(pair, chosen)
    if missing and needs.scan_bytes([pair.by_name[name] for name in missing]) <= looking.UNASKED_BYTES:
        _start(pair, chosen)


def _start(pair: Pair, chosen: HeadMap) -> None:
    cached.workbench().look_at_all(pair, chosen.names, "slices", state.browser())


def _status(pair: Pair, chosen: HeadMap, known: int) -> None:
    """One row of fixed height: progress and cancel, or what is there and what the rest costs."""
    with st.container(height=52, border=False):
        left, right = st.columns([6, 1], vertical_alignment="center")
        job = _job(pair, chosen)
        many = len(chosen.names)
        if job is not None and job.active:
            text = f"Computing · {known} of {many} layers · {opening.moving(job)}"
            left.progress(job.share, text=failures.escaped(text))
            right.button("Cancel", key="cancel_heads", on_click=opening.cancel, args=(job.id,), width="stretch")
            return
        if known == many:
            left.caption(f"{words.many(many, 'layer')} computed, kept in the results database.{_opened(chosen)}")
            return
        missing = [pair.by_name[name] for name in _missing(pair, chosen)]
        ended = "Cancelled; " if job is not None and job.state == "cancelled" else ""
        left.markdown(
            failures.escaped(
                f"{ended}{known} of {many} layers are computed; the rest means reading {scanning.cost(pair, missing)}."
            )
        )
        right.button(
            "Go on" if known else "Compute", type="primary", key="start_heads", on_click=_start, args=(pair, chosen),
            width="stretch",
        )  # fmt: skip
    if job is not None and job.state == "failed":
        failures.sentence(job.error)


def _opened(chosen: HeadMap) -> str:
    """Where the tensor is that a click opened: a tall map hides it."""
    layer = next((layer for layer, name, _ in chosen.tensors if name == state.get("tensor")), None)
    return "" if layer is None else f" The tensor of layer {layer} is open below."


def _map(chosen: HeadMap, known: delta_memos.HeadLengths, figure: str) -> None:
    from sfn import head_maps, tensor_charts

    st.session_state[_NAMES] = {layer: name for layer, name, _ in chosen.tensors}
    table = head_maps.table(chosen, known, opened=state.get("tensor"))
    plots.show(
        tensor_charts.heads_chart,
        table,
        figure,
        chosen.layers,
        chosen.most,
        chosen.what,
        dark=plots.dark(),
        alt=f"Heatmap of the {FIGURES[figure].title} of each {chosen.what} of {chosen.key} in each layer; a click on a "
        "cell opens the tensor of its layer below.",
        formula="‖w_B − w_A‖₂ over the rows or columns of a head"
        + ("" if figure == "l2_shift" else ", by ‖w_A‖₂ over the same"),
        data=lambda: table.drop(columns="chosen"),
        name=f"Heads of {chosen.key}",
        key=_CHART,
        on_select=_open_clicked,
        selection="head",
        canvas=True,
    )
    cut = chosen.tensors[0][2]
    apart = f"{cut.width:,} {cut.axis} of {chosen.key.split(' ')[0]} make one {chosen.what}, by A's config.json."
    delta_charts.said(head_maps.sentence(table, figure) or "Nothing is computed yet.", _READ.format(apart=apart))


def _open_clicked() -> None:
    """Open the tensor of the layer that was clicked."""
    layer = clicks.newest(_CHART, "head", "layer")
    names = st.session_state.get(_NAMES, {})
    if layer in names:
        tensor_view.choose(names[layer])


_READ = """
Each **row** is a layer, each **column** a head; the colour tells how far the head's slice moved between A and B.
{apart}

Heads that share a key and a value (grouped queries) are named with it. Faint cells are not computed yet.

Point at a cell for its figures; click it to open its layer's tensor below. A head that moved far need not matter: move
its module on the page Merge and read on.
"""
