"""Sets of recordings that share parameters, simulated in compiled batches."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from gyri.numerics.loops import cached, scan_chunks
from gyri.numerics.validation import as_key, check_positive_int

from .prior import HierarchicalPrior


class Simulations(NamedTuple):
    """Parameters and the recordings that they gave.

    Attributes
    ----------
    theta : Array, shape (n, dim)
        Local parameters of the recording of interest, then shared ones.
    x : Array, shape (n, ...)
        Recordings of interest.
    x_extra : Array, shape (n, N_max, ...)
        Others with the same shared parameters; zero where there is none.
    mask : Array of bool, shape (n, N_max)
        Which there are.
    """

    theta: Float[Any, "n dim"]
    x: Float[Any, "n *event"]
    x_extra: Float[Any, "n n_extra *event"]
    mask: Bool[Any, "n n_extra"]


def parse_n_extra(n_extra: Any) -> tuple[int, int]:
    """Smallest and largest number of additional recordings.

    Examples
    --------
    >>> from gyri.hnpe.simulation import parse_n_extra
    >>> parse_n_extra(3), parse_n_extra((0, 10))
    ((3, 3), (0, 10))
    """
    pair = tuple(n_extra) if isinstance(n_extra, tuple | list) else (n_extra, n_extra)
    if len(pair) != 2:
        raise ValueError(f"n_extra: expected an integer or a pair (low, high), got {n_extra!r}")
    low, high = (check_positive_int(n, "n_extra", minimum=0) for n in pair)
    if low > high:
        raise ValueError(f"n_extra: expected low <= high, got ({low}, {high})")
    return low, high


def _build_step(get_prior: Callable, get_simulator: Callable, get_summary: Callable, high: int, size: int) -> Callable:
    """A batch as a step of `scan_chunks`; kept, so that a second call with the same functions compiles nothing."""

    def record(key: Array, theta: Array) -> Array:
        x, summary = get_simulator()(key, theta), get_summary()
        return x if summary is None else summary(x)

    def one(key: Array, proposal: Any, low: Array) -> Simulations:
        prior: HierarchicalPrior = get_prior()
        theta_key, n_key, local_key, x_key = jax.random.split(key, 4)
        theta = prior.sample(theta_key) if proposal is None else proposal.sample(theta_key)
        shared = theta[prior.n_local :]
        # The others' local parameters come from the prior, also where a proposal gave theta.
        local = prior.sample_local(local_key, shared, (high,))
        every = jnp.concatenate([theta[None], jnp.concatenate([local, jnp.tile(shared, (high, 1))], -1)])
        x = jax.vmap(record)(jax.random.split(x_key, 1 + high), every)
        mask = jnp.arange(high) < jax.random.randint(n_key, (), low, high + 1)
        x_extra = jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x[1:], 0)
        return Simulations(theta, x[0], x_extra, mask)

    def step(carry: Array, i: Array, key: Array, proposal: Any, low: Array) -> tuple[Array, Simulations]:
        # One key a simulation: what it gives does not depend on the size of the batch.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, i * size + jnp.arange(size))
        return carry, jax.vmap(one, (0, None, None))(keys, proposal, low)

    return step


def simulate(
    key: Key[Array, ""] | Array | int,
    prior: HierarchicalPrior,
    simulator: Callable,
    n_simulations: int,
    n_extra: Any = 0,
    *,
    summary: Callable | None = None,
    proposal: Any = None,
    batch_size: int = 1024,
    progress: bool = False,
) -> Simulations:
    """Simulate recordings, each with others that share its shared parameters.

    The same key gives the same simulations whatever `batch_size`. A second call with the same functions (or equal ones,
    where they have a hash of their value as `ToyModel` has) compiles nothing, also for another number of simulations,
    where both take several batches. Ctrl-C keeps the batches that are done, with a warning.

    Parameters
    ----------
    key : PRNG key or int
        Randomness.
    prior : HierarchicalPrior
        Of the parameters.
    simulator : callable
        ``simulator(key, theta (dim,)) -> x``, in JAX.
    n_simulations : int
        How many.
    n_extra : int or (int, int)
        How many others each has: fixed, or uniform between two numbers, ends included.
    summary : callable, optional
        ``summary(x)``, in JAX, inside the compiled batch: raw recordings never leave it.
    proposal : HNPEPosterior, optional
        Conditioned; the parameters come from it. Local parameters of the others still come from the prior.
    batch_size : int
        Recordings, not simulations, in memory at once.
    progress : bool
        Show a bar.

    Returns
    -------
    Simulations
        With ``N_max`` the largest number of others; float arrays in JAX's default precision.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> import jax
    >>> from gyri.hnpe import ToyModel, simulate
    >>> model = ToyModel(noise=0.05)
    >>> simulations = simulate(jax.random.key(0), model.prior, model, 100, (0, 10))
    >>> simulations.theta.shape, simulations.x_extra.shape, simulations.mask.dtype
    ((100, 2), (100, 10, 1), dtype('bool'))

    References
    ----------
    Rodrigues, Moreau, Louppe, Gramfort (2021).
    """
    n, (low, high) = check_positive_int(n_simulations, "n_simulations"), parse_n_extra(n_extra)
    size = min(n, max(1, check_positive_int(batch_size, "batch_size") // (1 + high)))
    step = cached(_build_step, (prior, simulator, summary), high, size)
    n_steps = -(-n // size)
    _, out = scan_chunks(
        step, jnp.zeros(()), n_steps, args=(as_key(key), proposal, jnp.array(low)),
        chunk=max(1, 20_000 // (size * (1 + high))), desc="simulate", progress=progress,
    )  # fmt: skip
    n_done = len(out.theta) * size
    if n_done < n:
        if n_done == 0:
            raise KeyboardInterrupt
        warnings.warn(f"interrupted: {n_done} of {n} simulations are done", stacklevel=2)
    flat = jax.tree.map(lambda leaf: np.reshape(leaf, (n_done, *leaf.shape[2:]))[:n], out)
    return Simulations(*jax.device_put(flat))
