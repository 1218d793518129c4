"""The pictures of the page "Delta": board, lines (of one pair or two), histograms, and figures as the paper draws them.

Each with one computed sentence and two lines on how to read it. What is measured and chosen is `delta_view`'s, a single
tensor `tensor_view`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sfn.figures import ALL, FIGURES
from sfn.ui import clicks, delta_memos, failures, plots, saving, state, tensor_view
from sfn.ui.tensor_view import BOARD, HISTOGRAMS, LINES, TENSOR

if TYPE_CHECKING:
    import pandas as pd

    from sfn.pairs import Pair
    from sfn.records import HistogramForm
    from sfn.ui.scanning import Progress

_CHART = "delta_board"
_GRID_COLUMNS = 3
NO_PROOF = "A large change does not show that a module carries an ability: move it on the page Merge and read on."


def _formula(figure: str, log: bool) -> str:
    spec = ALL[figure]
    return f"{spec.log_title if log else spec.title}: {spec.formula}"


def said(sentence: str, how: str, note: str = "") -> None:
    """What a chart shows, in one sentence; beside it, how to read it."""
    left, right = st.columns([5, 1.2], vertical_alignment="center")
    left.markdown(failures.escaped(sentence))
    if note:
        left.caption(note)
    with right.popover("How to read", icon=":material/info:"):
        st.markdown(how)


# The board


def board(pair: Pair, progress: Progress, part: str) -> None:
    """Modules × layers; a click opens a tensor."""
    from sfn import charts

    figure, log, form = _chosen()
    axes = delta_memos.axes(pair, progress.measured, part)
    table = delta_memos.heatmap(pair, progress.measured, part, figure, form, log=log)
    tensor = state.get("tensor")
    plots.show(
        charts.heatmap,
        table.with_column("chosen", [bool(tensor) and name == tensor for name in table.table["name"]]),
        figure,
        axes.rows,
        axes.columns,
        log=log,
        dark=plots.dark(),
        alt=f"Heatmap of the {ALL[figure].title} of {len(axes.rows)} modules in each layer; a cell opens its tensor.",
        formula=_formula(figure, log),
        data=lambda: delta_memos.board(pair, progress.measured, part, figure, form).drop(
            columns=["rank", "explanation", "comparable"]
        ),
        key=_CHART,
        on_select=_open_clicked,
        selection="cell",
        canvas=True,
    )
    if progress.running:
        sentence = "Measuring …"
    else:
        sentence = delta_memos.sentence(pair, progress.measured, figure, form) or "Nothing is measured yet."
    said(sentence, _READ_BOARD, NO_PROOF)


def _chosen() -> tuple[str, bool, HistogramForm]:
    """Figure, whether the scale is logarithmic, form of the relative change."""
    return state.get("figure"), state.get("scale") == "log", state.get("form")


def _open_clicked() -> None:
    """Open the tensor of the cell that was clicked."""
    if (name := clicks.newest(_CHART, "cell", "name")) is not None:
        tensor_view.choose(name)


_READ_BOARD = """
Each **row** is a kind of module, from the embedding on top to the output head at the bottom; each **column** is a
layer. Columns *emb* and *out* hold what stands before and after the layers. The colour tells how far the module moved
between A and B, by the figure chosen above; what stands out from the background moved more.

On a **log** scale, `0` marks what did not change at all. `×` marks what cannot be compared; the reason appears when
you point at it. `–` marks a figure that is not defined there. On a linear scale the colours end at the largest value
in the layers; `▲` marks an embedding or head beyond that.

**L2 shift** grows with the size of a module, so compare modules of different size by **RMS** or **relative** shift.

Point at a cell for all figures; click it to open its tensor.
"""


# Lines


def lines(pair: Pair, progress: Progress, part: str) -> None:
    """One line per module over the layers; with a second pair, both over normalised depth."""
    axes = delta_memos.axes(pair, progress.measured, part)
    if axes.last < 0:
        return
    figure, log, form = _chosen()
    choice = st.container()
    key = state.get("beside")
    other = delta_memos.measured_board(key, part, figure, form) if key and key != pair.key else None
    if other is None or not other["layer"].notna().any():
        _one_pair(pair, progress, part, axes)
    else:
        cells = delta_memos.board(pair, progress.measured, part, figure, form)
        _two_pairs(pair, key, cells, other, figure, log)
    with choice:  # after the chart, which is waited for
        _second_pair(pair)
    if not progress.running:
        delta_memos.foresee(pair, progress.measured, part, dark=plots.dark())


def _one_pair(pair: Pair, progress: Progress, part: str, axes: delta_memos.Axes) -> None:
    from sfn import charts

    figure, log, form = _chosen()
    what = pair, progress.measured, part, figure, form
    plots.show(
        charts.lines,
        delta_memos.lines(*what, log=log),
        figure,
        axes.inside,
        axes.last,
        log=log,
        alt=f"{ALL[figure].title} of each module over the layers, one line per module.",
        formula=_formula(figure, log),
        data=lambda: _numbers(_inside(delta_memos.board(*what))),
        canvas=True,
    )
    said(delta_memos.over_layers(*what) or "Too little is measured to compare layers.", _READ_LINES)


def _inside(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[cells["layer"].notna()]


_READ_LINES = """
Each line is one module, from the first layer to the last; dashes are norms. Lines that part ways moved differently.

A click on a name singles it out. Compare modules of different size by **RMS** or **relative** shift, not by L2 shift.
"""


def _second_pair(pair: Pair) -> None:
    """The choice of the pair to draw over this one, where there is another."""
    known = {key: label for key, label in delta_memos.measured_pairs().items() if key != pair.key}
    asked = state.get("beside")
    if asked and asked not in known:
        if asked != pair.key:
            failures.sentence(
                "The address asks for a second pair that this results database has no figures of. Open that pair on "
                "the page “Pair” and measure it, then it can be chosen here."
            )
        state.put("beside", "")
    if not known:
        return
    state.prepare("beside")
    st.selectbox(
        "Compare with a second pair",
        ["", *known],
        key="beside",
        format_func=lambda key: known[key] if key else "no other pair",
        width=520,
        help="Any pair of which figures are in the results database: both are drawn over their depth, from 0 to 1.",
        **state.KEEP,
    )


def _two_pairs(pair: Pair, key: str, cells: pd.DataFrame, other: pd.DataFrame, figure: str, log: bool) -> None:
    from sfn import charts, paper_figures, profiles

    name = delta_memos.measured_pairs()[key]
    names = (pair.label, name if name != pair.label else f"{name} ({key[:8]})")
    table = paper_figures.beside_table((cells, other), names, figure, log=log)
    rows = dict.fromkeys((*charts.rows_of(cells), *charts.rows_of(other)))
    drawn = set(table["row"])
    plots.show(
        paper_figures.beside,
        table,
        figure,
        tuple(row for row in rows if row in drawn),
        names,
        log=log,
        alt=f"{ALL[figure].title} of each module of two pairs, {names[0]} and {names[1]}, over normalised depth, "
        "layer / (number of layers − 1).",
        formula=_formula(figure, log),
        data=lambda: _numbers(_both(cells, other, names)),
        canvas=True,
    )
    said(profiles.beside(cells, other, figure) or "No module of the two pairs can be compared.", _READ_BESIDE)


_READ_BESIDE = """
Each colour is one module; solid lines with discs are the first pair, dashes with triangles the second. Depth 0 is a
pair's first layer and 1 its last, so that pairs of different depth lie over each other.

**L2 shift** grows with the size of a model: compare pairs of different size by **RMS** or **relative** shift.
"""


def _both(cells: pd.DataFrame, other: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    import pandas as pd

    tables = [
        table[table["layer"].notna()].assign(pair=name) for table, name in zip((cells, other), names, strict=True)
    ]
    return pd.concat([table.assign(depth=table["layer"] / max(1, table["layer"].max())) for table in tables])


def _numbers(cells: pd.DataFrame) -> pd.DataFrame:
    """Rows of the board as people compute with them."""
    first = [name for name in ("pair", "depth") if name in cells]
    return cells[[*first, "name", "row", "layer", "part", "shape", "n", "nonfinite", *FIGURES]]


# Histograms


def histograms(pair: Pair, progress: Progress, part: str) -> None:
    """The relative change of each module, one line per shown layer."""
    from sfn import charts, profiles, tables

    if not pair.n_layers:
        return
    st.subheader("Relative change by module")
    form, every = _form_and_step((BOARD, TENSOR, LINES, HISTOGRAMS))
    colours = "violet to yellow" if plots.dark() else "yellow to violet"
    st.caption(
        f"{failures.escaped(charts.ratio_title(form))}. One line per layer, {colours} from the first to the last. "
        "What lies beyond ±1 is not piled onto the edges: it stands apart, on the right-hand axis."
    )
    if progress.running:
        st.caption("Drawn when the scan has ended.")
        return
    layers = tables.shown_layers(pair.n_layers, every)
    grid = delta_memos.histogram_grid(pair, progress.measured, part, layers, form)
    found = {row: packed.table for row, packed in grid.items()}
    top = max((charts.tail_top(table[table["kind"] == "tail"]) for table in found.values()), default=0.05)
    places = st.columns(_GRID_COLUMNS)
    rows = [row for row in delta_memos.axes(pair, progress.measured, part).rows if row in grid]
    for place, row in enumerate(rows):
        with places[place % _GRID_COLUMNS]:
            plots.show(
                charts.histogram_small,
                grid[row],
                layers,
                dark=plots.dark(),
                top=top,
                title=row,
                name=f"Relative change of {row}",
                alt=f"Histogram of the relative change of {row} in layers {', '.join(map(str, layers))}.",
                formula=charts.ratio_title(form),
            )
    if grid:
        said(profiles.beyond(found), _READ_HISTOGRAMS)


_READ_HISTOGRAMS = """
Each plot is one module: how many of its elements changed by which share of their own size. A narrow peak at 0 is a
module that hardly moved; the bars at both ends, on an axis of their own, are elements that changed by more than that.

Two bars at the ends are no two modes: only humps between −1 and 1 are.
"""


def _form_and_step(changed: tuple[str, ...] = ()) -> tuple[HistogramForm, int]:
    """Form of r, and step between layers. changed: the fragments that the form changes, where more than this one."""
    state.prepare("form", "every")
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    form = row.segmented_control(
        "Form of r",
        state.FORMS,
        key="form",
        required=True,
        format_func=lambda key: {"script": "÷ (|w_A| + 1e-8)", "paper": "÷ w_A"}[key],
        help="The released scripts divide by |w_A| + 1e-8, the paper's text by w_A: they differ in sign where w_A < 0.",
        on_change=st.rerun if changed else None,
        args=(changed,) if changed else None,
        **state.KEEP,
    )
    every = row.number_input(
        "Every k-th layer (0: chosen for you)", 0, 1000, key="every", step=1, width=280, **state.KEEP
    )
    return form, int(every)


# As the paper draws them


def paper(pair: Pair, progress: Progress, part: str) -> None:
    """Figures 2 and 7, 3 and 8 for this pair, each with its files and its caption."""
    if not pair.n_layers:
        st.markdown("This pair has no layers: there is nothing that the paper's figures could show.")
        return
    if progress.running:
        st.caption("Drawn when the scan has ended.")
        return
    if not progress.measured:
        st.markdown("Nothing is measured yet.")
        return
    cells = delta_memos.board(pair, progress.measured, part)
    with plots.gathering() as shown:
        st.subheader("As in the paper's figures 2 and 7")
        _paper_lines(cells)
        saving.files(shown[-1], (saving.names(pair),), "paper_lines")
        st.subheader("As in the paper's figures 3 and 8")
        if _paper_histograms(pair, progress, cells, part):
            saving.files(shown[-1], (saving.names(pair),), "paper_histograms")


def _paper_lines(cells: pd.DataFrame) -> None:
    from sfn import charts, paper_figures, profiles

    inside = _inside(cells)
    rows = paper_figures.modules_in(charts.rows_of(inside))
    inside = inside[inside["row"].isin(rows)]
    plots.show(
        paper_figures.lines,
        charts.lines_table(inside, "l2_shift", log=False),
        tuple(rows),
        int(inside["layer"].max()),
        alt="L2 shift of each module over the layers, drawn like figures 2 and 7 of arXiv:2505.20993.",
        formula=_formula("l2_shift", False),
        data=lambda: _numbers(inside),
    )
    said(profiles.over_layers(inside, "l2_shift") or "Too little is measured to compare layers.", _READ_LINES, NO_PROOF)


def _paper_histograms(pair: Pair, progress: Progress, cells: pd.DataFrame, part: str) -> bool:
    """Whether anything is measured that could be drawn."""
    from sfn import charts, paper_figures, tables

    form, every = _form_and_step()
    layers = tables.shown_layers(pair.n_layers, every or paper_figures.STEP)
    packed = delta_memos.histogram_grid(pair, progress.measured, part, layers, form)
    grid = {row: found.table for row, found in packed.items()}
    rows = paper_figures.modules_in([row for row in charts.rows_of(cells) if row in grid])
    if not rows:
        st.caption("Nothing is measured in these layers.")
        return False
    table, moved = paper_figures.clipped_table(grid, rows)
    most = moved.sort_values("clipped").iloc[-1]
    sentence = (
        f"Clipping puts {moved['clipped'].min():.1%} to {most['clipped']:.1%} of a module's elements onto the edges, "
        f"most for {most['row']}: the piles at −1 and 1 are these, not modes."
    )
    plots.show(
        paper_figures.histograms,
        table,
        tuple(moved["label"]),
        layers,
        form,
        alt=f"Histograms of the relative change of each module in layers {', '.join(map(str, layers))}, drawn like "
        f"figures 3 and 8 of arXiv:2505.20993: 200 bins on [−1, 1]. {sentence}",
        formula=f"{charts.ratio_title(form)}; elements with w_A = 0 are left out",
    )
    said(sentence, _READ_PAPER_HISTOGRAMS, NO_PROOF)
    return True


_READ_PAPER_HISTOGRAMS = """
One plot per module, one line per layer: the share of elements in each of 200 bins of the relative change. As in the
paper, what lies beyond ±1 is counted in the outermost bins; the title says how much that is.

The board's own histograms show the same without that pile.
"""
