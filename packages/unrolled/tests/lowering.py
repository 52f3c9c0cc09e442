"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

import jax
import jax.numpy as jnp

from gyri.unrolled import dictionary_gradient, lasso_jacobian, lasso_objective, simulate, sparse_code, unrolled_jacobian

X, D, MASK = jnp.ones((4, 6)), jnp.eye(5, 6), jnp.ones((4, 6))


def loss(D, lam):
    return lasso_objective(X, sparse_code(X, D, lam, n_iter=3, mask=MASK), D, lam, mask=MASK)


# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    "gyri.unrolled.sparse_code": lambda: (lambda X, D, lam: sparse_code(X, D, lam, n_iter=3), (X, D, jnp.float32(0.1))),
    "gyri.unrolled.sparse_code[gradient, masked]": lambda: (jax.grad(loss, (0, 1)), (D, jnp.float32(0.1))),
    "gyri.unrolled.lasso_objective": lambda: (
        lambda X, Z, D: lasso_objective(X, Z, D, 0.1), (X, jnp.ones((4, 5)), D)
    ),
    "gyri.unrolled.dictionary_gradient": lambda: (
        lambda X, D: dictionary_gradient(X, D, 0.1, n_iter=4, backprop_depth=2), (X, D)
    ),
    "gyri.unrolled.dictionary_gradient[g3]": lambda: (
        lambda X, D: dictionary_gradient(X, D, 0.1, n_iter=4, estimator="g3"), (X, D)
    ),
    "gyri.unrolled.lasso_jacobian": lambda: (lasso_jacobian, (X[0], D, jnp.ones(5))),
    "gyri.unrolled.unrolled_jacobian": lambda: (lambda x, D: unrolled_jacobian(x, D, 0.1, 3), (X[0], D)),
    "gyri.unrolled.simulate": lambda: (lambda key: tuple(simulate(key, 5, 4, 3)), (jax.random.key(0),)),
}  # fmt: skip

# Name of the public function: why it never runs inside jit.
HOST_SIDE = {
    "gyri.unrolled.AnalysisPrior": "a front door: validates, then calls the core",
    "gyri.unrolled.ConvDictionaryLearning": "a front door: validates, then calls the core",
    "gyri.unrolled.DictionaryLearning": "a front door: validates, then calls the core",
    "gyri.unrolled.plot_atoms": "draws with matplotlib",
    "gyri.unrolled.plot_history": "draws with matplotlib",
    "gyri.unrolled.recovery_score": "the assignment is found by SciPy in double precision",
    "gyri.unrolled.restore_image": "a front door: validates, then calls the core",
}
