"""What the rows or columns of a tensor are: attention heads, or the halves of a fused MLP input.

Read from A's config, the tensor's name and its shape. A fused tensor is cut only where its model's own code says in
which order it lies; otherwise a sentence says that its pieces cannot be told apart. Knows names, never weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sfn.checkpoints import text_config

if TYPE_CHECKING:
    from sfn.anatomy import Part

Axis = Literal["rows", "columns"]
Config = Mapping[str, object]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces of one kind.

    Attributes:
        axis: whether a piece is some rows or some columns. what: kind: "head", "KV head", "query head", "key head",
            "value head", "half". labels: what each is called. starts: first row or column of each. width: how many it
            has, `step` apart.
    """

    axis: Axis
    what: str
    labels: tuple[str, ...]
    starts: tuple[int, ...]
    width: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Division:
    """All pieces of a tensor, kind by kind. problem: why those that it should have cannot be told, "" otherwise."""

    kinds: tuple[Pieces, ...] = ()
    problem: str = ""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def of(config: Config, part: Part, shape: Shape) -> Division:
    """The pieces of a tensor by A's config.json. Of one expert in a tensor of all, give that expert's shape."""
    config = text_config(config)
    if part.parameter not in ("weight", "bias") or not shape or part.layer is None:
        return Division()
    if part.role in ("q_proj", "k_proj", "v_proj", "o_proj"):
        return _separate(config, part, shape)
    if part.role == "qkv_proj":
        return _fused(config, part, shape)
    return _halves(config, part, shape) if part.role == "gate_up_proj" else Division()


def holds_experts(part: Part, shape: Shape) -> bool:
    """Whether a tensor is (experts, rows, columns). A convolution has as many dimensions, but stands in no MLP."""
    return len(shape) == 3 and part.block == "mlp"


def rows_are_inputs(config: Config, part: Part) -> bool:
    """Whether a matrix is stored as (inputs, outputs), as GPT-2's are, and some models' experts that share a tensor."""
    model = _model(text_config(config))
    if part.parameter != "weight" or part.layer is None:
        return False
    if _of_all_experts(part):
        return model in _EXPERTS_TRANSPOSED
    return model in _TRANSPOSED and part.block in ("attention", "mlp")


# Attention heads

_TRANSPOSED = frozenset({"gpt2", "openai-gpt"})  # Conv1D: (inputs, outputs)
# Order of a fused query, key and value, by model_type, each as its own code splits the product. "blocks": all queries,
# all keys, all values. "groups": the queries of one KV head, its key, its value, and so on; without sharing that is
# head by head. Falcon and GPT-BigCode say in their config which it is, see `_order`.
_ORDERS: Mapping[str, str] = dict.fromkeys(
    _words("phi3 phi4mm phi4_multimodal gpt2 openai-gpt qwen baichuan mpt chatglm"), "blocks"
) | dict.fromkeys(_words("gpt_neox gpt_neox_japanese bloom persimmon internlm2"), "groups")


@dataclass(frozen=True, slots=True)
class _Heads:
    """queries, shared: number of query and of KV heads. width: rows of one."""

    queries: int
    shared: int
    width: int

    @classmethod
    def of(cls, config: Config) -> _Heads | None:
        queries = _whole(config, "num_attention_heads", "n_head", "n_heads")
        hidden = _whole(config, "hidden_size", "n_embd", "d_model")
        width = _whole(config, "head_dim", "kv_channels") or (
            hidden // queries if queries and hidden % queries == 0 else 0
        )
        shared = _whole(config, "num_key_value_heads", "multi_query_group_num") or queries
        if not queries or not width or queries % shared:
            return None
        return cls(queries, shared, width)

    def label(self, number: int, kind: str) -> str:
        """ "head 3", or "KV head 1 (heads 4 to 7)" where several query heads share it."""
        each = self.queries // self.shared
        if kind in ("head", "query head") or each == 1:
            return f"{kind} {number}"
        return f"{kind} {number} (heads {number * each} to {number * each + each - 1})"

    def kind(self, axis: Axis, kind: str, starts: list[int]) -> Pieces:
        labels = tuple(self.label(number, kind) for number in range(len(starts)))
        return Pieces(axis, kind, labels, tuple(starts), self.width)


def _separate(config: Config, part: Part, shape: Shape) -> Division:
    """One of q, k, v, o. A bias is cut as the rows of its weight; that of o has one number per output, no heads."""
    if part.role == "o_proj" and (part.parameter == "bias" or len(shape) != 2):
        return Division()
    heads = _Heads.of(config)
    if heads is None:
        return _untold(part, "A's config.json does not say how many heads there are")
    transposed = _model(config) in _TRANSPOSED
    axis: Axis = "columns" if (part.role == "o_proj") != transposed and len(shape) == 2 else "rows"
    size = shape[1] if axis == "columns" else shape[0]
    count = heads.shared if part.role in ("k_proj", "v_proj") else heads.queries
    if size != count * heads.width:
        return _untold(part, f"{count} heads of {heads.width}, as A's config.json has them, are not its {size} {axis}")
    kind = "head" if count == heads.queries else "KV head"
    return Division((heads.kind(axis, kind, [number * heads.width for number in range(count)]),))


def _fused(config: Config, part: Part, shape: Shape) -> Division:
    """Query, key and value in one tensor."""
    order, heads = _order(config)
    if not order or heads is None:
        model = _model(config) or "this model"
        return _untold(part, f"the order of query, key and value in it is not known for {model}")
    axis: Axis = "columns" if _model(config) in _TRANSPOSED and len(shape) == 2 else "rows"
    size, width = (shape[1] if axis == "columns" else shape[0]), heads.width
    if size != (heads.queries + 2 * heads.shared) * width:
        return _untold(
            part,
            f"{heads.queries} query and 2 × {heads.shared} key and value heads of {width}, as A's config.json has "
            f"them, are not its {size} {axis}",
        )
    if order == "blocks":
        first = (0, heads.queries * width, (heads.queries + heads.shared) * width)
        counts = (heads.queries, heads.shared, heads.shared)
        starts = [[at + number * width for number in range(count)] for at, count in zip(first, counts, strict=True)]
    else:
        each = heads.queries // heads.shared
        groups = range(0, heads.shared * (each + 2) * width, (each + 2) * width)
        starts = [
            [at + number * width for at in groups for number in range(each)],
            [at + each * width for at in groups],
            [at + (each + 1) * width for at in groups],
        ]
    kinds = ("query head", "key head", "value head")
    return Division(tuple(heads.kind(axis, kind, found) for kind, found in zip(kinds, starts, strict=True)))


def _order(config: Config) -> tuple[str, _Heads | None]:
    """ "blocks", "groups" or "" where it is not certain, and the heads."""
    model, heads = _model(config), _Heads.of(config)
    if heads is None:
        return "", None
    if model == "chatglm" and "multi_query_group_num" not in config:  # ChatGLM-6B, the first: another order
        return "", heads
    if model not in ("falcon", "gpt_bigcode"):
        return _ORDERS.get(model, ""), heads
    if model == "falcon" and config.get("new_decoder_architecture"):
        shared = _whole(config, "num_kv_heads") or heads.queries
        return ("groups" if heads.queries % shared == 0 else ""), _Heads(heads.queries, shared, heads.width)
    if config.get("multi_query", True):
        return "blocks", _Heads(heads.queries, 1, heads.width)
    return "groups", _Heads(heads.queries, heads.queries, heads.width)


def _untold(part: Part, why: str) -> Division:
    return Division(problem=f"The heads of {part.row} cannot be told apart: {why}.")


# Gate and up

# Models whose code takes the first half for the gate: of a matrix, and of each expert.
_GATE_FIRST = _words("phi3 phi4mm phi4_multimodal glm glm4 glm4v glm4v_text zamba2")
_EXPERTS_GATE_FIRST = _words(
    "llama4 llama4_text aria aria_text qwen2_moe qwen3_moe qwen3_next qwen3_5_moe qwen3_5_moe_text qwen3_vl_moe"
    " qwen3_vl_moe_text qwen3_omni_moe mixtral olmoe phimoe deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 glm4_moe"
    " glm4_moe_lite glm4v_moe glm4v_moe_text glm_moe_dsa gemma4 gemma4_text granitemoe granitemoehybrid"
    " granitemoeshared minimax minimax_m2 ernie4_5_moe exaone_moe hunyuan_v1_moe jamba lfm2_moe dots1"
)
_EXPERTS_TRANSPOSED = _words("llama4 llama4_text aria aria_text gpt_oss")  # (experts, inputs, outputs)
_EXPERTS_ALTERNATING = frozenset({"gpt_oss"})  # gate, up, gate, up, ...


def _halves(config: Config, part: Part, shape: Shape) -> Division:
    """Gate and up in one tensor: of a matrix its rows; of an expert the side of its outputs, or the other one where
    only that has twice the MLP's width (some models are stored the other way round)."""
    model = _model(config)
    if _of_all_experts(part):
        if len(shape) != 2 or part.parameter != "weight":
            return Division()
        width = _whole(config, "moe_intermediate_size") or _whole(config, "intermediate_size")
        sizes: dict[Axis, int] = {"rows": shape[0], "columns": shape[1]}
        order: list[Axis] = ["columns", "rows"] if model in _EXPERTS_TRANSPOSED else ["rows", "columns"]
        known = model in _EXPERTS_GATE_FIRST | _EXPERTS_ALTERNATING
        axis: Axis | None = next((side for side in order if known and sizes[side] == 2 * width), None)
    else:
        axis = "rows" if model in _GATE_FIRST and shape[0] % 2 == 0 else None
        width = shape[0] // 2
    if axis is None:
        return Division(
            problem=f"Gate and up cannot be told apart in {part.row}: their order is not known for "
            f"{model or 'this model'} with {' × '.join(map(str, shape))}."
        )
    alternating = model in _EXPERTS_ALTERNATING
    starts = (0, 1) if alternating else (0, width)
    return Division((Pieces(axis, "half", ("gate", "up"), starts, width, 2 if alternating else 1),))


def _of_all_experts(part: Part) -> bool:
    return part.expert is None and ("experts" in part.path.split(".") or "moe" in part.path)


def _model(config: Config) -> str:
    model = config.get("model_type")
    return model if isinstance(model, str) else ""


def _whole(config: Config, *names: str) -> int:
    """The first of these that is a whole number, 0 if none is."""
    return next((value for name in names if isinstance(value := config.get(name), int) and value > 0), 0)
