"""A LoRA adapter as a checkpoint: its base with the adapter's change applied, ΔW = scale · B A (Hu et al. 2021,
arXiv:2106.09685; file layout of the package peft).

What peft can do beyond that and this cannot is refused by name.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING

from sfn.computed import ComputedFiles, Range, as_computed, by_name
from sfn.errors import CheckpointError
from sfn.headers import TensorInfo
from sfn.records import content_key
from sfn.tensors import over, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from sfn.fingerprints import Memo, Progress
    from sfn.folders import Files

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = re.compile(r"^(?:base_model\.model\.)+")
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<which>[AB])(?:\.default)?(?:\.weight)?$")
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq")  # initialisations that train against another base than the named
_PLAIN = ("BF16", "F16", "F32", "F64")
_FACTORS_KEPT = 16


@dataclass(frozen=True, slots=True)
class Change:
    """ΔW of one tensor: scale · up @ down, or its transpose. down: (rank, in), up: (out, rank): the adapter's."""

    down: TensorInfo
    up: TensorInfo
    scale: float
    transposed: bool


def is_adapter(names: Iterable[str]) -> bool:
    """Whether a folder or repo with these files holds an adapter and no model of its own."""
    present = set(names)
    own = [name for name in present if name.endswith(".safetensors") and not name.startswith("adapter_")]
    return CONFIG_NAME in present and not own


def check(where: object, config: Mapping[str, object]) -> None:
    """Raises CheckpointError for an adapter that is more than ΔW = scale · B A."""
    kind = str(config.get("peft_type", "LORA")).upper()
    start = str(config.get("init_lora_weights", "")).lower()
    faults = {
        f"its kind is {kind}": kind != "LORA",
        "it is a DoRA, which also rescales each column": bool(config.get("use_dora")),
        "it repeats layers (layer_replication)": bool(config.get("layer_replication")),
        "it trains parts of fused tensors (target_parameters)": bool(config.get("target_parameters")),
        "it has biases of its own (lora_bias)": bool(config.get("lora_bias")),
        f"it was started from {start}, which changes the base as well": start.startswith(_CHANGED_BASE),
    }
    for fault, found in faults.items():
        if found:
            raise CheckpointError(
                f"{where} is an adapter that SfN cannot apply: {fault}. Merge it into its base with peft's "
                "`merge_and_unload` and open the result."
            )


class AdaptedFiles(ComputedFiles):
    """The base's files with an adapter applied: values in float32, so that ΔW is not rounded away."""

    def __init__(
        self,
        inner: Files,
        adapter: Files,
        base_rows: Mapping[tuple[Path, int], TensorInfo],
        changes: Mapping[tuple[Path, int], Change],
        computed: Iterable[TensorInfo],
        config: Mapping[str, object],
    ) -> None:
        """base_rows: the base's entry of each place that changes. config: what makes ΔW of the factors."""
        super().__init__(inner, computed)
        self.adapter, self._config = adapter, dict(config)
        self._base, self._changes = dict(base_rows), dict(changes)
        self._factors: OrderedDict[str, torch.Tensor] = OrderedDict()  # the last few, in float32
        self._lock = Lock()

    def _of_adapter(self, info: TensorInfo) -> bool:
        return info.file in self.adapter.shards

    def needed(self, info: TensorInfo, start: int, stop: int) -> Iterator[Range]:
        """The base's rows; the adapter's factors are small and are read whole."""
        stored = self._base[info.file, info.start]
        yield stored, *self.inner_range(stored, start, stop)

    def rows(self, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop-1 of base + scale · B A, in float32."""
        stored, change = self._base[info.file, info.start], self._changes[info.file, info.start]
        values = self.inner_rows(stored, start, stop).float()
        down, up = (self._factor(part) for part in (change.down, change.up))
        if change.transposed:
            shift = down[:, start:stop].T @ up.T  # (stop - start, rank) @ (rank, out)
        else:
            shift = up[start:stop] @ down  # (stop - start, rank) @ (rank, in)
        return values.add_(shift, alpha=change.scale)

    def _factor(self, info: TensorInfo) -> torch.Tensor:
        with self._lock:
            if info.name in self._factors:
                return self._factors[info.name]
        data = self.adapter.read(info, info.start, info.end)
        dtype = torch_dtype(info.dtype)
        assert dtype is not None, "only plain numbers come so far"
        factor = over(data, 0, dtype, info.shape).float()
        with self._lock:
            self._factors[info.name] = factor
            while len(self._factors) > _FACTORS_KEPT:
                self._factors.popitem(last=False)
        return factor

    # Tensors that the adapter stores whole are the adapter's; the rest is as in the base.

    def view(self, info: TensorInfo, start: int, end: int) -> tuple[object, int]:
        """Memory that holds the range, and where in it the range begins."""
        if self._of_adapter(info):
            return self.adapter.view(info, start, end)
        return super().view(info, start, end)

    def read(self, info: TensorInfo, start: int, end: int) -> bytearray:
        """Bytes start..end-1, in memory of their own."""
        return self.adapter.read(info, start, end) if self._of_adapter(info) else super().read(info, start, end)

    def stored(self, info: TensorInfo) -> bool:
        """Whether the tensor's bytes lie just so in a file on this machine."""
        return self.adapter.stored(info) if self._of_adapter(info) else super().stored(info)

    def open(self, info: TensorInfo) -> int:
        """A descriptor of the tensor's file."""
        return self.adapter.open(info) if self._of_adapter(info) else super().open(info)

    def read_ahead(self, ranges: Iterable[Range], cancel: Event | None = None) -> AbstractContextManager[None]:
        """While entered, what these ranges are computed from is fetched ahead."""
        return self._read_ahead(list(ranges), cancel)

    @contextmanager
    def _read_ahead(self, ranges: list[Range], cancel: Event | None) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(super().read_ahead([r for r in ranges if not self._of_adapter(r[0])], cancel))
            stack.enter_context(self.adapter.read_ahead([r for r in ranges if self._of_adapter(r[0])], cancel))
            yield

    def has(self, name: str) -> bool:
        """Whether the adapter, or else its base, comes with such a small file."""
        return self.adapter.has(name) or self.inner.has(name)

    def _owner(self, name: str) -> Files:
        return self.adapter if self.adapter.has(name) else self.inner

    def path(self, name: str) -> Path:
        """Where the small file lies: the adapter's own, or else the base's."""
        return self._owner(name).path(name)

    def at_hand(self, name: str) -> bool:
        """Whether the small file can be read without fetching it."""
        return self._owner(name).at_hand(name)

    def size(self, name: str) -> int:
        """Bytes of the small file."""
        return self._owner(name).size(name)

    def content_key(self, name: str) -> object:
        """Equal for files of equal content."""
        return self._owner(name).content_key(name)

    @property
    def shards(self) -> tuple[Path, ...]:
        """The base's files and the adapter's."""
        return (*self.inner.shards, *self.adapter.shards)

    @property
    def identity_files(self) -> tuple[Path, ...]:
        """The base's files and the adapter's."""
        return (*self.inner.identity_files, *self.adapter.identity_files)

    @property
    def missing_bytes(self) -> int:
        """Bytes that an engine loads and that are not on this machine."""
        return self.inner.missing_bytes + self.adapter.missing_bytes

    def fingerprint(self, memo: Memo, progress: Progress | None) -> str:
        """Of the base's content and the adapter's."""
        parts = (files.fingerprint(memo, progress) for files in (self.inner, self.adapter))
        return content_key("adapted", *parts, self._config)

    def weights_known(self, memo: Memo) -> bool:
        """Whether the fingerprint can be had without reading weights."""
        return self.inner.weights_known(memo) and self.adapter.weights_known(memo)

    def unchanged(self) -> bool:
        """Whether the weight files are still those whose headers were read."""
        return self.inner.unchanged() and self.adapter.unchanged()

    def speech_folder(self) -> Path:
        """Where tokenizer, chat templates and configs lie: the adapter's folder if it has a tokenizer."""
        own = self.adapter.has("tokenizer.json") or self.adapter.has("tokenizer_config.json")
        return (self.adapter if own else self.inner).speech_folder()

    def fetch(self, progress: Progress | None = None, cancel: Event | None = None) -> None:
        """Bring all files to this machine."""
        self.adapter.fetch(None, cancel)
        self.inner.fetch(progress, cancel)


def adapted(
    where: object,
    config: Mapping[str, object],
    adapter: Files,
    factors: Mapping[str, TensorInfo],
    base: Files,
    tensors: Mapping[str, TensorInfo],
) -> tuple[AdaptedFiles, dict[str, TensorInfo]]:
    """Files and tensors of the base with the adapter applied.

    config: adapter_config.json. factors: the adapter's tensors. tensors: the base's. Raises CheckpointError for what
    does not fit the base.
    """
    check(where, config)
    pairs: dict[str, dict[str, TensorInfo]] = {}
    whole: list[TensorInfo] = []
    for name, info in factors.items():
        plain = _PREFIX.sub("", name)
        if match := _FACTOR.fullmatch(plain):
            kind = "embedding" if match["kind"] else "linear"
            pairs.setdefault(match["module"], {"": info})[f"{kind} {match['which']}"] = info
        else:
            target = plain.replace(".modules_to_save.default", "").replace(".modules_to_save", "")
            whole.append(replace(info, name=_known(where, target.replace(".base_layer", ""), tensors)))
    base_rows, changes, computed = {}, {}, []
    for module, parts in pairs.items():
        name = _known(where, f"{module.removesuffix('.base_layer')}.weight", tensors)
        if name not in tensors:
            raise CheckpointError(
                f"{where} changes the output head by factors, and its base uses its embedding as head. Merge the "
                "adapter into its base with peft's `merge_and_unload` and open the result."
            )
        stored = tensors[name]
        change = _change(where, config, module, parts, stored)
        shown = as_computed(stored, "F32")
        base_rows[stored.file, stored.start], changes[stored.file, stored.start] = stored, change
        computed.append(shown)
    return AdaptedFiles(base, adapter, base_rows, changes, computed, config), by_name(tensors, [*computed, *whole])


def _known(where: object, name: str, tensors: Mapping[str, TensorInfo]) -> str:
    """The base's name of it; heads that a tied base does not store are new."""
    if name in tensors or name == "lm_head.weight":
        return name
    for prefix in ("model.", "language_model."):
        for other in (prefix + name, name.removeprefix(prefix)):
            if other in tensors:
                return other
    raise CheckpointError(
        f"{where} changes {name}, which its base does not have: the adapter was trained on another model, or names its "
        "parts otherwise. Choose the base that its adapter_config.json names."
    )


def _change(
    where: object, config: Mapping[str, object], module: str, parts: Mapping[str, TensorInfo], stored: TensorInfo
) -> Change:
    if {"linear A", "linear B"} <= parts.keys():
        down, up, transposed = parts["linear A"], parts["linear B"], bool(config.get("fan_in_fan_out"))
    elif {"embedding A", "embedding B"} <= parts.keys():
        down, up, transposed = parts["embedding A"], parts["embedding B"], True
    else:
        raise CheckpointError(f"{where}: of {module} only one of the two factors A and B is there. Download it again.")
    if stored.dtype not in _PLAIN or not {down.dtype, up.dtype} <= set(_PLAIN):
        raise CheckpointError(
            f"{where}: {module} is stored as {stored.dtype} in the base; ΔW can be added to plain numbers alone. Take "
            "the base's unquantised release."
        )
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        raise CheckpointError(f"{where}: the factors of {module} have the shapes {down.shape} and {up.shape}.")
    shape = (down.shape[1], up.shape[0]) if transposed else (up.shape[0], down.shape[1])
    if shape != stored.shape:
        raise CheckpointError(
            f"{where}: ΔW of {module} is {shape[0]:,} × {shape[1]:,}, the base's tensor has the shape {stored.shape}. "
            "The adapter was trained on another model: choose the base that its adapter_config.json names."
        )
    return Change(down, up, _scale(config, module, down.shape[0]), transposed)


def _scale(config: Mapping[str, object], module: str, rank: int) -> float:
    """lora_alpha / rank, or / sqrt(rank) for rank-stabilised adapters; alpha may differ by module, as peft has it."""
    patterns = config.get("alpha_pattern")
    alpha = config.get("lora_alpha", 8)
    if isinstance(patterns, Mapping):
        key = next((key for key in patterns if re.fullmatch(rf"(?:.*\.)?(?:{key})", module)), None)
        alpha = patterns[key] if key is not None else alpha
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)  # type: ignore[arg-type]
