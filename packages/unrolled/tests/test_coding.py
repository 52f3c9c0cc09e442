"""Tests of gyri.unrolled.coding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from gyri.numerics import linalg
from gyri.numerics.testing import check_jit, check_no_recompilation, check_vmap
from gyri.unrolled import lasso_objective, simulate, sparse_code
from gyri.unrolled.coding import Measurement, lipschitz_constant, split_depth

LAM = 0.1


def problem(seed=0, n=7, m=6, k=9):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, m)), rng.standard_normal((k, m)) / np.sqrt(m)


def plain_codes(X, D, lam, n_iter, *, momentum=True, steps=None, forward=None, adjoint=None, norm=None):
    """ISTA or FISTA as it is written, sample by sample; forward maps signals to observations."""
    forward, adjoint = forward or (lambda u, i: u), adjoint or (lambda r, i: r)
    steps = np.ones(n_iter) if steps is None else steps
    codes = np.zeros((len(X), len(D)))
    for i, x in enumerate(X):
        L = np.linalg.norm(D, 2) ** 2 * (1 if norm is None else norm[i])
        z = v = np.zeros(len(D))
        t = 1.0
        for s in steps:
            u = v - s / L * D @ adjoint(forward(D.T @ v, i) - x, i)
            new = np.sign(u) * np.maximum(np.abs(u) - lam * s / L, 0)
            t_next = (1 + np.sqrt(1 + 4 * t * t)) / 2
            v = new + ((t - 1) / t_next * (new - z) if momentum else 0)
            z, t = new, t_next
        codes[i] = z
    return codes


@pytest.mark.parametrize("algorithm", ["ista", "fista"])
@pytest.mark.parametrize("k", [4, 9, 30])  # the last takes the form without Gram matrix
def test_iterations_are_those_written(algorithm, k, x64):
    X, D = problem(k=k)
    steps = np.linspace(0.5, 1.5, 8)
    expected = plain_codes(X, D, LAM, 8, momentum=algorithm == "fista", steps=steps)
    np.testing.assert_allclose(sparse_code(X, D, LAM, n_iter=8, algorithm=algorithm, steps=steps), expected, atol=1e-12)


def test_masks_operators_and_both(x64):
    X, D = problem()
    rng = np.random.default_rng(1)
    mask = rng.random(X.shape) < 0.6
    each = rng.standard_normal((len(X), 4, 6))
    Y = np.einsum("tij,tj->ti", each, X)
    kept = plain_codes(X * mask, D, LAM, 6, forward=lambda u, i: u * mask[i])
    np.testing.assert_allclose(sparse_code(X, D, LAM, n_iter=6, mask=mask), kept, atol=1e-12)
    norms = [np.linalg.norm(A, 2) ** 2 for A in each]
    one_each = plain_codes(
        Y, D, LAM, 6, forward=lambda u, i: each[i] @ u, adjoint=lambda r, i: each[i].T @ r, norm=norms
    )
    np.testing.assert_allclose(sparse_code(Y, D, LAM, n_iter=6, operator=each), one_each, atol=1e-12)
    A = each[0]
    shared = plain_codes(X @ A.T, D @ A.T, LAM, 6)
    np.testing.assert_allclose(sparse_code(X @ A.T, D, LAM, n_iter=6, operator=A), shared, atol=1e-12)
    blur = linalg.convolution(np.array([1.0, 2.0, 1.0]) / 4, 6, "same")
    matrix = np.asarray(blur.matvec(jnp.eye(6))).T
    np.testing.assert_allclose(
        sparse_code(X, D, LAM, operator=blur), sparse_code(X, D, LAM, operator=matrix), atol=1e-12
    )
    some = mask[:, :4]
    both = plain_codes(Y * some, D, LAM, 6, forward=lambda u, i: some[i] * (each[i] @ u),
                       adjoint=lambda r, i: each[i].T @ r, norm=norms)  # fmt: skip
    np.testing.assert_allclose(sparse_code(Y, D, LAM, n_iter=6, operator=each, mask=some), both, atol=1e-12)


@pytest.mark.parametrize("lipschitz", ["spectral", "frobenius"])
def test_an_operator_that_sees_nothing_gives_codes_of_zeros(lipschitz):
    X, D = (a.astype("f4") for a in problem())
    each = np.random.default_rng(1).standard_normal((len(X), 6, 6)).astype("f4")
    expected = sparse_code(X, D / 9, LAM / 9, operator=each, lipschitz=lipschitz)
    each[2] = 0
    codes = np.asarray(sparse_code(X, D / 9, LAM / 9, operator=each, lipschitz=lipschitz))
    assert not codes[2].any() and codes.any(1).sum() == len(X) - 1
    np.testing.assert_array_equal(np.delete(codes, 2, 0), np.delete(expected, 2, 0))


def test_images_go_through_operators_of_two_axes(x64):
    X, D = np.random.default_rng(0).standard_normal((3, 20)), np.random.default_rng(1).standard_normal((6, 20))
    blur = linalg.convolution(np.ones((3, 3)) / 9, (4, 5), "same")
    matrix = np.asarray(blur.matvec(jnp.eye(20).reshape(20, 4, 5))).reshape(20, 20).T
    np.testing.assert_allclose(
        sparse_code(X, D, LAM, operator=blur), sparse_code(X, D, LAM, operator=matrix), atol=1e-12
    )


def test_what_stands_in_masked_places_has_no_influence():
    X, D = problem()
    mask = np.ones(X.shape)
    mask[:, 2] = 0
    codes = [sparse_code(np.where(mask == 1, X, v), D, LAM, mask=mask) for v in (0.0, 1e6, np.nan)]
    np.testing.assert_array_equal(codes[0], codes[1])
    np.testing.assert_array_equal(codes[0], codes[2])


def test_many_iterations_solve_the_lasso(x64):
    X, D = problem(k=5)
    solver = Lasso(alpha=LAM / 6, fit_intercept=False, tol=1e-14, max_iter=100_000)
    expected = np.stack([solver.fit(D.T, x).coef_ for x in X])
    for algorithm in ("ista", "fista"):
        np.testing.assert_allclose(sparse_code(X, D, LAM, n_iter=2000, algorithm=algorithm), expected, atol=1e-6)
    least = [lasso_objective(X, expected, D, LAM), 0.5 * ((expected @ D - X) ** 2).sum() + LAM * np.abs(expected).sum()]
    np.testing.assert_allclose(*least, rtol=1e-12)


@given(st.integers(0, 10_000), st.sampled_from([2, 9]))
@settings(max_examples=15, deadline=None)
def test_ista_only_descends_and_at_rate_one_over_n(seed, n_iter):
    with jax.enable_x64(True):
        X, D = problem(seed)
        value = lambda n: float(lasso_objective(X, sparse_code(X, D, LAM, n_iter=n, algorithm="ista"), D, LAM))
        best = sparse_code(X, D, LAM, n_iter=3000)
        least = float(lasso_objective(X, best, D, LAM))
        assert value(n_iter + 1) <= value(n_iter) + 1e-12
        L = np.linalg.norm(D, 2) ** 2
        assert value(n_iter) - least <= L * float((best**2).sum()) / (2 * n_iter) + 1e-9


def test_step_bounds(x64):
    _, D = problem(k=12)
    exact = np.linalg.norm(D, 2) ** 2
    np.testing.assert_allclose(lipschitz_constant(jnp.asarray(D), Measurement(), "spectral"), exact, rtol=1e-12)
    frobenius = lipschitz_constant(jnp.asarray(D), Measurement(), "frobenius")
    np.testing.assert_allclose(frobenius, np.linalg.norm(D @ D.T), rtol=1e-12)
    wide = np.random.default_rng(0).standard_normal((520, 600))
    ratio = float(lipschitz_constant(jnp.asarray(wide), Measurement(), "spectral")) / np.linalg.norm(wide, 2) ** 2
    assert 1 <= ratio <= 1.03
    assert np.all(np.asarray(sparse_code(np.ones((2, 3)), np.zeros((4, 3)), LAM)) == 0)


def test_gradients_match_central_differences(x64):
    X, D = problem(n=3)
    mask = np.random.default_rng(2).random(X.shape) < 0.7
    steps = np.linspace(0.8, 1.2, 5)

    def loss(X, D, lam, steps):
        codes = sparse_code(X, D, lam, n_iter=5, steps=steps, mask=mask)
        return lasso_objective(X, codes, D, lam, mask=mask) + jnp.sum(jnp.sin(codes))

    at = (X, D, np.float64(LAM), steps)
    # The bound of the step is held fixed: compare along directions that keep the dictionary's largest singular value.
    u, s, v = np.linalg.svd(D, full_matrices=False)
    for argument in (0, 2, 3):
        gradient = np.asarray(jax.grad(loss, argument)(*at))
        for place in np.ndindex(at[argument].shape):
            moved = [np.zeros_like(at[argument]), np.zeros_like(at[argument])]
            for sign, e in zip((1, -1), moved):
                e[place] = sign * 1e-6
            ends = [loss(*at[:argument], at[argument] + e, *at[argument + 1 :]) for e in moved]
            assert abs((ends[0] - ends[1]) / 2e-6 - gradient[place]) <= 1e-6
    gradient = np.asarray(jax.grad(loss, 1)(*at))
    for i in range(1, len(s)):
        for j in range(len(s)):
            direction = np.outer(u[:, i], v[j]) if i != j else np.outer(u[:, i], v[i])
            if j == 0:
                continue
            ends = [loss(X, D + sign * 1e-6 * direction, LAM, steps) for sign in (1, -1)]
            assert abs((ends[0] - ends[1]) / 2e-6 - np.sum(gradient * direction)) <= 1e-6


def test_depth_of_the_gradient(x64):
    X, D = problem()
    gradient = lambda depth: jax.grad(
        lambda D: jnp.sum(jnp.sin(sparse_code(X, D, LAM, n_iter=6, backprop_depth=depth)))
    )(D)
    np.testing.assert_array_equal(gradient(6), gradient(None))
    np.testing.assert_array_equal(gradient(50), gradient(None))
    assert np.all(np.asarray(gradient(0)) == 0)
    assert np.abs(np.asarray(gradient(3) - gradient(None))).max() > 1e-3
    for depth in (0, 3, None):
        codes = sparse_code(X, D, LAM, n_iter=6, backprop_depth=depth)
        np.testing.assert_array_equal(codes, sparse_code(X, D, LAM, n_iter=6))
    assert split_depth(5, 7) == 0


def test_transforms_and_dtypes(dtype):
    X, D = (jnp.asarray(a, dtype) for a in problem())
    call = lambda X, D, lam: sparse_code(X, D, lam, n_iter=4)
    assert call(X, D, 0.2).dtype == dtype and lasso_objective(X, call(X, D, 0.2), D, 0.2).dtype == dtype
    check_jit(call, X, D, jnp.asarray(0.2, dtype))
    check_vmap(call, jnp.stack([X, 2 * X]), jnp.stack([D, D]), jnp.asarray([0.1, 0.2], dtype))
    value = lambda X, D, lam: lasso_objective(X, call(X, D, lam), D, lam)
    check_vmap(jax.grad(value, 1), jnp.stack([X, 2 * X]), jnp.stack([D, D]), jnp.asarray([0.1, 0.2], dtype))


def test_a_new_penalty_compiles_nothing():
    X, D = (jnp.asarray(a, "float32") for a in problem())
    check_no_recompilation(lambda X, lam: sparse_code(X, D, lam), (X, 0.1), (2 * X, 0.3), jit=False)


def test_float32_and_float64_agree():
    X, components, _ = simulate(0, 50)
    single = sparse_code(X, components, LAM)
    with jax.enable_x64(True):
        double = sparse_code(np.asarray(X, float), np.asarray(components, float), LAM)
    np.testing.assert_allclose(single, double, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.full((2, 3), np.nan)}, "X: expected finite"),
        ({"X": np.full((2, 3), np.inf)}, "X: expected finite"),
        ({"X": np.zeros((0, 3))}, "X: expected at least one entry"),
        ({"X": np.zeros(3)}, "X: expected shape"),
        ({"components": np.zeros((4, 2))}, "components: expected 3 features"),
        ({"components": np.full((4, 3), np.nan)}, "components: expected finite"),
        ({"lam": 0}, "lam: expected a number > 0"),
        ({"lam": -1.0}, "lam: expected a number > 0"),
        ({"n_iter": 0}, "n_iter: expected an integer >= 1"),
        ({"backprop_depth": -1}, "backprop_depth: expected an integer >= 0"),
        ({"algorithm": "amp"}, "algorithm: expected one of"),
        ({"lipschitz": "legacy"}, "lipschitz: expected one of"),
        ({"mask": np.ones((2, 2))}, r"mask: expected shape \(2, 3\)"),
        ({"mask": np.full((2, 3), 0.5)}, "mask: expected 1"),
        ({"operator": np.ones((2, 3))}, r"operator: expected shape \(3, 3\)"),
        ({"operator": np.ones((5, 3, 3))}, r"operator: expected shape \(2, 3, 3\)"),
        ({"operator": linalg.identity(4)}, "operator: expected shape"),
        ({"operator": np.ones(3)}, "operator: expected 2 or 3 axes"),
        ({"steps": np.ones(3)}, r"steps: expected shape \(20,\)"),
        ({"steps": np.zeros(20)}, "steps: expected numbers > 0"),
    ],
)
def test_bad_input(change, message):
    arguments = {"X": np.ones((2, 3)), "components": np.eye(4, 3), "lam": 0.1} | change
    with pytest.raises(ValueError, match=message):
        sparse_code(arguments.pop("X"), arguments.pop("components"), arguments.pop("lam"), **arguments)


def test_bad_codes():
    with pytest.raises(ValueError, match=r"codes: expected shape \(2, 4\)"):
        lasso_objective(np.ones((2, 3)), np.ones((2, 3)), np.ones((4, 3)), 0.1)
