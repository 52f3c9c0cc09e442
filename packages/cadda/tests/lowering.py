"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

import jax
import jax.numpy as jnp

from gyri.cadda import (
    augment,
    critic_losses,
    exposure,
    hypergradient,
    init_policy,
    momentum_hypergradient,
    relax_bernoulli_gradient,
    relax_gradient,
)
from gyri.numerics.transform import eeg_transforms

X, Y = jnp.ones((4, 2, 300)), jnp.array([0, 1, 2, 0])
TRANSFORMS = eeg_transforms(100.0)
KEY = jax.random.key(0)


def policy():
    return init_policy(0, len(TRANSFORMS), n_classes=3)


def learn(policy, **options):
    return jax.grad(lambda p: jnp.sum(augment(KEY, p, TRANSFORMS, X, Y, n_chunks=2, **options) ** 2))(policy)


def train(theta, alpha):
    return jnp.sum((theta * alpha - 1) ** 2)


def valid(theta):
    return jnp.sum(theta**2)


def surrogate(params, soft):
    return params * jnp.sum(soft**2)


# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    "gyri.cadda.augment": lambda: (lambda p: augment(KEY, p, TRANSFORMS, X, Y, mode="sample", n_chunks=2), (policy(),)),
    "gyri.cadda.augment[softmax, gradient]": lambda: (learn, (policy(),)),
    "gyri.cadda.augment[gumbel, gradient]": lambda: (lambda p: learn(p, estimator="gumbel"), (policy(),)),
    "gyri.cadda.augment[relax, gradient]": lambda: (lambda p: learn(p, estimator="relax"), (policy(),)),
    "gyri.cadda.critic_losses": lambda: (
        lambda real, fake: critic_losses(KEY, lambda x: jnp.tanh(x).sum((1, 2)), real, fake), (X, 2 * X)
    ),
    "gyri.cadda.exposure": lambda: (exposure, (policy(),)),
    "gyri.cadda.hypergradient": lambda: (
        lambda t, a: hypergradient(train, valid, t, a, 0.1), (jnp.ones(3), jnp.ones(3))
    ),
    "gyri.cadda.hypergradient[finite difference]": lambda: (
        lambda t, a: hypergradient(train, valid, t, a, 0.1, method="finite_difference"), (jnp.ones(3), jnp.ones(3))
    ),
    "gyri.cadda.init_policy": lambda: (lambda key: init_policy(key, 4, n_classes=3), (KEY,)),
    "gyri.cadda.momentum_hypergradient": lambda: (
        lambda t, a: momentum_hypergradient(train, valid, t, a, 0.1, t), (jnp.ones(3), jnp.ones(3))
    ),
    "gyri.cadda.relax_bernoulli_gradient": lambda: (
        lambda w: relax_bernoulli_gradient(KEY, jnp.sum, w, surrogate, jnp.float32(1)), (jnp.zeros(3),)
    ),
    "gyri.cadda.relax_gradient": lambda: (
        lambda w: relax_gradient(KEY, jnp.sum, w, surrogate, jnp.float32(1)), (jnp.zeros((2, 3)),)
    ),
}  # fmt: skip

# Name of the public function: why it never runs inside jit.
HOST_SIDE = {
    "gyri.cadda.PolicySearch": "a front door: validates, then calls the core",
    "gyri.cadda.SleepStager": "a flax module; its training and search compile it",
    "gyri.cadda.describe": "a table of Python objects",
    "gyri.cadda.load_sleep_physionet": "reads files through MNE",
    "gyri.cadda.plot_policy": "draws with matplotlib",
    "gyri.cadda.plot_search": "draws with matplotlib",
    "gyri.cadda.simulate_sleep": "draws with NumPy's generator, once",
    "gyri.cadda.split_subjects": "sets of subjects, on the host",
    "gyri.cadda.subject_folds": "sets of subjects, on the host",
    "gyri.cadda.train_classifier": "a front door: validates, then loops over compiled steps",
    "gyri.cadda.zscore": "prepares host data in double precision",
}
