"""Unrolled networks: each is one layer of a solver whose constants have become parameters; depth is a `lax.scan`.

Signals are rows: ``u_half = u @ Wu + x @ Wx``. The parameters of all layers are stacked on the first axis.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PyTree

from gyri.numerics import LinearOperator, as_operator, prox_tv1d, soft_threshold
from gyri.numerics.linalg import dense
from gyri.numerics.validation import check_array, check_option, check_positive_int

from .operators import (
    HIGHEST,
    cumulated,
    dual_dictionary,
    squared_norm,
    squared_norm_differences,
    to_dense,
)
from .problem import check_problem, differences, differences_adjoint

INNER = ("none", "global", "per_layer")


class Constants(NamedTuple):
    """What the networks need of the operator, computed once: `A` (m, k), ``pinv(A)`` and squared norms.

    `A_sum` is ``A L``, `rho` and `rho_sum` the squared norms of both, `psi` the dictionary of the dual, `rho_psi`
    its squared norm.
    """

    A: Array
    inverse: Array
    rho: Array
    A_sum: Array
    rho_sum: Array
    psi: Array
    rho_psi: Array


def constants_of(matrix: Array) -> Constants:
    """Constants of a dense operator."""
    inverse, psi = dual_dictionary(matrix)
    total = cumulated(matrix)
    norms = [squared_norm(dense(M)) for M in (matrix, total)]
    rho_psi = squared_norm(dense(psi)) if psi.shape[1] else jnp.ones((), matrix.dtype)
    return Constants(matrix, inverse, norms[0], total, norms[1], psi, rho_psi)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=HIGHEST)


def _identity_minus(gram: Array) -> Array:
    return jnp.eye(len(gram), dtype=gram.dtype) - gram


class Network(NamedTuple):
    """One architecture: its untrained layer, and how a layer moves the state of a batch.

    ``layer(constants) -> dict`` gives one layer's start values; ``build(constants, x, lam, n_inner, inner) ->
    (start, step, point)`` the first state, ``step(weights, state) -> state`` and the signals of a state; `threshold`
    names the parameter that is kept only with ``learn_threshold``.
    """

    layer: Callable[[Constants], dict[str, Array]]
    build: Callable[..., tuple]
    threshold: str | None = None


# --- analysis: proximal gradient descent on the signals ---------------------------------------------------------------


def _lpgd_layer(c: Constants) -> dict[str, Array]:
    return {"Wu": _identity_minus(_dot(c.A.T, c.A) / c.rho), "Wx": c.A / c.rho, "mu": 1 / c.rho}


def _lpgd_taut(c: Constants, x: Array, lam: Array, n_inner: int, inner: PyTree) -> tuple:
    def step(w: dict, u: Array) -> Array:
        mu = jnp.maximum(w.get("mu", 1 / c.rho), 0)
        return prox_tv1d(_dot(u, w["Wu"]) + _dot(x, w["Wx"]), lam * mu)

    return _dot(x, c.inverse.T), step, lambda u: u


def _lpgd_lista(c: Constants, x: Array, lam: Array, n_inner: int, inner: PyTree) -> tuple:
    shared = inner if inner is not None else untrained_inner(c, n_inner)

    def step(w: dict, u: Array) -> Array:
        mu = jnp.maximum(w.get("mu", 1 / c.rho), 0)
        weights = {name: w[name] for name in ("V1", "V2", "eta")} if "V1" in w else shared
        return inner_prox(weights, _dot(u, w["Wu"]) + _dot(x, w["Wx"]), lam * mu)

    return _dot(x, c.inverse.T), step, lambda u: u


def untrained_inner(c: Constants, n_inner: int) -> dict[str, Array]:
    """Inner layers that are proximal gradient steps of the prox in synthesis form, stacked."""
    k, dtype = c.A.shape[1], c.A.dtype
    L = jnp.tril(jnp.ones((k, k), dtype))
    eta = jnp.asarray(np.square(2 * np.sin(np.pi / (4 * k + 2))), dtype)  # 1 / ||L||^2
    layer = {"V1": _identity_minus(_dot(L.T, L) * eta), "V2": L * eta, "eta": eta}
    return jax.tree.map(lambda w: jnp.broadcast_to(w, (n_inner, *w.shape)), layer)


def inner_prox(weights: dict[str, Array], y: Array, lam: Array) -> Array:
    """Approximate proximal operator of TV by an inner network on the steps of the signal."""
    free = jnp.arange(y.shape[-1]) > 0

    def layer(z: Array, w: dict) -> tuple[Array, None]:
        threshold = lam * jnp.maximum(w["eta"], 0) * free
        return soft_threshold(_dot(z, w["V1"]) + _dot(y, w["V2"]), threshold), None

    z, _ = jax.lax.scan(layer, _steps(y), weights)
    return jnp.cumsum(z, -1)


# --- synthesis: iterative soft thresholding on the steps --------------------------------------------------------------


def _steps(u: Array) -> Array:
    return jnp.concatenate([u[..., :1], differences(u)], -1)


def _synthesis(c: Constants, x: Array, lam: Array, move: Callable) -> tuple:
    """Threshold all but the first step after `move`, which gives the point and the multiplier of the penalty."""
    free = jnp.arange(c.A.shape[1]) > 0

    def step(w: dict, z: Array) -> Array:
        point, scale = move(w, z)
        return soft_threshold(point, lam * jnp.maximum(scale, 0) * free)

    return _steps(_dot(x, c.inverse.T)), step, lambda z: jnp.cumsum(z, -1)


def _lista(c: Constants, x: Array, lam: Array, n_inner: int, inner: PyTree) -> tuple:
    return _synthesis(c, x, lam, lambda w, z: (z - _dot(_dot(z, c.A_sum.T) - x, w["W"]), w["eta"]))


def _lista_full(c: Constants, x: Array, lam: Array, n_inner: int, inner: PyTree) -> tuple:
    return _synthesis(c, x, lam, lambda w, z: (_dot(z, w["Wz"]) + _dot(x, w["Wx"]), w["eta"]))


def _lista_step(c: Constants, x: Array, lam: Array, n_inner: int, inner: PyTree) -> tuple:
    def move(w: dict, z: Array) -> tuple[Array, Array]:
        return z - w["step"] * _dot(_dot(z, c.A_sum.T) - x, c.A_sum), w["step"]

    return _synthesis(c, x, lam, move)


# --- primal-dual ------------------------------------------------------------------------------------------------------


def _gradient(c: Constants, x: Array, u: Array) -> Array:
    return _dot(_dot(u, c.A.T) - x, c.A)


def _condat_vu(c: Constants, x: Array, lam: Array, n_inner: int, inner: PyTree) -> tuple:
    sigma = 0.5
    tau = 1 / (c.rho / 2 + sigma * squared_norm_differences(c.A.shape[1]))

    def step(w: dict, state: tuple) -> tuple:
        u, v = state
        limit = lam * jnp.maximum(w["scale"], 0)
        u_new = u - tau * (_gradient(c, x, u) + _dot(v, w["W"].T))
        return u_new, jnp.clip(v + sigma * _dot(2 * u_new - u, w["W"]), -limit, limit)

    return _primal_dual_start(c, x), step, lambda state: state[0]


def _condat_vu_step(c: Constants, x: Array, lam: Array, n_inner: int, inner: PyTree) -> tuple:
    def step(w: dict, state: tuple) -> tuple:
        u, v = state
        sigma = jnp.clip(w["sigma"], 0.5, 2.0)
        tau = 1 / (c.rho / 2 + sigma * squared_norm_differences(c.A.shape[1]))
        u_new = u - tau * (_gradient(c, x, u) + differences_adjoint(v))
        return u_new, jnp.clip(v + sigma * differences(2 * u_new - u), -lam, lam)

    return _primal_dual_start(c, x), step, lambda state: state[0]


def _primal_dual_start(c: Constants, x: Array) -> tuple[Array, Array]:
    u = _dot(x, c.inverse.T)
    return u, jnp.zeros_like(u[:, 1:])


# --- dual: projected gradient descent on the dual ---------------------------------------------------------------------


def _dual(c: Constants, x: Array, lam: Array, move: Callable) -> tuple:
    step = lambda w, v: jnp.clip(move(w, v), -lam, lam)
    return jnp.zeros((len(x), c.psi.shape[1]), x.dtype), step, lambda v: _dot(x - _dot(v, c.psi.T), c.inverse.T)


def _chambolle(c: Constants, x: Array, lam: Array, n_inner: int, inner: PyTree) -> tuple:
    return _dual(c, x, lam, lambda w, v: v - _dot(_dot(v, c.psi.T) - x, w["W"]))


def _chambolle_full(c: Constants, x: Array, lam: Array, n_inner: int, inner: PyTree) -> tuple:
    return _dual(c, x, lam, lambda w, v: _dot(v, w["Wv"]) + _dot(x, w["Wx"]))


def _chambolle_step(c: Constants, x: Array, lam: Array, n_inner: int, inner: PyTree) -> tuple:
    return _dual(c, x, lam, lambda w, v: v - w["step"] * _dot(_dot(v, c.psi.T) - x, c.psi))


def _subgradient(c: Constants, x: Array, lam: Array, n_inner: int, inner: PyTree) -> tuple:
    def step(w: dict, u: Array) -> Array:
        return u - w["step"] * (_gradient(c, x, u) + lam * differences_adjoint(jnp.sign(differences(u))))

    return _dot(x, c.inverse.T), step, lambda u: u


def _full(M: Array, rho: Array, name: str) -> dict[str, Array]:
    return {name: _identity_minus(_dot(M.T, M) / rho), "Wx": M / rho}


NETWORKS: dict[str, Network] = {
    "lpgd_taut": Network(_lpgd_layer, _lpgd_taut, "mu"),
    "lpgd_lista": Network(_lpgd_layer, _lpgd_lista, "mu"),
    "lista": Network(lambda c: {"W": c.A_sum / c.rho_sum, "eta": 1 / c.rho_sum}, _lista),
    "lista_full": Network(lambda c: {**_full(c.A_sum, c.rho_sum, "Wz"), "eta": 1 / c.rho_sum}, _lista_full),
    "lista_step": Network(lambda c: {"step": 1 / c.rho_sum}, _lista_step),
    "condat_vu": Network(
        lambda c: {"W": differences(jnp.eye(c.A.shape[1], dtype=c.A.dtype)), "scale": jnp.ones((), c.A.dtype)},
        _condat_vu,
    ),
    "condat_vu_step": Network(lambda c: {"sigma": jnp.full((), 0.5, c.A.dtype)}, _condat_vu_step),
    "chambolle": Network(lambda c: {"W": c.psi / c.rho_psi}, _chambolle),
    "chambolle_full": Network(lambda c: _full(c.psi, c.rho_psi, "Wv"), _chambolle_full),
    "chambolle_step": Network(lambda c: {"step": 1 / c.rho_psi}, _chambolle_step),
    "subgradient": Network(lambda c: {"step": jnp.full((), 1e-10, c.A.dtype)}, _subgradient),
}


# --- interface --------------------------------------------------------------------------------------------------------


def init_network(
    A: Any,
    n_layers: int,
    network: str = "lpgd_taut",
    *,
    n_inner: int = 50,
    inner: str = "none",
    learn_threshold: bool = False,
) -> dict[str, Any]:
    """Untrained parameters, with which each layer is one iteration of the network's solver.

    Parameters
    ----------
    A : array-like of shape (m, k), or LinearOperator
        The operator; parameters take its dtype.
    n_layers : int
        Layers.
    network : str
        ``"lpgd_taut"``: proximal gradient with learned matrices and the exact proximal operator; ``"lpgd_lista"``: with
        an inner network in its place; ``"lista"``, ``"lista_full"``, ``"lista_step"``: thresholding of the steps of
        the signal, with a learned matrix, two, or a step size; ``"condat_vu"``, ``"condat_vu_step"``: primal-dual;
        ``"chambolle"``, ``"chambolle_full"``, ``"chambolle_step"``: on the dual, for `A` of full column rank;
        ``"subgradient"``: a baseline.
    n_inner : int
        Inner layers (lpgd_lista).
    inner : {"none", "global", "per_layer"}
        Whether inner weights are fixed, shared by all layers, or each layer's own (lpgd_lista).
    learn_threshold : bool
        Whether the threshold of lpgd networks is a parameter; that of the others is one always.

    Returns
    -------
    dict
        ``{"layers": {name: Array of shape (n_layers, ...)}}``; with ``inner="global"`` also ``"inner"``.

    Raises
    ------
    ValueError
        An argument that is unknown or out of range; rank below `k` (chambolle).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.tv import init_network
    >>> params = init_network(jnp.eye(4), 3)
    >>> params["layers"]["Wu"].shape
    (3, 4, 4)

    References
    ----------
    Cherkaoui, Sulam, Moreau (2020), section 3.
    """
    n_layers, n_inner = check_positive_int(n_layers, "n_layers"), check_positive_int(n_inner, "n_inner")
    check_option(network, "network", tuple(NETWORKS))
    check_option(inner, "inner", INNER)
    if A is None:
        raise ValueError("A: expected an array of shape (m, k) or an operator, which has a size, got None")
    A = A if isinstance(A, LinearOperator) else as_operator(check_array(A, "A", ndim=2))
    matrix = to_dense(A, jnp.result_type(*(jax.tree.leaves(A) or [float])))
    check_rank(matrix, network)
    return _init(matrix, n_layers, network, n_inner, inner, learn_threshold)


def check_rank(matrix: Array, network: str) -> None:
    """The dual determines the signal for operators of full column rank only."""
    if network.startswith("chambolle") and not isinstance(matrix, jax.core.Tracer):
        rank = np.linalg.matrix_rank(np.asarray(matrix))
        if rank < matrix.shape[1]:
            raise ValueError(f"A: expected rank {matrix.shape[1]} for network {network!r}, got {rank}")


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _init(matrix: Array, n_layers: int, network: str, n_inner: int, inner: str, learn_threshold: bool) -> dict:
    c = constants_of(matrix)
    layer = NETWORKS[network].layer(c)
    if not learn_threshold:
        layer = {name: value for name, value in layer.items() if name != NETWORKS[network].threshold}
    if network == "lpgd_lista" and inner == "per_layer":
        layer |= untrained_inner(c, n_inner)
    params: dict[str, Any] = {
        "layers": jax.tree.map(lambda w: jnp.broadcast_to(w, (n_layers, *w.shape)).astype(matrix.dtype), layer)
    }
    if network == "lpgd_lista" and inner == "global":
        params["inner"] = untrained_inner(c, n_inner)
    return params


def n_layers_of(params: PyTree) -> int:
    """Layers that parameters hold."""
    return len(jax.tree.leaves(params["layers"])[0])


def apply_network(
    params: PyTree,
    x: Num[Any, "..."],
    A: Any,
    lam: Any,
    *,
    network: str = "lpgd_taut",
    n_layers: int | None = None,
    n_inner: int = 50,
) -> Float[Array, "*n k"]:
    """Output of a network: approximate solutions of the problem after a few layers.

    Parameters
    ----------
    params : dict
        As of `init_network`.
    x : Array, shape (m,) or (n, m)
        Observed signals.
    A : array-like of shape (m, k), LinearOperator or None
        The operator; its matrix is formed. What is no parameter (fixed thresholds, fixed inner weights, the start
        ``pinv(A) x``) comes from it.
    lam : float or Array, shape () or (n,)
        Penalty, not negative.
    network : str
        Architecture of `params`.
    n_layers : int, optional
        Use the first layers only, 0 or more; all when None.
    n_inner : int
        Inner layers (lpgd_lista) where `params` hold no inner weights.

    Returns
    -------
    Array, shape (k,) or (n, k)
        The signals. Differentiable in `params`, `x` and `lam`, in both modes; memory of the reverse mode grows with
        the depth.

    Raises
    ------
    ValueError
        Shapes that do not fit, parameters of another network, NaN, infinity, a negative penalty.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.tv import apply_network, init_network
    >>> A = jnp.eye(4)
    >>> apply_network(init_network(A, 3), jnp.array([0.0, 0.2, 3.0, 3.2]), A, 0.2).round(2)
    Array([0.2, 0.2, 3. , 3. ], dtype=float32)

    References
    ----------
    Cherkaoui, Sulam, Moreau (2020), section 3.
    """
    check_option(network, "network", tuple(NETWORKS))
    problem = check_problem(x, A, lam, ndim=(1, 2))
    n_inner = check_positive_int(n_inner, "n_inner")
    matrix = to_dense(problem.A, problem.x.dtype)
    check_rank(matrix, network)
    _check_params(params, matrix, network)
    total = n_layers_of(params)
    depth = total if n_layers is None else check_positive_int(n_layers, "n_layers", minimum=0)
    if depth > total:
        raise ValueError(f"n_layers: expected at most the {total} layers of params, got {depth}")
    x = jnp.atleast_2d(problem.x)
    lam = jnp.broadcast_to(problem.lam, (len(x), 1))
    params = jax.tree.map(lambda w: jnp.asarray(w, x.dtype), params)
    u = _apply(params, x, matrix, lam, None if depth == total else jnp.int32(depth), network, n_inner)
    return u[0] if problem.x.ndim == 1 else u


def _check_params(params: PyTree, matrix: Array, network: str) -> None:
    """Names and shapes as `init_network` makes them; learned thresholds and inner weights may be there or not."""
    expected = jax.eval_shape(lambda A: _init(A, 1, network, 1, "per_layer", True), matrix)["layers"]
    inner = {"V1", "V2", "eta"} if network == "lpgd_lista" else set()
    needed = set(expected) - inner - {NETWORKS[network].threshold}
    layers = params.get("layers") if isinstance(params, dict) else None
    if not isinstance(layers, dict) or not needed <= set(layers) <= set(expected):
        found = sorted(layers) if isinstance(layers, dict) else type(params).__name__
        raise ValueError(f"params: expected layers of {network!r} with {sorted(needed)}, got {found}")
    for name, leaf in layers.items():
        axes = 2 if name in inner else 1  # numbers of layers, and of inner layers, are free
        want, got = expected[name].shape[axes:], jnp.shape(leaf)
        if len(got) != axes + len(want) or got[axes:] != want:
            raise ValueError(f"params: expected {name} of shape ({', '.join(['any'] * axes)}) + {want}, got {got}")


@partial(jax.jit, static_argnames=("network", "n_inner"))
def _apply(
    params: PyTree, x: Array, matrix: Array, lam: Array, depth: Array | None, network: str, n_inner: int
) -> Array:
    return run(params, x, constants_of(matrix), lam, depth, network=network, n_inner=n_inner)


def run(
    params: PyTree, x: Array, constants: Constants, lam: Array, depth: Array | None, *, network: str, n_inner: int
) -> Array:
    """Run the first `depth` layers, a number that may be traced: one program serves all depths. None: all layers."""
    start, step, point = NETWORKS[network].build(constants, x, lam, n_inner, params.get("inner"))

    def layer(state: Any, index_weights: tuple) -> tuple[Any, None]:
        index, weights = index_weights
        if depth is None:
            return step(weights, state), None
        return jax.lax.cond(index < depth, step, lambda _, state: state, weights, state), None

    state, _ = jax.lax.scan(layer, start, (jnp.arange(n_layers_of(params)), params["layers"]))
    return point(state)
