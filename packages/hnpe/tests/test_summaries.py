"""Tests of gyri.hnpe.summaries, against NumPy and SciPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from gyri.hnpe import log_psd
from gyri.hnpe.summaries import ConvNet, PartiallyExchangeable, autocorr, welch
from gyri.numerics.testing import check_jit, check_vmap

X = np.random.default_rng(0).normal(size=(3, 1024)).cumsum(1)


@pytest.mark.parametrize("n_bins", [1, 5, 33])
def test_spectrum_is_the_mean_over_half_overlapping_windows(n_bins, x64):
    width = 2 * n_bins - 1
    hop = max(width // 2, 1)
    windows = [X[:, i : i + width] for i in range(0, 1024 - width + 1, hop)]
    expected = np.mean([np.abs(np.fft.rfft(w)) ** 2 for w in windows], 0)
    np.testing.assert_allclose(log_psd(X, n_bins, log=False), expected, rtol=1e-9)
    np.testing.assert_allclose(log_psd(X, n_bins), np.log10(expected), rtol=1e-9)
    if n_bins == 33:
        assert len(windows) == 30


def test_gain_is_a_shift_of_the_spectrum(dtype):
    x = X.astype(dtype)
    shifted = log_psd(np.asarray(x * 10 ** (7.0 / 10), dtype))
    assert shifted.dtype == dtype
    np.testing.assert_allclose(shifted - log_psd(x), 0.2 * 7, rtol=1e-3)


@pytest.mark.parametrize("unbiased", [False, True])
def test_autocorrelation_is_that_of_its_definition(unbiased):
    x = X - X.mean(1, keepdims=True)
    expected = np.stack([(x[:, k:] * x[:, :-k]).sum(1) / (x**2).sum(1) for k in range(1, 11)], 1)
    expected = expected * 1024 / (1024 - np.arange(1, 11)) if unbiased else expected
    np.testing.assert_allclose(autocorr(X.astype(np.float32), 10, unbiased=unbiased), expected, rtol=1e-4)


@pytest.mark.parametrize("nperseg", [64, 65, 256])
def test_welch_is_that_of_scipy(nperseg, x64):
    expected = signal.welch(X, 128.0, nperseg=nperseg)[1]
    np.testing.assert_allclose(welch(X, 128.0, nperseg=nperseg), expected, rtol=1e-8)
    np.testing.assert_allclose(welch(X, 128.0, nperseg=nperseg, log=True), np.log10(expected), rtol=1e-8)


def test_under_jit_vmap_and_grad():
    x = jnp.asarray(X, jnp.float32)
    for function in (log_psd, lambda x: autocorr(x, 5), lambda x: welch(x, 128.0)):
        check_jit(function, x, rtol=1e-3, atol=1e-3)
        check_vmap(function, x, rtol=1e-3, atol=1e-3)
        assert jnp.isfinite(jax.grad(lambda x, f=function: f(x).sum())(x)).all()


def test_convolutional_embedding():
    network = ConvNet(jax.random.key(0), 1024, 5)
    x = jnp.asarray(X[0], jnp.float32)
    assert network(x).shape == (5,)
    np.testing.assert_array_equal(network(x), network(x))
    key = jax.random.key(1)
    assert (network(x, key=key) != network(x)).any()
    np.testing.assert_array_equal(eqx.nn.inference_mode(network)(x, key=key), network(x))


def test_embedding_of_a_markov_series_sees_windows_in_any_order():
    network = PartiallyExchangeable(jax.random.key(0), 1, 4)
    x = jnp.array([0.0, 1.0, 2.0, 0.0, 5.0, 0.0, 1.0])
    swapped = jnp.array([0.0, 5.0, 0.0, 1.0, 2.0, 0.0, 1.0])  # the same first value and pairs of neighbours
    np.testing.assert_allclose(network(x), network(swapped), rtol=1e-4, atol=1e-6)
    assert (jnp.abs(network(x) - network(x.at[4].set(3.0))) > 1e-5).any()
    assert PartiallyExchangeable(jax.random.key(0), 0, 4)(x).shape == (4,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_psd(np.zeros(64)), "x: expected at least 65 samples"),
        (lambda: log_psd(np.float32(1)), "x: expected shape"),
        (lambda: log_psd(X, 0), "n_bins: expected"),
        (lambda: autocorr(np.zeros(5), 5), "x: expected more than 5 samples"),
        (lambda: welch(np.zeros(100)), "x: expected at least 256 samples"),
        (lambda: welch(X, -1.0), "sfreq: expected"),
        (lambda: ConvNet(jax.random.key(0), 100, 3), "n_times: expected at least 256"),
        (lambda: PartiallyExchangeable(jax.random.key(0), -1, 3), "order: expected"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
