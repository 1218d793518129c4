"""The recipe language: text -> `Recipe` -> canonical text. Knows no pair: whether a name exists is asked in `plans`.

recipe = rule ; rule ; ...      later rules win, everything unnamed is A, "" is all A
rule   = WHAT @ WHERE = SOURCE
WHAT   = names joined by ","    module ("o_proj"), role, dotted path ("attn.c_proj"), or a group (`anatomy.GROUPS`)
WHERE  = "all", or layers and inclusive ranges joined by "," ("0-2,5"); left out it means "all"
SOURCE = A | B | B:ALPHA (blend) | zero | reinit:SEED | remove ("remove" with WHAT "all" and layers only)
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from sfn import anatomy
from sfn.errors import RecipeError

Kind = Literal["A", "B", "blend", "zero", "reinit", "remove"]
Where = tuple[tuple[int, int], ...] | None  # inclusive ranges, sorted, apart from each other; None: everywhere

MAX_LAYER = 9999
MAX_SEED = 2**63 - 1
_SOURCES = "A, B, B:0.5 (a blend), zero, reinit:1 or remove"
_WITHOUT_LAYER = frozenset({"emb", "head", "embed_tokens", "embed_positions", "norm", "lm_head"})
_LAYERS = re.compile(r"^(\d+)(?:\s*-\s*(\d+))?$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor comes from, in one canonical form: a blend of 0 is A, a blend of 1 is B.

    Attributes:
        kind: "A", "B", "blend" ((1 - alpha) A + alpha B, computed in float32, cast to A's dtype), "zero" (all
            zeros), "reinit" (normal distribution N(0, 0.02^2), seeded), "remove" (the whole layer goes).
        alpha: share of B: 0 for A, 1 for B; of a blend any finite number, outside [0, 1] it extrapolates; else 0.
        seed: of "reinit", from 0 to 2**63 - 1; else 0.
    """

    kind: Kind
    alpha: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        kind, alpha, seed = self.kind, 0.0, 0
        if kind == "blend":
            alpha = float(self.alpha)
            if not math.isfinite(alpha):
                raise RecipeError(f"A blend needs a finite number, not {self.alpha}: write B:0.5 for half A, half B.")
            kind = {0.0: "A", 1.0: "B"}.get(alpha, "blend")
        elif kind == "reinit":
            seed = int(self.seed)
            if not 0 <= seed <= MAX_SEED:
                raise RecipeError(f"A seed is a whole number from 0 to {MAX_SEED}, not {self.seed}.")
        elif kind not in ("A", "B", "zero", "remove"):
            raise RecipeError(f"{kind!r} is no source. Legal are {_SOURCES}.")
        alpha = {"A": 0.0, "B": 1.0}.get(kind, alpha)
        for attribute, value in (("kind", kind), ("alpha", alpha), ("seed", seed)):
            object.__setattr__(self, attribute, value)

    def __str__(self) -> str:
        if self.kind == "blend":
            return f"B:{_number(self.alpha)}"
        return f"reinit:{self.seed}" if self.kind == "reinit" else self.kind

    @property
    def needs_b(self) -> bool:
        """Whether B's tensor is read for it."""
        return self.kind in ("B", "blend")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: all tensors of `names` in the layers of `where` come from `source`.

    Attributes:
        names: sorted anatomically, no doubles. where: inclusive ranges, sorted and merged; None means everywhere,
            what has no layer included.
    """

    names: tuple[str, ...]
    where: Where
    source: Source

    def __post_init__(self) -> None:
        if not self.names:
            raise RecipeError("A rule names nothing: write a module or a group before '@', such as o_proj@all=B.")
        for name in self.names:
            _check_name(name, str(name))
        object.__setattr__(self, "names", tuple(sorted(set(self.names), key=name_order)))
        if self.where is not None:
            if not self.where:
                raise RecipeError("A rule has no layers: write 'all', a layer such as 5, or a range such as 0-2.")
            object.__setattr__(self, "where", merge_ranges(self.where))
        if self.source.kind == "remove":
            if "all" not in self.names:
                raise RecipeError(
                    f"'remove' drops whole layers, so it cannot be asked for {', '.join(self.names)} alone:"
                    " write all@5-7=remove, or use zero."
                )
            if self.where is None:
                raise RecipeError("'remove' needs layers: write all@5-7=remove. Removing all of them leaves no model.")

    def __str__(self) -> str:
        where = f"@{format_where(self.where)}"
        if self.where is None and _WITHOUT_LAYER.issuperset(self.names):
            where = ""
        return f"{','.join(self.names)}{where}={self.source}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What comes from where, always in canonical form: two spellings that mean the same on every model built of known
    parts are equal and share a hash. `Recipe()` is all A. Later rules win.

    Attributes:
        rules: canonical. written: as given, so that a rule which changes nothing is still checked against a pair.
    """

    rules: tuple[Rule, ...] = ()
    written: tuple[Rule, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from sfn.recipes.canonical import canonical  # it needs Rule

        object.__setattr__(self, "written", tuple(self.rules))
        object.__setattr__(self, "rules", canonical(self.written))

    def __str__(self) -> str:
        return "; ".join(str(rule) for rule in self.rules)

    def __bool__(self) -> bool:
        """False for all A."""
        return bool(self.rules)


def parse(text: str) -> Recipe:
    """Read a recipe. Spaces, empty rules and the case of sources do not matter.

    Raises:
        RecipeError: names the rule and the word at fault, and what is legal there.
    """
    return Recipe(tuple(_parse_rule(piece.strip()) for piece in text.split(";") if piece.strip()))


def format(recipe: Recipe) -> str:
    """Canonical text, "" for all A. `parse(format(recipe)) == recipe`. "@all" is left out where no name has a layer."""
    return str(recipe)


def format_where(where: Where) -> str:
    """ "all", or "0-2,5"."""
    if where is None:
        return "all"
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in where)


def merge_ranges(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Sorted, with overlapping and adjoining ranges joined."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def name_order(name: str) -> tuple[int, str]:
    """Key that sorts names anatomically: groups where their first module stands, unknown names last by alphabet."""
    return _NAME_ORDER.get(name, len(_NAME_ORDER)), name


def _order_of_names() -> dict[str, int]:
    names: list[str] = ["all", "emb"]
    first = {"qkv": "q_proj", "attn": "q_proj", "mlp": "router", "norms": "input_layernorm", "head": "lm_head"}
    for role in anatomy.ROLES:
        names += [group for group in ("norms", "attn", "qkv", "mlp", "head") if first[group] == role]
        names.append(role)
    return {name: i for i, name in enumerate(names)}


_NAME_ORDER = _order_of_names()


def _parse_rule(text: str) -> Rule:
    left, equals, right = text.partition("=")
    if not equals:
        raise RecipeError(f"In {text!r} the source is missing: end the rule with '=' and one of {_SOURCES}.")
    if "=" in right:
        raise RecipeError(f"In {text!r} there are two '=': put ';' between rules.")
    what, at, where = left.partition("@")
    if "@" in where:
        raise RecipeError(f"In {text!r} there are two '@': put ';' between rules, and ',' between names or layers.")
    names = [_check_name(word.strip(), text) for word in what.split(",")]
    return Rule(tuple(names), _parse_where(where, text) if at else None, parse_source(right, text))


def _check_name(name: str, text: str) -> str:
    if not name:
        raise RecipeError(f"In {text!r} a name is missing: write a module such as o_proj or a group such as mlp.")
    if re.search(r"[\s,;@=]", name):
        raise RecipeError(f"In {text!r} {name!r} is no name: put ',' between names and ';' between rules.")
    return name


def _parse_where(text: str, rule: str) -> Where:
    if text.strip().lower() == "all":
        return None
    ranges = []
    for word in (word.strip() for word in text.split(",")):
        found = _LAYERS.match(word)
        if not found:
            raise RecipeError(
                f"In {rule!r} {word!r} is no layer: after '@' write 'all', a layer such as 5, or ranges such as 0-2,5"
                " (counted from 0, both ends included)."
            )
        digits = [found[1], found[2] or found[1]]
        if max(len(d.lstrip("0")) for d in digits) > len(str(MAX_LAYER)):
            raise RecipeError(f"In {rule!r} {word!r} is beyond every model: layers go from 0 to {MAX_LAYER} at most.")
        low, high = (int(d) for d in digits)
        if low > high:
            raise RecipeError(f"In {rule!r} the range {word!r} runs backwards: write {high}-{low}.")
        ranges.append((low, high))
    return tuple(ranges)


def parse_source(text: str, rule: str = "") -> Source:
    """Read a source such as "B:0.5"; `rule` is the rule it stands in, for the RecipeError."""
    text = text.strip()
    rule = rule or text
    word, colon, value = (piece.strip() for piece in text.partition(":"))
    kind = word.lower()
    if kind == "b" and colon:
        try:
            alpha = float(value)
        except ValueError:
            alpha = math.nan
        if not math.isfinite(alpha) or "_" in value:
            raise RecipeError(
                f"In {rule!r} {value!r} is no share of B: write a number, such as B:0.5 for half and half."
            )
        return Source("blend", alpha=alpha)
    if kind == "reinit":
        if colon and not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= MAX_SEED):
            raise RecipeError(f"In {rule!r} {value!r} is no seed: write a whole number from 0, such as reinit:1.")
        return Source("reinit", seed=int(value or 0))
    if colon or kind not in ("a", "b", "zero", "remove"):
        raise RecipeError(f"In {rule!r} {text!r} is no source: legal are {_SOURCES}.")
    return Source(kind.upper() if kind in ("a", "b") else kind)  # type: ignore[arg-type]


def _number(value: float) -> str:
    """Shortest text that reads back as the same number."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e6 else repr(value)
