"""A plan as a config of mergekit 0.1.5, or a sentence that says which rule mergekit has no words for.

Owns how sources become mergekit's methods, weights and slices. Reading such a config is `mergekit_import`'s; nothing
here runs mergekit. Read from mergekit 0.1.5's source (plan.py, config.py, merge_methods/linear.py and passthrough.py):

- `passthrough` copies one model's tensors, so it can say what comes whole layer by whole layer;
- `linear` adds up weight x tensor in float32; each model's weight may depend on the tensor's name (`name_filters`);
- embeddings belong to the first slice, final norm and head to the last; a slice of no layers holds only these;
- a head that a model lacks is read from its embedding, where another model of the slice has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from sfn import anatomy
from sfn.errors import RecipeError
from sfn.recipes.grammar import Source
from sfn.recipes.lookup import BUFFERS
from sfn.recipes.mergekit_names import KNOWN_TYPES, merged_name
from sfn.recipes.name_filters import short_filters

if TYPE_CHECKING:
    from sfn.checkpoints import Checkpoint
    from sfn.pairs import Pair
    from sfn.recipes.plans import Plan

# The config of others lists every layer's kind in transformers 5; mergekit does not cut that list, and stops over it.
_SHORTENED_TYPES = frozenset({"llama", "mistral"})
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # the narrower first
_UNNORMALISED = {"parameters": {"normalize": False}}

_EXACT = "mergekit copies every tensor bit for bit."
_EXACT_BUT_ZEROS = "mergekit's tensors are the same bit for bit (but for weights of exactly -0.0, which become +0.0)."
_NEAR = (
    "Blended tensors may differ by the last bit in about one weight of ten thousand, as mergekit rounds once less in "
    "float32. All other tensors are the same bit for bit."
)


@dataclass(frozen=True, slots=True)
class MergekitConfig:
    """A recipe as mergekit reads it.

    Attributes:
        yaml: the config, to be saved and given to `mergekit-yaml CONFIG FOLDER`.
        exactness: how near mergekit's tensors come to SfN's, in a sentence.
        notes: what mergekit does otherwise beside the tensors, a sentence each.
    """

    yaml: str
    exactness: str
    notes: tuple[str, ...]


def to_mergekit(plan: Plan, pair: Pair, *, a: str | None = None, b: str | None = None) -> MergekitConfig:
    """The config whose merge has the tensors of `plan`; plain moves bit for bit.

    a, b: what the models are called there; left out, a Hub model is `repo@commit`, another its folder.

    Raises RecipeError where mergekit cannot say it; the sentence names the rule, or the tensor that stands in the way.
    """
    _refuse_what_has_no_words(plan, pair)
    names = {"A": _reference(pair.a, a), "B": _reference(pair.b, b)}
    units = _Units(plan, pair)
    if whole := units.whole():
        method, slices, body = "passthrough", whole, {"slices": [_passthrough(part, names) for part in whole]}
    else:
        method, slices, body = "linear", *min(_linear(units, names), key=lambda found: len(_dump(found[1])))
    body = {"merge_method": method, "base_model": names["A"], **body, **_out_dtype(pair, slices)}
    blended = any(source.kind == "blend" for source in units.sources.values())
    exactness = _EXACT if whole else _NEAR if blended else _EXACT_BUT_ZEROS
    notes = tuple(_notes(plan, pair))
    said = (f"Stethoscope for Networks, recipe: {plan.recipe or 'all A'}", "For mergekit 0.1.5.", exactness, *notes)
    return MergekitConfig("".join(f"# {' '.join(line.split())}\n" for line in said) + _dump(body), exactness, notes)


def _reference(side: Checkpoint, name: str | None) -> object:
    """What mergekit is to call a model; it would take "+" and "@" in a folder's path for an adapter and a revision."""
    if name is not None:
        return name
    if side.revision:
        return f"{side.label}@{side.revision}"
    folder = str(side.folder.absolute())
    return {"model": {"path": folder}} if re.search(r"[+@]", folder) else folder


def _dump(content: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=1000, allow_unicode=True)


def _refuse_what_has_no_words(plan: Plan, pair: Pair) -> None:
    kinds = {source.kind for source in plan.sources.values()}
    rules = {rule.source.kind: rule for rule in plan.recipe.rules}
    if "reinit" in kinds:
        raise RecipeError(f"The rule {rules['reinit']} draws random weights; mergekit has no counterpart for that.")
    if plan.removed and (pair.a.config.get("model_type") not in _SHORTENED_TYPES or "layer_types" in pair.a.config):
        raise RecipeError(
            f"The rule {rules['remove']} drops layers. mergekit 0.1.5 leaves the list of layers in such a model's "
            "config as long as it was and stops over it: write the checkpoint with SfN instead."
        )
    fused: dict[str, str] = {}
    for name, source in plan.sources.items():
        first = fused.setdefault(merged_name(anatomy.parse(name)), name)
        if source != plan.sources[first]:
            raise RecipeError(
                f"mergekit merges the experts of a layer as one tensor: it cannot take {first} from "
                f"{plan.sources[first]} and {name} from {source}."
            )
    if pair.a.tied and pair.b.tied:
        embedding, head = (plan.sources[name] for name in (pair.a.embedding_name, pair.head_name))  # type: ignore[index]
        if embedding != head:
            raise RecipeError(
                "Both models use their embedding as output head, and mergekit writes one tensor for the two: it cannot "
                f"take the embedding from {embedding} and the head from {head}. Give both one source: emb,head=B."
            )


# What mergekit goes through: embeddings, layers, final norm and head.


@dataclass(frozen=True, slots=True)
class _Slice:
    """Layers start..stop-1, none where equal. sources: of their tensors, and of those before or after all layers that
    go with them, by name. sides: the models that mergekit reads for it, "A", "B" or "AB"."""

    start: int
    stop: int
    sources: Mapping[str, Source]
    sides: str

    def rows(self) -> dict[str, Source]:
        """Source by module and parameter of a layer."""
        parts = {name: anatomy.parse(name) for name in self.sources}
        return {f"{p.path}.{p.parameter}": self.sources[n] for n, p in parts.items() if p.layer is not None}


class _Units:
    """A plan's tensors as far as mergekit writes them, cut into what has to be said in one place."""

    def __init__(self, plan: Plan, pair: Pair) -> None:
        self.pair, self.plan = pair, plan
        parts = {row.name: row.part for row in pair.rows if row.a is not None and row.part.parameter not in BUFFERS}
        if pair.a.tied and pair.b.tied:
            parts.pop(pair.head_name)
        self.sources = {name: plan.sources[name] for name in parts if plan.sources[name].kind != "remove"}
        self.before: dict[str, Source] = {}
        self.after: dict[str, Source] = {}
        self.layers: dict[int, dict[str, Source]] = {}
        for name, source in self.sources.items():
            part = parts[name]
            if part.layer is not None:
                self.layers.setdefault(part.layer, {})[name] = source
            else:
                (self.before if part.block == "embedding" else self.after)[name] = source
        self.known = pair.a.config.get("model_type") in KNOWN_TYPES

    def fits(self, name: str) -> bool:
        """Whether both models have the tensor, in one shape, as mergekit wants of every model it reads for a slice."""
        row = self.pair.by_name[name]
        return row.b is not None and row.a.shape == row.b.shape  # type: ignore[union-attr]

    def whole(self) -> list[_Slice]:
        """Slices of one model each; [] if a layer, or what stands before or after them, is of more than one source."""
        units = [_Slice(*unit, _only(unit[2])) for unit in self._in_order()]
        if not all(unit.sides in ("A", "B") for unit in units) or not self._head_follows(units[-1].sides):
            return []
        joined = _joined(units, lambda one, two: one.sides == two.sides)
        return joined if self.known or len(joined) == 1 else []

    def mixed(self) -> list[_Slice]:
        """Slices of both models where needed: layers with the same sources together."""
        units = [_Slice(*unit, self._needed(unit[2])) for unit in self._in_order()]
        return _joined(
            units, lambda one, two: one.sides == two.sides and (_loose(one, two) or one.rows() == two.rows())
        )

    def one(self) -> list[_Slice]:
        """Everything as a single slice of both models; [] where a layer goes, or the models do not fit throughout."""
        if self.plan.removed or not all(map(self.fits, self.sources)):
            return []
        return [_Slice(0, _end(self.layers), self.sources, "AB")]

    def _in_order(self) -> Iterator[tuple[int, int, dict[str, Source]]]:
        if self.before:
            yield 0, 0, self.before
        for layer, held in sorted(self.layers.items()):
            yield layer, layer + 1, held
        if self.after:
            yield _end(self.layers), _end(self.layers), self.after

    def _head_follows(self, side: str) -> bool:
        """Whether the head comes out right if the last slice is of `side` alone: a tied model has none to give, and A's
        config then has to say that A's embedding serves."""
        if not self.pair.checkpoint(side).tied or (self.pair.a.tied and self.pair.b.tied):  # type: ignore[arg-type]
            return True
        return side == "A" and set(self.before.values()) == {Source("A")}

    def _needed(self, held: Mapping[str, Source]) -> str:
        """The models to read for these tensors; raises RecipeError where both are needed and do not fit."""
        kinds = {source.kind for source in held.values()}
        sides = "A" if kinds <= {"A", "zero"} else "B" if kinds == {"B"} else "AB"
        head_needs_both = self.pair.head_name in held and self.pair.a.tied != self.pair.b.tied
        if head_needs_both and all(map(self.fits, held)):
            return "AB"
        misfit = next((name for name in held if not self.fits(name)), None)
        if sides != "A" and misfit is not None:
            other = next(name for name, source in held.items() if source.needs_b)
            raise RecipeError(
                f"mergekit cannot take {other} from {held[other]}: it reads both models for all that goes with it, and "
                f"{misfit} does not fit. {self.pair.by_name[misfit].problem}"
            )
        return sides


def _only(held: Mapping[str, Source]) -> str:
    kinds = {source.kind for source in held.values()}
    return kinds.pop() if len(kinds) == 1 else ""


def _end(layers: Iterable[int]) -> int:
    return max(layers, default=-1) + 1


def _loose(one: _Slice, two: _Slice) -> bool:
    """Whether one of them has no layers yet: what goes before or after the others."""
    return one.start == one.stop or two.start == two.stop


def _joined(slices: Iterable[_Slice], alike: Callable[[_Slice, _Slice], bool]) -> list[_Slice]:
    """Neighbours that are alike as one; a removed layer parts what stands around it."""
    joined: list[_Slice] = []
    for part in slices:
        last = joined[-1] if joined else None
        if last is not None and last.stop == part.start and alike(last, part):
            joined[-1] = _Slice(last.start, part.stop, {**last.sources, **part.sources}, last.sides)
        else:
            joined.append(part)
    return joined


# YAML.


def _passthrough(part: _Slice, names: Mapping[str, object]) -> dict[str, object]:
    return {"sources": [{"model": names[part.sides], "layer_range": [part.start, part.stop]}]}


def _linear(units: _Units, names: Mapping[str, object]) -> Iterator[tuple[list[_Slice], dict[str, object]]]:
    """The ways to say it with `linear`; at least one, or RecipeError."""
    for name, source in units.sources.items():
        dtype = units.pair.by_name[name].a.dtype  # type: ignore[union-attr]
        if dtype not in _DTYPES:
            raise RecipeError(f"{name} is stored as {dtype}, with which mergekit cannot compute ({source}).")
    if one := units.one():
        models = [{"model": names[side], "parameters": {"weight": _weight(units.sources, side)}} for side in "AB"]
        yield one, {"models": models, **_UNNORMALISED}
    if one and not units.known:
        return
    slices = units.mixed()
    if not units.known and len(slices) > 1:
        raise RecipeError(
            f"mergekit has no definition of models of the type {units.pair.a.config.get('model_type')!r}, and where it "
            "works one out by itself it cannot tell what stands before the layers and what after."
        )
    content = [
        {
            "sources": [
                {
                    "model": names[side],
                    "layer_range": [part.start, part.stop],
                    "parameters": {"weight": _weight(part.sources, side)},
                }
                for side in part.sides
            ]
        }
        for part in slices
    ]
    yield slices, {"slices": content, **_UNNORMALISED}


def _weight(sources: Mapping[str, Source], side: str) -> object:
    """The weight of one model: a number, or a list of numbers for filters."""
    named = {merged_name(anatomy.parse(name)): source for name, source in sources.items()}
    filters = [(text, _number(source, side)) for text, source in short_filters(named)]
    if len({number for _, number in filters}) == 1:
        return filters[0][1]
    return [{"value": number} if text is None else {"filter": text, "value": number} for text, number in filters]


def _number(source: Source, side: str) -> float | int:
    of_b = source.alpha
    weight = 0.0 if source.kind == "zero" else of_b if side == "B" else 1 - of_b
    return int(weight) if weight in (0, 1) else weight


def _out_dtype(pair: Pair, slices: Iterable[_Slice]) -> dict[str, str]:
    """`out_dtype`, where mergekit would otherwise leave a tensor in another dtype than A's."""
    of_a = {row.name: row.a.dtype for row in pair.rows if row.a is not None}
    changed = ""
    for part in slices:
        for name in part.sources:
            row = pair.by_name[name]
            read = {
                info.dtype for side, info in (("A", row.a), ("B", row.b)) if side in part.sides and info is not None
            }
            if _promoted(read) != of_a[name]:
                changed = name
    if not changed:
        return {}
    dtypes = {of_a[name] for part in slices for name in part.sources}
    if len(dtypes) > 1 or not dtypes <= _DTYPES.keys():
        raise RecipeError(
            f"{changed} is of another dtype in B, and A has several ({', '.join(sorted(dtypes))}): mergekit can give "
            "all tensors one dtype, not each its own."
        )
    return {"out_dtype": _DTYPES[dtypes.pop()]}


def _promoted(dtypes: set[str]) -> str:
    """The dtype in which torch adds tensors of these."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return "F32" if dtypes == {"F16", "BF16"} else max(dtypes, key=list(_DTYPES).index)


def _notes(plan: Plan, pair: Pair) -> Iterator[str]:
    """What mergekit does otherwise, tensors apart."""
    if plan.tokenizer == "B" and any(finding.topic in _TOKENS for finding in pair.findings):
        yield (
            "mergekit copies A's tokenizer and token ids; SfN writes B's, as the output head is B's: copy B's "
            "tokenizer files and generation_config.json into the result."
        )
    if pair.a.tied != pair.b.tied:
        yield (
            "One model is tied: mergekit may write a head that repeats the embedding, or leave A's tie_word_embeddings "
            "in the config; what is stored counts."
        )
    kind = pair.a.config.get("model_type")
    if kind not in KNOWN_TYPES:
        yield f"mergekit has no definition of {kind!r} whose names are known here: compare its result before use."


_TOKENS = frozenset({"tokenizer", "chat template", "end token"})
