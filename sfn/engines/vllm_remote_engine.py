"""The vLLM engine on a server that somebody started elsewhere. The server may have been started again, or given other
weights by another SfN, at any moment: what it holds is asked of its workers before an answer and after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from shlex import quote
from threading import Event
from typing import TYPE_CHECKING, Any

from sfn import recipes
from sfn.engines import vllm_remote
from sfn.engines.base import Piece, Score
from sfn.engines.vllm_engine import VllmEngine
from sfn.engines.vllm_remote import Held, RemoteServer
from sfn.engines.vllm_swap import Became
from sfn.errors import Cancelled, EngineError
from sfn.records import FinishReason, PromptMode

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan, Recipe

_UNKNOWN = "unknown"  # in the place of a plan's key: no plan has it
_LONGEST_S = 1800.0  # what is waited for another SfN's answer to end; a cancel ends it sooner
_FRESH_S = 2.0  # the turn is surely ours for so long after it was taken


class RemoteVllmEngine(VllmEngine):
    """`sfn.engines.base.Engine` on the server at SFN_VLLM_URL; device and dtype, where given, must be the server's.

    Two SfN may drive one server: they take turns (`turns`), an answer each. An answer during which the weights were
    changed all the same is an error, never kept.
    """

    _ended = "the connection to vLLM was lost; the next request tries again"
    _server: RemoteServer | None

    def __init__(self, pair: Pair, *, device: str | None = None, dtype: str | None = None) -> None:
        self._seen = Held(None, "")  # what the server held when the turn was last taken
        self._seen_at = 0.0
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
        try:
            super().be(recipe, cancel=cancel)
            if self._seen.plan_key != self._plan.key and self._look().plan_key != self._plan.key:
                self._end()
                self._tell("dead", recipe=None, plan_key=None)
                raise EngineError(f"Somebody else changed the weights of vLLM at {vllm_remote.place()}. Ask again.")
        finally:
            if self._server is not None:
                self._server.rest()  # an answer is asked next, and takes the turn up again

    def _held(self) -> str | None:
        if not self._alive():
            return None
        self._await_turn()
        # Paused in our turn: who had it before went away in the middle of a change, and only another change goes on.
        halted = not self._seen.again and self._server.paused()
        return _UNKNOWN if halted else self._seen.plan_key or _UNKNOWN

    def _look(self) -> Held:
        self._seen, self._seen_at = self._server.take_turn(), time.monotonic()
        return self._seen

    def _await_turn(self) -> None:
        """Return when no other SfN uses the server."""
        started = time.monotonic()
        while not self._look().mine:
            waited = time.monotonic() - started
            self._tell(
                "loading",
                recipe=None,
                plan_key=None,
                detail=f"waiting for another SfN that uses {self._server.place}, {waited:.0f} s",
            )
            if self._cancel.wait(0.3):
                raise Cancelled("The change of weights was cancelled before it began.")
            if waited > _LONGEST_S:
                raise EngineError(
                    f"Another SfN has been using vLLM at {self._server.place} for {_LONGEST_S / 60:.0f} minutes. Ask "
                    "again later, or let each have a server of its own."
                )

    def _start(self, plan: Plan) -> None:
        """Meet the server; nothing is changed yet."""
        self._end()
        self._became = Became()
        self._tell("starting", recipe=None, plan_key=None, detail=f"asking vLLM at {vllm_remote.place()}")
        server = RemoteServer(self._pair)
        facts = server.greet()
        server.check(facts, self._pair)
        vllm_remote.note(facts)
        self._check_frame(facts, self._device, self._dtype)
        self._limit = facts.context
        self._server, self._plan = server, plan
        self._speech()

    def _prove(self, plan: Plan) -> None:
        """A server that was just met holds the plan, or is made to; then it is warmed up."""
        held = self._held()
        try:
            self._swap(plan)
        except EngineError:
            if held != plan.key or not self._became.fixed:
                raise
            self._note = f"it holds what it was started with: {self._became.fixed}"
        self._tell("starting", detail="warming up vLLM")
        self._warm_up()

    def _swap(self, plan: Plan) -> None:
        self._seen = Held(None, "")
        try:
            super()._swap(plan)
        except (Cancelled, EngineError) as error:
            if isinstance(error, Cancelled) or self._became.fixed:  # others may go on; they ask what it holds
                self._server.call("POST", "/resume")
            if not self._became.fixed:
                raise
            raise EngineError(
                f"{self._unplaced(plan)}: {self._became.fixed}. SfN cannot start a server elsewhere anew; do it there, "
                f"with these weights: {vllm_remote.command(self._pair)} --recipe {quote(recipes.format(plan.recipe))}"
            ) from error

    # -- speaking --------------------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """It is this SfN's turn, and the wanted weights are in place."""
        self._ready()
        if time.monotonic() - self._seen_at > _FRESH_S or not self._seen.mine:
            self._await_turn()
        self._server.go_on()
        if self._seen.plan_key != self._plan.key:
            self.be(self._wanted)
            self._await_turn()

    def _speak(self, *request: Any) -> Iterator[Piece]:
        try:
            self._hold()
            yield from super()._speak(*request)
        finally:
            self._leave()

    def score(self, text: str, *, prompt: str = "", mode: PromptMode = "plain") -> Score:
        try:
            self._hold()
            return super().score(text, prompt=prompt, mode=mode)
        finally:
            self._leave()

    def _confirm(self, finish: FinishReason | None) -> None:
        before, self._seen = self._seen.since, Held(None, "")
        if self._server.leave_turn().since != before:
            raise EngineError(
                f"vLLM at {self._server.place} was given other weights during this answer, by another SfN, or was "
                "started again; the answer is dropped. Ask again."
            )
        if finish == "cancelled":  # not by us: then nothing more is read
            raise EngineError(f"vLLM at {self._server.place} broke off the answer at somebody's wish. Ask again.")

    def _leave(self) -> None:
        """The turn is over, however it ended; a server that is gone has forgotten it."""
        if self._alive() and self._server.in_turn:
            with suppress(EngineError):
                self._server.leave_turn()

    @staticmethod
    def _died(error: EngineError, words: str) -> EngineError:
        return EngineError(f"vLLM was lost while it answered: {error} The next request tries again. {words}")
