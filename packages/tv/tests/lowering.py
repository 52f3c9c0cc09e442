"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

import jax
import jax.numpy as jnp

from gyri import tv

X, U = jnp.array([[0.1, 0.2, 1.5], [1.0, 0.3, 0.4]]), jnp.ones((2, 3))
A = jnp.array([[1.0, 0.2, 0.0], [0.1, 1.0, 0.3], [0.0, 0.2, 1.0]])


def solver(name):
    return lambda: (lambda x: tv.solve(x, A, 0.1, solver=name, max_iter=20), (X,))


def network(name):
    return lambda: (lambda p, x: tv.apply_network(p, x, A, 0.1, network=name), (tv.init_network(A, 3, name), X))


# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    "gyri.tv.prox_tv1d": lambda: (tv.prox_tv1d, (X, 0.3)),
    "gyri.tv.prox_tv1d[gradient]": lambda: (jax.grad(lambda x, lam: tv.prox_tv1d(x, lam)[0, 0], (0, 1)), (X, 0.3)),
    "gyri.tv.prox_tv2d": lambda: (tv.prox_tv2d, (X, 0.3)),
    "gyri.tv.tv_norm": lambda: (tv.tv_norm, (U,)),
    "gyri.tv.objective": lambda: (tv.objective, (U, X, A, 0.3)),
    "gyri.tv.lambda_max": lambda: (tv.lambda_max, (X, A)),
    "gyri.tv.duality_gap": lambda: (tv.duality_gap, (U, X, A, 0.3)),
    "gyri.tv.simulate": lambda: (lambda key: tv.simulate(key, 4), (jax.random.key(0),)),
    "gyri.tv.hrf_operator": lambda: (lambda u: tv.hrf_operator(40, 1.0).matvec(u), (jnp.ones(17),)),
    "gyri.tv.init_network": lambda: (lambda A: tv.init_network(A, 3), (A,)),
    **{f"gyri.tv.solve[{name}]": solver(name) for name in ("apgd", "synthesis_apgd", "dual_apgd", "condat_vu", "admm")},
    **{f"gyri.tv.apply_network[{name}]": network(name) for name in ("lpgd_taut", "lpgd_lista", "lista", "chambolle")},
}

# Name of the public function: why it never runs inside jit.
HOST_SIDE = {
    "gyri.tv.LearnedTV": "a front door: validates, then trains from the host",
    "gyri.tv.plot_convergence": "draws a figure",
    "gyri.tv.plot_signals": "draws a figure",
}
