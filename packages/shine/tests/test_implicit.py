"""Tests of gyri.shine.implicit: derivatives, closures, batches, transformations, refusals."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.numerics.testing import check_jit, check_no_recompilation, check_vmap
from gyri.shine import DEQ, LBFGS, AdjointBroyden, Broyden, Full, Picard, Shine, fixed_point, minimize, root

from .conftest import layer, problem, relative

TIGHT, EXACT = Broyden(80, 1e-12), Full(80, 1e-12)


def linear(seed=0, d=7):
    rng = np.random.default_rng(seed)
    A, B = 0.3 * rng.standard_normal((d, d)), rng.standard_normal((d, d))
    return jnp.asarray(A), jnp.asarray(B), jnp.asarray(rng.standard_normal(d))


def test_full_gradient_and_hessian_are_the_closed_forms(x64):
    A, B, theta = linear()
    solve = lambda t: fixed_point(lambda z, t: A @ z + B @ t, jnp.zeros(7), t, solver=TIGHT, backward=EXACT).value
    M = np.linalg.solve(np.eye(7) - A, B)
    loss = jax.jit(jax.grad(lambda t: (solve(t) ** 2).sum()))
    assert relative(loss(theta), 2 * M.T @ M @ np.asarray(theta)) <= 1e-8
    assert relative(jax.jit(jax.jacrev(loss))(theta), 2 * M.T @ M) <= 1e-8


@pytest.mark.parametrize("backward", ["shine", "jacobian_free", "refine"])
def test_second_derivatives_of_estimates_are_refused(backward):
    loss = lambda t: (fixed_point(lambda z: 0.5 * jnp.tanh(z) + t, jnp.zeros(2), backward=backward).value ** 2).sum()
    with pytest.raises(NotImplementedError, match="second derivatives need the exact solve: backward='full'"):
        jax.jacrev(jax.grad(loss))(jnp.ones(2))


def test_forward_mode_is_refused():
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda t: fixed_point(lambda z: 0.5 * z + t, jnp.zeros(2)).value, (jnp.ones(2),), (jnp.ones(2),))


@pytest.mark.parametrize("name", ["fixed_point", "root", "minimize"])
def test_full_gradient_matches_finite_differences(x64, name):
    W, b, v = problem(0, 5, 1.2)
    X = problem(1, 12, 3.0)[0][:, :5]

    def value(b):
        if name == "fixed_point":
            return fixed_point(layer, jnp.zeros(5), W, b, solver=TIGHT, backward=EXACT).value @ v
        if name == "root":
            g = lambda z: z + 0.3 * jnp.sin(W @ z) - b
            return root(g, jnp.zeros(5), solver=Broyden(80, 1e-12, "abs"), backward=EXACT).value @ v
        fun = lambda x: jnp.logaddexp(0, X @ x).sum() + 0.5 * (x**2).sum() - b @ x
        return minimize(fun, jnp.zeros(5), solver=LBFGS(tol=1e-11), backward=EXACT).value @ v

    value = jax.jit(value)
    step = 1e-5
    expected = [(value(b + step * e) - value(b - step * e)) / (2 * step) for e in np.eye(5)]
    assert relative(jax.jit(jax.grad(value))(b), expected) <= 1e-7


def closed_loss(theta, x, W, backward):
    """Everything comes by closure."""
    f = lambda z: jnp.tanh(W @ z + theta * x)
    return (fixed_point(f, jnp.zeros_like(x), solver=TIGHT, backward=backward).value ** 2).sum()


@pytest.mark.parametrize("backward", ["shine", "full"])
def test_closures_over_traced_and_vmapped_values_get_their_gradients(x64, backward):
    W, theta, _ = problem(0, 5, 1.1)
    xs = jnp.asarray(np.random.default_rng(1).standard_normal((3, 5)))
    gradient = jax.jit(jax.grad(lambda theta, x: closed_loss(theta, x, W, backward)))
    rows = jnp.stack([gradient(theta, x) for x in xs])
    rtol = 1e-9 if backward == "full" else 1e-4  # rounding changes what the last steps teach an estimate
    given = lambda theta, x: (
        fixed_point(
            lambda z, W, t: jnp.tanh(W @ z + t), jnp.zeros(5), W, theta * x, solver=TIGHT, backward=backward
        ).value ** 2
    ).sum()  # fmt: skip
    np.testing.assert_allclose(jax.jit(jax.grad(given))(theta, xs[0]), rows[0], rtol=1e-10)
    loss = lambda theta, x: closed_loss(theta, x, W, backward)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(theta, xs), rows, rtol=rtol)
    total = lambda theta: jax.vmap(lambda x: loss(theta, x))(xs).sum()
    np.testing.assert_allclose(jax.jit(jax.grad(total))(theta), rows.sum(0), rtol=rtol)


def test_closure_of_outer_grad_is_hoisted_too(x64):
    W, b, t = problem(0, 6, 1.2)

    def loss(b, t):
        outer = lambda z: z - t
        z = fixed_point(
            lambda z: layer(z, W, b), jnp.zeros(6), solver=AdjointBroyden(60, 1e-10, opa_every=1), outer_grad=outer
        ).value
        return 0.5 * ((z - t) ** 2).sum()

    exact = lambda b, t: (
        0.5 * ((fixed_point(lambda z: layer(z, W, b), jnp.zeros(6), solver=TIGHT, backward=EXACT).value - t) ** 2).sum()
    )
    targets = jnp.stack([t, 2 * t])
    ours, expected = (jax.jit(jax.vmap(jax.grad(f), (None, 0)))(b, targets) for f in (loss, exact))
    assert relative(ours, expected) <= 1e-6


def test_trees_batches_and_other_leaves(x64):
    W, b, _ = problem(0, 6, 0.9)
    flat = fixed_point(layer, jnp.zeros((2, 3, 6)), W, jnp.stack([b, 2 * b, 3 * b]), batch_ndim=2, solver=TIGHT)
    z0 = {"left": jnp.zeros((2, 3, 2)), "right": (jnp.zeros((2, 3, 2, 2)),)}

    def f(z, W, b, key, n, nothing):
        joined = jnp.concatenate([z["left"], z["right"][0].reshape(2, 3, 4)], -1)
        new = layer(joined, W, b) * n + 0 * jax.random.normal(key, joined.shape)
        return {"left": new[..., :2], "right": (new[..., 2:].reshape(2, 3, 2, 2),)}

    def loss(W):
        solution = fixed_point(
            f, z0, W, jnp.stack([b, 2 * b, 3 * b]), jax.random.key(0), 1, None, batch_ndim=2, solver=TIGHT
        )
        return sum((x**2).sum() for x in jax.tree.leaves(solution.value)), solution

    (_, solution), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(W)
    np.testing.assert_allclose(solution.value["left"], flat.value[..., :2], atol=1e-12)
    np.testing.assert_array_equal(solution.stats.n_steps, flat.stats.n_steps)
    assert solution.stats.n_steps.shape == (2, 3) and solution.stats.trace.shape == (81, 2, 3)
    assert solution.inverse.dense().shape == (2, 3, 6, 6)
    tree = solution.inverse.matvec(solution.value)
    np.testing.assert_allclose(tree["left"], flat.inverse.matvec(flat.value)[..., :2], atol=1e-10)
    direct = lambda W: (
        fixed_point(layer, jnp.zeros((2, 3, 6)), W, jnp.stack([b, 2 * b, 3 * b]), batch_ndim=2, solver=TIGHT).value ** 2
    ).sum()
    np.testing.assert_allclose(gradient, jax.jit(jax.grad(direct))(W), rtol=1e-9)


def test_defaults_are_in_the_signature():
    default = lambda function: inspect.signature(function).parameters["solver"].default
    assert [default(f) for f in (fixed_point, root, minimize, DEQ.__init__)] == (
        [Broyden(), Broyden(stop="abs"), LBFGS(), Broyden()]
    )


def test_start_has_no_gradient():
    gradient = jax.grad(lambda z0: fixed_point(lambda z: 0.5 * jnp.tanh(z) + 1.0, z0).value.sum())(jnp.ones(3))
    np.testing.assert_array_equal(gradient, np.zeros(3))


@pytest.mark.parametrize("solver", [Broyden(20), Broyden(20, memory=3)])
def test_vmap_is_a_loop_and_jit_changes_nothing(x64, solver):
    W, b, v = problem(0, 6, 0.9)
    run = lambda b: fixed_point(layer, jnp.zeros(6), W, b, solver=solver)
    strip = lambda s: (s.value, s.stats.n_steps, s.stats.converged, s.inverse.matvec(jnp.ones(6)))
    check_vmap(lambda b: strip(run(b)), jnp.stack([b, 3 * v, 0.1 * b]), atol=1e-10)
    check_jit(lambda b: strip(run(b)), b, atol=1e-10)
    check_no_recompilation(lambda b: strip(run(b)), (b,), (2 * b,))


def test_vmap_of_minimize_is_a_loop(x64):
    X = problem(1, 12, 3.0)[0][:, :5]
    fun = lambda x, b: jnp.logaddexp(0, X @ x).sum() + 0.5 * (x**2).sum() - b @ x
    run = lambda b: (lambda s: (s.value, s.stats.n_steps, s.inverse.matvec(b)))(minimize(fun, jnp.zeros(5), b))
    check_vmap(run, jnp.asarray(np.random.default_rng(0).standard_normal((3, 5))), atol=1e-9)


def test_dtype_is_that_of_the_start(dtype):
    W, b, _ = problem(0, 5, 0.9, dtype)
    solution = fixed_point(layer, jnp.zeros(5, dtype), W, b)
    floats = [x for x in jax.tree.leaves(solution) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {dtype}
    assert minimize(lambda x: ((x - b) ** 2).sum(), jnp.zeros(5, dtype)).value.dtype == dtype


def test_float32_values_are_right_to_four_digits():
    W, b, _ = problem(0, 20, 1.5, np.float32)
    z = np.zeros(20)
    solution = jax.jit(lambda W, b: fixed_point(layer, jnp.zeros(20), W, b, solver=Broyden(60, 2e-6)))(W, b)
    assert solution.stats.converged
    for _ in range(30):  # Newton in float64
        value = np.tanh(np.asarray(W, float) @ z + np.asarray(b, float))
        z = z - np.linalg.solve((1 - value**2)[:, None] * np.asarray(W, float) - np.eye(20), value - z)
    assert relative(solution.value, z) <= 1e-4


def test_memory_of_a_training_step_does_not_grow_with_the_steps():
    W = jnp.zeros((256, 256))

    def bytes_of(max_steps):
        loss = lambda W: fixed_point(
            lambda z, W: jnp.tanh(z @ W + 1), jnp.zeros((32, 256)), W, solver=Broyden(max_steps, memory=6), batch_ndim=1
        ).value.sum()
        return jax.jit(jax.grad(loss)).lower(W).compile().memory_analysis().temp_size_in_bytes

    few, many = bytes_of(10), bytes_of(80)
    assert many <= few + 100 * 32 * 4 * 4  # the trace
    rows = 2 * 6 * 32 * 256 * 4
    assert many <= 4 * rows


F = lambda z, *args: 0.5 * z
OPA = AdjointBroyden(opa_every=1)
BAD = {
    "tree": (lambda: fixed_point(lambda z: (z,), jnp.zeros(2)), "f: expected an output like z0"),
    "shape": (lambda: fixed_point(lambda z: z[:1], jnp.zeros(2)), "f: expected an output like z0"),
    "dtype": (lambda: fixed_point(lambda z: z.astype("bfloat16"), jnp.zeros(2)), "f: expected an output like z0"),
    "output of g": (lambda: root(lambda z: z[:1], jnp.zeros(2)), "g: expected an output like z0"),
    "int": (lambda: fixed_point(F, jnp.zeros(2, int)), "z0: expected float32 or float64, got int32"),
    "half": (lambda: fixed_point(F, jnp.zeros(2, "float16")), "z0: expected float32 or float64, got float16"),
    "empty": (lambda: fixed_point(F, jnp.zeros((2, 0))), "z0: expected at least one entry"),
    "no leaf": (lambda: fixed_point(F, {}), "z0: expected at least one array"),
    "nan": (lambda: fixed_point(F, {"a": jnp.array([0.0, np.nan])}), "z0['a']: expected finite float32"),
    "batch": (lambda: fixed_point(F, {"a": jnp.zeros(2), "b": jnp.zeros(3)}, batch_ndim=1), "z0['b']: expected the"),
    "batch_ndim": (lambda: fixed_point(F, jnp.zeros(2), batch_ndim=-1), "batch_ndim: expected an integer >= 0"),
    "backward": (lambda: fixed_point(F, jnp.zeros(2), backward="newton"), "backward: expected one of 'shine'"),
    "solver": (lambda: fixed_point(F, jnp.zeros(2), solver="broyden"), "solver: expected a Broyden"),
    "opa": (lambda: fixed_point(F, jnp.zeros(2), solver=OPA), "outer_grad: expected the gradient"),
    "outer": (lambda: fixed_point(F, jnp.zeros(2), solver=OPA, outer_grad=lambda z: z[:1]),
              "outer_grad: expected an output like z0"),
    "minimize opa": (lambda: minimize(lambda x: x.sum(), jnp.zeros(2), solver=LBFGS(opa_every=1)), "outer_grad: exp"),
    "vector": (lambda: minimize(lambda x: x, jnp.zeros(2)), "fun: expected a function that returns one real number"),
    "x0": (lambda: minimize(lambda x: x.sum(), jnp.array([np.inf])), "x0: expected finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    import re

    call, message = BAD[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_shapes_are_checked_under_jit_and_values_are_not():
    with pytest.raises(ValueError, match="f: expected an output like z0"):
        jax.jit(lambda z: fixed_point(lambda z: z[:1], z).value)(jnp.zeros(2))
    out = jax.jit(lambda z: fixed_point(F, z, solver=Picard(3), backward=Shine()))(jnp.array([np.nan, 0.0]))
    assert out.stats.diverged
