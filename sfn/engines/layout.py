"""How a checkpoint's tensors lie in a transformers model: which of them make which parameter. Copies values in place
and reads them back; does not decide which values.

On disk and in memory differ: names gain or lose a prefix, and transformers 5 keeps the experts of a mixture fused in
one 3-D parameter. Its own conversion tables (`transformers.conversion_mapping`) say how; the grouping follows
`transformers.core_model_loading.convert_and_load_state_dict_in_model`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from sfn.errors import EngineError


@dataclass(frozen=True)
class Group:
    """Checkpoint tensors that are loaded together because they make up the same parameters.

    Attributes:
        names: the checkpoint's tensor names, in the order in which they are joined. targets: the parameters they make.
        parts: (name, pattern of the converter that it matched) per name. converter: transformers' WeightConverter, or
            None for a tensor that is its parameter.
    """

    names: tuple[str, ...]
    targets: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]
    converter: Any


def groups(model: Any, names: Iterable[str]) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """(groups of the checkpoint's `names`, names that have no place in this model, such as those of a vision tower)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = model.state_dict()
    found: dict[str, list[tuple[str, str]]] = {}
    nowhere = []
    prefix = model.base_model_prefix
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target not in state:
            nowhere.append(name)
            continue
        found.setdefault(target, []).append((name, pattern or ""))
    made = tuple(_group(target, parts, by_pattern.get(parts[0][1])) for target, parts in found.items())
    return made, tuple(nowhere)


def _group(target: str, parts: list[tuple[str, str]], converter: Any) -> Group:
    targets = [target]
    if converter is not None:
        first, *others = converter.target_patterns
        targets += [target.replace(first, other) for other in others]
    return Group(tuple(name for name, _ in parts), tuple(targets), tuple(parts), converter)


def skeleton(checkpoint: Any, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> Any:
    """The checkpoint's model on the CPU, with a head of its own and parameters that hold nothing yet.

    `shapes`: of the checkpoint's tensors, a tied head under its own name among them. No file of weights is opened, so
    that no parameter is a mapping of one: transformers' own loading leaves them so where no cast is needed, and a file
    that is cut would then end the process at the next token. Raises whatever transformers does.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    said = deepcopy(dict(checkpoint.config))  # as the checkpoint reads it: its files may lie elsewhere, or hold codes
    config = type(AutoConfig.for_model(said.get("model_type", ""))).from_dict(said)
    for part in (config, config.get_text_config(decoder=True)):
        part.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            drawing = AutoModelForCausalLM.from_config(config)  # which class, and which part of the config it takes
        content = {name: _Empty(shape, dtype) for name, shape in shapes.items()}
        model = type(drawing).from_pretrained(None, config=drawing.config, dtype=dtype, state_dict=content)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class _Empty:
    """Stands for a tensor of a checkpoint where transformers builds a model; what it gives holds no values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __getitem__(self, _: object) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype)


def missing(model: Any, made: Iterable[Group]) -> set[str]:
    """Parameters of the model that no group fills."""
    filled = {target for group in made for target in group.targets}
    return {name for name, _ in model.named_parameters()} - filled


@torch.no_grad()
def put(model: Any, group: Group, read: Callable[[str], torch.Tensor]) -> dict[str, int]:
    """Copy the values of `group` into the model; `read(name)` gives a checkpoint's tensor.

    Values are cast to the parameter's dtype and moved to its device. Returns the checksum of what each of the group's
    parameters must read as from now on (`checksum`). Raises EngineError for a shape that does not fit.
    """
    sums = {}
    for target, value in _convert(model, group, read).items():
        value = value[0] if isinstance(value, list) else value
        parameter = _tensor(model, target)
        if parameter.shape != value.shape:
            raise EngineError(
                f"{', '.join(group.names[:3])} make a tensor of shape {tuple(value.shape)}, but {target} in the model "
                f"has {tuple(parameter.shape)}: this architecture's config does not fit its weights."
            )
        value = value.to(parameter.dtype)
        sums[target] = _checksum(value)
        parameter.copy_(value)
    return sums


def checksum(model: Any, target: str) -> int:
    """CRC-32 of a parameter's bytes as they are in memory now, on whatever device."""
    return _checksum(_tensor(model, target))


def size_bytes(model: Any, group: Group) -> int:
    """Bytes of the group's parameters in the model."""
    return sum(_tensor(model, target).nbytes for target in group.targets)


def _checksum(tensor: torch.Tensor) -> int:
    # The fastest checksum in Python (5.7 GB/s on one core; SHA-256: 1.7): this looks for faults, not for fraud.
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy()) if flat.numel() else 0


def _convert(model: Any, group: Group, read: Callable[[str], torch.Tensor]) -> dict[str, Any]:
    if group.converter is None:
        return {group.targets[0]: read(group.names[0])}
    converter = deepcopy(group.converter)
    for name, pattern in group.parts:
        converter.add_tensor(group.targets[0], name, pattern, (lambda name=name: read(name)))
    return converter.convert(group.targets[0], model=model, config=model.config)


def _tensor(model: Any, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)
