"""Fixed points, roots and minimisers as differentiable functions: one solve forward, one backward mode."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, PyTree

from gyri.numerics.validation import check_finite, check_positive_int

from .backward import as_mode, solve_symmetric, solve_transposed
from .inverse import InverseEstimate, Layout, LowRank, norm
from .lbfgs import LBFGS, minimise
from .solvers import AdjointBroyden, Anderson, Broyden, Picard, SolveStats, iterate

SOLVERS = (Broyden, AdjointBroyden, Anderson, Picard)


class Solution(NamedTuple):
    """What `fixed_point`, `root` and `minimize` return.

    Attributes
    ----------
    value : pytree of Array
        The best iterate; the only part with a gradient.
    inverse : InverseEstimate
        Estimate of the inverse Jacobian there, as known on arriving.
    stats : SolveStats
        How the solve went.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.shine import root
    >>> root(lambda z: z - 2.0, jnp.zeros(1)).value
    Array([2.], dtype=float32)
    """

    value: PyTree
    inverse: InverseEstimate
    stats: SolveStats


def fixed_point(
    f: Callable,
    z0: PyTree,
    *args: Any,
    solver: Any = Broyden(),  # noqa: B008 - frozen
    backward: Any = "shine",
    batch_ndim: int = 0,
    outer_grad: Callable | None = None,
) -> Solution:
    r"""Solve ``z = f(z, *args)``, with a gradient through the solution at the price that `backward` names.

    Reverse mode only. `f` may close over arrays, traced and vmapped ones included: they get their gradients.

    Parameters
    ----------
    f : callable
        ``f(z, *args)`` returns a pytree like z.
    z0 : pytree of Array
        The start, float32 or float64; its gradient is zero.
    *args : pytree
        Further arguments of f; leaves that are no floats are passed through.
    solver : Broyden, AdjointBroyden, Anderson or Picard
        How to solve; None is the default.
    backward : str, Shine, JacobianFree or Full
        ``"shine"`` shares the solver's inverse estimate; ``"jacobian_free"`` takes the identity; ``"full"`` solves the
        linear system; ``"refine"`` makes five steps of that from SHINE's answer.
    batch_ndim : int
        So many first axes of each leaf are a batch: each element has its own estimate and stop.
    outer_grad : callable, optional
        ``outer_grad(z, *args)``, gradient of the outer loss at z, for OPA. Never differentiated.

    Returns
    -------
    Solution
        `value`, `inverse` (of :math:`J_f - I`) and `stats`.

    Raises
    ------
    ValueError
        A start that is empty, not floating or not finite; f's output unlike z; OPA without `outer_grad`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from gyri.shine import fixed_point
    >>> solve = lambda b: fixed_point(lambda z, b: jnp.tanh(0.5 * z + b), jnp.zeros(3), b).value
    >>> gradient = jax.grad(lambda b: solve(b).sum())(jnp.ones(3))
    >>> gradient.round(1)
    Array([0.2, 0.2, 0.2], dtype=float32)

    References
    ----------
    Ramzi et al. (2022), SHINE, section 2; Bai, Kolter, Koltun (2019), Deep equilibrium models.
    """
    solver = Broyden() if solver is None else solver
    return _solve_equation(f, z0, args, solver, backward, batch_ndim, outer_grad, minus_identity=True)


def root(
    g: Callable,
    z0: PyTree,
    *args: Any,
    solver: Any = Broyden(stop="abs"),  # noqa: B008 - frozen
    backward: Any = "shine",
    batch_ndim: int = 0,
    outer_grad: Callable | None = None,
) -> Solution:
    """Solve ``g(z, *args) = 0``, with a gradient through the solution at the price that `backward` names.

    Parameters
    ----------
    g : callable
        ``g(z, *args)`` returns a pytree like z.
    z0, *args, backward, batch_ndim, outer_grad
        As in `fixed_point`. Jacobian-free takes the identity for the Jacobian of g.
    solver : Broyden, AdjointBroyden, Anderson or Picard
        How to solve; None is the default. ``stop="rel"`` is relative to the first residual.

    Returns
    -------
    Solution
        `value`, `inverse` (of the Jacobian of g) and `stats`.

    Raises
    ------
    ValueError
        As `fixed_point`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from gyri.shine import root
    >>> solution = root(lambda z, c: z**3 - c, jnp.ones(2), jnp.array([8.0, 27.0]))
    >>> solution.value.round(1)
    Array([2., 3.], dtype=float32)

    References
    ----------
    Ramzi et al. (2022), SHINE, section 2.
    """
    solver = Broyden(stop="abs") if solver is None else solver
    return _solve_equation(g, z0, args, solver, backward, batch_ndim, outer_grad, minus_identity=False)


def minimize(
    fun: Callable,
    x0: PyTree,
    *args: Any,
    solver: LBFGS | None = LBFGS(),  # noqa: B008 - frozen
    backward: Any = "shine",
    outer_grad: Callable | None = None,
) -> Solution:
    """Minimise ``fun(x, *args)`` by L-BFGS, with a gradient through the minimiser at the price that `backward` names.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` returns a number.
    x0 : pytree of Array
        The start, float32 or float64; its gradient is zero.
    *args : pytree
        Further arguments of fun.
    solver : LBFGS, optional
        How to solve; None is the default. Where fun has a ridge of ``alpha / 2 |x|^2``,
        ``LBFGS(init_scale=1 / alpha)`` leaves the best estimate of the inverse.
    backward : str, Shine, JacobianFree or Full
        As in `fixed_point`; ``"full"`` is the method of conjugate gradients.
    outer_grad : callable, optional
        ``outer_grad(x, *args)``, gradient of the outer loss at x, for OPA. Never differentiated.

    Returns
    -------
    Solution
        `value`, the last iterate accepted; `inverse` (of the Hessian) and `stats`, whose residual is the norm of the
        gradient.

    Raises
    ------
    ValueError
        A start that is empty, not floating or not finite; a function that returns no number; OPA without `outer_grad`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from gyri.shine import minimize
    >>> ridge = lambda x, lam: 0.5 * jnp.sum((x - 3.0) ** 2) + 0.5 * lam * jnp.sum(x**2)
    >>> gradient = jax.grad(lambda lam: minimize(ridge, jnp.zeros(2), lam).value.sum())(2.0)
    >>> f"{gradient:.2f}"
    '-0.67'

    References
    ----------
    Ramzi et al. (2022), SHINE, section 2.
    """
    solver, mode = LBFGS() if solver is None else solver, as_mode(backward)
    if not isinstance(solver, LBFGS):
        raise ValueError(f"solver: expected an LBFGS, got {solver!r}")
    x0 = check_start(x0, "x0", 0)
    layout = Layout.of(x0)
    fun, consts, out = hoist(fun, x0, args)
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or leaves[0].shape != () or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise ValueError(f"fun: expected a function that returns one real number, got {out}")
    outer, outer_consts = _hoist_outer(outer_grad, solver.opa_every, x0, args)

    def objective(flat: Array, given: tuple) -> Array:
        return jnp.asarray(jax.tree.leaves(fun(given[1], layout.unflatten(flat), given[0]))[0], flat.dtype)

    @jax.custom_vjp
    def solve(x0: PyTree, given: tuple, outer_consts: list) -> Solution:
        outer_flat = (
            None if outer is None else lambda x: layout.flatten(outer(outer_consts, layout.unflatten(x), given[0]))
        )
        value, inverse, stats = minimise(
            lambda x: objective(x, given), layout.flatten(x0), solver, layout=layout, outer_grad=outer_flat
        )
        return Solution(layout.unflatten(value), inverse, stats)

    def forward(x0: PyTree, given: tuple, outer_consts: list) -> tuple[Solution, tuple]:
        solution = solve(x0, given, outer_consts)
        return solution, (solution.value, solution.inverse, given)

    def pull_back(saved: tuple, cotangent: Solution) -> tuple:
        value, inverse, given = saved
        x, v = layout.flatten(value), layout.flatten(cotangent.value)
        gradient = jax.grad(objective)
        w = solve_symmetric(mode, inverse, v, lambda p: jax.jvp(lambda x: gradient(x, given), (x,), (p,))[1])
        return None, jax.vjp(lambda given: gradient(x, given), given)[1](w)[0], None

    solve.defvjp(forward, pull_back)
    return solve(x0, (args, consts), outer_consts)


# --- what they share --------------------------------------------------------------------------------------------------


def _solve_equation(
    function: Callable,
    z0: PyTree,
    args: tuple,
    solver: Any,
    backward: Any,
    batch_ndim: int,
    outer_grad: Callable | None,
    *,
    minus_identity: bool,
) -> Solution:
    """`fixed_point` and `root`: the residual is ``function(z) - z`` or ``function(z)``."""
    mode = as_mode(backward)
    if not isinstance(solver, SOLVERS):
        raise ValueError(f"solver: expected a {', '.join(s.__name__ for s in SOLVERS)}, got {solver!r}")
    z0 = check_start(z0, "z0", check_positive_int(batch_ndim, "batch_ndim", minimum=0))
    batch = jax.tree.leaves(z0)[0].shape[:batch_ndim]
    layout = Layout.of(z0, batch_ndim)
    fun, consts, out = hoist(function, z0, args)
    _check_like(out, z0, "f" if minus_identity else "g")
    outer, outer_consts = _hoist_outer(outer_grad, solver.opa_period, z0, args)
    to_flat = lambda tree: layout.flatten(tree).reshape(-1, layout.size)
    to_tree = lambda flat: layout.unflatten(flat.reshape(*batch, layout.size))
    to_batch = lambda x, lead=0: x.reshape(*x.shape[:lead], *batch, *x.shape[lead + 1 :])

    def residual(flat: Array, given: tuple) -> tuple[Array, Any]:
        value = to_flat(fun(given[1], to_tree(flat), given[0]))
        return (value - flat, norm(value) + 1e-9) if minus_identity else (value, None)

    @jax.custom_vjp
    def solve(z0: PyTree, given: tuple, outer_consts: list) -> Solution:
        state = iterate(
            lambda z: residual(z, given), to_flat(z0), solver,
            init_scale=_init_scale(solver, minus_identity),
            outer_grad=None if outer is None else lambda z: to_flat(outer(outer_consts, to_tree(z), given[0])),
        )  # fmt: skip
        U, V, n_rows = solver.estimate(state.memory, state.mark)
        estimate = LowRank(to_batch(state.scale), to_batch(U), to_batch(V), to_batch(n_rows), layout)
        stats = SolveStats(
            to_batch(state.n_steps), to_batch(state.n_evals), to_batch(state.best), to_batch(state.converged),
            to_batch(state.diverged), to_batch(state.trace, 1),
        )  # fmt: skip
        return Solution(to_tree(state.best_z), estimate, stats)

    def forward(z0: PyTree, given: tuple, outer_consts: list) -> tuple[Solution, tuple]:
        solution = solve(z0, given, outer_consts)  # itself, so that second derivatives find their rule
        return solution, (solution.value, solution.inverse, given)

    def pull_back(saved: tuple, cotangent: Solution) -> tuple:
        value, inverse, given = saved
        v, b = to_flat(cotangent.value), len(batch)
        one_axis = lambda x: x.reshape(len(v), *x.shape[b:])
        flat = LowRank(
            one_axis(inverse.scale), one_axis(inverse.U), one_axis(inverse.V), one_axis(inverse.n_rows), layout
        )
        _, pull, _ = jax.vjp(residual, to_flat(value), given, has_aux=True)
        identity = -1.0 if minus_identity else 1.0
        w = solve_transposed(mode, flat, v, lambda w: pull(w)[0], identity=identity)
        return None, pull(w)[1], None

    solve.defvjp(forward, pull_back)
    return solve(z0, (args, consts), outer_consts)


def _init_scale(solver: Any, minus_identity: bool) -> Callable:
    """Scale of the first estimate at (z0, |g(z0)|): the solver's, -1, or SciPy's rule for roots."""

    def scale(z: Array, first: Array) -> Array:
        if solver.init_scale is not None or minus_identity:
            return jnp.full_like(first, -1 if solver.init_scale is None else solver.init_scale)
        usable = (first > 0) & jnp.isfinite(first)
        return jnp.where(usable, -0.5 * jnp.maximum(norm(z), 1) / jnp.where(usable, first, 1), -1)

    return scale


# Traces whose constants are arguments, under what they were made from.
_opened: WeakKeyDictionary = WeakKeyDictionary()


@dataclass(frozen=True)
class Pure:
    """A function without what it closes over, ``pure(consts, z, args)``.

    Equal for the same function and shapes, as JAX keeps its traces, and hence fit to be a static argument: it holds on
    to no data.

    Examples
    --------
    >>> double = lambda z: 2 * z
    >>> hoist(double, jnp.zeros(2), ())[0] == hoist(double, jnp.ones(2), ())[0]
    True
    """

    jaxpr: Any
    structure: Any

    def __call__(self, consts: list, z: PyTree, args: tuple) -> PyTree:
        """Evaluate."""
        flat = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, ()))(*consts, *jax.tree.leaves((z, *args)))
        return self.structure.unflatten(flat)


def hoist(function: Callable, z: PyTree, args: tuple) -> tuple[Pure, list, PyTree]:
    """Make what a function closes over an argument, so that a custom derivative may own it.

    Returns
    -------
    pure : Pure
        ``pure(consts, z, args)``.
    consts : list of Array
        What the function closes over.
    out : pytree of ShapeDtypeStruct
        What it returns.

    Examples
    --------
    >>> shift = jnp.array([1.0, 2.0])
    >>> pure, consts, out = hoist(lambda z: z + shift, jnp.zeros(2), ())
    >>> pure([10 * shift], jnp.zeros(2), ())
    Array([10., 20.], dtype=float32)
    """
    closed, out = jax.make_jaxpr(function, return_shape=True)(z, *args)
    traced = closed.jaxpr
    if traced not in _opened:  # of the same trace the same one; JAX 0.12 keeps the constants in it
        _opened[traced] = traced.replace(constvars=(), invars=[*traced.constvars, *traced.invars])
    return Pure(_opened[traced], jax.tree.structure(out)), list(closed.consts), out


def _hoist_outer(outer_grad: Callable | None, opa_every: int | None, z: PyTree, args: tuple) -> tuple[Any, list]:
    if opa_every is None:
        return None, []
    if outer_grad is None:
        raise ValueError("outer_grad: expected the gradient of the outer loss, which opa_every needs, got None")
    outer, consts, out = hoist(outer_grad, z, args)
    _check_like(out, z, "outer_grad")
    return outer, consts


def check_start(z0: PyTree, name: str, batch_ndim: int) -> PyTree:
    """The start as JAX arrays of float32 or float64, without values that are not finite."""
    leaves = jax.tree.leaves(z0)
    if not leaves:
        raise ValueError(f"{name}: expected at least one array, got an empty tree")
    z0 = jax.tree.map(jnp.asarray, z0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(z0):
        where = name + jax.tree_util.keystr(path)
        if leaf.dtype not in (jnp.float32, jnp.float64):
            raise ValueError(f"{where}: expected float32 or float64, got {leaf.dtype}")
        if leaf.size == 0:
            raise ValueError(f"{where}: expected at least one entry, got shape {leaf.shape}")
        if leaf.shape[:batch_ndim] != jax.tree.leaves(z0)[0].shape[:batch_ndim] or leaf.ndim < batch_ndim:
            raise ValueError(f"{where}: expected the same {batch_ndim} first axes in every leaf, got {leaf.shape}")
    check_finite(z0, name)
    return z0


def _check_like(out: PyTree, z0: PyTree, name: str) -> None:
    about = lambda tree: (
        jax.tree.structure(tree), [(jnp.dtype(leaf.dtype).name, leaf.shape) for leaf in jax.tree.leaves(tree)]
    )  # fmt: skip
    if about(out) != about(z0):
        raise ValueError(f"{name}: expected an output like z0, {about(z0)}, got {about(out)}")
