"""How a module of a running vLLM model keeps its weights, and for each way: putting others in place, and proving that
the module computes with those. Does not decide which weights; where tensors go was learned by `vllm_places`.

What is proved is what the model uses. A weight that lies in memory as it was loaded is compared bit for bit. On a CPU
vLLM packs linear weights into memory of its own that nothing can read back; there, vectors go through the layer. Some
have a single 1, so that the answers are columns of the weight, exactly; one is dense, so that every element counts.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from vllm.model_executor.layers.attention import Attention, is_deferred_attention_layer
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod
from vllm.platforms import current_platform

from sfn.engines.vllm_places import Parameter

Tensors = Mapping[str, torch.Tensor]  # a checkpoint's, by name
_COLUMNS = 3  # read exactly of every packed weight; with the dense vector four rows, as fast as one
_SUMMED_WORDS = 4096  # 64-bit words that are added before they are hashed: 32 KiB


class Form(ABC):
    """One module and the parameters of it that the checkpoint fills.

    Attributes:
        names: the checkpoint's tensors that it is made of; they are put in place together.
    """

    def __init__(self, path: str, module: torch.nn.Module, parameters: Mapping[str, Parameter]) -> None:
        self.path, self.module, self.parameters = path, module, parameters
        moves = [move for parameter in parameters.values() for move in parameter.moves]
        self.names = tuple(dict.fromkeys(move.name for move in moves))

    @abstractmethod
    def put(self, tensors: Tensors, scratch: Scratch) -> None:
        """Make the module hold `tensors`."""

    @abstractmethod
    def fault(self, tensors: Tensors, scratch: Scratch) -> str:
        """How what the module computes with differs from `tensors`, or "". Right after `put` of the same tensors it
        may rely on what that left in `scratch`, never on what it left in the module."""

    @abstractmethod
    def digest(self) -> str:
        """A checksum of what the module computes with: equal bits give equal digests."""


class Live(Form):
    """Weights that lie in memory as they were loaded: norms, biases, embeddings; on a GPU linear weights too."""

    def put(self, tensors: Tensors, scratch: Scratch) -> None:
        """Copy in place."""
        for name, parameter in self.parameters.items():
            live = getattr(self.module, name).data
            for move in parameter.moves:
                move.target.of(live).copy_(move.source.of(tensors[move.name]))

    def fault(self, tensors: Tensors, scratch: Scratch) -> str:
        """Compared bit for bit, all of it."""
        for name, parameter in self.parameters.items():
            live = getattr(self.module, name).data
            for move in parameter.moves:
                want = move.source.of(tensors[move.name]).to(live.device, live.dtype)
                if not _same_bits(move.target.of(live), want):
                    return f"{name} is not {move.name}"
        return ""

    def digest(self) -> str:
        """Of the parameters' own bytes."""
        return _hash(*(_summary(getattr(self.module, name).data) for name in self.parameters))


class Packed(Form):
    """A linear layer or output head on a CPU, whose weight was packed into memory that only its own product reads."""

    def __init__(self, path: str, module: torch.nn.Module, parameters: Mapping[str, Parameter]) -> None:
        super().__init__(path, module, parameters)
        self._weight = parameters["weight"]
        self._bias = Live(path, module, {name: entry for name, entry in parameters.items() if name != "weight"})

    def put(self, tensors: Tensors, scratch: Scratch) -> None:
        """Put together, then packed anew by vLLM."""
        module, kept = self.module, self.module.weight.numel() > 0
        loaded = module.weight.data if kept else scratch.take(self._weight, tensors)
        if kept:
            Live(self.path, module, {"weight": self._weight}).put(tensors, scratch)
        else:
            module.weight = torch.nn.Parameter(loaded, requires_grad=False)
        self._bias.put(tensors, scratch)
        module.cpu_linear = None  # its memory is free for what comes
        module.quant_method.process_weights_after_loading(module)
        if (module.weight.numel() > 0) != kept:
            raise RuntimeError(f"vLLM no longer packs the weight of {self.path}")

    def fault(self, tensors: Tensors, scratch: Scratch) -> str:
        """Compared by what the layer makes of the vectors; the bias bit for bit."""
        want = F.linear(_vectors(self._weight.shape[1], self._weight.dtype), scratch.take(self._weight, tensors))
        have = self._products()
        if rows := int(_differ(have[:_COLUMNS], want[:_COLUMNS]).any(0).sum()):
            return f"{rows} of {have.shape[1]} rows of its weight are not those of {', '.join(self.names)}"
        far = _too_far(have[_COLUMNS], want[_COLUMNS], lambda rows: scratch.take(self._weight, tensors)[rows])
        if far:
            return f"its products with {', '.join(self.names)} are off in {far} of {have.shape[1]} rows"
        return self._bias.fault(tensors, scratch)

    def digest(self) -> str:
        """Of what the layer makes of the vectors, and of the bias."""
        return _hash(_bytes(self._products()), self._bias.digest().encode())

    def _products(self) -> torch.Tensor:
        vectors = _vectors(self._weight.shape[1], self._weight.dtype)
        return self.module.quant_method.apply(self.module, vectors, None)  # (columns + 1, rows of the weight)


class Experts(Form):
    """The experts of one layer, joined in two tensors and packed: all of them are put in place together.

    vLLM packs them when a model is loaded, but not when weights are reloaded (0.32: the kernel is set up already), and
    then computes with weights in the wrong order. So its kernel is set up anew.
    """

    def put(self, tensors: Tensors, scratch: Scratch) -> None:
        """Put together, then packed and set up anew by vLLM."""
        module = self.module
        for name, parameter in self.parameters.items():
            loaded = torch.empty(parameter.shape, dtype=parameter.dtype, device=getattr(module, name).device)
            setattr(module, name, torch.nn.Parameter(_filled(loaded, parameter, tensors), requires_grad=False))
        module.quant_method.moe_kernel = None
        module.quant_method.process_weights_after_loading(module)

    def fault(self, tensors: Tensors, scratch: Scratch) -> str:
        """Every expert's bits are summed, which finds any change, and it is asked alone, which finds their order."""
        for name, parameter in self.parameters.items():
            have = _bit_sums(getattr(self.module, name).data)
            want, each = torch.zeros(parameter.shape[0], dtype=torch.int64), _numel(parameter) // parameter.shape[0]
            for move in parameter.moves:
                want[move.target.offset // each] += int(_bit_sums(move.source.of(tensors[move.name])[None])[0])
            if not torch.equal(have.cpu(), want):
                return f"{name} does not hold the bits of the experts' tensors"
        have, want = self._answers().cpu().float(), self._expected(tensors).float()
        off = (have - want).norm(dim=1) > 0.02 * want.norm(dim=1) + 1e-6
        return f"{int(off.sum())} of {len(off)} experts answer wrongly" if off.any() else ""

    def digest(self) -> str:
        """Of the parameters' own bytes, and of what each expert makes of the dense vector."""
        parts = [_summary(getattr(self.module, name).data) for name in self.parameters]
        return _hash(*parts, _bytes(self._answers()))

    def _inputs(self) -> torch.Tensor:
        w13 = self.parameters["w13_weight"]
        return _vectors(w13.shape[2], w13.dtype)[_COLUMNS:].expand(w13.shape[0], -1)  # one row for each expert

    def _answers(self) -> torch.Tensor:
        """What each expert alone makes of the dense vector: (experts, hidden)."""
        inputs = self._inputs().to(self.module.w13_weight.device).contiguous()
        ids_dtype = self.module.quant_method.topk_indices_dtype or torch.int32
        ids = torch.arange(len(inputs), dtype=ids_dtype, device=inputs.device)[:, None]
        weights = torch.ones(len(inputs), 1, dtype=torch.float32, device=inputs.device)
        return self.module.quant_method.apply(self.module, inputs.clone(), weights, ids, None, None)

    def _expected(self, tensors: Tensors) -> torch.Tensor:
        w13, w2 = (self.parameters[name] for name in ("w13_weight", "w2_weight"))
        answers = []
        for expert, vector in enumerate(self._inputs()):
            gate, up = F.linear(vector, _expert(w13, expert, tensors)).chunk(2)
            hidden = (F.silu(gate.float()) * up.float()).to(w13.dtype)
            answers.append(F.linear(hidden, _expert(w2, expert, tensors)))
        return torch.stack(answers)


class Scratch:
    """Memory in which weights are put together before they are packed; used for one module after the other."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._holds: tuple[Parameter, Tensors] | None = None

    def take(self, parameter: Parameter, tensors: Tensors) -> torch.Tensor:
        """The weight that `tensors` make, in plain order; good until the next `take` of another one."""
        (first, *others), dtype = parameter.moves, parameter.dtype
        tensor = tensors[first.name]
        whole = first.source.is_all_of(tensor.shape) and first.target.is_all_of(parameter.shape)
        if whole and not others and tensor.dtype == dtype and _may_borrow():
            return tensor
        size = _numel(parameter) * dtype.itemsize
        if not _may_borrow():
            return _filled(torch.empty(parameter.shape, dtype=dtype), parameter, tensors)
        if self._memory.numel() < size:
            self._holds, self._memory = None, torch.empty(size, dtype=torch.uint8)
        weight = self._memory[:size].view(dtype).view(parameter.shape)
        if self._holds is None or self._holds[0] is not parameter or self._holds[1] is not tensors:
            self._holds = None
            _filled(weight, parameter, tensors)
            self._holds = (parameter, tensors)
        return weight

    def drop(self) -> None:
        """Give the memory back."""
        self._memory, self._holds = torch.empty(0, dtype=torch.uint8), None


@lru_cache(maxsize=1)
def _may_borrow() -> bool:
    """Whether packing copies. On AMD with zentorch, vLLM's packed layer may go on using the memory it was given."""
    return not current_platform.is_zen_cpu()


def form_of(path: str, module: torch.nn.Module, parameters: Mapping[str, Parameter]) -> Form | str:
    """The module's form; or, in words, why its weights cannot be changed while the model runs."""
    for name, parameter in parameters.items():
        if parameter.gap:
            return f"{path}.{name}: {parameter.gap}"
    method = getattr(module, "quant_method", None)
    if isinstance(module, RoutedExperts):
        return _experts(path, module, parameters)
    if method is not None and type(method) not in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod):
        return f"{path} is kept as {type(method).__name__} keeps it"
    if hasattr(module, "cpu_linear"):
        embeds = isinstance(method, UnquantizedEmbeddingMethod) and not isinstance(module, ParallelLMHead)
        if not embeds:
            flat = len(parameters["weight"].shape) == 2 if "weight" in parameters else False
            return Packed(path, module, parameters) if flat else f"{path} is no linear layer"
        # Packed as if it were a head too, which nothing uses: the model is started untied.
        module.cpu_linear = F.linear
    for name, parameter in parameters.items():
        if tuple(getattr(module, name).shape) != parameter.shape or not getattr(module, name).is_contiguous():
            return f"{path}.{name} is not kept as it was loaded"
    return Live(path, module, parameters)


def _experts(path: str, module: RoutedExperts, parameters: Mapping[str, Parameter]) -> Form | str:
    method, moe = module.quant_method, module.moe_config
    plain = (
        type(method) is UnquantizedFusedMoEMethod
        and not method.is_monolithic
        and set(parameters) == {"w13_weight", "w2_weight"}
        and module.activation == MoEActivation.SILU
        and module.expert_map is None
        and not moe.moe_parallel_config.use_ep
        and not module.apply_router_weight_on_input
        and parameters["w13_weight"].shape[0] == module.global_num_experts
    )
    return Experts(path, module, parameters) if plain else f"the experts of {path} are not computed in the plain way"


def derives(module: torch.nn.Module) -> bool:
    """Whether vLLM computes something of this module's from other modules' weights once they are loaded."""
    return is_deferred_attention_layer(module) and type(module) is not Attention


# Arithmetic of the proofs.


@lru_cache(maxsize=16)
def _vectors(width: int, dtype: torch.dtype) -> torch.Tensor:
    """(columns + 1, width): unit vectors, then a dense one, N(0, 1); always the same."""
    generator = torch.Generator().manual_seed(width)
    vectors = torch.zeros(_COLUMNS + 1, width)
    for row, column in enumerate(torch.randperm(width, generator=generator)[:_COLUMNS].tolist()):
        vectors[row, column] = 1.0
    vectors[_COLUMNS].normal_(generator=generator)
    return vectors.to(dtype)


def _differ(have: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Where two tensors differ. NaN equals NaN, and numbers so small that processors flush them to 0 equal 0."""
    a, b = have.float(), want.float()
    return (a != b) & ~(a.isnan() & b.isnan()) & ~((a.abs() < 2**-100) & (b.abs() < 2**-100))


def _too_far(have: torch.Tensor, want: torch.Tensor, weight_rows: Any) -> int:
    """In how many rows two products of one weight with the dense vector differ by more than the order of summation and
    the rounding of the results can explain."""
    rounding = 2 * torch.finfo(have.dtype).eps
    a, b = have.float(), want.float()
    rows = _differ(a, b) & ~((a - b).abs() <= rounding * b.abs())
    if not rows.any():
        return 0
    where = rows.nonzero()[:, 0]
    weight = weight_rows(where).float()
    bound = 2**-16 * weight.norm(dim=1) * weight.shape[1] ** 0.5  # the dense vector's elements are about 1
    return int((~((a - b)[where].abs() <= rounding * b[where].abs() + bound)).sum())


def _expert(parameter: Parameter, expert: int, tensors: Tensors) -> torch.Tensor:
    """One expert's part of a joined parameter, in plain order."""
    each = _numel(parameter) // parameter.shape[0]
    weight = torch.empty(parameter.shape[1:], dtype=parameter.dtype)
    for move in parameter.moves:
        if move.target.offset // each == expert:
            offset = move.target.offset - expert * each
            target = weight.as_strided(move.target.size, move.target.stride, offset)
            target.copy_(move.source.of(tensors[move.name]))
    return weight


def _bit_sums(tensor: torch.Tensor) -> torch.Tensor:
    """Sums of the elements' bits as whole numbers, one for each index of the first dimension: the same in any order."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    return tensor.view(whole).sum(dim=tuple(range(1, tensor.ndim)), dtype=torch.int64)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.dtype.itemsize]
    return torch.equal(one.view(whole), other.view(whole))


def _filled(target: torch.Tensor, parameter: Parameter, tensors: Tensors) -> torch.Tensor:
    for window, value in parameter.fills:
        window.of(target).fill_(value)
    for move in parameter.moves:
        move.target.of(target).copy_(move.source.of(tensors[move.name]))
    return target


def _numel(parameter: Parameter) -> int:
    return torch.Size(parameter.shape).numel()


def _summary(tensor: torch.Tensor) -> bytes:
    """Bytes that stand for a tensor's: those themselves of a small one, sums of 32 KiB each of a large one."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = flat.numel() // (8 * _SUMMED_WORDS) * (8 * _SUMMED_WORDS)
    sums = flat[:whole].view(torch.int64).view(-1, _SUMMED_WORDS).sum(1)
    return _bytes(sums) + _bytes(flat[whole:])


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()


def _hash(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
