"""Closer looks at one tensor against float64 NumPy: rows, columns, heads, experts, maps, spectra; cancel; as JSON."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch

from sfn import checkpoints, delta_map, eigen, looks, matrices, pairs, slices, spectrum
from sfn.errors import Cancelled, PairError
from sfn.store import Store
from tests.builders import write_checkpoint

O_PROJ = "model.layers.0.self_attn.o_proj.weight"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
TALL, WIDE, BROKEN, NORM = "tall.weight", "wide.weight", "broken.weight", "model.norm.weight"


def tensors(seed: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=made).to(dtype)

    broken = normal(40, 24)
    broken[3, 5] = float("nan") if seed else 1.0
    broken[7, 0] = float("inf")
    return {
        O_PROJ: normal(32, 64, dtype=torch.bfloat16),
        EXPERTS: normal(3, 16, 20, dtype=torch.bfloat16),
        TALL: normal(1500, 40),
        WIDE: normal(40, 1500, dtype=torch.float16),
        BROKEN: broken,
        NORM: normal(32),
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    place = tmp_path_factory.mktemp("pair")
    folders = [write_checkpoint(place / str(seed), tensors(seed), {}, with_tokenizer=False) for seed in (0, 1)]
    with checkpoints.open(folders[0]) as a, checkpoints.open(folders[1]) as b:
        yield pairs.compare(a, b)


def both(name: str, expert: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    a, b = (tensors(seed)[name].double().numpy() for seed in (0, 1))
    a, b = (x[expert] if expert is not None else x.reshape(len(x), -1) for x in (a, b))
    bad = ~(np.isfinite(a) & np.isfinite(b))
    return np.where(bad, 0, a), np.where(bad, 0, b)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Every tensor takes several blocks."""
    monkeypatch.setattr(matrices, "BLOCK", 400)
    monkeypatch.setattr(delta_map, "BLOCK", 400)


# Rows and columns


@pytest.mark.parametrize("name", [O_PROJ, TALL, WIDE, BROKEN, NORM])
def test_rows_and_columns(pair, name):
    a, b = both(name)
    found = looks.compute("slices", pair, name)
    for got, values, axis in (
        (found.row_shift, b - a, 1),
        (found.row_norm, a, 1),
        (found.column_shift, b - a, 0),
        (found.column_norm, a, 0),
    ):
        np.testing.assert_allclose(got, np.linalg.norm(values, axis=axis), rtol=1e-6)
    assert found.nonfinite == (2 if name == BROKEN else 0)


def test_experts_in_one_tensor_are_rows_and_can_be_opened(pair):
    a, b = both(EXPERTS)
    found = looks.compute("slices", pair, EXPERTS)
    np.testing.assert_allclose(found.row_shift, np.linalg.norm(b - a, axis=1), rtol=1e-6)
    a, b = both(EXPERTS, 2)
    assert matrices.Matrix(pair, EXPERTS, 2).shape == (16, 20)
    found = looks.compute("slices", pair, EXPERTS, expert=2)
    np.testing.assert_allclose(found.column_shift, np.linalg.norm(b - a, axis=0), rtol=1e-6)
    with pytest.raises(PairError, match="no expert 3; it has experts 0 to 2"):
        looks.compute("slices", pair, EXPERTS, expert=3)
    with pytest.raises(PairError, match="holds no experts"):
        looks.compute("slices", pair, O_PROJ, expert=0)


def test_relative_shift_of_what_was_zero():
    found = slices.relative(np.array([0.0, 1.0, 0.0, 2.0]), np.array([0.0, 0.0, 3.0, 4.0]))
    np.testing.assert_array_equal(found, [0.0, np.nan, 0.0, 0.5])


# Maps


def pooled(change: np.ndarray, down: int, across: int) -> np.ndarray:
    rows = [change[i : i + down] for i in range(0, len(change), down)]
    return np.array([[row[:, j : j + across].mean() for j in range(0, change.shape[1], across)] for row in rows])


@pytest.mark.parametrize("name", [TALL, WIDE, O_PROJ, BROKEN])
def test_a_map_is_the_mean_over_blocks(pair, name):
    a, b = both(name)
    found = looks.compute("map", pair, name)
    assert max(found.mean.shape) <= delta_map.SIDE
    assert found.block == tuple(-(-side // delta_map.SIDE) for side in a.shape)
    np.testing.assert_allclose(found.mean_abs, pooled(np.abs(b - a), *found.block), rtol=1e-6)
    np.testing.assert_allclose(found.mean, pooled(b - a, *found.block), rtol=1e-6, atol=1e-7)


def test_a_part_of_a_map_is_finer_and_reads_only_its_rows(pair, monkeypatch):
    a, b = both(TALL)
    read = []
    rows_of = pair.read_rows
    monkeypatch.setattr(pair, "read_rows", lambda *where: read.append(where[2:]) or rows_of(*where))
    found = looks.compute("map", pair, TALL, part="100-300,5-30")
    assert found.block == (1, 1)
    np.testing.assert_allclose(found.mean, (b - a)[100:300, 5:30], rtol=1e-6)
    assert min(start for start, _ in read) == 100
    assert max(stop for _, stop in read) == 300


@pytest.mark.parametrize("part", ["1500-1501,0-1", "5-5,0-1", "3-1,0-1", "0-1", "-1-2,0-1", "0-1,0-41", "x"])
def test_a_part_that_is_none_is_named(pair, part):
    with pytest.raises(PairError, match="is no part of a tensor of 1500 × 40"):
        looks.compute("map", pair, TALL, part=part)


# Spectra


@pytest.mark.parametrize(("name", "expert"), [(O_PROJ, None), (TALL, None), (WIDE, None), (BROKEN, None), (EXPERTS, 1)])
def test_a_small_spectrum_is_exact(pair, name, expert):
    a, b = both(name, expert)
    found = looks.compute("spectrum", pair, name, expert=expert)
    u, values, vt = np.linalg.svd(b - a, full_matrices=False)
    u_a, _, vt_a = np.linalg.svd(a, full_matrices=False)
    assert found.exact
    np.testing.assert_allclose(found.values, values, rtol=1e-6, atol=1e-6 * values[0])
    assert found.energy == pytest.approx(np.square(b - a).sum(), rel=1e-9)
    assert found.stable_rank == pytest.approx(np.square(values).sum() / values[0] ** 2, rel=1e-6)
    p = np.square(values) / np.square(values).sum()
    assert found.effective_rank == pytest.approx([np.exp(-(p * np.log(p)).sum())] * 2, rel=1e-6)
    for k in (1, 4, 16):
        assert found.left[k - 1] == pytest.approx(np.square(u[:, :k].T @ u_a[:, :k]).sum() / k, abs=1e-6)
        assert found.right[k - 1] == pytest.approx(np.square(vt[:k] @ vt_a[:k].T).sum() / k, abs=1e-6)


class Made:
    """A matrix that is at hand."""

    def __init__(self, a: np.ndarray, b: np.ndarray) -> None:
        self.a, self.b, self.shape, self.nonfinite = a, b, a.shape, 0

    def blocks(self, dtype: str = "float64", **_: object):
        for start in range(0, len(self.a), 100):
            yield start, *(side[start : start + 100].astype(dtype) for side in (self.a, self.b))

    def columns(self, **_: object):
        for start in range(0, self.shape[1], 100):
            yield start, *(side[:, start : start + 100].T for side in (self.a, self.b))


def low_rank(rows: int, columns: int, strengths: list[float], noise: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    u = np.linalg.qr(random.standard_normal((rows, len(strengths))))[0]
    v = np.linalg.qr(random.standard_normal((columns, len(strengths))))[0]
    return (u * strengths) @ v.T + noise * random.standard_normal((rows, columns)), u


@pytest.mark.parametrize("shape", [(400, 200), (200, 400)])
def test_a_sketch_finds_what_stands_out(shape):
    change, _ = low_rank(*shape, [40.0, 30.0, 20.0, 12.0], 0.1)
    a, _ = low_rank(*shape, [50.0, 45.0, 33.0, 20.0], 0.1)
    found = spectrum.spectrum(Made(a, a + change), exact=False)
    assert not found.exact
    u, values, vt = np.linalg.svd(change, full_matrices=False)
    u_a, _, vt_a = np.linalg.svd(a, full_matrices=False)
    np.testing.assert_allclose(found.values[:4], values[:4], rtol=1e-5)
    assert np.all(found.values <= values[: len(found.values)] * (1 + 1e-5))
    assert found.energy == pytest.approx(np.square(change).sum(), rel=1e-7)
    assert found.left[3] == pytest.approx(np.square(u[:, :4].T @ u_a[:, :4]).sum() / 4, abs=1e-4)
    assert found.right[3] == pytest.approx(np.square(vt[:4] @ vt_a[:4].T).sum() / 4, abs=1e-4)
    p = np.square(values) / np.square(values).sum()
    least, most = found.effective_rank
    assert least <= np.exp(-(p * np.log(p)).sum()) <= most
    again = spectrum.spectrum(Made(a, a + change), exact=False)
    np.testing.assert_array_equal(found.values, again.values)  # seeded


def test_a_change_along_w_a_itself_overlaps_wholly():
    a, _ = low_rank(120, 80, [9.0, 5.0, 3.0], 0.01)
    found = spectrum.spectrum(Made(a, 1.1 * a))
    assert found.left[:8] == pytest.approx(1)
    assert found.right[:8] == pytest.approx(1)


def test_a_change_of_low_rank_has_few_directions():
    a, _ = low_rank(120, 80, [1.0], 1.0)
    change, _ = low_rank(120, 80, [2.0, 1.0], 0.0)
    found = spectrum.spectrum(Made(a, a + change))
    assert found.values[2] < 1e-9
    assert found.stable_rank == pytest.approx(1.25)
    assert len(found.left) == 2


def test_no_change_has_no_directions():
    a, _ = low_rank(50, 40, [1.0], 1.0)
    found = spectrum.spectrum(Made(a, a))
    assert (found.energy, found.stable_rank, found.effective_rank) == (0, 0, (0, 0))
    assert len(found.left) == 0
    assert not found.shares.any()


@pytest.mark.parametrize("shape", [(300, 300), (150, 600), (600, 150), (40, 2000)])
def test_random_matrices_are_as_marchenko_and_pastur_say(shape):
    random = np.random.default_rng(0)
    drawn = np.mean([np.linalg.svd(random.standard_normal(shape), compute_uv=False) ** 2 for _ in range(6)], axis=0)
    drawn /= drawn.sum()
    expected = spectrum.random_shares(shape, min(shape))
    assert expected.sum() == pytest.approx(1)
    assert np.all(np.diff(expected) <= 1e-12)
    np.testing.assert_allclose(np.cumsum(expected), np.cumsum(drawn), rtol=0.02)


def test_small_singular_values_are_right_down_to_the_floor():
    random = np.random.default_rng(3)
    u, v = (np.linalg.qr(random.standard_normal((size, 200)))[0] for size in (200, 300))
    change = (u * np.logspace(0, -12, 200)) @ v.T
    found = spectrum.spectrum(Made(np.zeros(change.shape), change))
    true = np.linalg.svd(change, compute_uv=False)
    assert found.floor == pytest.approx(true[0] * np.sqrt(200 * 2.2e-16), rel=0.01)
    told = found.values > 0
    np.testing.assert_array_equal(told, true > found.floor)
    np.testing.assert_allclose(found.values[told], true[told], rtol=1e-4)


def test_eigenvalues_from_another_process_are_the_same(monkeypatch):
    x = np.random.default_rng(0).standard_normal((80, 60))
    here = eigen.leading(x.T @ x, 5)
    monkeypatch.setattr(eigen, "HERE", 0)
    ticks = []
    there = eigen.leading(np.triu(x.T @ x), 5, tick=lambda: ticks.append(1))
    for mine, other in zip(here, there, strict=True):
        np.testing.assert_allclose(other, mine, rtol=1e-12, atol=1e-12)

    def stop() -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        eigen.leading(np.eye(1000), 1, tick=stop)
    with pytest.raises(eigen.Ended):
        eigen.leading(np.zeros((2, 3)), 1)


def test_what_takes_long_is_sketched_unless_it_is_asked_for(pair, monkeypatch):
    monkeypatch.setattr(spectrum, "_UNASKED_S", 0.0)
    assert not looks.compute("spectrum", pair, WIDE).exact
    assert looks.compute("spectrum", pair, WIDE, part=looks.EXACT).exact
    assert looks.settings("spectrum", part=looks.EXACT) != looks.settings("spectrum")


@pytest.mark.parametrize(("shape", "unasked"), [((1536, 8960), True), ((3584, 18944), False), ((152_064, 5120), False)])
def test_what_takes_seconds_is_exact(shape, unasked):
    assert spectrum.exact_unasked(shape) == spectrum.exact_unasked(shape[::-1]) == unasked


# What all have in common


@pytest.mark.parametrize("kind", looks.KINDS)
def test_a_look_goes_through_the_store_as_it_is(pair, kind, tmp_path):
    found = looks.compute(kind, pair, O_PROJ)
    with Store(tmp_path / "sfn.duckdb") as store:
        store.save_look("pair", O_PROJ, kind, "v1", looks.to_content(found))
        assert store.look("pair", O_PROJ, kind, "v2") is None
        content = store.look("pair", O_PROJ, kind, "v1")
        assert store.looked_at("pair", kind, "v1") == {O_PROJ}
    again = looks.from_content(kind, content)
    assert json.dumps(looks.to_content(again)) == json.dumps(looks.to_content(found))
    assert type(again) is type(found)


@pytest.mark.parametrize("kind", looks.KINDS)
def test_progress_ends_at_all_and_a_cancel_ends_it(pair, kind):
    told = []
    looks.compute(kind, pair, TALL, progress=lambda done, total, name: told.append((done, total)))
    shares = [done / total for done, total in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    cancel = threading.Event()

    def stop(*_: object) -> None:
        cancel.set()

    with pytest.raises(Cancelled):
        looks.compute(kind, pair, TALL, progress=stop, cancel=cancel)


def test_names_that_cannot_be_looked_at(pair):
    with pytest.raises(PairError, match="no such tensor"):
        looks.compute("map", pair, "nothing.weight")
    with pytest.raises(PairError, match="choose one of: slices, map, spectrum"):
        looks.compute("dreams", pair, TALL)
