"""Where each tensor of a checkpoint goes in a vLLM model, learned by watching vLLM's own loader do it once. Does not
write weights, and knows no architecture.

vLLM's models join tensors (q, k and v become one), cut them (every rank of a tensor-parallel group takes its part) and
rename them, each in code of its own. All of it ends in copies into parameters; those are what is written down here, so
that the same tensors can be put in place again without asking the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_COPY = torch.ops.aten.copy_.default
_FILLS = (torch.ops.aten.fill_.Scalar, torch.ops.aten.zero_.default)


@dataclass(frozen=True, slots=True)
class Window:
    """A strided part of a tensor; the offset in elements counts from the tensor's first element."""

    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This part of `tensor`, which must be contiguous: a view."""
        return tensor.as_strided(self.size, self.stride, tensor.storage_offset() + self.offset)

    def is_all_of(self, shape: Iterable[int]) -> bool:
        """Whether it is a whole tensor of that shape, in its own order."""
        if self.offset or self.size != tuple(shape):
            return False
        pairs = zip(self.size, self.stride, _strides(self.size), strict=True)
        return all(length == 1 or stride == plain for length, stride, plain in pairs)

    @property
    def numel(self) -> int:
        """Elements in it."""
        return math.prod(self.size)


@dataclass(frozen=True, slots=True)
class Move:
    """Part `source` of the checkpoint's tensor `name` becomes part `target` of a parameter."""

    name: str
    source: Window
    target: Window


@dataclass
class Parameter:
    """How one parameter of the model is filled.

    Attributes:
        shape, dtype: as it is filled, which need not be how it is kept. moves: from the checkpoint. fills: parts that
            get a constant, the padding of a vocabulary for one. strange: why it cannot be filled again by these alone,
            or "".
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    moves: list[Move] = field(default_factory=list)
    fills: list[tuple[Window, float]] = field(default_factory=list)
    strange: str = ""

    @property
    def gap(self) -> str:
        """Why moves and fills do not make up all of it, or ""."""
        covered = sum(move.target.numel for move in self.moves) + sum(window.numel for window, _ in self.fills)
        if self.strange or covered == math.prod(self.shape):
            return self.strange
        return f"{covered} of its {math.prod(self.shape)} elements come from the checkpoint"


Places = dict[tuple[str, str], Parameter]  # by (module of the model, parameter of that module)


class Watch(TorchDispatchMode):
    """Watches a model being loaded; afterwards `places` holds its parameters that anything was written into."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.places: Places = {}
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the checkpoint's tensors that came by
        self._keys: dict[int, tuple[str, str]] = {}  # address of a parameter's memory -> its key
        self._kept: list[torch.Tensor] = []  # so that no address is given to another tensor meanwhile
        self._name, self._tensor = "", torch.empty(0)
        for path, module in model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is None or parameter.is_meta or not parameter.numel():
                    continue
                key, address = (path, name), parameter.untyped_storage().data_ptr()
                place = self.places[key] = Parameter(tuple(parameter.shape), parameter.dtype)
                if not parameter.is_contiguous() or parameter.storage_offset():
                    place.strange = "its memory is not in plain order"
                if address in self._keys:
                    place.strange = self.places[self._keys[address]].strange = "two modules share its memory"
                self._keys.setdefault(address, key)
                self._kept.append(parameter)

    def stream(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Hand on what the loader is to load; reading and computing it is not watched."""
        source = iter(tensors)
        while True:
            with _disable_current_modes():
                if (item := next(source, None)) is None:
                    break
                self._name, self._tensor = item[0], item[1].contiguous()
                self.shapes[self._name] = tuple(self._tensor.shape)
            yield self._name, self._tensor
        self._name, self._tensor = "", torch.empty(0)

    def finish(self) -> Places:
        """The parameters into which tensors went; forgets all memory."""
        self._keys, self._kept, self._tensor = {}, [], torch.empty(0)
        self.places = {key: place for key, place in self.places.items() if place.moves or place.strange}
        return self.places

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        if func is _COPY:
            self._copied(args[0], args[1])
        elif func in _FILLS:
            if place := self._place(args[0]):
                value = float(args[1]) if len(args) > 1 else 0.0
                if args[0].numel():
                    place.fills.append((_window(args[0]), value))
        elif func._schema.is_mutable and args and isinstance(args[0], torch.Tensor) and (place := self._place(args[0])):
            place.strange = place.strange or f"its loader computes it ({func})"
        return func(*args, **(kwargs or {}))

    def _place(self, tensor: torch.Tensor) -> Parameter | None:
        if tensor.is_meta:
            return None
        key = self._keys.get(tensor.untyped_storage().data_ptr())
        return None if key is None else self.places[key]

    def _copied(self, target: torch.Tensor, source: torch.Tensor) -> None:
        if (place := self._place(target)) is None:
            return
        ours, first = self._tensor, source.data_ptr() - self._tensor.data_ptr()
        inside = source.device == ours.device and source.dtype == ours.dtype and 0 <= first < max(ours.nbytes, 1)
        if not inside or source.shape != target.shape:
            place.strange = place.strange or "its loader computes it from the checkpoint's tensor"
            return
        window = Window(first // ours.itemsize, tuple(source.shape), tuple(source.stride()))
        place.moves.append(Move(self._name, window, _window(target)))


def _window(view: torch.Tensor) -> Window:
    return Window(view.storage_offset(), tuple(view.shape), tuple(view.stride()))


def _strides(size: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for length in reversed(size):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))
