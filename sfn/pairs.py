"""A and B side by side: which tensors match, what differs, and what can still be done with it.

Reads headers, configs and tokenizers, never weights, and imports no torch until a tensor is read. What differs in the
small files is found by `differences` and `tokenizer_differences`; the figures of what changed are `delta`'s.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Event
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from sfn import checkpoints
from sfn.anatomy import Part, parse, sort_key
from sfn.checkpoints import Checkpoint, TensorInfo
from sfn.differences import Finding, Severity, config_findings
from sfn.errors import PairError
from sfn.records import content_key
from sfn.tokenizer_differences import tokenizer_findings

if TYPE_CHECKING:
    import torch

__all__ = ["Finding", "Pair", "Severity", "Side", "TensorPair", "compare"]

Side = Literal["A", "B"]
PLAIN_FLOATS = frozenset({"BF16", "F16", "F32", "F64"})
DEFAULT_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class TensorPair:
    """One tensor name on both sides.

    Attributes:
        part: the name's anatomy. a, b: what is stored there, None where that side has none; a tied side lends its
            embedding to the head's row, under the head's name.
        comparable: same shape on both sides; of embeddings and heads of other vocabulary sizes, the rows that both
            have (by token id). movable: B's, cast to A's dtype, can take the place of A's.
        problem: why not, in a sentence; "" where nothing stands in the way.
    """

    name: str
    part: Part
    a: TensorInfo | None
    b: TensorInfo | None
    comparable: bool
    movable: bool
    problem: str


class Pair:
    """Two checkpoints and how they fit. Made by `compare`.

    Attributes:
        rows: union of both sides' tensors in anatomical order. findings: differences, the gravest first.
    """

    def __init__(
        self,
        a: Checkpoint,
        b: Checkpoint,
        rows: Iterable[TensorPair],
        findings: Iterable[Finding],
        head: str,
        *,
        unmapped: bool = False,
    ) -> None:
        self.a, self.b = a, b
        self._unmapped = unmapped
        self.rows = tuple(rows)
        self.findings = tuple(findings)
        self.head_name = head
        self._by_name = {row.name: row for row in self.rows}

    def __repr__(self) -> str:
        return f"<Pair {self.label}: {len(self.rows)} tensors, {len(self.findings)} findings>"

    @cached_property
    def key(self) -> str:
        """Content key of both checkpoints; reads their files once, unless their fingerprints are known."""
        return content_key("pair", self.a.fingerprint, self.b.fingerprint)

    @property
    def label(self) -> str:
        """Both names: "A → B"."""
        return f"{self.a.label} → {self.b.label}"

    @cached_property
    def n_layers(self) -> int:
        """Decoder layers of A."""
        return _depth(row.part for row in self.rows if row.a)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Rows of a module × layer board in anatomical order (`Part.row`)."""
        return tuple(dict.fromkeys(row.part.row for row in self.rows))

    @property
    def mergeable(self) -> bool:
        """Whether nothing stops a merge altogether."""
        return all(finding.severity != "stop" for finding in self.findings)

    @cached_property
    def by_name(self) -> Mapping[str, TensorPair]:
        """Rows by tensor name."""
        return MappingProxyType(self._by_name)

    def unmapped(self) -> Pair:
        """The same pair, whose reads are copies: a file that is cut meanwhile raises CheckpointError, where a mapped
        tensor of it would end the process (`Checkpoint.read`)."""
        return Pair(self.a, self.b, self.rows, self.findings, self.head_name, unmapped=True)

    def checkpoint(self, side: Side) -> Checkpoint:
        """The checkpoint of that side."""
        return self.a if side == "A" else self.b

    def info(self, side: Side, name: str) -> TensorInfo | None:
        """What `side` has under `name`, its lent head included; None if nothing."""
        row = self._by_name.get(name)
        return None if row is None else row.a if side == "A" else row.b

    def read(self, side: Side, name: str) -> torch.Tensor:
        """One tensor of `side` as `Checkpoint.read` gives it; a tied side's head is its embedding."""
        return self.checkpoint(side).read(self._stored_name(side, name), copy=self._unmapped)

    def read_rows(self, side: Side, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop-1 of one tensor of `side`, as `Checkpoint.read_rows` gives them."""
        return self.checkpoint(side).read_rows(self._stored_name(side, name), start, stop, copy=self._unmapped)

    @contextmanager
    def read_ahead(self, names: Iterable[str], cancel: Event | None = None) -> Iterator[None]:
        """While entered, what both sides have of these tensors is fetched ahead, where it must come over a network.

        names: in the order in which they will be read, as `rows` has them; where two vocabularies differ in size, the
        rows that both have. Set `cancel` to end waiting reads with Cancelled.
        """
        plans: dict[int, tuple[Checkpoint, list[tuple[TensorInfo, int, int]]]] = {}
        for name in names:
            for side in ("A", "B"):
                checkpoint = self.checkpoint(side)
                plan = plans.setdefault(id(checkpoint), (checkpoint, []))[1]
                plan.append(self._common_range(side, name))
        with ExitStack() as stack:
            for checkpoint, ranges in plans.values():
                stack.enter_context(checkpoint.read_ahead(ranges, cancel))
            yield

    def _common_range(self, side: Side, name: str) -> tuple[TensorInfo, int, int]:
        """The bytes of a tensor's rows that both sides have."""
        info = self.checkpoint(side).info(self._stored_name(side, name))
        row = self._by_name[name]
        rows = min((part.shape[0] for part in (row.a, row.b) if part is not None and part.shape), default=1)
        size = info.size_bytes * rows // info.shape[0] if info.shape and info.shape[0] else info.size_bytes
        return info, info.start, info.start + size

    def _stored_name(self, side: Side, name: str) -> str:
        if self.info(side, name) is None:
            where = self.checkpoint(side).folder
            raise PairError(f"{side} ({where}) has no tensor {name!r}. The pair's rows list what each side has.")
        checkpoint = self.checkpoint(side)
        lent = name == self.head_name and checkpoint.tied
        return checkpoint.embedding_name if lent else name  # type: ignore[return-value]  # tied: there is an embedding

    def report(self) -> str:
        """Plain text for people: what matches, what differs, what that means."""
        return "\n".join(_report_lines(self))


def open_both(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> tuple[Checkpoint, Checkpoint]:
    """Both sides, opened: folders, or models on the Hub; where B is an adapter (LoRA), A with it applied.

    Raises CheckpointError, HubError.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="sfn-open") as pool:  # two models on the Hub take the time of one
        first = pool.submit(checkpoints.open, a)
        second = checkpoints.open(b, base=first.result)
        return first.result(), second


def compare(a: Checkpoint, b: Checkpoint) -> Pair:
    """Put B beside A. Any two checkpoints can be compared; what does not fit becomes a finding, never an error.

    Raises CheckpointError if a tokenizer or config file is broken.
    """
    head = a.head_name or b.head_name or DEFAULT_HEAD
    of_a, of_b = _tensors_with_head(a, head), _tensors_with_head(b, head)
    findings = [
        *_notes(a, b),
        *_tensor_findings(a, b, of_a, of_b),
        *config_findings(a, b),
        *tokenizer_findings(a, b),
    ]
    stop = next((finding.sentence for finding in findings if finding.severity == "stop"), None)
    names = sorted(of_a.keys() | of_b.keys(), key=lambda name: sort_key(parse(name)))
    rows = [_row(name, of_a.get(name), of_b.get(name), stop) for name in names]
    findings += _row_findings(rows)
    findings.sort(key=lambda finding: ("stop", "limit", "note").index(finding.severity))
    return Pair(a, b, rows, findings, head)


def _tensors_with_head(checkpoint: Checkpoint, head: str) -> dict[str, TensorInfo]:
    """Tensors by name; a tied checkpoint's embedding once more under the head's name."""
    tensors = dict(checkpoint.tensors)
    if checkpoint.tied:
        tensors[head] = replace(tensors[checkpoint.embedding_name], name=head)  # type: ignore[index]
    return tensors


def _row(name: str, a: TensorInfo | None, b: TensorInfo | None, stop: str | None) -> TensorPair:
    if a is None or b is None:
        problem = f"Only {'B' if a is None else 'A'} has this tensor."
        return TensorPair(name, parse(name), a, b, False, False, problem)
    if a.shape != b.shape:
        problem = f"The shapes differ: {_shape(a)} in A, {_shape(b)} in B."
        return TensorPair(name, parse(name), a, b, _common_rows(parse(name), a, b), False, problem)
    castable = a.dtype == b.dtype or {a.dtype, b.dtype} <= PLAIN_FLOATS
    if stop is not None:
        return TensorPair(name, parse(name), a, b, True, False, f"The models cannot be merged: {stop}")
    problem = "" if castable else f"{b.dtype} of B cannot stand in for {a.dtype} of A: one of them holds codes."
    return TensorPair(name, parse(name), a, b, True, castable, problem)


def _common_rows(part: Part, a: TensorInfo, b: TensorInfo) -> bool:
    """Whether the rows that both have can be compared: vocabularies of other sizes, one row per token, same width."""
    return part.block in ("embedding", "head") and len(a.shape) == len(b.shape) == 2 and a.shape[1] == b.shape[1]


def _shape(info: TensorInfo) -> str:
    return " × ".join(f"{size:,}" for size in info.shape) or "a single number"


def _depth(parts: Iterable[Part]) -> int:
    return max((part.layer + 1 for part in parts if part.layer is not None), default=0)


_MEANS = {
    "name": "Nothing: results are kept by content, not by name.",
    "commit": "Figures and answers shown here are of the commit that was opened.",
    "offline": "Stored results are shown; weights that are not on this machine cannot be read now.",
    "format": "Delta compares values. Engines load the codes in their own way.",
    "adapter": "Delta shows the adapter's change; merging moves it, module by module.",
}


def _notes(a: Checkpoint, b: Checkpoint) -> Iterator[Finding]:
    for side, checkpoint in (("A", a), ("B", b)):
        for topic, sentence in checkpoint.notes:
            yield Finding(topic, "note", f"{side}: {sentence}", _MEANS[topic])


def _tensor_findings(
    a: Checkpoint, b: Checkpoint, of_a: dict[str, TensorInfo], of_b: dict[str, TensorInfo]
) -> Iterator[Finding]:
    """What the tensors as a whole say: same depth, same vocabulary, tied or not, anything in common."""
    if a.folder.resolve() == b.folder.resolve():
        yield Finding("folder", "note", "A and B are the same model.", "Every change is zero, every merge is A.")
    if not of_a.keys() & of_b.keys():
        sentence = "A and B have not one tensor name in common."
        yield Finding("names", "stop", sentence, "Nothing can be compared or merged: they are different architectures.")
    depth_a, depth_b = (_depth(map(parse, tensors)) for tensors in (of_a, of_b))
    if depth_a != depth_b:
        yield Finding(
            "depth",
            "stop",
            f"A has {depth_a} layers, B has {depth_b}.",
            "The models cannot be merged; delta compares the layers that both have, by number.",
        )
    yield from _vocabulary(a, b)
    if a.tied != b.tied:
        tied, other = ("A", "B") if a.tied else ("B", "A")
        yield Finding(
            "tied head",
            "note",
            f"{tied} uses its embedding as output head, {other} has a head of its own.",
            "The tied side's embedding stands for its head, so that both can be compared and moved one by one. A "
            "merged model is stored with a head of its own, unless embedding and head both come from the tied side.",
        )


def _vocabulary(a: Checkpoint, b: Checkpoint) -> Iterator[Finding]:
    rows = [size for part in (a, b) if part.embedding_name for size in part.tensors[part.embedding_name].shape[:1]]
    if len(rows) == 2 and rows[0] != rows[1]:
        yield Finding(
            "vocabulary",
            "limit",
            f"The embedding has {rows[0]:,} rows in A, {rows[1]:,} in B.",
            f"Delta compares the first {min(rows):,} rows of embedding and head, which may stand for other tokens "
            "where the tokenizers differ. The two cannot be moved; every other module can.",
        )


def _row_findings(rows: list[TensorPair]) -> Iterator[Finding]:
    """What single tensors say, gathered by module so that 64 layers make one sentence."""
    for side in ("A", "B"):
        only = [row.part for row in rows if (row.b if side == "A" else row.a) is None]
        if only:
            yield Finding(
                "missing tensors",
                "limit",
                f"{len(only)} {_tensors(len(only))} only in {side}: {_gathered(only)}.",
                "They are left out of delta. A merged model keeps them as A has them."
                if side == "A"
                else "They are left out of delta, and a merged model, which is built as A is, has no place for them.",
            )
    shapes = [row.part for row in rows if row.a and row.b and row.a.shape != row.b.shape and not row.comparable]
    if shapes:
        yield Finding(
            "shapes",
            "limit",
            f"{len(shapes)} {_tensors(len(shapes))} of another shape: {_gathered(shapes)}.",
            "They cannot be compared or moved; everything else can.",
        )
    yield from _dtype_findings([row for row in rows if row.a and row.b and row.a.dtype != row.b.dtype])


def _dtype_findings(rows: list[TensorPair]) -> Iterator[Finding]:
    kinds = Counter((row.a.dtype, row.b.dtype) for row in rows if row.a and row.b)
    for (dtype_a, dtype_b), count in kinds.most_common():
        plain = {dtype_a, dtype_b} <= PLAIN_FLOATS
        yield Finding(
            "dtype",
            "note" if plain else "limit",
            f"{count} {_tensors(count)} stored as {dtype_a} in A and as {dtype_b} in B.",
            f"Delta compares values, rounding included. Moved tensors are cast to {dtype_a}, A's dtype."
            if plain
            else "They cannot be moved: one side holds codes rather than values.",
        )


def _tensors(count: int) -> str:
    return "tensor is" if count == 1 else "tensors are"


def _gathered(parts: list[Part], shown: int = 6) -> str:
    """ "q_norm.weight (28 layers), lm_head.weight": names gathered over layers and experts."""
    layers: dict[str, set[int]] = {}
    for part in parts:
        found = layers.setdefault(f"{part.row}.{part.parameter}", set())
        if part.layer is not None:
            found.add(part.layer)
    words = [
        f"{name} ({'layer ' + str(min(found)) if len(found) == 1 else str(len(found)) + ' layers'})" if found else name
        for name, found in layers.items()
    ]
    return ", ".join(words[:shown]) + (f" and {len(words) - shown} more" if len(words) > shown else "")


# Topics of findings that a reader expects to hear of, also when there is nothing to say.
_TOPICS_OF_CONFIG = ("architecture", "hidden size", "heads", "MLP width", "activation", "norm", "rope", "context")
_TOPICS = ("depth", "vocabulary", "tied head", "shapes", "dtype", "tokenizer", "chat template", "end token")


def _alike(pair: Pair) -> list[str]:
    """Topics that were looked at and gave no finding."""
    found = {finding.topic for finding in pair.findings}
    looked_at = (*(_TOPICS_OF_CONFIG if pair.a.config and pair.b.config else ()), *_TOPICS)
    return [topic for topic in looked_at if topic not in found]


def _report_lines(pair: Pair) -> Iterator[str]:
    yield pair.label
    for side, checkpoint in (("A", pair.a), ("B", pair.b)):
        dtypes = " and ".join(dict.fromkeys(info.dtype for info in checkpoint.tensors.values()))
        kind = checkpoint.config.get("model_type", "no config.json")
        yield (
            f"  {side}  {checkpoint.label}: {kind}, {checkpoint.parameters:,} parameters, {dtypes}, "
            f"{_depth(map(parse, checkpoint.tensors))} layers, {len(checkpoint.shards)} "
            f"{'file' if len(checkpoint.shards) == 1 else 'files'}"
        )
    comparable = sum(row.comparable for row in pair.rows)
    movable = sum(row.movable for row in pair.rows)
    yield ""
    yield f"Matches: {comparable} of {len(pair.rows)} tensors can be compared, {movable} can be moved from B into A."
    if alike := _alike(pair):
        yield f"The same on both sides: {', '.join(alike)}."
    if not pair.findings:
        yield "Differs: nothing but the weights."
        return
    titles = {"stop": "Stops a merge:", "limit": "Limits what can be done:", "note": "Worth knowing:"}
    for severity, title in titles.items():
        findings = [finding for finding in pair.findings if finding.severity == severity]
        if findings:
            yield ""
            yield title
        for finding in findings:
            yield f"  {finding.topic}: {finding.sentence}"
            yield f"    {finding.means}"
