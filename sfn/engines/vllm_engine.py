"""The vLLM engine: a vLLM server in a process of its own whose weights follow the recipe. Owns the server's life and
what is said to it; does not own the process mechanics (`vllm_server`), nor the weights' way into vLLM (`vllm_swap`, and
`vllm_worker` on the other side).
"""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any

from sfn import recipes
from sfn.engines import asking, hardware, orders, text, vllm_command, vllm_server, vllm_swap
from sfn.engines.base import Piece, Score, Status
from sfn.errors import Cancelled, EngineError, SfnError
from sfn.records import FinishReason, PromptMode, Sampling

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan, Recipe

_START_S = 900.0  # a large model read from a slow disk takes minutes
_UNKNOWN = "unknown"  # in the place of a plan's key: no plan has it
_open_engines: weakref.WeakSet[VllmEngine] = weakref.WeakSet()


class VllmEngine:
    """`sfn.engines.base.Engine` on a vLLM server.

    Args:
        device: "cpu" or "cuda", which must be what the installed vLLM was built for; None takes that.
        dtype: None takes the dtype in which A is stored.

    The environment variable SFN_VLLM_ARGS holds further arguments of `vllm serve`, which win over SfN's own
    (`--tensor-parallel-size 2`, `--gpu-memory-utilization 0.5`, `--max-model-len 65536`).
    """

    def __init__(self, pair: Pair, *, device: str | None = None, dtype: str | None = None) -> None:
        self._pair = pair
        version, self._device, self._dtype, self._limit = self._facts(device, dtype)
        self._server: vllm_server.Server | None = None
        self._speeches: dict[str, text.Speech] = {}
        self._wanted: Recipe = recipes.Recipe()
        self._plan: Plan | None = None
        self._became = vllm_swap.Became()
        self._note = ""  # of the last change of weights, for who reads the status
        self._cancel = Event()  # of the change of weights that is under way
        self._status = Status("vllm", version, self._device, self._dtype, "stopped", None, None)
        _open_engines.add(self)

    def _facts(self, device: str | None, dtype: str | None) -> tuple[str, str, str, int]:
        """Version, device, dtype and longest context in tokens of the server that will be started."""
        from sfn.engines import version_of

        device = _device(device)
        length = vllm_command.context(self._pair, device, vllm_command.given_options())
        return version_of("vllm"), device, hardware.dtype_for("vllm", self._pair, device, dtype), length

    @property
    def status(self) -> Status:
        status = self._status
        if status.state in ("idle", "busy") and not self._alive():
            return replace(status, state="dead", recipe=None, plan_key=None, detail=self._ended)
        return status

    _ended = "vLLM's process ended; the next request starts it"

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._end()
        self._tell("stopped", recipe=None, plan_key=None)

    def _end(self) -> None:
        server, self._server, self._plan = self._server, None, None
        if server is not None:
            server.close()

    def _alive(self) -> bool:
        return self._server is not None and self._server.alive

    def _tell(self, state: str, *, detail: str = "", **changes: object) -> None:
        self._status = replace(self._status, state=state, detail=detail, **changes)

    @property
    def became(self) -> vllm_swap.Became:
        """What the last change of weights took, or why they cannot be changed while vLLM runs."""
        return self._became

    # -- weights ---------------------------------------------------------------------------------------------------

    def be(self, recipe: Recipe, *, cancel: Event | None = None) -> None:
        plan = recipes.resolve(recipe, self._pair)
        self._cancel = cancel or Event()
        if self._cancel.is_set():
            raise Cancelled("The change of weights was cancelled before it began.")
        before, self._note = self._status, ""
        wanted, self._wanted = self._wanted, recipe
        try:
            held = self._held()
            if held is None or (held != plan.key and self._became.fixed):
                self._start(plan)
                self._prove(plan)
            elif held != plan.key:
                self._swap(plan)
        except vllm_swap.Refused as error:
            self._status, self._wanted = before, wanted
            raise EngineError(f"{self._unplaced(plan)}: {error}. It still holds what it held.") from error
        except Cancelled:
            self._plan = None
            self._tell("idle" if self._alive() else "stopped", recipe=None, plan_key=None, detail="cancelled")
            raise
        except BaseException as error:
            self._end()
            self._tell("dead", recipe=None, plan_key=None, detail=str(error))
            raise
        self._plan = plan
        self._tell("idle", recipe=recipes.format(recipe), plan_key=plan.key, detail=self._note)

    def _held(self) -> str | None:
        """Key of the plan whose weights the server holds; None where a server has to be started first."""
        if not self._alive():
            return None
        return _UNKNOWN if self._plan is None else self._plan.key

    def _start(self, plan: Plan) -> None:
        """A new server that holds the plan's weights from the start, warmed up."""
        self._end()
        self._tell("starting", recipe=None, plan_key=None, detail="starting vLLM")
        # Nobody else can enter the folder of its socket; a key of the user's for other servers would shut us out.
        environment = vllm_command.environment(vllm_command.given_options()) | {"VLLM_API_KEY": ""}
        self._server = vllm_server.start(self._arguments(plan), environment)
        self._server.wait_ready(_START_S, lambda detail: self._tell("starting", detail=detail))
        self._tell("starting", detail="warming up vLLM")
        self._plan = plan
        self._speech()  # the tokenizer takes a second or two to load
        self._warm_up()

    def _warm_up(self) -> None:
        """One request of each kind: the first ones take seconds, and show whether vLLM has kernels for this model."""
        try:
            for temperature in (0.0, 1.0):
                how = Sampling(max_tokens=2, temperature=temperature, top_p=0.9, top_k=5)
                request = _answer_request([0, 0], how, 2, frozenset())
                list(self._server.stream("/v1/completions", request, Event()))
            self._server.call("POST", "/v1/completions", _score_request([0, 0]))
        except EngineError as error:
            raise EngineError(f"vLLM cannot run this model ({error}). {self._server.last_words()}") from error

    def _prove(self, plan: Plan) -> None:
        """Have a new server prove that it holds `plan`, and say whether it can become another while it runs."""
        self._tell("starting", detail="checking the weights")
        self._became = self._become(plan)
        if self._became.fixed:
            self._note = f"vLLM is started anew for every recipe: {self._became.fixed}"

    def _swap(self, plan: Plan) -> None:
        """Other weights into the running server: pause, change, drop what was computed with the old ones, resume."""
        if lost := self._became.nowhere.intersection(plan.moved):
            raise vllm_swap.Refused(f"vLLM has no place for {sorted(lost)[0]} in this model")
        server = self._server
        self._tell("loading", recipe=None, plan_key=None, detail=plan.sentence)
        self._pause()
        try:
            self._became = self._become(plan)
        except vllm_swap.Refused:
            server.call("POST", "/resume")
            raise
        if self._became.fixed:
            raise EngineError(f"{self._unplaced(plan)}, {self._became.fixed}. It has to be started anew with them.")
        if not server.call("POST", "/reset_prefix_cache")["success"]:
            raise EngineError("vLLM would not drop what it had computed with the old weights; it is started anew.")
        server.call("POST", "/resume")

    def _become(self, plan: Plan) -> vllm_swap.Became:
        """The paused server's workers hold `plan`; after a failure midway, all weights are put in place again."""
        order = orders.order(self._pair, plan)

        def tell(detail: str) -> None:
            self._tell(self._status.state, detail=detail)

        try:
            return vllm_swap.become(self._server, order, tell=tell, cancel=self._cancel)
        except vllm_swap.Damaged as error:
            self._note = f"all weights were put in place again after a failure: {error}"
            tell(self._note)
        try:
            return vllm_swap.become(self._server, order, afresh=True, tell=tell, cancel=self._cancel)
        except vllm_swap.Damaged as error:
            log = self._server.log
            raise EngineError(
                f"{self._unplaced(plan)}, twice: {error}. The next request starts it anew. Its log: {log}"
            ) from error

    @staticmethod
    def _unplaced(plan: Plan) -> str:
        return f"vLLM could not put the weights of “{recipes.format(plan.recipe) or 'all A'}” in place"

    def _pause(self) -> None:
        """Hold the server still for a change of weights; what it was still asked by us is dropped."""
        self._server.call("POST", "/pause?mode=abort")

    def _confirm(self, finish: FinishReason | None) -> None:
        """Raise EngineError unless all of the answer that ended so came from the weights that it was asked of. Nobody
        else can reach this server, so there is nothing to ask."""

    def same_numbers(self) -> dict[str, Any]:
        """The engine's settings that decide its numbers, by the names of `vllm.LLM`: for one to compare it with."""
        return vllm_command.numbers(self._pair, device=self._device, dtype=self._dtype, length=self._limit)

    def _arguments(self, plan: Plan) -> list[str]:
        given = vllm_command.given_options()
        return vllm_command.arguments(self._pair, plan, device=self._device, dtype=self._dtype, given=given)

    def _ready(self) -> text.Speech:
        """A server that holds the wanted weights (after a death: a new one), and the speech of the head's side."""
        if self._plan is None or not self._alive():
            self.be(self._wanted)
        return self._speech()

    def _speech(self) -> text.Speech:
        side = self._plan.tokenizer
        if side not in self._speeches:
            here = {"A": self._pair.a, "B": self._pair.b}[side]
            ends = text.end_ids(self._pair.a.folder)
            self._speeches[side] = text.load(here.speech_folder(), here.label, extra_end_ids=ends)
        return self._speeches[side]

    # -- speaking --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str,
        *,
        mode: PromptMode = "plain",
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: tuple[str, ...] = (),
        cancel: Event | None = None,
    ) -> Iterator[Piece]:
        how = asking.sampling(
            max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, stop=stop
        )
        speech = self._ready()
        ids = speech.prompt_ids(prompt, mode)
        count = asking.room(len(ids), self._limit, how.max_tokens)
        return self._speak(speech, ids, how, count, cancel or Event())

    def _speak(self, speech: text.Speech, ids: list[int], how: Sampling, count: int, cancel: Event) -> Iterator[Piece]:
        started = time.perf_counter()
        self._tell("busy")
        answer = text.Answer(speech, ids, how.stop)
        request = _answer_request(ids, how, count, speech.end_ids)
        n = 0

        def piece(new: str, finish: FinishReason | None) -> Piece:
            return Piece(new, n, len(ids), time.perf_counter() - started, finish)

        try:
            with closing(self._server.stream("/v1/completions", request, cancel)) as events:
                for choice in (choice for event in events for choice in event["choices"]):
                    tokens = choice.get("token_ids") or ()
                    new, taken, ended = answer.push_all(tokens)
                    n += taken
                    finish = "stop" if ended else _finish(choice["finish_reason"])
                    if finish and not ended:
                        new += answer.flush()
                    if finish:
                        self._confirm(finish)
                    if tokens or finish:
                        yield piece(new, finish)
                    if finish:
                        return
            self._confirm(None)
            yield piece(answer.flush(), "cancelled")
        except EngineError as error:
            raise self._failed(error) from error
        finally:
            if self._status.state == "busy":
                self._tell("idle")

    def score(self, text: str, *, prompt: str = "", mode: PromptMode = "plain") -> Score:
        speech = self._ready()
        before, ids = speech.scored_ids(text, prompt, mode)
        asking.score_length(len(before) + len(ids) + 1, self._limit)  # one token has to be generated
        self._tell("busy")
        try:
            choice = self._server.call("POST", "/v1/completions", _score_request([*before, *ids]))["choices"][0]
            self._confirm("length")
        except EngineError as error:
            raise self._failed(error) from error
        finally:
            if self._status.state == "busy":
                self._tell("idle")
        pairs = list(zip([*before, *ids], choice["prompt_logprobs"], strict=True))[1:]
        logprobs = tuple(float(entry[str(token)]["logprob"]) for token, entry in pairs[-len(ids) :])
        texts = speech.token_texts(before, ids)
        return Score(tuple(ids), texts[len(texts) - len(logprobs) :], logprobs)

    def _failed(self, error: EngineError) -> EngineError:
        """The error to raise: a refusal as it is; where the server died, its last words, and a dead engine."""
        server = self._server
        for _ in range(20):  # the connection breaks a moment before the process is gone
            if server is None or not server.alive:
                break
            time.sleep(0.05)
        else:
            if self._healthy(server):
                return error
        self._end()
        words = server.last_words() if server is not None else ""
        self._tell("dead", recipe=None, plan_key=None, detail=str(error))
        return self._died(error, words)

    @staticmethod
    def _died(error: EngineError, words: str) -> EngineError:
        return EngineError(f"vLLM died while it answered ({error}); the next request starts it again. {words}")

    @staticmethod
    def _healthy(server: vllm_server.Server) -> bool:
        try:
            server.call("GET", "/health", timeout_s=10)
        except SfnError:
            return False
        return True


def _finish(reason: str | None) -> FinishReason | None:
    """vLLM's reason in our words; an answer that vLLM itself aborted counts as cancelled."""
    return reason if reason in (None, "stop", "length") else "cancelled"


def _answer_request(ids: list[int], how: Sampling, count: int, end_ids: frozenset[int]) -> dict[str, Any]:
    """Tokens in, tokens out. Ends are the side's own, so A's, which vLLM knows, are switched off; stop strings are cut
    by us, from text that our decoder makes."""
    return {
        "model": vllm_command.MODEL,
        "prompt": ids,
        "max_tokens": count,
        "temperature": how.temperature,
        "top_p": how.top_p,
        "top_k": how.top_k,
        "seed": how.seed % 2**63,
        "ignore_eos": True,
        "stop_token_ids": sorted(end_ids),
        "return_token_ids": True,
        "skip_special_tokens": False,
        "stream": True,
    }


def _score_request(ids: list[int]) -> dict[str, Any]:
    return {
        "model": vllm_command.MODEL,
        "prompt": ids,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
        "return_token_ids": True,
    }


def _device(wanted: str | None) -> str:
    built_for = hardware.device_for("vllm")
    if wanted is not None and wanted.partition(":")[0] != built_for:
        raise EngineError(
            f'The vLLM that is installed computes on "{built_for}", not on "{wanted}"; '
            "the engine transformers takes any device."
        )
    return built_for


@atexit.register
def _close_all() -> None:
    for engine in list(_open_engines):
        engine.close()
