"""Trained posteriors: draws, densities, modes, for any recording and any number of others."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from gyri.numerics.io import load_pytree, save_pytree
from gyri.numerics.validation import as_key, check_array, import_extra

from ._version import __version__
from .network import Network, Static, join_network, make_network, split_network
from .prior import HierarchicalPrior, check_points, decode_prior, encode_prior
from .simulation import Simulations

KIND = "gyri.hnpe.HNPEPosterior"
_SPACE = "numpyro"  # whose unconstrained parameters the flows see
_N_CANDIDATES, _N_STARTS, _N_STEPS, _RATE = 1000, 64, 300, 0.05


class Spec(NamedTuple):
    """What a posterior's compiled functions depend on, beside arrays."""

    prior: HierarchicalPrior
    static: Static
    event_shape: tuple[int, ...]
    n_max: int
    dtype: str


class Standardizer(NamedTuple):
    """Mean and standard deviation of each entry of a recording, over those of interest and all others together."""

    mean: Any
    sd: Any

    @classmethod
    def of(cls, simulations: Simulations) -> "Standardizer":
        """From recordings; entries that never change keep their scale."""
        x, x_extra = np.asarray(simulations.x, np.float64), np.asarray(simulations.x_extra, np.float64)
        every = np.concatenate([x, x_extra[np.asarray(simulations.mask)]])
        mean, sd = every.mean(0), every.std(0)
        sd = np.where(sd > 1e-12 * np.maximum(np.abs(mean), 1e-300), sd, 1)
        dtype = np.asarray(simulations.x).dtype
        return cls(jnp.asarray(mean, dtype), jnp.asarray(sd, dtype))

    def __call__(self, x: Array) -> Array:
        """Standardise recordings along leading axes."""
        return (x - self.mean) / self.sd

    def prepare(self, prior: HierarchicalPrior, simulations: Simulations) -> dict[str, Any]:
        """Arrays that the losses see."""
        z, log_det = to_standard(prior, jnp.asarray(simulations.theta))
        x, x_extra = self(jnp.asarray(simulations.x)), self(jnp.asarray(simulations.x_extra))
        return {"z": z, "log_det": log_det.sum(-1), "x": x, "x_extra": x_extra, "mask": jnp.asarray(simulations.mask)}


def to_standard(prior: HierarchicalPrior, theta: Array, at: slice = slice(None)) -> tuple[Array, Array]:
    """Parameters in the space of the flows, and log-derivative of each coordinate."""
    z, log_det = prior.to_line(theta, at)
    mean, sd = (jnp.asarray(moment[at], z.dtype) for moment in prior.z_moments)
    return (z - mean) / sd, log_det - jnp.log(sd)


def from_standard(prior: HierarchicalPrior, z: Array) -> Array:
    """Inverse of :func:`to_standard`, for all coordinates; always inside the support."""
    mean, sd = (jnp.asarray(moment, z.dtype) for moment in prior.z_moments)
    return prior.from_line(z * sd + mean)


class Observation(NamedTuple):
    """A recording and others, padded to the largest number of them."""

    x: Array
    x_extra: Array
    mask: Array


@jax.tree_util.register_pytree_node_class
class HNPEPosterior:
    """Posterior of local and shared parameters; made by :class:`HNPE`, a pytree.

    Every method takes an observation, or uses the one that :meth:`condition` has stored: `x` of the shape of one
    simulated recording; `x_extra`, shape (N, ...), with any N up to the largest seen in training, which never compiles
    anew; `mask`, shape (N,), for those that count. They run inside `jax.jit`, `jax.vmap` (over observations, too) and
    `jax.grad`; values are checked outside only.

    Parameters
    ----------
    spec, params, standardizer, observation, about
        Internal: use :meth:`HNPE.build_posterior`.

    Examples
    --------
    >>> import jax
    >>> from gyri.hnpe import HNPE, ToyModel
    >>> model = ToyModel(noise=0.05)
    >>> posterior = HNPE(model.prior).fit(0, model, n_simulations=500, n_extra=(0, 3), max_epochs=3, progress=False)
    >>> here = posterior.condition([0.25], [[0.4], [0.3]])
    >>> here.log_prob(here.sample(jax.random.key(0), (7,))).shape
    (7,)
    """

    def __init__(
        self, spec: Spec, params: PyTree, standardizer: Standardizer, observation: Any = None, about: Any = None
    ) -> None:
        self.spec, self.params, self.standardizer, self.observation = spec, params, standardizer, observation
        self._about = about

    def tree_flatten(self) -> tuple[tuple, tuple]:
        """Arrays, and what compiled functions depend on."""
        return (self.params, self.standardizer, self.observation), (self.spec, _Ignored(self._about))

    @classmethod
    def tree_unflatten(cls, aux: tuple, children: tuple) -> "HNPEPosterior":
        """Inverse of :meth:`tree_flatten`."""
        spec, about = aux
        params, standardizer, observation = children
        return cls(spec, params, standardizer, observation, about.value)

    @property
    def prior(self) -> HierarchicalPrior:
        """The prior that it was trained for."""
        return self.spec.prior

    @property
    def factorized(self) -> bool:
        """Whether shared and local parameters have a flow each."""
        return self.spec.static.tree.joint is None

    def _network(self) -> Network:
        return eqx.nn.inference_mode(join_network(self.params, self.spec.static))

    # --- observations -------------------------------------------------------------------------------------------------

    def condition(self, x: Any, x_extra: Any = None, mask: Any = None) -> "HNPEPosterior":
        """Store an observation.

        Parameters
        ----------
        x : array, shape of one recording
            The recording of interest.
        x_extra : array, shape (N, ...), optional
            Others.
        mask : array of bool, shape (N,), optional
            Which of them count; all by default.

        Returns
        -------
        HNPEPosterior
            A new one.

        Raises
        ------
        ValueError
            Another shape than in training, too many others, values that are not finite.
        """
        observation = self._observe(x, x_extra, mask)
        return HNPEPosterior(self.spec, self.params, self.standardizer, observation, self._about)

    def _observe(self, x: Any, x_extra: Any, mask: Any) -> Observation:
        """Check an observation and pad it; without one, the stored one."""
        if x is None:
            if x_extra is not None or mask is not None:
                raise ValueError("x: expected a recording beside x_extra and mask, got None")
            if self.observation is None:
                raise ValueError("x: expected a recording, or a posterior that condition was called on, got None")
            return self.observation
        event, n_max, dtype = self.spec.event_shape, self.spec.n_max, self.spec.dtype
        x = check_array(x, "x", shape=event)
        shape = (None, *event)
        x_extra = np.zeros((0, *event), dtype) if x_extra is None else _as_array(x_extra)
        if np.ndim(x_extra) and np.shape(x_extra)[0] == 0:
            x_extra = np.zeros((0, *event), dtype)
        n = np.shape(x_extra)[0] if np.ndim(x_extra) else 0
        check_array(np.empty(np.shape(x_extra), bool), "x_extra", shape=shape, allow_empty=True)  # values come later
        if n > n_max:
            raise ValueError(f"x_extra: expected at most {n_max} others, as in training, got {n}")
        mask = np.ones(n, bool) if mask is None else _as_array(mask)
        if np.shape(mask) != (n,) or mask.dtype != bool:
            raise ValueError(f"mask: expected bool of shape ({n},), got {mask.dtype} of shape {np.shape(mask)}")
        if self.spec.static.tree.aggregate == "stack" and (n != n_max or not (_is_tracer(mask) or np.all(mask))):
            raise ValueError(f'x_extra: expected {n_max} others, all counting, for aggregate="stack", got {n}')
        # On the host where possible: shapes that change with N would compile each of these steps anew.
        concrete = not any(map(_is_tracer, (x, x_extra, mask)))
        xp = np if concrete else jnp
        x_extra = xp.where(xp.asarray(mask).reshape(n, *[1] * len(event)), xp.asarray(x_extra, dtype=dtype), 0)
        check_array(x_extra, "x_extra", allow_empty=True)
        pad = lambda leaf: xp.pad(leaf, [(0, n_max - n), *[(0, 0)] * (leaf.ndim - 1)])
        x, x_extra, mask = xp.asarray(x, dtype=dtype), pad(x_extra.astype(dtype)), pad(xp.asarray(mask))
        return Observation(*map(jnp.asarray, (x, x_extra, mask)))

    def _at(self, x: Any, x_extra: Any, mask: Any) -> "HNPEPosterior":
        """Copy with an observation, and nothing that would compile anew."""
        return HNPEPosterior(self.spec, self.params, self.standardizer, self._observe(x, x_extra, mask))

    def _context(self, network: Network) -> tuple[Array, Array]:
        x, x_extra, mask = self.observation
        return network.condition(self.standardizer(x), self.standardizer(x_extra), mask)

    # --- draws and densities ------------------------------------------------------------------------------------------

    def sample(
        self,
        key: Key[Array, ""] | Array | int,
        sample_shape: tuple[int, ...] = (),
        x: Any = None,
        x_extra: Any = None,
        mask: Any = None,
    ) -> Float[Array, "*n dim"]:
        """Draw parameters; they always lie in the prior's support.

        Parameters
        ----------
        key : PRNG key or int
            Randomness.
        sample_shape : tuple of int
            How many.
        x, x_extra, mask : array, optional
            An observation, see the class.

        Returns
        -------
        Array, shape (..., dim)
            Local parameters, then shared ones.
        """
        return _sample(self._at(x, x_extra, mask), as_key(key), tuple(sample_shape))

    def log_prob(self, theta: Any, x: Any = None, x_extra: Any = None, mask: Any = None) -> Float[Array, "*n"]:
        """Log density; minus infinity outside the prior's support.

        Parameters
        ----------
        theta : array, shape (..., dim)
            Local parameters, then shared ones.
        x, x_extra, mask : array, optional
            An observation, see the class.

        Returns
        -------
        Array, shape (...)
            Log density of theta.

        Raises
        ------
        ValueError
            Wrong shapes.
        """
        theta = self.prior.check_theta(theta, finite=False)
        return _log_prob(self._at(x, x_extra, mask), theta.astype(self.spec.dtype))

    def log_prob_shared(self, shared: Any, x: Any = None, x_extra: Any = None, mask: Any = None) -> Float[Array, "*n"]:
        """Log density of the shared parameters alone.

        Parameters
        ----------
        shared : array, shape (..., n_shared)
            Shared parameters.
        x, x_extra, mask : array, optional
            An observation, see the class.

        Returns
        -------
        Array, shape (...)
            Log density, minus infinity outside the support.

        Raises
        ------
        ValueError
            Wrong shapes, or a posterior that is not factorized.
        """
        self._check_factorized()
        shared = self._check_part(shared, "shared", self.prior.n_shared)
        return _log_prob_shared(self._at(x, x_extra, mask), shared)

    def log_prob_local(
        self,
        local: Any,
        shared: Any,
        x: Any = None,
        x_extra: Any = None,
        mask: Any = None,
    ) -> Float[Array, "*n"]:
        """Log density of the local parameters given the shared ones.

        Parameters
        ----------
        local : array, shape (..., n_local)
            Local parameters.
        shared : array, shape (..., n_shared)
            Shared parameters.
        x, x_extra, mask : array, optional
            An observation, see the class.

        Returns
        -------
        Array, shape (...)
            Log density, minus infinity outside the support.

        Raises
        ------
        ValueError
            Wrong shapes, or a posterior that is not factorized.
        """
        self._check_factorized()
        local = self._check_part(local, "local", self.prior.n_local)
        shared = self._check_part(shared, "shared", self.prior.n_shared)
        return _log_prob_local(self._at(x, x_extra, mask), local, shared)

    def _check_factorized(self) -> None:
        if not self.factorized:
            raise ValueError("factorized: expected a posterior trained with factorized=True for densities of its parts")

    def _check_part(self, value: Any, name: str, width: int) -> Array:
        return check_points(value, name, width).astype(self.spec.dtype)

    def map(
        self, key: Key[Array, ""] | Array | int, x: Any = None, x_extra: Any = None, mask: Any = None
    ) -> Float[Array, "dim"]:
        """Mode of the density of the parameters: gradient ascent from the best of many draws.

        Parameters
        ----------
        key : PRNG key or int
            Of the draws.
        x, x_extra, mask : array, optional
            An observation, see the class.

        Returns
        -------
        Array, shape (dim,)
            Parameters of the highest density found.
        """
        return _maximize(self._at(x, x_extra, mask), as_key(key))

    def to_arviz(self, samples: Any) -> Any:
        """Draws as ArviZ's data, by the names of the parameters; needs ``pip install "gyri-hnpe[arviz]"``.

        Parameters
        ----------
        samples : array, shape (n, dim) or (n_chains, n, dim)
            From :meth:`sample`.

        Returns
        -------
        arviz.InferenceData
            With a group ``posterior`` (a DataTree from ArviZ 1.0 on).

        Raises
        ------
        ImportError
            Without ArviZ.
        ValueError
            Another shape.
        """
        samples = np.asarray(check_array(samples, "samples", ndim=(2, 3)))
        if samples.shape[-1] != self.prior.dim:
            raise ValueError(f"samples: expected shape (..., {self.prior.dim}), got {samples.shape}")
        arviz = import_extra("arviz", "gyri-hnpe[arviz]", "to hand over draws")
        samples = samples[None] if samples.ndim == 2 else samples
        return arviz.from_dict({"posterior": self.to_dict(samples)}) if _takes_groups(arviz) else arviz.from_dict(
            posterior=self.to_dict(samples)
        )  # fmt: skip

    def to_dict(self, samples: Any) -> dict[str, Any]:
        """Draws by the names of the parameters.

        Parameters
        ----------
        samples : array, shape (..., dim)
            From :meth:`sample`.

        Returns
        -------
        dict of array, each of shape (...)
            Local parameters, then shared ones.
        """
        return {name: samples[..., i] for i, name in enumerate(self.prior.names)}

    # --- disk ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> None:
        """Write to one file, without pickle, the observation included.

        Parameters
        ----------
        path : path-like
            Where, exactly; an existing file is replaced.
        """
        meta = {
            "version": __version__, "prior": encode_prior(self.prior), "names": list(self.prior.names),
            "network": self._about, "event_shape": list(self.spec.event_shape), "n_max": self.spec.n_max,
            "space": _SPACE,
        }  # fmt: skip
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self.params)]
        observation = None if self.observation is None else list(self.observation)
        save_pytree(path, {"params": leaves, "standardizer": list(self.standardizer), "observation": observation},
                    kind=KIND, meta=meta)  # fmt: skip

    @staticmethod
    def load(
        path: str | os.PathLike,
        *,
        prior: HierarchicalPrior | None = None,
        embedding: Callable | None = None,
        aggregate: Callable | None = None,
    ) -> "HNPEPosterior":
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : path-like
            The file.
        prior : HierarchicalPrior, optional
            Needed where a law is a function or no plain numpyro distribution; otherwise the file has it.
        embedding, aggregate : callable, optional
            Those of training, where there were any; Equinox modules get their trained weights back.

        Returns
        -------
        HNPEPosterior
            The saved one.

        Raises
        ------
        ValueError
            A file of something else, of a newer version, a damaged one, or an argument that is missing or does not fit.
        """
        tree, meta = load_pytree(path, kind=KIND)
        about, plain = dict(meta["network"]), meta["prior"]
        if prior is None:
            if plain is None:
                raise ValueError(f"prior: expected the prior of training, which {path} cannot hold, got None")
            prior = decode_prior(plain)
        if list(prior.names) != meta["names"]:
            raise ValueError(f"prior: expected parameters {meta['names']}, got {list(prior.names)}")
        if "space" not in meta and (np.isinf(prior.bounds.lower) & np.isfinite(prior.bounds.upper)).any():
            raise ValueError(f"path: expected a posterior of this version, got {path}: half-lines with an upper bound "
                             "had the opposite sign then; train it again")  # fmt: skip
        for name, given, needed in (
            ("embedding", embedding, about["embedding"]),
            ("aggregate", aggregate, about["aggregate"] is None),
        ):
            if needed and given is None:
                raise ValueError(f"{name}: expected the callable of training, which {path} cannot hold, got None")
            if given is not None and not needed:
                raise ValueError(f"{name}: expected None, as {path} was trained without one, got {given!r}")
        about["aggregate"], about["embedding"] = about["aggregate"] or aggregate, embedding
        event, n_max = tuple(meta["event_shape"]), int(meta["n_max"])
        about["hidden"] = tuple(about["hidden"])
        network = make_network(
            jax.random.key(0), event_shape=event, n_max=n_max, n_local=prior.n_local, n_shared=prior.n_shared, **about
        )
        params, static = split_network(network)
        old, structure = jax.tree.flatten(params)
        if [leaf.shape for leaf in old] != [leaf.shape for leaf in tree["params"]]:
            raise ValueError(f"embedding: expected modules whose weights fit those of {path}, got other shapes")
        params = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in tree["params"]])
        spec = Spec(prior, static, event, n_max, about["dtype"])
        observation = None if tree["observation"] is None else Observation(*map(jnp.asarray, tree["observation"]))
        standardizer = Standardizer(*map(jnp.asarray, tree["standardizer"]))
        return HNPEPosterior(spec, params, standardizer, observation, meta["network"])


class _Ignored:
    """A part of a pytree's structure that compiled functions do not depend on."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Ignored)


def _takes_groups(arviz: Any) -> bool:
    """Whether this is ArviZ 1.0 or later, whose `from_dict` takes a dict of groups."""
    return int(arviz.__version__.split(".")[0]) >= 1


def _is_tracer(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)


def _as_array(x: Any) -> Any:
    return x if isinstance(x, jax.Array) else np.asarray(x)


# --- compiled ---------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=2)
def _sample(posterior: HNPEPosterior, key: Array, shape: tuple[int, ...]) -> Array:
    network = posterior._network()
    context = posterior._context(network)
    keys = jax.random.split(key, int(np.prod(shape)))
    z = jax.vmap(network.sample, (0, None))(keys, context)
    return from_standard(posterior.prior, z).reshape(*shape, posterior.prior.dim)


def _over(function: Callable, *values: Array) -> Array:
    """Map a function of vectors over all leading axes."""
    leading = jnp.broadcast_shapes(*(value.shape[:-1] for value in values))
    flat = [jnp.broadcast_to(v, (*leading, v.shape[-1])).reshape(-1, v.shape[-1]) for v in values]
    return jax.vmap(function)(*flat).reshape(leading)


def _density(posterior: HNPEPosterior, log_q: Callable, theta: Array, at: slice) -> Array:
    """Log density of coordinates, where they lie in the support."""
    prior = posterior.prior
    inside = prior._inside(theta, closed=False, at=at)
    # A safe value where the result is thrown away: gradients stay finite.
    z, log_det = to_standard(prior, jnp.where(inside, theta, prior._center(theta.dtype, at)), at)
    return jnp.where(inside.all(-1), _over(log_q, z) + log_det.sum(-1), -jnp.inf)


@jax.jit
def _log_prob(posterior: HNPEPosterior, theta: Array) -> Array:
    network = posterior._network()
    context = posterior._context(network)
    return _density(posterior, lambda z: network.log_prob(z, context), theta, slice(None))


@jax.jit
def _log_prob_shared(posterior: HNPEPosterior, shared: Array) -> Array:
    network = posterior._network()
    context = posterior._context(network)
    at = slice(posterior.prior.n_local, None)
    return _density(posterior, lambda z: network.log_prob_shared(z, context), shared, at)


@jax.jit
def _log_prob_local(posterior: HNPEPosterior, local: Array, shared: Array) -> Array:
    network = posterior._network()
    context = posterior._context(network)
    n = posterior.prior.n_local
    leading = jnp.broadcast_shapes(local.shape[:-1], shared.shape[:-1])
    theta = jnp.concatenate([jnp.broadcast_to(v, (*leading, v.shape[-1])) for v in (local, shared)], -1)
    prior = posterior.prior
    inside = prior._inside(theta, closed=False)
    z, log_det = to_standard(prior, jnp.where(inside, theta, prior._center(theta.dtype)))
    log_q = _over(lambda z: network.log_prob_local(z[:n], z[n:], context), z)
    return jnp.where(inside.all(-1), log_q + log_det[..., :n].sum(-1), -jnp.inf)


@jax.jit
def _maximize(posterior: HNPEPosterior, key: Array) -> Array:
    """Adam on the density of theta, not of z, whose mode is elsewhere."""
    import optax  # as long to import as half of this package

    network, prior = posterior._network(), posterior.prior
    context = posterior._context(network)

    def log_q(z: Array) -> Array:
        theta = from_standard(prior, z)
        return network.log_prob(z, context) + to_standard(prior, theta)[1].sum()

    keys = jax.random.split(key, _N_CANDIDATES)
    z = jax.vmap(network.sample, (0, None))(keys, context)
    values = jax.vmap(log_q)(z)
    z = z[jax.lax.top_k(values, _N_STARTS)[1]]
    optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, _N_STEPS))

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        z, best, best_value, opt_state = state
        value, gradient = jax.vmap(jax.value_and_grad(log_q))(z)
        better = value > best_value
        best, best_value = jnp.where(better[:, None], z, best), jnp.where(better, value, best_value)
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)
        updates, opt_state = optimizer.update(-gradient, opt_state)
        return (z + updates, best, best_value, opt_state), None

    start = (z, z, jnp.full(_N_STARTS, -jnp.inf, z.dtype), optimizer.init(z))
    (_, best, best_value, _), _ = jax.lax.scan(step, start, None, _N_STEPS)
    return from_standard(prior, best[jnp.argmax(best_value)])
