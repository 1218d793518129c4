"""The order in which recipes are loaded never moves more bytes than the given one."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfn import checkpoints, pairs, recipes
from sfn.sweeps import Prompt, Sweep, expand, moved_bytes, nearest_first, sizes
from tests.builders import tiny_qwen2


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    place = tmp_path_factory.mktemp("pair")
    a, b = (checkpoints.open(tiny_qwen2(place / name, seed, layers=3)) for seed, name in enumerate("ab"))
    return pairs.compare(a, b)


def plan(pair, text):
    return recipes.resolve(recipes.parse(text), pair)


def test_distance_is_the_bytes_whose_source_differs(pair):
    of = sizes(pair)
    o = sum(size for name, size in of.items() if "o_proj" in name)
    q = sum(size for name, size in of.items() if "q_proj" in name)
    a, from_b, both = plan(pair, ""), plan(pair, "o_proj=B"), plan(pair, "o_proj=B:0.5; q_proj=zero")
    assert moved_bytes([a, from_b], of) == o
    assert moved_bytes([from_b, both], of) == o + q
    assert moved_bytes([from_b, both], of, a) == 2 * o + q
    assert moved_bytes([from_b], of) == 0
    assert moved_bytes([], of, a) == 0


def test_what_the_engine_holds_comes_first(pair):
    plans = [plan(pair, text) for text in ("", "all=B", "o_proj=B", "all=B; o_proj=A")]
    held = plan(pair, "all=B")
    assert nearest_first(plans, sizes(pair), held) == [1, 3, 0, 2]
    assert nearest_first([], sizes(pair), held) == []
    assert nearest_first(plans[:1], sizes(pair)) == [0]


def test_a_shuffled_ladder_is_put_in_order(pair):
    ladder = [plan(pair, f"all@0-{n}=B") for n in range(3)]
    cost = moved_bytes(ladder, sizes(pair))
    for shuffled in permutations(ladder):
        order = nearest_first(shuffled, sizes(pair), plan(pair, ""))
        assert moved_bytes([shuffled[i] for i in order], sizes(pair)) == cost


def test_a_grid_that_gains_nothing_stays_in_reading_order(pair):
    grid = expand(Sweep("alpha", "prompts", (Prompt("x"),), low=0.25, high=1.25, names=("attn",)), pair)
    plans = [spot.plan for spot in grid.spots if spot.row >= 0]
    assert nearest_first(plans, sizes(pair), plan(pair, "")) == [0, 1, 2, 3, 4]


_RULE = st.builds(
    "{}@{}={}".format,
    st.sampled_from(["o_proj", "q_proj", "mlp", "norms", "attn", "all"]),
    st.sampled_from(["0", "1", "2", "0-1", "1-2"]),
    st.sampled_from(["A", "B", "B:0.5", "zero", "reinit:1"]),
)
_RECIPE = st.lists(_RULE, max_size=3).map("; ".join)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(_RECIPE, min_size=1, max_size=12), held=st.none() | _RECIPE)
def test_never_more_bytes_than_the_given_order(pair, texts, held):
    plans = [plan(pair, text) for text in texts]
    start = None if held is None else plan(pair, held)
    order = nearest_first(plans, sizes(pair), start)
    assert sorted(order) == list(range(len(plans)))
    moved = moved_bytes([plans[i] for i in order], sizes(pair), start)
    assert moved <= moved_bytes(plans, sizes(pair), start)
