"""A config of mergekit 0.1.5 as a recipe, or a sentence that says which part of it no recipe can say.

Owns how mergekit's settings are looked up (source, slice, module, whole config; filters; values over layers), read from
its config.py, plan.py and parameter_resolver.py. Every tensor's source is worked out as mergekit would weigh it, and
`boards.compact` finds the recipe for that. Knows the pair by its names; touches no weights.
"""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from sfn.errors import RecipeError
from sfn.recipes.boards import compact
from sfn.recipes.grammar import Recipe, Source
from sfn.recipes.mergekit_names import merged_name
from sfn.recipes.plans import resolve

if TYPE_CHECKING:
    from sfn.checkpoints import Checkpoint
    from sfn.pairs import Pair

_LONGEST = 500_000  # characters
_WHY_NOT = {
    "slerp": "it turns from one tensor to the other on a sphere, where a recipe blends on a straight line",
    "nuslerp": "it turns from one tensor to the other on a sphere, where a recipe blends on a straight line",
    "multislerp": "it averages on a sphere, where a recipe blends on a straight line",
    "karcher": "it averages on a sphere, where a recipe blends on a straight line",
    "nearswap": "it weighs every element by how near the two are, where a recipe has one weight for a tensor",
}
_KNOWN_KEYS = frozenset({
    "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template",
})  # fmt: skip
_ZERO = Source("zero")

Settings = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Imported:
    """What a config says as a recipe. notes: what of it SfN does otherwise, a sentence each."""

    recipe: Recipe
    notes: tuple[str, ...]


def from_mergekit(text: str, pair: Pair) -> Imported:
    """The recipe whose plan for `pair` has the sources that mergekit would give every tensor.

    Understood: `linear`, `passthrough` and `task_arithmetic` with one other model; `models`, `slices`, or a single
    module; filters, values over layers. Raises RecipeError with the part that has no counterpart.
    """
    config = _load(text)
    method = str(config.get("merge_method") or "")
    if method not in _METHODS:
        if not method:
            raise RecipeError("This is no mergekit config: it has no merge_method.")
        why = _WHY_NOT.get(method, "a recipe takes each tensor from A, from B, or from a straight line between them")
        raise RecipeError(f"merge_method {method!r} has no counterpart in a recipe: {why}.")
    notes = list(_notes(config, method, pair))
    sides = _Sides(pair)
    slices = _slices(config, pair, sides)
    sources = {}
    for name, part, t in _places(slices, pair):
        there = merged_name(pair.by_name[name].part)
        sources[name] = Source("remove") if part is None else _METHODS[method](there, part, t)
    if pair.a.tied and pair.b.tied:  # mergekit writes one tensor for both
        sources[pair.head_name] = sources[pair.a.embedding_name]  # type: ignore[index]
    recipe = compact(pair, sources)
    resolve(recipe, pair)
    return Imported(recipe, (*notes, *dict.fromkeys(sides.notes)))


# The file.


def _load(text: str) -> dict[str, object]:
    if len(text) > _LONGEST:
        raise RecipeError(f"The config has {len(text):,} characters; at most {_LONGEST:,} are read.")
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark is not None else ""
        raise RecipeError(f"The text is not valid YAML{where}. Paste the config as mergekit reads it.") from error
    if not isinstance(config, dict):
        raise RecipeError("The text is no mergekit config: it should be a mapping that begins with merge_method.")
    return config


def _notes(config: Mapping[str, object], method: str, pair: Pair) -> Iterator[str]:
    for key in sorted(map(str, config.keys() - _KNOWN_KEYS)):
        yield f"{key!r} is no part of a mergekit config and was left out."
    dtype_of_a = str(pair.a.config.get("dtype") or pair.a.config.get("torch_dtype") or "")
    for key in ("dtype", "out_dtype"):
        if config.get(key) and str(config[key]).removeprefix("torch.") != dtype_of_a:
            yield f"{key} {config[key]} was left out: a recipe keeps each tensor's dtype in A."
    tokenizer = config.get("tokenizer_source") or config.get("tokenizer")
    union = tokenizer == "union" or (isinstance(tokenizer, dict) and tokenizer.get("source") == "union")
    if union or (isinstance(tokenizer, dict) and tokenizer.get("tokens")):
        raise RecipeError(
            "The tokenizer settings build a new vocabulary, and with it new rows of the embedding: a recipe moves "
            "whole tensors only. Leave tokenizer and tokenizer_source out."
        )
    if tokenizer or config.get("chat_template"):
        yield "Tokenizer and chat template were left out: a merged model speaks with those of the side its head is of."
    if method == "task_arithmetic":
        yield (
            "task_arithmetic rounds differences to the tensors' own dtype; SfN blends in float32, so that weights may "
            "differ in their last bits."
        )


# Models and slices.


@dataclass(frozen=True, slots=True)
class _Input:
    """One model of a slice. start, stop: its layers. scopes: where its parameters are looked up, the nearest first."""

    side: str
    start: int
    stop: int
    scopes: tuple[Settings, ...]


@dataclass(frozen=True, slots=True)
class _OutSlice:
    """A run of layers of the result. scopes: of parameters that are no single model's. base: side of base_model."""

    inputs: tuple[_Input, ...]
    scopes: tuple[Settings, ...]
    base: str | None


def _slices(config: Mapping[str, object], pair: Pair, sides: _Sides) -> list[_OutSlice]:
    body, outer = config, (_settings(config.get("parameters"), "parameters"),)
    if (modules := config.get("modules")) is not None:
        if not isinstance(modules, dict) or len(modules) != 1 or not isinstance(next(iter(modules.values())), dict):
            raise RecipeError("`modules` names several parts of a model; a recipe is for one, the language model.")
        body = next(iter(modules.values()))
        outer = (_settings(body.get("parameters"), "parameters"), *outer)
    base = None if config.get("base_model") is None else sides.of(config["base_model"])
    if body.get("models"):
        models = [_mapping(entry, "models") for entry in _list(body["models"], "models")]
        inputs = [_input(entry, (0, pair.n_layers), outer, sides) for entry in models]
        if base is not None and base not in {found.side for found in inputs}:
            inputs.append(_Input(base, 0, pair.n_layers, outer))
        return [_checked(_OutSlice(tuple(inputs), outer, base))]
    found = []
    for entry in _list(body.get("slices"), "slices"):
        entry = _mapping(entry, "slices")
        scopes = (_settings(entry.get("parameters"), "parameters of a slice"), *outer)
        sources = [_mapping(source, "sources") for source in _list(entry.get("sources"), "sources of a slice")]
        inputs = [_input(source, _range(source, pair), scopes, sides) for source in sources]
        own = base if entry.get("base_model") is None else sides.of(entry["base_model"])
        found.append(_checked(_OutSlice(tuple(inputs), scopes, own)))
    return found


def _input(entry: Mapping[str, object], layers: tuple[int, int], scopes: tuple[Settings, ...], sides: _Sides) -> _Input:
    own = _settings(entry.get("parameters"), "parameters")
    return _Input(sides.of(entry.get("model")), *layers, (own, *scopes))


def _checked(part: _OutSlice) -> _OutSlice:
    sides = [found.side for found in part.inputs]
    if len(set(sides)) < len(sides):
        raise RecipeError(f"Model {sides[0] if sides.count('A') < 2 else 'A'} stands twice in one slice.")
    ranges = {(found.start, found.stop) for found in part.inputs}
    if len(ranges) > 1:
        (one, two, *_) = (f"{found.start}-{found.stop - 1} of {found.side}" for found in part.inputs)
        raise RecipeError(f"A slice puts layers {one} onto {two}; a recipe moves a layer to its own place alone.")
    return part


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list) or not value:
        raise RecipeError(f"The config has no list of {what}; it needs `models` or `slices`.")
    return value


def _mapping(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise RecipeError(f"In `{what}`, {_short(value)} should be a mapping such as {{model: NAME, parameters: ...}}.")
    return value


def _settings(value: object, what: str) -> Settings:
    if value is not None and not isinstance(value, dict):
        raise RecipeError(f"{what.capitalize()}: {_short(value)} should be a mapping such as {{weight: 1.0}}.")
    return value or {}


def _short(value: object) -> str:
    """`value` in a few words, however large or deep it is."""
    return reprlib.repr(value)


def _range(source: Mapping[str, object], pair: Pair) -> tuple[int, int]:
    value = source.get("layer_range")
    whole = isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
    if not whole or not 0 <= value[0] <= value[1] <= pair.n_layers:  # type: ignore[index]
        raise RecipeError(
            f"layer_range {_short(value)} is no range of this pair's layers: it must be [first, one after the last], "
            f"from [0, {pair.n_layers}]."
        )
    return value[0], value[1]  # type: ignore[index]


class _Sides:
    """Which side of the pair a config means by a model's name; notes what does not quite agree."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.notes = pair, list[str]()
        self.known = {side: _names(checkpoint) for side, checkpoint in (("A", pair.a), ("B", pair.b))}

    def of(self, reference: object) -> str:
        """ "A" or "B": by folder, by name and commit, or by the last word of the name where that tells them apart."""
        path, commit = _path(reference)
        for wanted, known in (
            (path, self.known),
            (_last(path), {s: {_last(n) for n in k} for s, k in self.known.items()}),
        ):
            matching = [side for side, names in known.items() if wanted in names]
            if len(matching) == 1:
                self._compare(commit, matching[0])
                return matching[0]
        a, b = self.pair.a.label, self.pair.b.label
        raise RecipeError(
            f"The config names the model {_short(path)}, which cannot be told to be A ({a}) or B ({b}) of this pair. "
            "Choose its pair on the Pair page, or put the names of these two into the config."
        )

    def _compare(self, commit: str | None, side: str) -> None:
        here = self.pair.checkpoint(side).revision  # type: ignore[arg-type]
        if commit and here and not here.startswith(commit):
            self.notes.append(f"The config names commit {commit[:12]} of {side}; this pair has {here[:12]}.")


def _names(checkpoint: Checkpoint) -> set[str]:
    folder = checkpoint.folder
    return {checkpoint.label, str(folder), str(folder.absolute()), str(folder.resolve())}


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].casefold()


def _path(reference: object) -> tuple[str, str | None]:
    """Path and commit of a model's name: "path", "path@commit", or mergekit's long form; adapters are refused."""
    adapter: object = None
    if isinstance(reference, dict):  # {model: {path: ..., revision: ...}, lora: ...}
        adapter, reference = reference.get("lora"), reference.get("model")
    if isinstance(reference, dict):
        path, commit = reference.get("path"), reference.get("revision")
    else:
        path, _, adapter_name = str(reference).partition("+")
        path, _, commit = path.partition("@")
        adapter = adapter or adapter_name
    if not path or reference is None:
        raise RecipeError("A model of the config has no name: write `model: NAME`, a folder or a name on the Hub.")
    if adapter:
        raise RecipeError(
            f"The model {_short(path)} has an adapter ({_short(adapter)}), which a recipe knows nothing of: merge it "
            "into its model first and open the result as A or B."
        )
    return str(path), str(commit) if commit else None


# Tensors.


def _places(slices: list[_OutSlice], pair: Pair) -> Iterator[tuple[str, _OutSlice | None, float]]:
    """Every tensor of A, the slice that decides it (None: it is left out), and how deep in it that lies, 0 to 1."""
    order = [layer for part in slices for layer in range(part.inputs[0].start, part.inputs[0].stop)]
    for one, two in itertools.pairwise(order):
        if two <= one:
            raise RecipeError(
                f"The slices put layer {two} after layer {one}: a recipe can leave layers out, but neither repeat them "
                "nor change their order."
            )
    if not order:
        raise RecipeError("The slices hold no layer at all: leave at least one.")
    for row in pair.rows:
        if row.a is None:
            continue
        layer = row.part.layer
        if layer is None:
            yield row.name, slices[0] if row.part.block == "embedding" else slices[-1], 0.0
            continue
        part = next((s for s in slices if s.inputs[0].start <= layer < s.inputs[0].stop), None)
        yield row.name, part, 0.0 if part is None else _depth(layer, part.inputs[0])


def _depth(layer: int, found: _Input) -> float:
    last = found.stop - found.start - 1
    return (layer - found.start) / last if last else 1.0


def _linear(name: str, part: _OutSlice, t: float) -> Source:
    weights = {found.side: _required(name, found, t) for found in part.inputs}
    of_a, of_b = weights.get("A", 0.0), weights.get("B", 0.0)
    total = of_a + of_b
    if _flag(_look_up("normalize", part.scopes, name, t), True):
        if not total:
            raise RecipeError(f"{name}: the weights add up to 0, and mergekit divides by their sum (normalize).")
        of_a, of_b, total = of_a / total, of_b / total, 1.0
    if of_a == of_b == 0:
        return _ZERO
    if abs(total - 1) > 1e-6:
        raise RecipeError(
            f"{name}: A has the weight {of_a:g} and B {of_b:g}, together {total:g}. A recipe blends (1-x)A + xB, so "
            "the weights must add up to 1 (or both be 0, or `normalize` be true)."
        )
    return Source("blend", of_b)


def _passthrough(name: str, part: _OutSlice, t: float) -> Source:
    if len(part.inputs) != 1:
        raise RecipeError("A slice of `passthrough` takes one model; this config gives it two.")
    (found,) = part.inputs
    scale = _look_up("scale", found.scopes, name, t)
    if scale is not None and (factor := _number(scale, "scale")) != 1:
        if factor == 0:
            return _ZERO
        raise RecipeError(f"{name} is scaled by {factor:g}: a recipe can take it as it is (1) or silence it (0).")
    return Source(found.side)  # type: ignore[arg-type]


def _task_arithmetic(name: str, part: _OutSlice, t: float) -> Source:
    """base + weight (other - base): a blend with `weight` of the other."""
    if part.base is None:
        raise RecipeError("task_arithmetic needs a base_model.")
    others = [found for found in part.inputs if found.side != part.base]
    if not others:
        return Source(part.base)  # type: ignore[arg-type]
    (other,) = others
    for option in ("normalize", "density"):
        value = _look_up(option, other.scopes, name, t)
        if value is not None and not (option == "density" and _number(value, option) >= 1) and value is not False:
            raise RecipeError(f"task_arithmetic with {option}: {value} has no counterpart in a recipe; leave it out.")
    factor = _look_up("lambda", part.scopes, name, t)
    weight = _required(name, other, t) * (1.0 if factor is None else _number(factor, "lambda"))
    return Source("blend", weight if other.side == "B" else 1 - weight)


_METHODS = {"linear": _linear, "passthrough": _passthrough, "task_arithmetic": _task_arithmetic}


# Parameters.


def _required(name: str, found: _Input, t: float) -> float:
    weight = _look_up("weight", found.scopes, name, t)
    if weight is None:
        raise RecipeError(f"{name}: the config gives {found.side} no weight there; mergekit would stop over it.")
    return _number(weight, "weight")


def _look_up(option: str, scopes: tuple[Settings, ...], name: str, t: float) -> object:
    """What the nearest scope that has something to say gives `option` for this tensor; None where none has."""
    for scope in scopes:
        if option in scope and (value := _evaluate(scope[option], name, t, option)) is not None:
            return value
    return None


def _evaluate(setting: object, name: str, t: float, option: str) -> object:
    """A number, a run of numbers over a slice's layers, or the first entry whose filter occurs in the name."""
    entries = [setting] if isinstance(setting, dict) else setting
    if not isinstance(entries, list) or not any(isinstance(entry, dict) for entry in entries):
        return _plain(setting, t, option)
    for entry in entries:
        if not isinstance(entry, dict) or "value" not in entry:
            raise RecipeError(f"{option}: {_short(entry)} should be {{filter: NAME, value: NUMBER}}.")
        text = entry.get("filter")
        if text is None or text == "*" or str(text) in name:
            return _plain(entry["value"], t, option)
    return None


def _plain(value: object, t: float, option: str) -> object:
    return _between([_number(entry, option) for entry in value], t) if isinstance(value, list) and value else value


def _between(values: list[float], t: float) -> float:
    """Where `t` lies on the line through `values`, which stand at even distances from 0 to 1."""
    place = t * (len(values) - 1)
    low = int(place)
    high = min(len(values) - 1, low + 1)
    return (1 - (place - low)) * values[low] + (place - low) * values[high]


def _number(value: object, option: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # YAML leaves 1e-3 a text
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RecipeError(f"{option}: {_short(value)} is no number.")
    return number


def _flag(value: object, default: bool) -> bool:
    if value is None:
        return default
    if isinstance(value, str):
        return value.strip().lower() in ("true", "yes", "on", "1")
    return bool(value)
