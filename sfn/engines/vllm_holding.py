"""Which weights a running vLLM model holds, and becoming others: only modules of which a tensor's source changes are
touched, each as a whole, and each is proved afterwards. One per model and worker; every rank does the same with its
part. Does not know how modules keep their weights (`vllm_forms`).
"""

from __future__ import annotations

import ctypes
import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from vllm.platforms import current_platform

from sfn import surgery
from sfn.engines import vllm_forms
from sfn.engines.vllm_forms import Form, Scratch
from sfn.engines.vllm_places import Parameter, Watch
from sfn.errors import EngineError
from sfn.pairs import Pair
from sfn.recipes import Source

_REMEMBERED = 16  # digests of a module, one for each set of sources that it was seen with
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt


@dataclass
class Work:
    """What becoming took. seconds: all of it; proved_s: of these, for proofs; bytes: of the tensors put in place;
    left: modules that still hold other weights."""

    seconds: float = 0.0
    proved_s: float = 0.0
    bytes: int = 0
    modules: int = 0
    left: int = 0


class Holding:
    """The weights of one loaded model.

    Attributes:
        fixed: why they cannot be changed while the model runs, or "".
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._watch: Watch | None = Watch(model)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._forms: list[Form] = []
        self._first: dict[str, Source] = {}  # what every tensor's source was at the first load
        self._held: dict[str, dict[str, Source]] = {}  # module -> its tensors' sources; not there: unknown or unproved
        self._digests: dict[str, str] = {}
        self._seen: dict[str, OrderedDict[tuple[Source, ...], str]] = {}
        self._unread: dict[str, dict[str, Source]] = {}  # as loaded first: to be proved, needs no putting in place
        self.fixed = ""

    # -- the first load ----------------------------------------------------------------------------------------------

    def load(self, pair: Pair, sources: Mapping[str, Source]) -> None:
        """Fill the new model by its own loader, and note where everything goes.

        Raises EngineError where a parameter of the model stays unset, or a tensor is not taken.
        """
        watch = self._watch
        assert watch is not None
        if current_platform.is_cpu():
            _keep_memory()
        tensors = ((name, surgery.build(pair, name, source)) for name, source in sources.items())
        with watch:
            loaded = self._model.load_weights(watch.stream(tensors))
        if loaded is not None and (unset := {name for name, _ in self._model.named_parameters()} - set(loaded)):
            raise EngineError(f"No tensor of the pair fills {_some(unset)}: A is incomplete.")
        if len(watch.shapes) < len(sources):
            raise EngineError(f"vLLM took {len(watch.shapes)} of {len(sources)} tensors that it was sent.")
        self._first, self._shapes = dict(sources), watch.shapes

    def settle(self, model_config: Any) -> None:
        """Find every module's form, once vLLM has brought all weights into the form that it computes with."""
        if self._watch is None:
            return
        places, self._watch = self._watch.finish(), None
        self.fixed = _fixed(self._model, model_config)
        by_module: dict[str, dict[str, Parameter]] = {}
        for (path, name), place in places.items():
            by_module.setdefault(path, {})[name] = place
        for path, parameters in by_module.items():
            form = vllm_forms.form_of(path, self._model.get_submodule(path), parameters)
            if isinstance(form, Form):
                self._forms.append(form)
                self._unread[path] = _of(form, self._first)
            else:
                self.fixed = self.fixed or form

    # -- becoming ----------------------------------------------------------------------------------------------------

    @property
    def nowhere(self) -> list[str]:
        """Tensors that this worker's part of the model has no place for."""
        placed = {name for form in self._forms for name in form.names}
        return [name for name in self._shapes if name not in placed]

    def check(self, pair: Pair, sources: Mapping[str, Source]) -> None:
        """Whether `sources` can be put in place, from headers alone. Raises EngineError; nothing is touched."""
        if strange := sources.keys() ^ self._shapes.keys():
            raise EngineError(f"The model was loaded with other tensors: {_some(strange)}.")
        for name, source in sources.items():
            for side in ("A", "B") if source.needs_b else ("A",):
                info = pair.info(side, name)
                if info is None or tuple(info.shape) != self._shapes[name]:
                    raise EngineError(f"{side} has no {name} of the shape that was loaded, {self._shapes[name]}.")

    def become(self, pair: Pair, sources: Mapping[str, Source], *, afresh: bool, budget_s: float) -> Work:
        """Put `sources` in place, module by module, until all are there or the time is over; the rest is `Work.left`.

        afresh: take nothing that is held for granted. Raises EngineError where a module cannot be proved to hold what
        it was given; after any error the module that was being changed is unknown, so that the next call does it again.
        """
        started = time.perf_counter()
        work, scratch = Work(), Scratch()
        if afresh:
            self._held.clear()
            self._unread.clear()
        todo = [form for form in self._forms if self._held.get(form.path) != _of(form, sources)]
        for number, form in enumerate(todo):
            if number and time.perf_counter() - started > budget_s:
                work.left = len(todo) - number
                break
            loaded_so = self._unread.pop(form.path, None) == _of(form, sources)
            try:
                self._put(form, pair, sources, work, scratch, as_loaded=loaded_so)
            except Exception as error:
                if loaded_so:  # by vLLM's own loader: so it is the proof that does not fit this model
                    self.fixed = str(error) if isinstance(error, EngineError) else f"{form.path}: {error}"
                raise
        work.seconds = time.perf_counter() - started
        return work

    def _put(
        self, form: Form, pair: Pair, sources: Mapping[str, Source], work: Work, scratch: Scratch, *, as_loaded: bool
    ) -> None:
        tensors = {name: surgery.build(pair, name, sources[name]) for name in form.names}
        self._held.pop(form.path, None)
        if not as_loaded:
            form.put(tensors, scratch)
            work.bytes += sum(tensor.nbytes for tensor in tensors.values())
            work.modules += 1
        proving = time.perf_counter()
        key = tuple(sources[name] for name in form.names)
        seen = self._seen.setdefault(form.path, OrderedDict())
        digest = form.digest()
        # Proved once, a set of sources is known by its digest: the same must come out to the last bit.
        if (known := seen.get(key)) is None:
            if fault := form.fault(tensors, scratch):
                raise EngineError(f"{form.path} does not hold what it was given: {fault}")
        elif known != digest:
            raise EngineError(f"{form.path} is not what it was when it last held these weights")
        seen[key] = self._digests[form.path] = digest
        seen.move_to_end(key)
        if len(seen) > _REMEMBERED:
            seen.popitem(last=False)
        self._held[form.path] = _of(form, sources)
        work.proved_s += time.perf_counter() - proving

    @property
    def digest(self) -> str:
        """One checksum of all modules as they were last proved: equal weights, equal digests, on the same machine."""
        lines = (f"{path} {digest}\n" for path, digest in sorted(self._digests.items()))
        return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()

    def reread(self) -> list[str]:
        """Modules whose weights, read now, are not those that were proved."""
        return [form.path for form in self._forms if self._digests.get(form.path) != form.digest()]


def _of(form: Form, sources: Mapping[str, Source]) -> dict[str, Source]:
    return {name: sources[name] for name in form.names}


def _fixed(model: torch.nn.Module, model_config: Any) -> str:
    """What about the whole model forbids changing its weights while it runs, or ""."""
    if model_config.quantization is not None:
        return f"its weights are quantized ({model_config.quantization})"
    if not model_config.enforce_eager:
        return "it runs compiled (--enforce-eager is off), which was not compared with a fresh engine"
    if callable(getattr(model, "process_weights_after_loading", None)):
        return f"{type(model).__name__} computes something from its weights once they are loaded"
    for path, module in model.named_modules():
        if vllm_forms.derives(module):
            return f"{path} ({type(module).__name__}) computes something from other modules' weights"
    return ""


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _keep_memory() -> None:
    """Have the C library keep freed memory instead of giving it back to the system at once: packed weights are replaced
    by others of their size, and fresh pages cost more than the packing itself."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
    except (OSError, AttributeError):
        pass  # another C library: slower, not wrong
