"""What many tensors show together: pooled figures against joined tensors, and sentences that claim no more."""

import math
import re

import pytest
import torch

from sfn import delta
from sfn.errors import PairError
from sfn.readings import aggregate, sentence
from tests.unit.test_delta_exact import measure

FIGURES = ("l2_shift", "rms_shift", "relative_shift", "cosine", "changed_share", "max_abs_shift")


def moved(name: str, shift: float, n: int = 100, a: float = 1.0):
    """A tensor of n elements `a`, each moved by `shift`."""
    before = torch.full((n,), a, dtype=torch.float64)
    return measure(before, before + shift, name=name)


def layers(module: str, *shifts: float, n: int = 100):
    block = "mlp" if module in ("up_proj", "down_proj", "gate_proj") else "self_attn"
    return [moved(f"model.layers.{i}.{block}.{module}.weight", shift, n) for i, shift in enumerate(shifts)]


EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


# Pooled figures


def test_pooled_figures_are_those_of_all_elements_together():
    generator = torch.Generator().manual_seed(0)
    sides = [(torch.randn(n, generator=generator), torch.randn(n, generator=generator)) for n in (100, 3000, 1)]
    sides[1][1][:1000] = sides[1][0][:1000]
    parts = [measure(a, b, name=f"model.layers.{i}.mlp.up_proj.weight") for i, (a, b) in enumerate(sides)]
    whole = measure(*(torch.cat(side) for side in zip(*sides, strict=True)))
    (pool,) = aggregate(parts, "module")
    assert pool.key == ("up_proj",)
    assert (pool.tensors, pool.n) == (3, 3101)
    for figure in ("l2_shift", "rms_shift", "relative_shift", "changed_share", "max_abs_shift"):
        assert getattr(pool, figure) == pytest.approx(getattr(whole, figure), rel=1e-12)


def test_groups_come_in_order_of_appearance():
    found = aggregate([*layers("q_proj", 1, 2), *layers("o_proj", 3, 4)], ("module", "layer"))
    assert [pool.key for pool in found] == [("q_proj", 0), ("q_proj", 1), ("o_proj", 0), ("o_proj", 1)]
    assert [pool.rms_shift for pool in found] == [1, 2, 3, 4]
    assert aggregate([], "module") == []


def test_relative_shift_of_a_group_with_an_unchanged_tensor_is_not_known():
    (pool,) = aggregate(layers("q_proj", 1, 0), "module")
    assert math.isnan(pool.relative_shift)
    (pool,) = aggregate(layers("q_proj", 0, 0), "module")
    assert pool.relative_shift == 0


def test_tensors_without_a_figure_count_in_the_share_alone():
    nothing = measure(torch.full((100,), math.nan), torch.ones(100), name="model.layers.9.self_attn.q_proj.weight")
    (pool,) = aggregate([*layers("q_proj", 2), nothing], "module")
    assert (pool.tensors, pool.n, pool.nonfinite, pool.rms_shift, pool.changed_share) == (2, 200, 100, 2, 1)
    (pool,) = aggregate([nothing], "module")
    assert math.isnan(pool.l2_shift)
    assert math.isnan(pool.rms_shift)


# Sentences


def test_the_sentence_of_a_plain_case():
    found = [moved(EMBEDDING, 0.1), *layers("v_proj", 1, 1, 1), *layers("o_proj", 1.2, 1.3, 1.75), moved(HEAD, 9)]
    assert (
        sentence(found) == "o_proj moved 1.4 times as far as v_proj, most in layer 2; the head moved furthest of all."
    )
    assert delta.sentence is sentence


def test_figures_disagree_and_so_do_their_sentences():
    found = [*layers("up_proj", 1, 1, n=400), *layers("q_proj", 1.5, 1.5, n=100)]
    assert sentence(found, "l2_shift") == "up_proj moved 1.3 times as far as q_proj."
    assert sentence(found, "rms_shift") == "q_proj moved 1.5 times as far per element as up_proj."
    assert sentence(found, "relative_shift") == "q_proj moved 1.5 times as far for its size as up_proj."
    assert sentence(found, "max_abs_shift") == "q_proj has a largest change 1.5 times that of up_proj."
    assert sentence(found, "changed_share") == "up_proj and q_proj have the same share of changed elements."


def test_what_lies_outside_the_layers_is_named_when_it_changed_more():
    found = [*layers("q_proj", 1), *layers("o_proj", 2), moved(NORM, 3, a=2.0), moved(EMBEDDING, 0.5)]
    said = [sentence(found, figure).partition("; ")[2] for figure in FIGURES]
    assert said == [
        "the final norm moved furthest of all.",
        "the final norm moved furthest of all per element.",
        "",  # 3 / 2 is less than o_proj's 2 / 1
        "",
        "",
        "the final norm has the largest change of all.",
    ]


def test_cosine_counts_by_its_distance_from_one():
    a = torch.tensor([1.0, 0.0])
    still = measure(a, a * 3, name="model.layers.0.self_attn.q_proj.weight")
    turned = measure(a, torch.tensor([0.0, 1.0]), name="model.layers.0.self_attn.o_proj.weight")
    half = measure(a, torch.tensor([1.0, 1.0]), name="model.layers.0.self_attn.v_proj.weight")
    assert sentence([still, half, turned], "cosine") == "o_proj turned 3.4 times as far (by 1 − cosine) as v_proj."
    assert sentence([still], "cosine") == "By this figure nothing changed: no module turned."


def test_equals_are_not_put_in_order():
    assert sentence([*layers("q_proj", 1, 1), *layers("o_proj", 1, 1)]) == "q_proj and o_proj moved equally far."
    three = [*layers("q_proj", 1, 1), *layers("o_proj", 1, 1), *layers("v_proj", 0.5, 0.5)]
    assert sentence(three) == "q_proj and o_proj moved equally far, more than any other."
    near = [*layers("q_proj", 1, 1), *layers("o_proj", 1.04, 1.04)]
    assert sentence(near) == "o_proj moved furthest, closely followed by q_proj."


def test_no_layer_is_named_where_two_are_alike():
    assert "layer" not in sentence([*layers("q_proj", 1, 1), *layers("o_proj", 3, 3.1)])
    assert "most in layer 1" in sentence([*layers("q_proj", 1, 1), *layers("o_proj", 3, 3.3)])
    assert "layer" not in sentence([*layers("q_proj", 1), *layers("o_proj", 3)])


def test_nothing_changed():
    found = [*layers("q_proj", 0, 0), moved(HEAD, 0)]
    for figure in FIGURES:
        assert sentence(found, figure) == "Nothing changed: q_proj and the head are the same in A and B, bit for bit."
    minus = measure(torch.zeros(3), -torch.zeros(3), name=HEAD)
    assert sentence([minus]) == "By this figure nothing changed, though some stored bits differ."


def test_frozen_modules_are_named():
    found = [*layers("q_proj", 0, 0), *layers("o_proj", 1, 2), *layers("up_proj", 0, 0)]
    assert sentence(found) == "o_proj changed, most in layer 1; q_proj and up_proj did not change."
    many = [part for module in ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj") for part in layers(module, 0)]
    said = sentence([*many, *layers("o_proj", 1)])
    assert said == "o_proj changed; q_proj, k_proj, v_proj and 2 others did not change."


def test_one_module_and_what_has_no_layer():
    assert sentence(layers("o_proj", 1, 2)) == "o_proj changed, most in layer 1."
    assert sentence([moved(EMBEDDING, 1), moved(HEAD, 3), moved(NORM, 1)]) == (
        "The head moved 3.0 times as far as the embedding."
    )
    assert sentence([moved(HEAD, 3), *layers("o_proj", 0)]) == "The head changed; o_proj did not change."


def test_large_ratios_are_rounded():
    assert "1,000 times" in sentence([*layers("q_proj", 0.001), *layers("o_proj", 1)])


def test_biases_do_not_enter_unless_there_is_nothing_else():
    bias = moved("model.layers.0.self_attn.q_proj.bias", 50)
    assert sentence([*layers("q_proj", 1), *layers("o_proj", 2), bias]) == "o_proj moved 2.0 times as far as q_proj."
    assert sentence([bias]) == "q_proj changed."


def test_what_is_not_defined_or_left_out_is_said():
    zero = moved("model.layers.0.self_attn.k_proj.weight", 1, a=0.0)
    said = sentence([*layers("q_proj", 1), *layers("o_proj", 2), zero], "relative_shift")
    assert said.endswith("as q_proj. For k_proj this figure is not defined.")
    assert sentence([zero], "relative_shift") == (
        "By this figure nothing can be said: it is not defined for any module."
    )
    hole = measure(torch.tensor([1.0, math.nan]), torch.tensor([2.0, 1.0]), name=HEAD)
    assert sentence([hole]) == "The head changed. Left out: 1 element that is NaN or infinite."
    assert sentence([]) == ""


def test_an_unknown_figure():
    with pytest.raises(PairError, match=r"no figure 'l3'; choose one of: l2_shift"):
        sentence([], "l3")


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_gives_a_sentence_with_real_numbers(figure):
    generator = torch.Generator().manual_seed(1)
    found = []
    for layer in range(3):
        for scale, module in enumerate(("q_proj", "v_proj", "o_proj"), start=1):
            a = torch.randn(200, generator=generator)
            b = a + (torch.rand(200, generator=generator) < scale / 4) * scale * torch.randn(200, generator=generator)
            found.append(measure(a, b, name=f"model.layers.{layer}.self_attn.{module}.weight"))
    said = sentence(found, figure)
    assert re.fullmatch(r"o_proj (moved|turned|has) .+\.", said)
    assert "nan" not in said
