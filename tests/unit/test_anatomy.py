"""Names of tensors as real checkpoints have them, and where they belong."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfn import anatomy

# name: (layer, block, module, parameter, expert, role)
KNOWN = {
    # Llama, Mistral, Qwen2, Qwen3
    "model.embed_tokens.weight": (None, "embedding", "embed_tokens", "weight", None, "embed_tokens"),
    "model.layers.0.input_layernorm.weight": (0, "norm", "input_layernorm", "weight", None, "input_layernorm"),
    "model.layers.17.self_attn.q_proj.weight": (17, "attention", "q_proj", "weight", None, "q_proj"),
    "model.layers.3.self_attn.k_proj.bias": (3, "attention", "k_proj", "bias", None, "k_proj"),
    "model.layers.3.self_attn.o_proj.weight": (3, "attention", "o_proj", "weight", None, "o_proj"),
    "model.layers.3.self_attn.q_norm.weight": (3, "norm", "q_norm", "weight", None, "q_norm"),
    "model.layers.3.mlp.down_proj.weight": (3, "mlp", "down_proj", "weight", None, "down_proj"),
    "model.norm.weight": (None, "norm", "norm", "weight", None, "norm"),
    "lm_head.weight": (None, "head", "lm_head", "weight", None, "lm_head"),
    # Llama as Meta shipped it
    "layers.4.attention.wq.weight": (4, "attention", "wq", "weight", None, "q_proj"),
    "layers.4.attention.wo.weight": (4, "attention", "wo", "weight", None, "o_proj"),
    "layers.4.feed_forward.w1.weight": (4, "mlp", "w1", "weight", None, "gate_proj"),
    "layers.4.feed_forward.w2.weight": (4, "mlp", "w2", "weight", None, "down_proj"),
    "layers.4.feed_forward.w3.weight": (4, "mlp", "w3", "weight", None, "up_proj"),
    "layers.4.ffn_norm.weight": (4, "norm", "ffn_norm", "weight", None, "post_attention_layernorm"),
    "tok_embeddings.weight": (None, "embedding", "tok_embeddings", "weight", None, "embed_tokens"),
    "output.weight": (None, "head", "output", "weight", None, "lm_head"),
    # Gemma 2 and 3
    "model.layers.1.pre_feedforward_layernorm.weight": (
        1, "norm", "pre_feedforward_layernorm", "weight", None, "pre_feedforward_layernorm",
    ),
    "language_model.model.layers.1.self_attn.k_norm.weight": (1, "norm", "k_norm", "weight", None, "k_norm"),
    # Phi-3 and Phi-2
    "model.layers.9.self_attn.qkv_proj.weight": (9, "attention", "qkv_proj", "weight", None, "qkv_proj"),
    "model.layers.9.mlp.gate_up_proj.weight": (9, "mlp", "gate_up_proj", "weight", None, "gate_up_proj"),
    "model.layers.9.self_attn.dense.bias": (9, "attention", "dense", "bias", None, "o_proj"),
    "model.layers.9.mlp.fc1.weight": (9, "mlp", "fc1", "weight", None, "up_proj"),
    "model.layers.9.mlp.fc2.weight": (9, "mlp", "fc2", "weight", None, "down_proj"),
    "model.final_layernorm.bias": (None, "norm", "final_layernorm", "bias", None, "norm"),
    "lm_head.bias": (None, "head", "lm_head", "bias", None, "lm_head"),
    # Mixtral
    "model.layers.2.block_sparse_moe.experts.3.w1.weight": (2, "mlp", "experts.w1", "weight", 3, "gate_proj"),
    "model.layers.2.block_sparse_moe.experts.3.w2.weight": (2, "mlp", "experts.w2", "weight", 3, "down_proj"),
    "model.layers.2.block_sparse_moe.gate.weight": (2, "mlp", "gate", "weight", None, "router"),
    # Qwen2-MoE, Qwen3-MoE, fused experts
    "model.layers.2.mlp.experts.7.gate_proj.weight": (2, "mlp", "experts.gate_proj", "weight", 7, "gate_proj"),
    "model.layers.2.mlp.experts.gate_up_proj": (2, "mlp", "experts.gate_up_proj", "weight", None, "gate_up_proj"),
    "model.layers.2.mlp.shared_expert.up_proj.weight": (
        2, "mlp", "shared_expert.up_proj", "weight", None, "up_proj",
    ),
    "model.layers.2.mlp.shared_expert_gate.weight": (
        2, "mlp", "shared_expert_gate", "weight", None, "shared_expert_gate",
    ),
    "model.layers.2.mlp.gate.weight": (2, "mlp", "gate", "weight", None, "router"),
    # Qwen3-Next: linear attention beside the full one
    "model.layers.2.linear_attn.out_proj.weight": (2, "attention", "out_proj", "weight", None, "o_proj"),
    "model.layers.2.linear_attn.norm.weight": (2, "norm", "linear_attn.norm", "weight", None, "linear_attn.norm"),
    "model.layers.2.linear_attn.A_log": (2, "attention", "A_log", "weight", None, "A_log"),
    "mtp.layers.0.self_attn.q_proj.weight": (
        None, "other", "mtp.layers.0.self_attn.q_proj", "weight", None, "mtp.layers.0.self_attn.q_proj",
    ),
    # DeepSeek V2 and V3
    "model.layers.5.self_attn.q_a_proj.weight": (5, "attention", "q_a_proj", "weight", None, "q_a_proj"),
    "model.layers.5.self_attn.q_a_layernorm.weight": (5, "norm", "q_a_layernorm", "weight", None, "q_a_layernorm"),
    "model.layers.5.self_attn.kv_a_proj_with_mqa.weight": (
        5, "attention", "kv_a_proj_with_mqa", "weight", None, "kv_a_proj_with_mqa",
    ),
    "model.layers.5.self_attn.kv_b_proj.weight_scale_inv": (
        5, "attention", "kv_b_proj", "weight_scale_inv", None, "kv_b_proj",
    ),
    "model.layers.5.mlp.gate.e_score_correction_bias": (
        5, "mlp", "gate", "e_score_correction_bias", None, "router",
    ),
    "model.layers.5.mlp.shared_experts.down_proj.weight": (
        5, "mlp", "shared_experts.down_proj", "weight", None, "down_proj",
    ),
    "model.layers.61.shared_head.norm.weight": (61, "norm", "shared_head.norm", "weight", None, "shared_head.norm"),
    # DeepSeek V3.2, LongCat, JetMoE, LFM2
    "model.layers.5.self_attn.indexer.wk.weight": (5, "attention", "indexer.wk", "weight", None, "indexer.wk"),
    "model.layers.5.self_attn.indexer.k_norm.bias": (5, "norm", "indexer.k_norm", "bias", None, "indexer.k_norm"),
    "model.layers.5.self_attn.1.q_b_proj.weight": (5, "attention", "q_b_proj", "weight", None, "q_b_proj"),
    "model.layers.5.input_layernorm.1.weight": (5, "norm", "input_layernorm.1", "weight", None, "input_layernorm"),
    "model.layers.5.mlp.router.classifier.weight": (5, "mlp", "router.classifier", "weight", None, "router"),
    "model.layers.5.mlp.bias": (5, "mlp", "mlp", "bias", None, "mlp"),
    "model.layers.5.operator_norm.weight": (5, "norm", "operator_norm", "weight", None, "input_layernorm"),
    "model.layers.5.self_attn.compressor.kv_proj.weight": (
        5, "attention", "compressor.kv_proj", "weight", None, "compressor.kv_proj",
    ),
    "model.layers.1.mixer.gate.weight": (1, "mlp", "gate", "weight", None, "router"),
    "model.layers.1.pre_ff_layernorm.weight": (
        1, "norm", "pre_ff_layernorm", "weight", None, "pre_feedforward_layernorm",
    ),
    "model.layers.0.self_attn.qkv_proj.lora_A.vision.weight": (
        0, "attention", "qkv_proj.lora_A.vision", "weight", None, "qkv_proj.lora_A.vision",
    ),
    # gpt-oss and Llama 4
    "model.layers.8.mlp.router.bias": (8, "mlp", "router", "bias", None, "router"),
    "model.layers.8.mlp.experts.down_proj_bias": (8, "mlp", "experts.down_proj", "bias", None, "down_proj"),
    "model.layers.8.mlp.experts.gate_up_proj_blocks": (
        8, "mlp", "experts.gate_up_proj", "blocks", None, "gate_up_proj",
    ),
    "model.layers.8.self_attn.sinks": (8, "attention", "sinks", "weight", None, "sinks"),
    "language_model.model.layers.8.feed_forward.router.weight": (8, "mlp", "router", "weight", None, "router"),
    # GPT-2 and StarCoder2
    "transformer.h.0.attn.c_attn.weight": (0, "attention", "c_attn", "weight", None, "qkv_proj"),
    "transformer.h.0.attn.c_proj.bias": (0, "attention", "c_proj", "bias", None, "o_proj"),
    "transformer.h.0.mlp.c_fc.weight": (0, "mlp", "c_fc", "weight", None, "up_proj"),
    "transformer.h.0.mlp.c_proj.weight": (0, "mlp", "c_proj", "weight", None, "down_proj"),
    "transformer.h.0.ln_1.weight": (0, "norm", "ln_1", "weight", None, "input_layernorm"),
    "h.11.ln_2.bias": (11, "norm", "ln_2", "bias", None, "post_attention_layernorm"),
    "transformer.wte.weight": (None, "embedding", "wte", "weight", None, "embed_tokens"),
    "wpe.weight": (None, "embedding", "wpe", "weight", None, "embed_positions"),
    "transformer.ln_f.weight": (None, "norm", "ln_f", "weight", None, "norm"),
    # Qwen (1): w1 is the input and w2 the gate
    "transformer.h.0.mlp.w1.weight": (0, "mlp", "w1", "weight", None, "up_proj"),
    "transformer.h.0.mlp.w2.weight": (0, "mlp", "w2", "weight", None, "gate_proj"),
    # GPT-NeoX (Pythia)
    "gpt_neox.layers.0.attention.query_key_value.weight": (
        0, "attention", "query_key_value", "weight", None, "qkv_proj",
    ),
    "gpt_neox.layers.0.attention.dense.weight": (0, "attention", "dense", "weight", None, "o_proj"),
    "gpt_neox.layers.0.mlp.dense_h_to_4h.bias": (0, "mlp", "dense_h_to_4h", "bias", None, "up_proj"),
    "gpt_neox.layers.0.mlp.dense_4h_to_h.bias": (0, "mlp", "dense_4h_to_h", "bias", None, "down_proj"),
    "gpt_neox.embed_in.weight": (None, "embedding", "embed_in", "weight", None, "embed_tokens"),
    "gpt_neox.final_layer_norm.weight": (None, "norm", "final_layer_norm", "weight", None, "norm"),
    "embed_out.weight": (None, "head", "embed_out", "weight", None, "lm_head"),
    # Falcon and BLOOM
    "transformer.h.5.self_attention.query_key_value.weight": (
        5, "attention", "query_key_value", "weight", None, "qkv_proj",
    ),
    "transformer.h.5.ln_attn.weight": (5, "norm", "ln_attn", "weight", None, "input_layernorm"),
    "transformer.word_embeddings.weight": (None, "embedding", "word_embeddings", "weight", None, "embed_tokens"),
    "transformer.word_embeddings_layernorm.weight": (
        None, "norm", "word_embeddings_layernorm", "weight", None, "word_embeddings_layernorm",
    ),
    # OPT: one name for two norms
    "model.decoder.layers.0.self_attn.out_proj.weight": (0, "attention", "out_proj", "weight", None, "o_proj"),
    "model.decoder.layers.0.fc1.weight": (0, "mlp", "fc1", "weight", None, "up_proj"),
    "model.decoder.layers.0.final_layer_norm.weight": (
        0, "norm", "final_layer_norm", "weight", None, "post_attention_layernorm",
    ),
    "model.decoder.final_layer_norm.weight": (None, "norm", "final_layer_norm", "weight", None, "norm"),
    "model.decoder.embed_positions.weight": (
        None, "embedding", "embed_positions", "weight", None, "embed_positions",
    ),
    # GPT-J, GPT-Neo, MPT, DBRX, InternLM2, Baichuan, OLMo, ChatGLM
    "transformer.h.0.mlp.fc_in.weight": (0, "mlp", "fc_in", "weight", None, "up_proj"),
    "transformer.h.0.attn.attention.out_proj.weight": (0, "attention", "out_proj", "weight", None, "o_proj"),
    "transformer.blocks.0.attn.Wqkv.weight": (0, "attention", "Wqkv", "weight", None, "qkv_proj"),
    "transformer.blocks.0.ffn.down_proj.weight": (0, "mlp", "down_proj", "weight", None, "down_proj"),
    "transformer.blocks.0.norm_attn_norm.norm_1.weight": (0, "norm", "norm_1", "weight", None, "input_layernorm"),
    "transformer.blocks.0.ffn.router.layer.weight": (0, "mlp", "router.layer", "weight", None, "router"),
    "model.layers.0.attention.wqkv.weight": (0, "attention", "wqkv", "weight", None, "qkv_proj"),
    "model.layers.0.self_attn.W_pack.weight": (0, "attention", "W_pack", "weight", None, "qkv_proj"),
    "model.transformer.blocks.0.att_proj.weight": (0, "attention", "att_proj", "weight", None, "qkv_proj"),
    "transformer.encoder.layers.0.self_attention.dense.weight": (0, "attention", "dense", "weight", None, "o_proj"),
    "transformer.encoder.final_layernorm.weight": (None, "norm", "final_layernorm", "weight", None, "norm"),
    "transformer.output_layer.weight": (None, "head", "output_layer", "weight", None, "lm_head"),
    # Models around a language model
    "model.language_model.layers.5.mlp.up_proj.weight": (5, "mlp", "up_proj", "weight", None, "up_proj"),
    "model.language_model.embed_tokens.weight": (None, "embedding", "embed_tokens", "weight", None, "embed_tokens"),
    "language_model.lm_head.weight": (None, "head", "lm_head", "weight", None, "lm_head"),
    "model.language_model.layers.3.cross_attn.q_proj.weight": (
        3, "attention", "cross_attn.q_proj", "weight", None, "q_proj",
    ),
    # Mamba
    "backbone.layers.0.mixer.in_proj.weight": (0, "other", "in_proj", "weight", None, "in_proj"),
    "backbone.norm_f.weight": (None, "norm", "norm_f", "weight", None, "norm"),
    # Quantised or adapted
    "model.layers.0.mlp.up_proj.weight_scale": (0, "mlp", "up_proj", "weight_scale", None, "up_proj"),
    "model.layers.0.self_attn.q_proj.qweight": (0, "attention", "q_proj", "qweight", None, "q_proj"),
    "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4": (
        0, "mlp", "up_proj", "quant_state.bitsandbytes__nf4", None, "up_proj",
    ),
    "model.layers.0.self_attn.q_proj.base_layer.weight": (
        0, "attention", "q_proj.base_layer", "weight", None, "q_proj",
    ),
    "model.layers.0.self_attn.rotary_emb.inv_freq": (0, "attention", "rotary_emb", "inv_freq", None, "rotary_emb"),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_known_names(name):
    part = anatomy.parse(name)
    assert (part.layer, part.block, part.module, part.parameter, part.expert, part.role) == KNOWN[name]
    assert part.name == name


@pytest.mark.parametrize(
    "name",
    [
        "visual.blocks.3.attn.qkv.weight",
        "model.visual.blocks.3.mlp.gate_proj.weight",
        "vision_tower.vision_model.encoder.layers.11.self_attn.q_proj.weight",
        "model.vision_tower.encoder.layer.2.attention.o_proj.weight",
        "vision_model.transformer.layers.0.self_attn.o_proj.weight",
        "audio_tower.layers.7.self_attn.k_proj.weight",
        "multi_modal_projector.linear_1.weight",
        "text_model.encoder.layers.3.self_attn.q_proj.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
    ],
)
def test_other_towers_are_no_decoder_layers(name):
    part = anatomy.parse(name)
    assert (part.layer, part.block, part.expert) == (None, "other", None)
    assert part.module == part.role == name.removesuffix(".weight")
    assert not any(anatomy.in_group(part, group) for group in anatomy.GROUPS if group != "all")


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("visual.blocks.3.attn.qkv.weight", "visual"),
        ("model.vision_tower.encoder.layer.2.attention.o_proj.weight", "model.vision_tower"),
        ("multi_modal_projector.linear_1.weight", "multi_modal_projector"),
        ("spam", "spam"),
        ("model.layers.3.self_attn.q_proj.weight", ""),
        ("model.embed_tokens.weight", ""),
        ("lm_head.weight", ""),
    ],
)
def test_a_tower_is_named_by_what_it_belongs_to(name, tower):
    assert anatomy.tower(anatomy.parse(name)) == tower


@pytest.mark.parametrize("name", ["", "weight", "spam", "a.b.c", "model.layers.weight", "model.layers.x.q_proj.weight"])
def test_unknown_names_keep_their_own(name):
    part = anatomy.parse(name)
    assert (part.name, part.layer, part.block) == (name, None, "other")
    assert part.module == name.removesuffix(".weight")


@settings(deadline=None)
@given(st.text(alphabet="ab.0_2", max_size=30) | st.text(max_size=30))
def test_no_name_fails_and_none_is_lost(name):
    part = anatomy.parse(name)
    assert part.name == name
    assert (part.row and part.module) or not name
    assert anatomy.explain(part)
    assert anatomy.in_group(part, "all")


@settings(deadline=None)
@given(
    st.sampled_from(["model.layers.0", "h.3", "model", "visual.blocks.2", ""]),
    st.lists(st.sampled_from([*anatomy.ROLES, "mlp", "self_attn", "experts", "3", "ffn", "linear"]), min_size=1),
)
def test_a_roles_name_always_means_that_role(front, words):
    """Recipes reorder rules on the strength of this: no tensor answers to two different role names."""
    part = anatomy.parse(".".join([front, *words, "weight"]).lstrip("."))
    if part.module in anatomy.ROLES:
        assert part.role == part.module
    for group, roles in anatomy.GROUPS.items():
        if part.role in anatomy.ROLES:
            assert anatomy.in_group(part, group) == (part.role in roles)


def test_rows_tell_gpt2s_two_projections_apart():
    rows = [anatomy.parse(f"transformer.h.0.{block}.c_proj.weight").row for block in ("attn", "mlp")]
    assert rows == ["attn.c_proj", "mlp.c_proj"]
    assert anatomy.parse("model.layers.0.self_attn.o_proj.weight").row == "o_proj"
    assert anatomy.parse("rwkv.blocks.0.feed_forward.key.weight").row == "feed_forward.key"


def test_groups():
    def members(group):
        return {anatomy.parse(name).name for name in KNOWN if anatomy.in_group(anatomy.parse(name), group)}

    assert members("qkv") < members("attn")
    assert "model.layers.3.self_attn.o_proj.weight" in members("attn") - members("qkv")
    assert "transformer.h.0.attn.c_attn.weight" in members("qkv")
    assert "model.layers.2.mlp.gate.weight" in members("mlp")
    assert {"model.norm.weight", "model.layers.3.self_attn.q_norm.weight"} < members("norms")
    assert members("head") >= {"lm_head.weight", "embed_out.weight", "language_model.lm_head.weight"}
    assert members("emb") >= {"model.embed_tokens.weight", "wpe.weight"}
    apart = ["attn", "mlp", "norms", "emb", "head"]
    assert sum(len(members(group)) for group in apart) == len(set.union(*map(members, apart)))
    assert members("all") == set(KNOWN)


def test_anatomical_order():
    tails = ["input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.k_proj.weight"]
    tails += ["self_attn.v_proj.weight", "self_attn.q_norm.weight", "self_attn.o_proj.weight", "self_attn.sinks"]
    tails += ["post_attention_layernorm.weight", "mlp.gate.weight", "mlp.experts.2.gate_proj.weight"]
    tails += ["mlp.experts.10.gate_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"]
    order = ["model.embed_tokens.weight"]
    order += [f"model.layers.{layer}.{tail}" for layer in (0, 2, 10) for tail in tails]
    order += ["model.norm.weight", "lm_head.weight", "visual.blocks.0.attn.qkv.weight"]
    shuffled = random.Random(1).sample(order, len(order))
    assert sorted(shuffled, key=lambda name: anatomy.sort_key(anatomy.parse(name))) == order


def test_every_role_and_group_is_explained_in_a_sentence():
    assert set(anatomy.EXPLANATIONS) == set(anatomy.ROLES)
    assert set(anatomy.GROUP_EXPLANATIONS) == set(anatomy.GROUPS)
    for word in [*anatomy.ROLES, *anatomy.GROUPS]:
        sentence = anatomy.explain(word)
        assert sentence[0].isupper()
        assert ": " in sentence
        assert sentence.endswith(".")
    assert "heads found" in anatomy.explain(anatomy.parse("transformer.h.0.attn.c_proj.weight"))
    assert "shared expert" in anatomy.explain(anatomy.parse("model.layers.0.mlp.shared_expert.up_proj.weight"))
    assert "Each expert" in anatomy.explain(anatomy.parse("model.layers.0.mlp.experts.3.up_proj.weight"))
    assert "spam" in anatomy.explain(anatomy.parse("spam.weight"))
