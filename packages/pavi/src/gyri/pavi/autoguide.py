"""AutoPAVI: a NumPyro guide whose flows are shared by all copies of a latent site, which differ by their encodings.

The front door: options and what one does with a fit. What it knows of a model is in `setup`, its laws in `family`.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Float, Key
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.initialization import init_to_median

from gyri.numerics.validation import as_key, check_option, check_positive_int, check_scalar

from . import encoders, flows
from .copies import log_density, posterior
from .family import Family
from .plates import announce_plate
from .setup import Setup, signature_of


class AutoPAVI(AutoGuide):
    """Plate-amortized variational inference: one conditional flow a latent site, one short encoding a copy.

    Each latent site i of the model has one flow, whose weights all its copies n share; a copy is told from the others
    by its encoding E_{i,n}, and (with ``dependence="parents"``) by the draws of the sites on which its law depends:
    q = prod_i prod_n q_i(theta_{i,n} | parents; phi_i, E_{i,n}). At each step the guide draws at random
    `subsample_sizes` copies of each plate, so that a step costs the same whatever the sizes of the plates.

    The model must index its data by the plates' indices: ``with numpyro.plate("groups", n) as i: ... obs=x[i]``.

    Parameters
    ----------
    model : callable
        A NumPyro model with continuous latent sites in plates, nested or crossed.
    encoding : {"free", "data"}
        Encodings are free parameters, a row a copy ("free", PAVI-F), or come from a network that sees the
        observations ("data", PAVI-E), which then also serves groups that it has never seen. The network sees the
        observations in no order, and no covariates: what has another level of one is to be another observed site.
    encoding_size : int
        Length E of an encoding. A latent of d unconstrained dimensions needs d + d (d + 1) / 2 to lose nothing.
    dependence : {"parents", "prior", "none"}
        The flow sees the draws of a site's parents, less the centres of their laws; or transforms draws of the model's
        own conditional prior; or neither (copies are independent).
    flow : {"affine", "maf", "spline"} or ConditionalFlow
        "maf" and "spline" need flowjax (``gyri-pavi[flows]``).
    encoder : {"deepset", "attention"} or SetEncoder
        For ``encoding="data"``.
    amortize : bool
        False: each copy has flow weights of its own, and no encoding.
    subsample_sizes : dict of str to int, optional
        Plate name to copies drawn a step. Wins over `create_plates`, which wins over ``plate(..., subsample_size=)``.
    hidden : sequence of int
        Hidden layers of the flows' networks.
    prefix : str
        Of the parameters' names.
    init_loc_fn : callable
        NumPyro's initialisation strategy: where each flow starts. Copies start apart if their plates are not
        subsampled, or `init_to_value` has a value for each, and free encodings have an entry for each dimension of the
        site; else at their mean. For the built-in flows, and not for ``dependence="prior"``, which starts at the prior.
    init_scale : float
        Standard deviation of each flow at the start, in unconstrained space.
    create_plates : callable, optional
        NumPyro's convention: ``create_plates(*args, **kwargs)`` returns plates with their subsample sizes.

    Raises
    ------
    ValueError
        An unknown option, an encoding without entries. At the first call: an unknown plate or a bad size in
        `subsample_sizes`, a discrete latent, a batch dimension that is no plate, a parent in a plate that its child is
        not in, ``encoding="data"`` without observations, ``dependence="prior"`` with a law that cannot be
        reparameterised, data that do not follow the plates' indices, data that are not finite outside their masks,
        empty data, free encodings of another number of copies.
    ImportError
        ``flow="maf"`` or ``"spline"`` without flowjax.

    Notes
    -----
    With ``encoding="data"`` and a subsampled plate, sites outside of the plate see an encoding of the drawn copies only
    while training: their training loss is biased. Report :func:`elbo` with ``full=True``.

    References
    ----------
    Rouillard, Le Bris, Moreau, Wassermann (2023), PAVI: plate-amortized variational inference, TMLR.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from gyri.pavi import AutoPAVI, fit
    >>> def model(x):
    ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
    ...     with numpyro.plate("groups", len(x)) as g:
    ...         theta = numpyro.sample("theta", dist.Normal(mu, 1))
    ...         numpyro.sample("x", dist.Normal(theta, 1).to_event(0), obs=x[g])
    >>> x = jnp.linspace(-1, 1, 100)
    >>> guide = AutoPAVI(model, subsample_sizes={"groups": 10})
    >>> result = fit(guide, jax.random.key(0), 20, x, progress_bar=False)
    >>> guide.sample_posterior(jax.random.key(1), result.params, x)["theta"].shape
    (100,)
    """

    def __init__(
        self,
        model: Callable,
        *,
        encoding: str = "free",
        encoding_size: int = 8,
        dependence: str = "parents",
        flow: str | flows.ConditionalFlow = "affine",
        encoder: str | encoders.SetEncoder = "deepset",
        amortize: bool = True,
        subsample_sizes: Mapping[str, int] | None = None,
        hidden: Sequence[int] = (32, 32),
        prefix: str = "auto",
        init_loc_fn: Callable = init_to_median,
        init_scale: float | int = 0.1,
        create_plates: Callable | None = None,
    ) -> None:
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn, create_plates=create_plates)
        self.encoding = check_option(encoding, "encoding", ("free", "data"))
        self.encoding_size = check_positive_int(encoding_size, "encoding_size")
        self.dependence = check_option(dependence, "dependence", ("parents", "prior", "none"))
        self.amortize = bool(amortize)
        self.subsample_sizes = dict(subsample_sizes or {})
        self.hidden = tuple(check_positive_int(n, "hidden") for n in hidden)
        self.init_scale = check_scalar(init_scale, "init_scale", minimum=0, strict=True)
        scale = 1.0 if dependence == "prior" else self.init_scale
        self._builtin_flow = isinstance(flow, str)
        self._builtin = isinstance(flow, str) and isinstance(encoder, str)
        if isinstance(flow, str):
            check_option(flow, "flow", ("affine", "maf", "spline"))
            flow = getattr(flows, flow)(self.hidden, scale=scale)
        self.flow: Any = flow
        if isinstance(encoder, str):
            check_option(encoder, "encoder", ("deepset", "attention"))
            encoder = getattr(encoders, encoder)()
        self.encoder: Any = encoder
        self._full = False
        self._setups: dict[Any, Setup] = {}

    @property
    def full(self) -> "AutoPAVI":
        """The same guide on all copies of all plates, whatever `subsample_sizes`: for `Predictive`."""
        other = copy.copy(self)
        other._full = True
        other._setups = self._setups  # a copy has none of its own: each call would compile anew
        return other

    # --- as a NumPyro guide

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Sample all latent sites on the drawn copies of each plate.

        Parameters
        ----------
        *args, **kwargs
            As for the model.

        Returns
        -------
        dict of str to Array
            Site to draw, constrained, in the shape that the model gives it on the reduced plates.
        """
        setup = self.setup(args, kwargs)
        if not setup.checked:
            setup.check_data(args, kwargs)
        key = numpyro.prng_key()
        index_key, init_key = jax.random.split(as_key(0) if key is None else key)
        indices = {
            name: announce_plate(name, plate.size, setup.draw_plate(index_key, name))
            for name, plate in setup.graph.plates.items()
        }
        started: dict[str, Any] = {}

        def start(name: str) -> Any:
            if not started:
                started.update(setup.init(init_key, args, kwargs))
            return started[name]

        def param(name: str, **options: Any) -> Any:
            return numpyro.param(name, lambda _: start(name), **options)

        encodings = None
        if setup.encodes:
            weights = param(setup.encoder_name)
            with handlers.block(hide_fn=lambda site: site["type"] != "param"):
                encodings = setup.encode(weights, args, kwargs, indices)
        family = Family(setup, indices, param, encodings)
        with family:
            self.model(*args, **kwargs)
        return family.samples

    # --- what one does with a fit

    def sample_posterior(
        self,
        rng_key: Key[Array, ""] | Array | int,
        params: dict,
        *args: Any,
        sample_shape: tuple[int, ...] = (),
        indices: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Sample the posterior of all copies, whatever `subsample_sizes`.

        A copy's draw depends on the key and on its place in its plate, not on `indices` or `chunk_size`.

        Parameters
        ----------
        rng_key : PRNG key or int
            Of the draws.
        params : dict
            Of :func:`fit`, or ``svi.get_params``.
        *args, **kwargs
            Arguments of the model. With ``encoding="data"`` their sizes may differ from those of the fit.
        sample_shape : tuple of int
            How many draws.
        indices : dict of str to array of int, optional
            Plate to the copies wanted; all of the others.
        chunk_size : int, optional
            Copies of the outermost subsampled plate that are sampled at once. All by default.

        Returns
        -------
        dict of str to Array, shape (*sample_shape, *batch_shape, *event_shape)
            Draws in constrained space.
        """
        setup = self.full.setup(args, kwargs)
        n = math.prod(sample_shape)
        draws = posterior(setup, as_key(rng_key), params, args, kwargs, n, _whole(indices), chunk_size, None)
        return {name: x.reshape(*sample_shape, *x.shape[1:]) for name, x in draws.items()}

    def log_density(
        self,
        params: dict,
        samples: Mapping[str, Any],
        *args: Any,
        indices: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Float[Array, "..."]:
        """Log-density of the guide at draws of all latent sites, plate scales not applied.

        Parameters
        ----------
        params : dict
            The guide's parameters.
        samples : dict of str to Array, shape (*sample_shape, *batch_shape, *event_shape)
            A value for each latent site, in constrained space.
        *args, **kwargs
            Arguments of the model.
        indices : dict of str to array of int, optional
            Plate to the copies that `samples` hold; all of the others.

        Returns
        -------
        Array, shape sample_shape
            Sum over sites and copies. Differentiable in `params` and `samples`.

        Raises
        ------
        ValueError
            A site is missing or has another shape.
        """
        setup = self.full.setup(args, kwargs)
        full = setup.all_indices(_whole(indices))
        sizes = {name: len(i) for name, i in full.items()}
        values, shape = {}, None
        for name in setup.latents:
            if name not in samples:
                raise ValueError(f"samples: expected the latent sites {list(setup.latents)}, got {list(samples)}")
            site = setup.graph.sites[name]
            expected = setup.graph.batch_shape(site.plates, sizes) + site.event_shape
            x = jnp.asarray(samples[name])
            lead = x.shape[: x.ndim - len(expected)]
            if x.ndim < len(expected) or x.shape[x.ndim - len(expected) :] != expected or shape not in (None, lead):
                raise ValueError(f"samples: expected {name!r} of shape (*sample_shape, {expected}), got {x.shape}")
            shape = lead
            values[name] = x.reshape(-1, *expected)
        run = setup.program("log_density", partial(log_density, setup))
        return run(params, values, setup.dynamic(args, kwargs), full).reshape(shape or ())

    def encodings(
        self, params: dict, *args: Any, indices: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Array]:
        """Encodings of all copies of all latent sites.

        Parameters
        ----------
        params : dict
            The guide's parameters.
        *args, **kwargs
            Arguments of the model.
        indices : dict of str to array of int, optional
            Plate to the copies wanted; all of the others.

        Returns
        -------
        dict of str to Array, shape (*batch_shape, encoding_size)
            Site to encodings, batched as NumPyro batches the site.

        Raises
        ------
        ValueError
            The guide has none: ``amortize=False``.
        """
        if not self.amortize:
            raise ValueError("encodings: a guide with amortize=False has none, each copy has flow weights of its own")
        setup = self.full.setup(args, kwargs)
        run = setup.program("encodings", setup.full_encodings)
        return run(params, setup.dynamic(args, kwargs), setup.all_indices(_whole(indices)))

    def median(
        self,
        params: dict,
        *args: Any,
        num_samples: int = 1000,
        rng_key: Key[Array, ""] | Array | int | None = None,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Posterior median of each latent, from draws.

        Parameters
        ----------
        params : dict
            The guide's parameters.
        *args, **kwargs
            Arguments of the model.
        num_samples : int
            Draws of each copy; copies go in chunks, so that all draws are never held at once.
        rng_key : PRNG key or int, optional
            Of the draws; a fixed one by default.

        Returns
        -------
        dict of str to Array, shape (*batch_shape, *event_shape)
        """
        return self.quantiles(params, 0.5, *args, num_samples=num_samples, rng_key=rng_key, **kwargs)

    def quantiles(
        self,
        params: dict,
        quantiles: Any,
        *args: Any,
        num_samples: int = 1000,
        rng_key: Key[Array, ""] | Array | int | None = None,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Posterior quantiles of each latent, from draws.

        Parameters
        ----------
        params : dict
            The guide's parameters.
        quantiles : float or sequence of float
            In [0, 1].
        *args, **kwargs
            Arguments of the model.
        num_samples : int
            Draws of each copy; copies go in chunks, so that all draws are never held at once.
        rng_key : PRNG key or int, optional
            Of the draws; a fixed one by default.

        Returns
        -------
        dict of str to Array, shape (*quantiles.shape, *batch_shape, *event_shape)

        Raises
        ------
        ValueError
            A quantile outside [0, 1].
        """
        levels = np.asarray(quantiles, float)
        if levels.size == 0 or not ((levels >= 0) & (levels <= 1)).all():
            raise ValueError(f"quantiles: expected numbers in [0, 1], got {quantiles}")
        num_samples = check_positive_int(num_samples, "num_samples")
        setup = self.full.setup(args, kwargs)
        key = as_key(0 if rng_key is None else rng_key)
        return posterior(
            setup, key, params, args, kwargs, num_samples, {}, "auto", tuple(levels.ravel().tolist()), levels.shape
        )

    # --- setups

    def setup(self, args: tuple, kwargs: dict) -> "Setup":
        """What the guide knows of the model on arguments of these shapes; traced once."""
        signature = (self._full, signature_of((args, kwargs)))
        if signature not in self._setups:
            self._setups[signature] = Setup(self, args, kwargs)
        return self._setups[signature]

    def __getstate__(self) -> dict:
        """For copies and pickles: without what is compiled."""
        return {**super().__getstate__(), "_setups": {}}


def _whole(indices: Mapping[str, Any] | None) -> dict[str, Array]:
    return {name: jnp.atleast_1d(jnp.asarray(i, jnp.int32)) for name, i in (indices or {}).items()}
