"""What the rows and columns of a tensor make up, and which moved most: heads, halves, experts, tokens, features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from sfn.ui import delta_memos, failures, looking, plots, state, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from sfn.pairs import Pair, TensorPair
    from sfn.pieces import Division, Pieces
    from sfn.slices import Slices

_SHOWN_TOKENS, _SHOWN = 100, 20
_TABLE_HEIGHT = 320
_KIND = "_look_kind"
_TITLES = {"l2_shift": "L2 shift", "relative_shift": "relative shift"}


def has_pieces(pair: Pair, row: TensorPair, deltas: pd.DataFrame) -> bool:
    """Whether the tensor falls into heads, halves or experts, or is one of several experts, or should fall so."""
    found = _division(pair, row)
    return _holds_experts(row) or bool(found.kinds or found.problem) or len(_same_cell(row, deltas)) > 1


def bars(pair: Pair, row: TensorPair, deltas: pd.DataFrame) -> None:
    """Heads, halves or experts, one bar each. deltas: `Store.delta_table`."""
    found = _division(pair, row)
    cell = _same_cell(row, deltas)
    if found.problem:
        st.caption(failures.escaped(found.problem))
    if len(cell) > 1:
        _experts_of_cell(cell, _by())
    elif _holds_experts(row):
        _experts_of_tensor(pair, row)
    elif found.kinds:
        _pieces(pair, row, found.kinds)


def _experts_of_tensor(pair: Pair, row: TensorPair) -> None:
    """From one look at the whole tensor, of which each expert is one row."""
    by = _by()
    found = looking.wanted(pair, row, "slices")
    if found is None:
        looking.absent(pair, row, "slices")
        return
    labels = [f"expert {number}" for number in range(len(found.row_shift))]
    _bars(labels, found.row_shift, found.row_norm, by, "expert", "All experts lie in this one tensor.")


def _pieces(pair: Pair, row: TensorPair, kinds: tuple[Pieces, ...]) -> None:
    """Heads or halves; of a fused query, key and value one kind at a time."""
    from sfn import slices

    controls = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    with controls:
        by = _by()
    named = {kind.what: kind for kind in kinds}
    cut = kinds[0]
    if len(kinds) > 1:
        cut = named.get(state.get("head_kind"), cut)
        st.session_state[_KIND] = cut.what
        controls.segmented_control(
            "Heads", list(named), key=_KIND, required=True, on_change=_put_kind,
            format_func=lambda what: what.removesuffix(" head"),
        )  # fmt: skip
    found = looking.wanted(pair, row, "slices")
    if found is None:
        looking.absent(pair, row, "slices")
        return
    shift, norm = slices.by_piece(found, cut)
    apart = "" if cut.step == 1 else ", every second"
    which = f"{cut.width:,} {cut.axis}{apart} make a {cut.what}, by A's config.json."
    _bars(cut.labels, shift, norm, by, cut.what, which)


def _put_kind() -> None:
    state.put("head_kind", st.session_state[_KIND])


def tables(pair: Pair, row: TensorPair, sides: tuple[str, str], *, expert: int | None = None, ordered: bool) -> None:
    """Tokens, or rows and columns, that moved most, of one expert where the tensor holds several.

    sides: what a row and what a column is. ordered: whether the choice of their order is drawn already.
    """
    found = looking.wanted(pair, row, "slices", expert=expert)
    if found is None:
        if not ordered or row.part.expert is not None or expert is not None:
            st.markdown("**Rows and columns**")
            looking.absent(pair, row, "slices", expert=expert)
        return
    by = state.get("rows_by") if ordered else _by()
    shape = _shape(row)
    if expert is not None:
        _halves(pair, row, found, expert)
    if sides[0] == "token" and len(shape) == 2:
        _tokens(pair, found, by)
        return
    left, right = st.columns(2, gap="medium")
    with left:
        _most(found.row_shift, found.row_norm, by, "element" if len(shape) < 2 else f"row ({sides[0]})")
    if len(found.column_shift) > 1:
        with right:
            _most(found.column_shift, found.column_norm, by, f"column ({sides[1]})")


def _halves(pair: Pair, row: TensorPair, found: Slices, expert: int) -> None:
    """Gate and up of one expert, in a sentence."""
    from sfn import pieces, slices

    division = pieces.of(pair.a.config, row.part, _shape(row)[1:])
    for cut in division.kinds:
        shift, norm = slices.by_piece(found, cut)
        told = " · ".join(
            f"{label}: L2 shift {far:.4g}, relative {share:.4g}"
            for label, far, share in zip(cut.labels, shift, slices.relative(shift, norm), strict=True)
        )
        st.markdown(failures.escaped(f"Expert {expert}: {told}"))
    if division.problem:
        st.caption(failures.escaped(division.problem))


def _division(pair: Pair, row: TensorPair) -> Division:
    """Of a tensor that holds several experts: none, they are its pieces."""
    from sfn import pieces

    return pieces.Division() if _holds_experts(row) else pieces.of(pair.a.config, row.part, _shape(row))


def _holds_experts(row: TensorPair) -> bool:
    from sfn import pieces

    return pieces.holds_experts(row.part, _shape(row))


def _shape(row: TensorPair) -> tuple[int, ...]:
    return tuple(row.a.shape) if row.a is not None else ()


def _same_cell(row: TensorPair, deltas: pd.DataFrame) -> pd.DataFrame:
    """All experts of the same module and layer, where each is a tensor of its own."""
    part = row.part
    if part.expert is None:
        return deltas.iloc[:0]
    alike = (deltas["module"] == part.module) & (deltas["parameter"] == part.parameter)
    return deltas[alike & (deltas["layer"] == part.layer) & deltas["expert"].notna()].sort_values("expert")


def _by() -> str:
    state.prepare("rows_by")
    return st.segmented_control(
        "Order by",
        state.ROWS_BY,
        key="rows_by",
        required=True,
        format_func=_TITLES.__getitem__,
        help="L2 shift: ‖w_B − w_A‖₂ of the row, column, head or expert. Relative shift: that by ‖w_A‖₂ of the same.",
        **state.KEEP,
    )


def _bars(labels: Sequence[str], shift: np.ndarray, norm: np.ndarray, by: str, what: str, how: str) -> None:
    from sfn import slices, tensor_charts

    relative = slices.relative(shift, norm)
    plots.show(
        tensor_charts.pieces_chart,
        tensor_charts.pieces_table(labels, shift, relative),
        by,
        what,
        alt=f"{_TITLES[by]} of each {what}.",
        formula="‖w_B − w_A‖₂, and that by ‖w_A‖₂, of its rows or columns",
    )
    st.caption(failures.escaped(f"{_most_in_words(labels, shift if by == 'l2_shift' else relative, by)} {how}"))


def _most_in_words(labels: Sequence[str], values: np.ndarray, by: str) -> str:
    known = np.nan_to_num(values, nan=-1.0)
    if known.max(initial=0) <= 0:
        return "None of them moved."
    first, middle = int(known.argmax()), float(np.nanmedian(values))
    ratio = known[first] / middle if middle > 0 else 0.0
    times = f", {ratio:.1f} times the median" if ratio >= 1.05 else ", hardly further than the others"
    return f"{labels[first][0].upper()}{labels[first][1:]} moved furthest by {_TITLES[by]}{times}."


def _experts_of_cell(here: pd.DataFrame, by: str) -> None:
    """From the figures in the store."""
    from sfn import tensor_charts

    labels = [f"expert {number}" for number in here["expert"]]
    shift, relative = (here[key].to_numpy(np.float64) for key in ("l2_shift", "relative_shift"))
    plots.show(
        tensor_charts.pieces_chart,
        tensor_charts.pieces_table(labels, shift, relative),
        by,
        "expert",
        alt=f"{_TITLES[by]} of each expert.",
        formula="‖w_B − w_A‖₂, and that by ‖w_A‖₂, of each expert's tensor",
    )
    st.caption(failures.escaped(_most_in_words(labels, shift if by == "l2_shift" else relative, by)))


def _ranking(shift: np.ndarray, norm: np.ndarray, by: str, most: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Places that moved most, the furthest first, and their columns of a table."""
    from sfn import slices

    relative = slices.relative(shift.astype(np.float64), norm.astype(np.float64))
    values = np.nan_to_num(shift if by == "l2_shift" else relative, nan=-1.0)
    order = np.argsort(-values, kind="stable")[:most]
    middle = float(np.median(values[values >= 0])) if (values >= 0).any() else 0.0
    times = values[order] / middle if middle > 0 else np.full(len(order), np.nan)
    return order, {
        "L2 shift": shift[order].astype(np.float64),
        "relative shift": relative[order],
        "× median": np.where(values[order] >= 0, times, np.nan),
    }


_FORMATS = {"L2 shift": "%.4g", "relative shift": "%.4g", "× median": "%.1f"}


def _show(table: pd.DataFrame, height: int = _TABLE_HEIGHT) -> None:
    config = {name: st.column_config.NumberColumn(format=text) for name, text in _FORMATS.items()}
    st.dataframe(table, hide_index=True, height=height, column_config=config)


def _most(shift: np.ndarray, norm: np.ndarray, by: str, what: str) -> None:
    import pandas as pd

    order, columns = _ranking(shift, norm, by, _SHOWN)
    st.markdown(f"**The {words.many(len(order), what.split(' ')[0])} that moved most**, of {len(shift):,}")
    _show(pd.DataFrame({what: order} | columns))


# Tokens


def _tokens(pair: Pair, found: Slices, by: str) -> None:
    import pandas as pd

    order, columns = _ranking(found.row_shift, found.row_norm, by, _SHOWN_TOKENS)
    ids = tuple(int(number) for number in order)
    st.markdown(f"**The {len(ids)} tokens whose rows moved most**, of {len(found.row_shift):,}")
    asked = delta_memos.token_texts(pair, ids)
    if asked.state == "failed":
        st.caption(failures.escaped(asked.error))
    texts = asked.value if asked.state == "done" else (["…"] * len(ids),) * 2
    same = texts[0] == texts[1]
    shown = {"token": texts[0]} if same else {"token in A": texts[0], "token in B": texts[1]}
    _show(pd.DataFrame(shown | {"number": ids} | columns), height=420)
    st.caption(
        "A token's row is what the model knows it by. Spaces are shown as ␣, other signs that cannot be seen as their "
        "code; a row without text belongs to no token. Rare tokens often move least, or not at all."
    )


def reading_tokens(pair: Pair, row: TensorPair) -> bool:
    """Whether the texts of the tokens on screen are still being asked for."""
    if row.part.role not in ("embed_tokens", "lm_head"):
        return False
    found = delta_memos.look(pair, row.name, "slices")
    if found is None or not len(found.column_shift):
        return False
    order, _ = _ranking(found.row_shift, found.row_norm, state.get("rows_by"), _SHOWN_TOKENS)
    return delta_memos.token_texts(pair, tuple(map(int, order))).state == "asking"
