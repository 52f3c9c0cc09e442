"""Hierarchical models in NumPyro that work on random parts of their plates, their simulators, and closed forms.

Every model reads its data by the indices of its plates, so that NumPyro's subsampling and `AutoPAVI` may run it on a
part. Without data (None) a model needs the shape that they would have, and draws them: the prior predictive.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro import handlers

from gyri.numerics.validation import as_key, check_option, check_positive_int, check_scalar, import_extra

Scales = tuple[Any, ...]
Shape = tuple[int, ...]

# --- data -------------------------------------------------------------------------------------------------------------


@jax.tree_util.register_static
class HostData:
    """Data that stay on the host, or on its disk, and of which a model reads blocks.

    Models of this module take it in the place of an array. It may be an argument of compiled functions, which know it
    by its identity: they read the array anew at each call, through `jax.pure_callback`.

    Parameters
    ----------
    array : array-like with `shape` and `dtype`
        A NumPy array, or a memory map as of ``numpy.load(path, mmap_mode="r")``. All axes but the last `event_dim` are
        indexed.
    event_dim : int
        Number of trailing axes that are always read whole.

    Attributes
    ----------
    shape : tuple of int
        Of the whole array.

    Raises
    ------
    ValueError
        No axis is left to index.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> from gyri.pavi import models
    >>> data = models.HostData(np.arange(12.0).reshape(3, 2, 2))
    >>> jax.jit(lambda data, i, j: data(i, j))(data, jnp.array([2, 0]), jnp.array([1])).tolist()
    [[[10.0, 11.0]], [[2.0, 3.0]]]
    """

    def __init__(self, array: Any, event_dim: int = 1) -> None:
        self.array = array
        self.event_dim = check_positive_int(event_dim, "event_dim", minimum=0)
        self.shape = tuple(array.shape)
        if len(self.shape) <= self.event_dim:
            raise ValueError(f"array: expected more than event_dim={event_dim} axes, got shape {self.shape}")

    def __call__(self, *indices: Any) -> Array:
        """Read a block.

        Parameters
        ----------
        *indices : array of int, shape (n,)
            One for each axis but the last `event_dim`.

        Returns
        -------
        Array, shape (n_1, n_2, ..., *event)
            In JAX's default precision if the array is in a wider one.
        """
        n_axes = len(self.shape) - self.event_dim
        if len(indices) != n_axes:
            raise ValueError(f"indices: expected {n_axes}, one for each indexed axis, got {len(indices)}")
        dtype = jax.dtypes.canonicalize_dtype(self.array.dtype)
        shape = tuple(np.shape(index)[0] for index in indices) + self.shape[n_axes:]

        def read(*index: Any) -> np.ndarray:
            return np.asarray(self.array[np.ix_(*(np.asarray(i) for i in index))], dtype)

        return jax.pure_callback(read, jax.ShapeDtypeStruct(shape, dtype), *indices, vmap_method="sequential")


def _shape_of(x: Any, shape: Any, axes: str) -> Shape:
    """Sizes of all axes, from the data or, without any, from the argument `shape`."""
    n = axes.count(",") + 1
    if x is None and shape is None:
        raise ValueError(f"shape: expected {axes} where x is None, got None")
    name, found = ("shape", tuple(shape)) if x is None else ("x", _own_shape(x, shape))
    if len(found) != n:
        raise ValueError(f"{name}: expected {'shape ' if x is not None else ''}{axes}, got {found}")
    if shape is not None and tuple(shape) != found:
        raise ValueError(f"shape: expected that of x, {found}, got {tuple(shape)}")
    for size, axis in zip(found, axes.strip("()").split(", "), strict=True):
        check_positive_int(size, f"{name}: {axis}")
    return found


def _own_shape(x: Any, shape: Any) -> Shape:
    if not callable(x):
        return tuple(np.shape(x))
    if hasattr(x, "shape"):
        return tuple(x.shape)
    if shape is None:
        raise ValueError("shape: expected that of all data where x is a function without attribute shape, got None")
    return tuple(shape)


def _read(x: Any, *indices: Array) -> Array | None:
    """The block of the data at the plates' indices."""
    if x is None:
        return None
    return x(*indices) if callable(x) else jnp.asarray(x)[jnp.ix_(*indices)]


def _masked(mask: Any, shape: Shape, *indices: Array) -> Any:
    """A context in which observations that the mask leaves out do not count."""
    if mask is None:
        return nullcontext()
    if np.shape(mask) != shape:
        raise ValueError(f"mask: expected shape {shape}, got {np.shape(mask)}")
    return handlers.mask(mask=jnp.asarray(mask, bool)[jnp.ix_(*indices)])


def _check_scales(scales: Any) -> Scales:
    if len(scales) != 3:
        raise ValueError(f"scales: expected (s_m, s_g, s_x), got {len(scales)} values")
    return tuple(check_scalar(s, "scales", minimum=0, strict=True) for s in scales)


def _simulate(key: Any, model: Callable, **options: Any) -> tuple[dict[str, Array], Any]:
    """All draws of one run of a model without data, and what was drawn on the way to its observations."""
    return _run(as_key(key), model, tuple(options.items()))


# Compiled: drawn one by one, the sites of the larger models take half a minute the first time.
@partial(jax.jit, static_argnums=(1, 2))
def _run(key: Array, model: Callable, options: tuple) -> tuple[dict[str, Array], Any]:
    trace = handlers.trace(handlers.seed(model, key)).get_trace(**dict(options))
    samples = {name: site for name, site in trace.items() if site["type"] == "sample"}
    return {name: site["value"] for name, site in samples.items()}, samples["x"]["intermediates"]


# --- Gaussian random effects ------------------------------------------------------------------------------------------


def gre(
    x: Any = None, mask: Any = None, *, scales: Scales = (1.0, 0.2, 0.05), shape: tuple[int, int, int] | None = None
) -> None:
    r"""Gaussian random effects: groups about a common mean, observations about the mean of their group.

    .. math::
        \mu \sim N(0, s_m^2 I), \quad \theta_g \mid \mu \sim N(\mu, s_g^2 I), \quad
        x_{gn} \mid \theta_g \sim N(\theta_g, s_x^2 I)

    A NumPyro model with sites "mu", "theta" (plate "groups", dim -2) and "x" (plates "groups" and "observations", dim
    -1).

    Parameters
    ----------
    x : array, shape (n_groups, n_observations, dim), HostData, or None
        Observations; None draws them.
    mask : array of bool, shape (n_groups, n_observations), optional
        False where there is no observation: groups of different sizes are padded to the largest, with anything. All
        there by default.
    scales : (float, float, float)
        :math:`(s_m, s_g, s_x)`, positive.
    shape : tuple of int, optional
        (n_groups, n_observations, dim), where `x` is None.

    Raises
    ------
    ValueError
        Wrong shapes or scales.

    Examples
    --------
    >>> import jax
    >>> from numpyro.infer import Predictive
    >>> from gyri.pavi import models
    >>> draws = Predictive(models.gre, num_samples=5)(jax.random.key(0), shape=(4, 10, 2))
    >>> draws["theta"].shape, draws["x"].shape
    ((5, 4, 1, 2), (5, 4, 10, 2))

    References
    ----------
    Rouillard, Wassermann (2022), ADAVI: Automatic Dual Amortized Variational Inference.
    """
    s_m, s_g, s_x = _check_scales(scales)
    n_groups, n_observations, dim = _shape_of(x, shape, "(n_groups, n_observations, dim)")
    mu = numpyro.sample("mu", dist.Normal(jnp.zeros(dim), s_m).to_event(1))
    with numpyro.plate("groups", n_groups, dim=-2) as g:
        theta = numpyro.sample("theta", dist.Normal(mu, s_g).to_event(1))
        with (
            numpyro.plate("observations", n_observations, dim=-1) as n,
            _masked(mask, (n_groups, n_observations), g, n),
        ):
            numpyro.sample("x", dist.Normal(theta, s_x).to_event(1), obs=_read(x, g, n))


def simulate_gre(
    key: Any, n_groups: int, n_observations: int, dim: int, *, scales: Scales = (1.0, 0.2, 0.05)
) -> tuple[dict[str, Float[Array, "..."]], Float[Array, "n_groups n_observations dim"]]:
    """Draw Gaussian random effects.

    Parameters
    ----------
    key : PRNG key or int
        Of the draw.
    n_groups, n_observations, dim : int
        Sizes.
    scales : (float, float, float)
        Of the mean, of the groups about it, of the observations about their group.

    Returns
    -------
    latents : dict of str to Array
        "mu", shape (dim,), and "theta", shape (n_groups, 1, dim).
    x : Array, shape (n_groups, n_observations, dim)
        Observations.

    Examples
    --------
    >>> from gyri.pavi import models
    >>> latents, x = models.simulate_gre(0, 20, 50, 2)
    >>> latents["theta"].shape, x.shape
    ((20, 1, 2), (20, 50, 2))
    """
    drawn, _ = _simulate(key, gre, scales=_check_scales(scales), shape=(n_groups, n_observations, dim))
    return drawn, drawn.pop("x")


class GREPosterior(NamedTuple):
    """Exact posterior of Gaussian random effects; each latent is normal, and dimensions are independent."""

    mu_mean: Float[Array, " dim"]
    mu_sd: Float[Array, " dim"]
    theta_mean: Float[Array, "n_groups dim"]
    theta_sd: Float[Array, "n_groups dim"]


class _Groups(NamedTuple):
    """What the closed forms need of each group, shapes (n_groups, 1) and (n_groups, dim)."""

    n: Array
    mean: Array
    """Of the observations that are there; 0 in a group without any."""
    ss: Array
    """Sum of squares about it."""
    weight: Array
    """Precision of the group's mean given mu, 1 / v_g; 0 without observations."""
    variance: Array
    """Of theta_g given mu and the data, c_g."""


def _groups(x: Any, mask: Any, scales: Scales) -> _Groups:
    _, s_g, s_x = _check_scales(scales)
    x = jnp.asarray(x)
    _shape_of(x, None, "(n_groups, n_observations, dim)")
    if mask is None:
        mask = jnp.ones(x.shape[:2], bool)
    elif np.shape(mask) != x.shape[:2]:
        raise ValueError(f"mask: expected shape {x.shape[:2]}, got {np.shape(mask)}")
    kept = jnp.asarray(mask, bool)[..., None]
    x = jnp.where(kept, x, 0)
    n = kept.sum(1).astype(x.dtype)
    mean = x.sum(1) / jnp.maximum(n, 1)
    ss = (jnp.where(kept, x - mean[:, None], 0) ** 2).sum(1)
    return _Groups(n, mean, ss, n / (n * s_g**2 + s_x**2), 1 / (1 / s_g**2 + n / s_x**2))


def gre_posterior(x: Any, mask: Any = None, *, scales: Scales = (1.0, 0.2, 0.05)) -> GREPosterior:
    """Exact posterior of Gaussian random effects.

    Parameters
    ----------
    x : array, shape (n_groups, n_observations, dim)
        Observations.
    mask : array of bool, shape (n_groups, n_observations), optional
        False where there is no observation. A group may have none.
    scales : (float, float, float)
        As the model's.

    Returns
    -------
    GREPosterior
        `mu_mean` and `mu_sd`, shape (dim,); `theta_mean` and `theta_sd`, shape (n_groups, dim).

    Examples
    --------
    >>> from gyri.pavi import models
    >>> latents, x = models.simulate_gre(0, 20, 50, 2)
    >>> exact = models.gre_posterior(x)
    >>> bool((abs(exact.theta_mean - latents["theta"][:, 0]) < 5 * exact.theta_sd).all())
    True
    """
    s_m, s_g, s_x = _check_scales(scales)
    n, mean, _, weight, variance = _groups(x, mask, scales)
    precision = s_m**-2 + weight.sum(0)
    mu = (weight * mean).sum(0) / precision
    theta = variance * (mu / s_g**2 + n * mean / s_x**2)
    theta_sd = jnp.sqrt(variance + (variance / s_g**2) ** 2 / precision)
    return GREPosterior(mu, jnp.broadcast_to(precision**-0.5, mu.shape), theta, jnp.broadcast_to(theta_sd, theta.shape))


def gre_log_evidence(x: Any, mask: Any = None, *, scales: Scales = (1.0, 0.2, 0.05)) -> Float[Array, ""]:
    r"""Exact :math:`\log p(X)` of Gaussian random effects: what no ELBO exceeds.

    Parameters
    ----------
    x : array, shape (n_groups, n_observations, dim)
        Observations.
    mask : array of bool, shape (n_groups, n_observations), optional
        False where there is no observation. A group may have none.
    scales : (float, float, float)
        As the model's.

    Returns
    -------
    Array, shape ()
        In nats.

    Examples
    --------
    >>> from gyri.pavi import models
    >>> _, x = models.simulate_gre(0, 30, 50, 2)
    >>> 4200 < float(models.gre_log_evidence(x)) < 4800
    True
    """
    s_m, s_g, s_x = _check_scales(scales)
    n, mean, ss, weight, _ = _groups(x, mask, scales)
    spread = weight.sum(0)  # precision of mu from the data alone
    mu = (weight * mean).sum(0) / (s_m**-2 + spread)
    within = -0.5 * n * jnp.log(2 * jnp.pi * s_x**2) - 0.5 * ss / s_x**2
    between = -0.5 * jnp.log1p(n * s_g**2 / s_x**2) - 0.5 * weight * (mean - mu) ** 2
    return (within + between).sum() - 0.5 * (jnp.log1p(s_m**2 * spread) + (mu / s_m) ** 2).sum()


def gre_optimal_gap(
    x: Any, mask: Any = None, *, scales: Scales = (1.0, 0.2, 0.05), dependence: str = "parents"
) -> Float[Array, ""]:
    r"""Smallest :math:`\log p(X) - \mathrm{ELBO}` that a family with affine flows reaches on Gaussian random effects.

    Each copy has weights or encodings of its own that lose nothing. The gap depends on the sizes of the groups alone.

    Parameters
    ----------
    x : array, shape (n_groups, n_observations, dim)
        Observations.
    mask : array of bool, shape (n_groups, n_observations), optional
        False where there is no observation.
    scales : (float, float, float)
        As the model's.
    dependence : {"parents", "prior", "none"}
        Of the family, as in `AutoPAVI`. "parents" contains the posterior, its gap is 0. "none" (mean field) has
        :math:`\frac12 \log(\Lambda_\mu / P)` a dimension, with the prior precision :math:`\Lambda_\mu` of mu given all
        theta and its posterior precision P. The optimum of "prior" is found numerically: given the variance V of mu,
        the slope of each group solves a quadratic, which leaves a search over V.

    Returns
    -------
    Array, shape ()
        In nats, over all groups and dimensions.

    Raises
    ------
    ValueError
        Unknown `dependence`.

    Examples
    --------
    >>> from gyri.pavi import models
    >>> _, x = models.simulate_gre(0, 14, 3, 2, scales=(1.3, 0.7, 0.9))
    >>> kinds = ("parents", "prior", "none")
    >>> [round(float(models.gre_optimal_gap(x, scales=(1.3, 0.7, 0.9), dependence=kind)), 3) for kind in kinds]
    [0.0, 0.211, 0.428]
    """
    check_option(dependence, "dependence", ("parents", "prior", "none"))
    s_m, s_g, _ = _check_scales(scales)
    n, mean, _, weight, variance = _groups(x, mask, scales)
    dim = mean.shape[1]
    precision = s_m**-2 + weight.sum()
    if dependence == "parents":
        return jnp.zeros((), precision.dtype)
    if dependence == "none":
        return 0.5 * dim * jnp.log((s_m**-2 + len(n) / s_g**2) / precision)
    return dim * _prior_gap(precision, variance[:, 0], s_g)


def _prior_gap(precision: Array, variance: Array, s_g: Any) -> Array:
    """Gap of the family "prior" in one dimension, minimised over the variance of mu and the slopes of the groups.

    theta_g = beta_g u_g + const with u_g ~ N(mu, s_g^2): beta_g is both its slope on mu and its sd over s_g.
    """
    slope = variance / s_g**2  # of the exact conditional mean on mu

    def best_slopes(v: Array) -> Array:
        a, b = s_g**2 + v, slope * v
        return (b + jnp.sqrt(b**2 + 4 * a * variance)) / (2 * a)

    def excess(log_v: Array) -> Array:  # derivative of the gap over log V, times 2
        v = jnp.exp(log_v)
        return v * (precision + ((best_slopes(v) - slope) ** 2 / variance).sum()) - 1

    def gap(log_v: Array) -> Array:
        v = jnp.exp(log_v)
        beta = best_slopes(v)
        ratio = beta**2 * s_g**2 / variance
        each = ratio - 1 - jnp.log(ratio) + (beta - slope) ** 2 * v / variance
        return 0.5 * (v * precision - 1 - jnp.log(v * precision)) + 0.5 * each.sum()

    # The slopes go from sqrt(slope) at V = 0 to `slope`, so that the optimum lies between these ends.
    low = -jnp.log(precision + ((jnp.sqrt(slope) - slope) ** 2 / variance).sum())
    grid = jnp.linspace(low, -jnp.log(precision), 65)
    best = jnp.argmin(jax.lax.map(gap, grid))
    ends = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, 64)]

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        rises = excess(middle) > 0
        return jnp.where(rises, low, middle), jnp.where(rises, middle, high)

    low, high = jax.lax.fori_loop(0, 50, halve, ends)
    return gap((low + high) / 2)


# --- Gaussian mixture with random effects -----------------------------------------------------------------------------


def gaussian_mixture(
    x: Any = None,
    *,
    n_components: int = 3,
    scales: Scales = (1.0, 0.2, 0.05),
    shape: tuple[int, int, int] | None = None,
) -> None:
    r"""Mixtures whose components vary about common ones from group to group; labels are summed out.

    .. math::
        \mu_l \sim N(0, s_m^2 I), \quad \mu_{gl} \mid \mu_l \sim N(\mu_l, s_g^2 I), \quad \pi_g \sim \mathrm{Dir}(1),
        \quad x_{gn} \sim \sum_l \pi_{gl} N(\mu_{gl}, s_x^2 I)

    A NumPyro model with sites "mu", "mu_group" (plate "groups", dim -2), "pi" (the same) and "x" (plates "groups" and
    "observations", dim -1). Components are no plate: they have to differ, so that one event holds all of them.

    Parameters
    ----------
    x : array, shape (n_groups, n_observations, dim), HostData, or None
        Observations; None draws them.
    n_components : int
        Number of components.
    scales : (float, float, float)
        :math:`(s_m, s_g, s_x)`, positive.
    shape : tuple of int, optional
        (n_groups, n_observations, dim), where `x` is None.

    Raises
    ------
    ValueError
        Wrong shapes or scales.

    Examples
    --------
    >>> import jax
    >>> from numpyro.infer import Predictive
    >>> from gyri.pavi import models
    >>> draws = Predictive(models.gaussian_mixture, num_samples=5)(jax.random.key(0), shape=(3, 50, 2))
    >>> draws["mu_group"].shape, draws["pi"].shape, draws["x"].shape
    ((5, 3, 1, 3, 2), (5, 3, 1, 3), (5, 3, 50, 2))

    References
    ----------
    Rouillard, Wassermann (2022), ADAVI: Automatic Dual Amortized Variational Inference.
    """
    s_m, s_g, s_x = _check_scales(scales)
    n_components = check_positive_int(n_components, "n_components")
    n_groups, n_observations, dim = _shape_of(x, shape, "(n_groups, n_observations, dim)")
    mu = numpyro.sample("mu", dist.Normal(jnp.zeros((n_components, dim)), s_m).to_event(2))
    with numpyro.plate("groups", n_groups, dim=-2) as g:
        mu_group = numpyro.sample("mu_group", dist.Normal(mu, s_g).to_event(2))
        pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(n_components)))
        with numpyro.plate("observations", n_observations, dim=-1) as n:
            components = dist.Normal(mu_group, s_x).to_event(1)
            law = dist.MixtureSameFamily(dist.Categorical(probs=pi), components)
            numpyro.sample("x", law, obs=_read(x, g, n))


def simulate_gaussian_mixture(
    key: Any,
    n_groups: int = 3,
    n_observations: int = 50,
    dim: int = 2,
    *,
    n_components: int = 3,
    scales: Scales = (1.0, 0.2, 0.05),
) -> tuple[dict[str, Float[Array, "..."]], Float[Array, "n_groups n_observations dim"]]:
    """Draw from the Gaussian mixture with random effects.

    Parameters
    ----------
    key : PRNG key or int
        Of the draw.
    n_groups, n_observations, dim, n_components : int
        Sizes; those of ADAVI's experiment by default.
    scales : (float, float, float)
        As the model's.

    Returns
    -------
    latents : dict of str to Array
        "mu", shape (n_components, dim), "mu_group", shape (n_groups, 1, n_components, dim), and "pi", shape
        (n_groups, 1, n_components).
    x : Array, shape (n_groups, n_observations, dim)
        Observations.

    Examples
    --------
    >>> from gyri.pavi import models
    >>> models.simulate_gaussian_mixture(0)[1].shape
    (3, 50, 2)
    """
    shape = (n_groups, n_observations, dim)
    drawn, _ = _simulate(key, gaussian_mixture, n_components=n_components, scales=_check_scales(scales), shape=shape)
    return drawn, drawn.pop("x")


# --- a model that is not conjugate ------------------------------------------------------------------------------------


def non_conjugate(x: Any = None, *, scale: Any = 0.3, shape: tuple[int, int] | None = None) -> None:
    r"""Laplace observations about a location with a gamma prior.

    .. math:: a_d \sim \Gamma(1, \tfrac12), \quad x_{nd} \mid a_d \sim \mathrm{Laplace}(a_d, b)

    with 1/2 the rate: the prior mean is 2. A NumPyro model with sites "a" and "x" (plate "observations", dim -1).

    Parameters
    ----------
    x : array, shape (n_observations, dim), HostData, or None
        Observations; None draws them.
    scale : float
        b, positive.
    shape : tuple of int, optional
        (n_observations, dim), where `x` is None.

    Raises
    ------
    ValueError
        Wrong shape or scale.

    Examples
    --------
    >>> import jax
    >>> from numpyro.infer import Predictive
    >>> from gyri.pavi import models
    >>> draws = Predictive(models.non_conjugate, num_samples=5)(jax.random.key(0), shape=(10, 2))
    >>> draws["a"].shape, draws["x"].shape
    ((5, 2), (5, 10, 2))

    References
    ----------
    Rouillard, Wassermann (2022), ADAVI: Automatic Dual Amortized Variational Inference.
    """
    scale = check_scalar(scale, "scale", minimum=0, strict=True)
    n_observations, dim = _shape_of(x, shape, "(n_observations, dim)")
    a = numpyro.sample("a", dist.Gamma(jnp.ones(dim), 0.5).to_event(1))
    with numpyro.plate("observations", n_observations, dim=-1) as n:
        numpyro.sample("x", dist.Laplace(a, scale).to_event(1), obs=_read(x, n))


def simulate_non_conjugate(
    key: Any, n_observations: int = 10, dim: int = 2, *, scale: Any = 0.3
) -> tuple[dict[str, Float[Array, "..."]], Float[Array, "n_observations dim"]]:
    """Draw from the model that is not conjugate.

    Parameters
    ----------
    key : PRNG key or int
        Of the draw.
    n_observations, dim : int
        Sizes; those of ADAVI's experiment by default.
    scale : float
        As the model's.

    Returns
    -------
    latents : dict of str to Array
        "a", shape (dim,).
    x : Array, shape (n_observations, dim)
        Observations.

    Examples
    --------
    >>> from gyri.pavi import models
    >>> models.simulate_non_conjugate(0)[1].shape
    (10, 2)
    """
    drawn, _ = _simulate(key, non_conjugate, scale=scale, shape=(n_observations, dim))
    return drawn, drawn.pop("x")


# --- parcellation of the cortex ---------------------------------------------------------------------------------------

LogRanges = tuple[tuple[Any, Any], ...]
WIDE: LogRanges = ((-10.0, 8.0), (-10.0, 8.0), (-10.0, 8.0))


def ms_hbm(
    x: Any = None,
    *,
    n_networks: int,
    labels: str = "global",
    scale: Any = 1.0,
    log_ranges: LogRanges = WIDE,
    concentration: Any = 2.0,
    shape: tuple[int, int, int, int] | None = None,
) -> None:
    r"""Multi-session parcellation: connectivity of vertices, by networks that vary over subjects and sessions.

    .. math::
        \mu_l \sim N(0, s^2 I), \quad \mu^s_l \sim N(\mu_l, \epsilon_l^2 I), \quad \mu^{st}_l \sim N(\mu^s_l, \sigma_l^2
        I), \quad x^{st}_n \sim \sum_l \pi_l N(\mu^{st}_l, \kappa^2 I)

    with :math:`\log\epsilon_l, \log\sigma_l, \log\kappa` uniform and :math:`\pi` Dirichlet; labels are summed out. The
    profiles of the networks lie in a plain vector space, not on the sphere.

    A NumPyro model with plates "networks" (dim -4), "subjects" (-3), "sessions" (-2) and "vertices" (-1; crossed with
    subjects and sessions), and sites "mu", "log_epsilon", "log_sigma", "log_kappa", "mu_subject", "mu_session", "pi"
    and "x".

    Parameters
    ----------
    x : array, shape (n_subjects, n_sessions, n_vertices, dim), HostData, callable, or None
        Connectivity profiles. A callable gives the block at three arrays of indices, shape (b_s, b_t, b_n, dim); it
        has the attribute `shape`, as `HostData` has, or `shape` is passed. Functions that are traced on their way
        here (arguments under `jax.jit`) have to be pytrees: `HostData` is, `jax.tree_util.Partial` makes one. None
        draws the profiles.
    n_networks : int
        Number of networks.
    labels : {"global", "free"}
        Whose the label probabilities are: all share them, or each vertex of each subject has its own, in plates
        "subjects" and "vertices" (the version with hundreds of millions of latents).
    scale : float
        s, positive.
    log_ranges : three pairs of float
        Ends of the uniform priors of :math:`\log\epsilon_l, \log\sigma_l, \log\kappa`.
    concentration : float
        Of the Dirichlet prior, positive.
    shape : tuple of int, optional
        (n_subjects, n_sessions, n_vertices, dim), where `x` does not tell.

    Raises
    ------
    ValueError
        Wrong shapes, scales or options.

    Examples
    --------
    >>> import jax
    >>> from numpyro.infer import Predictive
    >>> from gyri.pavi import models
    >>> options = dict(n_networks=4, labels="free", log_ranges=((-2, -1), (-3, -2), (-2, -1)), shape=(3, 2, 30, 8))
    >>> draws = Predictive(models.ms_hbm, num_samples=5)(jax.random.key(0), **options)
    >>> draws["mu_session"].shape, draws["pi"].shape, draws["x"].shape
    ((5, 4, 3, 2, 1, 8), (5, 3, 1, 30, 4), (5, 3, 2, 30, 8))

    References
    ----------
    Kong et al. (2019), Spatial topography of individual-specific cortical networks; simplified as in Rouillard,
    Wassermann (2022).
    """
    check_option(labels, "labels", ("global", "free"))
    n_networks = check_positive_int(n_networks, "n_networks")
    scale = check_scalar(scale, "scale", minimum=0, strict=True)
    concentration = check_scalar(concentration, "concentration", minimum=0, strict=True)
    ranges = _uniforms(log_ranges)
    axes = "(n_subjects, n_sessions, n_vertices, dim)"
    n_subjects, n_sessions, n_vertices, dim = _shape_of(x, shape, axes)
    networks = numpyro.plate("networks", n_networks, dim=-4)
    subjects = numpyro.plate("subjects", n_subjects, dim=-3)
    sessions = numpyro.plate("sessions", n_sessions, dim=-2)
    vertices = numpyro.plate("vertices", n_vertices, dim=-1)
    log_kappa = numpyro.sample("log_kappa", ranges[2])
    with networks as kept:
        mu = numpyro.sample("mu", dist.Normal(jnp.zeros(dim), scale).to_event(1))
        log_epsilon = numpyro.sample("log_epsilon", ranges[0])
        log_sigma = numpyro.sample("log_sigma", ranges[1])
        with subjects:
            mu_subject = numpyro.sample("mu_subject", _normal(mu, log_epsilon))
            with sessions:
                mu_session = numpyro.sample("mu_session", _normal(mu_subject, log_sigma))
    law = dist.Dirichlet(jnp.full(n_networks, concentration))
    if labels == "free":
        with subjects, vertices:
            pi = numpyro.sample("pi", law)
    else:
        pi = numpyro.sample("pi", law)
    pi = pi[..., kept]  # where networks are subsampled, a mixture of those that are there
    with subjects as s, sessions as t, vertices as n:
        components = _normal(jnp.moveaxis(mu_session, -5, -2), log_kappa)  # networks last: (s, t, 1, networks, dim)
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(probs=pi), components), obs=_read(x, s, t, n))


def _normal(mean: Array, log_sd: Array) -> Any:
    return dist.Normal(mean, jnp.exp(log_sd)[..., None]).to_event(1)


def _uniforms(log_ranges: Any) -> list[Any]:
    if len(log_ranges) != 3:
        raise ValueError(f"log_ranges: expected a range for each of epsilon, sigma and kappa, got {len(log_ranges)}")
    for low, high in log_ranges:
        if not low < high:
            raise ValueError(f"log_ranges: expected low < high, got ({low}, {high})")
    return [dist.Uniform(float(low), float(high)) for low, high in log_ranges]


NARROW: LogRanges = ((-2.0, -1.0), (-3.0, -2.0), (-2.0, -1.0))


def simulate_ms_hbm(
    key: Any,
    n_subjects: int,
    n_sessions: int,
    n_vertices: int,
    dim: int,
    *,
    n_networks: int,
    labels: str = "global",
    scale: Any = 1.0,
    log_ranges: LogRanges = NARROW,
    concentration: Any = 2.0,
) -> tuple[dict[str, Array], Float[Array, "n_subjects n_sessions n_vertices dim"], Array]:
    """Draw connectivity profiles from the parcellation model.

    Parameters
    ----------
    key : PRNG key or int
        Of the draw.
    n_subjects, n_sessions, n_vertices, dim, n_networks : int
        Sizes.
    labels, scale, log_ranges, concentration
        As the model's, but the ranges are narrow by default: from the wide ones no networks could be told apart.

    Returns
    -------
    latents : dict of str to Array
        In the model's shapes: "mu" is (n_networks, 1, 1, 1, dim).
    x : Array, shape (n_subjects, n_sessions, n_vertices, dim)
        Profiles.
    labels : Array of int, shape (n_subjects, n_sessions, n_vertices)
        The network from which each came.

    Examples
    --------
    >>> from gyri.pavi import models
    >>> latents, x, labels = models.simulate_ms_hbm(0, 3, 2, 30, 8, n_networks=4)
    >>> x.shape, labels.shape
    ((3, 2, 30, 8), (3, 2, 30))
    """
    drawn, intermediates = _simulate(
        key,
        ms_hbm,
        n_networks=n_networks,
        labels=labels,
        scale=scale,
        log_ranges=tuple(tuple(pair) for pair in log_ranges),
        concentration=concentration,
        shape=(n_subjects, n_sessions, n_vertices, dim),
    )
    return drawn, drawn.pop("x"), intermediates[0]


@jax.jit
def ms_hbm_labels(samples: Mapping[str, Any], x: Any) -> Float[Array, "n_subjects n_sessions n_vertices n_networks"]:
    """Posterior probabilities of the network of each vertex, in each session of each subject.

    The labels' law given the latents, averaged over draws of these. Networks are only known up to their order: that of
    the draws. Averaged over sessions, the largest probability is a subject's parcellation.

    Parameters
    ----------
    samples : dict of str to array
        Draws of "mu_session", shape (n_draws, n_networks, n_subjects, n_sessions, 1, dim), "log_kappa", shape
        (n_draws,), and "pi", shape (n_draws, n_networks) or (n_draws, n_subjects, 1, n_vertices, n_networks), as
        `AutoPAVI.sample_posterior` gives them; other sites are ignored. The draws of a part of the subjects, with the
        data of the same, give the labels of that part.
    x : array, shape (n_subjects, n_sessions, n_vertices, dim)
        Profiles.

    Returns
    -------
    Array, shape (n_subjects, n_sessions, n_vertices, n_networks)
        Probabilities, of sum 1.

    Examples
    --------
    >>> from gyri.pavi import models
    >>> latents, x, labels = models.simulate_ms_hbm(0, 3, 2, 30, 8, n_networks=4)
    >>> samples = {name: value[None] for name, value in latents.items()}  # one draw: the truth
    >>> bool((models.ms_hbm_labels(samples, x).argmax(-1) == labels).mean() > 0.95)
    True
    """
    x = jnp.asarray(x)
    names = ("mu_session", "log_kappa", "pi")
    for name in names:
        if name not in samples:
            raise ValueError(f"samples: expected draws of {', '.join(names)}, got {sorted(samples)}")

    def one(draw: tuple[Array, Array, Array]) -> Array:
        mu, log_kappa, pi = draw
        law = _normal(jnp.moveaxis(mu, -5, -2), log_kappa)
        return jax.nn.softmax(jnp.log(pi) + law.log_prob(x[..., None, :]), -1)

    first, rest = (
        jax.tree.map(part, tuple(jnp.asarray(samples[name]) for name in names))
        for part in (lambda v: v[0], lambda v: v[1:])
    )
    total = jax.lax.scan(lambda total, draw: (total + one(draw), None), one(first), rest)[0]
    return total / (1 + len(rest[0]))


# --- small data sets of textbooks -------------------------------------------------------------------------------------


class EightSchools(NamedTuple):
    """Effects of coaching in eight schools, and their standard errors, in points of the SAT."""

    y: np.ndarray
    sigma: np.ndarray


EIGHT_SCHOOLS = EightSchools(
    np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]), np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
)


def eight_schools(y: Any = None, sigma: Any = EIGHT_SCHOOLS.sigma) -> None:
    r"""Effects of parallel experiments about a common one, with known standard errors.

    .. math::
        \mu \sim N(0, 5^2), \quad \tau \sim C^+(5), \quad \theta_j \sim N(\mu, \tau^2), \quad y_j \sim N(\theta_j,
        \sigma_j^2)

    A NumPyro model with sites "mu", "tau", "theta" (plate "schools", dim -1) and "y" (the same). The effects are
    centred: a guide that conditions on the parents finds their shape by itself.

    Parameters
    ----------
    y : array, shape (n_schools,), optional
        Effects, `EIGHT_SCHOOLS.y` in the textbook; None draws them.
    sigma : array, shape (n_schools,)
        Standard errors; the textbook's by default.

    Raises
    ------
    ValueError
        Wrong shapes.

    Examples
    --------
    >>> import jax
    >>> from numpyro.infer import MCMC, NUTS
    >>> from gyri.pavi import models
    >>> mcmc = MCMC(NUTS(models.eight_schools), num_warmup=50, num_samples=50, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), models.EIGHT_SCHOOLS.y)
    >>> mcmc.get_samples()["theta"].shape
    (50, 8)

    References
    ----------
    Rubin (1981), Estimation in parallel randomized experiments.
    """
    (n_schools,) = _shape_of(sigma, None, "(n_schools)")
    if y is not None and np.shape(y) != (n_schools,):
        raise ValueError(f"y: expected shape ({n_schools},), as sigma's, got {np.shape(y)}")
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", n_schools, dim=-1) as j:
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, jnp.asarray(sigma)[j]), obs=_read(y, j))


def random_effects_regression(covariates: Any, y: Any = None, mask: Any = None) -> None:
    r"""Linear regression in groups, with intercept and slopes that vary from group to group.

    .. math::
        \beta \sim N(0, I), \quad \tau_k \sim N^+(1), \quad \sigma \sim N^+(1), \quad \beta_g \sim N(\beta,
        \mathrm{diag}\,\tau^2), \quad y_{gn} \sim N(\beta_{g0} + x_{gn}^\top \beta_{g,1:}, \sigma^2)

    The priors expect standardised data. A NumPyro model with sites "beta", "tau", "sigma", "beta_group" (plate
    "groups", dim -2) and "y" (plates "groups" and "observations", dim -1).

    Parameters
    ----------
    covariates : array, shape (n_groups, n_observations, n_covariates)
        Without the constant: the model adds it.
    y : array, shape (n_groups, n_observations), optional
        Responses; None draws them.
    mask : array of bool, shape (n_groups, n_observations), optional
        False where there is no observation. All there by default.

    Raises
    ------
    ValueError
        Wrong shapes.

    Examples
    --------
    >>> import jax
    >>> from numpyro.infer import Predictive
    >>> from gyri.pavi import models
    >>> x = jax.random.normal(jax.random.key(0), (11, 20, 2))
    >>> draws = Predictive(models.random_effects_regression, num_samples=5)(jax.random.key(1), x)
    >>> draws["beta_group"].shape, draws["y"].shape
    ((5, 11, 1, 3), (5, 11, 20))
    """
    n_groups, n_observations, n_covariates = _shape_of(covariates, None, "(n_groups, n_observations, n_covariates)")
    if y is not None and np.shape(y) != (n_groups, n_observations):
        raise ValueError(f"y: expected shape {(n_groups, n_observations)}, got {np.shape(y)}")
    size = 1 + n_covariates
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(size), 1.0).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(jnp.ones(size)).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("groups", n_groups, dim=-2) as g:
        beta_group = numpyro.sample("beta_group", dist.Normal(beta, tau).to_event(1))
        with (
            numpyro.plate("observations", n_observations, dim=-1) as n,
            _masked(mask, (n_groups, n_observations), g, n),
        ):
            x = jnp.asarray(covariates)[jnp.ix_(g, n)]
            mean = beta_group[..., 0] + (x * beta_group[..., 1:]).sum(-1)
            numpyro.sample("y", dist.Normal(mean, sigma), obs=_read(y, g, n))


class Grunfeld(NamedTuple):
    """Investment of eleven firms in twenty years; each variable is centred and scaled to unit variance over all."""

    covariates: np.ndarray
    y: np.ndarray
    firms: tuple[str, ...]


def load_grunfeld() -> Grunfeld:
    """Grunfeld's investment data, from statsmodels.

    Returns
    -------
    Grunfeld
        `covariates`, shape (11, 20, 2): logarithms of the market value and of the stock of capital; `y`, shape
        (11, 20): logarithm of the investment; `firms`. All three standardised.

    Raises
    ------
    ImportError
        Without statsmodels.

    References
    ----------
    Grunfeld (1958), The determinants of corporate investment.
    """
    grunfeld = import_extra("statsmodels.datasets.grunfeld", "gyri-pavi[data]", "to load its data")
    table = grunfeld.load_pandas().data.sort_values(["firm", "year"])
    firms = tuple(dict.fromkeys(str(firm) for firm in table["firm"]))
    values = np.log(table[["value", "capital", "invest"]].to_numpy(float))
    values = ((values - values.mean(0)) / values.std(0)).reshape(len(firms), -1, 3)
    return Grunfeld(values[..., :2], values[..., 2], firms)
