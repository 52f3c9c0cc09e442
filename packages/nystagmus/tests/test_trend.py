"""Levels of smoothing against their definitions, and against the trend itself by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from gyri.nystagmus import estimate_tv_threshold, simulate_nystagmus, tv_threshold
from gyri.nystagmus.datasets import waveform
from gyri.nystagmus.trend import check_mask, fill_gaps, mu_max, trend_level

T = np.arange(8000) / 1000


def tv_trend(x, mu):
    """The dual by bounded least squares: x - D'u with |u| <= mu closest to zero."""
    steps = np.diff(np.eye(x.size), axis=0)
    return x - steps.T @ lsq_linear(steps.T, x, (-mu, mu), tol=1e-14).x


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 15))
def test_above_mu_max_the_trend_is_constant_and_below_it_is_not(seed, n):
    x = np.random.default_rng(seed).standard_normal(n)
    bound = float(mu_max(x))
    assert np.ptp(tv_trend(x, 1.0001 * bound)) < 1e-6
    assert np.ptp(tv_trend(x, 0.9 * bound)) > 1e-6


def test_mu_max_leaves_out_invalid_samples():
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal((2, 3, 40)), rng.random((2, 3, 40)) < 0.7
    expected = [[mu_max(row[valid]) for row, valid in zip(rows, valids)] for rows, valids in zip(x, mask)]
    np.testing.assert_allclose(mu_max(np.where(mask, x, np.nan), mask=mask), expected, rtol=1e-12)


def test_an_oscillation_is_flattened_at_its_threshold():
    t = np.arange(400) / 100
    x = 2.0 * np.sin(2 * np.pi * 5 * t)  # of 20 periods: the bound for a whole recording is close to the threshold
    mu = tv_threshold(2.0, 5.0, 100.0)
    np.testing.assert_allclose(mu, 2.0 * 100 / (2 * np.pi * 5), rtol=1e-12)
    assert np.ptp(tv_trend(x, 1.1 * mu)[20:-20]) < 0.02
    assert np.ptp(tv_trend(x, 0.5 * mu)[20:-20]) > 0.5


def test_threshold_is_traceable():
    np.testing.assert_allclose(jax.jit(tv_threshold)(jnp.float32(3.0), 5.0, 1000.0), 95.492966, rtol=1e-6)


@pytest.mark.parametrize("frequency", [2.0, 4.7, 8.0])
def test_frequency_and_amplitude_are_found_under_saccades(frequency):
    rng = np.random.default_rng(0)
    saccades = np.cumsum(np.where(rng.random(T.size) < 0.002, rng.normal(0, 10, T.size), 0))
    x = 3.0 * np.cos(2 * np.pi * frequency * T) + saccades
    found = estimate_tv_threshold(x, 1000.0)
    np.testing.assert_allclose(found.frequency, frequency, rtol=0.01)
    np.testing.assert_allclose(found.amplitude, 3.0, rtol=0.1)
    np.testing.assert_allclose(found.mu, tv_threshold(found.amplitude, found.frequency, 1000.0))


def test_the_content_of_gaps_is_not_read():
    x = 3.0 * np.cos(2 * np.pi * 5 * T)
    mask = np.ones(T.size, bool)
    mask[1000:1150] = mask[4000:4200] = False
    found = estimate_tv_threshold(np.where(mask, x, np.nan), 1000.0, mask=mask)
    assert found == estimate_tv_threshold(np.where(mask, x, 1e6), 1000.0, mask=mask)
    np.testing.assert_allclose(found.frequency, 5.0, rtol=0.05)


@pytest.mark.parametrize("part", [0.1, 0.3, 0.55])
@pytest.mark.parametrize("length", [150, None])
def test_gaps_take_nothing_from_the_level(part, length):
    x = simulate_nystagmus(0, n_times=5000, sfreq=500.0, kind="pendular", frequency=4.0, nystagmus_std=3.0).recording
    rng, mask = np.random.default_rng(1), np.ones(5000, bool)
    while (~mask).mean() < part:
        start, n = (1000, int(part * 5000)) if length is None else (rng.integers(0, 4850), length)
        mask[start : start + n] = False
    found = estimate_tv_threshold(x, 500.0, mask=mask)
    np.testing.assert_allclose(found.frequency, 4.0, rtol=0.03)
    np.testing.assert_allclose(found.mu, estimate_tv_threshold(x, 500.0).mu, rtol=0.1)


def test_trials_and_channels_without_a_valid_sample_do_not_count():
    x = np.cos(2 * np.pi * 5 * T) * np.array([[1.0, 4.0], [1.0, 5.0], [9.0, 7.0]])[..., None]
    mask = np.ones(x.shape, bool)
    mask[0] = mask[2, 0] = False
    assert estimate_tv_threshold(x, 1000.0, mask=mask).amplitude == pytest.approx(6.0, rel=0.05)


@pytest.mark.parametrize("first", [0, 1])
def test_samples_that_a_tracker_repeats_tell_nothing(first):
    x = simulate_nystagmus(0, n_times=1000, sfreq=100.0, kind="pendular", frequency=4.0, nystagmus_std=3.0).recording
    seldom, repeated = estimate_tv_threshold(x, 100.0), estimate_tv_threshold(np.repeat(x, 2, -1)[..., first:], 200.0)
    np.testing.assert_allclose(repeated.frequency, seldom.frequency, rtol=0.01)
    np.testing.assert_allclose(repeated.amplitude, seldom.amplitude, rtol=0.02)


def test_coarse_steps_and_straight_slow_phases_leave_an_amplitude():
    x = np.cos(2 * np.pi * 2 * T)
    fine, coarse = (estimate_tv_threshold(y, 1000.0) for y in (x, np.round(x / 0.05) * 0.05))
    np.testing.assert_allclose(coarse.mu, fine.mu, rtol=0.02)
    jerk = 3.0 * waveform("jerk_sf_up", 4 * T % 1, 0.0)  # most velocities are the same
    for dtype in (np.float64, np.float32):
        found = estimate_tv_threshold(jerk.astype(dtype), 1000.0)
        np.testing.assert_allclose(found.frequency, 4.0, rtol=0.01)
        assert found.amplitude == pytest.approx(3.0 / np.pi, rel=0.1)  # of the first harmonic of a sawtooth


def test_a_recording_without_oscillation_warns():
    with pytest.warns(UserWarning, match="no oscillation.*trend_reg"):
        assert estimate_tv_threshold(3.0 * T, 1000.0).mu < 1e-9
    assert estimate_tv_threshold(np.full(8000, 3.1), 1000.0).mu == 0  # nothing to be followed: no warning


def test_several_channels_take_the_strongest_and_trials_the_median():
    x = np.cos(2 * np.pi * 5 * T) * np.array([[1.0, 4.0], [1.0, 5.0], [1.0, 9.0]])[..., None]
    np.testing.assert_allclose(estimate_tv_threshold(x, 1000.0).amplitude, 5.0, rtol=0.05)
    np.testing.assert_allclose(estimate_tv_threshold(x[0], 1000.0).amplitude, 4.0, rtol=0.05)


def test_scales_by_their_definitions():
    x = simulate_nystagmus(0, n_times=3000).recording
    step, std = np.abs(np.diff(x)).max(), x.std()
    assert trend_level(x, 3.0) == 3.0
    np.testing.assert_allclose(trend_level(x, 0.2, "max_diff"), 0.2 * step * std, rtol=1e-6)
    np.testing.assert_allclose(trend_level(x, 0.2, "max_diff_legacy"), 0.2 * step, rtol=1e-6)
    centred = x - x.mean()
    np.testing.assert_allclose(trend_level(x, 0.2, "lambda_max"), 0.2 * np.abs(np.cumsum(centred)).max(), rtol=1e-6)
    assert trend_level(x, "auto", sfreq=1000.0) == estimate_tv_threshold(x, 1000.0).mu
    mask = np.ones(3000, bool)
    mask[500] = False
    spiked = x.copy()
    spiked[..., 500] = 1e6
    for scale in ("max_diff", "max_diff_legacy", "lambda_max"):
        np.testing.assert_allclose(trend_level(spiked, 0.2, scale, mask=mask), trend_level(x, 0.2, scale), rtol=0.05)


@settings(deadline=None)
@given(st.floats(0.1, 100))
def test_levels_scale_with_the_data_as_the_model_does(s):
    x = simulate_nystagmus(0, n_times=2000).recording
    for reg, scale, power in (("auto", "absolute", 1), (0.3, "lambda_max", 1), (0.3, "max_diff_legacy", 1)):
        level = trend_level(s * x, reg, scale, sfreq=1000.0)
        np.testing.assert_allclose(level, s**power * trend_level(x, reg, scale, sfreq=1000.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: trend_level(x, -1.0), "trend_reg"),
        (lambda x: trend_level(x, "best"), "trend_reg"),
        (lambda x: trend_level(x, 1.0, "relative"), "trend_scale"),
        (lambda x: trend_level(x, "auto"), "sfreq"),
        (lambda x: estimate_tv_threshold(x, 0.0), "sfreq"),
        (lambda x: estimate_tv_threshold(x, 1000.0, (5, 2)), "band"),
        (lambda x: estimate_tv_threshold(x, 20.0), "band"),
        (lambda x: estimate_tv_threshold(x[:500], 1000.0), "x"),
        (lambda x: estimate_tv_threshold(x, 1000.0, mask=np.arange(x.size) < 900), "x: .* valid"),
        (lambda x: trend_level(x[:500], "auto", sfreq=1000.0), "^trend_reg: expected a number"),
        (lambda x: estimate_tv_threshold(x * np.nan, 1000.0), "x"),
        (lambda x: mu_max(x, mask=np.zeros(x.size, bool)), "mask"),
        (lambda x: mu_max(x, mask=np.ones(3, bool)), "mask"),
        (lambda x: check_mask(np.ones(3), (3,)), "mask"),
        (lambda x: tv_threshold(-1.0, 1.0, 1.0), "amplitude"),
        (lambda x: tv_threshold(1.0, 0.0, 1.0), "frequency"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=name):
        call(np.cos(2 * np.pi * 5 * T))


def test_filling_is_linear_and_keeps_valid_samples():
    x = np.array([[np.nan, 1.0, np.nan, np.nan, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0], [np.nan] * 5])
    np.testing.assert_array_equal(
        fill_gaps(x, ~np.isnan(x)), [[1.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5]
    )
