"""What a search by gradient descent chooses from: an operation a stage (ADDA, CADDA), or one of a list of pairs (DADA).

A space gives, for each chunk of a batch and each class, the logits of what is chosen there; and from a choice the
operations to apply.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .policy import Policy, Stages, chosen_stages, draw_subpolicies, init_policy, project

MOST_PAIRS, KEPT_PAIRS = 105, 25
ONE_HOT = 100.0  # logit of what is certain


@dataclass(frozen=True)
class StageSpace:
    """Each stage of each sub-policy has weights over the operations.

    Parameters
    ----------
    n_ops, n_subpolicies, n_stages, n_rows : int
        Operations, sub-policies, stages, and classes with a policy of their own.
    """

    n_ops: int
    n_subpolicies: int
    n_stages: int
    n_rows: int

    def init(self, key: Array, dtype: Any) -> Policy:
        """Parameters to start from."""
        sizes = {"n_subpolicies": self.n_subpolicies, "n_stages": self.n_stages, "n_classes": self.n_rows}
        return init_policy(key, self.n_ops, **sizes, dtype=dtype)

    def logits(self, key: Array, params: Policy, n_chunks: int) -> Array:
        """Of the choices of each chunk and class, (n_chunks, n_rows, n_stages, n_ops)."""
        return draw_subpolicies(key, params, n_chunks).logits

    def stages(self, key: Array, params: Policy, one_hot: Array) -> Stages:
        """What the choices mean; the key is that of `logits`."""
        return chosen_stages(draw_subpolicies(key, params, len(one_hot)), one_hot.argmax(-1))

    def project(self, params: Policy) -> Policy:
        """Parameters within their bounds."""
        return project(params)

    def finish(self, params: Policy) -> Policy:
        """The policy that the parameters stand for."""
        return params


class PairParams(NamedTuple):
    """Parameters of DADA: weights (n_rows, n_pairs), probabilities and magnitudes (n_rows, n_pairs, 2)."""

    logits: Array
    probabilities: Array
    magnitudes: Array


@dataclass(frozen=True)
class PairSpace:
    """Weights over an explicit list of sub-policies, each a pair of operations.

    Parameters
    ----------
    pairs : tuple of (int, int)
        The operations of each sub-policy.
    n_ops, n_rows : int
        Operations, and classes with a policy of their own.
    """

    pairs: tuple[tuple[int, int], ...]
    n_ops: int
    n_rows: int

    def init(self, key: Array, dtype: Any) -> PairParams:
        """Parameters to start from."""
        start = init_policy(key, 2, n_subpolicies=len(self.pairs), n_stages=1, n_classes=self.n_rows, dtype=dtype)
        return PairParams(start.logits[:, :, 0, 0], start.probabilities[:, :, 0], start.magnitudes[:, :, 0])

    def logits(self, key: Array, params: PairParams, n_chunks: int) -> Array:
        """Of the choices of each chunk and class, (n_chunks, n_rows, n_pairs)."""
        return jnp.broadcast_to(params.logits, (n_chunks, *params.logits.shape))

    def stages(self, key: Array, params: PairParams, one_hot: Array) -> Stages:
        """What the choices mean."""
        chosen, rows = one_hot.argmax(-1), jnp.arange(self.n_rows)
        ops = jnp.asarray(self.pairs, jnp.int32)[chosen]
        return Stages(ops, params.probabilities[rows, chosen], params.magnitudes[rows, chosen])

    def project(self, params: PairParams) -> PairParams:
        """Parameters within their bounds."""
        clip = lambda leaf: jnp.clip(leaf, 0, 1)
        return params._replace(probabilities=clip(params.probabilities), magnitudes=clip(params.magnitudes))

    def finish(self, params: PairParams) -> Policy:
        """A policy of the heaviest sub-policies, drawn with equal chances."""
        n_kept = min(KEPT_PAIRS, len(self.pairs))
        kept = jnp.argsort(-params.logits, axis=1)[:, :n_kept]
        take = lambda leaf: jnp.take_along_axis(leaf, kept[..., None], 1)
        ops = np.asarray(self.pairs)[np.asarray(kept)]
        return discrete_policy(ops, take(params.probabilities), take(params.magnitudes), self.n_ops)


def discrete_policy(ops: Any, probabilities: Any, magnitudes: Any, n_ops: int) -> Policy:
    """The policy whose stages are certain of their operation; arguments have shape (n_rows, n_subpolicies, n_stages).

    Examples
    --------
    >>> policy = discrete_policy([[[1]]], [[[0.5]]], [[[0.2]]], 3)
    >>> policy.logits.ravel(), policy.probabilities.ravel()
    (Array([  0., 100.,   0.], dtype=float32), Array([0. , 0.5, 0. ], dtype=float32))
    """
    chosen = jax.nn.one_hot(jnp.asarray(ops), n_ops)
    spread = lambda leaf: chosen * jnp.asarray(leaf, chosen.dtype)[..., None]
    return Policy(ONE_HOT * chosen, spread(probabilities), spread(magnitudes))


def draw_pairs(rng: np.random.Generator, n_ops: int) -> tuple[tuple[int, int], ...]:
    """All ordered pairs of different operations, or 105 of them at random.

    Examples
    --------
    >>> draw_pairs(np.random.default_rng(0), 2)
    ((0, 1), (1, 0))
    """
    if n_ops < 2:
        raise ValueError(f"transforms: expected two or more for method 'dada', which pairs them, got {n_ops}")
    every = [(i, j) for i in range(n_ops) for j in range(n_ops) if i != j]
    if len(every) > MOST_PAIRS:
        every = [every[i] for i in sorted(rng.choice(len(every), MOST_PAIRS, replace=False))]
    return tuple(every)
