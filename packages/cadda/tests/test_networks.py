"""The network against the same in NumPy, one window at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from gyri.cadda import SleepStager
from gyri.cadda.networks import convolve, max_pool, n_parameters


def numpy_block(x, block):
    """(times, in) to (fewer, out), by NumPy's correlation."""
    kernel, bias = np.asarray(block.kernel[...], float), np.asarray(block.bias[...], float)
    width = len(kernel)
    padded = np.pad(x, ((width // 2, width // 2), (0, 0)))
    filtered = lambda o: sum(np.correlate(padded[:, i], kernel[:, i, o], "valid") for i in range(x.shape[1]))
    h = np.stack([filtered(o) for o in range(len(bias))], 1) + bias
    norm = block.norm
    if norm is not None:
        mean, var, scale, shift = (np.asarray(v[...], float) for v in (norm.mean, norm.var, norm.scale, norm.bias))
        h = (h - mean) / np.sqrt(var + 1e-5) * scale + shift
    h = np.maximum(h, 0)
    n = len(h) // block.pool
    return h[: n * block.pool].reshape(n, block.pool, -1).max(1)


@pytest.mark.parametrize(("n_channels", "batch_norm"), [(1, True), (3, True), (2, False)])
def test_logits_are_numpys(n_channels, batch_norm):
    rng = np.random.default_rng(0)
    network = SleepStager(n_channels, 4, 150, 20, batch_norm=batch_norm, rngs=nnx.Rngs(0))
    if batch_norm:
        network.first.norm.mean[...] = jnp.asarray(rng.standard_normal(8), "f4")
        network.second.norm.var[...] = jnp.asarray(rng.uniform(0.5, 2, 8), "f4")
    network.eval()
    x = rng.standard_normal((5, n_channels, 150)).astype("f4")
    for window, logits in zip(x, np.asarray(network(jnp.asarray(x)))):
        mixed = window if n_channels == 1 else (window.T @ network.mix.kernel[...] + network.mix.bias[...]).T
        blocks = [
            numpy_block(numpy_block(c[:, None], network.first), network.second).ravel() for c in np.asarray(mixed)
        ]
        expected = np.concatenate(blocks) @ np.asarray(network.dense.kernel[...]) + np.asarray(network.dense.bias[...])
        np.testing.assert_allclose(logits, expected, atol=2e-4)


def test_sizes_are_the_papers():
    network = SleepStager(2, rngs=nnx.Rngs(0))
    assert n_parameters(network) == 5019
    assert network.embed(jnp.zeros((3, 2, 3000))).shape == (3, 272)
    assert network(jnp.zeros((3, 2, 3000))).shape == (3, 5)
    assert not hasattr(SleepStager(1, rngs=nnx.Rngs(0)).mix, "kernel")


@pytest.mark.parametrize("width", [4, 5])
def test_convolution_by_fft_is_the_direct_one(width, dtype):
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.standard_normal((2, 31, 3)), dtype),
        jnp.asarray(rng.standard_normal((width, 3, 2)), dtype),
    )
    layout = ("NWC", "WIO", "NWC")
    direct = jax.lax.conv_general_dilated(x, kernel, (1,), [(2, 2)], dimension_numbers=layout)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(convolve(x, kernel, 2), direct, atol=tolerance)
    check_grads(
        lambda x, k: convolve(jnp.asarray(x), jnp.asarray(k), 2), (x, kernel), 1, ("rev",), atol=1e-2, rtol=1e-2
    )


def test_pooling_drops_the_rest():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 3)), "f4")
    np.testing.assert_array_equal(max_pool(x, 3), np.stack([x[:, :3].max(1), x[:, 3:6].max(1)], 1))


def test_max_pool_gradient_goes_to_one_place():
    gradient = jax.grad(lambda x: (jnp.array([2.0, 3.0])[:, None] * max_pool(x, 2)[0]).sum())
    x = jnp.array([1.0, 1.0, 0.0, 5.0, 9.0]).reshape(1, 5, 1)
    np.testing.assert_array_equal(gradient(x).ravel(), [2, 0, 0, 3, 0])
    assert " div " not in str(jax.make_jaxpr(gradient)(x))  # a share of a count can be 0 / 0


def test_modes_and_dropout():
    network = SleepStager(2, 5, 150, 20, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 2, 150)), "f4")
    first, second = network(x), network(x)
    assert np.abs(first - second).max() > 1e-3  # dropout
    moved = np.asarray(network.first.norm.mean[...])
    assert np.abs(moved).max() > 0
    network.eval()
    np.testing.assert_array_equal(network(x), network(x))
    np.testing.assert_array_equal(network.first.norm.mean[...], moved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_channels": 0}, "n_channels: expected an integer >= 1"),
        ({"n_times": 4}, "n_times: expected some 9 samples or more"),
        ({"sfreq": 0.0}, "sfreq: expected a number > 0"),
        ({"dropout": 1.0}, "dropout: expected a number >= 0 and < 1"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        SleepStager(**{"n_channels": 2, "n_times": 150, "sfreq": 20.0} | change, rngs=nnx.Rngs(0))


def test_windows_of_another_shape():
    network = SleepStager(2, 5, 150, 20, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"x: expected shape \(batch, 2, 150\), got \(3, 2, 140\)"):
        network(jnp.zeros((3, 2, 140)))
