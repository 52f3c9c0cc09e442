"""Encoders of the observations: permutation-equivariant within plates, invariant where they sum a plate up.

An encoder sees arrays with one axis a plate, in the order of `counts` (outermost plate first), of length 1 where a site
is outside a plate. Positions in that order name plates and levels in the parameters.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from gyri.numerics.validation import check_positive_int

from .flows import Source, apply_mlp, init_kernels, mlp_of, split_key
from .plates import PlateGraph

Tokens = dict[tuple[str, tuple[int, ...]], tuple[Array, Array]]


class SetEncoder(NamedTuple):
    """An encoder of observations, as pure functions.

    Attributes
    ----------
    init : callable
        ``init(key, graph, encoding_size) -> params``, a pytree of dicts, lists and arrays.
    apply : callable
        ``apply(params, obs, masks, counts) -> {plates: array}``. `obs`: site to (a length for each plate, then the
        event as one axis); `masks`: site to the same without the event, True where observed; `counts`: plate to full
        size over present size, outermost plate first. The result has an entry for each set of plates in which a
        latent site lives: (a length for each plate, encoding_size).
    rows : callable, optional
        ``rows(params, obs, masks, counts, plate) -> tokens``: what the copies of a plate tell the levels above it.
        ``apply(params, {}, {}, counts, tokens=tokens)`` goes on from there, so that the data need not be in memory at
        once; without it they are. Only for an encoder that encodes a copy alone as among others.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., dict[tuple[str, ...], Array]]
    rows: Callable[..., Tokens] | None = None


class _SetFunction(NamedTuple):
    """``init(key, size) -> params``; ``apply(params, tokens (..., n, size), valid (..., n), log_count (..., 1))``."""

    init: Callable[..., PyTree]
    apply: Callable[..., Array]


def deepset(hidden: Sequence[int] = (32,)) -> SetEncoder:
    """Deep set: a plate is summed up by rho(mean psi(e), log count).

    Both maps are a network plus a linear map, so that means of the data pass unchanged where they are what matters.

    Parameters
    ----------
    hidden : sequence of int
        Hidden layers of each network.

    Returns
    -------
    SetEncoder

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.pavi import plate_graph
    >>> from gyri.pavi.encoders import deepset
    >>> from gyri.pavi.models import gre
    >>> x = jnp.ones((3, 4, 2))
    >>> encoder = deepset()
    >>> params = encoder.init(jax.random.key(0), plate_graph(gre, x), 8)
    >>> counts = {"groups": 1.0, "observations": 1.0}
    >>> encodings = encoder.apply(params, {"x": x}, {"x": jnp.ones((3, 4), bool)}, counts)
    >>> encodings["groups",].shape, encodings[()].shape
    ((3, 1, 8), (1, 1, 8))
    """
    hidden = tuple(hidden)

    def init(key: Source, size: int) -> PyTree:
        psi, rho = _init_maps(key, [(size, *hidden, size), (size + 1, *hidden, size)])
        return {"psi": psi, "rho": rho}

    def apply(params: PyTree, tokens: Array, valid: Array, log_count: Array) -> Array:
        values = _apply_map(params["psi"], tokens)
        n_valid = jnp.maximum(valid.sum(-1, keepdims=True), 1)
        mean = jnp.where(valid[..., None], values, 0).sum(-2) / n_valid
        return _apply_map(params["rho"], jnp.concatenate([mean, log_count], -1))

    return _make_encoder(_SetFunction(init, apply), hidden)


def attention(
    n_heads: int = 2, key_size: int = 4, n_inducing: int | None = 8, hidden: Sequence[int] = (32,)
) -> SetEncoder:
    """Set Transformer: two (induced) set attention blocks, then pooling by attention.

    Parameters
    ----------
    n_heads : int
        Of each attention.
    key_size : int
        Of each head's keys and queries.
    n_inducing : int, optional
        Inducing points: cost linear in the size of a plate. None: all pairs (SAB).
    hidden : sequence of int
        Hidden layers of the network that embeds an observation.

    Returns
    -------
    SetEncoder

    References
    ----------
    Lee, Lee, Kim, Kosiorek, Choi, Teh (2019), Set Transformer, ICML.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.pavi import plate_graph
    >>> from gyri.pavi.encoders import attention
    >>> from gyri.pavi.models import gre
    >>> x = jnp.ones((3, 4, 2))
    >>> encoder = attention()
    >>> params = encoder.init(jax.random.key(0), plate_graph(gre, x), 8)
    >>> counts = {"groups": 1.0, "observations": 1.0}
    >>> encoder.apply(params, {"x": x}, {"x": jnp.ones((3, 4), bool)}, counts)[()].shape
    (1, 1, 8)
    """
    n_heads, key_size = check_positive_int(n_heads, "n_heads"), check_positive_int(key_size, "key_size")
    if n_inducing is not None:
        n_inducing = check_positive_int(n_inducing, "n_inducing")
    statics: dict[int, Any] = {}  # what a module is besides its arrays, by the encoding's size

    def build(key: Array, size: int) -> Any:
        return _set_transformer(key, size, n_heads, key_size, n_inducing)

    def shapes_of(size: int) -> Any:
        import equinox as eqx

        return eqx.filter_eval_shape(build, jax.random.key(0), size)

    def init(key: Source, size: int) -> PyTree:
        return {"transformer": _draw_weights(key, shapes_of(size)), "seed": jnp.zeros(size)}

    def apply(params: PyTree, tokens: Array, valid: Array, log_count: Array) -> Array:
        import equinox as eqx

        size = params["seed"].shape[-1]
        if size not in statics:
            shapes = shapes_of(size)
            dynamic, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
            statics[size] = (jax.tree.structure(dynamic), static)
        treedef, static = statics[size]
        module = eqx.combine(jax.tree.unflatten(treedef, params["transformer"]), static)
        n, batch = tokens.shape[-2], tokens.shape[:-2]
        run = jax.vmap(lambda tokens, valid, log_count: module(params["seed"], tokens, valid, log_count))
        out = run(tokens.reshape(-1, n, size), valid.reshape(-1, n), log_count.reshape(-1, 1))
        return out.reshape(*batch, size)

    return _make_encoder(_SetFunction(init, apply), tuple(hidden))


def _draw_weights(key: Source, shapes: Any) -> list[Array]:
    """Arrays of a module of which only the shapes are known, from one draw: Equinox's own start takes one a layer."""
    import equinox as eqx

    is_norm = lambda node: isinstance(node, eqx.nn.LayerNorm)
    nodes = jax.tree.leaves(shapes, is_leaf=is_norm)
    matrices = [node.shape for node in nodes if len(getattr(node, "shape", ())) == 2]
    kernels = iter(init_kernels(key, [(n_in, n_out) for n_out, n_in in matrices]))
    weights: list[Array] = []
    for node in nodes:
        if is_norm(node):
            weights.extend(jax.tree.leaves(eqx.filter(eqx.nn.LayerNorm(node.shape), eqx.is_array)))
        elif isinstance(node, jax.ShapeDtypeStruct):
            weights.append(next(kernels).T if len(node.shape) == 2 else jnp.zeros(node.shape, node.dtype))
    return weights


def _set_transformer(key: Array, size: int, n_heads: int, key_size: int, n_inducing: int | None) -> Any:
    """The set function of the attention encoder as an Equinox module."""
    import equinox as eqx

    class Block(eqx.Module):
        """MAB(X, Y) = LN(H + rFF(H)), H = LN(X + attention of X to Y)."""

        attention: eqx.nn.MultiheadAttention
        norms: list
        feed: Any

        def __init__(self, key: Array) -> None:
            attention, feed = jax.random.split(key)
            self.attention = eqx.nn.MultiheadAttention(
                n_heads, size, qk_size=key_size, vo_size=key_size, output_size=size, key=attention
            )
            self.norms = [eqx.nn.LayerNorm(size), eqx.nn.LayerNorm(size)]
            self.feed = eqx.nn.MLP(size, size, size, 1, key=feed)

        def __call__(self, x: Array, y: Array, valid: Array | None = None) -> Array:
            mask = None if valid is None else jnp.broadcast_to(valid, (len(x), len(y)))
            h = jax.vmap(self.norms[0])(x + self.attention(x, y, y, mask=mask))
            return jax.vmap(self.norms[1])(h + jax.vmap(self.feed)(h))

    class SelfAttention(eqx.Module):
        """SAB, or ISAB through inducing points."""

        blocks: list
        inducing: Array | None

        def __init__(self, key: Array) -> None:
            keys = jax.random.split(key, 3)
            self.blocks = [Block(k) for k in keys[: 1 if n_inducing is None else 2]]
            self.inducing = None if n_inducing is None else jax.random.normal(keys[2], (n_inducing, size))

        def __call__(self, x: Array, valid: Array) -> Array:
            if self.inducing is None:
                return self.blocks[0](x, x, valid)
            return self.blocks[1](x, self.blocks[0](self.inducing, x, valid))

    class SetTransformer(eqx.Module):
        encode: list
        before: Any
        pool: Block
        decode: Block
        after: Any

        def __init__(self, key: Array) -> None:
            keys = jax.random.split(key, 6)
            self.encode = [SelfAttention(keys[0]), SelfAttention(keys[1])]
            self.before = eqx.nn.MLP(size, size, size, 1, key=keys[2])
            self.pool, self.decode = Block(keys[3]), Block(keys[4])
            self.after = eqx.nn.MLP(size + 1, size, size, 1, key=keys[5])

        def __call__(self, seed: Array, x: Array, valid: Array, log_count: Array) -> Array:
            for block in self.encode:
                x = block(x, valid)
            pooled = self.pool(seed[None], jax.vmap(self.before)(x), valid)
            pooled = self.decode(pooled, pooled)[0]
            return self.after(jnp.concatenate([pooled, log_count]))

    return SetTransformer(key)


def _init_maps(key: Source, sizes: Sequence[tuple[int, ...]]) -> list[PyTree]:
    """For each tuple of sizes a network and a linear map from its first to its last."""
    shapes = [pair for sz in sizes for pair in (*pairwise(sz), (sz[0], sz[-1]))]
    kernels = iter(init_kernels(key, shapes))
    return [{"network": mlp_of([next(kernels) for _ in sz[1:]]), "skip": next(kernels)} for sz in sizes]


def _apply_map(params: PyTree, x: Array) -> Array:
    """A network plus a linear map."""
    return apply_mlp(params["network"], x) + x @ params["skip"]


def _name(level: tuple[int, ...]) -> str:
    return ",".join(map(str, level))


def _levels(own: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Plates left after each contraction on the way from a site's plates to a target's, the innermost going first."""
    levels = [own]
    for plate in sorted(set(own) - set(target), reverse=True):
        levels.append(tuple(p for p in levels[-1] if p != plate))
    return levels


def _make_encoder(set_function: _SetFunction, hidden: tuple[int, ...]) -> SetEncoder:
    """Level by level: embed each observation, then sum up plate after plate, the innermost first."""

    def init(key: Source, graph: PlateGraph, encoding_size: int) -> PyTree:
        position = {name: i for i, name in enumerate(graph.plates)}
        place = lambda plates: tuple(sorted(position[name] for name in plates))
        targets = sorted({place(site.plates) for site in graph.sites.values() if not site.observed})
        observed = [name for name, site in graph.sites.items() if site.observed]
        keys = iter(split_key(key, 1 + len(targets) + len(observed) * (1 + 2 ** len(position))))
        sites: dict[str, Any] = {}
        for name in observed:
            own = place(graph.sites[name].plates)
            n_in = math.prod(graph.sites[name].event_shape)
            pairs = {(a, b) for t in targets for a, b in pairwise(_levels(own, t))}
            sites[name] = {
                "embed": {_name(own): _init_maps(next(keys), [(n_in, *hidden, encoding_size)])[0]},
                "levels": {_name(b): set_function.init(next(keys), encoding_size) for _, b in sorted(pairs)},
            }
        joined: dict[str, dict[str, Array]] = {}
        for target in targets:
            joined[_name(target)] = {}
            if len(observed) > 1:
                joined[_name(target)]["kernel"] = init_kernels(
                    next(keys), [(len(observed) * encoding_size, encoding_size)]
                )[0]
        return {"sites": sites, "join": joined}

    def parse(name: str) -> tuple[int, ...]:
        return tuple(map(int, name.split(","))) if name else ()

    def contract(params: PyTree, token: tuple[Array, Array], axis: int, count: Any) -> tuple[Array, Array]:
        tokens, valid = jnp.moveaxis(token[0], axis, -2), jnp.moveaxis(token[1], axis, -1)
        # An empty set counts as half an observation: its logarithm is finite and below all others.
        log_count = jnp.log(jnp.maximum(count * valid.sum(-1, keepdims=True), 0.5)).astype(tokens.dtype)
        out = set_function.apply(params, tokens, valid, log_count)
        return jnp.expand_dims(out, axis), jnp.expand_dims(valid.any(-1), axis)

    def embed(params: PyTree, obs: Mapping[str, Array], masks: Mapping[str, Array]) -> Tokens:
        memo = {}
        for name, x in obs.items():
            (own, weights), = params["sites"][name]["embed"].items()  # fmt: skip
            memo[name, parse(own)] = (_apply_map(weights, jnp.where(masks[name][..., None], x, 0)), masks[name])
        return memo

    def level(
        params: PyTree, memo: Tokens, site: str, own: tuple[int, ...], target: tuple[int, ...], counts: Any
    ) -> Any:
        """Tokens of a site at a level, by way of those that are known already."""
        if (site, target) not in memo:
            before = _levels(own, target)[-2]
            plate = min(set(before) - set(target))
            token = level(params, memo, site, own, before, counts)
            weights = params["sites"][site]["levels"][_name(target)]
            memo[site, target] = contract(weights, token, plate, list(counts.values())[plate])
        return memo[site, target]

    def owns(params: PyTree) -> dict[str, tuple[int, ...]]:
        return {name: parse(next(iter(site["embed"]))) for name, site in params["sites"].items()}

    def apply(
        params: PyTree,
        obs: Mapping[str, Array],
        masks: Mapping[str, Array],
        counts: Mapping[str, Any],
        tokens: Tokens | None = None,
    ) -> dict[tuple[str, ...], Array]:
        names = list(counts)
        memo = embed(params, obs, masks) if tokens is None else dict(tokens)
        out = {}
        for key, join in params["join"].items():
            target = parse(key)
            parts = []
            for site, own in owns(params).items():
                goal = tuple(p for p in own if p in target)
                if tokens is not None and not _reachable(memo, site, own, goal):
                    break
                parts.append(level(params, memo, site, own, goal, counts)[0])
            else:
                out[tuple(names[p] for p in target)] = _join(join, parts)
        return out

    def rows(
        params: PyTree, obs: Mapping[str, Array], masks: Mapping[str, Array], counts: Mapping[str, Any], plate: str
    ) -> Tokens:
        p, memo, found = list(counts).index(plate), embed(params, obs, masks), {}
        for site, own in owns(params).items():
            for key in params["join"]:
                target = tuple(q for q in own if q in parse(key))
                if p in target:
                    continue
                # A site outside the plate says the same to each of its copies.
                last = [lev for lev in _levels(own, target) if p in lev][-1] if p in own else own
                found[site, last] = level(params, memo, site, own, last, counts)
        return found

    return SetEncoder(init, apply, rows)


def _reachable(memo: Tokens, site: str, own: tuple[int, ...], goal: tuple[int, ...]) -> bool:
    return any((site, lev) in memo for lev in _levels(own, goal))


def _join(params: PyTree, parts: list[Array]) -> Array:
    if not params:
        return parts[0]
    shape = jnp.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return jnp.concatenate([jnp.broadcast_to(x, (*shape, x.shape[-1])) for x in parts], -1) @ params["kernel"]
