"""Augerino against SciPy's matrix exponential and interpolation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, ndimage

from gyri.augnet import Augerino, image


def by_scipy(x, coefficients, scale=0.1):
    out = np.empty(x.shape)
    for i, (tx, ty, rot, grow, stretch, shear) in enumerate(coefficients):
        generator = np.array(
            [[grow + stretch, shear - rot, scale * tx], [rot + shear, grow - stretch, scale * ty], [0, 0, 0]]
        )
        a = linalg.expm(generator)
        down, right = np.meshgrid(*(np.linspace(-1, 1, n) for n in x.shape[1:3]), indexing="ij")
        column, row = np.einsum("ij,jrc->irc", a[:2], np.stack([right, down, np.ones_like(right)]))
        places = [(row + 1) * (x.shape[1] - 1) / 2, (column + 1) * (x.shape[2] - 1) / 2]
        for c in range(x.shape[-1]):
            out[i, ..., c] = ndimage.map_coordinates(x[i, ..., c], places, order=1, mode="grid-constant")
    return out


def test_given_coefficients(images, x64):
    coefficients = np.vstack([np.zeros(6), np.random.default_rng(0).normal(0, 0.4, (5, 6))])
    ours = Augerino().apply(images, coefficients)
    np.testing.assert_allclose(ours, by_scipy(images, coefficients), atol=1e-6)  # at the border 1 may round outwards
    far = Augerino(translation_scale=1.0).apply(images, coefficients)
    np.testing.assert_allclose(far, by_scipy(images, coefficients, 1.0), atol=1e-6)


def test_widths():
    np.testing.assert_allclose(Augerino().width, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(Augerino(init_width=0.3).width, 0.6, rtol=1e-5)
    rows = Augerino(init_width=0.3).describe()
    assert [row["operation"] for row in rows] == ["tx", "ty", "rot", "scale", "stretch", "shear"]
    assert rows[2]["argument"] == pytest.approx(np.rad2deg(0.3), rel=1e-5) and rows[2]["unit"] == "degrees"
    for bad in (0.0, -1.0):
        with pytest.raises(ValueError, match="init_width"):
            Augerino(init_width=bad)


def test_draws_are_within_the_widths_and_differ(images):
    x = jnp.broadcast_to(jnp.asarray(images[:1], jnp.float32), (50, *images.shape[1:]))
    net = Augerino(init_width=0.2)
    y = net(x, key=jax.random.key(0))
    assert len(np.unique(np.asarray(y).reshape(50, -1), axis=0)) == 50
    u = jax.random.uniform(jax.random.key(0), (50, 6), minval=-0.5, maxval=0.5)
    np.testing.assert_allclose(y, net.apply(x, 0.4 * u), atol=1e-4)


def test_derivative_in_the_coefficients(images, x64):
    net, weight = Augerino(), jnp.asarray(np.random.default_rng(1).normal(size=(1, *images.shape[1:])))
    value = lambda c: jnp.sum(weight * net.apply(images[:1], c))
    c, step = jnp.asarray(np.random.default_rng(2).normal(0, 0.2, (1, 6))), 1e-7
    for k in range(6):
        change = jnp.zeros((1, 6)).at[0, k].set(step)
        expected = (value(c + change) - value(c - change)) / (2 * step)
        np.testing.assert_allclose(jax.grad(value)(c)[0, k], expected, rtol=1e-4, atol=1e-5)


def test_the_dtype_of_the_images_is_kept(images, x64):
    for dtype, atol in ((jnp.float16, 2e-3), (jnp.float32, 1e-5), (jnp.float64, 0)):
        x = jnp.asarray(images, dtype)
        out = Augerino(init_width=0.3)(x, key=jax.random.key(0))
        assert out.dtype == dtype
        np.testing.assert_allclose(out, Augerino(init_width=0.3)(images, key=jax.random.key(0)), atol=atol)


def test_matrix_products_are_in_full_precision(images):
    # An accelerator rounds factors to ten bits otherwise, which moves positions by parts of a pixel.
    for fn, argument in ((Augerino().apply, jnp.zeros((6, 6))), (image.contrast, 0.5)):
        found = re.findall(r" precision=.*", str(jax.make_jaxpr(fn)(jnp.asarray(images), argument)))
        assert found and all("HIGHEST" in product for product in found)


def test_bad_coefficients_are_refused(images):
    with pytest.raises((ValueError, TypeError), match="coefficients"):
        Augerino().apply(images, np.zeros((6, 5)))
