"""A worker that can be told to go wrong: for tests that must see a spoiled weight found. Runs inside vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from sfn.engines.vllm_forms import Form, Live, Packed, Scratch
from sfn.engines.vllm_worker import HOLDINGS, PairWorker

Tensors = Mapping[str, torch.Tensor]


def _raise(form: Form, tensors: Tensors, scratch: Scratch) -> None:
    raise OSError("the disk went away")


def _not_applied(form: Form, tensors: Tensors, scratch: Scratch) -> None:
    """What vLLM's own `load_weights` does with an output head on a CPU: memory is written, the packed copy is not."""
    if isinstance(form, Packed) and form.module.weight.numel():
        Live(form.path, form.module, form.parameters).put(tensors, scratch)


def _not_packed(form: Form, tensors: Tensors, scratch: Scratch) -> None:
    """What vLLM's own `reload_weights` does with experts on a CPU."""
    form.put(tensors, scratch)
    w13 = form.parameters["w13_weight"]
    for move in w13.moves:
        move.target.of(form.module.w13_weight.data).copy_(move.source.of(tensors[move.name]))


def _changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Form, Tensors, Scratch], None]:
    """Put in place what `change` makes of a copy of the module's first tensor."""

    def put(form: Form, tensors: Tensors, scratch: Scratch) -> None:
        first = form.names[0]
        form.put({**tensors, first: change(tensors[first].clone())}, scratch)

    return put


def _one_element(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[tensor.numel() // 3] += 1.0
    return tensor


SPOILS = {
    "raises": _raise,
    "not applied": _not_applied,
    "not packed": _not_packed,
    "rows swapped": _changed(lambda tensor: tensor.roll(1, 0)),
    "columns swapped": _changed(lambda tensor: tensor.roll(1, 1)),
    "one element": _changed(_one_element),
    "half of it": _changed(lambda tensor: torch.cat([tensor[: len(tensor) // 2], 0 * tensor[len(tensor) // 2 :]])),
}


class _Spoiled:
    """Stands for a form: spoils the next `times` puts, then steps aside."""

    def __init__(self, form: Form, spoil: str, times: int) -> None:
        self._form, self._spoil, self._times = form, SPOILS[spoil], times

    @property
    def form(self) -> Form:
        """What it stands for."""
        return self._form

    def __getattr__(self, name: str) -> object:
        return getattr(self._form, name)

    def put(self, tensors: Tensors, scratch: Scratch) -> None:
        if self._times:
            self._times -= 1
            self._spoil(self._form, tensors, scratch)
        else:
            self._form.put(tensors, scratch)


class SpoilingWorker(PairWorker):
    """The product's worker, and two ways to spoil what it holds."""

    def sfn_spoil(self, path: str, spoil: str, times: int = 1) -> str:
        """Have the next `times` changes of the module at `path` go wrong; its kind."""
        forms = HOLDINGS[self.model_runner.model]._forms
        (at,) = [number for number, form in enumerate(forms) if form.path == path]
        form = forms[at].form if isinstance(forms[at], _Spoiled) else forms[at]
        forms[at] = _Spoiled(form, spoil, times)
        return type(form).__name__

    def sfn_corrupt(self, path: str, spoil: str) -> None:
        """Change the weights of the module at `path` now, behind the back of what keeps account of them: to those of
        A, spoiled."""
        from sfn import surgery
        from sfn.engines import orders
        from sfn.recipes import Source

        holding = HOLDINGS[self.model_runner.model]
        pair = orders.started_pair(self.vllm_config.load_config.model_loader_extra_config)
        (form,) = [form for form in holding._forms if form.path == path]
        with torch.inference_mode():
            tensors = {name: surgery.build(pair, name, Source("A")) for name in form.names}
            SPOILS[spoil](form, tensors, Scratch())
