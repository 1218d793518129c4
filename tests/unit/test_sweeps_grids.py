"""Sweeps before anything runs: what is asked for, the recipe of each cell, what the pair cannot do."""

import json

import pytest

from sfn import checkpoints, pairs, recipes
from sfn.errors import RecipeError, SweepError
from sfn.records import Sampling
from sfn.sweeps import (
    A_ROW,
    B_ROW,
    COLUMNS,
    ROWS,
    Prompt,
    Sweep,
    expand,
    from_json,
    modules,
    read_prompts,
    read_recipes,
    to_json,
    write_prompts,
)
from sfn.sweeps.grids import thirds, windows
from tests.builders import tiny_qwen2

HELLO = (Prompt("Hello"),)
NAMES = ["embed_tokens", "input_layernorm", "q_proj", "k_proj", "v_proj", "o_proj", "post_attention_layernorm",
         "gate_proj", "up_proj", "down_proj", "norm", "lm_head"]  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    place = tmp_path_factory.mktemp("pair")
    a, b = (checkpoints.open(tiny_qwen2(place / name, seed, layers=4)) for seed, name in enumerate("ab"))
    return pairs.compare(a, b)


@pytest.fixture(scope="module")
def wider(tmp_path_factory):
    """A pair whose embedding and head differ in size, so that these cannot be moved."""
    place = tmp_path_factory.mktemp("wider")
    a, b = tiny_qwen2(place / "a", 0), tiny_qwen2(place / "b", 1, vocab=300)
    return pairs.compare(checkpoints.open(a), checkpoints.open(b))


def texts(grid, column=0):
    return [spot.recipe for spot in grid.spots if spot.row >= 0 and spot.column == column]


def labels(lines):
    return [line.label for line in lines]


# What is asked for


@pytest.mark.parametrize("rows", ROWS)
def test_a_definition_survives_json(rows):
    sweep = Sweep(rows, "prompts", (Prompt("a\nb", "22"), Prompt("ä")), names=("o_proj", "mlp"), recipes=("", "emb=B"),
                  sampling=Sampling(9, 0.5, stop=("\n",)))  # fmt: skip
    assert from_json(json.loads(json.dumps(to_json(sweep)))) == sweep


def test_prompts_are_read_and_written():
    text = "What is 5 + 17? => 22\n\n  Hello  \nIs a => b? => /yes|no/\ntwo\\nlines"
    found = read_prompts(text)
    assert found == (
        Prompt("What is 5 + 17?", "22"),
        Prompt("Hello"),
        Prompt("Is a => b?", "/yes|no/"),
        Prompt("two\nlines"),
    )
    assert read_prompts(write_prompts(found)) == found
    assert read_recipes(" o_proj=B \n\nall A\nmlp@0=B; emb=B") == ("o_proj=B", "", "mlp@0=B; emb=B")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompts": ()}, "no prompt"),
        ({"prompts": (Prompt("  "),)}, "no prompt"),
        ({"prompts": (Prompt("x"),) * 65}, "at most 64"),
        ({"columns": "alpha", "prompts": (Prompt("x"),) * 2}, "asks one prompt"),
        ({"columns": "seeds"}, "temperature 0"),
        ({"columns": "seeds", "seeds": 0, "sampling": Sampling(temperature=1.0)}, "seeds is 0"),
        ({"rows": "presets", "columns": "alpha"}, "prompts, seeds"),
        ({"rows": "alpha", "steps": 0}, "steps of alpha is 0"),
        ({"rows": "alpha", "high": float("inf")}, "must be numbers"),
        ({"rows": "list"}, "holds no recipe"),
        ({"names": ()}, "No module"),
        ({"rows": "layers", "width": 9}, "does not fit into 4"),
        ({"names": ("o_prj",)}, "no module 'o_prj'"),
        ({"rows": "list", "recipes": ("",) * 200, "prompts": (Prompt("x"),) * 6}, "at most 1024"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(pair, fields, said):
    with pytest.raises(SweepError, match=said):
        expand(Sweep(**{"rows": "each", "columns": "prompts", "prompts": HELLO} | fields), pair)


def test_a_source_outside_the_grammar_is_named(pair):
    with pytest.raises(RecipeError, match="'nil' is no source"):
        expand(Sweep("each", "prompts", HELLO, source="nil"), pair)


def test_every_pair_of_axes_gives_a_full_grid(pair):
    drawn = Sampling(temperature=1.0)
    for rows, columns in [(kind, other) for kind in ROWS for other in COLUMNS[kind]]:
        grid = expand(Sweep(rows, columns, HELLO, recipes=("", "o_proj=B"), sampling=drawn), pair)
        cells = {(spot.row, spot.column) for spot in grid.spots if spot.row >= 0}
        assert cells == {(r, c) for r in range(len(grid.rows)) for c in range(len(grid.columns))}, (rows, columns)
        for spot in grid.spots:
            assert not spot.problem or "layer" in spot.problem, spot
            assert spot.plan is None or spot.plan == recipes.resolve(recipes.parse(spot.recipe), pair)


# Each axis


def test_each_module_alone(pair):
    grid = expand(Sweep("each", "prompts", (Prompt("x"), Prompt("y", "2"))), pair)
    assert labels(grid.rows) == NAMES
    assert texts(grid)[:3] == ["embed_tokens=B", "input_layernorm@all=B", "q_proj@all=B"]
    assert texts(grid, 0) == texts(grid, 1)
    assert grid.rows[5].explain.startswith("Attention output")
    assert labels(grid.columns) == ["x", "y"]
    assert "2" in grid.columns[1].explain
    beside = [(spot.row, spot.column, spot.recipe) for spot in grid.spots if spot.row < 0]
    assert beside == [(A_ROW, 0, ""), (A_ROW, 1, ""), (B_ROW, 0, "all@all=B"), (B_ROW, 1, "all@all=B")]


@pytest.mark.parametrize("source", ["zero", "reinit:3", "A", "B:1.5"])
def test_each_module_damaged_or_given_back(pair, source):
    grid = expand(Sweep("each", "prompts", HELLO, base="all@all=B", names=("attn",), source=source), pair)
    assert labels(grid.rows) == ["q_proj", "k_proj", "v_proj", "o_proj"]
    plan = grid.spots[2].plan
    kinds = {str(plan.sources[f"model.layers.{n}.self_attn.q_proj.weight"]) for n in range(4)}
    assert kinds == {source}
    assert str(plan.sources["model.layers.0.self_attn.k_proj.weight"]) == "B"


def test_all_but_one_module(pair):
    grid = expand(Sweep("but", "prompts", HELLO), pair)
    assert labels(grid.rows)[5] == "all but o_proj"
    want = recipes.resolve(recipes.parse("all@all=B; o_proj@all=A"), pair)
    assert grid.spots[2 + 5].plan == want
    damaged = expand(Sweep("but", "prompts", HELLO, base="all@all=B", names=("qkv",), source="zero"), pair)
    assert labels(damaged.rows) == ["without q_proj", "without k_proj", "without v_proj"]
    want = recipes.resolve(recipes.parse("all@all=B; k_proj,v_proj@all=zero"), pair)
    assert damaged.spots[2].plan == want


def test_thirds_and_windows_of_layers(pair):
    grid = expand(Sweep("thirds", "prompts", HELLO, names=("o_proj",)), pair)
    assert texts(grid) == ["o_proj@0=B", "o_proj@1-2=B", "o_proj@3=B"]
    assert labels(grid.rows) == ["first third (layer 0)", "middle third (layers 1–2)", "last third (layer 3)"]
    grid = expand(Sweep("layers", "prompts", HELLO, names=("mlp",), width=2), pair)
    assert texts(grid) == ["mlp@0-1=B", "mlp@1-2=B", "mlp@2-3=B"]


@pytest.mark.parametrize("layers", [*range(1, 12), 28, 64])
def test_parts_of_the_layers_cover_all_of_them(layers):
    covered = [n for _, low, high in thirds(layers) for n in range(low, high + 1)]
    assert covered == list(range(layers))
    for width in {1, layers, (layers + 1) // 2}:
        for step in (1, width):
            found = windows(layers, width, step)
            assert all(high - low + 1 == width for low, high in found)
            assert {n for low, high in found for n in range(low, high + 1)} == set(range(layers))


def test_alpha_leaves_the_unit_interval(pair):
    grid = expand(Sweep("alpha", "prompts", HELLO, names=("o_proj",), low=-0.5, high=1.5, steps=5), pair)
    assert texts(grid) == ["o_proj@all=B:-0.5", "", "o_proj@all=B:0.5", "o_proj@all=B", "o_proj@all=B:1.5"]
    assert labels(grid.rows)[0] == "α = −0.5"
    assert [spot.alpha for spot in grid.spots] == [None, None, -0.5, 0, 0.5, 1, 1.5]
    assert len(grid.plans) == 6  # alpha 0 is A's own answer


def test_presets_and_a_list_stand_for_themselves(pair):
    grid = expand(Sweep("presets", "prompts", HELLO, base="mlp=zero"), pair)
    assert [spot.plan.key for spot in grid.spots[2:]] == [
        recipes.resolve(recipes.parse(preset.text), pair).key for preset in recipes.PRESETS
    ]
    grid = expand(Sweep("list", "prompts", HELLO, recipes=("", "norm=B", "head@3=B")), pair)
    assert labels(grid.rows) == ["all A", "norm=B", "head@3=B"]
    assert "head" in grid.spots[-1].problem


def test_seeds_ask_one_prompt_several_times(pair):
    sweep = Sweep("each", "seeds", HELLO, seeds=3, sampling=Sampling(temperature=1.0, seed=7))
    assert labels(expand(sweep, pair).columns) == ["seed 7", "seed 8", "seed 9"]
    assert [sweep.asked(n)[1].seed for n in range(3)] == [7, 8, 9]


# Two recipe axes; what cannot be


def test_modules_by_thirds_and_a_cell_that_cannot_be(pair):
    grid = expand(Sweep("each", "thirds", HELLO), pair)
    assert len([spot for spot in grid.spots if spot.row < 0]) == 2  # one prompt: A and B answer once
    cells = {(spot.row, spot.column): spot for spot in grid.spots}
    assert cells[5, 1].recipe == "o_proj@1-2=B"
    assert cells[0, 0].plan is None
    assert "in no layer" in cells[0, 0].problem
    assert cells[0, 0].recipe.strip("; ").startswith("embed_tokens@0")


def test_modules_by_alpha(pair):
    grid = expand(Sweep("each", "alpha", HELLO, low=0.5, high=1, steps=2, names=("attn",)), pair)
    assert texts(grid, 0)[-1] == "o_proj@all=B:0.5"
    assert texts(grid, 1)[-1] == "o_proj@all=B"
    assert [spot.alpha for spot in grid.spots if spot.row == 0] == [0.5, 1.0]


def test_what_the_pair_cannot_move_is_a_cell_that_says_why(wider):
    grid = expand(Sweep("each", "prompts", HELLO), wider)
    cells = {spot.row: spot for spot in grid.spots}
    names = labels(grid.rows)
    assert cells[B_ROW].plan is None
    assert cells[names.index("embed_tokens")].plan is None
    assert "shape" in cells[names.index("embed_tokens")].problem or "vocabulary" in cells[0].problem
    assert cells[names.index("o_proj")].plan is not None


def test_modules_by_group_in_anatomical_order(pair):
    assert list(modules(pair, ("mlp", "o_proj"))) == ["o_proj", "gate_proj", "up_proj", "down_proj"]
