"""What goes into the store comes out the same: pairs, deltas, histograms, recipes, file hashes."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfn import store
from sfn.records import Histogram, TensorDelta
from sfn.store import Store


@pytest.fixture
def results(tmp_path):
    with Store(tmp_path / "sfn.duckdb") as opened:
        yield opened


def histogram(form="script", first=0, **counts):
    return Histogram(form, (first, *range(199)), **({"below": 1, "above": 2, "zeros": 3, "nonfinite": 4} | counts))


def tensor(name="model.layers.0.mlp.up_proj.weight", layer=0, block="mlp", module="up_proj", **fields):
    values = {
        "parameter": "weight", "expert": None, "shape": (4, 8), "n": 32, "dtype_a": "BF16", "dtype_b": "F32",
        "l2_shift": 1.5, "rms_shift": 0.1, "relative_shift": 0.25, "cosine": 0.75, "changed_share": 0.5,
        "max_abs_shift": 0.3, "nonfinite": 4, "histogram": histogram(), "histogram_paper": histogram("paper", 9),
    }  # fmt: skip
    return TensorDelta(name=name, layer=layer, block=block, module=module, **(values | fields))


def same(a: TensorDelta, b: TensorDelta) -> bool:
    return repr(a) == repr(b)  # NaN is not equal to itself, its text is


def test_delta_round_trip(results):
    results.save_delta("pair", tensor())
    assert results.deltas("pair") == [tensor()]
    assert results.delta("pair", tensor().name) == tensor()
    assert results.delta("pair", "other") is None
    assert results.deltas("other pair") == []


@pytest.mark.parametrize(
    "odd",
    [
        tensor(relative_shift=math.nan, cosine=math.nan),
        tensor(l2_shift=math.inf, max_abs_shift=-0.0),
        tensor(layer=None, expert=None, shape=()),
        tensor(expert=127, shape=(0, 3), n=0),
        tensor(n=2**40, histogram=histogram(below=2**40, first=2**41)),
        tensor(l2_shift=5e-324, rms_shift=0.1 + 0.2),
        tensor(name="modèle.層.'; DROP TABLE deltas; --"),
    ],
    ids=["nan", "inf", "scalar", "expert", "large", "denormal", "name"],
)
def test_odd_deltas_round_trip(results, odd):
    results.save_delta("pair", odd)
    assert same(results.deltas("pair")[0], odd)


def test_saving_again_replaces(results):
    results.save_delta("pair", tensor())
    again = tensor(l2_shift=9.0, histogram=histogram(first=77), histogram_paper=histogram("paper", first=78))
    results.save_delta("pair", again)
    assert results.deltas("pair") == [again]


def test_a_running_scan_is_read_at_once_and_what_is_missing_known(results):
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    assert results.missing("pair", names) == tuple(names)
    results.save_delta("pair", tensor(names[2], 2))
    assert [d.name for d in results.deltas("pair")] == [names[2]]
    assert results.missing("pair", iter(names)) == (names[0], names[1], names[3])
    assert results.missing("other", names) == tuple(names)


def test_order_is_anatomical_even_when_a_scan_was_resumed(results):
    saved = [
        tensor("lm_head.weight", None, "head", "lm_head"),
        tensor("l10.q", 10, "attention", "q_proj"),
        tensor("l2.q", 2, "attention", "q_proj"),
        tensor("l2.o", 2, "attention", "o_proj"),
        tensor("norm", None, "norm", "norm"),
        tensor("embed", None, "embedding", "embed_tokens"),
    ]
    for one in [*saved, replace(saved[2], n=5)]:
        results.save_delta("pair", one)
    expected = ["embed", "l2.q", "l2.o", "l10.q", "norm", "lm_head.weight"]
    assert [d.name for d in results.deltas("pair")] == expected
    assert results.delta_table("pair")["name"].tolist() == expected
    assert results.histograms("pair")["name"].tolist() == expected


def test_delta_table(results):
    results.save_delta("pair", tensor(cosine=math.nan))
    results.save_delta("pair", tensor("lm_head.weight", None, "head", "lm_head"))
    table = results.delta_table("pair")
    assert table["shape"].tolist() == ["4 × 8", "4 × 8"]
    assert table["layer"].tolist()[0] == 0
    assert table["layer"].isna().tolist() == [False, True]
    assert table["cosine"].isna().tolist() == [True, False]
    assert not [column for column in table if column.startswith(("histogram", "counts"))]
    empty = results.delta_table("nothing")
    assert list(empty.columns) == list(table.columns)
    assert (empty.dtypes.astype(str) == table.dtypes.astype(str)).all()


def test_histograms_by_module_layer_and_form(results):
    for layer in range(3):
        for module in ("q_proj", "o_proj"):
            results.save_delta("pair", tensor(f"{layer}.{module}", layer, "attention", module))
    results.save_delta("other", tensor("0.q_proj", 0, "attention", "q_proj"))
    assert len(results.histograms("pair")) == 6
    some = results.histograms("pair", modules=["o_proj"], layers=[0, 2], form="paper")
    assert some["name"].tolist() == ["0.o_proj", "2.o_proj"]
    assert list(some["counts"][0]) == [9, *range(199)]
    assert some[["below", "above", "zeros", "nonfinite"]].to_numpy().tolist() == [[1, 2, 3, 4]] * 2
    assert results.histograms("pair", modules=[]).empty
    assert results.histograms("pair", layers=[0])["counts"][0][0] == 0


def test_pairs(results):
    class Side:
        label, folder, fingerprint = "base", Path("/models/base"), "ab" * 32

    results.save_pair("k1", Side(), "tuned", {"findings": ["rope → 1e6"], "n": 3})
    results.save_pair("k2", "a", "b", {})
    results.save_pair("k1", Side(), "tuned 2", {"n": 4})
    first, second = results.pairs()
    assert (first.key, second.key) == ("k1", "k2")
    assert (first.a_label, first.a_folder, first.a_fingerprint) == ("base", "/models/base", "ab" * 32)
    assert (first.b_label, first.b_folder, first.b_fingerprint) == ("tuned 2", "", "")
    assert first.summary == {"n": 4}
    assert abs(first.saved_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert results.pair("k2").a_label == "a"
    assert results.pair("k3") is None


def test_recipes_are_listed_the_last_used_first(results):
    results.save_recipe("", "plan0", "pair")
    results.save_recipe("o_proj@all=B", "plan1", "pair")
    results.save_recipe("mlp@0=B", "plan2", "other")
    results.save_recipe("", "plan0", "pair")
    found = results.recipes("pair")
    assert [(r.text, r.plan_key, r.pair_key) for r in found] == [
        ("", "plan0", "pair"),
        ("o_proj@all=B", "plan1", "pair"),
    ]
    assert found[0].saved_at.tzinfo is UTC


def test_file_hashes_are_a_mapping(results):
    hashes = results.file_hashes
    key, other = ("/m/model.safetensors", 10, 1_700_000_000_123_456_789), ("/m/model.safetensors", 11, 5)
    hashes[key] = "aa"
    hashes[other] = "bb"
    hashes[key] = "cc"
    assert dict(hashes) == {key: "cc", other: "bb"}
    assert (hashes[key], hashes.get(("/x", 1, 1)), key in hashes, len(hashes)) == ("cc", None, True, 2)
    del hashes[key]
    assert list(hashes) == [other]
    with pytest.raises(KeyError):
        del hashes[key]
    with pytest.raises(KeyError):
        hashes[key]
    broken = ("/m/\udcff.safetensors", 1, 1)  # a file name that is not UTF-8, as Python spells it
    hashes[broken] = "dd"
    assert hashes[broken] == "dd"


def test_results_are_there_after_closing(tmp_path):
    path = tmp_path / "deep" / "er" / "sfn.duckdb"
    with Store(path) as first:
        first.save_delta("pair", tensor())
        first.file_hashes["p", 1, 2] = "x"
        first.close()
    with Store(path) as second:
        assert second.deltas("pair") == [tensor()]
        assert dict(second.file_hashes) == {("p", 1, 2): "x"}
        assert second.notice == ""
    assert [file.name for file in path.parent.iterdir()] == ["sfn.duckdb"]


def test_a_closed_store_says_so(tmp_path):
    closed = Store(tmp_path / "sfn.duckdb")
    closed.close()
    with pytest.raises(store.StoreError, match=r"sfn\.duckdb was closed"):
        closed.pairs()
    with pytest.raises(store.StoreError, match="was closed"):
        closed.save_delta("pair", tensor())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    figures=st.lists(st.floats(), min_size=6, max_size=6),
    counts=st.lists(st.integers(0, 2**62), min_size=200, max_size=200),
    name=st.text(st.characters(codec="utf-8"), min_size=1),
    layer=st.none() | st.integers(0, 2**31 - 1),
    shape=st.lists(st.integers(0, 2**40), max_size=4),
)
def test_any_delta_round_trips(results, figures, counts, name, layer, shape):
    keys = ("l2_shift", "rms_shift", "relative_shift", "cosine", "changed_share", "max_abs_shift")
    one = tensor(
        name, layer, shape=tuple(shape), histogram=replace(histogram(), inner=tuple(counts)),
        **dict(zip(keys, figures, strict=True)),
    )  # fmt: skip
    results.save_delta("any", one)
    assert same(results.delta("any", name), one)


def test_summary_must_be_json(results):
    with pytest.raises(TypeError):
        results.save_pair("k", "a", "b", {"x": object()})
    assert results.pairs() == []
