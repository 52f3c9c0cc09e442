"""The variational family: laws of latent sites, laid over a run of the model.

Handlers of NumPyro that run the model itself: plates, scales, shapes and the priors at the sampled parents come free.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, PyTree
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import ReshapeTransform, Transform

from . import flows
from .plates import FixPlates, unconstrained_shape

if TYPE_CHECKING:
    from .setup import Setup


class Term(NamedTuple):
    """What a site adds to log p and log q: arrays over its copies, to be multiplied by their scales."""

    plates: tuple[str, ...]
    scale_p: Any
    log_p: Array | float
    scale_q: Any
    log_q: Array | float


def unmask(fn: Any) -> tuple[Any, Any]:
    """A law without the mask of `handlers.mask`, and the mask over its batch (None: there is none)."""
    if isinstance(fn, dist.MaskedDistribution):
        return fn.base_dist, fn._mask
    if isinstance(fn, dist.ExpandedDistribution):
        base, mask = unmask(fn.base_dist)
        return (fn, None) if mask is None else (base.expand(fn.batch_shape), mask)
    if isinstance(fn, dist.Independent):
        base, mask = unmask(fn.base_dist)
        if mask is None:
            return fn, None
        n = fn.reinterpreted_batch_ndims
        mask = jnp.broadcast_to(mask, base.batch_shape).all(tuple(range(-n, 0))) if n else mask
        return base.to_event(n), mask
    return fn, None


class _Unconstrain(Transform):
    """Inverse of a transform whose values are finite even at the edge of the support."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    @property
    def domain(self) -> Any:
        """Constrained values."""
        return self.transform.codomain

    @property
    def codomain(self) -> Any:
        """Unconstrained values."""
        return self.transform.domain

    def _inside(self, x: Array) -> Array:
        n = self.transform.codomain.event_dim
        v = jax.lax.stop_gradient(self.transform._inverse(x))
        good = jnp.isfinite(v).all(tuple(range(v.ndim - self.transform.domain.event_dim, v.ndim)))
        middle = self.transform(jnp.zeros(v.shape, v.dtype))
        return jnp.where(good.reshape(*good.shape, *[1] * n), x, middle)

    def __call__(self, x: Array) -> Array:
        return self.transform._inverse(self._inside(x))

    def _inverse(self, y: Array) -> Array:
        return self.transform(y)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        return -self.transform.log_abs_det_jacobian(y, self._inside(x), None)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.transform.forward_shape(shape)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.transform.inverse_shape(shape)

    def tree_flatten(self) -> tuple[tuple, tuple]:
        return (self.transform,), (("transform",), {})


class Family(FixPlates):
    """The guide's laws laid over a run of the model.

    With `param` (a function of names like `numpyro.param`) its latent sites go on to the handlers outside, as a guide's
    do. With `params` (all of the guide's and the model's parameters) nothing does, and the terms of the ELBO are kept.
    """

    def __init__(
        self,
        setup: "Setup",
        indices: Mapping[str, Array],
        param: Callable | None,
        encodings: Mapping[str, Array] | None,
        *,
        params: Mapping[str, Any] | None = None,
        rows: Mapping[str, Array] | None = None,
        noise: Mapping[str, Array] | None = None,
        values: Mapping[str, Array] | None = None,
    ) -> None:
        super().__init__(indices=indices)
        self.setup, self.encodings = setup, encodings or {}
        self.param, self.params, self.rows = param, params or {}, rows or {}
        self.noise, self.values = noise or {}, values
        self.seen: dict[str, Array] = {}  # of each site, what its children's flows see
        self.centres: dict[str, Array] = {}
        self.samples: dict[str, Array] = {}
        self.terms: dict[str, Term] = {}

    def process_message(self, msg: Any) -> None:
        """Give plates their indices and latent sites their laws; keep the rest of the model from the outside."""
        super().process_message(msg)
        kind = msg["type"]
        if kind == "deterministic":
            msg["stop"] = True
        elif kind == "param" and msg["name"] in self.params:
            msg["value"] = self.params[msg["name"]]
            msg["stop"] = True
        elif kind == "sample":
            if msg["is_observed"]:
                if self.param is None:
                    log_p = msg["fn"].log_prob(msg["value"])
                    self.terms[msg["name"]] = Term(self._plates(msg), _or_one(msg["scale"]), log_p, 1.0, 0.0)
                msg["stop"] = True
            elif self.param is not None:
                self._show(msg)
            else:
                self._keep(msg)

    def postprocess_message(self, msg: Any) -> None:
        """See what became of a latent site."""
        if self.param is not None and msg["type"] == "sample" and not msg.get("stop"):
            drawn = msg["intermediates"][-1][0] if msg.get("intermediates") else None
            self._remember(msg["name"], msg["fn"], msg["value"], drawn)

    def _plates(self, msg: Any) -> tuple[str, ...]:
        return tuple(frame.name for frame in msg["cond_indep_stack"])

    def _plate_scale(self, plates: tuple[str, ...]) -> float:
        ratios = (self.setup.graph.plates[name].size / self.indices[name].shape[0] for name in plates)
        return math.prod(ratios, start=1.0)

    def _law(self, name: str, fn: Any) -> Any:
        """Law of the copies of a latent site, given those of its parents: q_i(. | parents; phi_i, E)."""
        setup, guide = self.setup, self.setup.guide
        get = self.param or (lambda name, **_: self.params[name])
        if guide.amortize:
            flow, weights = guide.flow, get(setup.flow_name(name))
            condition = [self.encodings[name] if setup.encodes else self._row(name)]
        else:
            flow, weights, condition = _per_copy(guide.flow, setup.unravel[name]), self._row(name), []
        if guide.dependence == "parents":
            condition += [self.seen[parent] for parent in setup.graph.sites[name].parents]
        batch, dim = tuple(fn.batch_shape), setup.graph.sites[name].unconstrained_size
        condition = [jnp.broadcast_to(part, (*batch, part.shape[-1])) for part in condition]
        c = jnp.concatenate(condition, -1) if condition else jnp.zeros((*batch, 0))
        move = flows.FlowTransform(flow, weights, c)
        if guide.dependence == "parents":
            self.centres[name] = flow.forward(weights, jnp.zeros((*batch, dim), c.dtype), c)[0]
        prior, mask = unmask(fn)
        transform = biject_to(prior.support)
        shape = unconstrained_shape(fn)
        flatten = [] if shape == (dim,) else [ReshapeTransform((dim,), shape)]
        unflatten = [] if shape == (dim,) else [ReshapeTransform(shape, (dim,))]
        if guide.dependence == "prior":
            chain = [_Unconstrain(transform), *flatten, move, *unflatten, transform]
            law = dist.TransformedDistribution(prior, chain)
        else:
            dtype = _dtype_of(weights)
            base = dist.Normal(jnp.zeros((), dtype), jnp.ones((), dtype)).expand((*batch, dim)).to_event(1)
            law = dist.TransformedDistribution(base, [move, *unflatten, transform])
        return law if mask is None else law.mask(mask)

    def _row(self, name: str) -> Array:
        """What a copy has of its own: from the table, which the plates around the site index."""
        if self.param is not None:
            return self.param(self.setup.table_name(name), event_dim=1)
        return self.rows[name]

    def _remember(self, name: str, fn: Any, value: Array, drawn: Array | None = None) -> None:
        """Keep a value, and what children see of it: how far it is from where its law is centred.

        The family is the same as with the value itself, but a child's slope and shift are learnt apart from each other.
        """
        self.samples[name] = value
        z = biject_to(fn.support)._inverse(value) if drawn is None else drawn
        batch = z.shape[: z.ndim - len(unconstrained_shape(fn))]
        z = z.reshape(*batch, -1)
        self.seen[name] = z - self.centres[name] if name in self.centres else z

    def _show(self, msg: Any) -> None:
        msg["fn"] = self._law(msg["name"], msg["fn"])
        scale = self._plate_scale(self._plates(msg))  # without one that the model gives its prior
        msg["scale"] = None if scale == 1 else scale

    def _keep(self, msg: Any) -> None:
        name, prior = msg["name"], msg["fn"]
        law = self._law(name, prior)
        plates = self._plates(msg)
        if self.values is not None:
            value, drawn = self.values[name], None
            log_q = law.log_prob(value)
        else:
            flow, mask = unmask(law)
            value, intermediates = _push(flow, self.noise[name])
            drawn = intermediates[-1][0]
            log_q = flow.log_prob(value, intermediates)
            log_q = log_q if mask is None else jnp.where(mask, log_q, 0)
        self._remember(name, prior, value, drawn)
        # A scale that the model gives its prior besides the plates' is no matter of the guide.
        scale_q = self._plate_scale(plates)
        self.terms[name] = Term(plates, _or_one(msg["scale"]), prior.log_prob(value), scale_q, log_q)
        msg["value"], msg["stop"] = value, True


def _or_one(scale: Any) -> Any:
    return 1.0 if scale is None else scale


class Reader(FixPlates):
    """Read what a model observes on given copies; its latent sites get some value of the right shape."""

    def __init__(self, setup: "Setup", indices: Mapping[str, Array]) -> None:
        super().__init__(indices=indices)
        self.setup = setup
        self.obs: dict[str, Array] = {}
        self.masks: dict[str, Array] = {}

    def process_message(self, msg: Any) -> None:
        """Fill latent sites, keep observations."""
        super().process_message(msg)
        if msg["type"] == "deterministic":
            msg["stop"] = True
        elif msg["type"] == "sample":
            fn = msg["fn"]
            if not msg["is_observed"]:
                transform = biject_to(fn.support)
                shape = tuple(fn.batch_shape) + unconstrained_shape(fn)
                msg["value"] = transform(jnp.zeros(shape))
            elif msg["name"] in self.setup.observed:
                self._read(msg["name"], fn, jnp.asarray(msg["value"]))
            msg["stop"] = True

    def _read(self, name: str, fn: Any, value: Array) -> None:
        plates = self.setup.graph.sites[name].plates
        batch, n_event = tuple(fn.batch_shape), len(fn.event_shape)
        if jnp.iscomplexobj(value):
            raise ValueError(f"model: observed site {name!r} is complex, expected real numbers")
        value = jnp.broadcast_to(value, (*batch, *fn.event_shape))
        _, mask = unmask(fn)
        mask = jnp.broadcast_to(True if mask is None else mask, batch)
        x = self.setup.to_axes(value, plates, n_event)
        x = x.reshape(*x.shape[: x.ndim - n_event], -1)
        self.obs[name] = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
        self.masks[name] = self.setup.to_axes(mask, plates, 0)


def _push(law: Any, noise: Array) -> tuple[Array, list]:
    """A draw of a transformed law from standard normal numbers, or from a key; with what its density needs."""
    if jax.dtypes.issubdtype(noise.dtype, jax.dtypes.prng_key):
        return law.sample_with_intermediates(noise)
    x, intermediates = noise.astype(_dtype_of(law.transforms[0].params)), []
    for transform in law.transforms:
        y, inner = transform.call_with_intermediates(x)
        intermediates.append([x, inner])
        x = y
    return x, intermediates


def _dtype_of(weights: PyTree) -> Any:
    """Of the draws of a flow with these weights."""
    return jnp.result_type(*jax.tree.leaves(weights))


def _per_copy(flow: Any, unravel: Callable[[Array], PyTree]) -> flows.ConditionalFlow:
    """The flow with weights of its own for each copy, given as vectors."""

    def over(method: Callable, params: Array, u: Array, c: Array) -> tuple[Array, Array]:
        shape = u.shape[:-1]
        n = math.prod(shape)
        rows = jnp.broadcast_to(params, (*shape, params.shape[-1])).reshape(n, -1)
        run = jax.vmap(lambda p, u, c: method(unravel(p), u, c))
        z, log_det = run(rows, u.reshape(n, -1), jnp.broadcast_to(c, (*shape, c.shape[-1])).reshape(n, c.shape[-1]))
        return z.reshape(u.shape), log_det.reshape(shape)

    return flows.ConditionalFlow(
        flow.init, lambda p, u, c: over(flow.forward, p, u, c), lambda p, z, c: over(flow.inverse, p, z, c)
    )
