"""What a guide knows of a model on arguments of given shapes: sizes, parameters, encodings, compiled programs."""

import inspect
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, PyTree
from numpyro import handlers

from . import start
from .family import Family, Reader
from .plates import PlateGraph, Trace, find_parents, sample_indices, trace_model

if TYPE_CHECKING:
    from .autoguide import AutoPAVI


def _is_dynamic(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _check_arrays(model: Callable, args: tuple, kwargs: dict) -> None:
    """Refuse arguments that are no data, by their names."""
    for (kind, place, *_), leaf in jax.tree_util.tree_leaves_with_path((args, kwargs)):
        if not _is_dynamic(leaf) and (isinstance(leaf, str) or not hasattr(leaf, "__getitem__")):
            continue
        parameters = list(inspect.signature(model).parameters)
        positional = kind.idx == 0 and place.idx < len(parameters)
        name = parameters[place.idx] if positional else getattr(place, "key", "model: an argument")
        if not _is_dynamic(leaf):  # a table, a recording: what a model would index, and find something else
            raise ValueError(f"{name}: expected an array, got {type(leaf).__name__}")
        if leaf.dtype.kind in "OSUMm":
            raise ValueError(f"{name}: expected numbers, got an array of {leaf.dtype}")
        if leaf.size == 0:
            raise ValueError(f"{name}: expected data, got an empty array of shape {leaf.shape}")


def signature_of(tree: Any) -> Any:
    """Shapes of a tree's arrays and the values of all else: what a compiled program depends on."""
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

    def __init__(self, guide: "AutoPAVI", args: tuple, kwargs: dict) -> None:
        self.guide = guide
        self.programs: dict[Any, Any] = {}
        self.checked = False  # the data of one call; a fit looks at its own each time
        leaves, self._treedef = jax.tree.flatten((args, kwargs))
        self._static = [None if _is_dynamic(leaf) else leaf for leaf in leaves]
        _check_arrays(guide.model, args, kwargs)
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
                shapes = jax.eval_shape(lambda name=name: start.flow_params(self, jax.random.key(0), name))
                self.unravel[name] = unraveller(shapes)

    # --- structure

    def _find_sizes(self, whole: Trace, args: tuple, kwargs: dict) -> dict[str, int]:
        plates = whole.graph.plates
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
            raise ValueError(
                f"model: it does not run on {self.sizes} copies of its plates ({error}): {hint}"
            ) from error
        for name, shape in reduced.value_shapes.items():
            fn = reduced.fns[name]
            if type(fn).__name__ == "Unit":  # a factor, whose value is empty by design
                continue
            if 0 in shape:
                raise ValueError(f"model: the observed site {name!r} is empty, its shape is {shape}")
            expected = tuple(fn.batch_shape) + tuple(fn.event_shape)
            try:
                fits = np.broadcast_shapes(shape, expected) == expected
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(
                    f"model: the observed site {name!r} has shape {shape} where its law has {expected}: {hint}"
                )
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
                    f"model: latent site {name!r} has batch shape {tuple(fn.batch_shape)} where its plates have "
                    f"{expected}: declare dimensions that are no plate by `.to_event`"
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
                        f"model: {name!r} depends on {parent!r}, which is in the plates {sorted(outside)} that "
                        f'{name!r} is not in; use dependence="none" or "prior"'
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
        leaves = [next(arrays) if leaf is None else leaf for leaf in self._static]
        return jax.tree.unflatten(self._treedef, leaves)

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
        """Refuse NaN and infinity outside the masks, where the data are concrete."""
        if any(isinstance(leaf, jax.core.Tracer) for leaf in self.dynamic(args, kwargs)):
            return
        # Data that come by a function are read only where it is asked for a few.
        big = any(callable(leaf) for leaf in self._static)
        sizes = self.sizes if big else {name: plate.size for name, plate in self.graph.plates.items()}

        def find_bad(dynamic: list) -> dict[str, Array]:
            args, kwargs = self.arguments(dynamic)
            obs, masks = self.read(args, kwargs, {name: jnp.arange(n) for name, n in sizes.items()})
            return {
                name: (~jnp.isfinite(x).all(-1) & masks[name]).any() for name, x in obs.items() if x.dtype.kind == "f"
            }

        with handlers.block():
            found = self.program("check", find_bad)(self.dynamic(args, kwargs))
        if any(isinstance(bad, jax.core.Tracer) for bad in found.values()):
            return  # concrete data, but inside of a function that is being traced
        for name, bad in found.items():
            if bad:
                raise ValueError(
                    f"model: observed site {name!r} has NaN or infinity outside its mask; mask it by `handlers.mask`"
                )
        self.checked = True

    def read(self, args: tuple, kwargs: dict, indices: Mapping[str, Array]) -> tuple[dict, dict]:
        """Observations and masks as encoders see them: an axis a plate, then the event flattened."""
        reader = Reader(self, indices)
        with handlers.seed(rng_seed=0), reader:
            self.guide.model(*args, **kwargs)
        return reader.obs, reader.masks

    def to_axes(self, x: Array, plates: tuple[str, ...], n_event: int) -> Array:
        """From NumPyro's batch layout to one axis a plate of the graph."""
        batch = x.ndim - n_event
        kept = [batch + self.graph.plates[name].dim for name in self.graph.plates if name in plates]
        x = x.transpose(*kept, *(i for i in range(batch) if i not in kept), *range(batch, x.ndim))
        x = x.reshape(x.shape[: len(kept)] + x.shape[batch:])  # the others have length 1
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

    def init(self, key: Array, args: tuple, kwargs: dict) -> dict[str, Any]:
        """Starting values of the guide's parameters; see :meth:`init_all` for those of the model."""
        return self.program("init", partial(start.guide_params, self))(key, self.dynamic(args, kwargs))

    def init_all(self, key: Array, args: tuple, kwargs: dict) -> dict[str, Any]:
        """Starting values of all parameters, the model's own included, constrained."""
        return self.program("init_all", self.init_all_params)(key, self.dynamic(args, kwargs))

    def init_all_params(self, key: Array, dynamic: list) -> dict[str, Any]:
        """Body of :meth:`init_all`."""
        if not self.model_params:
            return start.guide_params(self, key, dynamic)
        own_key, key = jax.random.split(key)
        return {**start.model_params(self, own_key, dynamic), **start.guide_params(self, key, dynamic)}

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
            if chosen.ndim != 1 or (
                not isinstance(chosen, jax.core.Tracer) and not ((chosen >= 0) & (chosen < size)).all()
            ):
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
                rows[name] = (
                    params[table][self.row_index(name, indices)] if self.graph.sites[name].plates else params[table]
                )
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
                    f"params: plate {plate!r} has {expected[dim]} copies here and {got[dim]} in the fitted parameters "
                    f'of {name!r}; encoding="data" serves other sizes'
                )
        raise ValueError(f"params: expected rows of shape {expected} for {name!r}, got {got}")

    def counts(self, indices: Mapping[str, Array]) -> dict[str, float]:
        """Full size over present size of each plate."""
        return {name: plate.size / indices[name].shape[0] for name, plate in self.graph.plates.items()}

    def encode(self, weights: PyTree, args: tuple, kwargs: dict, indices: Mapping[str, Array]) -> dict[str, Array]:
        """Encodings of all latent sites from the data at the given copies."""
        found = self.guide.encoder.apply(
            weights["network"], *self.standardised(weights, args, kwargs, indices), self.counts(indices)
        )
        return self.site_encodings(found)

    def standardised(
        self, weights: PyTree, args: tuple, kwargs: dict, indices: Mapping[str, Array]
    ) -> tuple[dict, dict]:
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
        sizes = {name: len(i) for name, i in indices.items()}
        shape = lambda name: (*self.graph.batch_shape(self.graph.sites[name].plates, sizes), self.guide.encoding_size)
        # In a plate without observations all copies have the same.
        return {name: jnp.broadcast_to(self.take_copies(name, x, indices), shape(name)) for name, x in found.items()}

    def take_copies(self, name: str, x: Array, indices: Mapping[str, Array]) -> Array:
        """Encodings of a site at the given copies of its plates."""
        for plate in self.graph.sites[name].plates:
            axis = x.ndim - 1 + self.graph.plates[plate].dim
            if x.shape[axis] > 1:  # else the same for all copies
                x = jnp.take(x, indices[plate], axis)
        return x

    # --- runs

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
    ) -> Family:
        """Run the model once with the guide's laws laid over it: draws (or given values), and all terms of the ELBO."""
        with handlers.block(), handlers.seed(rng_seed=0):
            family = Family(self, indices, None, encodings, params=params, rows=rows, noise=noise, values=values)
            with family:
                self.guide.model(*args, **kwargs)
        return family

    def draw_noise(
        self,
        key: Array,
        indices: Mapping[str, Array],
        names: Collection[str] | None = None,
        shape: tuple[int, ...] = (),
    ) -> dict[str, Array]:
        """What the draws of (some) latent sites are made from: one call of the generator, or keys for the priors."""
        names = self.latents if names is None else names
        if self.guide.dependence == "prior":
            return {name: _fold_many(key, name, shape) for name in names}
        sizes = {name: i.shape[0] for name, i in indices.items()}
        sites = {name: self.graph.sites[name] for name in names}
        shapes = {
            k: (*self.graph.batch_shape(site.plates, sizes), site.unconstrained_size) for k, site in sites.items()
        }
        ends = np.cumsum([math.prod(s) for s in shapes.values()])
        numbers = jax.random.normal(key, (*shape, ends[-1])) if names else jnp.zeros((*shape, 0))
        parts = jnp.split(numbers, ends[:-1], -1)
        return {k: part.reshape(*shape, *shapes[k]) for k, part in zip(shapes, parts, strict=True)}

    def given(self, params: Mapping[str, Any], found: Mapping[str, Array]) -> tuple[Any, Any]:
        """Rows and encodings for :meth:`run`, from those of :meth:`full_encodings`."""
        return (None, found) if self.encodes else (found, None)


def _fold(key: Array, name: str) -> Array:
    """A key for a name, the same in every process."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _fold_many(key: Array, name: str, shape: tuple[int, ...]) -> Array:
    key = _fold(key, name)
    return jax.random.split(key, shape) if shape else key


def unraveller(shapes: PyTree) -> Callable[[Array | np.ndarray], PyTree]:
    """From a vector (of `ravel_pytree`) back to a pytree of these shapes; its transpose is one concatenation."""
    leaves, treedef = jax.tree.flatten(shapes)
    sizes = [math.prod(leaf.shape) for leaf in leaves]

    def unravel(vector: Array | np.ndarray) -> PyTree:
        on_host = isinstance(vector, np.ndarray)
        parts: Any = np.split(vector, np.cumsum(sizes)[:-1]) if on_host else jax.lax.split(vector, sizes)
        pairs = zip(parts, leaves, strict=True)
        return jax.tree.unflatten(treedef, [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in pairs])

    return unravel
