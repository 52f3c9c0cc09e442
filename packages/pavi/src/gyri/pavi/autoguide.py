"""AutoPAVI: a NumPyro guide whose flows are shared by all copies of a latent site, which differ by their encodings.

The guide runs the model itself, under a handler that replaces the law of each latent site: plates, scales, shapes and
the laws of the priors at the sampled parents come for free.
"""

import copy
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import ReshapeTransform, Transform
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.initialization import init_to_median

from gyri.numerics.validation import as_key, check_option, check_positive_int, check_scalar

from . import encoders, flows
from .plates import FixPlates, PlateGraph, Trace, announce_plate, find_parents, sample_indices, trace_model

_TABLE_SCALE = 0.1  # of the encodings at the start: copies must differ for the flow to learn to tell them apart


class Term(NamedTuple):
    """What a site adds to log p and log q: arrays over its copies, to be multiplied by their scales."""

    plates: tuple[str, ...]
    scale_p: Any
    log_p: Array | float
    scale_q: Any
    log_q: Array | float


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
        observations ("data", PAVI-E), which then also serves groups that it has never seen.
    encoding_size : int
        Length E of an encoding. A latent of d unconstrained dimensions needs d + d (d + 1) / 2 to lose nothing.
    dependence : {"parents", "prior", "none"}
        The flow sees the draws of a site's parents; or transforms draws of the model's own conditional prior; or
        neither (copies are independent).
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
        NumPyro's initialisation strategy: where each flow starts, averaged over copies. For the built-in flows, and not
        for ``dependence="prior"``, which starts at the prior.
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
        reparameterised, data that do not follow the plates' indices, data with NaN outside their masks, empty data,
        free encodings of another number of copies.
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
        setup.check_data(args, kwargs)
        key = numpyro.prng_key()
        index_key, init_key = (None, None) if key is None else jax.random.split(key)
        indices = {}
        for name, plate in setup.graph.plates.items():
            drawn = setup.draw_plate(index_key, name) if index_key is not None else jnp.arange(plate.size)
            indices[name] = announce_plate(name, plate.size, drawn)
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
        with _Family(setup, indices, param, encodings) as family:
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
        draws = setup.posterior(as_key(rng_key), params, args, kwargs, n, _whole(indices), chunk_size, None)
        return {name: x.reshape(*sample_shape, *x.shape[1:]) for name, x in draws.items()}

    def log_density(
        self, params: dict, samples: Mapping[str, Any], *args: Any, indices: Mapping[str, Any] | None = None, **kwargs: Any
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
        run = setup.program("log_density", setup.log_q)
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
        draws = self.quantiles(params, 0.5, *args, num_samples=num_samples, rng_key=rng_key, **kwargs)
        return draws

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
        return setup.posterior(key, params, args, kwargs, num_samples, {}, "auto", tuple(levels.ravel().tolist()), levels.shape)

    # --- setups

    def setup(self, args: tuple, kwargs: dict) -> "Setup":
        """What the guide knows of the model on arguments of these shapes; traced once."""
        signature = (self._full, _signature((args, kwargs)))
        if signature not in self._setups:
            self._setups[signature] = Setup(self, args, kwargs)
        return self._setups[signature]

    def __getstate__(self) -> dict:
        """For copies and pickles: without what is compiled."""
        return {**super().__getstate__(), "_setups": {}}


def _whole(indices: Mapping[str, Any] | None) -> dict[str, Array]:
    return {name: jnp.atleast_1d(jnp.asarray(i, jnp.int32)) for name, i in (indices or {}).items()}


def _is_dynamic(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _signature(tree: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree)

    def of(leaf: Any) -> Any:
        if _is_dynamic(leaf):
            return leaf.shape, str(leaf.dtype)
        try:
            hash(leaf)
        except TypeError:
            return type(leaf), id(leaf)
        return type(leaf), leaf

    return treedef, tuple(map(of, leaves))


class Setup:
    """A guide on arguments of given shapes: graph, sizes, names of parameters, and the compiled programs."""

    def __init__(self, guide: AutoPAVI, args: tuple, kwargs: dict) -> None:
        self.guide = guide
        self.programs: dict[Any, Any] = {}
        self._checked = False
        leaves, self._treedef = jax.tree.flatten((args, kwargs))
        self._static = [None if _is_dynamic(leaf) else leaf for leaf in leaves]
        whole = trace_model(guide.model, args, kwargs)
        self.sizes = self._find_sizes(whole, args, kwargs)
        self.model_params = whole.params
        factors = {name for name, fn in whole.fns.items() if type(fn).__name__ == "Unit"}
        reduced = self._trace_reduced(whole, args, kwargs)
        graph = find_parents(guide.model, args, kwargs, whole.graph, self.sizes)
        self.graph: PlateGraph = graph
        self.latents = tuple(name for name, site in graph.sites.items() if not site.observed)
        # `numpyro.factor` is no observation.
        self.observed = tuple(name for name, site in graph.sites.items() if site.observed and name not in factors)
        self.encodes = guide.encoding == "data" and guide.amortize
        self._check(reduced)
        self.unravel: dict[str, Callable] = {}
        if not guide.amortize:
            for name in self.latents:
                shapes = jax.eval_shape(lambda name=name: self._init_flow(jax.random.key(0), name))
                self.unravel[name] = unraveller(shapes)

    # --- structure

    def _find_sizes(self, whole: Trace, args: tuple, kwargs: dict) -> dict[str, int]:
        plates = whole.graph.plates
        for name, plate in plates.items():
            if plate.size < 1:
                raise ValueError(f"model: plate {name!r} is empty")
        if self.guide._full:
            return {name: plate.size for name, plate in plates.items()}
        wanted = dict(whole.subsample_sizes)
        if self.guide.create_plates is not None:
            with handlers.block(), handlers.seed(rng_seed=0):
                made = self.guide.create_plates(*args, **kwargs)
            made = [made] if isinstance(made, numpyro.plate) else list(made)
            wanted.update({plate.name: plate.subsample_size for plate in made})
        wanted.update(self.guide.subsample_sizes)
        for name, b in wanted.items():
            if name not in plates:
                raise ValueError(f"subsample_sizes: expected plates among {list(plates)}, got {name!r}")
            if not 1 <= b <= plates[name].size:
                raise ValueError(f"subsample_sizes: expected 1 to {plates[name].size} for {name!r}, got {b}")
        return {name: int(wanted.get(name, plate.size)) for name, plate in plates.items()}

    def _trace_reduced(self, whole: Trace, args: tuple, kwargs: dict) -> Trace:
        """The model on the drawn copies only, which shows whether its data follow the plates' indices."""
        hint = "index the data by the plate's indices: `with numpyro.plate(name, n) as i: ... obs=x[i]`"
        try:
            reduced = trace_model(self.guide.model, args, kwargs, self.sizes)
        except (TypeError, ValueError) as error:
            if self.sizes == {name: plate.size for name, plate in whole.graph.plates.items()}:
                raise
            raise ValueError(f"model: it does not run on {self.sizes} copies of its plates ({error}): {hint}") from error
        for name, shape in reduced.value_shapes.items():
            fn = reduced.fns[name]
            if 0 in shape:
                raise ValueError(f"model: the observed site {name!r} is empty, its shape is {shape}")
            expected = tuple(fn.batch_shape) + tuple(fn.event_shape)
            try:
                fits = np.broadcast_shapes(shape, expected) == expected
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(f"model: the observed site {name!r} has shape {shape} where its law has {expected}: {hint}")
        return reduced

    def _check(self, reduced: Trace) -> None:
        guide, sites = self.guide, self.graph.sites
        if not self.latents:
            raise ValueError("model: expected a latent site, found none")
        if self.encodes and not self.observed:
            raise ValueError('encoding="data": expected a model with an observed site, found none')
        for name in self.latents:
            fn, site = reduced.fns[name], sites[name]
            expected = self.graph.batch_shape(site.plates, self.sizes)
            if tuple(fn.batch_shape) != expected:
                raise ValueError(
                    f"model: latent site {name!r} has batch shape {tuple(fn.batch_shape)} where its plates have {expected}: "
                    "declare dimensions that are no plate by `.to_event`"
                )
            if guide.dependence == "prior" and not fn.has_rsample:
                raise ValueError(
                    f'dependence="prior": the law of {name!r} ({type(fn).__name__}) cannot be sampled with gradients; '
                    'use dependence="parents"'
                )
            for parent in site.parents:
                outside = set(sites[parent].plates) - set(site.plates)
                if guide.dependence == "parents" and outside:
                    raise ValueError(
                        f"model: {name!r} depends on {parent!r}, which is in the plates {sorted(outside)} that {name!r} is "
                        'not in; use dependence="none" or "prior"'
                    )

    @property
    def row_plate(self) -> str | None:
        """The plate whose copies are visited one by one on full data: the outermost subsampled one, or the outermost.

        None if some site sees several of its copies at once.
        """
        sub = self.guide.subsample_sizes
        for name in [*(p for p in self.graph.plates if p in sub), *self.graph.plates]:
            if self._factorises(name):
                return name
        return None

    def _factorises(self, plate: str) -> bool:
        sites = self.graph.sites
        return all(
            plate in site.plates or all(plate not in sites[p].plates for p in site.parents) for site in sites.values()
        )

    @property
    def encoder_name(self) -> str:
        """Of the encoder's parameters."""
        return f"{self.guide.prefix}_encoder$params"

    def flow_name(self, site: str) -> str:
        """Of a site's flow parameters: a pytree, or a table with a row a copy if they are not shared."""
        return f"{site}_{self.guide.prefix}_flow" + ("$params" if self.guide.amortize else "")

    def table_name(self, site: str) -> str | None:
        """Of the parameters with a row a copy, if a site has some."""
        if not self.guide.amortize:
            return self.flow_name(site)
        return None if self.encodes else f"{site}_{self.guide.prefix}_encoding"

    def condition_size(self, name: str) -> int:
        """Entries that a site's flow sees: its encoding and its parents."""
        parents = self.graph.sites[name].parents if self.guide.dependence == "parents" else ()
        size = sum(self.graph.sites[parent].unconstrained_size for parent in parents)
        return size + (self.guide.encoding_size if self.guide.amortize else 0)

    # --- arguments and programs

    def dynamic(self, args: tuple, kwargs: dict) -> list[Any]:
        """The arrays among the model's arguments."""
        return [leaf for leaf in jax.tree.leaves((args, kwargs)) if _is_dynamic(leaf)]

    def arguments(self, dynamic: Sequence[Any]) -> tuple[tuple, dict]:
        """The model's arguments, from their arrays."""
        arrays = iter(dynamic)
        dynamic_places = self._dynamic_places
        leaves = [next(arrays) if i in dynamic_places else leaf for i, leaf in enumerate(self._static)]
        return jax.tree.unflatten(self._treedef, leaves)

    @property
    def _dynamic_places(self) -> set[int]:
        return {i for i, leaf in enumerate(self._static) if leaf is None}

    def program_of(self, name: Any, make: Callable, *options: Any) -> Any:
        """``make(self, *options)``, made once."""
        if name not in self.programs:
            self.programs[name] = make(self, *options)
        return self.programs[name]

    def program(self, name: Any, function: Callable) -> Callable:
        """A function of this setup, compiled once."""
        if name not in self.programs:
            self.programs[name] = jax.jit(function)
        return self.programs[name]

    # --- data

    def check_data(self, args: tuple, kwargs: dict) -> None:
        """Refuse NaN outside the masks, once, where the data are concrete."""
        if self._checked or any(isinstance(leaf, jax.core.Tracer) for leaf in self.dynamic(args, kwargs)):
            return
        # Data that come by a function are read only where it is asked for a few.
        big = any(callable(leaf) for leaf in self._static)
        sizes = self.sizes if big else {name: plate.size for name, plate in self.graph.plates.items()}

        def find_nan(dynamic: list) -> dict[str, Array]:
            args, kwargs = self.arguments(dynamic)
            obs, masks = self.read(args, kwargs, {name: jnp.arange(n) for name, n in sizes.items()})
            return {name: (jnp.isnan(x).any(-1) & masks[name]).any() for name, x in obs.items() if x.dtype.kind == "f"}

        with handlers.block():
            found = jax.device_get(self.program("check", find_nan)(self.dynamic(args, kwargs)))
        for name, bad in found.items():
            if bad:
                raise ValueError(f"model: observed site {name!r} has NaN outside its mask; mask it by `handlers.mask`")
        self._checked = True

    def read(self, args: tuple, kwargs: dict, indices: Mapping[str, Array]) -> tuple[dict, dict]:
        """Observations and masks as encoders see them: an axis a plate, then the event flattened."""
        reader = _Reader(self, indices)
        with handlers.seed(rng_seed=0), reader:
            self.guide.model(*args, **kwargs)
        return reader.obs, reader.masks

    def to_axes(self, x: Array, plates: tuple[str, ...], n_event: int) -> Array:
        """From NumPyro's batch layout to one axis a plate of the graph."""
        batch = x.ndim - n_event
        kept = [batch + self.graph.plates[name].dim for name in self.graph.plates if name in plates]
        x = x.transpose(*kept, *(i for i in range(batch) if i not in kept), *range(batch, x.ndim))
        x = x.reshape(*x.shape[: len(kept)], *x.shape[batch:])  # the others have length 1
        return jnp.expand_dims(x, [i for i, name in enumerate(self.graph.plates) if name not in plates])

    def from_axes(self, x: Array, plates: tuple[str, ...]) -> Array:
        """From one axis a plate of the graph to NumPyro's batch layout, one event axis."""
        names = list(self.graph.plates)
        x = x.reshape(*(x.shape[i] for i, name in enumerate(names) if name in plates), x.shape[-1])
        own = [name for name in names if name in plates]
        by_dim = sorted(own, key=lambda name: self.graph.plates[name].dim)
        x = x.transpose(*(own.index(name) for name in by_dim), len(own))
        n_dims = len(self.graph.batch_shape(plates))
        filled = {n_dims + self.graph.plates[name].dim for name in own}
        return jnp.expand_dims(x, [i for i in range(n_dims) if i not in filled])

    # --- parameters

    def _init_flow(self, key: Array, name: str, loc: Array | None = None) -> PyTree:
        dim = self.graph.sites[name].unconstrained_size
        params = self.guide.flow.init(key, dim, self.condition_size(name))
        return params if loc is None else flows.set_location(params, loc)

    def init(self, key: Array, args: tuple, kwargs: dict) -> dict[str, Any]:
        """Starting values of the guide's parameters; see :meth:`init_all` for those of the model."""
        return self.program("init", self._init)(key, self.dynamic(args, kwargs))

    def _init(self, key: Array, dynamic: list) -> dict[str, Any]:
        guide = self.guide
        args, kwargs = self.arguments(dynamic)
        loc_key, encoder_key, sites_key = jax.random.split(key, 3)
        params: dict[str, Any] = {}
        locs = self._init_locs(loc_key, args, kwargs)
        for name in self.latents:
            flow_key, table_key = jax.random.split(_fold(sites_key, name))
            batch = self.graph.batch_shape(self.graph.sites[name].plates)
            if guide.amortize:
                params[self.flow_name(name)] = self._init_flow(flow_key, name, locs.get(name))
                if not self.encodes:
                    shape = (*batch, guide.encoding_size)
                    params[f"{name}_{guide.prefix}_encoding"] = _TABLE_SCALE * jax.random.normal(table_key, shape)
            else:
                make = lambda key, name=name: ravel_pytree(self._init_flow(key, name, locs.get(name)))[0]
                rows = jax.vmap(make)(jax.random.split(flow_key, math.prod(batch)))
                params[self.flow_name(name)] = rows.reshape(*batch, -1)
        if self.encodes:
            seen = {name: site for name, site in self.graph.sites.items() if name in (*self.latents, *self.observed)}
            net = guide.encoder.init(encoder_key, self.graph._replace(sites=seen), guide.encoding_size)
            params[self.encoder_name] = {"data": self._init_standardisation(args, kwargs), "network": net}
        return params

    def _init_locs(self, key: Array, args: tuple, kwargs: dict) -> dict[str, Array]:
        """Where the strategy starts each site in unconstrained space, averaged over copies."""
        if self.guide.dependence == "prior" or not self.guide._builtin_flow:
            return {}
        strategy = self.guide.init_loc_fn
        start = handlers.substitute(handlers.seed(self.guide.model, key), substitute_fn=strategy)
        with handlers.block(), handlers.trace() as trace, FixPlates(indices=self.first()):
            start(*args, **kwargs)
        locs = {}
        for name in self.latents:
            site = trace[name]
            z = biject_to(site["fn"].support)._inverse(site["value"])
            locs[name] = jnp.nan_to_num(z.reshape(-1, self.graph.sites[name].unconstrained_size)).mean(0)
        return locs

    def _init_standardisation(self, args: tuple, kwargs: dict) -> dict[str, dict[str, Array]]:
        """Mean and scale of the data: the encoder sees them in units of their own."""
        with handlers.block():
            obs, masks = self.read(args, kwargs, self.first())
        found = {}
        for name, x in obs.items():
            axes, weight = tuple(range(x.ndim - 1)), masks[name][..., None]
            n = jnp.maximum(weight.sum(axes), 1)
            mean = jnp.where(weight, x, 0).sum(axes) / n
            deviation = jnp.sqrt(jnp.where(weight, (x - mean) ** 2, 0).sum(axes) / n)
            found[name] = {"mean": mean, "log_scale": jnp.log(jnp.where(deviation > 0, deviation, 1))}
        return found

    def init_all(self, key: Array, args: tuple, kwargs: dict) -> dict[str, Any]:
        """Starting values of all parameters, the model's own included, constrained."""
        return self.program("init_all", self.init_all_params)(key, self.dynamic(args, kwargs))

    def init_all_params(self, key: Array, dynamic: list) -> dict[str, Any]:
        if not self.model_params:
            return self._init(key, dynamic)
        own_key, key = jax.random.split(key)
        args, kwargs = self.arguments(dynamic)
        with handlers.block(), handlers.trace() as trace, handlers.seed(rng_seed=own_key), FixPlates(indices=self.first()):
            self.guide.model(*args, **kwargs)
        own = {name: trace[name]["fn"](*trace[name]["args"], **trace[name]["kwargs"]) for name in self.model_params}
        return {**own, **self._init(key, dynamic)}

    # --- encodings

    def first(self) -> dict[str, Array]:
        """As many copies of each plate as a step draws: the first ones."""
        return {name: jnp.arange(b) for name, b in self.sizes.items()}

    def draw_plate(self, key: Array, name: str) -> Array:
        """Indices of a plate's copies for one step."""
        size, b = self.graph.plates[name].size, self.sizes[name]
        return jnp.arange(size) if b == size else sample_indices(_fold(key, name), size, b)

    def draw_indices(self, key: Array) -> dict[str, Array]:
        """Indices of all plates for one step."""
        return {name: self.draw_plate(key, name) for name in self.graph.plates}

    def all_indices(self, indices: Mapping[str, Array]) -> dict[str, Array]:
        """Indices of all plates: those given, else all copies."""
        for name, chosen in indices.items():
            if name not in self.graph.plates:
                raise ValueError(f"indices: expected plates among {list(self.graph.plates)}, got {name!r}")
            size = self.graph.plates[name].size
            if chosen.ndim != 1 or (not isinstance(chosen, jax.core.Tracer) and not ((chosen >= 0) & (chosen < size)).all()):
                raise ValueError(f"indices: expected a vector of integers in [0, {size}) for {name!r}, got {chosen}")
        return {name: indices.get(name, jnp.arange(plate.size)) for name, plate in self.graph.plates.items()}

    def row_index(self, name: str, indices: Mapping[str, Array]) -> tuple:
        """Index of a site's table at the given copies of its plates."""
        plates = self.graph.sites[name].plates
        n_dims = len(self.graph.batch_shape(plates))
        parts: list[Any] = [np.zeros(1, np.int32)] * n_dims
        for plate in plates:
            parts[self.graph.plates[plate].dim] = indices[plate]
        return tuple(part.reshape([-1 if i == j else 1 for j in range(n_dims)]) for i, part in enumerate(parts))

    def take_rows(
        self, params: Mapping[str, Any], indices: Mapping[str, Array], names: Collection[str] | None = None
    ) -> dict[str, Array]:
        """Rows of all tables (or those of some sites) at the given copies."""
        rows = {}
        for name in self.latents if names is None else names:
            table = self.table_name(name)
            if table is not None:
                self.check_table(name, params[table])
                rows[name] = params[table][self.row_index(name, indices)] if self.graph.sites[name].plates else params[table]
        return rows

    def check_table(self, name: str, table: Any) -> None:
        """Refuse a table of other plates."""
        plates = self.graph.sites[name].plates
        expected, got = self.graph.batch_shape(plates), jnp.shape(table)[:-1]
        if got == expected:
            return
        for plate in plates:
            dim = self.graph.plates[plate].dim
            if len(got) >= -dim and got[dim] != expected[dim]:
                raise ValueError(
                    f"params: plate {plate!r} has {expected[dim]} copies here and {got[dim]} in the fitted parameters of "
                    f'{name!r}; encoding="data" serves other sizes'
                )
        raise ValueError(f"params: expected rows of shape {expected} for {name!r}, got {got}")

    def counts(self, indices: Mapping[str, Array]) -> dict[str, float]:
        """Full size over present size of each plate."""
        return {name: plate.size / indices[name].shape[0] for name, plate in self.graph.plates.items()}

    def encode(self, weights: PyTree, args: tuple, kwargs: dict, indices: Mapping[str, Array]) -> dict[str, Array]:
        """Encodings of all latent sites from the data at the given copies."""
        found = self.guide.encoder.apply(weights["network"], *self.standardised(weights, args, kwargs, indices), self.counts(indices))
        return self.site_encodings(found)

    def standardised(self, weights: PyTree, args: tuple, kwargs: dict, indices: Mapping[str, Array]) -> tuple[dict, dict]:
        """Observations and masks, for the encoder's network."""
        obs, masks = self.read(args, kwargs, indices)
        for name, x in obs.items():
            unit = weights["data"][name]
            # Before the network, so that NaN under a mask never reaches a gradient.
            x = jnp.where(masks[name][..., None], x, unit["mean"])
            obs[name] = (x - unit["mean"]) * jnp.exp(-unit["log_scale"])
        return obs, masks

    def site_encodings(self, found: Mapping[tuple[str, ...], Array]) -> dict[str, Array]:
        """Encodings in the layout of their sites, where there are some."""
        order = {frozenset(plates): x for plates, x in found.items()}
        sites = {name: self.graph.sites[name].plates for name in self.latents}
        return {name: self.from_axes(order[frozenset(p)], p) for name, p in sites.items() if frozenset(p) in order}

    def full_encodings(self, params: dict, dynamic: list, indices: Mapping[str, Array]) -> dict[str, Array]:
        """Encodings at the given copies, which with ``encoding="data"`` have seen all data."""
        if not self.encodes:
            return self.take_rows(params, indices)
        found = self.encode(params[self.encoder_name], *self.arguments(dynamic), self.all_indices({}))
        return {name: self.take_copies(name, x, indices) for name, x in found.items()}

    def take_copies(self, name: str, x: Array, indices: Mapping[str, Array], but: str | None = None) -> Array:
        """Encodings of a site at the given copies of its plates."""
        for plate in self.graph.sites[name].plates:
            axis = x.ndim - 1 + self.graph.plates[plate].dim
            if plate != but and x.shape[axis] > 1:  # else the same for all copies
                x = jnp.take(x, indices[plate], axis)
        return x

    def outer_encodings(
        self, params: dict, dynamic: list, indices: Mapping[str, Array], chunk_size: int | None
    ) -> dict[str, Array]:
        """Encodings of the sites outside of the row plate, from all data, chunk by chunk if the encoder can."""
        args, kwargs = self.arguments(dynamic)
        weights, encoder, plate = params[self.encoder_name], self.guide.encoder, self.row_plate
        everything = self.all_indices({})
        if encoder.rows is None or plate is None:
            found = self.encode(weights, args, kwargs, everything)
        else:
            counts = dict.fromkeys(self.graph.plates, 1.0)

            def row(n: Array) -> Any:
                obs, masks = self.standardised(weights, args, kwargs, {**everything, plate: n[None]})
                return encoder.rows(weights["network"], obs, masks, counts, plate)

            tokens = map_rows(row, everything[plate], chunk_size)
            axis = list(self.graph.plates).index(plate)
            join = lambda x: jnp.moveaxis(x.squeeze(axis + 1), 0, axis)
            inside = {name: plate in self.graph.sites[name].plates for name in self.observed}
            # What lies outside of the plate has told each row the same.
            tokens = {k: jax.tree.map(join if inside[k[0]] else lambda x: x[0], v) for k, v in tokens.items()}
            found = self.site_encodings(encoder.apply(weights["network"], {}, {}, counts, tokens=tokens))
        outside = [name for name in self.latents if plate is None or plate not in self.graph.sites[name].plates]
        return {name: self.take_copies(name, found[name], indices) for name in outside}

    # --- the family

    def law(self, name: str, fn: Any, weights: Any, encoding: Array | None, parents: Sequence[Array]) -> Any:
        """Law of the copies of a latent site: q_i(. | parents; phi_i, E)."""
        prior, mask = unmask(fn)
        transform = biject_to(prior.support)
        shape, dim = transform.inverse_shape(tuple(fn.event_shape)), self.graph.sites[name].unconstrained_size
        batch = tuple(fn.batch_shape)
        parts = [] if encoding is None else [encoding]
        parts += parents
        condition = [jnp.broadcast_to(part, (*batch, part.shape[-1])) for part in parts]
        flow = self.guide.flow if self.guide.amortize else _per_copy(self.guide.flow, self.unravel[name])
        move = flows.FlowTransform(flow, weights, jnp.concatenate(condition, -1) if parts else jnp.zeros((*batch, 0)))
        flatten = [] if shape == (dim,) else [ReshapeTransform((dim,), shape)]
        unflatten = [] if shape == (dim,) else [ReshapeTransform(shape, (dim,))]
        if self.guide.dependence == "prior":
            law = dist.TransformedDistribution(prior, [_Unconstrain(transform), *flatten, move, *unflatten, transform])
        else:
            dtype = weights_dtype(weights)
            base = dist.Normal(jnp.zeros((), dtype), jnp.ones((), dtype)).expand((*batch, dim)).to_event(1)
            law = dist.TransformedDistribution(base, [move, *unflatten, transform])
        return law if mask is None else law.mask(mask)

    def run(
        self,
        params: Mapping[str, Any],
        rows: Mapping[str, Array] | None,
        encodings: Mapping[str, Array] | None,
        args: tuple,
        kwargs: dict,
        indices: Mapping[str, Array],
        *,
        noise: Mapping[str, Array] | None = None,
        values: Mapping[str, Array] | None = None,
    ) -> "_Family":
        """Run the model once with the guide's laws laid over it: draws (or given values), and all terms of the ELBO."""
        with handlers.block(), handlers.seed(rng_seed=0):
            family = _Family(self, indices, None, encodings, params=params, rows=rows, noise=noise, values=values)
            with family:
                self.guide.model(*args, **kwargs)
        return family

    def draw_noise(
        self, key: Array, indices: Mapping[str, Array], names: Collection[str] | None = None, shape: tuple[int, ...] = ()
    ) -> dict[str, Array]:
        """What the draws of (some) latent sites are made from: one call of the generator, or keys for the priors'."""
        names = self.latents if names is None else names
        if self.guide.dependence == "prior":
            return {name: _fold_many(key, name, shape) for name in names}
        sizes = {name: i.shape[0] for name, i in indices.items()}
        sites = {name: self.graph.sites[name] for name in names}
        shapes = {k: (*self.graph.batch_shape(site.plates, sizes), site.unconstrained_size) for k, site in sites.items()}
        ends = np.cumsum([math.prod(s) for s in shapes.values()])
        numbers = jax.random.normal(key, (*shape, ends[-1])) if names else jnp.zeros((*shape, 0))
        parts = jnp.split(numbers, ends[:-1], -1)
        return {k: part.reshape(*shape, *shapes[k]) for k, part in zip(shapes, parts, strict=True)}

    def given(self, params: Mapping[str, Any], found: Mapping[str, Array]) -> tuple[Any, Any]:
        """Rows and encodings for :meth:`run`, from those of :meth:`full_encodings`."""
        return (None, found) if self.encodes else (found, None)

    def log_q(self, params: dict, values: dict, dynamic: list, indices: dict) -> Array:
        """Log-density of the guide, for values with a leading axis."""
        args, kwargs = self.arguments(dynamic)
        rows, encodings = self.given(params, self.full_encodings(params, dynamic, indices))

        def one(values: dict) -> Array:
            family = self.run(params, rows, encodings, args, kwargs, indices, values=values)
            return sum(jnp.sum(term.log_q) for term in family.terms.values())

        return jax.vmap(one)(values)

    # --- all copies, row by row

    def rows_of(
        self, params: dict, dynamic: list, indices: Mapping[str, Array], chunk_size: int | None
    ) -> tuple[Callable[[Array, Array], "_Family"], str | None]:
        """A function of a key and an index that runs the model on one copy of the row plate, and all of the others.

        Draws inside the row plate depend on the key and the index, those outside on the key alone. So all copies can
        be visited in chunks of any size with the same result.
        """
        args, kwargs = self.arguments(dynamic)
        plate = self.row_plate
        outer = self.outer_encodings(params, dynamic, indices, chunk_size) if self.encodes else {}

        def run(key: Array, n: Array | None) -> "_Family":
            chosen = dict(indices) if plate is None or n is None else {**indices, plate: n[None]}
            inside = [k for k in self.latents if plate in self.graph.sites[k].plates]
            outside = [k for k in self.latents if k not in inside]
            noise = self.draw_noise(key, chosen, outside) if outside else {}
            if inside and n is not None:
                noise |= self.draw_noise(jax.random.fold_in(key, n + 1), chosen, inside)
            if not self.encodes:
                return self.run(params, self.take_rows(params, chosen), None, args, kwargs, chosen, noise=noise)
            found = dict(outer)
            if plate is not None and n is not None:
                own = self.encode(params[self.encoder_name], args, kwargs, {**self.all_indices({}), plate: n[None]})
                found.update({name: self.take_copies(name, own[name], indices, but=plate) for name in inside})
            return self.run(params, None, found, args, kwargs, chosen, noise=noise)

        return run, plate

    def posterior(
        self,
        key: Array,
        params: dict,
        args: tuple,
        kwargs: dict,
        n: int,
        indices: dict,
        chunk_size: Any,
        quantiles: tuple[float, ...] | None,
        shape: tuple[int, ...] = (),
    ) -> dict[str, Array]:
        """n draws of all copies, or their quantiles."""
        full = self.all_indices(indices)
        plate = self.row_plate
        if chunk_size == "auto":
            per_row = n * sum(
                math.prod((*self.graph.batch_shape(s.plates), *s.event_shape)) for s in (self.graph.sites[k] for k in self.latents)
            ) // (self.graph.plates[plate].size if plate else 1)  # fmt: skip
            chunk_size = max(1, 2**22 // max(per_row, 1)) if plate else None
        elif chunk_size is not None:
            chunk_size = check_positive_int(chunk_size, "chunk_size")
            if plate is None:
                raise ValueError("chunk_size: the model has no plate whose copies are independent given the rest")

        def draw(key: Array, params: dict, dynamic: list, full: dict) -> dict[str, Array]:
            run, plate = self.rows_of(params, dynamic, full, chunk_size)
            keys = jax.random.split(key, n)

            def row(i: Array | None) -> dict[str, Array]:
                draws = jax.vmap(lambda key: run(key, i).samples)(keys)
                if quantiles is None:
                    return draws
                levels = jnp.asarray(quantiles)
                return {k: jnp.quantile(x, levels, axis=0).astype(x.dtype).reshape(*shape, *x.shape[1:]) for k, x in draws.items()}

            if plate is None:
                return row(None)
            inside = [k for k in self.latents if plate in self.graph.sites[k].plates]
            once = row(full[plate][0])
            out = {k: x for k, x in once.items() if k not in inside}
            if inside:
                local = map_rows(lambda i: {k: row(i)[k] for k in inside}, full[plate], chunk_size)
                for k, x in local.items():
                    axis = x.ndim + self.graph.plates[plate].dim - len(self.graph.sites[k].event_shape)
                    # The copy's own axis has length 1: the rows take its place.
                    out[k] = jnp.moveaxis(x.squeeze(axis), 0, axis - 1)
            return {k: out[k] for k in self.latents}

        name = ("posterior", n, chunk_size, quantiles, shape)
        return self.program(name, draw)(key, params, self.dynamic(args, kwargs), full)


def map_rows(row: Callable, rows: Array, chunk_size: int | None) -> Any:
    """Rows at once, or in chunks."""
    if chunk_size is None or chunk_size >= len(rows):
        return jax.vmap(row)(rows)
    return jax.lax.map(row, rows, batch_size=chunk_size)


def _fold(key: Array, name: str) -> Array:
    """A key for a name, the same in every process."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _fold_many(key: Array, name: str, shape: tuple[int, ...]) -> Array:
    key = _fold(key, name)
    return jax.random.split(key, shape) if shape else key


def _push(law: Any, noise: Array) -> tuple[Array, list]:
    """A draw of a transformed law from standard normal numbers, or from a key; with what its density needs."""
    if jax.dtypes.issubdtype(noise.dtype, jax.dtypes.prng_key):
        return law.sample_with_intermediates(noise)
    x, intermediates = noise.astype(weights_dtype(law.transforms[0].params)), []
    for transform in law.transforms:
        y, inner = transform.call_with_intermediates(x)
        intermediates.append([x, inner])
        x = y
    return x, intermediates


def weights_dtype(weights: PyTree) -> Any:
    """Of the draws of a flow with these weights."""
    return jnp.result_type(*jax.tree.leaves(weights))


def unraveller(shapes: PyTree) -> Callable[[Array], PyTree]:
    """From a vector (of `ravel_pytree`) back to a pytree of these shapes; its transpose is one concatenation."""
    leaves, treedef = jax.tree.flatten(shapes)
    sizes = [math.prod(leaf.shape) for leaf in leaves]

    def unravel(vector: Array) -> PyTree:
        parts = jax.lax.split(vector, sizes)
        pairs = zip(parts, leaves, strict=True)
        return jax.tree.unflatten(treedef, [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in pairs])

    return unravel


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


class _Family(FixPlates):
    """The guide's laws laid over a run of the model.

    With `param` (a function of names like `numpyro.param`) its latent sites go on to the handlers outside, as a guide's
    do. With `params` (all of the guide's and the model's parameters) nothing does, and the terms of the ELBO are kept.
    """

    def __init__(
        self,
        setup: Setup,
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
        self.setup, self.encodings = setup, encodings
        self.param, self.params, self.rows, self.noise, self.values = param, params, rows, noise, values
        self.unconstrained: dict[str, Array] = {}
        self.samples: dict[str, Array] = {}
        self.terms: dict[str, Term] = {}

    def process_message(self, msg: Any) -> None:
        """Give plates their indices and latent sites their laws; keep the rest of the model from the outside."""
        super().process_message(msg)
        kind = msg["type"]
        if kind == "deterministic":
            msg["stop"] = True
        elif kind == "param" and self.params is not None and msg["name"] in self.params:
            msg["value"] = self.params[msg["name"]]
            msg["stop"] = True
        elif kind == "sample":
            if msg["is_observed"]:
                if self.params is not None:
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
        return math.prod(self.setup.graph.plates[name].size / self.indices[name].shape[0] for name in plates)

    def _law(self, name: str, fn: Any) -> Any:
        setup, guide = self.setup, self.setup.guide
        encoding = None
        if self.param is not None:
            if guide.amortize:
                weights = self.param(setup.flow_name(name))
            if not setup.encodes:
                encoding = self.param(setup.table_name(name), event_dim=1)
        else:
            assert self.params is not None
            if guide.amortize:
                weights = self.params[setup.flow_name(name)]
            if not setup.encodes:
                assert self.rows is not None
                encoding = self.rows[name]
        if setup.encodes:
            assert self.encodings is not None
            encoding = self.encodings[name]
        if not guide.amortize:
            weights, encoding = encoding, None
        parents = setup.graph.sites[name].parents if guide.dependence == "parents" else ()
        return setup.law(name, fn, weights, encoding, [self.unconstrained[parent] for parent in parents])

    def _remember(self, name: str, fn: Any, value: Array, drawn: Array | None = None) -> None:
        """Keep a value, and what children see of it."""
        self.samples[name] = value
        z = biject_to(fn.support)._inverse(value) if drawn is None else drawn
        batch = z.shape[: z.ndim - _unconstrained_ndim(fn)]
        self.unconstrained[name] = z.reshape(*batch, -1)

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
            assert self.noise is not None
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


def _unconstrained_ndim(fn: Any) -> int:
    return len(biject_to(fn.support).inverse_shape(tuple(fn.event_shape)))


class _Reader(FixPlates):
    """Read what a model observes on given copies; its latent sites get some value of the right shape."""

    def __init__(self, setup: Setup, indices: Mapping[str, Array]) -> None:
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
                shape = tuple(fn.batch_shape) + transform.inverse_shape(tuple(fn.event_shape))
                msg["value"] = transform(jnp.zeros(shape))
            elif msg["name"] in self.setup.observed:
                self._read(msg["name"], fn, jnp.asarray(msg["value"]))
            msg["stop"] = True

    def _read(self, name: str, fn: Any, value: Array) -> None:
        plates = self.setup.graph.sites[name].plates
        batch, n_event = tuple(fn.batch_shape), len(fn.event_shape)
        value = jnp.broadcast_to(value, (*batch, *fn.event_shape))
        _, mask = unmask(fn)
        mask = jnp.broadcast_to(True if mask is None else mask, batch)
        x = self.setup.to_axes(value, plates, n_event)
        x = x.reshape(*x.shape[: x.ndim - n_event], -1)
        self.obs[name] = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
        self.masks[name] = self.setup.to_axes(mask, plates, 0)
