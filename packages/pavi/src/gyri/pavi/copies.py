"""All copies of a model, visited one by one in chunks of any size: their encodings, densities and draws."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gyri.numerics.validation import check_positive_int

from .family import Family
from .setup import Setup


def rows_of(
    setup: Setup, params: Mapping[str, Any], dynamic: list, indices: Mapping[str, Array], chunk_size: int | None
) -> tuple[Callable[[Array, Array | None], Family], str | None]:
    """A function of a key and an index that runs the model on one copy of the row plate, and all of the others.

    Draws inside the row plate depend on the key and the index, those outside on the key alone. So all copies can
    be visited in chunks of any size with the same result.
    """
    args, kwargs = setup.arguments(dynamic)
    plate = setup.row_plate
    outer = _outer_encodings(setup, params, dynamic, chunk_size) if setup.encodes else {}

    def run(key: Array, n: Array | None) -> Family:
        chosen = dict(indices) if plate is None or n is None else {**indices, plate: n[None]}
        inside = [k for k in setup.latents if plate in setup.graph.sites[k].plates]
        outside = [k for k in setup.latents if k not in inside]
        noise = setup.draw_noise(key, chosen, outside) if outside else {}
        if inside and n is not None:
            noise |= setup.draw_noise(jax.random.fold_in(key, n + 1), chosen, inside)
        if not setup.encodes:
            return setup.run(params, setup.take_rows(params, chosen), None, args, kwargs, chosen, noise=noise)
        found = {name: setup.take_copies(name, outer[name], indices) for name in outside}
        if plate is not None and n is not None:
            own = outer
            if setup.guide.encoder.rows is not None:
                own = setup.encode(params[setup.encoder_name], args, kwargs, {**setup.all_indices({}), plate: n[None]})
            found.update({name: setup.take_copies(name, own[name], chosen) for name in inside})
        return setup.run(params, None, found, args, kwargs, chosen, noise=noise)

    return run, plate


def posterior(
    setup: Setup,
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
    """Some draws of all copies, or their quantiles."""
    full = setup.all_indices(indices)
    plate = setup.row_plate
    if chunk_size == "auto":
        sites = [setup.graph.sites[name] for name in setup.latents]
        total = sum(math.prod((*setup.graph.batch_shape(site.plates), *site.event_shape)) for site in sites)
        per_row = n * total // (setup.graph.plates[plate].size if plate else 1)
        chunk_size = max(1, 2**22 // max(per_row, 1)) if plate else None
    elif chunk_size is not None:
        chunk_size = check_positive_int(chunk_size, "chunk_size")
        if plate is None:
            raise ValueError("chunk_size: the model has no plate whose copies are independent given the rest")

    def draw(key: Array, params: dict, dynamic: list, full: dict) -> dict[str, Array]:
        run, plate = rows_of(setup, params, dynamic, full, chunk_size)
        keys = jax.random.split(key, n)

        def row(i: Array | None) -> dict[str, Array]:
            draws = jax.vmap(lambda key: run(key, i).samples)(keys)
            if quantiles is None:
                return draws
            levels = jnp.asarray(quantiles)
            return {
                k: jnp.quantile(x, levels, axis=0).astype(x.dtype).reshape(*shape, *x.shape[1:])
                for k, x in draws.items()
            }

        if plate is None:
            return row(None)
        inside = [k for k in setup.latents if plate in setup.graph.sites[k].plates]
        once = row(full[plate][0])
        out = {k: x for k, x in once.items() if k not in inside}
        if inside:
            local = map_rows(lambda i: {k: row(i)[k] for k in inside}, full[plate], chunk_size)
            for k, x in local.items():
                axis = x.ndim + setup.graph.plates[plate].dim - len(setup.graph.sites[k].event_shape)
                # The copy's own axis has length 1: the rows take its place.
                out[k] = jnp.moveaxis(x.squeeze(axis), 0, axis - 1)
        return {k: out[k] for k in setup.latents}

    name = ("posterior", n, chunk_size, quantiles, shape)
    return setup.program(name, draw)(key, params, setup.dynamic(args, kwargs), full)


def log_density(setup: Setup, params: dict, values: dict, dynamic: list, indices: dict) -> Array:
    """Log-density of the guide, for values with a leading axis."""
    args, kwargs = setup.arguments(dynamic)
    rows, encodings = setup.given(params, setup.full_encodings(params, dynamic, indices))

    def one(values: dict) -> Array:
        family = setup.run(params, rows, encodings, args, kwargs, indices, values=values)
        return sum((jnp.sum(term.log_q) for term in family.terms.values()), jnp.zeros(()))

    return jax.vmap(one)(values)


def _outer_encodings(
    setup: Setup, params: Mapping[str, Any], dynamic: list, chunk_size: int | None
) -> dict[str, Array]:
    """Encodings of the sites outside of the row plate, from all data, chunk by chunk.

    Of all sites if the encoder cannot: then it may mix the copies.
    """
    args, kwargs = setup.arguments(dynamic)
    weights, encoder, plate = params[setup.encoder_name], setup.guide.encoder, setup.row_plate
    everything = setup.all_indices({})
    if encoder.rows is None or plate is None:
        return setup.encode(weights, args, kwargs, everything)
    counts = dict.fromkeys(setup.graph.plates, 1.0)

    def row(n: Array) -> Any:
        obs, masks = setup.standardised(weights, args, kwargs, {**everything, plate: n[None]})
        return encoder.rows(weights["network"], obs, masks, counts, plate)

    tokens = map_rows(row, everything[plate], chunk_size)
    axis = list(setup.graph.plates).index(plate)
    join = lambda x: jnp.moveaxis(x.squeeze(axis + 1), 0, axis)
    inside = {name: plate in setup.graph.sites[name].plates for name in setup.observed}
    # What lies outside of the plate has told each row the same.
    tokens = {k: jax.tree.map(join if inside[k[0]] else lambda x: x[0], v) for k, v in tokens.items()}
    return setup.site_encodings(encoder.apply(weights["network"], {}, {}, counts, tokens=tokens))


def map_rows(row: Callable, rows: Array, chunk_size: int | None) -> Any:
    """Rows at once, or in chunks."""
    if chunk_size is None or chunk_size >= len(rows):
        return jax.vmap(row)(rows)
    return jax.lax.map(row, rows, batch_size=chunk_size)
