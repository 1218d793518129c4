"""What the app tells vLLM's processes about the weights to hold: plain strings that cross process and machine borders,
and their way back to a pair and its tensors' sources. Knows no backend.

An order names no folder: whoever carries it out reads the folders that it was started with, and the pair's stamp tells
whether they hold the same models. So the same order serves a server here and one on another machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sfn import pairs, recipes, surgery
from sfn.errors import EngineError
from sfn.records import content_key

if TYPE_CHECKING:
    from sfn.checkpoints import Checkpoint, TensorInfo
    from sfn.pairs import Pair
    from sfn.recipes import Plan, Source

VERSION = "3"  # of what an order says and what the workers answer: both sides must speak the same
_BLOCK_BYTES = 4096  # what is read at once, whatever is asked for
_MOST_BLOCKS = 4096  # sampled of one side: some seconds from a cold disk, whatever the model's size

# {"version", "stamp": of the pair, "recipe": canonical text, "plan_key": what the app resolved it to}
Order = Mapping[str, str]
Folders = Mapping[str, str]  # {"a": folder, "b": folder}


def order(pair: Pair, plan: Plan) -> dict[str, str]:
    """The order for `plan`."""
    return {"version": VERSION, "stamp": stamp(pair), "recipe": recipes.format(plan.recipe), "plan_key": plan.key}


def start_order(pair: Pair, plan: Plan) -> dict[str, str]:
    """The order that a server is started with: it also says where A and B lie on the server's machine."""
    return order(pair, plan) | {"a": str(Path(pair.a.folder).resolve()), "b": str(Path(pair.b.folder).resolve())}


def carry_out(order: Order, folders: Folders) -> tuple[Pair, Mapping[str, Source]]:
    """The pair in `folders`, and where every tensor of the ordered model comes from; no weight is read but for the
    stamp's samples, once.

    Raises SfnError: the recipe does not fit, or the files are not those that the app saw.
    """
    if order.get("version") != VERSION:
        raise EngineError(
            f"This vLLM runs with an SfN that speaks version {VERSION} of its orders, and was sent version "
            f"{order.get('version', '1')}: install the same SfN on both sides, and start vLLM again."
        )
    pair = started_pair(folders)
    if stamp(pair) != order["stamp"]:
        raise EngineError(
            f"vLLM was started with other files than those of the pair that is open: with {pair.label}, or they "
            "changed since the pair was opened. Open that pair (again)."
        )
    plan = recipes.resolve(recipes.parse(order["recipe"]), pair)
    if plan.key != order["plan_key"]:
        raise EngineError(
            f"The recipe “{order['recipe']}” means something else to the SfN beside vLLM than to this one: install "
            "the same SfN on both sides, and start vLLM again."
        )
    return pair, surgery.live_sources(pair, plan)


def started_pair(folders: Folders) -> Pair:
    """The pair in the folders that this process was started with; raises EngineError if its files changed since."""
    pair = _pair(folders["a"], folders["b"])
    if not (pair.a.unchanged() and pair.b.unchanged()):
        raise EngineError(
            f"The files of {pair.label} changed since vLLM was started with them: start it again, and open the pair "
            "again."
        )
    return pair


@lru_cache(maxsize=1)
def _pair(a: str, b: str) -> Pair:
    return pairs.compare(*pairs.open_both(a, b))


def stamp(pair: Pair) -> str:
    """Which models these are, by content, wherever they lie: a key of both sides' configs, of every tensor's name,
    dtype and shape, and of up to four blocks of its bytes, evenly spread.

    Cheap, and good enough to tell one pair from another, since training changes nearly every element. It is no proof
    against a change of a few elements made on purpose; `Pair.key` is, and reads every byte. Raises CheckpointError for
    files that cannot be read, or that changed since they were opened.
    """
    return content_key("stamp", *((dict(side.config), _sampled(side)) for side in (pair.a, pair.b)))


def _sampled(side: Checkpoint) -> str:
    """SHA-256 of the tensors' names, dtypes and shapes, and of samples of their bytes; remembered for the checkpoint,
    whose files are those that it was opened with."""
    if side not in _samples:
        tensors = [side.tensors[name] for name in sorted(side.tensors)]
        count = min(_MOST_BLOCKS // max(1, len(tensors)), 4) or 1
        with ThreadPoolExecutor(max_workers=8, thread_name_prefix="sfn-stamp") as pool:  # disks answer in parallel
            blocks = pool.map(lambda info: b"".join(_blocks(side, info, count)), tensors)
            digest = hashlib.sha256()
            for info, content in zip(tensors, blocks, strict=True):
                digest.update(f"{info.name}\t{info.dtype}\t{info.shape}\t{len(content)}\n".encode() + content)
        _samples[side] = digest.hexdigest()
    return _samples[side]


_samples: WeakKeyDictionary[Checkpoint, str] = WeakKeyDictionary()


def _blocks(side: Checkpoint, info: TensorInfo, count: int) -> Iterator[bytes]:
    """`count` blocks of a tensor's bytes, evenly spread; all bytes of a small one."""
    if info.size_bytes <= (count + 1) * _BLOCK_BYTES:
        yield side.read_bytes(info, info.start, info.end)
        return
    for k in range(count):
        at = info.start + (info.size_bytes - _BLOCK_BYTES) * (2 * k + 1) // (2 * count)
        yield side.read_bytes(info, at, at + _BLOCK_BYTES)
