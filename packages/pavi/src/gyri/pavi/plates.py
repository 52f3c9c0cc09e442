"""Plates of a NumPyro model: which there are, who lives in them, and how to run the model on a random part of them."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Int, Key, PyTree
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.inspect import get_dependencies
from numpyro.primitives import Messenger, apply_stack

from gyri.numerics.validation import as_key

_FEW = 256  # draws that are compared pairwise; more are sorted


class Plate(NamedTuple):
    """A plate: how many copies, and which batch dimension (negative) they take."""

    size: int
    dim: int


class Site(NamedTuple):
    """A template: one `numpyro.sample` statement, whatever the number of its copies.

    Attributes
    ----------
    plates : tuple of str
        The plates around it, outermost first.
    parents : tuple of str
        Latent sites on which its law depends directly, in the order of the model.
    event_shape : tuple of int
        Of one copy.
    unconstrained_size : int
        Entries of one copy in unconstrained space; 0 for observed sites.
    observed : bool
        Whether the model observes it.
    """

    plates: tuple[str, ...]
    parents: tuple[str, ...]
    event_shape: tuple[int, ...]
    unconstrained_size: int
    observed: bool


class PlateGraph(NamedTuple):
    """Template graph of a model: plates, outermost first, and sites in the order of the model.

    Attributes
    ----------
    plates : dict of str to Plate
        Fields `size`, `dim`.
    sites : dict of str to Site
        Fields `plates`, `parents`, `event_shape`, `unconstrained_size`, `observed`.
    """

    plates: dict[str, Plate]
    sites: dict[str, Site]

    def batch_shape(self, plates: tuple[str, ...], sizes: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """Batch shape of a site in these plates, in NumPyro's layout: 1 where a dimension belongs to none of them."""
        shape = [1] * max((-self.plates[name].dim for name in plates), default=0)
        for name in plates:
            shape[self.plates[name].dim] = self.plates[name].size if sizes is None else sizes[name]
        return tuple(shape)


def sample_indices(rng_key: Key[Array, ""] | Array | int, size: int, num: int) -> Int[Array, " {num}"]:
    """Draw distinct integers uniformly, in time and memory that do not grow with their range.

    Draws integers with replacement, then draws again what another place already holds until none does. That treats all
    integers alike, so that every subset is equally likely.

    Parameters
    ----------
    rng_key : PRNG key or int
        Of the draw.
    size : int
        The integers are 0, ..., size - 1.
    num : int
        How many, at most `size`.

    Returns
    -------
    Array, shape (num,), int32
        Distinct integers in random order.

    Raises
    ------
    ValueError
        `num` below 0 or above `size`.

    Examples
    --------
    >>> import jax
    >>> from gyri.pavi import sample_indices
    >>> len(set(sample_indices(jax.random.key(0), 1_000_000, 5).tolist()))
    5
    """
    if not 0 <= num <= size:
        raise ValueError(f"num: expected 0 to size={size} distinct integers, got {num}")
    rng_key = as_key(rng_key)
    if 4 * num >= size:  # too many draws would be repeated
        order = jax.random.bits(rng_key, (2, size), jnp.uint32)
        return jax.lax.sort((*order, jnp.arange(size, dtype=jnp.int32)), num_keys=2)[2][:num]
    # Integers below a power of two, those that are too large being drawn again: no remainder, no bias.
    shift = 32 - (size - 1).bit_length()

    def redraw(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, values, wanted = state
        bits = jax.random.bits(jax.random.fold_in(rng_key, i), (num,), jnp.uint32)
        values = jnp.where(wanted, (bits >> shift).astype(jnp.int32), values)
        return i + 1, values, (values >= size) | _repeats(values, wanted)

    state = (jnp.int32(0), jnp.zeros(num, jnp.int32), jnp.ones(num, bool))
    return jax.lax.while_loop(lambda state: state[2].any(), redraw, state)[1]


def _repeats(values: Array, new: Array) -> Array:
    """Where a value is held by an older place, or by an earlier one of the same age."""
    n = len(values)
    place = jnp.arange(n)
    if n <= _FEW:
        age = jnp.where(new, place + n, place)
        return ((values[:, None] == values) & (age[:, None] > age)).any(1)
    order = jnp.lexsort((place, new, values))
    ordered = values[order]
    return jnp.zeros(n, bool).at[order[1:]].set(ordered[1:] == ordered[:-1])


class FixPlates(Messenger):
    """Run a model on given indices of its plates, unseen by the handlers outside.

    Parameters
    ----------
    fn : callable, optional
        The model.
    indices : dict of str to Array
        Plate to indices; all of it where there are none.
    """

    def __init__(self, fn: Callable | None = None, *, indices: Mapping[str, Array]) -> None:
        self.indices = indices
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Give a plate its indices."""
        if msg["type"] == "plate":
            size = msg["args"][0]
            msg["value"] = self.indices[msg["name"]] if msg["name"] in self.indices else jnp.arange(size)
            msg["args"] = (size, msg["value"].shape[0])
            msg["stop"] = True


class _SeePlates(Messenger):
    """Note the sizes of the plates that a model makes."""

    def __init__(self, fn: Callable) -> None:
        self.plates: dict[str, tuple[int, int | None]] = {}
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "plate":
            size, subsample_size = msg["args"]
            name = msg["name"]
            if self.plates.setdefault(name, (size, subsample_size))[0] != size:
                raise ValueError(f"model: plate {name!r} has sizes {self.plates[name][0]} and {size}")


def announce_plate(name: str, size: int, indices: Array) -> Array:
    """Tell the handlers outside a plate's indices, and hear from them if they want others.

    A plate of NumPyro would draw indices in O(size) first; this sends its message with ours instead.
    """
    msg = apply_stack(
        {
            "type": "plate",
            "name": name,
            "fn": lambda *args, **kwargs: indices,
            "args": (size, indices.shape[0]),
            "kwargs": {"rng_key": None},
            "value": indices,
            "scale": 1.0,
            "cond_indep_stack": [],
            "infer": {},
        }
    )
    return jnp.asarray(msg["value"])


class Trace(NamedTuple):
    """What one abstract run of a model tells: its graph without parents, and what the guide wants to know besides."""

    graph: PlateGraph
    subsample_sizes: dict[str, int]
    """Of the plates for which the model asks for one."""
    fns: dict[str, Any]
    """Site to distribution; its arrays are dead tracers, only shapes and classes may be read."""
    params: dict[str, Any]
    """The model's own parameters: name to constraint, or None for a pytree."""
    value_shapes: dict[str, tuple[int, ...]]
    """Shapes of the observed values."""


def _as_jax(tree: PyTree) -> PyTree:
    """NumPy's arrays as JAX's: a model indexes its data by a plate's indices, which NumPy refuses when traced."""
    numbers = lambda leaf: isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if numbers(leaf) else leaf, tree)


def trace_model(model: Callable, args: tuple, kwargs: dict, sizes: Mapping[str, int] | None = None) -> Trace:
    """Run a model without computing anything, on all of each plate or on the given number of copies."""
    args, kwargs = _as_jax((args, kwargs))
    indices = {name: jnp.arange(b) for name, b in (sizes or {}).items()}
    trace: dict[str, Any] = {}
    unconstrained: dict[str, int] = {}
    seen = _SeePlates(model)

    def run() -> Array:
        fixed = FixPlates(seen, indices=indices)
        with handlers.block(), handlers.trace() as messages, handlers.seed(rng_seed=0):
            fixed(*args, **kwargs)
        trace.update(messages)
        for name, msg in messages.items():
            if msg["type"] == "sample" and not msg["is_observed"]:  # here, where the bounds of a support are alive
                unconstrained[name] = _unconstrained_size(name, msg["fn"])
        return jnp.zeros(())

    jax.eval_shape(run)
    plates = seen.plates
    dims: dict[str, int] = {}
    sites: dict[str, Site] = {}
    fns = {}
    for name, msg in trace.items():
        if msg["type"] != "sample":
            continue
        stack = msg["cond_indep_stack"][::-1]
        for frame in stack:
            if dims.setdefault(frame.name, frame.dim) != frame.dim:
                raise ValueError(f"model: plate {frame.name!r} has dimensions {dims[frame.name]} and {frame.dim}")
        fn, observed = msg["fn"], msg["is_observed"]
        own = tuple(frame.name for frame in stack)
        sites[name] = Site(own, (), tuple(fn.event_shape), unconstrained.get(name, 0), observed)
        fns[name] = fn
    order = _outermost_first(site.plates for site in sites.values())
    graph = PlateGraph({name: Plate(plates[name][0], dims[name]) for name in order}, sites)
    return Trace(
        graph,
        {name: b for name, (size, b) in plates.items() if b is not None and b != size},
        fns,
        {name: _constraint(msg) for name, msg in trace.items() if msg["type"] == "param"},
        {name: jnp.shape(trace[name]["value"]) for name, site in sites.items() if site.observed},
    )  # fmt: skip


def _constraint(msg: Any) -> Any:
    return None if msg["name"].endswith("$params") else msg["kwargs"].get("constraint", dist.constraints.real)


def _outermost_first(paths: Iterable[tuple[str, ...]]) -> list[str]:
    """An order of all plates that follows each path of nested plates, and the order in which the paths come."""
    outside: dict[str, set[str]] = {}
    for path in paths:
        for i, name in enumerate(path):
            outside.setdefault(name, set()).update(path[:i])
    order: list[str] = []
    while len(order) < len(outside):
        rest = [name for name in outside if name not in order]
        free = [name for name in rest if outside[name].issubset(order)]
        order.append((free or rest)[0])  # none is free if a model enters two plates in both orders
    return order


def _unconstrained_size(name: str, fn: Any) -> int:
    if fn.support is None or fn.support.is_discrete:
        raise ValueError(
            f"model: latent site {name!r} is discrete ({type(fn).__name__}), a flow needs continuous ones: marginalise "
            "it (for example MixtureSameFamily, or enumerate by hand with logsumexp)"
        )
    return math.prod(unconstrained_shape(fn))


def unconstrained_shape(fn: Any) -> tuple[int, ...]:
    """Event shape of a law in unconstrained space."""
    batch = tuple(fn.batch_shape)  # the bounds of a support may have one
    return tuple(biject_to(fn.support).inverse_shape(batch + tuple(fn.event_shape)))[len(batch) :]


def find_parents(model: Callable, args: tuple, kwargs: dict, graph: PlateGraph, sizes: Mapping[str, int]) -> PlateGraph:
    """Add the parents of all sites to a graph."""
    args, kwargs = _as_jax((args, kwargs))
    fixed = FixPlates(model, indices={name: jnp.arange(b) for name, b in sizes.items()})
    with handlers.block():
        found = get_dependencies(fixed, args, kwargs)["prior_dependencies"]
    latents = [name for name, site in graph.sites.items() if not site.observed]
    return graph._replace(
        sites={
            name: site._replace(parents=tuple(p for p in latents if p != name and p in found[name]))
            for name, site in graph.sites.items()
        }
    )


def plate_graph(model: Callable, *args: Any, **kwargs: Any) -> PlateGraph:
    """Read the template graph of a NumPyro model: plates, sites, and who depends on whom.

    Parameters
    ----------
    model : callable
        A NumPyro model.
    *args, **kwargs
        Its arguments. Nothing is computed: sizes cost nothing.

    Returns
    -------
    PlateGraph
        With `plates` (name to size and dim, outermost first) and `sites` (name to plates, parents, event_shape,
        unconstrained_size and observed).

    Raises
    ------
    ValueError
        A discrete latent site, or a plate with two sizes or dimensions.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro
    >>> import numpyro.distributions as dist
    >>> from gyri.pavi import plate_graph
    >>> def model(x):
    ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
    ...     with numpyro.plate("groups", 3):
    ...         theta = numpyro.sample("theta", dist.Normal(mu, 1))
    ...         numpyro.sample("x", dist.Normal(theta, 1), obs=x)
    >>> graph = plate_graph(model, jnp.zeros(3))
    >>> graph.plates["groups"], graph.sites["theta"].parents
    (Plate(size=3, dim=-1), ('mu',))
    """
    graph = trace_model(model, args, kwargs).graph
    ones = dict.fromkeys(graph.plates, 1)
    try:
        return find_parents(model, args, kwargs, graph, ones)
    except (TypeError, ValueError):  # data that do not follow the plates' indices: all of each plate
        return find_parents(model, args, kwargs, graph, {name: plate.size for name, plate in graph.plates.items()})
