"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

import jax
import jax.numpy as jnp

from gyri.numerics import linalg, optim, prox, validation

VECTOR, MATRIX = jnp.ones(4), jnp.eye(4) + 0.5


def energy(x, scale=1.0):
    return jnp.sum((x - 2.0) ** 2) + scale * jnp.sum(x**2)


def gradient_of_minimizer(z0, scale):
    z = linalg.implicit_minimizer(lambda z0, scale: 2.0 / (1.0 + scale) + 0.0 * z0, energy)
    return jax.grad(lambda scale: z(z0, scale).sum())(scale)


def fista(x0):
    return optim.fista(lambda x: x - 1.0, prox.soft_threshold, x0, 0.5, max_iter=5, tol=1e-6)


def backtracking_descent(x0):
    return optim.backtracking_descent(
        jax.value_and_grad(energy), energy, lambda x: jnp.minimum(x, 1.5), x0, tol=1e-6, max_iter=5
    )


def armijo_step(x):
    return optim.armijo_step(energy, x, -x, -1.0, step_size=2.0, c=0.1)


def damped_newton(x0):
    return optim.damped_newton(energy, x0, upper=jnp.full(4, 0.5), tol=1e-6)


# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    "gyri.numerics.linalg.LinearOperator": lambda: (lambda A, x: (A @ A).rmatvec(x), (linalg.dense(MATRIX), VECTOR)),
    "gyri.numerics.linalg.dense": lambda: (lambda A, x: linalg.dense(A).matvec(x), (MATRIX, VECTOR)),
    "gyri.numerics.linalg.identity": lambda: (linalg.identity(4).matvec, (VECTOR,)),
    "gyri.numerics.linalg.mask": lambda: (lambda m, x: linalg.mask(m).matvec(x), (VECTOR, VECTOR)),
    "gyri.numerics.linalg.convolution": lambda: (
        lambda kernel, x: linalg.convolution(kernel, 4).rmatvec(linalg.convolution(kernel, 4).matvec(x)),
        (jnp.ones(3), VECTOR),
    ),
    "gyri.numerics.linalg.as_operator": lambda: (lambda A, x: linalg.as_operator(A).matvec(x), (MATRIX, VECTOR)),
    "gyri.numerics.linalg.operator_norm": lambda: (linalg.operator_norm, (MATRIX,)),
    "gyri.numerics.linalg.power_iteration": lambda: (
        lambda v: linalg.power_iteration(lambda x: MATRIX @ x, v),
        (VECTOR,),
    ),
    "gyri.numerics.linalg.cg": lambda: (lambda b: linalg.cg(lambda x: MATRIX @ x, b), (VECTOR,)),
    "gyri.numerics.linalg.implicit_minimizer": lambda: (gradient_of_minimizer, (VECTOR, 1.0)),
    "gyri.numerics.optim.fista_momentum": lambda: (optim.fista_momentum, (1.0,)),
    "gyri.numerics.optim.fista": lambda: (fista, (VECTOR,)),
    "gyri.numerics.optim.backtracking_descent": lambda: (backtracking_descent, (VECTOR,)),
    "gyri.numerics.optim.armijo_step": lambda: (armijo_step, (VECTOR,)),
    "gyri.numerics.optim.damped_newton": lambda: (damped_newton, (VECTOR,)),
    "gyri.numerics.prox.soft_threshold": lambda: (prox.soft_threshold, (VECTOR, 0.5)),
    "gyri.numerics.validation.check_array": lambda: (lambda x: validation.check_array(x, "x", ndim=1), (VECTOR,)),
    "gyri.numerics.validation.as_key": lambda: (validation.as_key, (jax.random.key(0),)),
}

# Name of the public function: why it never runs inside jit.
HOST_SIDE = {
    "gyri.numerics.io.save_pytree": "writes a file",
    "gyri.numerics.io.load_pytree": "reads a file",
    "gyri.numerics.loops.progress_bar": "writes to the terminal",
    "gyri.numerics.loops.scan_chunks": "drives compiled chunks from the host, so that it can report and stop",
    "gyri.numerics.loops.fit_minibatch": "drives compiled epochs from the host, so that it can report and stop",
    "gyri.numerics.testing.check_jit": "an assertion of tests",
    "gyri.numerics.testing.check_vmap": "an assertion of tests",
    "gyri.numerics.testing.check_lowers": "an assertion of tests",
    "gyri.numerics.testing.check_no_recompilation": "an assertion of tests",
    "gyri.numerics.validation.check_finite": "looks at values, and returns nothing",
    "gyri.numerics.validation.check_same_leading_axis": "returns a Python number",
    "gyri.numerics.validation.check_positive_int": "returns a Python number",
    "gyri.numerics.validation.check_scalar": "returns a Python number",
    "gyri.numerics.validation.check_option": "returns one of a few Python values",
}
