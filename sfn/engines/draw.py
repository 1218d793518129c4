"""Drawing one token from logits: temperature, top-k, top-p and a seed, independent of torch's global state."""

from __future__ import annotations

import torch

from sfn.records import Sampling


def token(logits: torch.Tensor, how: Sampling, generator: torch.Generator) -> int:
    """Token id from `logits` (vocabulary,); temperature 0 takes the most likely one, the lowest id among equals.

    Filters are applied in the order temperature, top-k, top-p, as vLLM and transformers do, in float32.
    """
    if how.temperature == 0:
        return int(logits.argmax())
    probabilities = filtered(logits.float() / how.temperature, how.top_k, how.top_p)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def filtered(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Probabilities (vocabulary,) float32 after top-k (0: off) and top-p (1: off); the most likely token stays."""
    if 0 < top_k < logits.numel():
        floor = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        # A token stays while the mass before it is below top_p.
        drop = ordered.cumsum(-1) - ordered >= top_p
        probabilities = probabilities.masked_fill(torch.zeros_like(drop).scatter(0, order, drop), 0.0)
        probabilities /= probabilities.sum()
    return probabilities
