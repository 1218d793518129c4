"""What a pair takes before anything is fetched or started: bytes to scan, bytes to run, memory, disk; and a refusal in
words where it cannot fit. Estimates say that they are; what the machine has is told by the caller, but for the disk.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfn.anatomy import parse
from sfn.checkpoints import text_config
from sfn.differences import value_of

if TYPE_CHECKING:
    from sfn.checkpoints import Checkpoint
    from sfn.pairs import Pair, TensorPair

CONTEXT_TOKENS = 4096  # that a conversation is reckoned with where nothing else is said
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SHARE_OVER, _FIXED_OVER = 0.1, 10**9  # beside weights and KV cache: activations, buffers, the libraries themselves
_SCAN_MEMORY = 500_000_000  # blocks of both sides and what the arithmetic needs, whatever the model's size
_SPOOL = 128 << 20  # of the disk, while a scan reads from the Hub; see sfn.hub.readahead


@dataclass(frozen=True, slots=True)
class Need:
    """One line: what is needed, what there is, and the sentence where that is not enough.

    Attributes:
        topic: "scan", "fetch to scan", "fetch to run", "memory to scan", "memory to run", "disk".
        needed: bytes. there: bytes that there are, None where that does not count or is not known.
        explanation: one plain sentence on what it is. refusal: "" where it fits.
    """

    topic: str
    needed: int
    there: int | None
    explanation: str
    refusal: str = ""

    @property
    def fits(self) -> bool:
        """Whether there is enough, as far as it is known."""
        return not self.refusal


def needs(
    pair: Pair,
    *,
    names: Iterable[str] | None = None,
    dtype: str = "bfloat16",
    memory_bytes: int | None = None,
    device: str = "this machine",
    context_tokens: int = CONTEXT_TOKENS,
) -> tuple[Need, ...]:
    """What scanning `names` (None: all that compare) and running the pair take.

    dtype: what the engine computes in. memory_bytes: what `device` (as people call it) has; None: not known.
    """
    chosen = None if names is None else set(names)
    rows = [row for row in pair.rows if (row.comparable if chosen is None else row.name in chosen)]
    scan, fetched = scan_bytes(rows), _unfetched(pair, rows)
    run = pair.a.missing_bytes + pair.b.missing_bytes
    memory = run_memory_bytes(pair.a, dtype=dtype, context_tokens=context_tokens)
    place = _cache_place(pair)
    free = shutil.disk_usage(place).free
    return (
        Need("scan", scan, None, f"Read once, of both sides: {len(rows):,} tensors."),
        Need("fetch to scan", fetched, None, "Of these, what comes over the network; none of it is kept."),
        Need("fetch to run", run, None, "An engine needs all of A, and B's tensors to move; kept on this machine."),
        Need("memory to scan", _SCAN_MEMORY, None, "About the same for every model: tensors are read in blocks."),
        Need(
            "memory to run",
            memory,
            memory_bytes,
            f"An estimate: A's weights in {dtype}, {context_tokens:,} tokens of context, and a tenth and 1 GB on top.",
            _too_little("memory", memory, memory_bytes, device),
        ),
        Need(
            "disk", run + (_SPOOL if fetched else 0), free, f"Room at {place}, where fetched models are kept.",
            _too_little("disk", run, free, str(place)),
        ),
    )  # fmt: skip


def scan_bytes(rows: Iterable[TensorPair]) -> int:
    """Bytes that measuring these rows reads, both sides counted; of other vocabularies, the common rows."""
    return sum(_common_bytes(row, "A") + _common_bytes(row, "B") for row in rows)


def run_memory_bytes(a: Checkpoint, *, dtype: str, context_tokens: int) -> int:
    """An estimate of the memory that an engine takes with A: weights, KV cache, and what comes on top.

    The head counts also where A ties it, since engines are started untied.
    """
    width = _BYTES[dtype]
    weights = a.parameters * width
    if a.tied and a.embedding_name is not None:
        weights += a.tensors[a.embedding_name].numel * width
    used = weights + kv_cache_bytes(a, context_tokens, width)
    return round(used * (1 + _SHARE_OVER)) + _FIXED_OVER


def kv_cache_bytes(checkpoint: Checkpoint, tokens: int, width: int) -> int:
    """Keys and values of `tokens` tokens, `width` bytes each: 2 · layers · KV heads · head size · tokens · width.

    0 where the config does not tell; too much for models that compress their cache or look back only so far.
    """
    config: Mapping[str, object] = text_config(checkpoint.config)
    heads, size = value_of(config, "num_key_value_heads"), value_of(config, "head_dim")
    layers = max((part.layer + 1 for part in map(parse, checkpoint.tensors) if part.layer is not None), default=0)
    return 2 * layers * heads * size * tokens * width if isinstance(heads, int) and isinstance(size, int) else 0


def _common_bytes(row: TensorPair, side: str) -> int:
    info = row.a if side == "A" else row.b
    if info is None or row.a is None or row.b is None:
        return 0
    common = math.prod(min(sizes) for sizes in zip(row.a.shape, row.b.shape, strict=True))
    return info.size_bytes * common // max(info.numel, 1)


def _unfetched(pair: Pair, rows: Iterable[TensorPair]) -> int:
    """Bytes of these rows that are on no disk here. What is computed counts as what it is computed to."""
    total = 0
    for row in rows:
        for side, info in (("A", row.a), ("B", row.b)):
            checkpoint = pair.checkpoint("A" if side == "A" else "B")
            if info is not None and checkpoint.missing_bytes and not checkpoint.stored(info):
                total += _common_bytes(row, side)
    return total


def _too_little(what: str, needed: int, there: int | None, where: str) -> str:
    if there is None or needed <= there:
        return ""
    sizes = f"{needed / 1e9:,.1f} GB of {what} are needed, and {where} has {there / 1e9:,.1f} GB"
    if what == "disk":
        return f"{sizes} left. Scanning still works; to run the pair, make room or set HF_HUB_CACHE to a larger disk."
    return (
        f"{sizes}. Scanning still works; to run the pair, take a larger machine, a shorter context or a smaller pair."
    )


def _cache_place(pair: Pair) -> Path:
    """The folder, of those that there are, under which the pair's models are or would be kept."""
    sides = sorted((pair.a, pair.b), key=lambda side: -side.missing_bytes)
    folder = sides[0].folder
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
