"""The bundled pair: a small chat model A and a reasoning model B that was fine-tuned from it.

This module only says where the two folders lie and which prompts suit them; it imports nothing heavy. How the pair
was made is in `train`, what it measures in `evaluate`, the world that it speaks about in `world`.
"""

from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt inside the closed world of the pair.

    Attributes:
        kind: "problem" or "dialogue".
        prompt: to be sent as it is, in either prompt mode.
        reference: the right number as text; "" for a dialogue, which has no single right answer.
    """

    kind: str
    prompt: str
    reference: str = ""


EXAMPLES: tuple[Example, ...] = (
    Example("problem", "What is 5 + 17 + 26 + 4?", "52"),
    Example("dialogue", "Tell me a story about Lucy and a shiny kite."),
)


def folders() -> tuple[Path, Path]:
    """The checkpoint folders of A (base) and B (reasoning)."""
    return _HERE / "A", _HERE / "B"
