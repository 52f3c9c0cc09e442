"""Losses: maximum likelihood on draws from the prior, the atomic loss on draws from a proposal."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from .network import Static, join_network, takes_key


def draw_atoms(key: Key[Array, ""] | Array, theta: Float[Any, "n d"], n_atoms: int) -> Float[Array, "n n_atoms d"]:
    """For each row itself, and others of the batch drawn without replacement.

    Parameters
    ----------
    key : PRNG key
        Randomness.
    theta : array, shape (B, d)
        A batch of parameters.
    n_atoms : int
        How many for each row, itself included; at most B.

    Returns
    -------
    Array, shape (B, n_atoms, d)
        Atom 0 is the row itself.

    Raises
    ------
    ValueError
        If there are not so many rows, or fewer than two atoms are asked for.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.losses import draw_atoms
    >>> draw_atoms(jax.random.key(0), jnp.arange(3.0)[:, None], 3)[1, :, 0].sort()
    Array([0., 1., 2.], dtype=float32)
    """
    n = len(theta)
    if not 2 <= n_atoms <= n:
        raise ValueError(f"n_atoms: expected between 2 and the {n} rows of a batch, got {n_atoms}")
    # Ranks of random numbers: the row itself is put first, the smallest of the others follow.
    order = jax.random.uniform(key, (n, n)).at[jnp.arange(n), jnp.arange(n)].set(-1.0)
    chosen = jax.lax.top_k(-order, n_atoms)[1]
    return theta[chosen]


def apt_loss(log_q: Float[Any, "n n_atoms"], log_prior: Float[Any, "n n_atoms"]) -> Float[Array, "n"]:
    """Atomic loss: how well the posterior over the prior tells the true atom from the others.

    Parameters
    ----------
    log_q : array, shape (B, M)
        Log of the approximate posterior at the atoms; atom 0 is the true one.
    log_prior : array, shape (B, M)
        Log of the prior there.

    Returns
    -------
    Array, shape (B,)
        Loss of each row; log M where posterior and prior agree.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.losses import apt_loss
    >>> apt_loss(jnp.zeros((1, 10)), jnp.zeros((1, 10)))
    Array([2.3025851], dtype=float32)

    References
    ----------
    Greenberg, Nonnenmacher, Macke (2019), Automatic posterior transformation, ICML.
    """
    ratio = log_q - log_prior
    return jax.nn.logsumexp(ratio, axis=-1) - ratio[..., 0]


@lru_cache(maxsize=64)
def make_loss(
    static: Static, n_atoms: int, combined: bool, training: bool = True
) -> Callable[[PyTree, dict, Array], Array]:
    """Mean loss of a batch; the same function for networks of the same form, so that they share compiled programs.

    Out of `training` the network is that of the posterior: nothing is dropped.

    A batch holds standardised ``z``, ``x``, ``x_extra``, ``mask``, ``log_det`` (log density of theta minus that of z)
    and, for the atomic loss (`n_atoms` > 0), ``log_prior`` and ``from_prior``.
    """

    def loss(params: PyTree, batch: dict, key: Array) -> Array:
        network = join_network(params, static)
        network = network if training else eqx.nn.inference_mode(network)
        atom_key, embed_key = jax.random.split(key)
        n = len(batch["z"])
        keys = jax.random.split(embed_key, n) if training and takes_key(network.embedding) else None
        condition = jax.vmap(network.condition)(batch["x"], batch["x_extra"], batch["mask"], keys)
        if not n_atoms:
            return -jnp.mean(jax.vmap(network.log_prob)(batch["z"], condition) + batch["log_det"])
        d = batch["z"].shape[1]
        rows = jnp.concatenate([batch["z"], batch["log_det"][:, None], batch["log_prior"][:, None]], 1)
        atoms = draw_atoms(atom_key, rows, min(n_atoms, n))
        # The condition is computed once a row, not once an atom.
        over_atoms = jax.vmap(jax.vmap(network.log_prob, (0, None)))
        log_q = over_atoms(atoms[..., :d], condition) + atoms[..., d]
        value = jnp.mean(apt_loss(log_q, atoms[..., d + 1]))
        if combined:
            prior = batch["from_prior"]
            value -= jnp.sum(jnp.where(prior, log_q[:, 0], 0)) / jnp.maximum(prior.sum(), 1)
        return value

    return loss
