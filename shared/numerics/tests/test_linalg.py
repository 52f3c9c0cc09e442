"""Linear operators against NumPy and SciPy, their adjoints, and derivatives of solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from gyri.numerics import LinearOperator, as_operator
from gyri.numerics.linalg import (
    cg,
    convolution,
    dense,
    identity,
    implicit_minimizer,
    mask,
    operator_norm,
    power_iteration,
)
from gyri.numerics.testing import check_jit, check_lowers, check_no_recompilation, check_vmap

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(4, 6))
METHODS = ["direct", "fft"]


def operators(dtype):
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.normal(size=shape).astype(dtype)
    yield "dense", dense(draw(4, 6))
    yield "identity", identity(5)
    yield "identity of images", identity((3, 4))
    yield "mask", mask(draw(5) > 0)
    yield "weights of images", mask(draw(3, 4))
    for mode in ("full", "same", "valid"):  # the hypothesis test below crosses axes and methods
        yield f"{mode} direct", convolution(draw(4), 9, mode, method="direct")
        yield f"2-D {mode} fft", convolution(draw(3, 2), (5, 6), mode, method="fft")
    yield "composition", dense(draw(3, 12)) @ convolution(draw(4), 9) @ mask(draw(9))


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_every_adjoint_is_the_adjoint_on_any_batch(dtype, batch):
    for name, A in operators(dtype):
        x = jnp.asarray(RNG.normal(size=(*batch, *A.in_shape)), dtype)
        y = jnp.asarray(RNG.normal(size=(*batch, *A.out_shape)), dtype)
        forward, backward = A.matvec(x), A.rmatvec(y)
        assert forward.shape == y.shape, name
        assert backward.shape == x.shape, name
        assert forward.dtype == backward.dtype == dtype, name
        scale = np.linalg.norm(forward) * np.linalg.norm(y)
        gap = np.vdot(np.float64(forward), np.float64(y)) - np.vdot(np.float64(x), np.float64(backward))
        assert abs(gap) <= 20 * np.finfo(dtype).eps * scale, name


def test_every_operator_is_its_matrix(x64):
    for name, A in operators("float64"):
        m, n = A.shape
        columns = A.matvec(jnp.eye(n).reshape(n, *A.in_shape)).reshape(n, m)
        rows = A.rmatvec(jnp.eye(m).reshape(m, *A.out_shape)).reshape(m, n)
        np.testing.assert_allclose(rows, columns.T, atol=1e-13, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    ndim=st.integers(1, 2),
    mode=st.sampled_from(["full", "same", "valid"]),
    method=st.sampled_from(METHODS),
)
def test_convolution_is_scipys(data, ndim, mode, method):
    kernel_shape = data.draw(st.tuples(*[st.integers(1, 5)] * ndim))
    least = kernel_shape if mode == "valid" else (1,) * ndim
    shape = data.draw(st.tuples(*[st.integers(n, n + 4) for n in least]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kernel, x = rng.normal(size=kernel_shape), rng.normal(size=shape)
    oracle = scipy.signal.convolve(x, kernel, mode, method="direct")
    if mode == "same":  # SciPy's "same" is the first argument's shape
        assert oracle.shape == shape
    with jax.enable_x64(True):
        A = convolution(kernel, shape, mode, method=method)
        np.testing.assert_allclose(A.matvec(jnp.asarray(x)), oracle, atol=1e-12)
        y = rng.normal(size=oracle.shape)
        gap = np.vdot(oracle, y) - np.vdot(x, A.rmatvec(jnp.asarray(y)))
    assert abs(gap) <= 1e-11 * (1 + np.linalg.norm(oracle) * np.linalg.norm(y))


def test_convolution_chooses_the_method_by_kernel_and_dtype():
    assert convolution(np.ones(9), 50).method == "direct"
    assert convolution(np.ones(10), 50).method == "fft"
    assert convolution(np.ones(10, np.float16), 50).method == "direct"


def test_dense_batches_of_matrices_meet_batches_of_vectors():
    matrices, x = RNG.normal(size=(3, 4, 6)).astype("float32"), RNG.normal(size=(3, 6)).astype("float32")
    A = dense(matrices)
    assert A.shape == (4, 6)
    np.testing.assert_allclose(A.matvec(jnp.asarray(x)), [m @ v for m, v in zip(matrices, x, strict=True)], rtol=1e-5)


def test_composition_is_the_matrix_product(x64):
    B = RNG.normal(size=(6, 5))
    A = dense(MATRIX) @ dense(B)
    np.testing.assert_allclose(A.matvec(jnp.eye(5)).T, MATRIX @ B, rtol=1e-12)
    assert A.shape == (4, 5)
    with pytest.raises(ValueError, match=r"other: expected out_shape \(6,\), got \(4,\)"):
        dense(MATRIX) @ dense(MATRIX)
    with pytest.raises(TypeError):
        dense(MATRIX) @ "B"


def test_operators_are_pytrees_that_pass_through_transformations():
    kernels = jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)
    x = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)

    def apply(kernel, x):
        return (mask(jnp.arange(5.0)) @ convolution(kernel, 4)).matvec(jnp.asarray(x))

    check_jit(apply, kernels[0], x[0])
    check_vmap(apply, kernels, x)
    check_grads(apply, (kernels[0], x[0]), order=1, modes=["fwd", "rev"], eps=1e-1, atol=1e-2, rtol=1e-2)
    for _, A in operators("float32"):
        check_lowers(lambda A, x: A.rmatvec(A.matvec(x)), A, jnp.ones(A.in_shape))
    build = lambda seed: dense(np.full((2, 2), float(seed))) @ mask(np.full(2, float(seed)))
    x = jnp.ones(2)
    check_no_recompilation(lambda A, x: A.matvec(x), (build(1), x), (build(2), x))


def test_as_operator():
    A = dense(MATRIX)
    assert as_operator(A) is A
    assert as_operator(MATRIX, 6).shape == (4, 6)
    assert as_operator(None, (2, 3)).in_shape == (2, 3)
    assert isinstance(as_operator(None, 3), LinearOperator)
    for arguments, message in [
        ((None,), "n: expected the input's length"),
        ((MATRIX, 4), r"A: expected an input of shape \(4,\), got \(6,\)"),
        ((np.ones(3),), r"A: expected shape \(..., m, n\), got \(3,\)"),
        ((MATRIX * np.nan,), "A: expected finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            as_operator(*arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: convolution(np.ones(3), 2, "valid"), r"kernel: expected at most the input's shape \(2,\)"),
        (lambda: convolution(np.ones(3), 2, "wrap"), "mode: expected one of 'full', 'same', 'valid', got 'wrap'"),
        (lambda: convolution(np.ones(3), 2, method="slow"), "method: expected one of"),
        (lambda: convolution(np.ones((3, 3)), 2), r"n: expected 2 axes as in kernel of shape \(3, 3\), got 2"),
        (lambda: convolution(np.ones((1, 1, 1)), (2, 2, 2)), "kernel: expected 1 or 2 axes"),
        (lambda: identity(0), "n: expected an integer >= 1, got 0"),
        (lambda: mask([]), "m: expected at least one entry"),
        (lambda: dense(MATRIX).matvec(jnp.ones(5)), r"x: expected shape \(..., 6\), got \(5,\)"),
        (lambda: dense(MATRIX).rmatvec(jnp.ones(())), r"y: expected shape \(..., 4\), got \(\)"),
        (lambda: mask(np.ones((2, 3))).matvec(jnp.ones(3)), r"x: expected shape \(..., 2, 3\), got \(3,\)"),
    ],
)
def test_operators_name_what_is_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- norms


def test_operator_norm_is_the_largest_singular_value(dtype):
    chosen = {"dense", "2-D full fft", "composition"}
    for name, A in operators(dtype):
        if name not in chosen:
            continue
        m, n = A.shape
        matrix = np.asarray(A.matvec(jnp.eye(n, dtype=dtype).reshape(n, *A.in_shape))).reshape(n, m).T
        norm = operator_norm(A, n_steps=1000, tol=1e-7)
        assert norm.dtype == dtype, name
        np.testing.assert_allclose(norm, np.linalg.norm(matrix, 2), rtol=1e-4, err_msg=name)


def test_operator_norm_of_special_maps():
    assert operator_norm(np.zeros((3, 2))) == 0
    assert operator_norm(identity(3)) == pytest.approx(1, rel=1e-6)
    assert operator_norm(np.full((2, 2), 1e-12)) == pytest.approx(2e-12, rel=1e-4)
    with pytest.raises(ValueError, match=r"operator: expected one operator with outputs of shape \(4,\), got \(2, 4\)"):
        operator_norm(np.stack([MATRIX, MATRIX]))
    assert operator_norm(np.array([[1.0, -1.0]])) == pytest.approx(np.sqrt(2), rel=1e-6)  # all ones would miss it


def test_operator_norm_start_is_fixed_or_drawn():
    start = lambda key: operator_norm(MATRIX, key=key, n_steps=1)
    assert start(None) == start(None)
    assert start(jax.random.key(1)) != start(jax.random.key(2))


def test_operator_norm_is_never_differentiated():
    A = jnp.asarray(MATRIX, jnp.float32)
    assert (jax.grad(operator_norm)(A) == 0).all()
    gradient = jax.grad(lambda A: operator_norm(A) * A.sum())(A)
    np.testing.assert_allclose(gradient, operator_norm(A), rtol=1e-6)


def test_power_iteration_finds_the_eigenpair_of_largest_modulus(x64):
    symmetric = MATRIX @ MATRIX.T - 40 * np.outer(MATRIX[:, 0], MATRIX[:, 0])
    eigenvalues, eigenvectors = np.linalg.eigh(symmetric)
    k = np.abs(eigenvalues).argmax()
    assert eigenvalues[k] < 0
    for start in (4, (4,), jnp.ones(4)):
        value, vector = power_iteration(lambda v: symmetric @ v, start, n_steps=2000, tol=1e-15)
        assert value == pytest.approx(eigenvalues[k], rel=1e-9)
        assert abs(vector @ eigenvectors[:, k]) == pytest.approx(1, rel=1e-6)
    rotated = np.array([[3.0, 5.0], [0.0, 1.0]])  # not symmetric
    assert power_iteration(lambda v: rotated @ v, 2)[0] == pytest.approx(3, rel=1e-6)


def test_power_iteration_of_a_nilpotent_map_is_zero_and_of_images_keeps_their_shape():
    value, vector = power_iteration(lambda v: jnp.zeros_like(v), jnp.ones(3))
    assert value == 0
    assert jnp.isfinite(vector).all()
    assert power_iteration(lambda v: 2 * v, (2, 3))[1].shape == (2, 3)


def test_power_iteration_transforms():
    matrices = jnp.asarray([np.diag([1.0, 3.0]), np.diag([2.0, 0.5])])
    fn = lambda A: power_iteration(lambda v: A @ v, jnp.ones(2))
    check_jit(fn, matrices[0], atol=1e-5)
    check_vmap(fn, matrices, atol=1e-5)
    check_lowers(fn, matrices[0])
    check_no_recompilation(fn, (matrices[0],), (matrices[1],))


# --- conjugate gradients


def spd(n, seed=0):
    factor = np.random.default_rng(seed).normal(size=(n, n))
    return factor @ factor.T + n * np.eye(n), np.random.default_rng(seed + 1).normal(size=n)


def test_cg_solves_to_its_relative_tolerance(dtype):
    A, b = spd(8)
    for scale in (1e-6, 1.0, 1e6):
        x, info = cg(lambda v: jnp.asarray(A, dtype) @ v, jnp.asarray(scale * b, dtype), tol=1e-5)
        assert x.dtype == dtype
        residual = np.linalg.norm(scale * b - A @ np.float64(x)) / np.linalg.norm(scale * b)
        assert residual <= 1.2e-5
        assert info.residual == pytest.approx(residual, rel=0.1, abs=1e-6)
        assert 1 <= info.n_iter <= 8


def test_cg_is_exact_after_as_many_steps_as_distinct_eigenvalues(x64):
    A = np.diag([1.0, 1.0, 5.0, 5.0, 9.0])
    x, info = cg(lambda v: A @ v, jnp.arange(1.0, 6.0), tol=1e-12)
    assert info.n_iter == 3
    np.testing.assert_allclose(x, np.arange(1.0, 6.0) / np.diag(A), rtol=1e-12)


def test_cg_works_on_pytrees(x64):
    A, b = spd(5)

    def matvec(tree):
        out = A @ jnp.concatenate([tree["a"].ravel(), tree["b"][0]])
        return {"a": out[:4].reshape(2, 2), "b": [out[4:]]}

    x, _ = cg(matvec, {"a": jnp.asarray(b[:4]).reshape(2, 2), "b": [jnp.asarray(b[4:])]}, tol=1e-12)
    np.testing.assert_allclose(np.append(x["a"], x["b"][0]), np.linalg.solve(A, b), rtol=1e-10)


def test_cg_starts_and_stops_where_it_is_told(x64):
    A, b = spd(6)
    matvec, solution = lambda v: A @ v, np.linalg.solve(A, b)
    assert cg(matvec, jnp.asarray(b), jnp.asarray(solution))[1].n_iter == 0
    traced = jax.jit(lambda k: cg(matvec, jnp.asarray(b), maxiter=k, tol=0.0)[1].n_iter)
    assert traced(1) == 1
    x, info = cg(matvec, jnp.asarray(b), maxiter=2, tol=0.0)
    assert info.n_iter == 2
    errors = [np.linalg.norm(A @ np.asarray(cg(matvec, jnp.asarray(b), maxiter=k)[0]) - b) for k in (0, 3)]
    assert errors[1] < np.linalg.norm(A @ np.asarray(x) - b) < errors[0]
    x, info = cg(matvec, jnp.zeros(6))
    assert (x == 0).all()
    assert (info.n_iter, info.residual) == (0, 0)


def test_cg_ends_without_nan_where_the_map_is_not_positive_definite():
    for diagonal in ([1.0, 0.0], [1.0, -1.0], [-1.0, -2.0], [np.nan, 1.0]):
        x, info = cg(lambda v, d=diagonal: jnp.array(d) * v, jnp.array([1.0, 1.0]))
        assert jnp.isfinite(x).all()
        assert not info.residual <= 1e-6


def test_cg_derivatives_are_those_of_the_solution(x64):
    A, b = spd(4)
    fn = jax.jit(lambda A, b: cg(lambda v: (A + A.T) @ v, b, jnp.ones(4), tol=1e-13)[0])
    check_grads(fn, (jnp.asarray(A), jnp.asarray(b)), order=2, modes=["fwd", "rev"], eps=1e-5)


def test_cg_transforms():
    A, b = spd(4)
    bs = jnp.asarray([b, 0 * b, 1 + b])
    fn = lambda b: cg(lambda v: jnp.asarray(A) @ v, b, tol=1e-5)
    check_jit(fn, bs[0], atol=1e-5)
    check_vmap(fn, bs, atol=1e-5)
    check_lowers(fn, bs[0])
    check_no_recompilation(fn, (bs[0],), (bs[2],))


# --- implicit differentiation

ROWS = np.random.default_rng(3).normal(size=(7, 3))


def logistic(z, theta, targets, n):
    scores = ROWS @ z["w"] + z["b"]
    return jnp.mean(jnp.logaddexp(0, -targets * scores)) + 0.5 * jnp.exp(theta) * (z["w"] @ z["w"] + z["b"] ** 2) * n


def descend(z0, *args):
    step = lambda _, z: jax.tree.map(lambda v, g: v - 0.2 * g, z, jax.grad(logistic)(z, *args))
    return jax.lax.fori_loop(0, 600, step, jax.tree.map(jnp.asarray, z0))


def outer(z):
    return jnp.sum(jnp.sin(z["w"])) + z["b"] ** 2


Z0 = {"w": np.zeros(3), "b": np.zeros(())}
TARGETS = np.array([1.0, -1, 1, 1, -1, -1, 1])


def test_implicit_minimizer_has_the_derivatives_of_the_solution(x64):
    z = implicit_minimizer(descend, logistic)
    value = jax.jit(lambda theta, targets: outer(z(Z0, theta, targets, jnp.int32(2))))
    arguments = (jnp.array(-0.5), jnp.asarray(TARGETS))
    check_grads(value, arguments, order=1, modes=["fwd", "rev"], eps=1e-4, atol=1e-7, rtol=1e-7)
    slope = jax.jit(jax.grad(value))
    check_grads(lambda theta: slope(theta, arguments[1]), arguments[:1], order=1, modes=["rev"], eps=1e-4, rtol=1e-7)


def test_implicit_minimizer_reaches_1e8_against_the_closed_form(x64):
    # z = (I lam + R'R)^-1 R'y, derivative -(I lam + R'R)^-1 z
    y, lam = TARGETS, 0.3
    ridge = lambda z, lam: 0.5 * jnp.sum((ROWS @ z - y) ** 2) + 0.5 * lam * z @ z
    solve = lambda z0, lam: jnp.linalg.solve(ROWS.T @ ROWS + lam * jnp.eye(3), ROWS.T @ y)
    inverse = np.linalg.inv(ROWS.T @ ROWS + lam * np.eye(3))
    gradient = jax.jacrev(implicit_minimizer(solve, ridge), argnums=1)(jnp.zeros(3), lam)
    np.testing.assert_allclose(gradient, -inverse @ inverse @ ROWS.T @ y, rtol=1e-9)


def test_implicit_minimizer_differentiates_what_is_closed_over(x64):
    def closed(theta):
        solve = lambda z0: descend(z0, theta, TARGETS, 1)
        return outer(implicit_minimizer(solve, lambda z: logistic(z, theta, TARGETS, 1))(Z0))

    passed = lambda theta: outer(implicit_minimizer(descend, logistic)(Z0, theta, TARGETS, 1))
    np.testing.assert_allclose(jax.grad(closed)(-0.5), jax.grad(passed)(-0.5), rtol=1e-9)


def test_implicit_minimizer_has_no_derivative_in_its_start_and_takes_keys(x64):
    z = implicit_minimizer(lambda z0, key, x: x**2 + 0 * z0, lambda z, key, x: 0.5 * (z - x**2) ** 2)
    key = jax.random.key(0)
    assert jax.grad(z)(1.0, key, 3.0) == 0
    assert jax.grad(z, argnums=2)(1.0, key, 3.0) == pytest.approx(6)


def test_implicit_minimizer_solves_to_the_tolerance_it_is_given(x64):
    z = lambda **options: implicit_minimizer(descend, logistic, **options)
    gradient = lambda **options: jax.jit(jax.grad(lambda t: outer(z(**options)(Z0, t, TARGETS, 1))))(-0.5)
    exact = float(gradient())
    assert gradient(tol=1e-13) == pytest.approx(exact, rel=1e-9)
    assert abs(gradient(maxiter=1) - exact) > 1e-6 * abs(exact)
    assert abs(gradient(tol=0.5) - exact) > 1e-6 * abs(exact)


def test_implicit_minimizer_stores_no_iterates():
    def value(theta):
        return outer(implicit_minimizer(descend, logistic)(jax.tree.map(jnp.float32, Z0), theta, TARGETS, 1))

    _, pullback = jax.vjp(value, jnp.float32(-0.5))
    stored = sum(leaf.size for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "size"))
    assert stored <= 4 * (4 + ROWS.size + TARGETS.size)  # z, and the data that fun closes over; 600 iterates are more


def test_implicit_minimizer_transforms():
    rows = jnp.asarray(ROWS)
    ridge = lambda z, lam: 0.5 * jnp.sum((rows @ z - 1) ** 2) + 0.5 * lam * z @ z
    solve = lambda z0, lam: jnp.linalg.solve(rows.T @ rows + lam * jnp.eye(3), rows.sum(0))
    fn = jax.grad(lambda lam: implicit_minimizer(solve, ridge)(jnp.zeros(3), lam).sum())
    lams = jnp.asarray([0.3, 2.0])
    check_jit(fn, lams[0], rtol=1e-4)
    check_vmap(fn, lams, rtol=1e-4)
    check_lowers(fn, lams[0])
    check_no_recompilation(fn, (lams[0],), (lams[1],))
