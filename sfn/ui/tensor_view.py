"""The panel of one tensor on the page "Delta": its histogram with the tails apart and what is read from it, its figures
with their formulas. Map, spectrum and rows are `looks_view`'s.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import streamlit as st

from sfn.figures import FIGURES, SHAPES
from sfn.ui import cached, delta_memos, failures, looking, looks_view, plots, state

if TYPE_CHECKING:
    from sfn.modality import Modality
    from sfn.pairs import Pair, TensorPair
    from sfn.records import Histogram, TensorDelta
    from sfn.ui.scanning import Progress

# Fragments of the page, for choices that change more than their own.
BOARD, TENSOR, LINES, HISTOGRAMS = "board", "tensor", "lines", "histograms"

_SIBLING = "_tensor_sibling"
_LAST = "_tensor_last"  # the tensor that was drawn last


def draw(pair: Pair, progress: Progress, _part: str) -> None:
    """The panel of the tensor that is chosen; nothing where none is."""
    name = state.get("tensor")
    last = st.session_state.get(_LAST, name)
    st.session_state[_LAST] = name
    if last and last != name:
        state.put("map_part", "")  # of another tensor
        looking.leave(pair, last)
    if not name:
        return
    row = pair.by_name.get(name)
    with st.container(border=True, key="tensor_panel"):
        _head(pair, row, name)
        if row is None:
            failures.sentence(f"This pair has no tensor “{name}”. Click a cell of the board to open one that it has.")
            return
        if row.problem and not row.comparable:
            failures.sentence(row.problem)
            return
        found = cached.workbench().store.delta(pair.key, name)
        if found is None:
            st.markdown("This tensor is not measured yet.")
            return
        left, right = st.columns([3, 2])
        with left:
            _histogram(found)
        with right:
            _figures(found)
            _modes(delta_memos.modality(pair.key, found, state.get("form")))
        st.caption("A large change does not show that a tensor carries an ability: that takes moving it, on Merge.")
        looks_view.draw(pair, row, delta_memos.delta_table(pair.key, progress.measured))


def _head(pair: Pair, row: TensorPair | None, name: str) -> None:
    names = [other.name for other in pair.rows]
    here = names.index(name) if row is not None else 0
    title, siblings, before, after, close = st.columns([7, 2.4, 0.7, 0.7, 1.2], vertical_alignment="center")
    title.html(f'<div class="sfn-tensor" title="{html.escape(name)}">{_title(row, name)}</div>')
    if row is not None:
        _siblings(siblings, pair, row)
    before.button(
        "‹", key="tensor_before", help="the tensor before", disabled=here == 0, on_click=choose,
        args=(names[here - 1],),
    )  # fmt: skip
    last = here == len(names) - 1
    after.button(
        "›", key="tensor_after", help="the tensor after", disabled=last, on_click=choose,
        args=(names[here if last else here + 1],),
    )  # fmt: skip
    close.button("Close", key="tensor_close", on_click=choose, args=("",))


def choose(name: str) -> None:
    """Open a tensor, or none: a callback. The board marks its cell."""
    state.put("tensor", name)
    st.rerun((BOARD, TENSOR))


def _title(row: TensorPair | None, name: str) -> str:
    if row is None:
        return html.escape(name)
    where = "" if row.part.layer is None else f"layer {row.part.layer} · "
    expert = "" if row.part.expert is None else f" · expert {row.part.expert}"
    info = row.a or row.b
    shape = " × ".join(str(size) for size in info.shape) if info else ""
    return (
        f"<b>{where}{html.escape(row.part.row)}{expert}</b> · {html.escape(row.part.parameter)} ({shape})"
        f'<div class="sfn-muted">{html.escape(cached.explanation(row.part))}</div>'
    )


def _siblings(place: st.delta_generator.DeltaGenerator, pair: Pair, row: TensorPair) -> None:
    """Weight, bias and experts of the same cell, where there is more than one."""
    cell = (row.part.row, row.part.layer)
    same = [other for other in pair.rows if (other.part.row, other.part.layer) == cell]
    if len(same) < 2:
        return
    labels = {
        other.name: other.part.parameter + ("" if other.part.expert is None else f" of expert {other.part.expert}")
        for other in same
    }
    key = f"{_SIBLING} {row.name}"  # a click that overtakes this run must not bring the tensor before back
    st.session_state[key] = row.name
    place.selectbox(
        "Part of this module",
        list(labels),
        key=key,
        format_func=labels.__getitem__,
        label_visibility="collapsed",
        on_change=lambda: choose(st.session_state[key]),
    )


def _histogram(found: TensorDelta) -> None:
    from sfn import charts, tables

    state.prepare("bars")
    form = state.get("form")
    histogram = found.histogram if form == "script" else found.histogram_paper
    table = tables.one_histogram(found, histogram)
    log = st.segmented_control(
        "Shares", state.BARS, key="bars", required=True, label_visibility="collapsed",
        help="Logarithmic shares show the foot of the distribution.", **state.KEEP,
    ) == "log"  # fmt: skip
    plots.show(
        charts.histogram_one,
        table,
        form,
        dark=plots.dark(),
        top=charts.tail_top(table[table["kind"] == "tail"]),
        log=log,
        alt=f"Histogram of the relative change of {found.name}: {_shares(histogram, found.n)}.",
        formula=charts.ratio_title(form),
    )
    st.caption(failures.escaped(f"{_shares(histogram, found.n)}. Dashed: where clipping to ±1 would pile up the rest."))


def _modes(found: Modality) -> None:
    """The verdict on the modes inside ±1, and the figures it stands on, each with its formula."""
    from sfn import modality

    st.markdown(failures.escaped(modality.in_words(found)))
    if found.verdict == "unknown":
        return
    p = "p ≤ 0.001" if found.p < 0.00101 else f"p about {found.p:.2g}"
    first, second = found.means
    fitted = (
        f"Here μ {first:.3f} and {second:.3f}, σ {found.deviations[0]:.3f} and {found.deviations[1]:.3f}, shares "
        f"{found.share:.0%} and {1 - found.share:.0%}."
    )
    asked = f"Two modes need p ≤ {modality.LEAST_P} and a dip of at least {modality.LEAST_DIP}."
    figures = [
        (SHAPES["dip"], f"{found.dip:.4f} ({p})", asked),
        (SHAPES["clipped_dip"], f"{found.clipped_dip:.4f}", ""),
        (SHAPES["ashman_d"], f"{found.ashman_d:.2f}", fitted),
        (SHAPES["sarle"], f"{found.sarle:.3f}", ""),
    ]
    words = " · ".join(
        f'<span title="{html.escape(f"{figure.formula}. {figure.meaning} {more}")}">{html.escape(figure.title)} '
        f"<b>{html.escape(value)}</b></span>"
        for figure, value, more in figures
    )
    st.html(f'<div class="sfn-muted sfn-modes">{words}</div>')


def _shares(histogram: Histogram, n: int) -> str:
    words = [
        f"{sum(histogram.inner) / n:.2%} within ±1",
        f"{histogram.below / n:.2%} below −1",
        f"{histogram.above / n:.2%} above 1",
        f"{histogram.zeros / n:.2%} where w_A = 0 (in no bin)",
    ]
    if histogram.nonfinite:
        words.append(f"{histogram.nonfinite / n:.2%} NaN or infinite (in no bin)")
    return " · ".join(words)


def _figures(found: TensorDelta) -> None:
    lines = [
        (figure.title, f"{figure.formula}. {figure.meaning}", figure.write(getattr(found, figure.key)))
        for figure in FIGURES.values()
    ]
    lines += [
        ("elements", "Number of elements, n.", f"{found.n:,}"),
        ("stored as", "Number format in A and in B.", f"{found.dtype_a} → {found.dtype_b}"),
    ]
    if found.nonfinite:
        lines.append(("not finite", "Elements that are NaN or infinite on either side.", f"{found.nonfinite:,}"))
    cells = "".join(
        f'<tr title="{html.escape(formula)}"><th scope="row">{title}</th><td>{html.escape(value)}</td></tr>'
        for title, formula, value in lines
    )
    st.html(f'<table class="sfn-table sfn-figures"><tbody>{cells}</tbody></table>')
