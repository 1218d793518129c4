"""What many tensors' changes show together: figures pooled over layers and experts, and one sentence in plain words.

Pure, from records alone; the figures of one tensor are `sfn.delta`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sfn.errors import PairError
from sfn.records import TensorDelta


@dataclass(frozen=True, slots=True)
class Pooled:
    """Several tensors taken as one: the figures of all their elements together.

    Attributes:
        key: values of the fields that the tensors were grouped by. tensors: how many. n, nonfinite: elements.
        l2_shift: root of the sum of squares; rms_shift: that by root n; max_abs_shift: the largest.
        relative_shift: l2_shift by the norm of A's tensors; NaN where a norm is not known (it cannot be had from the
            record of an unchanged tensor) and something changed. cosine: mean weighted by elements, not that of the
            whole. changed_share: share of all elements.
    """

    key: tuple[object, ...]
    tensors: int
    n: int
    nonfinite: int
    l2_shift: float
    rms_shift: float
    relative_shift: float
    cosine: float
    changed_share: float
    max_abs_shift: float


def aggregate(deltas: Iterable[TensorDelta], by: str | Sequence[str]) -> list[Pooled]:
    """Tensors that agree in the fields `by` ("module", ("module", "layer"), ...) as one, in order of appearance.

    Tensors without a figure (NaN: nothing finite in them) count in `tensors`, n and changed_share alone.
    """
    fields = (by,) if isinstance(by, str) else tuple(by)
    groups: dict[tuple[object, ...], list[TensorDelta]] = {}
    for delta in deltas:
        groups.setdefault(tuple(getattr(delta, field) for field in fields), []).append(delta)
    return [_pool(key, group) for key, group in groups.items()]


def _pool(key: tuple[object, ...], group: Sequence[TensorDelta]) -> Pooled:
    n = sum(d.n for d in group)
    known = [d for d in group if not math.isnan(d.l2_shift)]
    known_n = sum(d.n for d in known)
    turned = [d for d in known if not math.isnan(d.cosine)]
    l2 = math.sqrt(math.fsum(d.l2_shift**2 for d in known)) if known else math.nan
    return Pooled(
        key=key,
        tensors=len(group),
        n=n,
        nonfinite=sum(d.nonfinite for d in group),
        l2_shift=l2,
        rms_shift=l2 / math.sqrt(known_n) if known_n else (0.0 if known else math.nan),
        relative_shift=_pooled_relative(known, l2),
        cosine=math.fsum(d.cosine * d.n for d in turned) / sum(d.n for d in turned) if turned else math.nan,
        changed_share=math.fsum(d.changed_share * d.n for d in group) / n if n else 0.0,
        max_abs_shift=max((d.max_abs_shift for d in known), default=math.nan),
    )


def _pooled_relative(known: Sequence[TensorDelta], l2: float) -> float:
    if not l2 > 0:
        return l2
    if any(d.n and d.l2_shift == 0 for d in known):
        return math.nan
    # A relative shift of NaN beside a shift means that A's norm is 0: nothing to add.
    norm = math.sqrt(math.fsum((d.l2_shift / d.relative_shift) ** 2 for d in known if d.relative_shift > 0))
    return l2 / norm if norm else math.nan


# One sentence


@dataclass(frozen=True, slots=True)
class _Words:
    """How one figure is spoken of: "X {times} Y", "X {most}", "X and Y {equally}", "...; the head {beyond}"."""

    times: str
    most: str
    equally: str
    beyond: str


_WORDS = {
    "l2_shift": _Words("moved {} times as far as", "moved furthest", "moved equally far", "moved furthest of all"),
    "rms_shift": _Words(
        "moved {} times as far per element as",
        "moved furthest per element",
        "moved equally far per element",
        "moved furthest of all per element",
    ),
    "relative_shift": _Words(
        "moved {} times as far for its size as",
        "moved furthest for its size",
        "moved equally far for their size",
        "moved furthest of all for its size",
    ),
    "cosine": _Words(
        "turned {} times as far (by 1 − cosine) as", "turned furthest", "turned equally far", "turned furthest of all"
    ),
    "changed_share": _Words(
        "has {} times the share of changed elements of",
        "has the largest share of changed elements",
        "have the same share of changed elements",
        "has the largest share of all",
    ),
    "max_abs_shift": _Words(
        "has a largest change {} times that of",
        "has the largest change of an element",
        "have the same largest change",
        "has the largest change of all",
    ),
}
_OUTSIDE = {"embedding": "the embedding", "norm": "the final norm", "head": "the head"}
_CLOSE = 1.05  # two sizes less than 5 % apart are not ranked


@dataclass(frozen=True, slots=True)
class _Seen:
    """A module over all its layers. size: how much it changed by the figure in use, NaN where not defined."""

    name: str
    in_layers: bool
    size: float
    changed: bool


def sentence(deltas: Iterable[TensorDelta], figure: str = "l2_shift") -> str:
    """What is seen in these tensors by one figure of TensorDelta, in plain words; "" where nothing is measured.

    "o_proj moved 1.4 times as far as v_proj, most in layer 5; the head moved furthest of all." Weights are pooled by
    module over layers and experts (`aggregate`); biases are left out. The cosine counts by its distance from 1. Sizes
    less than 5 % apart are not put in order. Raises PairError for a figure that there is not.
    """
    if figure not in _WORDS:
        raise PairError(f"There is no figure {figure!r}; choose one of: {', '.join(_WORDS)}.")
    measured = list(deltas)
    weights = [d for d in measured if d.parameter != "bias"] or measured
    seen = _seen(weights, figure)
    known = [s for s in seen if not math.isnan(s.size)]
    if not seen:
        return ""
    if not known:
        said = "By this figure nothing can be said: it is not defined for any module"
    elif all(s.size == 0 for s in known):
        said = _nothing_moved(seen, figure)
    else:
        said = _comparison(weights, known, figure) + _untouched(known)
    said = said[0].upper() + said[1:] if said.startswith("the ") else said
    return f"{said}.{_left_out(measured, seen, some=bool(known))}"


def _seen(weights: Sequence[TensorDelta], figure: str) -> list[_Seen]:
    """Every module, the one that changed most first; equals in order of appearance."""
    seen = []
    for in_layers in (True, False):
        here = [d for d in weights if (d.layer is not None) == in_layers]
        for pool in aggregate(here, ("block", "module")):
            block, module = pool.key
            name = module if in_layers else _OUTSIDE.get(block, module)
            seen.append(_Seen(name, in_layers, _size(pool, figure), pool.changed_share > 0))
    return sorted(seen, key=lambda s: -s.size)


def _size(pool: Pooled, figure: str) -> float:
    value = getattr(pool, figure)
    return max(0.0, 1 - value) if figure == "cosine" else value


def _nothing_moved(seen: Sequence[_Seen], figure: str) -> str:
    if not any(s.changed for s in seen):
        return f"Nothing changed: {_names([s.name for s in seen])} {_be(seen)} the same in A and B, bit for bit"
    if figure == "cosine":
        return "By this figure nothing changed: no module turned"
    return "By this figure nothing changed, though some stored bits differ"


def _comparison(weights: Sequence[TensorDelta], known: Sequence[_Seen], figure: str) -> str:
    """Who changed most in the layers, and what outside them changed more."""
    inner = [s for s in known if s.in_layers and s.size > 0]
    outer = [s for s in known if not s.in_layers and s.size > 0]
    ranking = inner or outer
    said = _ranked(ranking, figure)
    if not inner:
        return said
    if len(inner) == 1 or inner[0].size > inner[1].size:
        said += _layer_clause([d for d in weights if d.layer is not None and d.module == inner[0].name], figure)
    if outer and outer[0].size > inner[0].size:
        said += f"; {outer[0].name} {_WORDS[figure].beyond}"
    return said


def _ranked(ranking: Sequence[_Seen], figure: str) -> str:
    """The first against the second, with what fits ties, near ties and a module on its own."""
    words, first = _WORDS[figure], ranking[0]
    if len(ranking) == 1:
        return f"{first.name} changed"
    equals = [s.name for s in ranking if s.size == first.size]
    if len(equals) > 1:
        rest = "" if len(equals) == len(ranking) else ", more than any other"
        return f"{_names(equals)} {words.equally}{rest}"
    second = ranking[1]
    ratio = first.size / second.size
    if ratio < _CLOSE:
        return f"{first.name} {words.most}, closely followed by {second.name}"
    return f"{first.name} {words.times.format(f'{ratio:.1f}' if ratio < 10 else f'{ratio:,.0f}')} {second.name}"


def _layer_clause(deltas: Sequence[TensorDelta], figure: str) -> str:
    sizes = {pool.key[0]: _size(pool, figure) for pool in aggregate(deltas, "layer")}
    ranking = sorted(((size, layer) for layer, size in sizes.items() if not math.isnan(size)), reverse=True)
    if len(ranking) < 2 or ranking[0][0] < _CLOSE * ranking[1][0]:
        return ""
    return f", most in layer {ranking[0][1]}"


def _untouched(known: Sequence[_Seen]) -> str:
    still = [s for s in known if not s.changed]
    return f"; {_names([s.name for s in still])} did not change" if still else ""


def _left_out(measured: Sequence[TensorDelta], seen: Sequence[_Seen], *, some: bool) -> str:
    """What the figures do not cover."""
    said = ""
    undefined = [s.name for s in seen if math.isnan(s.size)]
    if some and undefined:
        said += f" For {_names(undefined)} this figure is not defined."
    if nonfinite := sum(d.nonfinite for d in measured):
        said += (
            f" Left out: {nonfinite:,} {'element that is' if nonfinite == 1 else 'elements that are'} NaN or infinite."
        )
    return said


def _be(seen: Sequence[_Seen]) -> str:
    return "is" if len(seen) == 1 else "are"


def _names(names: Sequence[str], shown: int = 4) -> str:
    """ "a", "a and b", "a, b and c", "a, b, c and 5 others"."""
    if len(names) > shown:
        names = [*names[: shown - 1], f"{len(names) - shown + 1} others"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
