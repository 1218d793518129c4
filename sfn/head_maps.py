"""All heads of a module, layer by layer: which tensors make up such a map, its table, and what is seen in it, in words.

From looks at single tensors (`sfn.slices`), of which each is computed once. Reads no weights, draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sfn import pieces, slices
from sfn.figures import FIGURES

if TYPE_CHECKING:
    import pandas as pd

    from sfn.pairs import Pair

Lengths = tuple[np.ndarray, np.ndarray]  # (heads,) of w_B - w_A, and of w_A
_FEW = 0.1  # share of the heads whose part of the whole change is told
_FURTHER = 1.05  # times the median: less is no difference worth a number


@dataclass(frozen=True, slots=True)
class HeadMap:
    """One kind of heads of one module.

    Attributes:
        key: "o_proj", or "qkv_proj query head" of a fused one. what: kind of head. tensors: layer and name of each
            tensor, and its heads; in the order of layers.
    """

    key: str
    what: str
    tensors: tuple[tuple[int, str, pieces.Pieces], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its tensors."""
        return tuple(name for _, name, _ in self.tensors)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have such heads."""
        return tuple(layer for layer, _, _ in self.tensors)

    @property
    def most(self) -> int:
        """Heads of the layer that has most."""
        return max(len(cut.labels) for _, _, cut in self.tensors)


@dataclass(frozen=True, slots=True)
class HeadMaps:
    """maps: in anatomical order. problems: why heads of other modules cannot be told, each sentence once."""

    maps: tuple[HeadMap, ...]
    problems: tuple[str, ...]


def of(pair: Pair) -> HeadMaps:
    """The maps that a pair has, of weights that can be compared."""
    found: dict[tuple[str, str], list[tuple[int, str, pieces.Pieces]]] = {}
    problems: dict[str, None] = {}
    for row in pair.rows:
        if not row.comparable or row.a is None or row.part.parameter != "weight" or row.part.layer is None:
            continue
        if row.part.block != "attention":
            continue
        division = pieces.of(pair.a.config, row.part, tuple(row.a.shape))
        if division.problem:
            problems[division.problem] = None
        for cut in division.kinds:
            key = row.part.row if len(division.kinds) == 1 else f"{row.part.row} {cut.what}"
            found.setdefault((key, cut.what), []).append((row.part.layer, row.name, cut))
    maps = (HeadMap(key, what, tuple(sorted(tensors))) for (key, what), tensors in found.items())
    return HeadMaps(tuple(maps), tuple(problems))


def table(chosen: HeadMap, known: Mapping[str, Lengths], opened: str = "") -> pd.DataFrame:
    """One row per head: layer, number, head (its label), l2_shift, relative_shift (NaN where its tensor was not looked
    at yet, or what moved was 0 in A), chosen (whether its tensor is `opened`).

    known: lengths of the heads of each tensor that was looked at, by name.
    """
    import pandas as pd

    parts = []
    for layer, name, cut in chosen.tensors:
        many = len(cut.labels)
        shift, norm = known.get(name, (np.full(many, np.nan),) * 2)
        parts.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "number": range(many),
                    "head": cut.labels,
                    "l2_shift": shift,
                    "relative_shift": slices.relative(shift, norm) if name in known else np.nan,
                    "chosen": bool(opened) and name == opened,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def sentence(heads: pd.DataFrame, figure: str) -> str:
    """What a map shows by one figure, in words; "" while nothing is known."""
    known = heads[heads[figure].notna()]
    if known.empty:
        return ""
    title = FIGURES[figure].title
    top, middle = known.loc[known[figure].idxmax()], float(known[figure].median())
    if top[figure] <= 0:
        return f"None of {len(known):,} heads moved."
    label = str(top["head"])
    ratio = float(top[figure]) / middle if middle > 0 else 0.0
    times = f", {ratio:.1f} times the median of {len(known):,}" if ratio >= _FURTHER else ", hardly further than others"
    said = f"{label[0].upper()}{label[1:]} of layer {top['layer']} moved furthest by {title}{times}."
    few = round(_FEW * len(known))
    if few < 2:
        return said
    squares = np.sort(np.square(known["l2_shift"].to_numpy(np.float64)))[::-1]
    held = squares[:few].sum() / squares.sum()
    return f"{said} The {few:,} heads with the largest L2 shift hold {held:.0%} of the squared shift of all."
