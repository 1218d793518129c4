"""Figures and histograms of one tensor pair, against float64 NumPy written without regard to speed."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfn import delta
from sfn.delta_kernel import RUN
from sfn.errors import PairError

CODES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
EDGES = [i / 100 for i in range(-100, 101)]


def measure(
    a: torch.Tensor, b: torch.Tensor, block: int | None = None, name: str = "model.layers.3.mlp.up_proj.weight"
):
    blocks = [tensor.reshape(-1).split(block or max(1, tensor.numel())) for tensor in (a, b)]
    return delta.measure(name, *blocks, shape=tuple(a.shape), dtypes=(CODES[a.dtype], CODES[b.dtype]))


def wide(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype.itemsize == 1 else tensor).double().reshape(-1).numpy()


def expected_histogram(a: np.ndarray, b: np.ndarray, form: str) -> tuple[list[int], int, int]:
    there = np.isfinite(a) & np.isfinite(b) & (a != 0)
    a, b = a[there], b[there]
    with np.errstate(all="ignore"):
        r = (b - a) / (np.abs(a) + 1e-8) if form == "script" else (b - a) / a
    inner, _ = np.histogram(r[(r >= -1) & (r <= 1)], EDGES)
    return inner.tolist(), int((r < -1).sum()), int((r > 1).sum())


def check(a: torch.Tensor, b: torch.Tensor, changed: int, block: int | None = None) -> None:
    """Every figure of the pair against its definition; `changed` is counted by the caller."""
    got, x, y = measure(a, b, block), wide(a), wide(b)
    finite = np.isfinite(x) & np.isfinite(y)
    p, q = x[finite], y[finite]
    near = {"rel": 1e-9, "abs": 0, "nan_ok": True}
    l2 = np.linalg.norm(q - p)
    assert got.l2_shift == pytest.approx(l2, **near)
    assert got.rms_shift == pytest.approx(l2 / math.sqrt(x.size), **near)
    norm_a, norm_b = np.linalg.norm(p), np.linalg.norm(q)
    if norm_a:
        assert got.relative_shift == pytest.approx(l2 / norm_a, **near)
    if norm_a and norm_b:
        assert got.cosine == pytest.approx(np.dot(p / norm_a, q / norm_b), rel=1e-9, abs=1e-12)
    assert got.max_abs_shift == np.abs(q - p).max()
    assert got.changed_share == changed / x.size
    assert (got.n, got.nonfinite) == (x.size, int((~finite).sum()))
    for histogram, form in ((got.histogram, "script"), (got.histogram_paper, "paper")):
        assert histogram.form == form
        assert (list(histogram.inner), histogram.below, histogram.above) == expected_histogram(x, y, form)
        assert histogram.zeros == int((p == 0).sum())
        assert histogram.nonfinite == got.nonfinite
        assert histogram.total == got.n


def pair_of(dtype_a: torch.dtype, dtype_b: torch.dtype, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, generator=generator) * 0.05
    b = a + torch.randn(n, generator=generator) * 0.02 * (torch.rand(n, generator=generator) < 0.7)
    a[::17] = 0.0
    return a.to(dtype_a), b.to(dtype_b)


@pytest.mark.parametrize("dtype", CODES, ids=CODES.values())
def test_same_dtype(dtype):
    a, b = pair_of(dtype, dtype, 70_000)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    check(a, b, int((a.view(bits) != b.view(bits)).sum()))


@pytest.mark.parametrize("dtype_a", [torch.bfloat16, torch.float16, torch.float32], ids=lambda d: CODES[d])
@pytest.mark.parametrize("dtype_b", [torch.float16, torch.float64, torch.float8_e4m3fn], ids=lambda d: CODES[d])
def test_mixed_dtypes_compare_by_value(dtype_a, dtype_b):
    a, b = pair_of(dtype_a, dtype_b, 40_000, seed=1)
    check(a, b, int((wide(a) != wide(b)).sum()))


def test_unchanged_tensor_is_exactly_unchanged():
    a, _ = pair_of(torch.bfloat16, torch.bfloat16, 50_000)
    got = measure(a, a.clone())
    assert (got.l2_shift, got.rms_shift, got.relative_shift, got.changed_share, got.max_abs_shift) == (0, 0, 0, 0, 0)
    assert got.cosine == 1.0
    assert got.histogram.inner[100] == got.n - got.histogram.zeros  # r = 0 lies in the bin [0, 0.01)


def test_minus_zero_and_nan_payloads_count_as_changed_bits():
    a = torch.tensor([0.0, 0.0, 1.0, math.nan, math.nan])
    b = torch.tensor([-0.0, 0.0, 1.0, math.nan, math.nan])
    b.view(torch.int32)[4] ^= 1
    got = measure(a, b)
    assert got.changed_share == 2 / 5
    assert (got.l2_shift, got.cosine, got.nonfinite, got.histogram.zeros) == (0, 1, 2, 2)


def test_across_dtypes_equal_values_and_nan_count_as_unchanged():
    a = torch.tensor([0.0, 1.5, math.nan, math.inf, math.nan, 1.0])
    b = torch.tensor([-0.0, 1.5, math.nan, math.inf, 1.0, 2.0]).bfloat16()
    assert measure(a, b).changed_share == 2 / 6


def test_nan_and_infinity_add_nothing_but_are_counted():
    a, b = pair_of(torch.float32, torch.float32, 100_000, seed=2)
    a[5], a[70_000], b[5], b[99_999], b[34] = math.nan, math.inf, 1.0, -math.inf, math.nan  # a[34] is 0
    check(a, b, int((a.view(torch.int32) != b.view(torch.int32)).sum()))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_finite_gives_no_figures(value):
    got = measure(torch.full((3, 4), value), torch.ones(3, 4))
    figures = (got.l2_shift, got.rms_shift, got.relative_shift, got.cosine, got.max_abs_shift)
    assert all(math.isnan(figure) for figure in figures)
    assert (got.nonfinite, got.histogram.total, got.changed_share) == (12, 12, 1)


def test_zero_tensors():
    zeros = torch.zeros(10)
    both = measure(zeros, zeros)
    assert (both.relative_shift, both.l2_shift, both.histogram.zeros) == (0, 0, 10)
    assert math.isnan(both.cosine)
    grown = measure(zeros, zeros + 2)
    assert math.isnan(grown.relative_shift)
    assert math.isnan(grown.cosine)
    assert (grown.rms_shift, grown.max_abs_shift, grown.histogram.zeros) == (2, 2, 10)
    gone = measure(zeros + 2, zeros)
    assert (gone.relative_shift, gone.histogram.inner[0], gone.histogram_paper.inner[0]) == (1, 10, 10)


def test_squares_that_float32_cannot_hold():
    a, b = torch.full((1000,), 1e30), torch.full((1000,), -2e30)
    check(a, b, 1000)
    assert measure(a, b).cosine == pytest.approx(-1, abs=1e-12)
    check(a.bfloat16(), b.bfloat16(), 1000)


def test_differences_that_float16_cannot_hold():
    a, b = torch.full((5000,), 6e4, dtype=torch.float16), torch.full((5000,), -6e4, dtype=torch.float16)
    check(a, b, 5000)
    assert measure(a, b).max_abs_shift == 120_000  # float16 ends at 65,504
    check(torch.full((1000,), 3e38).bfloat16(), torch.full((1000,), -3e38).bfloat16(), 1000)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-8, 1e-6, 1e-3, 1e3, 1e12, 1e30])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=lambda d: CODES[d])
def test_elements_of_any_size(dtype, size):
    """Also where |a| is no larger than the 1e-8 of the scripts' form, or all of it lies outside float32's middle."""
    a, b = pair_of(torch.float32, torch.float32, 30_000, seed=5)
    a, b = (a * size).to(dtype), (b * size).to(dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    check(a, b, int((a.view(bits) != b.view(bits)).sum()))


def test_steps_of_a_few_units_in_the_last_place():
    """As in a fine-tuned bfloat16 model: most ratios are short fractions, many of them edges of bins."""
    generator = torch.Generator().manual_seed(6)
    a = (torch.randn(200_000, generator=generator) * 0.02).bfloat16()
    steps = torch.randint(-6, 7, (200_000,), generator=generator, dtype=torch.int16)
    b = (a.view(torch.int16) + steps).view(torch.bfloat16)
    check(a, b, int((steps != 0).sum()))


def test_denormal_elements():
    for tiny, dtype in ((1e-44, torch.float32), (1e-40, torch.bfloat16), (1e-7, torch.float16)):
        a = torch.tensor([tiny, -tiny, tiny * 3], dtype=dtype)
        b = torch.tensor([tiny * 2, -tiny, 1.0], dtype=dtype)
        assert torch.count_nonzero(a) == 3
        check(a, b, 2)


def test_elements_on_the_edges_of_bins():
    """Ratios that are hundredths exactly, and their neighbours: the edge decides, not a rounded product."""
    a = torch.full((4 * 201,), 100.0, dtype=torch.float64)
    hundredths = torch.arange(-100, 101, dtype=torch.float64)
    b = torch.cat([100 + hundredths, 100 + hundredths * (1 + 1e-15), 100 + hundredths * (1 - 1e-15), 100 - hundredths])
    check(a, b, int((a != b).sum()))
    exact = measure(a[:201], b[:201]).histogram_paper
    assert exact.inner == (1,) * 199 + (2,)  # one in each bin, and r = 1 in the last one too
    assert (exact.below, exact.above) == (0, 0)


def test_forms_differ_in_sign_where_a_is_negative():
    got = measure(torch.tensor([-1.0]), torch.tensor([-1.5]))
    assert got.histogram.inner[50] + got.histogram.inner[49] == 1  # r = -0.5, a hair above it by the 1e-8
    assert got.histogram_paper.inner[150] == 1  # r = +0.5


def test_ratios_beyond_float64_lie_above_and_below():
    a = torch.tensor([5e-324, -5e-324], dtype=torch.float64)
    got = measure(a, torch.tensor([1e300, 1e300], dtype=torch.float64))
    assert (got.histogram_paper.below, got.histogram_paper.above) == (1, 1)
    assert got.histogram.above == 2


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_element(shape):
    got = measure(torch.full(shape, 2.0), torch.full(shape, 3.0))
    assert (got.n, got.shape, got.l2_shift, got.rms_shift, got.relative_shift, got.cosine) == (1, shape, 1, 1, 0.5, 1)


@pytest.mark.parametrize("shape", [(0,), (0, 8), (8, 0)])
def test_no_element(shape):
    got = measure(torch.empty(shape), torch.empty(shape))
    assert (got.n, got.l2_shift, got.rms_shift, got.relative_shift, got.changed_share) == (0, 0, 0, 0, 0)
    assert got.histogram.total == 0
    assert math.isnan(got.cosine)


def test_result_does_not_depend_on_the_blocks():
    a, b = pair_of(torch.bfloat16, torch.bfloat16, 3 * RUN + 777, seed=3)
    whole = measure(a, b)
    assert measure(a, b, block=RUN) == whole
    assert measure(a, b, block=RUN - 1) == whole
    assert measure(a, b, block=1999) == whole
    uneven = delta.measure(whole.name, [a], b.split(5000), shape=tuple(a.shape), dtypes=("BF16", "BF16"))
    assert uneven == whole


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_result_does_not_depend_on_the_threads(cores, monkeypatch):
    a, b = pair_of(torch.bfloat16, torch.bfloat16, 2_000_000, seed=4)
    whole = measure(a, b)
    monkeypatch.setattr(delta, "_cores", lambda: cores)
    with ThreadPoolExecutor(cores) as threads:
        monkeypatch.setattr(delta, "_threads", lambda: threads)
        assert measure(a, b) == whole


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_finite_or_other_elements(data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    number = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, 1.01, 0.99, 2.0])
    pairs = data.draw(st.lists(st.tuples(number, number), min_size=1, max_size=40))
    a, b = (torch.tensor(side, dtype=torch.float32).to(dtype) for side in zip(*pairs, strict=True))
    if not (torch.isfinite(a) & torch.isfinite(b)).any():
        return
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    check(a, b, int((a.view(bits) != b.view(bits)).sum()), block=7)


def test_sides_of_different_length_are_refused():
    with pytest.raises(PairError, match=r"up_proj.*same number of elements"):
        measure(torch.ones(5), torch.ones(4))
    with pytest.raises(PairError, match="do not fill its shape"):
        delta.measure("x", [torch.ones(RUN)], [torch.ones(RUN)], shape=(RUN + 1,), dtypes=("F32", "F32"))
    with pytest.raises(PairError, match="complex"):
        delta.measure("x", [torch.ones(2) * 1j], [torch.ones(2) * 1j], shape=(2,), dtypes=("C64", "C64"))


def test_anatomy_of_the_name_is_carried():
    got = measure(torch.ones(2), torch.ones(2), name="model.layers.7.mlp.experts.12.down_proj.weight")
    assert (got.layer, got.block, got.expert, got.parameter) == (7, "mlp", 12, "weight")
    assert "down_proj" in got.module
