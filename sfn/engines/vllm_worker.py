"""What runs inside vLLM's own processes: a load format that streams a recipe's tensors from A's and B's safetensors,
and the calls that change them in a running server. No merged checkpoint is ever written. How a model's weights are
changed and proved is `vllm_holding`'s.

The server is started with `--load-format sfn`, the order in `--model-loader-extra-config`, and
`--worker-extension-cls sfn.engines.vllm_worker.PairWorker`; vLLM imports that class in every worker before it loads a
model, which is what registers the format there. Never imported by the app.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import torch
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER, register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.platforms import current_platform

from sfn.engines import orders
from sfn.engines.orders import Order
from sfn.engines.turns import Turns
from sfn.engines.vllm_holding import Holding
from sfn.errors import SfnError

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
TURNS = Turns()


HOLDINGS: WeakKeyDictionary[torch.nn.Module, Holding] = WeakKeyDictionary()


class PairLoader(BaseModelLoader):
    """vLLM's loader for `--load-format sfn`."""

    def download_model(self, model_config: Any) -> None:
        """Nothing to download: both checkpoints are folders."""

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """First load. Raises SfnError: the order does not fit, or a parameter of the model would stay unset."""
        start = self.load_config.model_loader_extra_config
        pair, sources = orders.carry_out(start, start)
        HELD.change()
        HOLDINGS[model] = Holding(model)
        HOLDINGS[model].load(pair, sources)
        HELD.plan_key = start["plan_key"]


if LOAD_FORMAT not in _LOAD_FORMAT_TO_MODEL_LOADER:
    register_model_loader(LOAD_FORMAT)(PairLoader)


class PairWorker:
    """Mixed into vLLM's worker class; its methods are reached through `/collective_rpc`."""

    def sfn_hello(self, owner: str = "", seconds: float = 0.0) -> dict[str, Any]:
        """What runs here and what it holds; changes nothing but whose turn it is (`turns`): `owner` takes or keeps its
        turn for `seconds`, or with 0 leaves it.

        {"version": of the orders, "stamp": of the pair, "pair": its label, "a", "b": its folders here, "device",
        "dtype", "plan_key": held or None, "turn": token of what is held, "mine": whether it is the owner's turn,
        "again": and nobody else had one since the owner's last}, or {"error": sentence}.
        """
        config = self.vllm_config  # type: ignore[attr-defined]  # vLLM's Worker
        if config.load_config.load_format != LOAD_FORMAT:
            return {"error": f"it was started with --load-format {config.load_config.load_format}"}
        start = config.load_config.model_loader_extra_config
        if owner and not seconds:
            TURNS.leave(owner)
        again = TURNS.last == owner
        mine = bool(owner and seconds) and TURNS.take(owner, seconds, time.monotonic())
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
                "mine": mine,
                "again": mine and again,
            }
        except SfnError as error:
            return {"error": str(error)}

    def sfn_become(self, order: Order, afresh: bool = False, budget_s: float = 1.0) -> dict[str, Any]:
        """Put the ordered weights in place of those that are held, and prove that the model computes with them.

        Only modules of which a tensor's source changes are touched, all of them with `afresh`. After `budget_s` seconds
        the rest is left to the next call: {"left": modules, ...}. What was loaded first is proved by the first call.

        Answers {"plan_key", "left", "modules", "bytes", "seconds", "proved_s", "digest", "nowhere"}, or {"fixed": why
        this model's weights cannot be changed while it runs}. Errors come back as {"error": sentence, "touched":
        whether the model may be damaged}: an exception would reach the app as a bare HTTP 500.
        """
        started = time.perf_counter()
        model = self.model_runner.model  # type: ignore[attr-defined]  # vLLM's Worker
        holding = HOLDINGS[model]
        try:
            start = self.vllm_config.load_config.model_loader_extra_config  # type: ignore[attr-defined]
            pair, sources = orders.carry_out(order, start)
            holding.settle(self.model_config)  # type: ignore[attr-defined]
            if holding.fixed:
                return {"fixed": holding.fixed}
            holding.check(pair, sources)
        except SfnError as error:
            return {"error": str(error), "touched": False}
        if HELD.plan_key != order["plan_key"] or afresh:
            HELD.change()
        try:
            with torch.inference_mode(), set_current_vllm_config(self.vllm_config):  # type: ignore[attr-defined]
                work = holding.become(pair, sources, afresh=afresh, budget_s=budget_s)
        except Exception as error:
            if holding.fixed:
                return {"fixed": holding.fixed}
            HELD.change()
            told = str(error) if isinstance(error, SfnError) else f"{type(error).__name__}: {error}"
            return {"error": told, "touched": True}
        if not work.left:
            HELD.plan_key = order["plan_key"]
        answer = asdict(work) | {"plan_key": order["plan_key"], "digest": holding.digest, "nowhere": holding.nowhere}
        return answer | {"seconds": time.perf_counter() - started}

    def sfn_reread(self) -> dict[str, Any]:
        """Read all weights again: {"digest": as `sfn_become` tells it, "changed": modules that are no longer what was
        proved}."""
        holding = HOLDINGS[self.model_runner.model]  # type: ignore[attr-defined]  # vLLM's Worker
        with torch.inference_mode():
            return {"digest": holding.digest, "changed": holding.reread()}
