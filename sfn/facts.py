"""What two checkpoints are, side by side, for people: one fact per line. What follows from differences is `pairs`'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfn import anatomy
from sfn.checkpoints import Checkpoint, text_config

if TYPE_CHECKING:
    from sfn.pairs import Pair

MISSING = "not given"


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of the comparison. a, b: as text. explanation: one plain sentence on what it is."""

    topic: str
    a: str
    b: str
    explanation: str

    @property
    def differs(self) -> bool:
        """Whether the two sides are not the same in this."""
        return self.a != self.b


# Topic, the names that configs have for it (the first that is there counts), explanation.
_SETTINGS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("hidden size", ("hidden_size", "n_embd", "d_model"), "Length of the vector that stands for one token."),
    ("attention heads", ("num_attention_heads", "n_head", "n_heads"), "How many lookups attention makes at once."),
    (
        "key/value heads",
        ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
        "How many of them have keys and values of their own.",
    ),
    ("MLP width", ("intermediate_size", "n_inner", "ffn_dim"), "Hidden features of each layer's MLP."),
    ("experts", ("num_experts", "num_local_experts", "n_routed_experts"), "MLPs among which a router chooses."),
    ("longest text", ("max_position_embeddings", "n_positions", "max_seq_len"), "Tokens that the model may look at."),
)


def facts(pair: Pair) -> tuple[Fact, ...]:
    """The comparison, most telling first; a setting that neither side has is left out."""
    return tuple(fact for fact in _facts(pair.a, pair.b) if not fact.a == fact.b == MISSING)


def _facts(a: Checkpoint, b: Checkpoint) -> Iterator[Fact]:
    def both(topic: str, value: object, explanation: str) -> Fact:
        return Fact(topic, value(a), value(b), explanation)

    yield both("architecture", lambda side: _text(side.config.get("model_type")), "The family the model belongs to.")
    yield both(
        "parameters", lambda side: f"{side.parameters:,}", "Numbers that training set; a tied head is not counted."
    )
    yield both("layers", lambda side: str(_layers(side)), "Blocks of attention and MLP, one after the other.")
    for topic, names, explanation in _SETTINGS:
        yield Fact(topic, _setting(a, names), _setting(b, names), explanation)
    yield both("vocabulary", _vocabulary, "Tokens that the model knows: rows of its embedding.")
    yield both(
        "output head", lambda side: "tied to the embedding" if side.tied else "its own", "What scores the next token."
    )
    yield both("stored as", _dtypes, "Number formats of the tensors in the files.")
    yield both("size", lambda side: f"{side.size_bytes / 1e6:,.2f} MB", "All tensors together, 1 MB = 1,000,000 bytes.")
    yield both("revision", lambda side: (side.revision or MISSING)[:12], "Commit of a snapshot from the Hub.")


def _text(value: object) -> str:
    return MISSING if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _setting(side: Checkpoint, names: tuple[str, ...]) -> str:
    config = text_config(side.config)
    return _text(next((config[name] for name in names if config.get(name) is not None), None))


def _layers(side: Checkpoint) -> int:
    return max((part.layer + 1 for part in map(anatomy.parse, side.tensors) if part.layer is not None), default=0)


def _vocabulary(side: Checkpoint) -> str:
    return f"{side.tensors[side.embedding_name].shape[0]:,}" if side.embedding_name else MISSING


def _dtypes(side: Checkpoint) -> str:
    return " and ".join(dict.fromkeys(info.dtype for info in side.tensors.values()))
