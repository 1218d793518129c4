"""Records -> tables that the charts draw: one row per cell of the module × layer board, per bin, per tail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sfn import anatomy, modality, readings
from sfn.figures import FIGURES, SHAPES
from sfn.records import Histogram

if TYPE_CHECKING:
    import pyarrow as pa

    from sfn.pairs import Pair
    from sfn.records import TensorDelta

EMB, OUT = "emb", "out"  # columns of what has no layer: before the first and after the last
KEYS = list(FIGURES)
_BIN_CENTRES = np.linspace(-1.0, 1.0, 201)[:-1] + 0.005


def tensors(pair: Pair) -> pd.DataFrame:
    """One row per tensor of the pair, in anatomical order: where it stands on the board and whether it compares.

    Columns: name, row (label of its board row), rank (place of that row, from 0), column ("emb", "0" …, "out"), layer,
    block, part ("weight" or "bias"), expert, n, comparable, problem, explanation.
    """
    return _placed([(row.name, row.part, row.comparable, row.problem) for row in pair.rows])


def measured_board(deltas: pd.DataFrame, part: str = "weight") -> pd.DataFrame:
    """`board` of a pair of which nothing is at hand but what was measured of it (`Store.delta_table`)."""
    return board(_placed([(name, anatomy.parse(name), True, "") for name in deltas["name"]]), deltas, part)


def _placed(rows: Sequence[tuple[str, anatomy.Part, bool, str]]) -> pd.DataFrame:
    """Name, part, whether it compares and why not -> the table of `tensors`."""
    columns = [
        "name",
        "row",
        "column",
        "layer",
        "block",
        "part",
        "expert",
        "comparable",
        "problem",
        "explanation",
        "key",
    ]
    table = pd.DataFrame(
        [
            {
                "name": name,
                "row": part.row,
                "column": _column(part),
                "layer": part.layer,
                "block": part.block,
                "part": "bias" if part.parameter == "bias" else "weight",
                "expert": part.expert,
                "comparable": comparable,
                "problem": problem,
                "explanation": anatomy.explain(part),
                "key": anatomy.sort_key(replace(part, layer=0) if part.layer is not None else part)[:4],
            }
            for name, part, comparable, problem in rows
        ],
        columns=columns,
    )
    first = table.groupby("row")["key"].min().sort_values()
    table["rank"] = table["row"].map({row: rank for rank, row in enumerate(first.index)})
    return table.drop(columns="key")


def _column(part: anatomy.Part) -> str:
    if part.layer is not None:
        return str(part.layer)
    return EMB if part.block == "embedding" else OUT


def board(frame: pd.DataFrame, deltas: pd.DataFrame, part: str = "weight") -> pd.DataFrame:
    """One row per cell of the board: `tensors` of one part, with the figures measured so far (NaN where not yet).

    A cell that holds several tensors (experts) shows them as one: the figures of all their elements together, except
    cosine, which is their mean weighted by size. Its name is the tensor that moved furthest.

    Columns: those of `tensors`, every figure, shape, n, tensors (number in the cell), measured (number so far), and
    state: "measured", "waiting" or "apart" (cannot be compared; `problem` says why).
    """
    here = frame[frame["part"] == part].merge(deltas[["name", "shape", "n", "nonfinite", *KEYS]], on="name", how="left")
    here["tensors"], here["measured"] = 1, here["n"].notna().astype(int)
    if here.duplicated(["row", "column"]).any():
        here = _together(here)
    cases = [here["measured"] > 0, ~here["comparable"].astype(bool)]
    here["state"] = np.select(cases, ["measured", "apart"], "waiting")
    here["shape"] = here["shape"].fillna("")
    return here.sort_values(["rank", "layer"], kind="stable").reset_index(drop=True)


def _together(here: pd.DataFrame) -> pd.DataFrame:
    """Several tensors of one cell as one row (`sfn.readings.aggregate`), named after the one that moved furthest."""
    cell = ["row", "column"]
    order = here.assign(furthest=here["l2_shift"].fillna(-1)).sort_values("furthest", ascending=False, kind="stable")
    one = order.groupby(cell, sort=False).first().drop(columns=["furthest", "n", "nonfinite", *KEYS])
    counts = here.groupby(cell, sort=False).agg(
        tensors=("tensors", "sum"), measured=("measured", "sum"), comparable=("comparable", "any")
    )
    one[list(counts)] = counts.reindex(one.index)
    pooled = readings.aggregate(here[here["measured"] > 0].itertuples(), cell)
    figures = pd.DataFrame(
        [{key: getattr(pool, key) for key in ("n", "nonfinite", *KEYS)} for pool in pooled],
        index=pd.MultiIndex.from_tuples([pool.key for pool in pooled], names=cell),
        columns=["n", "nonfinite", *KEYS],
    )
    one = one.join(figures).reset_index()
    one["shape"] = one["shape"].where(one["tensors"] == 1, one["tensors"].astype(str) + " tensors")
    return one


def with_shapes(
    board: pd.DataFrame, histograms: pd.DataFrame, deltas: pd.DataFrame, part: str = "weight"
) -> pd.DataFrame:
    """The board with the figures of the relative change's shape (`sfn.figures.SHAPES`) of every cell, NaN where none.

    Several tensors of one cell (experts) are counted together. histograms: `Store.histograms` in one form of r;
    deltas: `Store.delta_table`.
    """
    frame = _placed([(name, anatomy.parse(name), True, "") for name in deltas["name"]])
    places = frame.loc[frame["part"] == part, ["name", "row", "column"]].merge(
        deltas[["name", "changed_share"]], on="name"
    )
    rows = []
    for (row, column), group in histograms.merge(places, on="name").groupby(["row", "column"], sort=False):
        whole = _one(group)
        same = modality.unchanged_at_least(whole, (group["changed_share"] * group["n"]).sum() / group["n"].sum())
        found = modality.modality(whole, same)
        rows.append({"row": row, "column": column, "verdict": found.verdict} | {k: getattr(found, k) for k in SHAPES})
    shapes = pd.DataFrame(rows, columns=["row", "column", "verdict", *SHAPES])
    return board.merge(shapes, on=["row", "column"], how="left")


def _one(group: pd.DataFrame) -> Histogram:
    """Rows of `Store.histograms` as one histogram."""
    counts = np.sum(np.stack(group["counts"].to_numpy()), axis=0)
    ends = (int(group[key].sum()) for key in ("below", "above", "zeros", "nonfinite"))
    return Histogram("script", tuple(counts.tolist()), *ends)


def figures_only(deltas: pd.DataFrame) -> list[SimpleNamespace]:
    """Rows of `Store.delta_table` as records that `sfn.readings` reads, without histograms."""
    records = deltas.astype({"layer": object, "expert": object}).to_dict("records")
    for record in records:
        for field in ("layer", "expert"):
            record[field] = None if pd.isna(record[field]) else int(record[field])
    return [SimpleNamespace(**record) for record in records]


def shown_layers(n_layers: int, every: int) -> tuple[int, ...]:
    """Every `every`-th layer from 0; 0 picks a step that gives at most six."""
    step = every or max(1, -(-n_layers // 6))
    return tuple(range(0, n_layers, step))


def histogram_grid(frame: pd.DataFrame, histograms: pd.DataFrame, part: str = "weight") -> dict[str, pd.DataFrame]:
    """Row of the board -> `histogram_table` of its tensors; several tensors of one cell (experts) are counted together.

    `histograms` as `Store.histograms` gives them; `frame` is `tensors` of the pair.
    """
    places = frame.loc[frame["part"] == part, ["name", "row"]]
    here = histograms.merge(places, on="name")
    return {row: histogram_table(_pooled(group)) for row, group in here.groupby("row", sort=False)}


def _pooled(histograms: pd.DataFrame) -> pd.DataFrame:
    """One histogram per layer."""
    if not histograms.duplicated("layer").any():
        return histograms
    sums = histograms.groupby("layer", sort=False).agg(
        name=("name", "first"), n=("n", "sum"), below=("below", "sum"), above=("above", "sum"),
        counts=("counts", lambda counts: np.sum(np.stack(counts.to_numpy()), axis=0)),
    )  # fmt: skip
    return sums.reset_index()


def one_histogram(found: TensorDelta, histogram: Histogram) -> pd.DataFrame:
    """`histogram_table` of one tensor's histogram."""
    one = pd.DataFrame(
        {
            "name": [found.name],
            "layer": [found.layer],
            "n": [found.n],
            "counts": [np.asarray(histogram.inner)],
            "below": [histogram.below],
            "above": [histogram.above],
        }
    )
    return histogram_table(one)


def histogram_table(histograms: pd.DataFrame) -> pd.DataFrame:
    """Bins and tails of histograms in one table, told apart by `kind`, so that one data set feeds a chart.

    Columns: kind ("bin" or "tail"), name, layer, r (middle), x and x2 (edges), share (of all the tensor's elements),
    and for tails side ("below −1", "above 1") and label (the share as text).
    """
    inner = _bins(histograms)
    inner = inner.assign(kind="bin", x=inner["r"] - 0.005, x2=inner["r"] + 0.005, side="", label="")
    outer = _tails(histograms)
    return pd.concat([inner, outer.assign(kind="tail", r=(outer["x"] + outer["x2"]) / 2)], ignore_index=True)


def _bins(histograms: pd.DataFrame) -> pd.DataFrame:
    counts = np.stack(histograms["counts"].to_numpy())  # (tensors, 200)
    many = counts.shape[1]
    return pd.DataFrame(
        {
            "name": histograms["name"].repeat(many).to_numpy(),
            "layer": histograms["layer"].astype("float64").repeat(many).to_numpy(),
            "r": np.tile(_BIN_CENTRES, len(histograms)),
            "share": (counts / histograms["n"].to_numpy()[:, None]).ravel(),
        }
    )


def _tails(histograms: pd.DataFrame) -> pd.DataFrame:
    """Two bars per histogram, beside each other outside the inner range."""
    width = 0.24 / len(histograms)
    rows = []
    for place, tensor in enumerate(histograms.itertuples()):
        for side, left, count in (("below −1", -1.36, tensor.below), ("above 1", 1.12, tensor.above)):
            share = count / tensor.n
            rows.append(
                {
                    "name": tensor.name,
                    "layer": float("nan") if pd.isna(tensor.layer) else float(tensor.layer),
                    "side": side,
                    "x": left + place * width,
                    "x2": left + (place + 0.86) * width,
                    "share": share,
                    "label": f"{share:.1%}",
                }
            )
    return pd.DataFrame(rows)


def slim(table: pd.DataFrame) -> pd.DataFrame:
    """The table in fewer bytes for the browser: text that repeats is sent once, numbers in single precision.

    What is slim already is given back as it is.
    """
    columns = {}
    for column in table.columns:
        values = table[column]
        if values.dtype == "float64":
            columns[column] = values.astype("float32")
        elif values.dtype in ("object", "str") and 2 * values.nunique() <= len(values):
            columns[column] = values.astype("category")
    return table.assign(**columns) if columns else table


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A chart's table, slim, and the same as it goes to the browser: packed once, sent as often as a page is drawn."""

    table: pd.DataFrame
    arrow: pa.Table

    def with_column(self, name: str, values: Sequence[bool]) -> Packed:
        """The same with one more column."""
        import pyarrow as pa

        return Packed(self.table.assign(**{name: values}), self.arrow.append_column(name, pa.array(values, pa.bool_())))


def pack(table: pd.DataFrame) -> Packed:
    """The table made `slim`, and packed in this thread: for tables so small, threads cost more than they spare."""
    import pyarrow as pa

    small = slim(table)
    return Packed(small, pa.Table.from_pandas(small, nthreads=1))
