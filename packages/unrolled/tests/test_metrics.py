"""Tests of gyri.unrolled.metrics and gyri.unrolled.datasets."""

from itertools import permutations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyri.unrolled import recovery_score, simulate
from gyri.unrolled.datasets import perturb, unit_rows
from gyri.unrolled.metrics import psnr


def brute_force(components, reference):
    """Best mean over all ways to match."""
    C = np.abs(unit(reference) @ unit(components).T)
    C = C if C.shape[0] <= C.shape[1] else C.T
    return max(np.mean(C[range(len(C)), list(p)]) for p in permutations(range(C.shape[1]), len(C)))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_score_is_the_best_matching(seed, n, n_ref):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((n, 5)), rng.standard_normal((n_ref, 5))
    assert recovery_score(a, b) == pytest.approx(brute_force(a, b), abs=1e-12)
    scrambled = -3 * a[rng.permutation(n)]
    assert recovery_score(scrambled, b) == pytest.approx(recovery_score(a, b), abs=1e-12)
    assert recovery_score(scrambled, a) == pytest.approx(1)


def test_convolutional_score_is_blind_to_shifts():
    rng = np.random.default_rng(0)
    atoms = np.zeros((3, 2, 30))
    atoms[:, :, 5:20] = rng.standard_normal((3, 2, 15))
    moved = -np.roll(atoms, 7, -1)[[2, 0, 1]]
    assert recovery_score(moved, atoms) == pytest.approx(1, abs=1e-5)
    assert recovery_score(moved[:2], atoms) == pytest.approx(1, abs=1e-5)
    image = np.zeros((1, 1, 9, 9))
    image[..., 2:5, 2:5] = rng.standard_normal((3, 3))
    assert recovery_score(np.roll(image, (2, 1), (2, 3)), image) == pytest.approx(1, abs=1e-5)


def test_an_unused_atom_counts_as_nothing():
    assert recovery_score(np.array([[1.0, 0.0], [0.0, 0.0]]), np.eye(2)) == pytest.approx(0.5)


def test_psnr():
    rng = np.random.default_rng(0)
    image = rng.random((64, 64))
    noisy = image + 0.1 * rng.standard_normal(image.shape)
    assert psnr(noisy, image) == pytest.approx(-10 * np.log10(np.mean((noisy - image) ** 2)))
    assert psnr(2 * noisy, 2 * image, 2.0) == pytest.approx(psnr(noisy, image))
    assert psnr(image, image) == np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recovery_score(np.full((2, 3), np.nan), np.eye(2, 3)), "components: expected finite"),
        (lambda: recovery_score(np.ones(3), np.ones(3)), "components: expected shape"),
        (lambda: recovery_score(np.eye(2, 3), np.eye(2, 4)), "reference: expected atoms like"),
        (lambda: recovery_score(np.eye(2, 3), np.ones((2, 1, 4))), "reference: expected atoms like"),
        (lambda: psnr(np.ones((2, 2)), np.ones((2, 3))), "reference: expected shape"),
        (lambda: psnr(np.ones((2, 2)), np.ones((2, 2)), 0.0), "data_range: expected a number > 0"),
        (lambda: simulate(0, 0), "n_samples: expected an integer"),
        (lambda: simulate(0, sparsity=1.5), "sparsity: expected a number"),
        (lambda: simulate(0, noise=-1.0), "noise: expected a number"),
        (lambda: simulate("a"), "key: expected an integer seed"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_simulation_is_the_recipe(dtype):
    X, components, codes = (np.asarray(a) for a in simulate(3, 4000, 20, 40))
    assert X.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(components, axis=1), 1, rtol=1e-5)
    on = codes != 0
    assert on.mean() == pytest.approx(0.3, abs=0.01)
    assert codes[on].mean() == pytest.approx(0, abs=0.02) and codes[on].std() == pytest.approx(1, abs=0.02)
    errors = X - codes @ components
    assert errors.std() == pytest.approx(0.1, abs=0.002)
    assert np.abs(np.corrcoef(errors.T) - np.eye(20)).max() < 0.08
    again = simulate(3, 4000, 20, 40).X
    np.testing.assert_array_equal(again, X)
    assert np.any(np.asarray(simulate(4, 4000, 20, 40).X) != X)
    start = np.asarray(perturb(1, jnp.asarray(components)))
    assert (start - components).std() == pytest.approx(0.5 * components.std(), rel=0.05)
    np.testing.assert_array_equal(unit_rows(jnp.zeros((2, 3))), 0)
