"""Image transforms against SciPy's bilinear interpolation, formula by formula, and their draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from gyri.augnet import image, image_transforms
from gyri.augnet.warp import sample, shift
from gyri.numerics.testing import check_jit, check_no_recompilation, check_vmap

KEY = jax.random.key(0)


def interpolate(x, rows, columns):
    """Bilinear with neighbours outside counted as 0, by SciPy in float64."""
    out = np.empty((len(x), *rows.shape[1:], x.shape[-1]))
    for i, c in np.ndindex(len(x), x.shape[-1]):
        out[i, ..., c] = ndimage.map_coordinates(
            x[i, ..., c], [rows[i], columns[i]], order=1, mode="grid-constant", cval=0.0
        )
    return out


def grid(x):
    rows, columns = np.mgrid[: x.shape[1], : x.shape[2]].astype(float)
    return np.broadcast_to(rows, x.shape[:3]), np.broadcast_to(columns, x.shape[:3])


def by_scipy(name, x, m, center="corner"):
    r, c = grid(x)
    m = m[:, None, None]
    height, width = x.shape[1:3]
    r0, c0 = (0, 0) if center == "corner" else ((height - 1) / 2, (width - 1) / 2)
    if name == "translate_x":
        return interpolate(x, r, c - m * width)
    if name == "translate_y":
        return interpolate(x, r - m * height, c)
    if name == "shear_x":
        return interpolate(x, r, c - m * (r - r0))
    if name == "shear_y":
        return interpolate(x, r - m * (c - c0), c)
    angle, cr, cc = np.deg2rad(m), (height - 1) / 2, (width - 1) / 2
    rows = cr + np.cos(angle) * (r - cr) + np.sin(angle) * (c - cc)
    return interpolate(x, rows, cc - np.sin(angle) * (r - cr) + np.cos(angle) * (c - cc))


AMOUNTS = {
    "translate_x": [0.3, -0.17, 0.0, 1.4, -2.0, 1 / 9],
    "translate_y": [0.3, -0.17, 0.0, 1.4, -2.0, 1 / 12],
    "shear_x": [0.3, -0.21, 0.0, 1.7, -3.0, 1.0],
    "shear_y": [0.3, -0.21, 0.0, 1.7, -3.0, 1.0],
    "rotate": [30.0, -12.5, 0.0, 180.0, -90.0, 400.0],
}


@pytest.mark.parametrize("name", AMOUNTS)
def test_geometry_is_scipys_interpolation(name, images, x64):
    m = np.array(AMOUNTS[name])
    np.testing.assert_allclose(getattr(image, name)(images, m), by_scipy(name, images, m), atol=1e-12)


@pytest.mark.parametrize("name", AMOUNTS)
def test_geometry_in_single_precision(name, images):
    m = np.array(AMOUNTS[name][:3])
    ours = getattr(image, name)(images[:3].astype(np.float32), m.astype(np.float32))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, by_scipy(name, images[:3], m), atol=5e-6)


@pytest.mark.parametrize("name", ["shear_x", "shear_y"])
def test_shear_about_the_middle(name, images, x64):
    m = np.array(AMOUNTS[name])
    ours = getattr(image, name)(images, m, center="image")
    np.testing.assert_allclose(ours, by_scipy(name, images, m, "image"), atol=1e-12)


def test_sampling_at_any_positions(images, x64):
    rng = np.random.default_rng(1)
    rows, columns = rng.uniform(-3, 15, (6, 5, 4)), rng.uniform(-3, 12, (6, 5, 4))
    np.testing.assert_allclose(sample(images, rows, columns), interpolate(images, rows, columns), atol=1e-12)


def test_colours_are_their_formulas(images, x64):
    m = np.array([0.0, 0.2, 0.5, 0.9, 1.0, 0.7])
    factor = m[:, None, None, None]
    gray = images @ [0.299, 0.587, 0.110]
    mean = (np.floor(255 * gray.mean((1, 2)) + 0.5) / 255)[:, None, None, None]
    np.testing.assert_allclose(image.contrast(images, m), mean + (1 - factor) * (images - mean), atol=1e-12)
    np.testing.assert_allclose(image.brightness(images, m), (1 - factor) * images, atol=1e-12)
    order = np.array([3, 1, 0, 5, 4, 2])
    mixed = (1 - factor) * images + factor * images[order]
    np.testing.assert_allclose(image.sample_pairing(images, m, order), mixed, atol=1e-12)
    one = images[..., :1]
    mean = (np.floor(255 * one.mean((1, 2, 3)) + 0.5) / 255)[:, None, None, None]
    np.testing.assert_allclose(image.contrast(one, m), mean + (1 - factor) * (one - mean), atol=1e-12)
    np.testing.assert_array_equal(image.horizontal_flip(images), images[:, :, ::-1])


@pytest.mark.parametrize("name", [*AMOUNTS, "contrast", "brightness"])
def test_derivatives_in_the_amount(name, images, x64):
    fn, weight = getattr(image, name), jnp.asarray(np.random.default_rng(2).normal(size=images.shape))
    scale = {"rotate": 20.0}.get(name, 0.3)
    value = lambda m: jnp.sum(weight * fn(images, scale * m))
    m, step = jnp.array([0.31, 0.47, 0.53, 0.71, 0.83, 0.92]), 1e-6
    for i in range(2):
        change = jnp.zeros(6).at[i].set(step)
        expected = (value(m + change) - value(m - change)) / (2 * step)
        np.testing.assert_allclose(jax.grad(value)(m)[i], expected, rtol=1e-4, atol=1e-6)
    forward = jax.jvp(value, (m,), (jnp.ones(6),))[1]
    np.testing.assert_allclose(forward, jax.grad(value)(m).sum(), rtol=1e-9)


ARGUMENT = {
    "translate_x": "fraction",
    "translate_y": "fraction",
    "shear_x": "slope",
    "shear_y": "slope",
    "rotate": "degrees",
}


def test_derivatives_in_the_image_are_the_adjoint(images, x64):
    rng = np.random.default_rng(3)
    y = jnp.asarray(rng.normal(size=images.shape))
    for name, amounts in AMOUNTS.items():
        fn = partial(getattr(image, name), **{ARGUMENT[name]: np.array(amounts)})
        out, pullback = jax.vjp(fn, jnp.asarray(images))  # linear in the image
        np.testing.assert_allclose(jnp.vdot(out, y), jnp.vdot(images, pullback(y)[0]), rtol=1e-10)


def test_jit_vmap_and_no_recompilation(images):
    x, m = jnp.asarray(images, jnp.float32), jnp.linspace(0.1, 0.6, 6)
    for name in (*AMOUNTS, "contrast", "brightness"):
        fn = getattr(image, name)
        check_jit(fn, x, m, atol=1e-5)
        check_no_recompilation(fn, (x, m), (x / 2, m / 2))
    check_vmap(image.rotate, jnp.stack([x, x / 2]), jnp.stack([m, 10 * m]), atol=1e-5)
    check_vmap(shift, jnp.stack([x, x / 2]), jnp.stack([m, 10 * m]), atol=1e-5)


def test_sets_and_ranges():
    assert [t.name for t in image_transforms()] == ["translate_x", "translate_y", "rotate", "shear_x", "shear_y"]
    assert [t.name for t in image_transforms("geometric")][-1] == "horizontal_flip"
    assert {t.name: t.range for t in image_transforms("geometric", rotate_degrees=180)} == {
        "translate_x": (0, 0.45), "translate_y": (0, 0.45), "rotate": (0, 180), "shear_x": (0, 0.3),
        "shear_y": (0, 0.3), "horizontal_flip": (0, 0.5),
    }  # fmt: skip
    assert image_transforms()[0] is image_transforms("affine")[0]
    assert [t.name for t in image_transforms(("identity", "brightness"))] == ["identity", "brightness"]
    for bad in ("colour", ("rotate", "rotate"), ("twist",), ()):
        with pytest.raises(ValueError, match="include"):
            image_transforms(bad)
    with pytest.raises(ValueError, match="rotate_degrees"):
        image_transforms(rotate_degrees=-1.0)
    with pytest.raises(ValueError, match="center"):
        image_transforms(center="middle")


def test_draws_are_signed_uniform_and_of_each_example():
    # A ramp tells how far each image was moved: brightness at the middle column is its position.
    ramp = np.broadcast_to(np.arange(101.0)[:, None] / 100, (2000, 1, 101, 1)).astype(np.float32)
    (move,) = image_transforms(("translate_x",))
    moved = 50 - 100 * np.asarray(move(KEY, ramp, 0.8))[:, 0, 50, 0]
    far = 0.8 * 0.45 * 101
    assert np.abs(moved).max() <= far + 1e-3 and np.abs(moved).max() > 0.99 * far
    assert abs(moved.mean()) < 4 * moved.std() / np.sqrt(2000)
    np.testing.assert_allclose(np.abs(moved).mean(), far / 2, rtol=0.05)
    # Sign and size are independent.
    assert abs(np.corrcoef(np.sign(moved), np.abs(moved))[0, 1]) < 0.1


def test_flip_at_full_magnitude_is_half_of_the_time(images):
    x = np.broadcast_to(images[:1], (4000, *images.shape[1:])).astype(np.float32)
    (flip,) = image_transforms(("horizontal_flip",))
    for magnitude in (1.0, 0.3):
        y = np.asarray(flip(KEY, x, magnitude))
        flipped = np.abs(y - x[:, :, ::-1]).max((1, 2, 3)) < 1e-6
        assert ((np.abs(y - x).max((1, 2, 3)) < 1e-6) | flipped).all()
        assert abs(flipped.mean() - 0.5 * magnitude) < 4 * np.sqrt(0.25 / 4000)


def test_results_stay_in_the_unit_interval_and_keep_the_dtype(images):
    for dtype in (np.float32, np.float16):
        x = images.astype(dtype)
        for transform in image_transforms((*image.AFFINE, *image.NON_AFFINE, "identity")):
            y = np.asarray(transform(KEY, x, 1.0))
            assert y.dtype == dtype and y.shape == x.shape
            assert y.min() >= 0 and y.max() <= 1, transform.name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: image.rotate(x, np.ones(2)), "degrees: expected one number or 6"),
        (lambda x: image.contrast(x[..., :2], 0.1), "x: expected images of 1 or 3 channels, got 2"),
        (lambda x: image.shear_x(x, 0.1, center="top"), "center"),
    ],
)
def test_bad_input_is_named(call, message, images):
    with pytest.raises(ValueError, match=message):
        call(images)


def test_other_shapes_are_refused():
    with pytest.raises((ValueError, TypeError), match="x"):
        image.rotate(np.ones((3, 4, 4)), 1.0)
