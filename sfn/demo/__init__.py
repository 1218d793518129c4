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
    Example("problem", "Compute 6 * 8 - 13 + 22.", "57"),
    Example("problem", "Find the value of 41 - 19 + 7 * 3.", "43"),
    Example("problem", "Lucy has 50 pens. She gives 21 to Tom. She sells 14. How many pens does Lucy have now?", "15"),
    Example(
        "problem",
        "Leo has 29 eggs. He gives 2 eggs to each of 5 friends. He buys 3 more. How many eggs does Leo have now?",
        "22",
    ),
    Example(
        "problem",
        "Mia has 24 shells. She finds 15 shells. She gives 9 to Ben. She loses 4. How many shells does Mia have now?",
        "26",
    ),
    Example("problem", "Show the work. What is 5 + 17 + 26 + 4?", "52"),
    Example("dialogue", "Tell me a story about Lucy and a shiny kite."),
    Example("dialogue", "Hello, my name is Nora. How are you?"),
    Example("dialogue", "My name is Sam. I like books, but I do not like coins. What do I like?"),
    Example("dialogue", "I am bored today. What can I do?"),
    Example("dialogue", "Describe the lamp of Ruby. It is old and it is in the library."),
    Example("dialogue", "What does a duck say?"),
)


def folders(root: Path = _HERE) -> tuple[Path, Path]:
    """The checkpoint folders of A (base) and B (reasoning) below `root`."""
    return root / "tiny-base", root / "tiny-reasoner"
