"""What is said to a running vLLM server to change its weights, and what its workers answer. Does not pause or resume
the server, and decides nothing about its life.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

from sfn.errors import Cancelled, EngineError
from sfn.records import content_key

if TYPE_CHECKING:
    from sfn.engines.orders import Order
    from sfn.engines.vllm_http import HttpServer

_STEP_S = 1.0  # after so long the workers answer though they are not done: for progress, and for a cancel
_LONGEST_S = 900.0  # one module of a large model, from a slow disk


class Refused(EngineError):
    """The workers did not take the order; nothing was touched."""


class Damaged(EngineError):
    """Changing the weights failed midway, or they cannot be proved to be in place: nothing may be generated now."""


@dataclass(frozen=True, slots=True)
class Became:
    """What became of an order, of all workers together.

    Attributes:
        fixed: why the model's weights cannot be changed while it runs, or ""; then nothing was done.
        modules, bytes: put in place; the same tensors are read by every worker, and counted once.
        seconds: that the slowest worker took; proved_s: of these, for proving what was put in place.
        digest: of all weights as they were last proved; equal for equal weights on the same machine.
        nowhere: tensors of the checkpoint that the model has no place for.
    """

    fixed: str = ""
    modules: int = 0
    bytes: int = 0
    seconds: float = 0.0
    proved_s: float = 0.0
    digest: str = ""
    nowhere: frozenset[str] = frozenset()


def become(
    server: HttpServer,
    order: Order,
    *,
    afresh: bool = False,
    tell: Callable[[str], None] = lambda detail: None,
    cancel: Event | None = None,
) -> Became:
    """Have the workers hold what `order` says, and prove it; afresh: every module, whatever they hold.

    `tell` hears the progress of what takes longer than a second. Raises Refused, Damaged, EngineError for a server that
    does not answer, and Cancelled: each module is then whole, but some hold other weights than the rest.
    """
    modules, size, seconds, proved_s = 0, 0, 0.0, 0.0
    while True:
        keywords = {"order": dict(order), "afresh": afresh, "budget_s": _STEP_S}
        body = {"method": "sfn_become", "kwargs": keywords, "timeout": _LONGEST_S}
        results = server.call("POST", "/collective_rpc", body, timeout_s=_LONGEST_S)["results"]
        _check(results)
        if fixed := next((result["fixed"] for result in results if "fixed" in result), ""):
            return Became(fixed=fixed)
        modules += max(result["modules"] for result in results)
        size += max(result["bytes"] for result in results)
        seconds += max(result["seconds"] for result in results)
        proved_s += max(result["proved_s"] for result in results)
        left = max(result["left"] for result in results)
        if not left:
            digest = content_key([result["digest"] for result in results])
            nowhere = frozenset.intersection(*(frozenset(result["nowhere"]) for result in results))
            return Became("", modules, size, seconds, proved_s, digest, nowhere)
        tell(f"{modules} modules in place and checked ({size / 1e9:.1f} GB), {left} to go")
        if cancel is not None and cancel.is_set():
            raise Cancelled("The change of weights was cancelled; the next request goes on from there.")
        afresh = False  # what is done stays done


def _check(results: Sequence[Mapping[str, Any]]) -> None:
    """Raise where a worker reports an error."""
    if errors := [result for result in results if "error" in result]:
        touched = len(errors) < len(results) or any(result["touched"] for result in errors)
        raise (Damaged if touched else Refused)(str(errors[0]["error"]))
