"""What mergekit 0.1.5 calls the tensors of a checkpoint, and the models for which it is known. Text alone."""

from __future__ import annotations

from sfn.anatomy import Part

# Decoders of text that mergekit has a definition of, with the checkpoint's own names but for what `merged_name` says.
KNOWN_TYPES = frozenset({
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2",
    "stablelm", "starcoder2", "cohere", "cohere2", "glm4", "granite", "arcee", "apertus", "exaone", "solar",
})  # fmt: skip
_FUSED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}


def merged_name(part: Part) -> str:
    """mergekit's name for the tensor that `part` goes into: all experts of a layer are two tensors there, as in
    transformers 5, and Mixtral's MLP has the common name."""
    name = part.name.replace(".block_sparse_moe.", ".mlp.")
    if part.expert is None or part.layer is None:
        return name
    fused = _FUSED.get(part.role)
    return f"{name.partition('.experts.')[0]}.experts.{fused}" if fused else name
