"""Tests of gyri.shine.backward: the modes against exact linear solves, on problems that are not normal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.shine import AdjointBroyden, Anderson, Broyden, Full, JacobianFree, Picard, Shine, fixed_point
from gyri.shine.backward import as_mode

from .conftest import layer, problem, relative, solve_exactly

SEEDS = range(20)


def make_w(solver, backward, d, outer=False):
    """Compile ``(W, b, v) -> (z, w, steps)``: w from the gradient in b, which is w over the slope of tanh."""

    def run(W, b, v):
        def value(b):
            outer_grad = (lambda z, W, b: z - v) if outer else None
            solution = fixed_point(layer, jnp.zeros(d), W, b, solver=solver, backward=backward, outer_grad=outer_grad)
            return solution.value, solution.stats.n_steps

        z, pull, n_steps = jax.vjp(value, b, has_aux=True)
        return z, pull(z - v if outer else v)[0] / (1 - layer(z, W, b) ** 2), n_steps

    return jax.jit(run)


def median_error(solver, backward, d, gain, outer=False):
    run, errors = make_w(solver, backward, d, outer), []
    for seed in SEEDS:
        W, b, v = problem(seed, d, gain)
        z, w, _ = run(W, b, v)
        errors.append(relative(w, solve_exactly(layer(z, W, b), W, z - v if outer else v)))
    return np.median(errors)


FORWARD = Broyden(100, 1e-10, "abs")


# Relative errors of w after n steps, ||W|| = 1.5, d = 60 (medians of 20 problems, of other draws).
@pytest.mark.parametrize(
    ("backward", "published"),
    [
        (Shine(), 4.4e-1), (Shine(refine_steps=1), 1.7e-1), (Shine(refine_steps=5), 2.4e-3),
        (Shine(refine_steps=10), 5.9e-6),
        (JacobianFree(), 5.1e-1), (JacobianFree(refine_steps=5), 1.9e-2), (Full(5, 0), 3.8e-2), (Full(20, 0), 8.4e-8),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:tol")
def test_refinement_converges_as_fast_as_it_should(x64, backward, published):
    assert median_error(FORWARD, backward, 60, 1.5) <= 2 * published


@pytest.mark.parametrize(
    ("gain", "solver", "published"),
    [
        (1.5, FORWARD, 0.353), (1.5, AdjointBroyden(100, 1e-10, "abs"), 0.140),
        (1.5, AdjointBroyden(100, 1e-10, "abs", opa_every=5), 1.3e-3),
        (1.5, AdjointBroyden(100, 1e-10, "abs", opa_every=1), 1.6e-8),
        (0.5, AdjointBroyden(100, 1e-10, "abs", opa_every=5), 1.9e-3),
        (0.5, AdjointBroyden(100, 1e-10, "abs", opa_every=1), 2.2e-9),
    ],
)  # fmt: skip
def test_outer_problem_awareness_makes_shine_exact(x64, gain, solver, published):
    error = median_error(solver, Shine(), 40, gain, outer=True)
    assert error <= max(2 * published, 1e-7)  # at M = 1 it is the error of the iterate, times what that is worth
    if solver == FORWARD or solver.opa_every is None:
        assert error >= published / 2


def test_shine_is_minus_the_transposed_estimate(x64):
    W, b, v = problem(0, 9, 1.2)
    solver = Broyden(6)
    _, w, _ = make_w(solver, Shine(), 9)(W, b, v)
    estimate = jax.jit(lambda W, b: fixed_point(layer, jnp.zeros(9), W, b, solver=solver).inverse)(W, b)
    np.testing.assert_allclose(w, -estimate.dense().T @ v, rtol=1e-9)


DEFAULT = Broyden(12, 1e-5)


def gradients(backward, solver=DEFAULT, dtype=np.float32, batch=(6,)):
    W, b, v = problem(0, 9, 1.2, dtype)
    shifts = jnp.stack([b * k for k in range(1, 1 + batch[0])])

    def loss(W, shifts):
        solution = fixed_point(
            layer, jnp.zeros((*batch, 9), dtype), W, shifts, solver=solver, backward=backward, batch_ndim=1
        )
        return (solution.value * v).sum()

    return jax.jit(jax.grad(loss, (0, 1)))(W, shifts)


def test_picard_makes_shine_and_jacobian_free_equal():
    ours, theirs = (gradients(mode, Picard()) for mode in ("shine", "jacobian_free"))
    assert all((a == b).all() for a, b in zip(ours, theirs))


def test_fallback_of_zero_is_jacobian_free():
    ours, theirs = (gradients(mode) for mode in (Shine(fallback=0.0), "jacobian_free"))
    assert all((a == b).all() for a, b in zip(ours, theirs))


def test_fallback_judges_each_element():
    plain, free = gradients("shine")[1], gradients("jacobian_free")[1]
    limit = Shine(fallback=1.0)
    mixed = gradients(limit)[1]
    same = np.isclose(mixed, plain, rtol=1e-5).all(1), np.isclose(mixed, free, rtol=1e-5).all(1)
    assert (same[0] | same[1]).all()
    assert same[0].any() and (~same[0]).any()
    refined = gradients(Shine(fallback=1.0, refine_steps=12), dtype=np.float32)[1]
    np.testing.assert_allclose(refined, gradients("full")[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "solver", [Broyden(30, 1e-5), AdjointBroyden(30, 1e-5), Anderson(30, 1e-5), Picard(60, 1e-5)], ids=repr
)
def test_full_and_long_refinement_agree_in_float32(solver):
    for ours, exact in zip(gradients(Shine(refine_steps=20), solver), gradients("full", solver)):
        assert relative(ours, exact) <= 1e-4


def test_float32_has_the_directions_of_float64(x64):
    exact = np.concatenate([np.ravel(g) for g in gradients("full", dtype=np.float64)])
    for mode in ("shine", "refine"):
        a, b = (np.concatenate([np.ravel(g) for g in gradients(mode, dtype=t)]) for t in (np.float32, np.float64))
        cosine = lambda x: x @ exact / np.linalg.norm(x) / np.linalg.norm(exact)
        assert abs(cosine(a) - cosine(b)) <= 1e-3


def test_start_at_the_solution_is_jacobian_free():
    grad = lambda mode: jax.grad(
        lambda t: fixed_point(lambda z: 0.5 * jnp.tanh(z) + t - t, jnp.zeros(3), backward=mode).value.sum()
    )
    np.testing.assert_array_equal(grad("shine")(jnp.ones(3)), grad("jacobian_free")(jnp.ones(3)))


@pytest.mark.parametrize("backward", ["shine", "jacobian_free", "refine", "full"])
def test_gradients_are_linear_in_small_cotangents(dtype, backward):
    W, b, v = problem(0, 5, 1.2, dtype)
    f = lambda b: fixed_point(layer, jnp.zeros(5, dtype), W, b, solver=Broyden(12, 1e-5), backward=backward).value
    pull = jax.jit(jax.vjp(f, b)[1])
    for scale in (1e-16, 1e-25):
        np.testing.assert_allclose(pull(scale * v)[0] / scale, pull(v)[0], rtol=1e-4, atol=1e-5)


def test_modes_by_name():
    assert as_mode("shine") == Shine() and as_mode("refine") == Shine(refine_steps=5)
    for true, false in ((True, False), (np.True_, np.False_)):
        assert Shine(fallback=true).fallback == 1.3 and Shine(fallback=false).fallback is None
    assert as_mode(Full(7)) == Full(7)
    for wrong in ("newton", None, 3):
        with pytest.raises(ValueError, match="backward: expected one of 'shine'"):
            as_mode(wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shine(refine_steps=-1), "refine_steps: expected an integer >= 0"),
        (lambda: JacobianFree(refine_steps=-1), "refine_steps: expected an integer >= 0"),
        (lambda: Shine(fallback=-1.0), "fallback: expected a number >= 0"),
        (lambda: Full(max_steps=0), "max_steps: expected an integer >= 1"),
        (lambda: Full(tol=-1.0), "tol: expected a number >= 0"),
    ],
)
def test_modes_refuse_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
