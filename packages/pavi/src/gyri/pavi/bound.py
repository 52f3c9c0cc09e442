"""Evidence lower bound: its reduced estimate, and its value on all copies, chunk by chunk."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gyri.numerics.validation import as_key, check_positive_int

from .autoguide import AutoPAVI
from .copies import map_rows, rows_of
from .family import Term
from .setup import Setup


def elbo(
    rng_key: Key[Array, ""] | Array | int,
    params: dict,
    guide: AutoPAVI,
    *args: Any,
    num_particles: int = 1,
    full: bool = False,
    chunk_size: int | None = None,
    entropy_weight: Any = 1.0,
    **kwargs: Any,
) -> Float[Array, ""]:
    """Evidence lower bound of a guide, estimated from draws: log p(X) is never below its expectation.

    Parameters
    ----------
    rng_key : PRNG key or int
        Of the copies and the draws.
    params : dict
        The guide's parameters (and the model's).
    guide : AutoPAVI
        The guide.
    *args, **kwargs
        Arguments of the model.
    num_particles : int
        Draws that are averaged. They share the copies and the encodings.
    full : bool
        On all copies of all plates, as always of ``guide.full``; otherwise on randomly drawn ones, an unbiased estimate
        of the same (for ``encoding="data"``, see :class:`AutoPAVI`).
    chunk_size : int, optional
        With `full`: copies of the outermost subsampled plate that are evaluated at once. The value does not depend
        on it.
    entropy_weight : float
        Of -log q: 1 is the ELBO, 0 looks for a mode.

    Returns
    -------
    Array, shape ()
        In nats. Differentiable in `params`.

    Raises
    ------
    ValueError
        A bad number, `chunk_size` without `full`, or for a model without independent copies.

    References
    ----------
    Rouillard, Le Bris, Moreau, Wassermann (2023), PAVI: plate-amortized variational inference, TMLR.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.pavi import AutoPAVI, elbo, fit
    >>> from gyri.pavi.models import gre, simulate_gre
    >>> _, x = simulate_gre(jax.random.key(0), 20, 5, 2)
    >>> guide = AutoPAVI(gre, subsample_sizes={"groups": 5})
    >>> params = fit(guide, 1, 10, x, progress_bar=False).params
    >>> elbo(2, params, guide, x, full=True).shape
    ()
    """
    full = full or guide._full
    num_particles = check_positive_int(num_particles, "num_particles")
    if chunk_size is not None:
        chunk_size = check_positive_int(chunk_size, "chunk_size")
        if not full:
            raise ValueError("chunk_size: a reduced ELBO is not chunked, set full=True")
    setup = (guide.full if full else guide).setup(args, kwargs)
    if chunk_size is not None and setup.row_plate is None:
        raise ValueError("chunk_size: the model has no plate whose copies are independent given the rest")
    dynamic = setup.dynamic(args, kwargs)
    weight = jnp.asarray(entropy_weight, float)

    def reduced(key: Array, params: dict, dynamic: list, weight: Array) -> Array:
        index_key, draw_key = jax.random.split(key)
        indices = setup.draw_indices(index_key)
        rows = None if setup.encodes else setup.take_rows(params, indices)
        return reduced_elbo(setup, params, rows, draw_key, dynamic, indices, num_particles, weight)

    def whole(key: Array, params: dict, dynamic: list, weight: Array) -> Array:
        return full_elbo(setup, params, key, dynamic, num_particles, chunk_size, weight)

    run = setup.program(("elbo", full, num_particles, chunk_size), whole if full else reduced)
    return run(as_key(rng_key), params, dynamic, weight)


def reduced_elbo(
    setup: Setup,
    params: Mapping[str, Any],
    rows: Mapping[str, Array] | None,
    key: Array,
    dynamic: list,
    indices: Mapping[str, Array],
    num_particles: int,
    entropy_weight: Array,
) -> Array:
    """ELBO on given copies, whose free encodings are `rows`; eq. (3) of the specification's reduced model."""
    args, kwargs = setup.arguments(dynamic)
    encodings = setup.encode(params[setup.encoder_name], args, kwargs, indices) if setup.encodes else None

    def one(noise: dict[str, Array]) -> Array:
        family = setup.run(params, rows, encodings, args, kwargs, indices, noise=noise)
        return sum((_value(term, entropy_weight) for term in family.terms.values()), jnp.zeros(()))

    return jax.vmap(one)(setup.draw_noise(key, indices, shape=(num_particles,))).mean()


def full_elbo(
    setup: Setup,
    params: Mapping[str, Any],
    key: Array,
    dynamic: list,
    num_particles: int,
    chunk_size: int | None,
    entropy_weight: Array,
) -> Array:
    """ELBO on all copies: those of the row plate one by one, what is outside of it once."""
    indices = setup.all_indices({})
    run, plate = rows_of(setup, params, dynamic, indices, chunk_size)
    keys = jax.random.split(key, num_particles)

    def values(n: Array | None, inside: bool) -> Array:
        def one(key: Array) -> Array:
            terms = run(key, n).terms.values()
            chosen = [term for term in terms if (plate in term.plates) == inside]
            return sum((_value(term, entropy_weight) for term in chosen), jnp.zeros(()))

        return jax.vmap(one)(keys).mean()

    if plate is None:
        return values(None, False)
    # A single copy stands for all in its plate's scale; here each comes in person.
    local = map_rows(lambda n: values(n, True), indices[plate], chunk_size) / setup.graph.plates[plate].size
    return local.sum() + values(indices[plate][0], False)


def _value(term: Term, entropy_weight: Array) -> Array:
    return jnp.sum(term.scale_p * term.log_p) - entropy_weight * jnp.sum(term.scale_q * term.log_q)
