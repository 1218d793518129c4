"""The lower half of the panel of one tensor: map and spectrum of its change, and what its rows and columns make up.

One fragment of its own, so that a brush or a slider redraws these alone; it polls while something is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sfn import pieces
from sfn.ui import delta_memos, failures, looking, pieces_view, plots, state, words

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from sfn.delta_map import DeltaMap
    from sfn.pairs import Pair, TensorPair
    from sfn.spectrum import Spectrum

_MAP = "delta_map"
_TALL, _LOW = 520, 300  # pixels of the map
_EXPERT, _K = "_look_expert", "_look_k"
SKETCH_LOW = "1 to 3 %"  # measured, see docs/log.md
_HEIGHT, _WITH_BUTTON = 1060, 1180  # of map and spectrum, whatever is in them: nothing moves while they are computed


def draw(pair: Pair, row: TensorPair, deltas: pd.DataFrame) -> None:
    """Everything below histogram and figures. deltas: what is measured of the pair (`Store.delta_table`)."""
    if not _busy(pair, row):
        _ask_ahead(pair, row)
    running = _busy(pair, row)
    st.fragment(_body, run_every=looking.POLL_S if running else None)(pair, row, deltas, running)


def _busy(pair: Pair, row: TensorPair) -> bool:
    """Whether something of this panel is still to come by itself."""
    return bool(looking.running(pair, row.name)) or pieces_view.reading_tokens(pair, row)


def _ask_ahead(pair: Pair, row: TensorPair) -> None:
    """Begin what needs no click, so that this run already knows whether to poll."""
    expert = _expert(row)
    for kind in ("map", "spectrum") if _has_directions(row) else ():
        looking.wanted(pair, row, kind, expert=expert, part=state.get("map_part") if kind == "map" else "")
    looking.wanted(pair, row, "slices")
    if expert is not None:
        looking.wanted(pair, row, "slices", expert=expert)


def _body(pair: Pair, row: TensorPair, deltas: pd.DataFrame, was_running: bool) -> None:
    from sfn import matrices, spectrum

    with failures.shown():
        if was_running and not _busy(pair, row):
            st.rerun()  # once, so that the polling ends
        has_pieces = pieces_view.has_pieces(pair, row, deltas)
        if _has_directions(row):
            expert = _choose_expert(row)
            left, right = st.columns(2, gap="medium")
            sketched = not spectrum.exact_unasked(matrices.Matrix(pair, row.name, expert).shape)
            height = _WITH_BUTTON if sketched else _HEIGHT
            with left.container(height=height, border=False):
                with failures.shown():
                    _map(pair, row, expert, tall=not has_pieces)
                if has_pieces:
                    pieces_view.bars(pair, row, deltas)
            with right.container(height=height, border=False), failures.shown():
                _spectrum(pair, row, expert)
        elif has_pieces:
            pieces_view.bars(pair, row, deltas)
        with failures.shown():
            pieces_view.tables(pair, row, _sides(pair, row), expert=_expert(row), ordered=has_pieces)
        if not was_running and _busy(pair, row):
            st.rerun()
    state.write()


def _shape(row: TensorPair) -> tuple[int, ...]:
    return tuple(row.a.shape) if row.a is not None else ()


def _has_directions(row: TensorPair) -> bool:
    """Whether it is a matrix, or holds some."""
    return len(_shape(row)) >= 2 and min(_shape(row)) > 0


def _expert(row: TensorPair) -> int | None:
    shape = _shape(row)
    return min(state.get("of_expert"), shape[0] - 1) if pieces.holds_experts(row.part, shape) else None


def _choose_expert(row: TensorPair) -> int | None:
    expert = _expert(row)
    if expert is None:
        return None
    st.session_state[_EXPERT] = expert
    st.number_input(
        "Expert", 0, _shape(row)[0] - 1, key=_EXPERT, width=160, on_change=_put_expert,
        help="This tensor holds all experts; map, spectrum, rows and columns are of one of them.",
    )  # fmt: skip
    return expert


def _put_expert() -> None:
    state.put("of_expert", int(st.session_state[_EXPERT]))
    state.put("map_part", "")


# Map


def _map(pair: Pair, row: TensorPair, expert: int | None, *, tall: bool) -> None:
    from sfn import delta_map, matrices

    state.prepare("map_of")
    shape = matrices.Matrix(pair, row.name, expert).shape
    part = state.get("map_part")
    controls = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    controls.segmented_control(
        "Map of",
        state.MAPS,
        key="map_of",
        required=True,
        format_func={"size": "|ΔW|", "signed": "ΔW"}.__getitem__,
        help="ΔW = w_B − w_A, averaged over each block: its size |ΔW| alone, or with its sign, where opposite changes "
        "within a block cancel.",
        **state.KEEP,
    )
    brushed = _brushed(shape)
    controls.button(
        "Zoom in", key="map_zoom", disabled=not brushed, on_click=state.put, args=("map_part", brushed),
        icon=":material/zoom_in:", help="Drag over the map to choose a part, then zoom in: only its rows are read.",
    )  # fmt: skip
    controls.button(
        "Whole", key="map_whole", disabled=not part, on_click=state.put, args=("map_part", ""),
        icon=":material/zoom_out_map:",
    )  # fmt: skip
    delta_map.region(part, shape)  # raises what a bad address is told
    found = looking.wanted(pair, row, "map", expert=expert, part=part)
    if found is None:
        looking.absent(pair, row, "map", expert=expert, part=part)
        return
    _draw_map(row, found, shape, tall, _sides(pair, row))


def _brushed(shape: tuple[int, int]) -> str:
    """The part under the brush, as text; "" without one."""
    chosen = st.session_state.get(_MAP)
    brush = chosen.selection.get("zoom", {}) if chosen is not None else {}
    if not brush.get("row") or not brush.get("column"):
        return ""
    ends = []
    for name, size in (("row", shape[0]), ("column", shape[1])):
        low, high = sorted(float(end) for end in brush[name][:2])
        first = max(0, min(int(low), size - 1))
        ends.append(f"{first}-{min(size, max(first + 1, round(high)))}")
    return ",".join(ends)


def _sides(pair: Pair, row: TensorPair) -> tuple[str, str]:
    """What a row and what a column of the tensor is."""
    if row.part.role in ("embed_tokens", "lm_head"):
        return "token", "feature"
    return ("input", "output") if pieces.rows_are_inputs(pair.a.config, row.part) else ("output", "input")


def _draw_map(row: TensorPair, found: DeltaMap, shape: tuple[int, int], tall: bool, sides: tuple[str, str]) -> None:
    from sfn import delta_map, tensor_charts

    signed = state.get("map_of") == "signed"
    at = delta_map.region(found.part, shape)
    _, low, high = tensor_charts.map_values(found, signed=signed)
    what = "mean of w_B − w_A" if signed else "mean of |w_B − w_A|"
    plots.show(
        tensor_charts.delta_map_chart,
        tensor_charts.map_table(found, shape, signed=signed),
        at,
        low,
        high,
        signed=signed,
        dark=plots.dark(),
        height=_TALL if tall else _LOW,
        sides=sides,
        alt=f"Map of {what} of {row.name}, rows {at.row} to {at.row_end - 1}, columns {at.column} to "
        f"{at.column_end - 1}.",
        formula=f"{what} over blocks of {found.block[0]} × {found.block[1]} elements",
        name="map of the change",
        canvas=True,
        key=_MAP,
        on_select="rerun",
        selection="zoom",
    )
    block = "each element" if found.block == (1, 1) else f"blocks of {found.block[0]} × {found.block[1]} elements"
    bad = f" {found.nonfinite:,} elements that are NaN or infinite count as unchanged." if found.nonfinite else ""
    st.caption(
        failures.escaped(
            f"{what[0].upper()}{what[1:]} over {block}; rows {at.row:,} to {at.row_end - 1:,}, columns "
            f"{at.column:,} to {at.column_end - 1:,}. Colours end at the 99.5th percentile. "
            f"Drag over it to choose a part.{bad}"
        )
    )


# Spectrum


def _spectrum(pair: Pair, row: TensorPair, expert: int | None) -> None:
    from sfn import looks, matrices, spectrum

    shape = matrices.Matrix(pair, row.name, expert).shape
    found = None
    if not spectrum.exact_unasked(shape):
        found = delta_memos.look(pair, row.name, "spectrum", expert=expert, part=looks.EXACT)
    found = found or looking.wanted(pair, row, "spectrum", expert=expert)
    if found is None:
        st.markdown("**Spectrum of ΔW**")
        looking.absent(pair, row, "spectrum", expert=expert)
    elif not found.energy:
        st.markdown("**Spectrum of ΔW**")
        st.markdown("Nothing changed, so there are no directions of change.")
        return
    else:
        _draw_spectrum(row, found, pieces.rows_are_inputs(pair.a.config, row.part))
    if found is None or found.exact:
        return
    seconds, memory = spectrum.exact_s(shape), spectrum.exact_bytes(shape)
    looking.absent(
        pair, row, "spectrum", expert=expert, part=looks.EXACT,
        cost=f"All {min(shape):,} singular values take about {words.size(memory)} of memory, and about "
        f"{words.seconds(seconds)} if nothing else runs on this machine",
        button=f"Compute exactly (about {words.seconds(seconds)})",
    )  # fmt: skip


def _draw_spectrum(row: TensorPair, found: Spectrum, rows_are_inputs: bool) -> None:
    from sfn import tensor_charts

    most = max(2, min(64, len(found.values)))
    k = min(state.get("directions"), most)
    st.session_state[_K] = k
    st.slider(
        "Directions k", 1, most, key=_K, on_change=_put_k,
        help="How many of the leading directions are counted together.",
    )  # fmt: skip
    plots.show(
        tensor_charts.spectrum_chart,
        tensor_charts.spectrum_table(found, k),
        len(found.values),
        alt=f"Share of the energy of the change of {row.name} in each direction, beside a random matrix'.",
        formula="s_i² / Σ s², s_i the singular values of w_B − w_A",
    )
    if len(found.left):
        plots.show(
            tensor_charts.alignment_chart,
            tensor_charts.alignment_table(found, k, rows_are_inputs=rows_are_inputs),
            len(found.left),
            alt=f"Overlap of the leading directions of the change of {row.name} with those of w_A.",
            formula="‖U_kᵀ V_k‖_F² / k, U_k and V_k the first k directions of w_B − w_A and of w_A",
        )
    st.html(_figures(found, k, tensor_charts.sides(found, rows_are_inputs=rows_are_inputs)))


def _put_k() -> None:
    state.put("directions", int(st.session_state[_K]))


def _figures(found: Spectrum, k: int, sides: list[tuple[str, np.ndarray, int]]) -> str:
    import html

    from sfn import spectrum

    held = float(found.shares[:k].sum())
    random = float(spectrum.random_shares(found.shape, k).sum())
    at_least = "" if found.exact else "at least "
    low, high = found.effective_rank
    rank = f"{low:.1f}" if high - low < 0.05 * high else f"{low:.0f} to {high:.0f}"
    here = min(k, len(found.left))
    how = _how(found)
    lines = [
        (
            f"energy in the first {k}",
            "Σ s_i² over the first k / Σ s_i² over all; for a random matrix of the same shape and norm by the "
            f"Marchenko-Pastur distribution. {how}",
            f"{at_least}{held:.1%} (random {random:.1%})",
        ),
        ("stable rank", "‖w_B − w_A‖_F² / s_1²: directions as strong as the first that would hold it all.",
         f"{'at most ' if not found.exact else ''}{found.stable_rank:.1f} of {min(found.shape):,}"),
        ("effective rank", "exp(−Σ p_i ln p_i), p_i = s_i² / Σ s²: over how many directions the change is spread. From "
         "a sketch, the least and the most that the rest allows.", f"{rank} of {min(found.shape):,}"),
    ]  # fmt: skip
    if here:
        lines += [
            (
                f"{side} along w_A, first {here}",
                "‖U_kᵀ V_k‖_F² / k, U_k and V_k the first k directions of w_B − w_A and of w_A on that side; by chance "
                f"k / {size:,}.",
                f"{overlap[here - 1]:.1%} (chance {here / size:.1%})",
            )
            for side, overlap, size in sides
        ]
    cells = "".join(
        f'<tr title="{html.escape(formula)}"><th scope="row">{title}</th><td>{html.escape(value)}</td></tr>'
        for title, formula, value in lines
    )
    return f'<table class="sfn-table sfn-figures"><tbody>{cells}</tbody></table><div class="sfn-muted">{how}</div>'


def _how(found: Spectrum) -> str:
    """How the singular values were computed, and how far they can be trusted."""
    share = found.floor / float(found.values[0])
    took = f" It took {words.seconds(found.took_s)}." if found.took_s >= 1 else ""
    if not found.exact:
        return (
            f"The first {len(found.values)} of {min(found.shape):,} singular values, by a random sketch (block Krylov, "
            "seed 0): each is at most the true one. What stands out is right to five digits; of pure noise the last "
            f"are {SKETCH_LOW} low.{took}"
        )
    unresolved = int((found.values == 0).sum())
    hidden = f", as {unresolved:,} of them are" if unresolved else ""
    return (
        "All singular values, from the eigenvalues of the Gram matrix in float64. Those below "
        f"{share:.1e} of the first cannot be told from rounding{hidden}.{took}"
    )
