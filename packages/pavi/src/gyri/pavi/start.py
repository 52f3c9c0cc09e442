"""Where a guide starts: each site at its strategy's value, encodings apart from each other, weights from one draw."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree
from numpyro import handlers
from numpyro.distributions import biject_to

from . import flows
from .plates import FixPlates, unconstrained_shape

if TYPE_CHECKING:
    from .setup import Setup

_TABLE_SCALE = 0.1  # of the encodings: copies must differ for the flow to learn to tell them apart


def flow_params(
    setup: "Setup", key: flows.Source, name: str, loc: Array | None = None, slope: Array | None = None
) -> PyTree:
    """Weights of a site's flow that starts at `loc`, plus `slope` times the first entries of its encoding."""
    params = setup.guide.flow.init(key, setup.graph.sites[name].unconstrained_size, setup.condition_size(name))
    return params if loc is None else flows.set_location(params, loc, slope)


def guide_params(setup: "Setup", key: Array, dynamic: list) -> dict[str, Any]:
    """Parameters of the guide."""
    guide, sites = setup.guide, setup.graph.sites
    args, kwargs = setup.arguments(dynamic)
    loc_key, table_key, own_key = jax.random.split(key, 3)
    locs = _locations(setup, loc_key, args, kwargs)
    batches = {name: setup.graph.batch_shape(sites[name].plates) for name in setup.latents}
    if not guide.amortize:
        return _unshared(setup, own_key, batches, locs)
    params: dict[str, Any] = {}
    starts: dict[str, tuple] = {}  # of each site: mean and slope
    tables = {} if setup.encodes else _tables(table_key, batches, guide.encoding_size)
    for name, loc in locs.items():
        dim, slope = loc.shape[-1], None
        mean = loc.reshape(-1, dim).mean(0)
        if name in tables and dim <= guide.encoding_size and loc.size > dim:
            # Copies that start apart: the encodings hold where, in units of their spread.
            slope = jnp.sqrt(jnp.mean((loc - mean) ** 2))
            apart = (loc - mean) / jnp.where(slope > 0, slope, 1)
            tables[name] = tables[name].at[..., :dim].add(apart)
        starts[name] = mean, slope
    for name, table in tables.items():
        params[f"{name}_{guide.prefix}_encoding"] = table

    units = _units(setup, args, kwargs) if setup.encodes else {}

    def networks(key: Any) -> dict[str, Any]:
        keys = iter(flows.split_key(key, 1 + len(setup.latents)))
        made = {}
        for name in setup.latents:
            made[setup.flow_name(name)] = flow_params(setup, next(keys), name, *starts.get(name, ()))
        if setup.encodes:
            seen = {name: site for name, site in sites.items() if name in (*setup.latents, *setup.observed)}
            network = guide.encoder.init(next(keys), setup.graph._replace(sites=seen), guide.encoding_size)
            made[setup.encoder_name] = {"data": units, "network": network}
        return made

    # A user's own flow or encoder wants a key.
    return {**params, **(flows.draw_at_once(own_key, networks) if guide._builtin else networks(own_key))}


def _unshared(setup: "Setup", key: Array, batches: dict[str, tuple[int, ...]], locs: dict[str, Array]) -> dict:
    """A row of weights for each copy of each site."""
    params = {}
    for own_key, name in zip(jax.random.split(key, len(setup.latents)), setup.latents, strict=True):
        n, loc = math.prod(batches[name]), locs.get(name)
        own = None if loc is None else jnp.broadcast_to(loc, (*batches[name], loc.shape[-1])).reshape(n, -1)
        make = lambda key, loc, name=name: ravel_pytree(flow_params(setup, key, name, loc))[0]
        rows = jax.vmap(make, (0, None if own is None else 0))(jax.random.split(own_key, n), own)
        params[setup.flow_name(name)] = rows.reshape(*batches[name], -1)
    return params


def model_params(setup: "Setup", key: Array, dynamic: list) -> dict[str, Any]:
    """Parameters of the model, where it says itself that they start."""
    args, kwargs = setup.arguments(dynamic)
    fixed = FixPlates(indices=setup.first())
    with handlers.block(), handlers.trace() as trace, handlers.seed(rng_seed=key), fixed:
        setup.guide.model(*args, **kwargs)
    return {name: trace[name]["fn"](*trace[name]["args"], **trace[name]["kwargs"]) for name in setup.model_params}


def _tables(key: Array, batches: dict[str, tuple[int, ...]], encoding_size: int) -> dict[str, Array]:
    shapes = {name: (*batch, encoding_size) for name, batch in batches.items()}
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = jnp.split(_TABLE_SCALE * jax.random.normal(key, (int(ends[-1]),)), ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _locations(setup: "Setup", key: Array, args: tuple, kwargs: dict) -> dict[str, Array]:
    """Where the strategy starts each site in unconstrained space: (*batch, dim), 1 long in the subsampled plates.

    There, what is drawn for a few copies is averaged, for a start that costs no more on a large plate. Values that the
    strategy has for all copies are kept, all of them.
    """
    guide, graph = setup.guide, setup.graph
    if guide.dependence == "prior" or not guide._builtin_flow:
        return {}
    trace, whole = _trace_start(setup, key, args, kwargs, setup.sizes)
    sizes = dict(setup.sizes)
    if whole:  # their parents may bound them, and a few of these are too few
        sizes |= {plate: graph.plates[plate].size for plates in whole.values() for plate in plates}
        trace, _ = _trace_start(setup, key, args, kwargs, sizes)
    locs = {}
    for name in setup.latents:
        site, plates = trace[name], graph.sites[name].plates
        z = jnp.nan_to_num(biject_to(site["fn"].support)._inverse(site["value"]))
        lead = z.shape[: z.ndim - len(unconstrained_shape(site["fn"]))]
        dim = graph.sites[name].unconstrained_size
        z = jnp.broadcast_to(z.reshape(*lead, dim), (*graph.batch_shape(plates, sizes), dim))
        averaged = [p for p in plates if setup.sizes[p] < graph.plates[p].size and p not in whole.get(name, ())]
        few = [graph.plates[plate].dim - 1 for plate in averaged]
        locs[name] = z.mean(few, keepdims=True) if few else z
    return locs


def _trace_start(
    setup: "Setup", key: Array, args: tuple, kwargs: dict, sizes: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, set[str]]]:
    """Run the model at the strategy's values on the first copies; also the sites and plates with values for all."""
    graph = setup.graph
    whole: dict[str, set[str]] = {}

    def start(site: Any) -> Any:
        value = setup.guide.init_loc_fn(site)
        if value is None or site["name"] not in setup.latents:
            return value
        for plate in graph.sites[site["name"]].plates:
            axis = graph.plates[plate].dim - len(graph.sites[site["name"]].event_shape)
            if jnp.ndim(value) >= -axis and sizes[plate] < graph.plates[plate].size == jnp.shape(value)[axis]:
                whole.setdefault(site["name"], set()).add(plate)
                value = jnp.take(jnp.asarray(value), jnp.arange(sizes[plate]), axis)
        return value

    model = handlers.substitute(handlers.seed(setup.guide.model, key), substitute_fn=start)
    fixed = FixPlates(indices={name: jnp.arange(b) for name, b in sizes.items()})
    with handlers.block(), handlers.trace() as trace, fixed:
        model(*args, **kwargs)
    return trace, whole


def _units(setup: "Setup", args: tuple, kwargs: dict) -> dict[str, dict[str, Array]]:
    """Mean and scale of the data: the encoder sees them in units of their own."""
    with handlers.block():
        obs, masks = setup.read(args, kwargs, setup.first())
    found = {}
    for name, x in obs.items():
        axes, weight = tuple(range(x.ndim - 1)), masks[name][..., None]
        n = jnp.maximum(weight.sum(axes), 1)
        mean = jnp.where(weight, x, 0).sum(axes) / n
        deviation = jnp.sqrt(jnp.where(weight, (x - mean) ** 2, 0).sum(axes) / n)
        found[name] = {"mean": mean, "log_scale": jnp.log(jnp.where(deviation > 0, deviation, 1))}
    return found
