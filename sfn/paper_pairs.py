"""The pairs of Shao & Wu, "Who Reasons in the Large Language Models?" (arXiv:2505.20993), as data: offered first.

What is written here never changes; sizes in bytes, licences and what is on this machine are asked of the Hub.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PaperPair:
    """One pair. a, b: names on the Hub; layers, hidden (size), parameters: of A, from its config and model card."""

    a: str
    b: str
    layers: int
    hidden: int
    parameters: int

    @property
    def o_proj_share(self) -> float:
        """Share of the parameters that the attention output projections hold: hidden × hidden in every layer."""
        return self.layers * self.hidden**2 / self.parameters


_QWEN, _DISTILL = "Qwen/Qwen2.5", "deepseek-ai/DeepSeek-R1-Distill"
PAIRS = (
    PaperPair(f"{_QWEN}-Math-1.5B", f"{_DISTILL}-Qwen-1.5B", 28, 1536, 1_543_714_304),
    PaperPair(f"{_QWEN}-Math-7B", f"{_DISTILL}-Qwen-7B", 28, 3584, 7_615_616_512),
    PaperPair("meta-llama/Llama-3.1-8B", f"{_DISTILL}-Llama-8B", 32, 4096, 8_030_261_248),
    PaperPair(f"{_QWEN}-14B", f"{_DISTILL}-Qwen-14B", 48, 5120, 14_770_033_664),
    PaperPair(f"{_QWEN}-32B", f"{_DISTILL}-Qwen-32B", 64, 5120, 32_763_876_352),
    PaperPair("meta-llama/Llama-3.3-70B-Instruct", f"{_DISTILL}-Llama-70B", 80, 8192, 70_553_706_496),
    PaperPair(f"{_QWEN}-32B", "Qwen/QwQ-32B", 64, 5120, 32_763_876_352),
    PaperPair(f"{_QWEN}-32B-Instruct", "simplescaling/s1.1-32B", 64, 5120, 32_763_876_352),
)


def bases_of(b: str) -> tuple[str, ...]:
    """The models that the paper takes as A for this B."""
    return tuple(pair.a for pair in PAIRS if pair.b.lower() == b.lower())


def children_of(a: str) -> tuple[str, ...]:
    """The models that the paper takes as B for this A."""
    return tuple(pair.b for pair in PAIRS if pair.a.lower() == a.lower())
