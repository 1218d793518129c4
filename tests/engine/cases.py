"""What the vLLM tests compare: recipes, prompts, and what an engine says."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sfn import recipes
from sfn.errors import RecipeError
from sfn.pairs import Pair

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
    "outside": "o_proj@all=B:1.5; mlp@1-3=B:-0.3; head=B:0.6; v_proj@2=reinit:5; norms@4=zero",
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


_WORDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norms", "emb", "head", "qkv")
_SOURCES = ("A", "B", "B", "B:0.5", "B:0.25", "B:-0.5", "B:1.5", "zero", "reinit:3", "reinit:4")


def random_recipes(pair: Pair, count: int, seed: int, *, words: tuple[str, ...] = ()) -> list[str]:
    """Recipes that fit `pair`, always the same: one to four rules, from single cells to everything."""
    draw = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        rules = []
        for _ in range(draw.randint(1, 4)):
            word = draw.choice((*_WORDS, *words, "attn", "mlp", "all"))
            where = draw.choice(("", "@all", f"@{draw.randrange(pair.n_layers)}", f"@{draw.randrange(pair.n_layers)}"))
            rules.append(f"{word}{where}={draw.choice(_SOURCES)}")
        text = "; ".join(rules)
        try:
            plan = recipes.resolve(recipes.parse(text), pair)
        except RecipeError:
            continue  # a layer of what has none
        if plan.moved:
            found.append(text)
    return found
