"""Tiny checkpoints on disk, in the layout that real ones have and loadable by transformers; made in milliseconds.

Every builder writes into `folder` (created) and returns it. Weights are drawn from N(0, 0.05), norm weights from
N(1, 0.1), so that no two tensors are alike; the same seed gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from zlib import crc32

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")


def tiny_qwen2(
    folder: Path | str,
    seed: int = 0,
    *,
    tied: bool = False,
    shards: int = 1,
    index: bool = True,
    dtype: str = "bfloat16",
    with_tokenizer: bool = True,
    layers: int = 2,
    hidden: int = 32,
    vocab: int = 288,
    **config: object,
) -> Path:
    """Qwen2: biases on q, k, v; 4 heads, 2 KV heads, intermediate 48. Several shards with or without index file."""
    shapes = _llama_shapes(layers, hidden, vocab, intermediate=48, q=hidden, kv=hidden // 2, qkv_bias=True, tied=tied)
    content = _config("qwen2", "Qwen2ForCausalLM", layers, hidden, vocab, dtype, tied=tied)
    content |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": layers} | config
    return write_checkpoint(
        folder, random_tensors(shapes, seed, dtype), content, shards=shards, index=index, with_tokenizer=with_tokenizer
    )


def tiny_llama(folder: Path | str, seed: int = 0, *, dtype: str = "bfloat16", tied: bool = False, layers: int = 2,
               hidden: int = 32, vocab: int = 288, **config: object) -> Path:  # fmt: skip
    """Llama: no biases."""
    shapes = _llama_shapes(layers, hidden, vocab, intermediate=48, q=hidden, kv=hidden // 2, tied=tied)
    content = _config("llama", "LlamaForCausalLM", layers, hidden, vocab, dtype, tied=tied) | config
    return write_checkpoint(folder, random_tensors(shapes, seed, dtype), content)


def tiny_qwen3(folder: Path | str, seed: int = 0, *, dtype: str = "bfloat16", tied: bool = False, shards: int = 1,
               layers: int = 2, hidden: int = 32, vocab: int = 288, head_dim: int = 16,
               **config: object) -> Path:  # fmt: skip
    """Qwen3: q_norm and k_norm, no biases, heads wider than hidden / heads (4 heads of `head_dim`)."""
    heads = {"q": 4 * head_dim, "kv": 2 * head_dim, "head_norm": head_dim}
    shapes = _llama_shapes(layers, hidden, vocab, intermediate=48, **heads, tied=tied)
    content = _config("qwen3", "Qwen3ForCausalLM", layers, hidden, vocab, dtype, tied=tied)
    content |= {"head_dim": head_dim} | config
    return write_checkpoint(folder, random_tensors(shapes, seed, dtype), content, shards=shards)


def tiny_qwen3_moe(folder: Path | str, seed: int = 0, *, dtype: str = "bfloat16", experts: int = 4, shards: int = 1,
                   layers: int = 2, hidden: int = 32, vocab: int = 288, head_dim: int = 16, width: int = 16,
                   **config: object) -> Path:  # fmt: skip
    """Qwen3-MoE with one tensor per expert and projection, as on disk; a token goes to 2 experts, `width` wide."""
    heads = {"q": 4 * head_dim, "kv": 2 * head_dim, "head_norm": head_dim}
    shapes = _llama_shapes(layers, hidden, vocab, intermediate=None, **heads, tied=False)
    for layer in range(layers):
        mlp = f"model.layers.{layer}.mlp"
        shapes[f"{mlp}.gate.weight"] = (experts, hidden)
        for expert in range(experts):
            shapes |= _mlp_shapes(f"{mlp}.experts.{expert}", hidden, width)
    content = _config("qwen3_moe", "Qwen3MoeForCausalLM", layers, hidden, vocab, dtype, tied=False)
    content |= {"head_dim": head_dim, "num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": width,
                "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}  # fmt: skip
    return write_checkpoint(folder, random_tensors(shapes, seed, dtype), content | config, shards=shards)


def tiny_fused_moe(folder: Path | str, seed: int = 0, *, dtype: str = "bfloat16", experts: int = 4, layers: int = 2,
                   hidden: int = 32, vocab: int = 288, head_dim: int = 16, width: int = 24,
                   **config: object) -> Path:  # fmt: skip
    """Qwen3-MoE with all experts of a layer in one tensor, as newer transformers hold them: (experts, 2 width, hidden)
    for gate and up, (experts, hidden, width) for down."""
    heads = {"q": 4 * head_dim, "kv": 2 * head_dim, "head_norm": head_dim}
    shapes = _llama_shapes(layers, hidden, vocab, intermediate=None, **heads, tied=False)
    for layer in range(layers):
        mlp = f"model.layers.{layer}.mlp"
        shapes[f"{mlp}.gate.weight"] = (experts, hidden)
        shapes[f"{mlp}.experts.gate_up_proj"] = (experts, 2 * width, hidden)
        shapes[f"{mlp}.experts.down_proj"] = (experts, hidden, width)
    content = _config("qwen3_moe", "Qwen3MoeForCausalLM", layers, hidden, vocab, dtype, tied=False)
    content |= {"head_dim": head_dim, "num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": width}
    return write_checkpoint(folder, random_tensors(shapes, seed, dtype), content | config)


def tiny_phi3(folder: Path | str, seed: int = 0, *, dtype: str = "bfloat16", layers: int = 2, hidden: int = 32,
              vocab: int = 288, **config: object) -> Path:  # fmt: skip
    """Phi-3: query, key and value in one tensor, and gate and up in one; 4 heads, 2 KV heads."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.self_attn.qkv_proj.weight"] = (2 * hidden, hidden)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{prefix}.mlp.gate_up_proj.weight"] = (96, hidden)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, 48)
        shapes[f"{prefix}.input_layernorm.weight"] = shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    content = _config("phi3", "Phi3ForCausalLM", layers, hidden, vocab, dtype, tied=False)
    return write_checkpoint(folder, random_tensors(shapes, seed, dtype), content | config)


def write_checkpoint(
    folder: Path | str,
    tensors: Mapping[str, object],
    config: Mapping[str, object] | None = None,
    *,
    shards: int = 1,
    index: bool = True,
    with_tokenizer: bool = True,
) -> Path:
    """Any tensors as a checkpoint: config.json unless None, safetensors in `shards` files, tokenizer if asked for."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(dict(config), indent=2))
    if with_tokenizer:
        write_tokenizer(folder)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for number in range(shards):
        shard = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    if index:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        content = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder


def write_tokenizer(folder: Path, *, words: Iterable[str] = (), template: str = CHAT_TEMPLATE) -> Path:
    """A byte-level BPE tokenizer: 4 special tokens, then the 256 bytes, then `words`; chat template, eos, pad ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": 128,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 0}, indent=2))
    return folder


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: str) -> dict[str, object]:
    """A torch tensor for each shape; a name's values depend on seed and name alone."""
    import torch

    tensors = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + crc32(name.encode()))
        drawn = torch.randn(shape, generator=generator)
        drawn = 1 + drawn * 0.1 if "norm" in name else drawn * 0.05
        tensors[name] = drawn.to(getattr(torch, dtype))
    return tensors


def _llama_shapes(
    layers: int,
    hidden: int,
    vocab: int,
    *,
    intermediate: int | None,
    q: int,
    kv: int,
    tied: bool,
    qkv_bias: bool = False,
    head_norm: int = 0,
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name, width in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (width, hidden)
            if qkv_bias:
                shapes[f"{prefix}.self_attn.{name}_proj.bias"] = (width,)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (hidden, q)
        if head_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = shapes[f"{prefix}.self_attn.k_norm.weight"] = (head_norm,)
        if intermediate is not None:
            shapes |= _mlp_shapes(f"{prefix}.mlp", hidden, intermediate)
        shapes[f"{prefix}.input_layernorm.weight"] = shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _mlp_shapes(prefix: str, hidden: int, intermediate: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (intermediate, hidden),
        f"{prefix}.up_proj.weight": (intermediate, hidden),
        f"{prefix}.down_proj.weight": (hidden, intermediate),
    }


def _config(
    model_type: str, architecture: str, layers: int, hidden: int, vocab: int, dtype: str, *, tied: bool
) -> dict[str, object]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "dtype": dtype,
        "hidden_size": hidden,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_types": ["full_attention"] * layers,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "max_position_embeddings": 128,
        "initializer_range": 0.02,
        "tie_word_embeddings": tied,
        "vocab_size": vocab,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "use_cache": True,
    }
