"""Merged checkpoints of models with other names and other builds than Llama's, as transformers itself saves them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfn import checkpoints, pairs, recipes, surgery

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "vocab_size": 96,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
BUILDS = {
    "GPT2": GPT2,
    "GPT2 as on the Hub": GPT2,  # its names lack the prefix "transformer."
    "GPTNeoX": SIZES,
    "Gemma2": SIZES | {"num_key_value_heads": 2, "head_dim": 8},
    "Phi3": SIZES | {"num_key_value_heads": 2},
    "GptOss": SIZES | {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
}
TOKENS = torch.tensor([[5, 6, 7, 8, 9]])


def saved(folder: Path, build: str, seed: int) -> Path:
    import transformers

    config = getattr(transformers, f"{build.split()[0]}Config")(**BUILDS[build])
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    if build.endswith("Hub"):
        file = folder / "model.safetensors"
        tensors = {name.removeprefix("transformer."): tensor.clone() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.mark.parametrize("build", BUILDS)
def test_merged_models_compute_what_they_should(tmp_path: Path, build: str) -> None:
    a, b = (saved(tmp_path / name, build, seed) for seed, name in enumerate("ab"))
    pair = pairs.compare(checkpoints.open(a), checkpoints.open(b))

    def merged(text: str) -> torch.Tensor:
        return logits(surgery.write(pair, recipes.parse(text), tmp_path / text))

    of_a = logits(a)
    assert torch.equal(merged("all=A"), of_a)
    assert torch.equal(merged("all=B"), logits(b))
    for text in ("head=B", "emb=B", "o_proj=B"):
        assert not torch.equal(merged(text), of_a)
    live = surgery.live_sources(pair, recipes.resolve(recipes.parse("all@1=remove"), pair))
    silenced = tmp_path / "silenced"
    surgery.write(pair, recipes.parse("all@1=zero; norms@1=A"), silenced)
    parts = {row.name: row.part for row in pair.rows}
    assert all(source.kind == ("zero" if parts[name].block != "norm" or parts[name].parameter == "bias" else "A")
               for name, source in live.items() if parts[name].layer == 1)  # fmt: skip
    assert torch.equal(merged("all@1=remove"), logits(silenced))
