"""(pair, plan) -> the tensors of the merged model: one by one for an engine, or all of them as a checkpoint on disk.

Owns the arithmetic of sources (blend, zero, reinit, remove). Which source a tensor has is `recipes`' to say; how a
folder is written without ever leaving half of one is `folder_writer`'s.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import sfn
from sfn import recipes
from sfn.anatomy import Part, parse
from sfn.checkpoints import TensorInfo
from sfn.errors import SurgeryError
from sfn.fingerprints import Memo
from sfn.folder_writer import MAX_SHARD_BYTES, Chunk, Extent, Outgoing, Progress, check_target, write_folder
from sfn.merged_config import merged_config, write_json, write_small_files
from sfn.model_card import card
from sfn.pairs import PLAIN_FLOATS, Pair, Side
from sfn.recipes import Plan, Recipe, Source

if TYPE_CHECKING:
    import torch

RECIPE_NAME = "sfn_recipe.json"
REINIT_STD = 0.02  # the paper's, and initializer_range of Llama's and Qwen's configs
_BLOCK_ELEMENTS = 1 << 22  # 16 MiB in float32; part of what a reinit draws, so it must not change
_CACHED_ELEMENTS = 1 << 15  # torch's own limit under which it takes one thread
_LAYER_NUMBER = re.compile(r"(^|\.)(layers|h|blocks|block|layer)\.(\d+)(?=\.)")

# Norms of these models multiply by 1 + weight (transformers' modeling files), so that 0 is what leaves vectors alone.
_ONE_PLUS_WEIGHT = frozenset({
    "gemma", "gemma2", "gemma3", "gemma3_text", "recurrent_gemma", "vaultgemma", "nemotron", "qwen3_next", "qwen3_5",
    "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text",
})  # fmt: skip


def build(pair: Pair, name: str, source: Source) -> torch.Tensor:
    """The tensor `name` of a merged model: A's dtype and shape, on the CPU.

    A and B (where no cast is needed) are mapped, not copied: do not rely on their memory after the files change. Blend:
    (1 - alpha) A + alpha B, both in float32, rounded once to A's dtype. Reinit: matrices from N(0, 0.02^2) with a
    generator seeded by (seed, name), so that every process and rank draws the same; biases and other vectors 0, norm
    weights at the value that leaves a vector's scale alone, since a norm near 0 would silence the whole layer and so
    test something else.

    Raises SurgeryError if A has no such tensor, B's does not fit, or the source is "remove".
    """
    import torch

    info = _checked(pair, name, source)
    if source.kind == "A":
        return pair.read("A", name)
    if source.kind == "B" and pair.info("B", name).dtype == info.dtype:  # type: ignore[union-attr]  # checked
        return pair.read("B", name)
    tensor = torch.empty(info.shape, dtype=pair.read_rows("A", name, 0, 0).dtype)
    rows = tensor.reshape(info.shape or (1,))  # a view
    for place, block in zip(_row_blocks(info), _blocks(pair, name, source), strict=True):
        rows[place.start : place.stop] = block
    return tensor


def live_sources(pair: Pair, plan: Plan) -> Mapping[str, Source]:
    """Sources for every tensor that A has, for an engine that keeps A's build: a removed layer is silenced instead.

    A pre-norm layer adds attention and MLP output to what it got; with all its projections 0 it adds nothing and hands
    on its input unchanged, which is what removing it does. Its norm weights stay A's: 0 times anything is 0, and they
    cost nothing.
    """
    sources: dict[str, Source] = {}
    for row in pair.rows:
        if row.a is None:
            continue
        if row.part.layer in plan.removed:
            kept = row.part.block == "norm" and row.part.parameter == "weight"
            sources[row.name] = Source("A") if kept else Source("zero")
        else:
            sources[row.name] = plan.sources[row.name]
    return sources


def write(
    pair: Pair,
    recipe: Recipe,
    folder: str | PathLike[str],
    *,
    progress: Progress | None = None,
    cancel: Event | None = None,
    memo: Memo | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    durable: bool = False,
) -> Path:
    """Write the merged model as a complete checkpoint and return its folder.

    Tensors are streamed: a fixed amount of memory whatever the model's size; what comes as it is from a side is copied
    from file to file. The folder appears whole or not at all (durable: after a power failure too, see `folder_writer`).
    progress(done_bytes, total_bytes, tensor name). memo: known file hashes, by which the result names its sources; they
    are not read a second time for that.

    Raises RecipeError (does not fit the pair), SurgeryError (folder there and not empty, disk full, not writable),
    CheckpointError (a source file changed), Cancelled.
    """
    folder = Path(folder)
    plan = recipes.resolve(recipe, pair)
    tied = _stays_tied(pair, plan)
    tensors = list(_outgoing(pair, plan, tied))
    check_target(folder, tensors)
    speaker = pair.checkpoint(plan.tokenizer)
    dtypes = Counter[str]()
    for tensor in tensors:
        dtypes[tensor.dtype] += tensor.size_bytes
    config = merged_config(pair.a, speaker, tied=tied, removed=plan.removed, dtype=dtypes.most_common(1)[0][0])
    origin = lineage(pair, plan, {} if memo is None else memo)

    def small_files(place: Path) -> None:
        write_json(place / RECIPE_NAME, origin)
        (place / "README.md").write_text(card(pair, plan, origin), encoding="utf-8")
        write_small_files(place, pair.a, speaker, config)

    metadata = {"format": "pt", "sfn_recipe": recipes.format(plan.recipe), "sfn_pair": pair.label, "sfn_plan": plan.key}
    with _fetched_ahead(pair, plan, cancel):
        return write_folder(
            folder, tensors, metadata, small_files,
            max_shard_bytes=max_shard_bytes, progress=progress, cancel=cancel, durable=durable,
        )  # fmt: skip


def size_bytes(pair: Pair, plan: Plan) -> int:
    """Bytes of the tensors that `write` would write."""
    return sum(tensor.size_bytes for tensor in _outgoing(pair, plan, _stays_tied(pair, plan)))


def written(folder: str | PathLike[str], pair: Pair, plan: Plan) -> bool:
    """Whether `folder` holds a checkpoint that SfN wrote for this plan of this pair."""
    try:
        said = json.loads((Path(folder) / RECIPE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and (said.get("plan_key"), said.get("pair_key")) == (plan.key, pair.key)


# Tensors.


def _checked(pair: Pair, name: str, source: Source) -> TensorInfo:
    """A's entry of `name`; raises SurgeryError where `source` cannot give such a tensor."""
    row = pair.by_name.get(name)
    if row is None or row.a is None:
        raise SurgeryError(f"A ({pair.a.folder}) has no tensor {name!r}, so a merged model has no place for it.")
    if source.kind == "remove":
        raise SurgeryError(f"{name}: a removed layer has no tensors. For an engine, take `live_sources`.")
    if source.kind in ("B", "blend") and not row.movable:
        raise SurgeryError(f"{name} cannot come from B. {row.problem}")
    if source.kind in ("blend", "reinit") and row.a.dtype not in PLAIN_FLOATS:
        raise SurgeryError(f"{name} is stored as {row.a.dtype}, as codes: it cannot be computed with ({source.kind}).")
    return row.a


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows start..stop-1 of a tensor; `shape` is theirs."""

    start: int
    stop: int
    shape: tuple[int, ...]


def _row_blocks(info: TensorInfo) -> Iterator[_Rows]:
    """A tensor cut along its first dimension into pieces of at most _BLOCK_ELEMENTS, or single rows."""
    rows, *rest = info.shape or (1,)
    step = max(1, _BLOCK_ELEMENTS // max(1, math.prod(rest)))
    for start in range(0, max(rows, 1), step):
        stop = min(rows, start + step)
        yield _Rows(start, stop, (stop - start, *rest))


def _blocks(pair: Pair, name: str, source: Source) -> Iterator[torch.Tensor]:
    """The merged tensor in blocks of rows, each in A's dtype; a scalar counts as one row."""
    import torch

    info = pair.info("A", name)
    assert info is not None
    dtype = pair.read_rows("A", name, 0, 0).dtype
    if source.kind == "blend":
        yield from _ahead(lambda rows: _cast(_blended(pair, name, source.alpha, rows), dtype), _row_blocks(info))
        return
    generator = torch.Generator().manual_seed(_seed_of(source.seed, name)) if source.kind == "reinit" else None
    fill = _reinit_value(pair, parse(name), info) if source.kind == "reinit" else None
    for rows in _row_blocks(info):
        if source.kind in ("A", "B"):
            block = pair.read_rows("A" if source.kind == "A" else "B", name, rows.start, rows.stop)
        elif source.kind == "zero":
            block = torch.zeros(rows.shape, dtype=dtype)
        elif fill is not None:
            block = torch.full(rows.shape, fill, dtype=dtype)
        else:
            block = torch.empty(rows.shape).normal_(0, REINIT_STD, generator=generator)
        yield _cast(block, dtype)


def _ahead(work: Callable[[_Rows], torch.Tensor], pieces: Iterator[_Rows]) -> Iterator[torch.Tensor]:
    """Results of `work` in order, a few of them computed ahead on all cores while the first is used."""
    waiting: deque[Future[torch.Tensor]] = deque()
    first = next(pieces)
    if (second := next(pieces, None)) is None:  # most tensors of a small model: no threads for one piece
        yield work(first)
        return
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores, thread_name_prefix="sfn-blend") as pool:
        try:
            for rows in itertools.chain((first, second), pieces):
                waiting.append(pool.submit(work, rows))
                if len(waiting) > cores:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()


def _blended(pair: Pair, name: str, alpha: float, rows: _Rows) -> torch.Tensor:
    of_a, of_b = (pair.read_rows(side, name, rows.start, rows.stop) for side in _SIDES)
    return _blend(of_a, of_b, alpha)


_SIDES: tuple[Side, Side] = ("A", "B")


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in `dtype`, itself if it is of that dtype; in small pieces for the reason given at `_blend`."""
    import torch

    if tensor.dtype == dtype:
        return tensor
    result = torch.empty(tensor.shape, dtype=dtype)
    flat, flat_result = tensor.reshape(-1), result.reshape(-1)
    for start in range(0, flat.numel(), _CACHED_ELEMENTS):
        flat_result[start : start + _CACHED_ELEMENTS] = flat[start : start + _CACHED_ELEMENTS]
    return result


def _blend(a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    """(1 - alpha) a + alpha b in float32, rounded to a's dtype.

    In pieces so small that they stay in the processor's cache and torch does not share them out among threads: that is
    as fast on an idle machine, and many times faster on a busy one, where threads wait for each other.
    """
    import torch

    result = torch.empty_like(a)
    flat_a, flat_b, flat_result = a.reshape(-1), b.reshape(-1), result.reshape(-1)
    left, right = torch.empty(_CACHED_ELEMENTS), torch.empty(_CACHED_ELEMENTS)
    for start in range(0, flat_a.numel(), _CACHED_ELEMENTS):
        piece = slice(start, start + _CACHED_ELEMENTS)
        x, y = (buffer[: flat_a[piece].numel()] for buffer in (left, right))
        x.copy_(flat_a[piece]).mul_(1 - alpha).add_(y.copy_(flat_b[piece]).mul_(alpha))
        flat_result[piece] = x
    return result


def _seed_of(seed: int, name: str) -> int:
    """A seed of 63 bits from the recipe's seed and the tensor's name: the same in every process and on every rank."""
    digest = hashlib.sha256(f"{seed}\t{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _reinit_value(pair: Pair, part: Part, info: TensorInfo) -> float | None:
    """What a vector becomes under reinit; None for matrices, which are drawn."""
    if part.block == "norm" and part.parameter == "weight":
        shifted = pair.a.config.get("model_type") in _ONE_PLUS_WEIGHT and part.module != "linear_attn.norm"
        return 0.0 if shifted else 1.0
    return 0.0 if len(info.shape) < 2 else None


# The merged checkpoint.


def _stays_tied(pair: Pair, plan: Plan) -> bool:
    """Whether embedding and head of the merged model are the same tensor, and both from sides that tie them."""
    embedding = pair.a.embedding_name
    if embedding is None or pair.head_name not in plan.sources:
        return pair.a.tied
    source = plan.sources[embedding]
    if source != plan.sources[pair.head_name]:
        return False
    ties = {"A": pair.a.tied, "zero": pair.a.tied, "B": pair.b.tied, "blend": pair.a.tied and pair.b.tied}
    return ties.get(source.kind, False)


@contextmanager
def _fetched_ahead(pair: Pair, plan: Plan, cancel: Event | None) -> Iterator[None]:
    """While entered, what the plan needs of models on the Hub is fetched ahead."""
    with ExitStack() as stack:
        for side in _SIDES:
            kinds = {"blend", side}
            needed = [pair.info(side, name) for name, source in plan.sources.items() if source.kind in kinds]
            ranges = [(info, info.start, info.end) for info in needed if info is not None]
            stack.enter_context(pair.checkpoint(side).read_ahead(ranges, cancel))
        yield


def _outgoing(pair: Pair, plan: Plan, tied: bool) -> Iterator[Outgoing]:
    """Tensors of the merged checkpoint in anatomical order, layers counted anew."""
    for row in pair.rows:
        if row.a is None or row.part.layer in plan.removed or (tied and row.name == pair.head_name):
            continue
        source = plan.sources[row.name]
        _checked(pair, row.name, source)
        name = _renumbered(row.part, plan.removed)
        yield Outgoing(name, row.a.dtype, row.a.shape, lambda n=row.name, s=source: _chunks(pair, n, s))


def _renumbered(part: Part, removed: tuple[int, ...]) -> str:
    """The tensor's name once the removed layers before it are gone."""
    if part.layer is None or not removed:
        return part.name
    layer = part.layer - sum(gone < part.layer for gone in set(removed))
    match = next((m for m in _LAYER_NUMBER.finditer(part.name) if int(m[3]) == part.layer), None)
    if match is None:
        raise SurgeryError(f"{part.name}: cannot tell where in this name the layer's number {part.layer} stands.")
    return f"{part.name[: match.start(3)]}{layer}{part.name[match.end(3) :]}"


def _chunks(pair: Pair, name: str, source: Source) -> Iterator[Chunk | Extent]:
    """Bytes of a merged tensor; what is stored just so on a side is copied from file to file, never seen as numbers."""
    stored = pair.info(source.kind, name) if source.kind in ("A", "B") else None  # type: ignore[arg-type]
    checkpoint = pair.checkpoint("B" if source.kind == "B" else "A")
    alike = stored is not None and stored.dtype == pair.info("A", name).dtype  # type: ignore[union-attr]
    if alike and checkpoint.stored(stored):
        where = f"{stored.file}, tensor {name!r}"
        yield Extent(lambda: checkpoint.open_file(stored), stored.start, stored.end, where)
        return
    import torch

    for block in _blocks(pair, name, source):
        yield memoryview(block.contiguous().reshape(-1).view(torch.uint8).numpy())


def lineage(pair: Pair, plan: Plan, memo: Memo) -> dict[str, object]:
    """What sfn_recipe.json says: from what, by what and when the checkpoint was made.

    A fingerprint that nobody has computed yet is null, and the pair's key with it: it would cost reading all files.
    """
    sides = {"a": pair.a, "b": pair.b}
    fingerprints = {side: checkpoint.known_fingerprint(memo) for side, checkpoint in sides.items()}
    return {
        "made_with": f"Stethoscope for Networks {sfn.__version__}",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": recipes.format(plan.recipe),
        "summary": plan.sentence,
        "plan_key": plan.key,
        "pair_key": pair.key if all(fingerprints.values()) else None,
        "share_from_b": plan.share_from_b,
        "removed_layers": list(plan.removed),
        "tokenizer": plan.tokenizer,
        **{
            side: {"label": checkpoint.label, "revision": checkpoint.revision, "fingerprint": fingerprints[side]}
            for side, checkpoint in sides.items()
        },
    }
