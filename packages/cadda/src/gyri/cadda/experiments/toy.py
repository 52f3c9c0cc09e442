"""A toy on which it is known what flips of the sign should be learned for each class."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.numerics.transform import Transform
from gyri.reproduce import Claim, Data, Result, experiment

from ..bilevel import hypergradient
from ..policy import Policy, augment, init_policy, project
from ..train import adam
from .setting import new_figure, show_distributions

SIZES = (64, 16, 3)
SIGN_FLIP = (Transform("sign_flip", lambda key, x, arg: -x),)


def polarity_windows(rng: np.random.Generator, n: int, both_signs: bool) -> tuple[np.ndarray, np.ndarray]:
    """Bumps in noise: class 0 early, upright or of both signs; class 1 late and upright, class 2 late and inverted."""
    t = np.linspace(0, 1, 64)
    y = np.arange(n) % 3
    sign = np.where(y == 0, 1 - 2 * (np.arange(n) // 3 % 2) if both_signs else 1, np.where(y == 1, 1, -1))
    centre = np.where(y == 0, 0.3, 0.7)
    bump = np.exp(-0.5 * ((t - centre[:, None]) / 0.1) ** 2)
    return (sign[:, None] * bump + 0.7 * rng.standard_normal((n, 64))).astype(np.float32), y


def perceptron(weights: list[tuple], x: Any) -> Any:
    """Logits of a perceptron with one hidden layer of tanh units."""
    (W1, b1), (W2, b2) = weights
    return jnp.tanh(x.reshape(len(x), -1) @ W1 + b1) @ W2 + b2


@jax.jit
def search(sets: Any, carry: tuple, keys: Any) -> tuple:
    """Learner and policy after a step for each key: compiled once for all seeds."""
    (X, y), (X_valid, y_valid) = sets

    def loss(theta: list, x: Any, y: Any) -> Any:
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(perceptron(theta, x)), y[:, None], 1))

    def step(carry: tuple, key: Any) -> tuple[tuple, None]:
        theta, policy, opt_theta, opt_policy = carry
        rows_key, valid_key, augment_key = jax.random.split(key, 3)
        rows, valid_rows = (jax.random.choice(k, 300, (64,), replace=False) for k in (rows_key, valid_key))
        train = lambda t, a: loss(t, augment(augment_key, a, SIGN_FLIP, X[rows][:, None], y[rows]), y[rows])
        valid = lambda t: loss(t, X_valid[valid_rows], y_valid[valid_rows])
        g, _ = hypergradient(train, valid, theta, policy, 0.1)
        move, opt_policy = adam(0.5).update(g, opt_policy)
        policy = project(Policy(*jax.tree.map(lambda a, u: a - 1e-2 * u, policy, move)))
        move, opt_theta = adam().update(jax.grad(train)(theta, policy), opt_theta)
        theta = jax.tree.map(lambda t, u: t - 5e-3 * u, theta, move)
        return (theta, policy, opt_theta, opt_policy), None

    return jax.lax.scan(step, carry, keys)[0]


def learn_polarity(seed: int, n_steps: int = 400) -> np.ndarray:
    """Probability of a flip learned for each class, where validation windows of class 0 have both signs.

    Examples
    --------
    >>> learn_polarity(0, n_steps=2).shape
    (3,)
    """
    rng = np.random.default_rng(seed)
    sets: Any = [polarity_windows(rng, 300, both) for both in (False, True)]
    layers = list(pairwise(SIZES))
    theta = [(jnp.asarray(rng.standard_normal(s) / s[0] ** 0.5, jnp.float32), jnp.zeros(s[1])) for s in layers]
    policy = init_policy(seed, 1, n_subpolicies=1, n_stages=1, n_classes=3)
    carry = (theta, policy, adam().init(theta), adam(0.5).init(policy))
    _, policy, _, _ = search(jax.tree.map(jnp.asarray, sets), carry, jax.random.split(jax.random.key(seed), n_steps))
    return np.asarray(policy.probabilities).ravel()


@experiment(paper="cadda", figure="Toy", title="Polarity: what is known to be learned")
def polarity(scale: str, key: int, sweep: Any) -> Result:
    """Three classes of bumps: the sign of one may be flipped, those of the others tell them apart.

    Paper scale: about 10 CPU seconds (extrapolated from the quick run: 4 times the seeds; compilation stays).
    """
    n_seeds = {"quick": 5, "paper": 20}[scale]
    found = np.array(sweep(learn_polarity, [key + i for i in range(n_seeds)]))
    claims = [
        Claim.at_least("probability of a flip, class of both signs (ideal: 0.5)", None, found[:, 0].min(), 0.4),
        Claim.info("the same, all seeds", None, found[:, 0]),
        Claim.at_most("probability of a flip, classes told apart by their sign", None, found[:, 1:].max(), 0.05),
    ]
    figure, (ax,) = new_figure()
    show_distributions(ax, ["early bump, both signs", "late, upright", "late, inverted"], list(found.T), "probability")
    captions = {"polarity": "Probability of a flip of the sign learned for each class; a point a seed."}
    return Result(claims, {"polarity": figure}, Data.simulated("bumps in noise, 300 + 300 windows"), captions)
