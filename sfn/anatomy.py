"""Tensor name -> its place in a decoder: layer, block, module, parameter, expert. Pure; knows names, never weights.

Every architecture's naming is written down here and nowhere else. A name that is not known keeps its own name: nothing
is ever dropped, and a number in a vision tower, an audio tower or a draft head is never taken for a decoder layer.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor's place in the model.

    Attributes:
        name: the tensor's full name. layer: decoder layer from 0, None outside the decoder's layers.
        block: "embedding", "attention", "mlp", "norm", "head" or "other".
        module: name as the checkpoint has it ("o_proj", "c_attn"). Where the last word alone would confuse two
            things, the word before it stays: "experts.gate_proj" (one name for all experts, the number is in
            `expert`), "shared_expert.gate_proj", "cross_attn.q_proj", "linear_attn.norm". Outside the decoder the
            whole dotted name stays: "vision_tower.encoder.layers.3.self_attn.q_proj".
        parameter: "weight", "bias", or what a quantised checkpoint adds ("weight_scale"); "weight" for a tensor
            that stands under its module's name alone ("mlp.experts.down_proj").
        expert: number of the expert, None outside experts and where all experts share one tensor.
        role: the module in Llama's naming where there is one ("c_proj" of attention -> "o_proj"), else `module`.
        path: the module's dotted name within its layer (or model), expert number included: "mlp.experts.3.w1".
    """

    name: str
    layer: int | None
    block: str
    module: str
    parameter: str
    expert: int | None
    role: str
    path: str

    @property
    def row(self) -> str:
        """Name of the tensor's row on a module x layer board: `module`, or "attn.c_proj" where `module` alone names
        two different things in one layer (GPT-2)."""
        return _short_path(self.path, 2) if self.module in _TWICE_IN_A_LAYER else self.module


# Roles: Llama's names, and the nearest common name for what Llama does not have. The order is anatomical.
_ROLE_BLOCKS: dict[str, str] = {
    "embed_tokens": "embedding",
    "embed_positions": "embedding",
    "input_layernorm": "norm",
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "kv_proj": "attention",
    "qkv_proj": "attention",
    "q_a_proj": "attention",
    "q_a_layernorm": "norm",
    "q_b_proj": "attention",
    "kv_a_proj_with_mqa": "attention",
    "kv_a_layernorm": "norm",
    "kv_b_proj": "attention",
    "q_norm": "norm",
    "k_norm": "norm",
    "o_proj": "attention",
    "post_attention_layernorm": "norm",
    "pre_feedforward_layernorm": "norm",
    "router": "mlp",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "gate_up_proj": "mlp",
    "down_proj": "mlp",
    "shared_expert_gate": "mlp",
    "post_feedforward_layernorm": "norm",
    "norm": "norm",
    "lm_head": "head",
}
ROLES: tuple[str, ...] = tuple(_ROLE_BLOCKS)
_QKV = ("q_proj", "k_proj", "v_proj", "kv_proj", "qkv_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
_GROUP_BLOCKS = {"attn": "attention", "mlp": "mlp", "norms": "norm", "emb": "embedding", "head": "head"}

GROUPS: dict[str, frozenset[str]] = {
    "all": frozenset(ROLES),
    "emb": frozenset(role for role, block in _ROLE_BLOCKS.items() if block == "embedding"),
    "norms": frozenset(role for role, block in _ROLE_BLOCKS.items() if block == "norm"),
    "attn": frozenset(role for role, block in _ROLE_BLOCKS.items() if block == "attention"),
    "qkv": frozenset(_QKV),
    "mlp": frozenset(role for role, block in _ROLE_BLOCKS.items() if block == "mlp"),
    "head": frozenset(role for role, block in _ROLE_BLOCKS.items() if block == "head"),
}
"""Group -> the roles known to be in it. A group may hold more than these: see `in_group`."""

EXPLANATIONS: dict[str, str] = {
    "embed_tokens": "Token embedding (embed_tokens): turns each token into the vector that the layers work on.",
    "embed_positions": "Position embedding (embed_positions): tells the model where in the text a token stands.",
    "input_layernorm": "Norm before attention (input_layernorm): brings the vectors to one scale before attention reads"
    " them.",
    "q_proj": "Attention query (q_proj): forms the question with which each token looks for others.",
    "k_proj": "Attention key (k_proj): forms the label by which a token can be found by others.",
    "v_proj": "Attention value (v_proj): forms what a token hands over to those that look at it.",
    "kv_proj": "Fused attention memory (kv_proj): key and value in a single matrix.",
    "qkv_proj": "Fused attention input (qkv_proj): query, key and value in a single matrix.",
    "q_a_proj": "Query compression (q_a_proj): squeezes a token before its attention query is formed.",
    "q_a_layernorm": "Norm of the compressed query (q_a_layernorm): brings the squeezed query to one scale.",
    "q_b_proj": "Query expansion (q_b_proj): unfolds the squeezed query into one question per head.",
    "kv_a_proj_with_mqa": "Key and value compression (kv_a_proj_with_mqa): squeezes what attention has to remember of a"
    " token.",
    "kv_a_layernorm": "Norm of the compressed memory (kv_a_layernorm): brings the squeezed key and value to one scale.",
    "kv_b_proj": "Key and value expansion (kv_b_proj): unfolds the squeezed memory into keys and values for each head.",
    "q_norm": "Query norm (q_norm): brings the attention queries to one scale before they are compared.",
    "k_norm": "Key norm (k_norm): brings the attention keys to one scale before they are compared.",
    "o_proj": "Attention output projection (o_proj): mixes what the heads found back into the residual stream.",
    "post_attention_layernorm": "Norm after attention (post_attention_layernorm): in most models it brings the vectors"
    " to one scale before the MLP reads them.",
    "pre_feedforward_layernorm": "Norm before the MLP (pre_feedforward_layernorm): brings the vectors to one scale"
    " before the MLP reads them.",
    "router": "Router (gate): decides which experts work on a token.",
    "gate_proj": "MLP gate (gate_proj): decides how strongly each hidden feature of the MLP is let through.",
    "up_proj": "MLP input (up_proj): spreads a token's vector out over the many hidden features of the MLP.",
    "gate_up_proj": "Fused MLP input (gate_up_proj): the MLP's gate and its input in a single matrix.",
    "down_proj": "MLP output (down_proj): writes what the MLP found back into the residual stream.",
    "shared_expert_gate": "Shared expert's gate (shared_expert_gate): decides how much the shared expert counts.",
    "post_feedforward_layernorm": "Norm after the MLP (post_feedforward_layernorm): brings the MLP's result to one"
    " scale before it is added.",
    "norm": "Final norm (norm): brings the last layer's vectors to one scale before words are chosen.",
    "lm_head": "Output head (lm_head): turns the last vector into a score for every possible next token.",
}
"""Role -> one plain sentence, the everyday words first and the term after them."""

GROUP_EXPLANATIONS: dict[str, str] = {
    "all": "Everything (all): every tensor of the model.",
    "emb": "Embeddings (emb): what turns tokens into vectors.",
    "norms": "All norms (norms): in the layers, within attention, and at the end.",
    "attn": "Attention (attn): query, key, value and output projections.",
    "qkv": "Attention inputs (qkv): query, key and value projections, without the output projection.",
    "mlp": "MLP (mlp): gate, up and down projections, experts and routers included.",
    "head": "Output head (head): what turns the last vector into scores for the next token.",
}

_BLOCK_EXPLANATIONS = {
    "embedding": "Embedding ({}): part of what turns tokens into vectors.",
    "attention": "Part of attention ({}): how tokens look at each other.",
    "mlp": "Part of the MLP ({}): how each token's vector is worked on by itself.",
    "norm": "Norm ({}): brings vectors to one scale.",
    "head": "Output head ({}): part of what scores the next token.",
    "other": "Another part of the model ({}): not one of the modules that decoders have in common.",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that may stand before the decoder's own names. Anything else in front means another tower ("visual.blocks.0",
# "mtp.layers.0"), whose layer numbers are not the decoder's.
_WRAPPERS = _words(
    "model language_model transformer gpt_neox decoder backbone text_model llm lm base_model module rwkv"
    " biogpt text_decoder thinker _orig_mod _fsdp_wrapped_module"
)
_CONTAINERS = _words("layers h blocks layer block")
_TWICE_IN_A_LAYER = _words("c_proj key value receptance time_mix_key time_mix_receptance fn base scale")

_QUANTISATION = (
    "weight_scale weight_scale_inv weight_scale_2 weight_zero_point weight_packed weight_shape weight_g_idx input_scale"
    " input_zero_point output_scale k_scale v_scale qweight qzeros scales g_idx zeros absmax quant_map quant_state"
    " SCB weight_format biases"
)
_PARAMETERS = _words(
    f"weight bias {_QUANTISATION} e_score_correction_bias inv_freq masked_bias running_mean running_var"
)
_BITSANDBYTES = re.compile(r"\.(?:weight|bias)\.((?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+))$")
_FUSED_SUFFIX = re.compile(r"^(gate_up_proj|down_proj|gate_proj|up_proj)_(bias|blocks|scales)$")  # gpt-oss experts
_NORM = re.compile(r"norm|(?:^|_)ln(?:_|\d|$)", re.IGNORECASE)
_EXPERT_WORD = re.compile(r"^(?:expert_)?(\d+)$")
_SHARED_EXPERT = re.compile(r"^shared_(?:experts?|mlp)$")
_ATTENTION = re.compile(r"att(?:n|ention)", re.IGNORECASE)
_MLP = re.compile(r"^(?:mlp|ffn|feed_?forward|ff|.*moe.*|experts|shared_experts?|shared_mlp)$", re.IGNORECASE)
_VAGUE = _words("layer linear base_layer lora_A lora_B proj conv norm wg out")  # need the word before
_KEPT_PARENTS = frozenset({"experts", "router", "indexer", "compressor"})
_SHELLS = frozenset({"linear", "base_layer"})  # wrap another module, whose role they keep: "q_proj.base_layer"


def _table(**aliases: str) -> dict[str, str]:
    """{"wq": "q_proj", ...} out of role="wq query"."""
    return {alias: role for role, words in aliases.items() for alias in words.split()}


_TOP_ALIASES = _table(
    embed_tokens="wte embed_in word_embeddings tok_embeddings embeddings embed embedding tokens_embed",
    embed_positions="wpe position_embeddings position_embedding positions_embed",
    norm="ln_f final_layernorm final_layer_norm norm_f final_norm ln_out embedding_norm layer_norm layernorm",
    lm_head="embed_out output output_layer output_projection head ff_out",
)
_ATTENTION_ALIASES = _table(
    q_proj="wq Wq query q q_lin",
    k_proj="wk Wk key k k_lin",
    v_proj="wv Wv value v v_lin",
    qkv_proj="c_attn query_key_value Wqkv wqkv W_pack qkv in_proj in_proj_qkv in_proj_qkvz",
    o_proj="c_proj dense wo out_proj out o out_lin",
    q_a_layernorm="q_a_norm",
    kv_a_layernorm="kv_a_norm",
    q_norm="q_layernorm q_ln query_norm query_layernorm",
    k_norm="k_layernorm k_ln key_norm key_layernorm",
)
_MLP_ALIASES = _table(
    gate_proj="w1",
    up_proj="w3 fc1 fc_in c_fc dense_h_to_4h wi linear_1",
    down_proj="w2 fc2 fc_out c_proj dense_4h_to_h wo linear_2 output_linear",
    gate_up_proj="ff_proj input_linear gate_and_up_proj",
    router="wg",
)
_QWEN1_MLP = _table(up_proj="w1", gate_proj="w2")  # Qwen (1) names them the other way round: w1(x) * silu(w2(x))
_LAYER_ALIASES = _table(
    qkv_proj="att_proj",
    o_proj="attn_out",
    up_proj="fc1",
    down_proj="fc2 ff_out",
    gate_up_proj="ff_proj",
    input_layernorm="ln_1 ln1 norm_1 norm1 attention_norm attn_norm self_attn_layer_norm ln_attn operator_norm"
    " attention_layernorm layernorm1 temporal_pre_norm",
    post_attention_layernorm="ln_2 ln2 norm_2 norm2 ffn_norm final_layer_norm ln_mlp"
    " feedforward_layernorm layernorm2 channel_pre_norm",
    pre_feedforward_layernorm="pre_ff_layernorm",
    lm_head="head",
)


@functools.lru_cache(maxsize=1 << 17)
def parse(name: str) -> Part:
    """The place of the tensor called `name`; never fails, whatever the name."""
    path, parameter = _split_parameter(name)
    words = path.split(".")
    start = 0
    while start < len(words) and words[start] in _WRAPPERS:
        start += 1
    if start and words[start : start + 2] == ["encoder", "layers"] and words[start - 1] == "transformer":
        start += 1  # ChatGLM keeps its decoder under transformer.encoder
    elif start and words[start:] == ["encoder", "final_layernorm"] and words[start - 1] == "transformer":
        start += 1
    rest = words[start:]
    if len(rest) > 2 and rest[0] in _CONTAINERS and _is_number(rest[1]):
        return _in_layer(name, int(rest[1]), rest[2:], parameter)
    return _outside(name, words, rest, parameter)


def in_group(part: Part, group: str) -> bool:
    """Whether `part` belongs to `group`, a key of GROUPS. Groups do not overlap, but for `all` and for `qkv`, which is
    the part of `attn` that is not the output projection; norms within attention are `norms`."""
    if group == "all":
        return True
    if group == "qkv":
        return part.role in GROUPS["qkv"]
    return part.block == _GROUP_BLOCKS[group]


def tower(part: Part) -> str:
    """Of a tensor outside the decoder the name of what it belongs to ("visual", "model.vision_tower"), by which all of
    it is meant in a recipe; "" for the decoder's own tensors."""
    if part.layer is not None or part.block != "other":
        return ""
    words = part.path.split(".")
    start = next((i for i, word in enumerate(words) if word not in _WRAPPERS), len(words) - 1)
    return ".".join(words[: start + 1])


def sort_key(part: Part) -> tuple[int, int, int, str, int, int, str]:
    """Key for anatomical order: embedding, then per layer norm, q, k, v, o, norm, gate, up, down, then the final norm
    and the head, at last what is not of the decoder. Weights stand before biases."""
    if part.layer is not None:
        section = 1
    elif part.block == "embedding":
        section = 0
    elif part.block in ("norm", "head"):
        section = 2
    else:
        section = 3
    parameter_rank = {"weight": 0, "bias": 1}.get(part.parameter, 2)
    layer = -1 if part.layer is None else part.layer
    expert = -1 if part.expert is None else part.expert
    return section, layer, _rank(part), part.row, expert, parameter_rank, part.name


def explain(part_or_role: Part | str) -> str:
    """One plain sentence on what a tensor, a role or a group does; never empty."""
    if isinstance(part_or_role, str):
        word = part_or_role
        known = EXPLANATIONS.get(word) or GROUP_EXPLANATIONS.get(word)
        return known or _BLOCK_EXPLANATIONS["other"].format(word)
    part = part_or_role
    sentence = EXPLANATIONS.get(part.role)
    if sentence is None or (part.role == "norm" and part.layer is not None):
        sentence = _BLOCK_EXPLANATIONS[part.block].format(part.module)
    if part.module.startswith("experts."):
        sentence += " Each expert has its own; a router picks the experts for a token."
    elif _SHARED_EXPERT.match(part.module.split(".")[0]):
        sentence += " This one belongs to the shared expert, which works on every token."
    return sentence


def _split_parameter(name: str) -> tuple[str, str]:
    """("model.layers.0.mlp.up_proj", "weight"); a name that ends in no known parameter is its module's weight."""
    found = _BITSANDBYTES.search(name)
    if found:
        return name[: found.start()], name[found.start(1) :]
    path, _, last = name.rpartition(".")
    if path and last in _PARAMETERS:
        return path, last
    fused = _FUSED_SUFFIX.match(last)
    if fused and path:
        return f"{path}.{fused[1]}", fused[2]
    return name, "weight"


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()


def _in_layer(name: str, layer: int, words: list[str], parameter: str) -> Part:
    """A tensor under `layers.N`; `words` is what follows the number."""
    expert = None
    plain = list(words)  # without the expert's number
    for i, word in enumerate(words[:-1]):
        number = _EXPERT_WORD.match(words[i + 1])
        if word == "experts" and number:
            expert, plain = int(number[1]), words[: i + 1] + words[i + 2 :]
            break
    module = _module(plain)
    role, block = _role_and_block(plain, module)
    return Part(name, layer, block, module, parameter, expert, role, ".".join(words))


def _module(words: list[str]) -> str:
    """The shortest name that says what it is: the last word, with what has to stand before it."""
    parents, last = words[:-1], words[-1]
    for i, word in enumerate(parents[1:], start=1):
        if word in ("lora_A", "lora_B"):
            return ".".join(words[i - 1 :])
    for parent in reversed(parents):
        if parent in _KEPT_PARENTS or _SHARED_EXPERT.match(parent) or "cross_att" in parent:
            return f"{parent}.{last}"
    if parents and (last in _VAGUE or _is_number(last)):
        return _short_path(".".join(words), 2)
    return last


def _role_and_block(words: list[str], module: str) -> tuple[str, str]:
    """Role and block of a module within a layer. A module that bears a role's name has that role, always: recipes
    rely on two different role names never meaning the same tensor."""
    if len(words) > 1 and (words[-1] in _SHELLS or _is_number(words[-1])):
        words = words[:-1]
    parents, last = words[:-1], words[-1]
    in_attention = any(_ATTENTION.search(word) for word in parents)
    in_mlp = not in_attention and any(_MLP.match(word) for word in parents)
    role = _role(parents, last, module, in_attention, in_mlp)
    if role in _ROLE_BLOCKS:
        return role, _ROLE_BLOCKS[role]
    if _NORM.search(last):
        return role, "norm"
    if in_attention or in_mlp:
        return role, "attention" if in_attention else "mlp"
    return role, "attention" if _ATTENTION.search(last) else "mlp" if _MLP.match(last) else "other"


def _role(parents: list[str], last: str, module: str, in_attention: bool, in_mlp: bool) -> str:
    if "router" in parents[-1:]:
        return "router"
    if "indexer" in parents or "compressor" in parents or ("." in module and last == "norm"):
        return module  # reads like a role and is none
    if last in _ROLE_BLOCKS:
        return last
    if in_attention and last in _ATTENTION_ALIASES:
        return _ATTENTION_ALIASES[last]
    if in_mlp and parents[-1] == "mlp" and last in _QWEN1_MLP:
        return _QWEN1_MLP[last]
    if last == "gate" and not in_attention:
        return "router"
    if in_mlp and last in _MLP_ALIASES:
        return _MLP_ALIASES[last]
    return _LAYER_ALIASES.get(last, module)


def _outside(name: str, words: list[str], rest: list[str], parameter: str) -> Part:
    """A tensor that is in no decoder layer."""
    path = ".".join(words)
    whole = Part(name, None, "other", path, parameter, None, path, path)
    if not rest or (len(rest) > 1 and rest[0] not in ("embedding", "embeddings", "output_layer")):
        return whole
    last = rest[-1]
    role = last if last in _ROLE_BLOCKS else _TOP_ALIASES.get(last)
    if role:
        return Part(name, None, _ROLE_BLOCKS[role], last, parameter, None, role, ".".join(rest))
    module = ".".join(rest)
    if _NORM.search(last):
        return Part(name, None, "norm", module, parameter, None, module, module)
    if last.startswith(("embed_tokens", "wte")) or last.endswith(("_embeddings", "_embedding")):
        return Part(name, None, "embedding", module, parameter, None, module, module)
    return whole


def _rank(part: Part) -> int:
    """Place within the layer (or within what has no layer), ten apart so that unknown modules fit between."""
    if part.role in _ROLE_BLOCKS:
        return 10 * ROLES.index(part.role)
    if part.block == "norm" and part.layer is None:
        return 10 * ROLES.index("embed_positions")  # a norm of the embedding, before the final norm
    after = {"attention": "o_proj", "mlp": "down_proj", "norm": "o_proj" if "att" in part.module else "down_proj"}
    return 10 * ROLES.index(after.get(part.block, "lm_head")) + 5


def _short_path(path: str, n: int) -> str:
    """The last `n` words of a dotted path, expert numbers left out."""
    kept = []
    for word in path.split("."):
        if not (kept and kept[-1] == "experts" and _EXPERT_WORD.match(word)):
            kept.append(word)
    return ".".join(kept[-n:])
