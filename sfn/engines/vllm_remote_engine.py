"""The vLLM engine on a server that somebody started elsewhere. The server may have been started again, or given other
weights by another SfN, at any moment: what it holds is asked of its workers before an answer and after it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

from sfn.engines import text, vllm_remote
from sfn.engines.vllm_engine import VllmEngine
from sfn.engines.vllm_remote import Held, RemoteServer
from sfn.errors import Cancelled, EngineError
from sfn.records import FinishReason

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan, Recipe

_UNKNOWN = "unknown"  # in the place of a plan's key: no plan has it
_TURN_S = 120.0  # what is waited for another SfN's answer, or change of weights, to end
_TRIES = 3  # so often weights are put in place that another SfN replaces at once
_FRESH_S = 0.2  # so long it is believed that nothing changed; the question after an answer has the last word


class RemoteVllmEngine(VllmEngine):
    """`sfn.engines.base.Engine` on the server at SFN_VLLM_URL; device and dtype, where given, must be the server's.

    Two SfN may drive one server: each waits for the other's answer to end before it changes the weights, and an answer
    during which they were changed is an error, never kept.
    """

    _ended = "the connection to vLLM was lost; the next request tries again"
    _server: RemoteServer | None

    def __init__(self, pair: Pair, *, device: str | None = None, dtype: str | None = None) -> None:
        self._seen = Held(None, "")  # what the server held when it was last asked
        self._seen_at = 0.0
        self._changing = False  # from the pause before a change of weights until it is over
        self._cancel = Event()
        super().__init__(pair, device=device, dtype=dtype)
        self._status = replace(self._status, place=vllm_remote.place())

    def _facts(self, device: str | None, dtype: str | None) -> tuple[str, str, str, int]:
        facts = vllm_remote.facts(self._pair, wait_s=30.0)
        self._check_frame(facts, device, dtype)
        return facts.version, facts.device, facts.dtype, facts.context

    @staticmethod
    def _check_frame(facts: vllm_remote.Facts, device: str | None, dtype: str | None) -> None:
        for name, wanted, there in (("device", device, facts.device), ("dtype", dtype, facts.dtype)):
            if wanted is not None and wanted.partition(":")[0] != there:
                raise EngineError(
                    f"vLLM at {vllm_remote.place()} computes with {name} {there}, not {wanted}: it was started again "
                    "in the meantime, or another engine was meant. Ask again."
                )

    # -- weights ---------------------------------------------------------------------------------------------------

    def be(self, recipe: Recipe, *, cancel: Event | None = None) -> None:
        self._cancel = cancel or Event()
        for _ in range(_TRIES):
            super().be(recipe, cancel=cancel)
            if self._seen.plan_key == self._plan.key or self._look().plan_key == self._plan.key:
                return
        raise EngineError(
            f"Another SfN that drives vLLM at {self._server.place} changes its weights as fast as this one. Ask again, "
            "or let each have a server of its own."
        )

    def _held(self) -> str | None:
        if not self._alive():
            return None
        free = self._await_turn()
        return (self._look().plan_key if free else None) or _UNKNOWN

    def _look(self) -> Held:
        self._seen, self._seen_at = self._server.held(), time.monotonic()
        return self._seen

    def _await_turn(self) -> bool:
        """Wait while another SfN changes the weights. False if the server stays paused: whoever did that, this SfN or
        another, went away in the middle of it, and it takes a change of weights to go on."""
        started = time.monotonic()
        while self._server.paused():
            if self._changing or time.monotonic() - started > _TURN_S:
                return False
            self._tell("loading", recipe=None, plan_key=None, detail="another SfN changes the weights")
            if self._cancel.wait(0.5):
                raise Cancelled("The change of weights was cancelled before it began.")
        return True

    def _start(self, plan: Plan) -> None:
        """Meet the server, and put the weights in place unless it holds them already."""
        self._end()
        self._tell("starting", recipe=None, plan_key=None, detail=f"asking vLLM at {vllm_remote.place()}")
        server = RemoteServer(self._pair)
        facts = server.greet()
        server.check(facts, self._pair)
        vllm_remote.note(facts)
        self._check_frame(facts, self._device, self._dtype)
        self._limit = facts.context
        self._server, self._plan = server, plan
        self._speech()
        if self._held() != plan.key:
            self._swap(plan)
        self._tell("starting", detail="warming up vLLM")
        self._warm_up()

    def _swap(self, plan: Plan) -> None:
        self._seen = Held(None, "")
        self._changing = True
        super()._swap(plan)
        self._changing = False

    def _pause(self) -> None:
        """As soon as what others were asked has ended: their answers are not this SfN's to break off."""
        server, started = self._server, time.monotonic()

        def leave() -> bool:
            waited = time.monotonic() - started
            if waited > 1:
                self._tell("loading", detail="waiting for an answer that another SfN asked for")
            return self._cancel.is_set() or waited > _TURN_S

        try:
            server.call("POST", "/pause?mode=wait", leave=leave)
        except Cancelled:
            server.call("POST", "/resume")
            self._changing = False
            if self._cancel.is_set():
                raise
            raise EngineError(
                f"vLLM at {server.place} has been answering somebody else for {_TURN_S:.0f} s. Ask again later, or let "
                "each SfN have a server of its own."
            ) from None

    # -- speaking --------------------------------------------------------------------------------------------------

    def _ready(self) -> text.Speech:
        if self._plan is None or not self._alive() or time.monotonic() - self._seen_at > _FRESH_S:
            self.be(self._wanted)
        return self._speech()

    def _confirm(self, finish: FinishReason | None) -> None:
        before = self._seen.turn
        if self._look().turn != before:
            raise EngineError(
                f"vLLM at {self._server.place} was given other weights during this answer, by another SfN, or was "
                "started again; the answer is dropped. Ask again."
            )
        if finish == "cancelled":  # not by us: then nothing more is read
            raise EngineError(f"vLLM at {self._server.place} broke off the answer at somebody's wish. Ask again.")

    @staticmethod
    def _died(error: EngineError, words: str) -> EngineError:
        return EngineError(f"vLLM was lost while it answered: {error} The next request tries again. {words}")
