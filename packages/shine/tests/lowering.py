"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

import jax
import jax.numpy as jnp

import gyri.shine as shine

W, Z, X = jnp.eye(4) / 2, jnp.zeros((3, 4)), jnp.ones((3, 4))
TARGET = jnp.ones(4)


def layer(z, W, x):
    return jnp.tanh(z @ W + x)


def training(solver, backward):
    """A solve and its gradient."""
    outer = lambda z, W, x: z - 1.0
    loss = lambda W: shine.fixed_point(
        layer, Z, W, X, solver=solver, backward=backward, batch_ndim=1, outer_grad=outer
    ).value.sum()
    return lambda: (jax.value_and_grad(loss), (W,))


def minimiser(solver, backward):
    """A fit and its gradient in the penalty."""
    fun = lambda x, c: jnp.sum((x - TARGET) ** 2) + c * jnp.sum(x**2)
    outer = lambda x, c: x - 1.0
    loss = lambda c: shine.minimize(
        fun, jnp.zeros(4), c, solver=solver, backward=backward, outer_grad=outer
    ).value.sum()
    return lambda: (jax.value_and_grad(loss), (jnp.ones(()),))


def deq():
    """A layer on its own parameters, as a function of them."""
    from flax import nnx

    from gyri.shine.models import DenseCell

    graph, state = nnx.split(shine.DEQ(DenseCell(4, 4, rngs=nnx.Rngs(0))))
    return lambda state, x: nnx.merge(graph, state)(x), (state, X)


def inverse_products():
    solve = lambda W: shine.fixed_point(layer, Z, W, X, batch_ndim=1).inverse
    return lambda W: (solve(W).matvec(X), solve(W).rmatvec(X), solve(W).dense(), solve(W).rank), (W,)


# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    "gyri.shine.fixed_point[broyden]": training(shine.Broyden(6), "shine"),
    "gyri.shine.fixed_point[line search, restart]": training(shine.Broyden(6, memory=3, line_search=True), "refine"),
    "gyri.shine.fixed_point[svd]": training(shine.Broyden(6, memory=3, overflow="svd"), "full"),
    "gyri.shine.fixed_point[adjoint, opa]": training(shine.AdjointBroyden(6, opa_every=2), shine.Shine(True)),
    "gyri.shine.fixed_point[anderson]": training(shine.Anderson(6), "shine"),
    "gyri.shine.fixed_point[picard]": training(shine.Picard(6), "jacobian_free"),
    "gyri.shine.root": lambda: (lambda c: shine.root(lambda z, c: z**3 - c, jnp.ones(4), c).value, (X[0],)),
    "gyri.shine.minimize[opa]": minimiser(shine.LBFGS(20, opa_every=2), "shine"),
    "gyri.shine.minimize[full]": minimiser(shine.LBFGS(20), "full"),
    "gyri.shine.InverseEstimate": inverse_products,
    "gyri.shine.inverse_quality": lambda: (shine.inverse_quality, (X, 2 * X)),
    "gyri.shine.jacobian_penalty": lambda: (lambda z: shine.jacobian_penalty(layer, z, W, X, key=0), (Z,)),
    "gyri.shine.spectral_radius": lambda: (lambda z: shine.spectral_radius(layer, z, W, X, key=0), (Z,)),
    "gyri.shine.DEQ": deq,
}

# Name of the public function: why it never runs inside jit.
HOST_SIDE = {
    "gyri.shine.BilevelLogisticRegression": "a front door: validates, then descends from the host",
    "gyri.shine.grid_search": "a loop of the host around one compiled step",
    "gyri.shine.hoag": "a loop of the host around one compiled step",
    "gyri.shine.plot_hoag": "draws a figure",
    "gyri.shine.plot_inverse_quality": "draws a figure",
    "gyri.shine.random_search": "a loop of the host around one compiled step",
}
