"""int8 scales: histograms that grow, the four ways to choose a range, codes and back."""

from __future__ import annotations

import numpy as np
import pytest
from int8_codes import dequantise
from scipy import stats

from sdst_calib.int8.scales import (
    GrowingHistogram,
    Histogram,
    activation_scale,
    quantise,
    scale_in,
    weight_scales,
)
from sdst_runtime.errors import InputError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def histogram_of(values: np.ndarray, parts: int = 1) -> Histogram:
    counter = GrowingHistogram()
    for part in np.array_split(values, parts):
        counter.add(part)
    return counter.histogram()


def error_of(values: np.ndarray, scale: float) -> float:
    got = dequantise(quantise(values, np.asarray(scale)), np.asarray(scale))
    return float(np.square(values - got).mean())


def test_a_histogram_grows_without_losing_values(rng):
    values = np.sort(np.abs(rng.standard_normal(5000))) * 40  # ascending: the range must double several times
    grown = histogram_of(values, parts=50)
    assert grown.amax == values[-1]
    assert grown.edges[-1] / 2 <= grown.amax <= grown.edges[-1]
    expected, _ = np.histogram(values, grown.edges)
    assert np.abs(np.cumsum(grown.counts) - np.cumsum(expected)).max() <= 1  # a value on an edge may fall either side


def test_zeros_before_the_first_value_are_counted():
    counter = GrowingHistogram()
    for part in ([0.0, 0.0], [-3.0], [0.5]):
        counter.add(np.array(part))
    histogram = counter.histogram()
    assert histogram.counts[0] == 2
    assert histogram.counts[-1] == 1
    assert histogram.counts.sum() == 4


def test_scales_of_known_distributions(rng):
    uniform = histogram_of(rng.uniform(-6, 6, 100_000))
    for method in ("amax", "percentile", "mse", "entropy"):
        assert activation_scale(uniform, method) * 127 == pytest.approx(6, rel=0.02), (
            method
        )  # nothing is worth clamping
    normal = rng.standard_normal(200_000)
    assert activation_scale(histogram_of(normal), "amax") == np.abs(normal).max() / 127
    clamped = activation_scale(histogram_of(normal), "percentile") * 127
    assert clamped == pytest.approx(stats.norm.ppf(1 - 0.00005), rel=0.03)  # 0.01 % lie beyond, on both sides


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_an_outlier_is_clamped(rng, method):
    values = np.concatenate([rng.standard_normal(100_000), [40.0]])
    limit = activation_scale(histogram_of(values), method) * 127
    assert 2.5 < limit < (30 if method == "mse" else 6)
    assert error_of(values[:-1], limit / 127) < error_of(values[:-1], 40 / 127) / (2 if method == "mse" else 40)


def test_zeros_do_not_hide_the_values_that_percentile_is_of():
    """A ReLU that is dead but for 10 of 200,000 values: they are what the next layer gets."""
    values = np.zeros(200_000)
    values[::20_000] = np.linspace(1, 2, 10)
    counted = histogram_of(values, parts=7)
    assert counted.zeros == 199_990
    limit = activation_scale(counted, "percentile") * 127
    assert limit == pytest.approx(2, rel=0.002)
    assert error_of(values, limit / 127) < 1e-8


def test_zeros_do_not_move_percentile(rng):
    values = np.abs(rng.standard_normal(100_000))
    alone = activation_scale(histogram_of(values), "percentile")
    assert activation_scale(histogram_of(np.concatenate([np.zeros(300_000), values])), "percentile") == alone


def test_mse_is_the_least_error_of_all_ranges(rng):
    values = rng.laplace(size=50_000)
    scale = activation_scale(histogram_of(values), "mse")
    others = [error_of(values, np.abs(values).max() * share / 127) for share in np.linspace(0.05, 1, 60)]
    assert error_of(values, scale) <= min(others) * 1.01


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_round_trip_errs_by_half_a_step_of_its_channel(rng, axis):
    weight = rng.standard_normal((5, 7)) * (10.0 ** np.arange(7) if axis else 10.0 ** np.arange(5)[:, None])
    weight = weight.astype(np.float32)
    scales = weight_scales(weight, axis)
    codes = quantise(weight, scales, axis)
    assert scales.shape == (weight.shape[axis],)
    assert codes.dtype == np.int8
    assert (np.abs(codes).max(axis=1 - axis % 2) == 127).all()
    steps = scales if axis else scales[:, None]
    assert (np.abs(dequantise(codes, scales, axis) - weight) <= 0.5001 * steps).all()


def test_a_channel_of_zeros_and_one_too_small_for_half():
    weight = np.array([[0, 0], [1e-7, -1e-7], [2, 1]], np.float16)
    scales = weight_scales(weight, 0)
    assert scales.dtype == np.float16
    assert scales[0] == 1
    assert (scales > 0).all()  # 1e-7 / 127 is 0 in half
    assert (quantise(weight, scales, 0)[2] == [127, 64]).all()
    assert scale_in(1e-12, np.dtype(np.float16)) == np.finfo(np.float16).smallest_subnormal


def test_values_that_give_no_scale():
    with pytest.raises(InputError, match=r"expected values to choose a scale from, got none"):
        activation_scale(GrowingHistogram().histogram(), "mse")
    with pytest.raises(InputError, match=r"all values are 0"):
        activation_scale(histogram_of(np.zeros(9)), "entropy")
    with pytest.raises(InputError, match=r"method: expected one of amax, percentile, mse, entropy, got 'max'"):
        activation_scale(histogram_of(np.ones(9)), "max")  # type: ignore[arg-type]
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match=r"expected finite values, got NaN or infinity"):
            GrowingHistogram().add(np.array([1.0, bad]))
    for method in ("amax", "percentile", "mse", "entropy"):  # one value throughout: its own range
        assert activation_scale(histogram_of(np.full(100, -5.0)), method) * 127 == pytest.approx(5, rel=0.01)
