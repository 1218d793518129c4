"""What the vLLM tests compare: recipes, prompts, and what an engine says."""

from __future__ import annotations

from dataclasses import dataclass

RECIPES = {
    "A": "",
    "o_proj": "o_proj@all=B",
    "q alone": "q_proj@all=B",
    "gate alone": "gate_proj@all=B",
    "norms": "norms=B",
    "embed": "emb=B",
    "head": "head=B",
    "mix": "o_proj@all=B; qkv@1-2=B:0.5; mlp@0,4=B; norms=B; down_proj@5=zero",
    "B": "all=B",
}
QUESTIONS = (
    "<|user|>What is 5 + 17 + 26 + 4?<|assistant|>",
    "<|user|>Tell me a story about Lucy and a shiny kite.<|assistant|>",
    "Lucy found a kite",
)
MAX_TOKENS = 24


@dataclass(frozen=True)
class Said:
    """Greedy token ids of one prompt, and the three highest log-probabilities at each."""

    ids: list[int]
    logprobs: list[list[float]]
