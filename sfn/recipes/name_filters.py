"""Ordered filters over tensor names, as mergekit has them: the first that occurs in a name decides its source.

Knows names as text alone: finds a short list for sources that are given, and says what a list means.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sfn.recipes.grammar import Source

Filter = tuple[str | None, Source]  # None: every name

_LAYER = re.compile(r"\.(\d+)\.")


def decide(filters: Sequence[Filter], name: str) -> Source | None:
    """The source of the first filter that occurs in `name`; None where none does."""
    return next((source for text, source in filters if text is None or text in name), None)


def short_filters(sources: Mapping[str, Source]) -> tuple[Filter, ...]:
    """A short list that gives every name of `sources` its source; the last one is for every name.

    sources: by tensor name, such as "model.layers.3.mlp.up_proj.weight". Not the shortest of all lists, but as long as
    the exceptions from "a module has one source in every layer" and "a layer has one source" are many.
    """
    tries = [_exact(sources)]
    for default in dict.fromkeys(sources.values()):
        for layers in ({}, _whole_layers(sources, default)):
            found = _by_module(sources, layers, default)
            if all(decide(found, name) == source for name, source in sources.items()):
                tries.append(found)
    return tuple(min(tries, key=lambda found: (len(found), sum(len(text or "") for text, _ in found))))


def _exact(sources: Mapping[str, Source]) -> list[Filter]:
    """One filter for each name but those of the commonest source; a longer name first, as it may hold a shorter one."""
    default = Counter(sources.values()).most_common(1)[0][0]
    longest_first = sorted(sources, key=lambda name: (-len(name), name))
    shorter_than_any = [name for name in longest_first if sources[name] != default]
    shadowed = [n for n in longest_first if sources[n] == default and any(text in n for text in shorter_than_any)]
    named = sorted({*shorter_than_any, *shadowed}, key=lambda name: (-len(name), name))
    return [*((name, sources[name]) for name in named), (None, default)]


def _layer(name: str) -> str | None:
    """Where a name says which layer: ".3." of "model.layers.3.mlp.up_proj.weight"."""
    found = _LAYER.search(name)
    return found[0] if found else None


def _row(name: str) -> str:
    """What a module is called in every layer: "mlp.up_proj" of the above; its whole path outside of layers."""
    path = name.rpartition(".")[0]
    found = _LAYER.search(name)
    return path[found.end() :] if found else path


def _whole_layers(sources: Mapping[str, Source], default: Source) -> dict[str, Source]:
    """Layers (as `_layer` says them) that come from one source as a whole, other than `default`."""
    held: dict[str, set[Source]] = {}
    for name, source in sources.items():
        if (layer := _layer(name)) is not None:
            held.setdefault(layer, set()).add(source)
    return {layer: next(iter(found)) for layer, found in held.items() if len(found) == 1 and found != {default}}


def _by_module(sources: Mapping[str, Source], layers: Mapping[str, Source], default: Source) -> list[Filter]:
    """Whole layers first, then single modules of single layers, then modules everywhere, then `default`."""
    rows: dict[str, dict[str, Source]] = {}
    for name, source in sources.items():
        if _layer(name) not in layers:
            rows.setdefault(_row(name), {})[name] = source
    cells: dict[str, Source] = {}
    usual: dict[str, Source] = {}
    for row, held in rows.items():
        usual[row] = Counter(held.values()).most_common(1)[0][0]
        for name, source in held.items():
            if source != usual[row]:
                layer = _layer(name)
                cells[f"layers{layer}{row}." if layer and f"layers{layer}" in name else name] = source
    moved = {row: source for row, source in usual.items() if source != default}
    return [
        *((f"layers{layer}", source) for layer, source in layers.items()),
        *_joined(cells, sources).items(),
        *_rows(moved, sources),
        (None, default),
    ]


def _joined(cells: Mapping[str, Source], sources: Mapping[str, Source]) -> dict[str, Source]:
    """Modules of a layer that lie under one word and all have one source there as one filter: "layers.3.mlp."."""
    found = dict(cells)
    for cell in cells:
        pieces = cell.split(".")
        word = ".".join(pieces[:3]) + "."
        meant = {sources[name] for name in sources if word in name}
        if len(pieces) > 4 and len(meant) == 1 and cell in found:
            found = {each: source for each, source in found.items() if not each.startswith(word)} | {word: meant.pop()}
    return found


def _rows(moved: Mapping[str, Source], sources: Mapping[str, Source]) -> Iterable[Filter]:
    """A filter for each moved module, one for several where a word of their paths means just these."""
    everywhere = {_row(name) for name in sources}
    left = dict(moved)
    words = dict.fromkeys(word for row in moved for word in row.split("."))
    for word in words:
        meant = {row for row in everywhere if word in row}
        if len(meant) > 1 and meant <= left.keys() and len({left[row] for row in meant}) == 1:
            yield word, left[next(iter(meant))]
            left = {row: source for row, source in left.items() if row not in meant}
    for row, source in left.items():
        pieces = row.split(".")
        ends = (".".join(pieces[-n:]) for n in range(1, len(pieces) + 1))
        yield next((end for end in ends if not any(end in other for other in everywhere - {row})), f"{row}."), source
