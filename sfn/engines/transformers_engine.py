"""The transformers engine: one model in this process, on any device, whose tensors are replaced in place.

Owns the model, its weights and the token loop. Does not own prompts and text (`text`), nor what a recipe means
(`sfn.recipes`, `sfn.surgery`). Imported late, since it imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any

import torch

from sfn import recipes, surgery
from sfn.engines import asking, draw, hardware, layout, text
from sfn.engines.base import Piece, Score, Status
from sfn.errors import Cancelled, EngineError, SfnError
from sfn.records import PromptMode, Sampling

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan, Recipe, Source

# On a CPU, a model of fewer parameters than this is computed by one thread: handing its small products to several costs
# more than it saves, and far more where other work shares the cores (900 against 15 to 300 tokens/s, bundled pair).
_SMALL = 20_000_000
_CHECKED_BYTES = 64 << 20  # of parameters are read back after every swap, at least
_PREFILL = 512  # prompt tokens per forward pass: bounds the memory of a long prompt, and how long a cancel waits


class TransformersEngine:
    """`sfn.engines.base.Engine` on a transformers model.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps"; None takes a GPU where torch sees one.
        dtype: "bfloat16", "float16", "float32"; None takes A's stored dtype on a GPU and float32 on a CPU, where it is
            several times faster than bfloat16 (unless memory is too small for it).
    """

    def __init__(self, pair: Pair, *, device: str | None = None, dtype: str | None = None) -> None:
        from transformers import __version__

        self._pair = pair
        self._source = (
            pair.unmapped()
        )  # weights are read as copies: a file that is cut meanwhile is an error, not death
        self._device = _device(hardware.device_for("transformers", device))
        self._dtype = hardware.dtype_for("transformers", pair, self._device.type, dtype)
        self._model: Any = None
        self._groups: tuple[layout.Group, ...] = ()
        self._held: dict[str, Source] = {}  # what each tensor holds; a name that is not there is unknown
        self._sums: dict[str, int] = {}  # checksum that each parameter must have
        self._seen: dict[
            tuple[str, str], int
        ] = {}  # (parameter, "A" or "B") -> its checksum when it came whole from there
        self._turn = 0  # the group whose turn it is to be read back
        self._speeches: dict[str, text.Speech] = {}
        self._wanted: Recipe = recipes.Recipe()
        self._plan: Plan | None = None
        self._limit = asking.context_limit(pair.a.config)
        self._status = Status("transformers", __version__, self._device.type, self._dtype, "stopped", None, None)

    @property
    def status(self) -> Status:
        return self._status

    def __enter__(self) -> TransformersEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._model, self._groups, self._held, self._sums, self._plan = None, (), {}, {}, None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._tell("stopped", recipe=None, plan_key=None)

    # -- weights ---------------------------------------------------------------------------------------------------

    def be(self, recipe: Recipe, *, cancel: Event | None = None) -> None:
        plan = recipes.resolve(recipe, self._pair)
        self._wanted = recipe
        if self._plan is not None and self._plan.key == plan.key:
            self._plan = plan
            self._tell("idle", recipe=recipes.format(recipe))
            return
        sources = surgery.live_sources(self._pair, plan)
        self._plan = None
        try:
            if self._model is None:
                self._tell("starting", recipe=None, plan_key=None, detail=f"building {self._pair.a.label}")
                self._build(sources)
            with _threads(1 if self._device.type == "cpu" else None):
                # Several threads would wait for each other at every small step: half the work, and on a busy machine a
                # fifth of the time, is what one takes (0.04 against 0.23 s for the o_proj of 216 M parameters).
                self._apply(sources, cancel)
        except BaseException as error:
            # Cancelled, or a file cannot be read: what is held is known, tensor by tensor. Else nothing is trusted.
            known = isinstance(error, SfnError) and not isinstance(error, EngineError)
            self._held = self._held if known else {}
            self._tell("idle" if known else "dead", recipe=None, plan_key=None, detail=str(error))
            if isinstance(error, SfnError) or not isinstance(error, Exception):
                raise
            raise EngineError(
                f"The weights of “{recipes.format(recipe) or 'all A'}” could not be put in place: {error}. "
                "The next request loads all of them again."
            ) from error
        self._plan = plan
        self._tell("idle", recipe=recipes.format(recipe), plan_key=plan.key)

    def _build(self, sources: Mapping[str, Source]) -> None:
        """Build A's model, untied and empty."""
        shapes = {name: self._pair.info("A", name).shape for name in sources}
        with _quiet():
            try:
                model = layout.skeleton(self._pair.a, shapes, getattr(torch, self._dtype))
            except Exception as error:  # whatever transformers raises here is about this folder
                folder = self._pair.a.folder
                raise EngineError(f"transformers cannot build a language model from {folder}: {error}") from error
        groups, _ = layout.groups(model, sources)
        if empty := layout.missing(model, groups):
            raise EngineError(
                f"{self._pair.a.label} has no tensor for {', '.join(sorted(empty)[:3])}"
                f"{' and others' if len(empty) > 3 else ''}, which its architecture needs: it is incomplete."
            )
        self._model, self._groups = model.to(self._device), groups

    def _apply(self, sources: Mapping[str, Source], cancel: Event | None) -> None:
        """Copy what differs from what is held; a parameter of several tensors is put together anew as a whole.

        Raises Cancelled between two parameters, with `_held` telling what each tensor of the model is.
        """
        todo = [g for g in self._groups if any(self._held.get(n) != sources[n] for n in g.names)]
        state = "starting" if not self._held else "loading"
        for done, group in enumerate(todo):
            progress = f"{done} of {len(todo)} parameters in place"
            if cancel is not None and cancel.is_set():
                raise Cancelled(f"The change of weights was cancelled with {progress}.")
            self._tell(state, recipe=None, plan_key=None, detail=progress)
            self._put(group, sources)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._check(todo)

    def _put(self, group: layout.Group, sources: Mapping[str, Source]) -> None:
        """Put one group in place, and note what its parameters must read as from now on."""
        for name in group.names:
            self._held.pop(name, None)
        sums = layout.put(self._model, group, lambda name: surgery.build(self._source, name, sources[name]))
        kinds = {sources[name].kind for name in group.names}
        for target, found in sums.items():
            if kinds in ({"A"}, {"B"}) and self._seen.setdefault((target, *kinds), found) != found:
                raise EngineError(
                    f"{target} of {kinds.pop()} was read from the files again and is not what it was the first time: "
                    "the disk or the memory of this machine is not reliable. The next request loads everything anew."
                )
        self._sums |= sums
        self._held.update((name, sources[name]) for name in group.names)

    def _check(self, written: list[layout.Group]) -> None:
        """Read back what was written, then as much of the rest, in turn, as costs no more (of a small model: all).

        Raises EngineError for a parameter that is not what was last put there.
        """
        budget = max(_CHECKED_BYTES, sum(map(self._compare, written)))
        for _ in self._groups:
            if budget <= 0:
                return
            budget -= self._compare(self._groups[self._turn])
            self._turn = (self._turn + 1) % len(self._groups)

    def _compare(self, group: layout.Group) -> int:
        """Bytes of the group's parameters, each of which was read and has its checksum."""
        for target in group.targets:
            if layout.checksum(self._model, target) != self._sums[target]:
                raise EngineError(
                    f"{target} does not hold what was put there; something else wrote into the model's memory. The "
                    "next request loads everything anew."
                )
        return layout.size_bytes(self._model, group)

    def _ready(self) -> text.Speech:
        """Weights in place (after a death: again), and the speech of the side whose head they have."""
        if self._plan is None:
            self.be(self._wanted)
        side = self._plan.tokenizer
        if side not in self._speeches:
            here = {"A": self._pair.a, "B": self._pair.b}[side]
            ends = text.end_ids(self._pair.a.folder)
            self._speeches[side] = text.load(here.speech_folder(), here.label, extra_end_ids=ends)
        return self._speeches[side]

    def _tell(self, state: str, *, detail: str = "", **changes: object) -> None:
        self._status = replace(self._status, state=state, detail=detail, **changes)

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
        n = 0
        try:
            for token in self._tokens(ids, how, cancel):
                n += 1
                new, ended = answer.push(token)
                finish = "stop" if ended else "length" if n == count else None
                if finish == "length":
                    new += answer.flush()
                yield Piece(new, n, len(ids), time.perf_counter() - started, finish)
                if finish:
                    return
            yield Piece(answer.flush(), n, len(ids), time.perf_counter() - started, "cancelled")
        except RuntimeError as error:
            raise self._failed(error) from error
        finally:
            if self._status.state == "busy":
                self._tell("idle")

    def _tokens(self, ids: list[int], how: Sampling, cancel: Event) -> Iterator[int]:
        """Token ids without end, until `cancel` is set. The cache follows the model's own layer types."""
        from transformers import DynamicCache

        generator = torch.Generator(self._device).manual_seed(how.seed % 2**63)
        cache = DynamicCache(config=self._model.config)
        for start in range(0, len(ids), _PREFILL):
            if cancel.is_set():
                return
            logits = self._forward(ids[start : start + _PREFILL], cache)
        while not cancel.is_set():
            token = draw.token(logits[0, -1], how, generator)
            yield token
            logits = self._forward([token], cache)

    @torch.inference_mode()
    def _forward(self, ids: list[int], cache: Any, *, keep: int = 1) -> torch.Tensor:
        """Logits (1, keep, vocabulary) after `ids`; keep 0 gives them for all."""
        tokens = torch.tensor([ids], device=self._device)
        with _threads(1 if self._device.type == "cpu" and self._pair.a.parameters < _SMALL else None):
            return self._model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits

    def score(self, text: str, *, prompt: str = "", mode: PromptMode = "plain") -> Score:
        speech = self._ready()
        before, ids = speech.scored_ids(text, prompt, mode)
        asking.score_length(len(before) + len(ids), self._limit)
        self._tell("busy")
        try:
            logprobs = tuple(self._logprobs([*before, *ids])[-len(ids) :])
        except RuntimeError as error:
            raise self._failed(error) from error
        finally:
            if self._status.state == "busy":
                self._tell("idle")
        texts = speech.token_texts(before, ids)
        return Score(tuple(ids), texts[len(texts) - len(logprobs) :], logprobs)

    def _logprobs(self, ids: list[int]) -> list[float]:
        """Natural log-probability of every id after the first, given those before it; float32 log-softmax."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        found: list[float] = []
        for start in range(0, len(ids) - 1, _PREFILL):
            part = ids[start : min(start + _PREFILL, len(ids) - 1)]
            logits = self._forward(part, cache, keep=0)[0].float()  # (part, vocabulary)
            targets = torch.tensor(ids[start + 1 : start + 1 + len(part)], device=self._device)
            found += logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].tolist()
        return found

    def _failed(self, error: RuntimeError) -> EngineError:
        """Out of memory leaves the weights whole; after anything else they are not trusted any more."""
        if isinstance(error, torch.OutOfMemoryError):
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            return EngineError(f"There is not enough memory on {self._device} for this request: {error}")
        self._plan, self._held = None, {}
        self._tell("dead", recipe=None, plan_key=None, detail=str(error))
        return EngineError(f"The model failed while it answered: {error}. The next request loads it again.")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """torch's threads for this thread's work, set back afterwards; None leaves them as they are."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EngineError(f'The device "{name}" cannot be used here: {error}. "cpu" always can.') from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and warnings: it would draw a bar over nothing, and `layout.missing` is our check."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
