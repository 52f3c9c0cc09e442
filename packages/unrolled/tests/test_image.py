"""Restoration of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.unrolled import restore_image, sparse_code
from gyri.unrolled.image import average_patches, centre_patches, extract_patches, local_mean, solve_codes
from gyri.unrolled.metrics import psnr


def blocks(seed=0, n=32):
    return np.kron(np.random.default_rng(seed).random((4, 4)), np.ones((n // 4, n // 4)))


FAST = {
    "conv": {"max_steps": 5, "n_components": 8, "patch_size": 6},
    "patch": {"n_components": 24, "patch_size": 6, "epochs": 3},
    "analysis": {"max_steps": 30, "constraint": "separable"},
}


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_patches_come_apart_and_together(shape):
    image = np.random.default_rng(0).random(shape)
    patches = extract_patches(image, 4)
    assert patches.shape == (6 * 4, 16 * (shape[2] if len(shape) == 3 else 1))
    np.testing.assert_array_equal(patches[5], image[1:5, 1:5].ravel())
    np.testing.assert_allclose(average_patches(patches, shape, 4), image, atol=1e-12)
    # Averaging is the adjoint of extraction over the counts.
    other = np.random.default_rng(1).random(patches.shape)
    counts = average_patches(np.ones_like(patches), shape, 4)
    np.testing.assert_array_equal(counts, 1)
    weights = np.zeros(shape)
    for i in range(6):
        for j in range(4):
            weights[i : i + 4, j : j + 4] += 1
    assert np.sum(patches * other) == pytest.approx(np.sum(image * average_patches(other, shape, 4) * weights))


def test_means_are_those_of_valid_pixels():
    patches, mask = np.array([[1.0, 5.0, 9.0], [2.0, 0.0, 0.0]]), np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    centred, mean = centre_patches(patches, mask)
    np.testing.assert_array_equal(centred, [[-2, 2, 0], [0, 0, 0]])
    np.testing.assert_array_equal(mean, [[3], [0]])
    image = np.random.default_rng(0).random((20, 20))
    hole = np.ones((20, 20))
    hole[3:6, 3:6] = 0
    np.testing.assert_array_equal(local_mean(image, hole, 2.0), local_mean(np.where(hole, image, 9), hole, 2.0))
    assert local_mean(np.ones((40, 40)) * 0.3, (np.arange(1600) == 0).reshape(40, 40) * 1.0, 1.0) == pytest.approx(0.3)


@pytest.mark.parametrize("masked", [False, True])
def test_solved_codes_are_solutions(masked, x64):
    rng = np.random.default_rng(0)
    X, D = rng.standard_normal((2100, 6)), rng.standard_normal((8, 6))
    mask = (rng.random(X.shape) < 0.8).astype(float) if masked else None
    found = solve_codes(
        *map(jnp.asarray, (X, D)), 0.1, None if mask is None else jnp.asarray(mask), 1e-9, max_iter=5000
    )
    expected = sparse_code(X[:50], D, 0.1, n_iter=5000, mask=None if mask is None else mask[:50])
    np.testing.assert_allclose(found[:50], expected, atol=1e-4)
    assert found.shape == (2100, 8)


@pytest.mark.parametrize("method", FAST)
def test_noise_goes(method):
    image = blocks()
    noisy = (image + 0.07 * np.random.default_rng(1).standard_normal(image.shape)).astype("f4")
    restored, model = restore_image(noisy, method=method, lam=0.1, **FAST[method])
    assert psnr(restored, image) > psnr(noisy, image) + 2
    assert restored.dtype == np.float32 and restored.shape == image.shape and hasattr(model, "history_")
    assert restored.min() >= 0 and restored.max() <= 1


@pytest.mark.parametrize("method", FAST)
def test_missing_pixels_are_filled_in(method):
    image = blocks(1)
    mask = np.random.default_rng(0).random(image.shape) < 0.6
    damaged = np.where(mask, image, np.nan).astype("f4")
    restored, _ = restore_image(damaged, mask=mask, method=method, lam=0.02, **FAST[method])
    assert psnr(restored, image) > psnr(np.where(mask, image, image[mask].mean()), image) + 4
    other = np.where(mask, image, 0.7).astype("f4")
    np.testing.assert_array_equal(restore_image(other, mask=mask, method=method, lam=0.02, **FAST[method])[0], restored)


@pytest.mark.parametrize("shape", [(24, 26), (24, 26, 3)])
def test_holes_wider_than_a_patch_take_what_surrounds_them(shape):
    mask = np.ones(shape[:2])
    mask[6:18, 5:19] = 0  # patches of 4: most see nothing, and the middle is seen by none
    restored, _ = restore_image(np.full(shape, 0.8), mask=mask, method="patch", patch_size=4, n_components=4, epochs=1)
    np.testing.assert_allclose(restored, 0.8, atol=1e-3)


def test_averages_leave_out_patches_that_do_not_count():
    patches = extract_patches(np.arange(12.0).reshape(3, 4), 2)
    patches[2] = 99
    found = average_patches(patches, (3, 4), 2, np.arange(6) != 2)
    np.testing.assert_array_equal(found, [[0, 1, 2, np.nan], [4, 5, 6, 7], [8, 9, 10, 11]])


def test_patches_of_a_small_image_are_atoms_enough():
    image = np.random.default_rng(0).random((12, 12))
    restored, model = restore_image(image, method="patch", epochs=1)  # 9 patches
    assert restored.shape == image.shape and len(model.components_) == 9


@pytest.mark.parametrize("method", FAST)
def test_colours(method):
    image = np.stack([blocks(1, 16), blocks(2, 16), blocks(1, 16)], -1)
    mask = np.random.default_rng(0).random(image.shape[:2]) < 0.8
    options = FAST[method] | ({"max_steps": 3} if method != "patch" else {"epochs": 1})
    restored, _ = restore_image(image, mask=mask, method=method, lam=0.02, **options)
    assert restored.shape == image.shape and np.isfinite(restored).all()


def test_the_mean_may_stay_in():
    restored, _ = restore_image(blocks(), smooth=False, lam=0.05, **FAST["conv"])
    assert np.isfinite(restored).all()
    first, again, other = (
        restore_image(blocks(), lam=0.05, random_state=s, **FAST["conv"])[0] for s in (0, jax.random.key(0), 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.ones(9)}, "image: expected shape"),
        ({"image": np.ones((9, 9, 4))}, "image: expected shape"),
        ({"image": np.full((9, 9), np.nan)}, "image: expected finite"),
        ({"image": np.full((9, 9), 128.0)}, r"image: expected values in \[0, 1\]"),
        ({"mask": np.ones((9, 8))}, r"mask: expected shape \(9, 9\)"),
        ({"mask": np.full((9, 9), 0.2)}, "mask: expected 1"),
        ({"mask": np.zeros((9, 9))}, "mask: expected at least one valid pixel"),
        ({"method": "deep"}, "method: expected one of"),
        ({"patch_size": 10}, "patch_size: expected at most"),
        ({"patch_size": 0}, "patch_size: expected an integer"),
        ({"smooth": 1, "patch_size": 3}, "smooth: expected one of"),
        ({"lam": 0.0, "patch_size": 3}, "lam: expected a number > 0"),
    ],
)
def test_bad_input(change, message):
    arguments = {"image": np.full((9, 9), 0.5)} | change
    with pytest.raises(ValueError, match=message):
        restore_image(arguments.pop("image"), **arguments)
