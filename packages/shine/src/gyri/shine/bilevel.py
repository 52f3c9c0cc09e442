"""Bi-level problems: hyper-parameters by descent through inexact inner solves, and searches to compare with."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from gyri.numerics.io import load_pytree, save_pytree
from gyri.numerics.linalg import cg
from gyri.numerics.loops import progress_bar
from gyri.numerics.validation import as_key, check_option, check_positive_int, check_scalar

from .backward import Full, JacobianFree, Mode, Shine, as_mode
from .implicit import Pure, check_start, hoist
from .inverse import Layout, norm, two_loop
from .lbfgs import LBFGS, Pairs, empty_pairs, run

_KIND = "gyri.shine.HoagResult"
SCHEDULES = ("exponential", "quadratic", "cubic", "exact")
STEPS = ("safe", "paper")
EXACT_TOL, SEARCH_TOL = 1e-12, 1e-5
MEMORY = 60
N_PROGRAMS = 64


class HoagResult(NamedTuple):
    """What `hoag`, `grid_search` and `random_search` return.

    Attributes
    ----------
    x, lam : pytree of Array
        Inner and outer variables of the best iterate accepted.
    outer_value : float
        The outer objective there.
    history : dict of np.ndarray
        One row an iteration, row 0 the start: ``lam`` (n, ...), ``outer``, ``inner_evals`` (gradients of the inner
        objective), ``hvps`` and ``time`` (seconds), these three cumulative, ``tol`` (relative, of the inner solve),
        ``hypergrad`` (n, ...).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.shine import grid_search
    >>> inner = lambda x, lam: jnp.sum((x - 2.0) ** 2) + jnp.exp(lam) * jnp.sum(x**2)
    >>> result = grid_search(inner, lambda x, lam: jnp.sum((x - 1.0) ** 2), jnp.zeros(2), n=5, bounds=(-2.0, 2.0))
    >>> float(result.lam)
    0.0
    """

    x: PyTree
    lam: PyTree
    outer_value: float
    history: dict[str, np.ndarray]

    def save(self, path: str | os.PathLike) -> None:
        """Write to one file (no pickle), exactly at `path`."""
        save_pytree(path, dict(self._asdict()), kind=_KIND)

    @staticmethod
    def load(path: str | os.PathLike) -> "HoagResult":
        """Read what `save` wrote; ValueError for a file of another kind, a newer or a damaged one."""
        tree, _ = load_pytree(path, kind=_KIND)
        return HoagResult(**tree)


class Step(NamedTuple):
    """Result of one inner solve and its hypergradient, on flat arrays."""

    x: Array
    pairs: Pairs
    outer: Array
    hypergrad: Array
    n_evals: Array
    n_hvps: Array


@dataclass(frozen=True)
class Problem:
    """Inner and outer objective of flat arrays and data: equal problems share a program."""

    inner: Callable
    outer: Callable
    x: Layout
    lam: Layout

    def objectives(self, data: Any) -> tuple[Callable, Callable]:
        """Functions of flat x and lam."""
        unpack = lambda fun: lambda x, lam: fun(self.x.unflatten(x), self.lam.unflatten(lam), data)
        return unpack(self.inner), unpack(self.outer)


@dataclass(frozen=True)
class Options:
    """How one step is made: the mode, the inner solver, and whether to stop after the inner solve."""

    mode: Mode
    solver: LBFGS
    gradient: bool = True


@dataclass(frozen=True)
class Objective:
    """One of two functions of x, lam and data: ``data[i]`` is what it once closed over."""

    pure: Pure
    i: int

    def __call__(self, x: PyTree, lam: PyTree, data: tuple) -> Array:
        """The value."""
        return jax.tree.leaves(self.pure(data[self.i], x, (lam,)))[0]


def _take_step(
    problem: Problem, options: Options, x: Array, pairs: Pairs, lam: Array, tol: Array, cg_tol: Array, cg_max: Array,
    opa_every: Array | None, data: Any,
) -> Step:  # fmt: skip
    """Solve the inner problem from a warm start and memory, and estimate the hypergradient."""
    inner, outer = problem.objectives(data)
    mode = options.mode
    outer_grad = lambda x: jax.grad(outer)(x, lam)
    st = run(lambda x: inner(x, lam), x, pairs, tol, options.solver, outer_grad, opa_every=opa_every)
    if not options.gradient:
        return Step(st.x, st.pairs, outer(st.x, lam), jnp.zeros_like(lam), st.n_evals, st.n_hvps)
    value, (v, direct) = jax.value_and_grad(outer, (0, 1))(st.x, lam)
    q = jnp.zeros_like(v) if isinstance(mode, Full) else v
    if isinstance(mode, Shine):
        q = two_loop(*st.pairs, v)
        if mode.fallback is not None:
            q = jnp.where(norm(q) <= mode.fallback * norm(v), q, v)
    gradient, n_hvps = jax.grad(inner), st.n_hvps
    if isinstance(mode, Full) or mode.refine_steps:
        hvp = lambda p: jax.jvp(lambda x: gradient(x, lam), (st.x,), (p,))[1]
        q, info = cg(hvp, v, q, tol=cg_tol, maxiter=cg_max)
        n_hvps += info.n_iter + 2  # and the residuals before and after
    cross = jax.vjp(lambda lam: gradient(st.x, lam), lam)[1](q)[0]
    return Step(st.x, st.pairs, value, direct - cross, st.n_evals, n_hvps)


def _look(problem: Problem, x: Array, lam: Array, data: Any) -> tuple[Array, Array]:
    """Norm of the inner gradient and outer value at the start."""
    inner, outer = problem.objectives(data)
    return norm(jax.grad(inner)(x, lam)), outer(x, lam)


@lru_cache(maxsize=N_PROGRAMS)
def _programs(problem: Problem, options: Options) -> tuple[Callable, Callable]:
    """`_take_step` and `_look` of a problem, compiled once; those of the last problems are kept, not of all."""
    return jax.jit(partial(_take_step, problem, options)), jax.jit(partial(_look, problem))


def hoag(
    inner: Callable,
    outer: Callable,
    x0: PyTree,
    lam0: PyTree,
    *,
    backward: Any = "shine",
    solver: LBFGS | None = None,
    max_iter: int = 30,
    bounds: tuple = (-12.0, 12.0),
    tol_schedule: str = "exponential",
    tol_decay: float | int | None = None,
    tol_init: float | int = 1e-3,
    step: str = "safe",
    callback: Callable | None = None,
    progress: bool = False,
) -> HoagResult:
    r"""Minimise ``outer(x(lam), lam)`` with ``x(lam)`` the minimiser of ``inner(x, lam)``, by gradient descent in lam.

    Inner problems are solved by L-BFGS, from the last solution and with the last memory, to tolerances that get
    smaller as it goes. SHINE takes the hypergradient from that memory: not one product with the Hessian is needed.

    Parameters
    ----------
    inner, outer : callable
        ``inner(x, lam)`` and ``outer(x, lam)`` return numbers. Data they close over become arguments of the program.
    x0, lam0 : pytree of Array
        The start, in the dtype of the work.
    backward : str, Shine, JacobianFree or Full
        ``"shine"``; ``"jacobian_free"``; ``"full"``, conjugate gradients to the tolerance of the inner solve;
        ``"refine"``, from SHINE's answer, with more iterations as the tolerance decreases. ``Full(max_steps=5)`` and
        ``Shine(refine_steps=5)`` have their own limit of iterations; their tolerance is that of the inner solve.
    solver : LBFGS, optional
        ``LBFGS(memory=60)`` when None: half as many pairs, the paper's number, took twice as many gradients. With
        ``opa_every`` the gradient of `outer` is its direction. Its `tol` is not used.
    max_iter : int
        Iterations, each with one inner solve.
    bounds : tuple of float
        Smallest and largest value of each entry of lam; a start outside is brought to the nearest.
    tol_schedule : {"exponential", "quadratic", "cubic", "exact"}
        How the relative tolerance of the inner solves decreases: by a factor of `tol_decay`; as ``tol_init / k**2`` or
        ``/ k**3``; or 1e-12 from the first on.
    tol_decay : float, optional
        0.78 when None, 0.9 for ``"full"``.
    tol_init : float
        First tolerance, relative to the gradient at the start; absolute where that is 0.
    step : {"safe", "paper"}
        ``"safe"`` takes one step an iteration, and takes back steps after which the outer objective is a fifth larger.
        ``"paper"`` is what the paper's code does: two steps, of which one is taken back.
    callback : callable, optional
        ``callback(k, lam, outer_value)`` after each iteration; returning a true value, NumPy's included,
        stops.
    progress : bool
        Show a bar.

    Returns
    -------
    HoagResult
        `x`, `lam`, `outer_value` of the best iterate, and `history`. Ctrl-C returns what there is.

    Raises
    ------
    ValueError
        If an argument is out of range, or an objective returns no number.
    FloatingPointError
        If the first iteration leads to values that are not finite.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.shine import hoag
    >>> target = jnp.array([1.0, 2.0])
    >>> inner = lambda x, lam: 0.5 * jnp.sum((x - 2 * target) ** 2) + 0.5 * jnp.exp(lam) * jnp.sum(x**2)
    >>> outer = lambda x, lam: jnp.sum((x - target) ** 2)
    >>> result = hoag(inner, outer, jnp.zeros(2), jnp.array(2.0), max_iter=20)
    >>> abs(float(result.lam)) < 0.2
    True

    References
    ----------
    Pedregosa (2016), Hyperparameter optimization with approximate gradient; Ramzi et al. (2022), SHINE, section 3.1.
    """
    problem, x, lam, data = _problem_of(inner, outer, x0, lam0)
    return run_hoag(
        problem, x, lam, data, backward=backward, solver=solver, max_iter=max_iter, bounds=bounds,
        tol_schedule=tol_schedule, tol_decay=tol_decay, tol_init=tol_init, step=step, callback=callback,
        progress=progress,
    )  # fmt: skip


def _problem_of(inner: Callable, outer: Callable, x0: PyTree, lam0: PyTree) -> tuple[Problem, Array, Array, tuple]:
    """Flat start, and objectives that close over nothing."""
    x0, lam0 = check_start(x0, "x0", 0), check_start(lam0, "lam0", 0)
    objectives, consts = [], []
    for i, (fun, name) in enumerate(((inner, "inner"), (outer, "outer"))):
        pure, given, out = hoist(fun, x0, (lam0,))
        leaves = jax.tree.leaves(out)
        if len(leaves) != 1 or leaves[0].shape != () or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
            raise ValueError(f"{name}: expected a function that returns one real number, got {out}")
        objectives.append(Objective(pure, i))
        consts.append(given)
    layouts = Layout.of(x0), Layout.of(lam0)
    problem = Problem(objectives[0], objectives[1], *layouts)
    return problem, layouts[0].flatten(x0), layouts[1].flatten(lam0), tuple(consts)


# --- the driver -------------------------------------------------------------------------------------------------------


class Record:
    """The history, as it grows."""

    def __init__(self, problem: Problem) -> None:
        self.rows: list[dict[str, Any]] = []
        self.problem = problem
        self.inner_evals = self.hvps = 0
        self.start = time.perf_counter()

    def add(
        self, lam: np.ndarray, outer: float, tol: float, hypergrad: np.ndarray | None, evals: int, hvps: int
    ) -> None:
        """One more iteration."""
        self.inner_evals += evals
        self.hvps += hvps
        seconds = time.perf_counter() - self.start
        nothing = np.full_like(lam, np.nan)
        self.rows.append({
            "lam": lam, "outer": outer, "inner_evals": self.inner_evals, "hvps": self.hvps, "time": seconds, "tol": tol,
            "hypergrad": nothing if hypergrad is None else hypergrad,
        })  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """Rows as arrays; those of lam in its shape, if it is one array."""
        history = {name: np.stack([np.asarray(row[name]) for row in self.rows]) for name in self.rows[0]}
        if len(self.problem.lam.shapes) == 1:
            shape = (len(self.rows), *self.problem.lam.shapes[0])
            history |= {name: history[name].reshape(shape) for name in ("lam", "hypergrad")}
        return history


def run_hoag(
    problem: Problem,
    x: Array,
    lam: Array,
    data: Any,
    *,
    backward: Any = "shine",
    solver: LBFGS | None = None,
    max_iter: int = 30,
    bounds: tuple = (-12.0, 12.0),
    tol_schedule: str = "exponential",
    tol_decay: float | int | None = None,
    tol_init: float | int = 1e-3,
    step: str = "safe",
    callback: Callable | None = None,
    progress: bool = False,
    refine_power: float = 0.5,
    opa_period: Callable | None = None,
) -> HoagResult:
    """`hoag` on flat arrays and a problem that takes its data: equal problems and shapes compile once.

    ``refine_power`` is rho of the number of iterations of ``"refine"``, ``opa_period(k)`` the steps between two OPA
    pairs in iteration k. All else is as in `hoag`.

    Examples
    --------
    >>> layout = Layout.of(jnp.zeros(2)), Layout.of(jnp.zeros(()))
    >>> inner = lambda x, lam, data: jnp.sum((x - data) ** 2) + jnp.exp(lam) * jnp.sum(x**2)
    >>> problem = Problem(inner, lambda x, lam, data: jnp.sum((x - 1.0) ** 2), *layout)
    >>> result = run_hoag(problem, jnp.zeros(2), jnp.zeros(1), 2 * jnp.ones(2), max_iter=3)
    >>> round(result.outer_value, 6)
    0.0
    """
    mode = as_mode(backward)
    solver = LBFGS(memory=MEMORY) if solver is None else solver
    box = _check_bounds(bounds)
    lam = jnp.clip(lam, *box)
    check_positive_int(max_iter, "max_iter")
    check_option(tol_schedule, "tol_schedule", SCHEDULES)
    check_option(step, "step", STEPS)
    check_scalar(tol_init, "tol_init", minimum=0, strict=True)
    decay = (0.9 if isinstance(mode, Full) else 0.78) if tol_decay is None else tol_decay
    check_scalar(decay, "tol_decay", minimum=0, maximum=1)
    solve = InnerSolve(problem, Options(mode, solver), x, np.asarray(lam), data)
    solve.limit = partial(_cg_limit, backward, mode, refine_power)
    solve.opa_period = opa_period
    schedule = partial(_tolerance, tol_schedule, float(decay), float(tol_init))

    point = Point(np.asarray(lam), x, empty_pairs(solver.memory, x, solver.init_scale), np.inf, np.inf)
    solve(0, point, 1e30)  # compiles, and stops where it starts: the clock runs from here
    value = solve.start(x, lam)
    record = Record(problem)
    eps = schedule(0, float(tol_init))
    record.add(point.lam, value, eps, None, 1, 0)
    old, best, lip = None, None, 1.0
    with progress_bar(max_iter, "hoag", progress) as bar:
        try:
            for k in range(max_iter):
                point, hypergrad, evals, hvps = solve(k, point, eps)
                record.add(point.lam, point.outer, eps, hypergrad, evals, hvps)
                finite = bool(np.isfinite(point.outer) and np.isfinite(hypergrad).all())
                if old is None:
                    if not finite:
                        raise FloatingPointError(
                            f"hoag: outer value {point.outer} and hypergradient {hypergrad} at the start: check the "
                            "scale of the data and lam0"
                        )
                    length = float(np.linalg.norm(hypergrad))
                    lip = length / np.sqrt(hypergrad.size) if length > 1e-3 else 1.0
                if finite and (best is None or point.outer < best.outer):
                    best = point
                move = safe_step if step == "safe" else _paper_step
                point, old, lip, rejected = move(point, old, hypergrad, lip, eps, box, finite)
                eps = eps / 2 if rejected else schedule(k + 1, eps)
                bar.update(1)
                bar.set_postfix_str(f"outer={best.outer if best else np.nan:.4g}")
                if callback is not None and bool(callback(k, record.rows[-1]["lam"], record.rows[-1]["outer"])):
                    break
        except KeyboardInterrupt:
            bar.set_postfix_str("interrupted")
    return _result(problem, point if best is None else best, record)


class Point(NamedTuple):
    """An iterate: outer and inner variables, memory, outer value there, and length of the last step in lam."""

    lam: np.ndarray
    x: Array
    pairs: Pairs
    outer: float
    moved: float


class InnerSolve:
    """One inner solve after the other, with the tolerances and limits of the iteration."""

    def __init__(self, problem: Problem, options: Options, x: Array, lam0: np.ndarray, data: Any) -> None:
        self.take_step, self.look = _programs(problem, options)
        self.data = data
        self.lam0, self.dtype = lam0, x.dtype
        self.size = 1.0  # norm of the inner gradient at the start
        self.limit: Callable[[float], int] = lambda eps: 1
        self.opa_period: Callable[[int], int] | None = None

    def start(self, x: Array, lam: Array) -> float:
        """Outer value at the start; tolerances are relative to the gradient there from now on."""
        size, value = (float(a) for a in self.look(x, jnp.asarray(lam), self.data))
        self.size = size if size > 0 else 1.0
        return value

    def __call__(self, k: int, point: Point, eps: float) -> tuple[Point, np.ndarray, int, int]:
        """The point solved, its hypergradient, gradients and Hessian products spent."""
        least = 10 * float(jnp.finfo(self.dtype).eps)
        # A ridge of exp(lam) makes gradients smaller with it: a smaller lam has to be solved more exactly.
        tol = max(eps, least) * self.size * float(np.exp(min(point.lam.min() - self.lam0.min(), 0)))
        period = None if self.opa_period is None else jnp.asarray(self.opa_period(k), jnp.int32)
        found = self.take_step(
            point.x, point.pairs, jnp.asarray(point.lam), jnp.asarray(tol, self.dtype),
            jnp.asarray(max(eps, least), self.dtype), jnp.asarray(self.limit(eps), jnp.int32), period, self.data,
        )  # fmt: skip
        outer, hypergrad, evals, hvps = jax.device_get((found.outer, found.hypergrad, found.n_evals, found.n_hvps))
        solved = point._replace(x=found.x, pairs=found.pairs, outer=float(outer))
        return solved, np.asarray(hypergrad), int(evals), int(hvps)


def safe_step(
    point: Point, old: Point | None, hypergrad: np.ndarray, lip: float, eps: float, box: tuple, finite: bool
) -> tuple[Point, Point, float, bool]:
    """One step from an accepted point; back to the last one, with half the step, from one that is a fifth worse."""
    if old is not None:
        if not finite or point.outer > old.outer + 0.2 * abs(old.outer):
            return old._replace(moved=0.0), old, 2 * lip, True
        if point.outer <= old.outer + eps * (0.25 + 1.25 * point.moved) - lip * point.moved**2:
            lip *= 0.8
        elif point.outer > old.outer:
            lip *= 1.5
    lam = np.clip(point.lam - hypergrad / lip, *box).astype(point.lam.dtype)
    return point._replace(lam=lam, moved=float(np.linalg.norm(lam - point.lam))), point, lip, False


def _paper_step(
    point: Point, old: Point | None, hypergrad: np.ndarray, lip: float, eps: float, box: tuple, finite: bool
) -> tuple[Point, Point, float, bool]:
    """Two steps, of which one is taken back where the outer value is a fifth worse; nothing is ever restored."""
    if not finite:
        raise FloatingPointError("hoag: an outer value is not finite; step='safe' goes back where that happens")
    lam = np.clip(point.lam - hypergrad / lip, *box).astype(point.lam.dtype)
    moved, rejected = float(np.linalg.norm(lam - point.lam)), False
    if old is not None:
        if point.outer <= old.outer + eps * (0.25 + 1.25 * moved) - lip * moved**2:
            lip *= 0.95
        elif point.outer >= 1.2 * old.outer:
            lip, rejected = 2 * lip, True
    if not rejected:
        lam = np.clip(lam - hypergrad / lip, *box).astype(point.lam.dtype)
    return point._replace(lam=lam, moved=moved), point, lip, rejected


def _tolerance(name: str, decay: float, first: float, k: int, eps: float | int) -> float:
    """Relative tolerance of iteration k, given that of the one before."""
    if k == 0:
        return EXACT_TOL if name == "exact" else first
    values = {"exponential": eps * decay, "quadratic": first / k**2, "cubic": first / k**3, "exact": EXACT_TOL}
    return max(values[name], EXACT_TOL)


def _cg_limit(backward: Any, mode: Mode, power: float, eps: float) -> int:
    """Most iterations of conjugate gradients."""
    if backward == "refine":
        return max(1, int(1 / (100 * eps**power)))
    if backward == "full":
        return np.iinfo(np.int32).max
    return mode.max_steps if isinstance(mode, Full) else mode.refine_steps


def _check_bounds(bounds: tuple) -> tuple[float, float]:
    if len(bounds) != 2:
        raise ValueError(f"bounds: expected a smallest and a largest value, got {bounds!r}")
    low, high = (check_scalar(bound, "bounds") for bound in bounds)
    if low >= high:
        raise ValueError(f"bounds: expected the first to be the smaller, got {bounds!r}")
    return low, high


def _result(problem: Problem, point: Point, record: Record) -> HoagResult:
    lam = problem.lam.unflatten(jnp.asarray(point.lam))
    return HoagResult(problem.x.unflatten(point.x), lam, float(point.outer), record.arrays())


# --- searches ---------------------------------------------------------------------------------------------------------


def grid_search(inner: Callable, outer: Callable, x0: PyTree, n: int = 10, bounds: tuple = (-12.0, 12.0)) -> HoagResult:
    """Solve the inner problem on a grid of values of a number lam, from the last solution each time.

    Parameters
    ----------
    inner, outer, x0
        As in `hoag`; lam is one number.
    n : int
        Values.
    bounds : tuple of float
        Smallest and largest.

    Returns
    -------
    HoagResult
        The best, and the history.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.shine import grid_search
    >>> inner = lambda x, lam: jnp.sum((x - 2.0) ** 2) + jnp.exp(lam) * jnp.sum(x**2)
    >>> grid_search(inner, lambda x, lam: jnp.sum((x - 1.0) ** 2), jnp.zeros(2), n=3).history["lam"]
    array([  0., -12.,   0.,  12.], dtype=float32)

    References
    ----------
    Ramzi et al. (2022), SHINE, section 3.1.
    """
    low, high = _check_bounds(bounds)
    return _search(inner, outer, x0, np.linspace(low, high, check_positive_int(n, "n")))


def random_search(
    inner: Callable,
    outer: Callable,
    x0: PyTree,
    n: int = 10,
    *,
    key: Key[Array, ""] | Array | int,
    bounds: tuple = (-12.0, 12.0),
) -> HoagResult:
    """Solve the inner problem at random values of a number lam, from the last solution each time.

    Parameters
    ----------
    inner, outer, x0, n, bounds
        As in `grid_search`.
    key : PRNG key or int
        Draws the values, uniform between the bounds.

    Returns
    -------
    HoagResult
        The best, and the history.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.shine import random_search
    >>> inner = lambda x, lam: jnp.sum((x - 2.0) ** 2) + jnp.exp(lam) * jnp.sum(x**2)
    >>> random_search(inner, lambda x, lam: jnp.sum((x - 1.0) ** 2), jnp.zeros(2), n=3, key=0).history["outer"].shape
    (4,)

    References
    ----------
    Ramzi et al. (2022), SHINE, section 3.1.
    """
    low, high = _check_bounds(bounds)
    shape = (check_positive_int(n, "n"),)
    return _search(inner, outer, x0, np.asarray(jax.random.uniform(as_key(key), shape, minval=low, maxval=high)))


def _search(inner: Callable, outer: Callable, x0: PyTree, values: np.ndarray) -> HoagResult:
    dtype = jax.tree.leaves(check_start(x0, "x0", 0))[0].dtype
    return run_search(*_problem_of(inner, outer, x0, jnp.zeros((), dtype)), values)


def run_search(problem: Problem, x: Array, lam: Array, data: Any, values: np.ndarray) -> HoagResult:
    """Search on a problem that takes its data; row 0 of the history is the start, as that of `hoag`.

    Examples
    --------
    >>> layout = Layout.of(jnp.zeros(2)), Layout.of(jnp.zeros(()))
    >>> inner = lambda x, lam, data: jnp.sum((x - data) ** 2) + jnp.exp(lam) * jnp.sum(x**2)
    >>> problem = Problem(inner, lambda x, lam, data: jnp.sum((x - 1.0) ** 2), *layout)
    >>> float(run_search(problem, jnp.zeros(2), jnp.zeros(1), 2 * jnp.ones(2), np.array([-1.0, 0.0, 1.0])).lam)
    0.0
    """
    solver = LBFGS(memory=MEMORY)
    solve = InnerSolve(problem, Options(JacobianFree(), solver, gradient=False), x, np.asarray(lam), data)
    start = Point(np.asarray(lam), x, empty_pairs(solver.memory, x), np.inf, 0.0)
    solve(0, start, 1e30)
    value = solve.start(x, lam)
    record, best = Record(problem), start
    record.add(start.lam, value, SEARCH_TOL, None, 1, 0)
    point = start
    for value in values:
        at = point._replace(lam=np.full_like(start.lam, value), pairs=start.pairs)  # far apart: an old memory misleads
        point, _, evals, hvps = solve(0, at, SEARCH_TOL)
        record.add(point.lam, point.outer, SEARCH_TOL, None, evals, hvps)
        if point.outer < best.outer:
            best = point
        point = point if np.isfinite(point.outer) else start
    return _result(problem, best, record)
