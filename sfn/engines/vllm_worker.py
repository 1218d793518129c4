"""What runs inside vLLM's own processes: a load format that streams a recipe's tensors from A's and B's safetensors,
and the call that swaps them in a running server. No merged checkpoint is ever written.

The server is started with `--load-format sfn`, the order in `--model-loader-extra-config`, and
`--worker-extension-cls sfn.engines.vllm_worker.PairWorker`; vLLM imports that class in every worker before it loads a
model, which is what registers the format there. Never imported by the app.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import torch
from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER, register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.platforms import current_platform

from sfn import surgery
from sfn.engines import orders
from sfn.engines.orders import Order
from sfn.errors import EngineError, SfnError
from sfn.pairs import Pair
from sfn.recipes import Source

LOAD_FORMAT = "sfn"


@dataclass
class Held:
    """Which weights this process's model holds. plan_key: None while they are unknown. turn: grows with every change,
    so that who asks twice knows whether anything changed between; process: tells this one from one started later."""

    plan_key: str | None = None
    turn: int = 0
    process: str = field(default_factory=lambda: uuid4().hex)

    def change(self) -> None:
        """What is held is about to change."""
        self.plan_key = None
        self.turn += 1


HELD = Held()


class Stream:
    """The ordered tensors, one at a time, in A's dtype; `ended` tells whether all of them were taken."""

    def __init__(self, pair: Pair, sources: Mapping[str, Source]) -> None:
        self._pair, self._sources = pair, sources
        self.ended = False

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, source in self._sources.items():
            yield name, surgery.build(self._pair, name, source)
        self.ended = True


class PairLoader(BaseModelLoader):
    """vLLM's loader for `--load-format sfn`."""

    def download_model(self, model_config: Any) -> None:
        """Nothing to download: both checkpoints are folders."""

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """First load. Raises EngineError where the checkpoint leaves a parameter of the model unset."""
        start = self.load_config.model_loader_extra_config
        stream = Stream(*orders.carry_out(start, start))
        HELD.change()
        loaded = model.load_weights(iter(stream))
        if loaded is not None and (unset := {name for name, _ in model.named_parameters()} - set(loaded)):
            raise EngineError(f"No tensor of the pair fills {', '.join(sorted(unset)[:3])}: A is incomplete.")
        HELD.plan_key = start["plan_key"]

    def get_all_weights(self, model_config: Any, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """The same stream for vLLM's own `reload_weights`."""
        start = self.load_config.model_loader_extra_config
        return iter(Stream(*orders.carry_out(start, start)))


if LOAD_FORMAT not in _LOAD_FORMAT_TO_MODEL_LOADER:
    register_model_loader(LOAD_FORMAT)(PairLoader)


class PairWorker:
    """Mixed into vLLM's worker class; its methods are reached through `/collective_rpc`."""

    def sfn_hello(self) -> dict[str, Any]:
        """What runs here and what it holds; changes nothing.

        {"version": of the orders, "stamp": of the pair, "pair": its label, "a", "b": its folders here, "device",
        "dtype", "plan_key": held or None, "turn": token of what is held}, or {"error": sentence}.
        """
        config = self.vllm_config  # type: ignore[attr-defined]  # vLLM's Worker
        if config.load_config.load_format != LOAD_FORMAT:
            return {"error": f"it was started with --load-format {config.load_config.load_format}"}
        start = config.load_config.model_loader_extra_config
        try:
            pair = orders.started_pair(start)
            return {
                "version": orders.VERSION,
                "stamp": orders.stamp(pair),
                "pair": pair.label,
                "a": start["a"],
                "b": start["b"],
                "device": current_platform.device_type,
                "dtype": str(config.model_config.dtype).removeprefix("torch."),
                "plan_key": HELD.plan_key,
                "turn": f"{HELD.process} {HELD.turn}",
            }
        except SfnError as error:
            return {"error": str(error)}

    def sfn_become(self, order: Order) -> dict[str, Any]:
        """Put the ordered weights in place of those that are held.

        Every tensor is streamed: vLLM's layerwise reload corrupts a fused module of which it gets a part only.
        Errors come back as {"error": sentence, "touched": whether the model is damaged}: an exception would reach the
        app as a bare HTTP 500.
        """
        started = time.perf_counter()
        try:
            stream = Stream(*orders.carry_out(order, self.vllm_config.load_config.model_loader_extra_config))  # type: ignore[attr-defined]
        except SfnError as error:
            return {"error": str(error), "touched": False}
        HELD.change()
        try:
            self.reload_weights(weights_iterator=iter(stream))  # type: ignore[attr-defined]  # vLLM's Worker
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "touched": True}
        if not stream.ended:
            return {"error": "vLLM did not take all of the tensors that it was sent", "touched": True}
        HELD.plan_key = order["plan_key"]
        return {"plan_key": order["plan_key"], "seconds": time.perf_counter() - started}
