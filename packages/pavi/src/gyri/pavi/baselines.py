"""Methods to compare with: cascading flows with an auxiliary process, and unbiased implicit variational inference."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import init_to_median
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.util import initialize_model
from numpyro.primitives import Messenger

from gyri.numerics.validation import as_key, check_option, check_positive_int

from .flows import apply_mlp, init_kernels, mlp_of
from .plates import PlateGraph, plate_graph
from .setup import signature_of
from .train import check_optimizer

_LINEAR = 3.0
_EDGE = 80.0  # where draws at the very edge of a support go in unconstrained space

# --- gated highway flow -----------------------------------------------------------------------------------------------


def init_highway(key: Array, batch_shape: tuple[int, ...], dim: int, n_layers: int) -> PyTree:
    """Weights of gated highway flows near the identity, one flow for each place of a batch.

    Parameters
    ----------
    key : PRNG key
        Of the small random entries.
    batch_shape : tuple of int
        One flow each.
    dim : int
        Number of coordinates, auxiliary ones included.
    n_layers : int
        Number of layers.

    Returns
    -------
    dict of str to Array
        `gate` (*batch_shape, n_layers), `upper` and `lower` (*batch_shape, n_layers, dim, dim), `log_diagonal` and
        `shift` (*batch_shape, n_layers, dim).

    Examples
    --------
    >>> import jax
    >>> from gyri.pavi.baselines import init_highway
    >>> init_highway(jax.random.key(0), (20, 1), 10, 3)["upper"].shape
    (20, 1, 3, 10, 10)
    """
    # One draw for both: random numbers are what takes long to compile.
    upper, lower = 0.01 * jax.random.normal(key, (2, *batch_shape, n_layers, dim, dim))
    zeros = jnp.zeros((*batch_shape, n_layers, dim))
    # Shifted to where softplus is nearly a line, and back by the last layer: the reverse law has little to catch up.
    shift = zeros.at[..., :-1, :].set(_LINEAR).at[..., -1, :].set(-_LINEAR * (n_layers - 1))
    return {
        "gate": jnp.full((*batch_shape, n_layers), 2.0),
        "upper": upper,
        "lower": lower,
        "log_diagonal": zeros,
        "shift": shift,
    }


def highway(params: PyTree, x: Float[Array, "... dim"], n_gated: int) -> tuple[Float[Array, "... dim"], Array]:
    r"""Gated highway flow and the logarithm of its Jacobian's determinant.

    With :math:`r = \sigma(l)` on the first coordinates and 0 on the auxiliary ones, each layer is

    .. math::
        y_1 = r x + (1 - r) U x, \quad y_2 = r y_1 + (1 - r)(L y_1 + b), \quad y_3 = r y_2 + (1 - r)
        \mathrm{softplus}(y_2)

    with U upper triangular with a positive diagonal, L lower triangular with ones on it; the last layer stops at
    :math:`y_2`.

    Parameters
    ----------
    params : dict
        As of `init_highway`.
    x : Array, shape (..., dim)
        One point for each place of the batch.
    n_gated : int
        Number of coordinates that are not auxiliary.

    Returns
    -------
    y : Array, shape (..., dim)
        The point that `x` goes to.
    log_det : Array, shape (...)
        Of the Jacobian.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from gyri.pavi.baselines import highway, init_highway
    >>> params = init_highway(jax.random.key(0), (), 3, 2)
    >>> matrix = jax.jacobian(lambda x: highway(params, x, 1)[0])(jnp.ones(3))
    >>> log_det = highway(params, jnp.ones(3), 1)[1]
    >>> bool(abs(jnp.linalg.slogdet(matrix)[1] - log_det) < 1e-5)
    True

    References
    ----------
    Ambrogioni, Silvestri, van Gerven (2021), Automatic variational inference with cascading flows.
    """
    dim, n_layers = x.shape[-1], params["gate"].shape[-1]
    gated = jnp.arange(dim) < n_gated
    log_det = jnp.zeros(x.shape[:-1], x.dtype)
    for k in range(n_layers):
        r = jax.nn.sigmoid(params["gate"][..., k, None]) * gated
        diagonal = jnp.exp(params["log_diagonal"][..., k, :])
        upper, lower = jnp.triu(params["upper"][..., k, :, :], 1), jnp.tril(params["lower"][..., k, :, :], -1)
        x = r * x + (1 - r) * (diagonal * x + (upper @ x[..., None])[..., 0])
        log_det += jnp.log(r + (1 - r) * diagonal).sum(-1)
        x = x + (1 - r) * ((lower @ x[..., None])[..., 0] + params["shift"][..., k, :])
        if k < n_layers - 1:
            log_det += jnp.log(r + (1 - r) * jax.nn.sigmoid(x)).sum(-1)
            x = r * x + (1 - r) * jax.nn.softplus(x)
    return x, log_det


# --- cascading flows --------------------------------------------------------------------------------------------------


class AutoCascadingFlow(AutoGuide):
    r"""Cascading flows: the model's own laws go through a flow each, coupled by auxiliaries that run backwards.

    Every ground latent has an auxiliary vector, whose mean is a weighted sum of its children's. A draw from the
    latent's law given its drawn parents, joined with the auxiliary, goes through a gated highway flow with weights of
    its own. With :math:`\epsilon'` the auxiliaries after their flows and any law r of them, Trace_ELBO of this guide
    is the augmented bound

    .. math:: E[\log p(\Theta, X) + \log r(\epsilon') - \log q(\Theta, \epsilon')] \le \log p(X)

    The number of weights grows with the number of ground latents. Plates are never subsampled.

    Parameters
    ----------
    model : callable
        A NumPyro model with continuous latents whose laws can be reparameterised.
    auxiliary_size : int
        Length of each auxiliary.
    n_layers : int
        Of each flow.
    reverse : {"gaussian", "prior"}
        r: a Gaussian with learnt mean and diagonal for each ground latent, or the auxiliaries' law before the flows.
    prefix : str
        Of the parameters' names.

    Raises
    ------
    ValueError
        An unknown option; at the first call, a discrete latent, or one whose law cannot be reparameterised.

    Examples
    --------
    >>> import jax, optax
    >>> from numpyro.infer import SVI, Trace_ELBO
    >>> from gyri.pavi import models
    >>> from gyri.pavi.baselines import AutoCascadingFlow
    >>> _, x = models.simulate_gre(0, 5, 10, 2)
    >>> guide = AutoCascadingFlow(models.gre)
    >>> svi = SVI(models.gre, guide, optax.adam(1e-2), Trace_ELBO(num_particles=4))
    >>> result = svi.run(jax.random.key(0), 5, x, progress_bar=False)
    >>> guide.sample_posterior(jax.random.key(1), result.params, x, sample_shape=(3,))["theta"].shape
    (3, 5, 1, 2)

    References
    ----------
    Ambrogioni, Silvestri, van Gerven (2021), Automatic variational inference with cascading flows.
    """

    def __init__(
        self,
        model: Callable,
        *,
        auxiliary_size: int = 8,
        n_layers: int = 3,
        reverse: str = "gaussian",
        prefix: str = "auto",
    ) -> None:
        super().__init__(model, prefix=prefix)
        self.auxiliary_size = check_positive_int(auxiliary_size, "auxiliary_size")
        self.n_layers = check_positive_int(n_layers, "n_layers")
        self.reverse = check_option(reverse, "reverse", ("gaussian", "prior"))
        self._programs: dict[Any, Callable] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Draw all latents; as a NumPyro guide.

        Parameters
        ----------
        *args, **kwargs
            The model's.

        Returns
        -------
        dict of str to Array
            Site to draw, in the model's shapes.
        """
        graph = plate_graph(self.model, *args, **kwargs)
        params = {name: self._params(graph, name) for name, site in graph.sites.items() if not site.observed}
        before = self._draw_auxiliaries(graph, params)
        run = _Cascade(params, before, self.reverse, partial(_log_auxiliary, graph, params))
        hidden = lambda msg: msg["type"] in ("sample", "deterministic") and msg["name"] not in params
        with handlers.block(hide_fn=hidden), run:
            self.model(*args, **kwargs)
        return run.drawn

    def _params(self, graph: PlateGraph, name: str) -> dict[str, Any]:
        """Weights of a site: of its copies' flows, of their children, and of the reverse law."""
        site = graph.sites[name]
        shape = graph.batch_shape(site.plates)
        dim = site.unconstrained_size + self.auxiliary_size
        start = lambda key: init_highway(key, shape, dim, self.n_layers)
        params = {"flow": numpyro.param(f"{name}_{self.prefix}_highway$params", start)}
        children = _children(graph, name)
        zeros = {child: jnp.zeros(_joint_shape(graph, name, child)) for child in children}
        if children:
            params["children"] = numpyro.param(
                f"{name}_{self.prefix}_children$params", {"own": jnp.zeros(shape), "children": zeros}
            )
        if self.reverse == "gaussian":
            rows = jnp.zeros((*shape, self.auxiliary_size))
            params["reverse"] = numpyro.param(f"{name}_{self.prefix}_reverse$params", {"loc": rows, "log_sd": rows})
        return params

    def _draw_auxiliaries(self, graph: PlateGraph, params: Mapping[str, Any]) -> dict[str, Array]:
        """The process against the arrows, from the leaves to the roots."""
        drawn: dict[str, Array] = {}
        for name in reversed(list(params)):
            shape = (*graph.batch_shape(graph.sites[name].plates), self.auxiliary_size)
            noise = jax.random.normal(numpyro.prng_key(), shape)
            loc, sd = _auxiliary_law(graph, params, name, drawn)
            drawn[name] = loc + sd * noise
        return drawn

    def sample_posterior(
        self, rng_key: Any, params: dict, *args: Any, sample_shape: tuple[int, ...] = (), **kwargs: Any
    ) -> dict[str, Array]:
        """Draw from the guide.

        Parameters
        ----------
        rng_key : PRNG key or int
            Of the draws.
        params : dict
            As SVI returns them.
        *args, **kwargs
            The model's.
        sample_shape : tuple of int
            Number of draws.

        Returns
        -------
        dict of str to Array
            Site to draws, shape sample_shape + batch + event.
        """
        dynamic, static = eqx.partition((args, kwargs), eqx.is_array)

        def draw(key: Array, params: dict, dynamic: tuple) -> dict[str, Array]:
            args, kwargs = eqx.combine(dynamic, static)
            with handlers.block(), handlers.seed(rng_seed=key), handlers.substitute(data=params):
                return self(*args, **kwargs)

        signature = signature_of((args, kwargs))
        if signature not in self._programs:
            self._programs[signature] = jax.jit(jax.vmap(draw, (0, None, None)))
        keys = jax.random.split(as_key(rng_key), int(np.prod(sample_shape)))
        draws = self._programs[signature](keys, params, dynamic)
        return jax.tree.map(lambda value: value.reshape(sample_shape + value.shape[1:]), draws)

    def __getstate__(self) -> dict:
        """For copies and pickles: without what is compiled."""
        return {**super().__getstate__(), "_programs": {}}


def _children(graph: PlateGraph, name: str) -> list[str]:
    return [child for child, site in graph.sites.items() if name in site.parents and not site.observed]


def _joint_shape(graph: PlateGraph, name: str, child: str) -> tuple[int, ...]:
    """One place for each pair of a ground variable and its child: the plates of either."""
    own, other = graph.sites[name].plates, graph.sites[child].plates
    return graph.batch_shape(tuple(p for p in graph.plates if p in own or p in other))


def _auxiliary_law(
    graph: PlateGraph, params: Mapping[str, Any], name: str, auxiliaries: Mapping[str, Array]
) -> tuple[Array, Array]:
    """Mean and sd of a site's auxiliaries given those of its children: a softmax over children and own noise."""
    if "children" not in params[name]:
        return jnp.zeros(()), jnp.ones(())
    logits = params[name]["children"]
    own = logits["own"]
    top, total, mean = own, jnp.ones(own.shape), jnp.zeros((*own.shape, 1))
    for child, logit in logits["children"].items():
        inner = [p for p in graph.sites[child].plates if p not in graph.sites[name].plates]
        n_dims = max(logit.ndim, own.ndim)
        axes = tuple(n_dims + graph.plates[p].dim for p in inner)
        logit = logit.reshape((1,) * (n_dims - logit.ndim) + logit.shape)
        value = auxiliaries[child]
        value = value.reshape((1,) * (n_dims + 1 - value.ndim) + value.shape)
        new = jnp.maximum(top, _drop(logit.max(axes, keepdims=True), own.ndim))
        weights = jnp.exp(logit - new.reshape((1,) * (n_dims - own.ndim) + new.shape))
        scale = jnp.exp(top - new)
        total = scale * total + _drop(weights.sum(axes, keepdims=True), own.ndim)
        part = (weights[..., None] * value).sum(axes, keepdims=True)
        mean = scale[..., None] * mean + _drop(part, own.ndim + 1)
        top = new
    return mean / total[..., None], (jnp.exp(own - top) / total)[..., None]


def _drop(x: Array, ndim: int) -> Array:
    """Without the leading axes of length one that a site in fewer plates does not have."""
    return x.reshape(x.shape[x.ndim - ndim :])


def _log_auxiliary(graph: PlateGraph, params: Mapping[str, Any], name: str, auxiliaries: Mapping[str, Array]) -> Array:
    """Log density of a site's auxiliaries given those of its children, a value a copy."""
    loc, sd = _auxiliary_law(graph, params, name, auxiliaries)
    return dist.Normal(loc, sd).log_prob(auxiliaries[name]).sum(-1)


class _Cascade(Messenger):
    """Run a model, sending the draw of each latent through its flow."""

    def __init__(self, params: Mapping[str, Any], before: Mapping[str, Array], reverse: str, log_law: Callable) -> None:
        self.params, self.before, self.reverse, self.log_law = params, before, reverse, log_law
        self.drawn: dict[str, Array] = {}
        self.after: dict[str, Array] = {}
        super().__init__(None)

    def process_message(self, msg: Any) -> None:
        """Give a latent its value, and a law that knows the density of this value."""
        if msg["type"] == "plate":
            size = msg["args"][0]
            msg["value"], msg["args"] = jnp.arange(size), (size, size)
        if msg["type"] != "sample" or msg["name"] not in self.params:
            return
        name, fn = msg["name"], msg["fn"]
        if not fn.has_rsample:
            raise ValueError(f"model: the law of latent site {name!r}, {type(fn).__name__}, cannot be reparameterised")
        u = fn.rsample(numpyro.prng_key())
        to_support = biject_to(fn.support)
        v = jnp.nan_to_num(to_support.inv(u), nan=jnp.nan, posinf=_EDGE, neginf=-_EDGE)
        n_batch = len(fn.batch_shape)
        dim = int(np.prod(v.shape[n_batch:]))
        flat = v.reshape(*v.shape[:n_batch], dim)
        aux = jnp.broadcast_to(self.before[name], (*flat.shape[:-1], self.before[name].shape[-1]))
        y, log_det = highway(self.params[name]["flow"], jnp.concatenate([flat, aux], -1), dim)
        z = y[..., :dim].reshape(v.shape)
        theta, self.after[name] = to_support(z), y[..., dim:]
        slope = lambda z, x: _sum_to(to_support.log_abs_det_jacobian(z, x), n_batch)
        log_q = fn.log_prob(u) + slope(v, u) + self.log_law(name, self.before) - log_det - slope(z, theta)
        msg["value"] = self.drawn[name] = theta
        msg["infer"] = {}
        msg["fn"] = dist.Delta(theta, log_density=log_q - self._log_reverse(name), event_dim=fn.event_dim)

    def _log_reverse(self, name: str) -> Array:
        """Log density of the auxiliaries after their flows, a value a copy.

        Their own law needs those of the children, which the model draws later: the last site has the sum over all.
        """
        if self.reverse == "gaussian":
            law = self.params[name]["reverse"]
            return dist.Normal(law["loc"], jnp.exp(law["log_sd"])).log_prob(self.after[name]).sum(-1)
        if len(self.after) < len(self.params):
            return jnp.zeros(())
        total = sum(self.log_law(other, self.after).sum() for other in self.params)
        return total / self.after[name][..., 0].size  # the site's law sums it over its copies


def _sum_to(x: Array, ndim: int) -> Array:
    return x.sum(tuple(range(ndim, x.ndim))) if x.ndim > ndim else x


# --- unbiased implicit variational inference --------------------------------------------------------------------------


@dataclass(frozen=True)
class UIVIResult:
    """What `uivi_fit` finds.

    Attributes
    ----------
    params : dict
        Weights of the network, and the state of the sampler's step.
    log_joints : Array, shape (num_steps,)
        Mean of log p(z, X) over the draws of each step, z unconstrained; an ELBO is not known while training.
    """

    params: dict[str, Any]
    log_joints: Array
    log_joint: Callable = field(repr=False)
    constrain: Callable = field(repr=False)
    noise_dim: int = field(repr=False)

    def sample(self, key: Any, n: int) -> dict[str, Array]:
        """Draw latents.

        Parameters
        ----------
        key : PRNG key or int
            Of the draws.
        n : int
            Number of draws.

        Returns
        -------
        dict of str to Array, shape (n, *batch, *event)
            Constrained.
        """
        keys = jax.random.split(as_key(key), check_positive_int(n, "n"))
        return self._sample(self.params["network"], keys)

    @cached_property
    def _sample(self) -> Callable:
        def sample(constrain: Callable, network: PyTree, keys: Array) -> dict[str, Array]:
            return jax.vmap(lambda key: constrain(_draw(network, key, self.noise_dim)[0]))(keys)

        return _compile(sample, self.constrain)

    def elbo(self, key: Any, num_particles: int = 100, num_noise: int = 1000) -> Float[Array, ""]:
        r"""Estimate the ELBO from below.

        .. math:: E\Big[\log p(z, X) - \log \frac{1}{K + 1} \sum_{k=0}^{K} q(z \mid \epsilon_k)\Big]

        with :math:`\epsilon_0` the noise of z and all others independent: its mean rises to the ELBO with K.

        Parameters
        ----------
        key : PRNG key or int
            Of the draws.
        num_particles : int
            Number of draws of z.
        num_noise : int
            K.

        Returns
        -------
        Array, shape ()
            In nats.
        """
        num_noise = check_positive_int(num_noise, "num_noise", minimum=0)
        keys = jax.random.split(as_key(key), check_positive_int(num_particles, "num_particles"))
        return self._elbo(self.params["network"], keys, num_noise=num_noise)

    @cached_property
    def _elbo(self) -> Callable:
        def elbo(log_joint: Callable, network: PyTree, keys: Array, *, num_noise: int) -> Array:
            def one(key: Array) -> Array:
                key, other = jax.random.split(key)
                z, noise, _ = _draw(network, key, self.noise_dim)
                others = jax.random.normal(other, (num_noise, self.noise_dim))
                log_q = jax.vmap(partial(_log_conditional, network, z))(jnp.concatenate([noise[None], others]))
                return log_joint(z) - jax.nn.logsumexp(log_q) + jnp.log(1.0 + num_noise)

            return jax.lax.map(one, keys, batch_size=20).mean()

        return _compile(elbo, self.log_joint, static_argnames="num_noise")


def _compile(function: Callable, law: Callable, **options: Any) -> Callable:
    """``function(law, *args)`` as one program, of which the data that `law` holds are arguments, not constants."""
    dynamic, static = eqx.partition(law, eqx.is_array)
    run = lambda dynamic, *args, **kwargs: function(eqx.combine(dynamic, static), *args, **kwargs)
    return partial(jax.jit(run, **options), dynamic)


def _network(network: PyTree, noise: Array) -> tuple[Array, Array]:
    """Mean and sd of z given the noise."""
    loc, raw = jnp.split(apply_mlp(network["layers"], noise), 2, axis=-1)
    return network["loc"] + loc, jnp.exp(network["log_sd"] + 3 * jnp.tanh(raw / 3))


def _log_conditional(network: PyTree, z: Array, noise: Array) -> Array:
    loc, sd = _network(network, noise)
    return dist.Normal(loc, sd).log_prob(z).sum()


def _draw(network: PyTree, key: Array, noise_dim: int) -> tuple[Array, Array, Array]:
    draws = jax.random.normal(key, (noise_dim + network["loc"].size,))
    noise, u = draws[:noise_dim], draws[noise_dim:]
    loc, sd = _network(network, noise)
    return loc + sd * u, noise, u


def hmc(
    key: Array,
    log_prob: Callable,
    start: Array,
    step_size: Array | float,
    num_burn_in: int,
    num_kept: int,
    num_leapfrog: int,
) -> tuple[Float[Array, "num_kept dim"], Array]:
    """Hamiltonian Monte Carlo with a unit mass.

    Parameters
    ----------
    key : PRNG key
        Of momenta and acceptances.
    log_prob : callable
        Log density up to a constant.
    start : Array, shape (dim,)
        First state.
    step_size : Array, shape ()
        Of the leapfrog integrator.
    num_burn_in, num_kept, num_leapfrog : int
        Transitions that are dropped and kept, steps in each.

    Returns
    -------
    states : Array, shape (num_kept, dim)
        Kept states.
    acceptance : Array, shape ()
        Mean probability of acceptance over all transitions.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from gyri.pavi.baselines import hmc
    >>> states, acceptance = hmc(jax.random.key(0), lambda x: -0.5 * (x**2).sum(), jnp.zeros(1), 0.5, 100, 2000, 5)
    >>> bool(abs(states.std() - 1) < 0.1), bool(acceptance > 0.8)
    (True, True)
    """
    slope = jax.value_and_grad(log_prob)
    n = num_burn_in + num_kept
    normal_key, uniform_key = jax.random.split(key)
    momenta = jax.random.normal(normal_key, (n, *start.shape), start.dtype)
    uniforms = jax.random.uniform(uniform_key, (n,), start.dtype)

    def leap(_: Any, state: tuple) -> tuple:
        x, p, _, grad = state
        p = p + 0.5 * step_size * grad
        x = x + step_size * p
        value, grad = slope(x)
        return x, p + 0.5 * step_size * grad, value, grad

    def transition(state: tuple, noise: tuple) -> tuple[tuple, tuple]:
        x, value, grad = state
        p, uniform = noise
        new, new_p, new_value, new_grad = jax.lax.fori_loop(0, num_leapfrog, leap, (x, p, value, grad))
        log_ratio = new_value - value - 0.5 * (new_p**2).sum() + 0.5 * (p**2).sum()
        probability = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
        accept = uniform < probability
        state = jax.tree.map(partial(jnp.where, accept), (new, new_value, new_grad), state)
        return state, (state[0], probability)

    _, (states, probabilities) = jax.lax.scan(transition, (start, *slope(start)), (momenta, uniforms))
    return states[num_burn_in:], probabilities.mean()


def uivi_fit(
    model: Callable,
    rng_key: Any,
    num_steps: int,
    *args: Any,
    noise_dim: int | None = None,
    hidden: tuple[int, ...] = (50, 50),
    num_particles: int = 16,
    num_burn_in: int = 5,
    num_kept: int = 5,
    num_leapfrog: int = 5,
    target_accept: float | int = 0.9,
    optimizer: Any = None,
    init_scale: float | int = 0.1,
    **kwargs: Any,
) -> UIVIResult:
    r"""Unbiased implicit variational inference: a Gaussian whose mean and sd are a network of noise.

    .. math::
        z = m(\epsilon) + s(\epsilon) u, \qquad \nabla \mathrm{ELBO} = E\big[\nabla_z (\log p(X, z) - \log q(z))
        \cdot \nabla z\big], \qquad \nabla_z \log q(z) = E_{\epsilon' \mid z} \nabla_z \log q(z \mid \epsilon')

    The inner mean is over Hamiltonian Monte Carlo that starts at the noise of z, where it is stationary already.

    Parameters
    ----------
    model : callable
        A NumPyro model with continuous latents; all of them are flattened to one unconstrained vector.
    rng_key : PRNG key or int
        Of everything.
    num_steps : int
        Number of gradient steps.
    *args, **kwargs
        The model's.
    noise_dim : int, optional
        Entries of the noise; as many as of the latents by default.
    hidden : tuple of int
        Hidden layers of the network.
    num_particles : int
        Draws a step.
    num_burn_in, num_kept, num_leapfrog : int
        Of the sampler.
    target_accept : float
        Its step is adapted to this probability of acceptance.
    optimizer : optax.GradientTransformation, optional
        Adam with a rate that falls from 1e-2 to 1e-4 by default.
    init_scale : float
        Standard deviation of z given the noise at the start.

    Returns
    -------
    UIVIResult
        With `params`, `log_joints`, and the methods ``sample(key, n)`` and ``elbo(key)``.

    Raises
    ------
    FloatingPointError
        The log density became NaN or infinite.
    ValueError
        Sizes below 1, an optimizer that is not optax's.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from gyri.pavi.baselines import uivi_fit
    >>> def model():
    ...     numpyro.sample("z", dist.Normal(3.0, 0.5))
    >>> result = uivi_fit(model, 0, 300)
    >>> bool(abs(result.sample(1, 2000)["z"].mean() - 3.0) < 0.2)
    True

    References
    ----------
    Titsias, Ruiz (2019), Unbiased implicit variational inference.
    """
    check_optimizer(optimizer)
    num_steps = check_positive_int(num_steps, "num_steps")
    num_particles = check_positive_int(num_particles, "num_particles")
    for value, name in ((num_burn_in, "num_burn_in"), (num_kept, "num_kept"), (num_leapfrog, "num_leapfrog")):
        check_positive_int(value, name, minimum=0 if name == "num_burn_in" else 1)
    init_key, net_key, run_key = jax.random.split(as_key(rng_key), 3)
    with handlers.block():
        info = initialize_model(
            init_key, model, init_strategy=init_to_median, dynamic_args=True,
            model_args=args, model_kwargs=kwargs, validate_grad=False,
        )  # fmt: skip
    start, unravel = ravel_pytree(info.param_info.z)
    noise_dim = start.size if noise_dim is None else check_positive_int(noise_dim, "noise_dim")
    sites, potential, postprocess = tuple(info.param_info.z), info.potential_fn, info.postprocess_fn

    def constrained(args: tuple, kwargs: dict, z: Array) -> dict[str, Array]:
        values = postprocess(*args, **kwargs)(unravel(z))
        return {name: values[name] for name in sites}

    log_joint = Partial(lambda args, kwargs, z: -potential(*args, **kwargs)(unravel(z)), args, kwargs)
    constrain = Partial(constrained, args, kwargs)
    sizes = [noise_dim, *hidden, 2 * start.size]
    kernels = init_kernels(net_key, list(pairwise(sizes)))
    kernels[-1] = init_scale * kernels[-1]
    network = {
        "layers": mlp_of(kernels),
        "loc": start,
        "log_sd": jnp.full(start.shape, jnp.log(init_scale), start.dtype),
    }
    if optimizer is None:
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps, alpha=0.01))

    def slope(
        log_joint: Callable, network: PyTree, key: Array, log_step: Array
    ) -> tuple[Array, Array, Array, Array, Array]:
        """A draw's noise, the direction in which the ELBO rises at its z, and the sampler's acceptance."""
        draw_key, sampler_key = jax.random.split(key)
        z, noise, u = _draw(network, draw_key, noise_dim)
        posterior = lambda e: _log_conditional(network, z, e) - 0.5 * (e**2).sum()
        kept, accepted = hmc(sampler_key, posterior, noise, jnp.exp(log_step), num_burn_in, num_kept, num_leapfrog)
        loc, sd = _network(network, kept)
        value, grad = jax.value_and_grad(log_joint)(z)
        return noise, u, grad + ((z - loc) / sd**2).mean(0), value, accepted

    def step(log_joint: Callable, carry: tuple, key: Array) -> tuple[tuple, Array]:
        network, state, log_step = carry
        keys = jax.random.split(key, num_particles)
        noise, u, direction, value, accepted = jax.vmap(partial(slope, log_joint), (None, 0, None))(
            network, keys, log_step
        )

        def surrogate(network: PyTree) -> Array:
            loc, sd = _network(network, noise)
            return -(direction * (loc + sd * u)).sum(-1).mean()

        updates, state = optimizer.update(jax.grad(surrogate)(network), state, network)
        log_step = log_step + 0.1 * (accepted.mean() - target_accept)
        return (optax.apply_updates(network, updates), state, log_step), value.mean()

    def run(log_joint: Callable, network: PyTree, key: Array) -> tuple[tuple, Array]:
        first = (network, optimizer.init(network), jnp.full((), jnp.log(0.1), start.dtype))
        return jax.lax.scan(partial(step, log_joint), first, jax.random.split(key, num_steps))

    (network, _, log_step), log_joints = _compile(run, log_joint)(network, run_key)
    bad = ~np.isfinite(log_joints)
    if bad.any():
        raise FloatingPointError(f"uivi_fit: log density is not finite at step {int(bad.argmax())}; try a lower rate")
    return UIVIResult({"network": network, "step_size": jnp.exp(log_step)}, log_joints, log_joint, constrain, noise_dim)
