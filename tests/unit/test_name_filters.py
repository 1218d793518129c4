"""Ordered filters over names: what they decide, and short lists that decide everything as wanted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfn.recipes import Source
from sfn.recipes.name_filters import decide, short_filters

A, B, HALF, ZERO = Source("A"), Source("B"), Source("blend", 0.5), Source("zero")
MODULES = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm"]
NAMES = [f"model.layers.{layer}.{module}.weight" for layer in range(12) for module in MODULES]
NAMES += [f"model.layers.{layer}.self_attn.q_proj.bias" for layer in range(12)]
NAMES += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def moved(*words: str, to: Source = B) -> dict[str, Source]:
    return {name: to if any(word in name for word in words) else A for name in NAMES}


def test_the_first_filter_that_occurs_decides() -> None:
    filters = (("layers.1.", B), ("o_proj", HALF), (None, A))
    assert decide(filters, "model.layers.1.self_attn.o_proj.weight") == B
    assert decide(filters, "model.layers.11.self_attn.o_proj.weight") == HALF
    assert decide(filters, "model.norm.weight") == A
    assert decide((("o_proj", B),), "model.norm.weight") is None


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (moved(), [(None, A)]),
        (moved("o_proj"), [("o_proj", B), (None, A)]),
        (moved("mlp"), [("mlp", B), (None, A)]),
        (moved("model.norm."), [("model.norm", B), (None, A)]),
        (moved("norm"), [("norm", B), (None, A)]),
        (moved("layers.3."), [("layers.3.", B), (None, A)]),
        (moved("layers.3.mlp", "layers.10.mlp"), [("layers.3.mlp.", B), ("layers.10.mlp.", B), (None, A)]),
        (moved("layers.3.mlp.up"), [("layers.3.mlp.up_proj.", B), (None, A)]),
        ({n: A if "o_proj" in n else B for n in NAMES}, [("o_proj", A), (None, B)]),
        (moved("o_proj", to=HALF) | {NAMES[16]: B}, [("layers.3.self_attn.o_proj.", B), ("o_proj", HALF), (None, A)]),
    ],
)
def test_lists_are_short(sources: dict[str, Source], expected: list[tuple[str | None, Source]]) -> None:
    assert list(short_filters(sources)) == expected


SOURCES = st.sampled_from([A, B, HALF, ZERO])


@given(st.fixed_dictionaries(dict.fromkeys(NAMES, SOURCES)))
@settings(max_examples=50, deadline=None)
def test_every_name_gets_its_source(sources: dict[str, Source]) -> None:
    found = short_filters(sources)
    assert {name: decide(found, name) for name in sources} == sources


@given(st.dictionaries(st.text("ab.1", min_size=1, max_size=8), SOURCES, min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_names_inside_of_names_do_not_mislead(sources: dict[str, Source]) -> None:
    found = short_filters(sources)
    assert {name: decide(found, name) for name in sources} == sources
