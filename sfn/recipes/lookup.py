"""What recipes ask of a pair again and again, found once for each pair: which tensors a word means, what stands where.

Remembered as long as the pair lives. Says nothing about sources and refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sfn import anatomy

if TYPE_CHECKING:
    from sfn.anatomy import Part
    from sfn.pairs import Pair, TensorPair
    from sfn.recipes.grammar import Where

Place = tuple[int | None, str]  # (layer, or None for what has none; row of the board)
BUFFERS = frozenset({"inv_freq", "masked_bias"})  # computed, not learned: nothing is lost where B's stay behind


def lookup(pair: Pair) -> Lookup:
    """The one `Lookup` of this pair."""
    found = _known.get(pair)
    if found is None:
        found = _known[pair] = Lookup(pair)
    return found


class Lookup:
    """A pair's tensors by word, by layer and by cell of the board.

    Attributes:
        rows: of the pair. of_a: those that A has. size: number of elements in A by name. layers: A's, sorted.
        strangers: tensors of B that A has no place for though it has their module, or that belong to the decoder: no
            rule that takes something from B may mean one of these.
    """

    def __init__(self, pair: Pair) -> None:
        self.rows = pair.rows
        self.of_a = tuple(row for row in pair.rows if row.a is not None)
        self.size: Mapping[str, int] = {row.name: row.a.numel for row in self.of_a}
        self.layers = sorted({row.part.layer for row in self.of_a if row.part.layer is not None})
        modules = {(row.part.layer, row.part.path) for row in self.of_a}
        self.strangers = tuple(
            row
            for row in pair.rows
            if row.a is None
            and row.part.parameter not in BUFFERS
            and ((row.part.layer, row.part.path) in modules or not anatomy.tower(row.part))
        )
        self._meant: dict[str, dict[int | None, list[TensorPair]]] = {}

    def meant(self, word: str, where: Where) -> Iterator[TensorPair]:
        """Tensors of either side that a recipe's word means in these layers, in anatomical order within a layer."""
        by_layer = self._meant.get(word)
        if by_layer is None:
            by_layer = {}
            for row in self.rows:
                if matches(word, row.part):
                    by_layer.setdefault(row.part.layer, []).append(row)
            self._meant[word] = by_layer
        if where is None:
            return chain.from_iterable(by_layer.values())
        within = (layer for low, high in where for layer in range(low, high + 1))
        return chain.from_iterable(by_layer.get(layer, ()) for layer in within)

    @cached_property
    def cells(self) -> Mapping[Place, tuple[str, ...]]:
        """Place on the board -> names of A's tensors there, in anatomical order."""
        found: dict[Place, list[str]] = {}
        for row in self.of_a:
            found.setdefault(place(row.part), []).append(row.name)
        return {key: tuple(names) for key, names in found.items()}

    @cached_property
    def board_rows(self) -> Mapping[str, tuple[Part, ...]]:
        """Row of the board -> parts of A in it, in anatomical order."""
        found: dict[str, list[Part]] = {}
        for row in self.of_a:
            found.setdefault(place(row.part)[1], []).append(row.part)
        return {key: tuple(parts) for key, parts in found.items()}

    @cached_property
    def words(self) -> Mapping[str, set[str]]:
        """Word -> the paths of either side that it means, groups left out."""
        found: dict[str, set[str]] = {}
        kinds = {(row.part.path, row.part.module, row.part.layer is None): row.part for row in self.rows}
        for part in kinds.values():
            for word in words_for(part):
                found.setdefault(word, set()).add(part.path)
        return found


_known: WeakKeyDictionary[Pair, Lookup] = WeakKeyDictionary()


def place(part: Part) -> Place:
    """Where a tensor stands on the board: its layer and row. A tower outside the decoder is one cell under its name."""
    return (None, tower) if (tower := anatomy.tower(part)) else (part.layer, part.row)


def matches(name: str, part: Part) -> bool:
    """Whether the recipe word `name` means `part`.

    It may be a group, a module as the checkpoint has it, a role, a path's dotted end ("attn.c_proj", "experts.3.w1";
    "experts.w1" for all experts), or, outside the decoder, a tower ("visual"). Weight and bias go together.
    """
    if name in anatomy.GROUPS:
        return anatomy.in_group(part, name)
    if name in (part.module, part.role):
        return True
    if part.layer is None and part.block == "other":
        return name not in anatomy.ROLES and part.path.startswith(f"{name}.")
    if "." not in name:
        return False
    return any(f".{path}".endswith(f".{name}") for path in (part.path, plain_path(part)))


def words_for(part: Part) -> set[str]:
    """Every word but groups that means `part`: those for which `matches` says so. Of roles' names only the part's own
    is among them, and `canonical` builds on that."""
    words = {part.module, part.role}
    pieces = part.path.split(".")
    if part.layer is None and part.block == "other":
        return words | ({".".join(pieces[:n]) for n in range(1, len(pieces))} - set(anatomy.ROLES))
    for path in (pieces, plain_path(part).split(".")):
        words |= {".".join(path[n:]) for n in range(len(path) - 1)}
    return words


def plain_path(part: Part) -> str:
    """The part's path without the expert's number: one path for all experts."""
    if part.expert is None:
        return part.path
    words = part.path.split(".")
    at = words.index("experts")
    return ".".join(words[: at + 1] + words[at + 2 :])
