"""What differs between two checkpoints' configs, and what that means for delta, merge and engines.

Owns the findings that come from config.json; those of tokenizers and chat settings are `tokenizer_differences`', those
of the tensors `pairs`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sfn.checkpoints import Checkpoint, text_config

Severity = Literal["note", "limit", "stop"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between A and B.

    Attributes:
        topic: one or two words ("rope", "tokenizer"). severity: "note": nothing is lost; "limit": something can not be
            done, or must be read with care; "stop": the two cannot be merged, the rest is still shown.
        sentence: what differs, with both values. means: what follows for delta, merge and engines.
    """

    topic: str
    severity: Severity
    sentence: str
    means: str


SPELLINGS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "head_dim": ("head_dim",),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim"),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "num_experts_per_token"),
    "hidden_act": ("hidden_act", "hidden_activation", "activation_function"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_seq_len"),
    "dtype": ("dtype", "torch_dtype"),
}
_NORM_KINDS = {
    "rms_norm_eps": "RMS norm",
    "layer_norm_eps": "layer norm",
    "layer_norm_epsilon": "layer norm",
    "norm_epsilon": "norm",
    "norm_eps": "norm",
}

_OTHER_HEADS = "A merged model has A's heads: attention tensors of B that fit in shape would be cut into other heads."

# What is compared by value: setting -> (topic, severity, what it means).
_SETTINGS: dict[str, tuple[str, Severity, str]] = {
    "hidden_size": (
        "hidden size",
        "stop",
        "Tensors of the two do not fit each other: nothing can be merged; delta shows the few tensors of equal shape.",
    ),
    "num_attention_heads": (
        "heads",
        "limit",
        _OTHER_HEADS,
    ),
    "num_key_value_heads": (
        "heads",
        "limit",
        _OTHER_HEADS,
    ),
    "head_dim": (
        "heads",
        "limit",
        _OTHER_HEADS,
    ),
    "intermediate_size": ("MLP width", "limit", "MLP tensors cannot be compared or moved; everything else can."),
    "num_experts": ("experts", "limit", "Routers do not fit each other; experts that both have can be compared."),
    "num_experts_per_tok": ("experts", "limit", "A merged model asks as many experts per token as A does."),
    "hidden_act": (
        "activation",
        "limit",
        "A merged model uses A's activation: MLP tensors of B then work differently from how they were trained.",
    ),
    "max_position_embeddings": (
        "context",
        "note",
        "A merged model has A's context length; B's own answers may be longer than the merged model allows.",
    ),
}


def config_findings(a: Checkpoint, b: Checkpoint) -> Iterator[Finding]:
    """Differences between the configs, in order of weight."""
    for side, checkpoint in (("A", a), ("B", b)):
        if not checkpoint.config:
            lost = "A or a merged model" if side == "A" else "B by itself"
            yield Finding(
                "config",
                "limit",
                f"{side} ({checkpoint.label}) has no config.json.",
                f"Settings cannot be compared; delta works. No engine can run {lost}.",
            )
    if not (a.config and b.config):
        return
    yield from _architecture(a, b)
    left, right = text_config(a.config), text_config(b.config)
    for setting, (topic, severity, means) in _SETTINGS.items():
        of_a, of_b = value_of(left, setting), value_of(right, setting)
        if of_a != of_b:
            yield Finding(topic, severity, f"{setting}: A has {_word(of_a)}, B has {_word(of_b)}.", means)
    yield from _attention_window(left, right)
    yield from _rope(left, right)
    yield from _norms(left, right)
    yield from _quantisation(a, b)


def value_of(config: Mapping[str, object], setting: str) -> object:
    """The value of one of SPELLINGS in the language model's config; what old configs leave to be inferred is inferred.

    None where the config does not tell.
    """
    for spelling in SPELLINGS[setting]:
        if config.get(spelling) is not None:
            return config[spelling]
    if setting == "num_key_value_heads":
        return value_of(config, "num_attention_heads")
    if setting == "head_dim":
        width, heads = value_of(config, "hidden_size"), value_of(config, "num_attention_heads")
        return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None
    return None


def _word(value: object) -> str:
    return "none" if value is None else f"{value:,}" if type(value) is int else str(value)


def _architecture(a: Checkpoint, b: Checkpoint) -> Iterator[Finding]:
    of_a, of_b = (part.config.get("model_type") for part in (a, b))
    classes = [_names(part.config.get("architectures")) for part in (a, b)]
    if of_a != of_b:
        yield Finding(
            "architecture",
            "limit",
            f"model_type: A is {_word(of_a)}, B is {_word(of_b)}.",
            "A merged model is computed as A is. Tensors of equal name and shape can be compared and moved, but B's "
            "were trained for other surroundings.",
        )
    elif classes[0] != classes[1]:
        yield Finding(
            "architecture",
            "note",
            f"Model class: A is {classes[0] or 'not named'}, B is {classes[1] or 'not named'}.",
            "A merged model is of A's class; the decoder's tensors are the same kind in both.",
        )


def _names(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _attention_window(a: Mapping[str, object], b: Mapping[str, object]) -> Iterator[Finding]:
    def window(config: Mapping[str, object]) -> object:
        return None if config.get("use_sliding_window") is False else config.get("sliding_window")

    if window(a) != window(b):
        yield Finding(
            "context",
            "limit",
            f"Sliding attention window: A has {_word(window(a))}, B has {_word(window(b))}.",
            "A merged model attends as A does; short prompts are not affected.",
        )


def rope_settings(config: Mapping[str, object]) -> dict[str, object]:
    """Rotary position settings in one spelling: {"rope_theta": 10000.0, "rope_type": "default", ...}.

    Reads `rope_parameters` (transformers 5, also one table per kind of layer) and the older `rope_theta` with
    `rope_scaling`. An unstated theta is 10,000, as in transformers' configs.
    """
    config = text_config(config)
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    table = dict(given) if isinstance(given, Mapping) else {"rope_parameters": given}
    if table and all(isinstance(value, Mapping) for value in table.values()):
        return {kind: _one_rope(config, dict(value)) for kind, value in table.items()}  # type: ignore[arg-type]
    return _one_rope(config, table)


def _one_rope(config: Mapping[str, object], table: dict[str, object]) -> dict[str, object]:
    table.setdefault("rope_theta", config.get("rope_theta") or config.get("rotary_emb_base") or 10_000.0)
    kind = table.pop("type", None)
    table.setdefault("rope_type", kind or "default")
    partial = config.get("partial_rotary_factor", config.get("rotary_pct"))
    if partial is not None:
        table.setdefault("partial_rotary_factor", partial)
    return {key: float(value) if type(value) is int else value for key, value in table.items() if value is not None}


def _rope(a: Mapping[str, object], b: Mapping[str, object]) -> Iterator[Finding]:
    of_a, of_b = rope_settings(a), rope_settings(b)
    if of_a == of_b:
        return
    differing = [key for key in {**of_a, **of_b} if of_a.get(key) != of_b.get(key)]
    words = "; ".join(f"{key}: A has {_word(of_a.get(key))}, B has {_word(of_b.get(key))}" for key in differing)
    yield Finding(
        "rope",
        "limit",
        f"Rotary positions differ: {words}.",
        "A merged model counts positions as A does, so q_proj and k_proj of B meet other angles than in their "
        "training, the more so the longer the text. Delta is not affected.",
    )


def _norm(config: Mapping[str, object]) -> tuple[str, object]:
    found = ((kind, config[key]) for key, kind in _NORM_KINDS.items() if config.get(key) is not None)
    return next(found, ("unnamed", None))


def _norms(a: Mapping[str, object], b: Mapping[str, object]) -> Iterator[Finding]:
    (kind_a, eps_a), (kind_b, eps_b) = _norm(a), _norm(b)
    if kind_a != kind_b:
        yield Finding(
            "norm",
            "limit",
            f"Kind of norm: A has {kind_a}, B has {kind_b}.",
            "A merged model uses A's kind: norm weights of B mean something else there.",
        )
    elif eps_a != eps_b:
        yield Finding(
            "norm",
            "note",
            f"Epsilon of the norms: A has {_word(eps_a)}, B has {_word(eps_b)}.",
            "A merged model uses A's; both are far below the size of usual activations, so little changes.",
        )


def _quantisation(a: Checkpoint, b: Checkpoint) -> Iterator[Finding]:
    kinds = []
    for part in (a, b):
        table = part.config.get("quantization_config") or text_config(part.config).get("quantization_config")
        kinds.append(str(table.get("quant_method", "unnamed")) if isinstance(table, Mapping) else None)
    if kinds != [None, None]:
        yield Finding(
            "quantisation",
            "limit",
            f"Quantised weights: A {kinds[0] or 'not'}, B {kinds[1] or 'not'}.",
            "Stored numbers of quantised tensors are not weights: delta of them compares codes, not values, and they "
            "move only between equal formats, weight and scale together. Take the unquantised release if there is one.",
        )
