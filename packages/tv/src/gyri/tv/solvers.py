"""Iterative solvers of the problem, each a small triple of functions, all under one driver with a certificate."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from gyri.numerics import prox_tv1d, soft_threshold
from gyri.numerics.linalg import cg
from gyri.numerics.optim import fista_momentum
from gyri.numerics.validation import check_option, check_positive_int, check_scalar

from .operators import (
    HIGHEST,
    dense_of,
    dual_dictionary,
    is_identity,
    least_squares,
    squared_norm,
    squared_norm_cumulated,
    squared_norm_differences,
    to_dense,
)
from .problem import Problem, check_problem, differences, differences_adjoint, gap_value, objective_value


class Solution(NamedTuple):
    """What :func:`solve` returns: one entry a signal, without the first axis for a single signal.

    `u` (n, k), its `objective` (n,) and duality `gap` (n,), `n_iter` (n,) and `converged` (n,), and `history`
    (n, n_checks + 1): the objective at the start and at each check, constant once a signal has converged.
    """

    u: Float[Array, "*n k"]
    objective: Float[Array, "*n"]
    gap: Float[Array, "*n"]
    n_iter: Int[Array, "*n"]
    converged: Bool[Array, "*n"]
    history: Float[Array, "*n n_checks"] | None


class Method(NamedTuple):
    """An algorithm on a batch: ``start(u0) -> state``, ``step(state) -> state``, ``point(state) -> u``.

    Every leaf of the state has the signals on its first axis: the driver freezes those that have converged.
    """

    start: Callable[[Array], Any]
    step: Callable[[Any], Any]
    point: Callable[[Any], Array]


def solve(
    x: Num[Any, "..."],
    A: Any,
    lam: Any,
    *,
    solver: str = "apgd",
    max_iter: int = 1000,
    tol: float | int = 1e-8,
    u0: Num[Any, "..."] | None = None,
    check_every: int = 10,
    history: bool = False,
    **options: Any,
) -> Solution:
    r"""Solve :math:`\min_u \tfrac12 \|x - A u\|^2 + \lambda \|D u\|_1` for one signal or a batch.

    Parameters
    ----------
    x : Array, shape (m,) or (n, m)
        Observed signals, float32 or float64.
    A : array-like of shape (m, k), LinearOperator or None
        The operator; None is the identity.
    lam : float or Array, shape () or (n,)
        Penalty, not negative. At 0, least squares, the gap stays at half the squared residual, so that all `max_iter`
        iterations are run.
    solver : str
        ``"apgd"``, accelerated proximal gradient with the exact proximal operator; ``"pgd"``, without acceleration;
        ``"synthesis_pgd"`` and ``"synthesis_apgd"``, on the steps ``z`` with ``u = cumsum(z)``; ``"dual_pgd"`` and
        ``"dual_apgd"``, for operators of full column rank (their matrix is formed); ``"condat_vu"``;
        ``"chambolle_pock"``; ``"admm"``; ``"subgradient"``, a baseline.
    max_iter : int
        Most iterations.
    tol : float
        A signal is done when its duality gap is at most ``tol * max(1, objective of the start)``; positive bounds are
        raised to what the dtype can tell: its precision times ``||x||^2``, or times ten and that maximum.
    u0 : Array, shape (k,) or (n, k), optional
        Start; the least-squares solution of least norm when None. Dual solvers start there always.
    check_every : int
        Iterations between two computations of the gap.
    history : bool
        Record the objective at each check.
    **options
        ``restart=False`` (apgd): drop the momentum when it points uphill; ``relax=1.0`` in (0, 2) and ``sigma=0.5``
        (condat_vu): relaxation and dual step; ``gamma=None`` (admm): penalty of the splitting, balanced when None.

    Returns
    -------
    Solution
        `u`, `objective`, `gap`, `n_iter`, `converged`, `history`.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN, infinity, a negative penalty, an unknown solver or option; a rank below `k`
        (dual), an operator that sends constants to 0 (admm).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.tv import solve
    >>> solve(jnp.array([0.0, 0.5, 3.0, 3.5]), None, 0.5).u.round(2)
    Array([0.5, 0.5, 3. , 3. ], dtype=float32)

    References
    ----------
    Cherkaoui, Sulam, Moreau (2020), section 2; Condat (2013); Vu (2013); Chambolle, Pock (2011); Boyd et al. (2011).
    """
    check_option(solver, "solver", tuple(_SOLVERS))
    problem = check_problem(x, A, lam, u0, name_u="u0", ndim=(1, 2))
    settings = _check_options(solver, options)
    _check_solvable(problem, solver)
    max_iter, check_every = check_positive_int(max_iter, "max_iter"), check_positive_int(check_every, "check_every")
    tol = check_scalar(tol, "tol", minimum=0)
    single = problem.x.ndim == 1
    if single:
        x, lam, u = jax.tree.map(jnp.atleast_2d, (problem.x, problem.lam, problem.u))
        problem = Problem(x, problem.A, lam, u)
    problem = problem._replace(lam=jnp.broadcast_to(problem.lam, (len(problem.x), 1)))
    n_history = 1 + -(-max_iter // check_every) if history else None
    solution = _run(problem, settings, max_iter, tol, check_every, solver=solver, n_history=n_history)
    return jax.tree.map(lambda leaf: leaf[0], solution) if single else solution


_OPTIONS: dict[str, dict[str, Any]] = {
    "apgd": {"restart": False},
    "condat_vu": {"relax": 1.0, "sigma": 0.5},
    "admm": {"gamma": None},
}


def _check_options(solver: str, options: dict[str, Any]) -> dict[str, Any]:
    defaults = _OPTIONS.get(solver, {})
    for name, value in options.items():
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise ValueError(f"{name}: expected an option of solver {solver!r} ({known}), got {name}={value!r}")
        if name == "restart":
            check_option(value, name, (False, True))
        elif not (name == "gamma" and value is None):
            check_scalar(value, name, minimum=0, maximum=2 if name == "relax" else None, strict=True)
    return defaults | options


def _check_solvable(problem: Problem, solver: str) -> None:
    """Refuse an operator on which a solver's linear system is singular; values of tracers are not known."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(problem.A)):
        return
    with jax.ensure_compile_time_eval():
        if solver.startswith("dual"):
            if problem.u is not None:
                raise ValueError(f"u0: expected None, as solver {solver!r} starts from v = 0, got an array")
            if not is_identity(problem.A):
                matrix = np.asarray(to_dense(problem.A, problem.x.dtype))
                if (rank := np.linalg.matrix_rank(matrix)) < problem.k:
                    raise ValueError(f"A: expected rank {problem.k} for solver {solver!r}, got {rank}")
        elif solver == "admm":
            sums = problem.A.matvec(jnp.ones(problem.k, problem.x.dtype))
            row = problem.A.matvec(jnp.eye(1, problem.k, dtype=problem.x.dtype))
            if float(jnp.abs(sums).max()) <= 1e3 * float(jnp.finfo(sums.dtype).eps) * float(jnp.abs(row).max()):
                raise ValueError("A: expected an operator that does not send constants to 0 for solver 'admm'")


@partial(jax.jit, static_argnames=("solver", "n_history"))
def _run(
    problem: Problem, options: dict, max_iter: Array, tol: Array, check_every: Array, *, solver: str, n_history: Any
) -> Solution:
    """Iterate in blocks; after each, certify every signal and freeze those that are done."""
    n, dtype = len(problem.x), problem.x.dtype
    u0 = least_squares(problem.A, problem.x) if problem.u is None else problem.u
    u0 = jnp.broadcast_to(u0, (n, problem.k))
    method = _SOLVERS[solver](problem, **options)
    scale = jnp.maximum(1, objective_value(problem, u0))
    # The residual's entries are known to the precision of those of x.
    floor = jnp.finfo(dtype).eps * jnp.maximum(10 * scale, jnp.square(problem.x).sum(-1))
    limit = jnp.where(tol > 0, jnp.maximum(tol * scale, floor), 0).astype(dtype)

    def block(carry: tuple) -> tuple:
        i, block_size, state, solution = carry
        done = solution.converged
        new = jax.lax.fori_loop(0, block_size, lambda _, state: method.step(state), state)
        state = jax.tree.map(lambda a, b: jnp.where(done.reshape(-1, *[1] * (a.ndim - 1)), a, b), state, new)
        u = method.point(state)
        value, gap = objective_value(problem, u), gap_value(problem, u)
        history = solution.history
        if history is not None:
            history = history.at[:, -(-i // check_every) + (block_size > 0)].set(value)
        n_iter = solution.n_iter + jnp.where(done, 0, block_size)
        i = i + block_size
        next_size = jnp.minimum(check_every, max_iter - i)
        return i, next_size, state, Solution(u, value, gap, n_iter, done | (gap <= limit), history)

    zero = jnp.zeros((), jnp.int32)
    nothing = jnp.zeros(n, dtype)
    history = None if n_history is None else jnp.full((n, n_history), jnp.nan, dtype)
    empty = Solution(u0, nothing, nothing, jnp.zeros(n, jnp.int32), jnp.zeros(n, bool), history)
    carry = (zero, zero, method.start(u0), empty)
    # The first block has no iterations: it certifies the start, so that the certificate is compiled once.
    go_on = lambda carry: ((carry[1] > 0) | (carry[0] == 0)) & ~carry[3].converged.all()
    i, _, _, solution = jax.lax.while_loop(go_on, block, carry)
    recorded = solution.history
    if recorded is not None:  # all signals may be done before the last check
        after = jnp.arange(n_history) > -(-i // check_every)
        solution = solution._replace(history=jnp.where(after, solution.objective[:, None], recorded))
    return solution


# --- proximal gradient: a form of the problem, then with or without momentum ------------------------------------------


def _analysis(problem: Problem) -> Method:
    rho = squared_norm(problem.A)
    update = lambda u: prox_tv1d(u - problem.gradient(u) / rho, problem.lam / rho)
    return Method(lambda u0: u0, update, lambda u: u)


def _synthesis(problem: Problem) -> Method:
    rho = squared_norm_cumulated(problem.A).astype(problem.x.dtype)
    threshold = problem.lam / rho * (jnp.arange(problem.k) > 0)  # the first sample is free

    def update(z: Array) -> Array:
        gradient = problem.gradient(jnp.cumsum(z, -1))
        return soft_threshold(z - jnp.cumsum(gradient[..., ::-1], -1)[..., ::-1] / rho, threshold)

    start = lambda u0: jnp.concatenate([u0[:, :1], differences(u0)], -1)
    return Method(start, update, lambda z: jnp.cumsum(z, -1))


def _dual(problem: Problem) -> Method:
    """``v <- clip(v + s D u(v))`` with ``u(v) = (A^T A)^+ (A^T x - D^T v)``."""
    least = least_squares(problem.A, problem.x)
    inverse_gram = lambda w: w
    norm: Array | float = squared_norm_differences(problem.k)
    if not is_identity(problem.A):
        inverse, psi = dual_dictionary(to_dense(problem.A, problem.x.dtype))
        least = jnp.matmul(problem.x, inverse.T, precision=HIGHEST)
        gram = jnp.matmul(inverse, inverse.T, precision=HIGHEST)
        inverse_gram = lambda w: jnp.matmul(w, gram, precision=HIGHEST)
        norm = jnp.square(jnp.linalg.norm(psi, 2)) if problem.k > 1 else 1.0
    point = lambda v: least - inverse_gram(differences_adjoint(v))
    update = lambda v: jnp.clip(v + differences(point(v)) / norm, -problem.lam, problem.lam)
    return Method(lambda u0: jnp.zeros((len(u0), problem.k - 1), u0.dtype), update, point)


def _accelerated(form: Callable[[Problem], Method], problem: Problem, restart: Any = False) -> Method:
    """FISTA's momentum (Beck, Teboulle 2009), with the gradient restart of O'Donoghue and Candès (2015)."""
    start, update, point = form(problem)

    def first(u0: Array) -> tuple:
        x = start(u0)
        return x, x, jnp.ones((len(x), 1), x.dtype)

    def step(state: tuple) -> tuple:
        x, y, t = state
        new = update(y)
        moved = new - x
        uphill = restart & (((y - new) * moved).sum(-1, keepdims=True) > 0)
        t_next = fista_momentum(t)
        y = jnp.where(uphill, new, new + (t - 1) / t_next * moved)
        return new, y, jnp.where(uphill, 1, t_next)

    return Method(first, step, lambda state: point(state[0]))


# --- primal-dual and splitting methods --------------------------------------------------------------------------------


def _condat_vu(problem: Problem, relax: Any, sigma: Any) -> Method:
    """Condat (2013), algorithm 3.1; the step is the largest that his theorem allows with this relaxation."""
    rho = squared_norm(problem.A)
    # Relaxation above 1 needs a smaller step: with the step of relax = 1 it diverges on real problems.
    tau = 1 / (rho / (2 * (2 - jnp.maximum(relax, 1.0))) + sigma * squared_norm_differences(problem.k))
    tau, sigma, relax = (jnp.asarray(value, problem.x.dtype) for value in (tau, sigma, relax))

    def step(state: tuple) -> tuple:
        u, v = state
        u_new = u - tau * (problem.gradient(u) + differences_adjoint(v))
        v_new = jnp.clip(v + sigma * differences(2 * u_new - u), -problem.lam, problem.lam)
        return u + relax * (u_new - u), v + relax * (v_new - v)

    start = lambda u0: (u0, jnp.zeros((len(u0), problem.k - 1), u0.dtype))
    return Method(start, step, lambda state: state[0])


def _chambolle_pock(problem: Problem) -> Method:
    """Chambolle, Pock (2011), algorithm 1, with both terms dualised: no gradient, no linear system."""
    norm_a, norm_d = jnp.sqrt(squared_norm(problem.A)), squared_norm_differences(problem.k) ** 0.5
    tau, sigma_v, sigma_w = 1 / (norm_a + norm_d), 1 / norm_d, 1 / norm_a

    def step(state: tuple) -> tuple:
        u, u_bar, v, w = state
        v = jnp.clip(v + sigma_v * differences(u_bar), -problem.lam, problem.lam)
        w = (w - sigma_w * problem.residual(u_bar)) / (1 + sigma_w)
        u_new = u - tau * (differences_adjoint(v) + problem.A.rmatvec(w))
        return u_new, 2 * u_new - u, v, w

    start = lambda u0: (u0, u0, jnp.zeros((len(u0), problem.k - 1), u0.dtype), jnp.zeros_like(problem.x))
    return Method(start, step, lambda state: state[0])


def _admm(problem: Problem, gamma: Any) -> Method:
    """Boyd et al. (2011), section 3, on ``y = D u``; `gamma` balances the two residuals (section 3.4.1) when None."""
    x_back = problem.A.rmatvec(problem.x)
    solve_system = _dense_system(problem) if dense_of(problem.A) is not None else _iterative_system(problem)
    norm = lambda r: jnp.linalg.norm(r, axis=-1, keepdims=True)

    def step(state: tuple) -> tuple:
        u, y, q, penalty, i = state
        u = solve_system(penalty, x_back + differences_adjoint(penalty * y - q), u)
        jumps = differences(u)
        y_new = soft_threshold(jumps + q / penalty, problem.lam / penalty)
        q = q + penalty * (jumps - y_new)
        if gamma is None:
            primal, dual = norm(jumps - y_new), penalty * norm(differences_adjoint(y_new - y))
            factor = jnp.where(primal > 10 * dual, 2, jnp.where(dual > 10 * primal, 0.5, 1))
            penalty = penalty * jnp.where(i < _BALANCED, factor, 1)  # it converges once the penalty stays
        return u, y_new, q, penalty, i + 1

    def start(u0: Array) -> tuple:
        jumps = differences(u0)
        penalty = jnp.full((len(u0), 1), 1.0 if gamma is None else gamma, u0.dtype)
        return u0, jumps, jnp.zeros_like(jumps), penalty, jnp.zeros((len(u0), 1), jnp.int32)

    return Method(start, step, lambda state: state[0])


_BALANCED = 200  # iterations in which the penalty may change


def _dense_system(problem: Problem) -> Callable[[Array, Array, Array], Array]:
    """Solve ``(A^T A + gamma D^T D) u = b`` for any gamma after one factorisation, which diagonalises both terms."""
    matrix = to_dense(problem.A, problem.x.dtype)
    scale = squared_norm(problem.A) / 4  # both terms of one size
    D = differences(jnp.eye(problem.k, dtype=matrix.dtype)).T
    second = scale * jnp.matmul(D.T, D, precision=HIGHEST)
    factor = jnp.linalg.cholesky(jnp.matmul(matrix.T, matrix, precision=HIGHEST) + second)
    half = jax.scipy.linalg.solve_triangular(factor, second, lower=True)
    middle = jax.scipy.linalg.solve_triangular(factor, half.T, lower=True)
    share, basis = jnp.linalg.eigh(middle)
    W = jax.scipy.linalg.solve_triangular(factor, basis, lower=True, trans=1)

    def solve_system(gamma: Array, b: Array, _: Array) -> Array:
        coefficients = jnp.matmul(b, W, precision=HIGHEST) / ((1 - share) + gamma / scale * share)
        return jnp.matmul(coefficients, W.T, precision=HIGHEST)

    return solve_system


def _iterative_system(problem: Problem) -> Callable[[Array, Array, Array], Array]:
    """The same by conjugate gradients from the last solution."""
    tol = 1e-12 if problem.x.dtype == jnp.float64 else 1e-6

    def solve_one(gamma: Array, b: Array, u: Array) -> Array:
        normal = lambda u: problem.A.rmatvec(problem.A.matvec(u)) + gamma * differences_adjoint(differences(u))
        return cg(normal, b, u, tol=tol)[0]

    return jax.vmap(solve_one)


def _subgradient(problem: Problem) -> Method:
    """Steps of 1/t in units of the smooth part's constant."""
    rho = squared_norm(problem.A)

    def step(state: tuple) -> tuple:
        u, t = state
        gradient = problem.gradient(u) + problem.lam * differences_adjoint(jnp.sign(differences(u)))
        return u - gradient / (rho * t), t + 1

    return Method(lambda u0: (u0, jnp.ones((len(u0), 1), u0.dtype)), step, lambda state: state[0])


_SOLVERS: dict[str, Callable[..., Method]] = {
    "pgd": _analysis,
    "apgd": partial(_accelerated, _analysis),
    "synthesis_pgd": _synthesis,
    "synthesis_apgd": partial(_accelerated, _synthesis),
    "dual_pgd": _dual,
    "dual_apgd": partial(_accelerated, _dual),
    "condat_vu": _condat_vu,
    "chambolle_pock": _chambolle_pock,
    "admm": _admm,
    "subgradient": _subgradient,
}
