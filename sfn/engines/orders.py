"""What the app tells vLLM's processes about the weights to hold: plain strings that cross process borders, and their
way back to a pair and its tensors' sources. Knows no backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sfn import checkpoints, pairs, recipes, surgery
from sfn.errors import EngineError
from sfn.records import content_key

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan, Source

# {"a": folder, "b": folder, "stamp": of their files, "recipe": canonical text, "plan_key": what the app resolved it to}
Order = Mapping[str, str]


def order(pair: Pair, plan: Plan) -> dict[str, str]:
    """The order for `plan`."""
    return {
        "a": str(Path(pair.a.folder).resolve()),
        "b": str(Path(pair.b.folder).resolve()),
        "stamp": _stamp(pair),
        "recipe": recipes.format(plan.recipe),
        "plan_key": plan.key,
    }


def carry_out(order: Order) -> tuple[Pair, Mapping[str, Source]]:
    """The pair, and where every tensor of the ordered model comes from: from headers alone, no weight is read.

    Raises SfnError: the recipe does not fit, or the files are not those that the app saw.
    """
    pair = _pair(order["a"], order["b"])
    plan = recipes.resolve(recipes.parse(order["recipe"]), pair)
    if _stamp(pair) != order["stamp"] or plan.key != order["plan_key"]:
        raise EngineError(f"The files of {pair.label} changed since the pair was opened: open it again.")
    return pair, surgery.live_sources(pair, plan)


@lru_cache(maxsize=1)
def _pair(a: str, b: str) -> Pair:
    return pairs.compare(checkpoints.open(a), checkpoints.open(b))


def _stamp(pair: Pair) -> str:
    """Names, sizes and times of the weight files of both sides: cheap, and different after any rewrite."""
    states = []
    for side in (pair.a, pair.b):
        for shard in side.shards:
            stat = shard.stat()
            states.append((shard.name, stat.st_size, stat.st_mtime_ns))
    return content_key(states)
