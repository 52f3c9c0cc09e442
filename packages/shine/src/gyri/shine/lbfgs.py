"""L-BFGS with a strong-Wolfe line search and outer-problem awareness, in one loop with one evaluation a round."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gyri.numerics.validation import check_option, check_positive_int, check_scalar

from .inverse import LimitedMemory, dot, norm, two_loop
from .solvers import SolveStats, clamp_tolerance

C1, C2 = 1e-4, 0.9
C1_SLOPE = 0.1  # of the test on slopes alone, for decreases below what the dtype can tell
FLAT_STEPS = 10


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS for `minimize` and `hoag`: what it remembers is the inverse that SHINE shares.

    Parameters
    ----------
    max_steps : int
        Most steps.
    tol : float
        Stop at a norm of the gradient of `tol`.
    memory : int
        Most pairs.
    opa_every : int, optional
        Before every so many steps, add the pair that improves the inverse in the direction of the outer problem's
        gradient; needs ``outer_grad``. 5 is the paper's choice, 1 the most exact.
    opa_secant : {"jvp", "difference"}
        That pair by an exact product with the Hessian, or by a difference of gradients, which loses half the digits.
    init_scale : {"bb", "identity"} or float
        The inverse before any pair is this times the identity: ``"bb"`` takes it from the newest pair and needs the
        fewest evaluations. In a problem with a ridge of ``alpha / 2 |x|^2``, ``1 / alpha`` is exact wherever
        the data say nothing: it leaves the better inverse.
    max_linesearch : int
        Most evaluations in one line search. Where it fails, the memory is cleared and the gradient tried once.

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> from gyri.shine import LBFGS
    >>> LBFGS(opa_every=5).memory
    30

    References
    ----------
    Nocedal, Wright (2006), Numerical optimization, chapters 3 and 7; Ramzi et al. (2022), section 2.3.
    """

    max_steps: int = 1000
    tol: float | int = 1e-6
    memory: int = 30
    opa_every: int | None = None
    opa_secant: str = "jvp"
    init_scale: str | float | int = "bb"
    max_linesearch: int = 20

    def __post_init__(self) -> None:
        for name in ("max_steps", "memory", "max_linesearch"):
            check_positive_int(getattr(self, name), name)
        check_scalar(self.tol, "tol", minimum=0)
        if self.opa_every is not None:
            check_positive_int(self.opa_every, "opa_every")
        check_option(self.opa_secant, "opa_secant", ("jvp", "difference"))
        if isinstance(self.init_scale, str):
            check_option(self.init_scale, "init_scale", ("bb", "identity"))
        else:
            check_scalar(self.init_scale, "init_scale", minimum=0, strict=True)


class Pairs(NamedTuple):
    """Ring of pairs: `n_pairs` filled, the next one goes to `head`; `gamma` scales the identity."""

    S: Float[Array, "m d"]
    Y: Float[Array, "m d"]
    gamma: Array
    n_pairs: Array
    head: Array


class End(NamedTuple):
    """One end of the bracket of a line search."""

    alpha: Array
    value: Array
    slope: Array


class State(NamedTuple):
    """Carry: accepted point `x`, value `f`, gradient `g`; direction `p`, trial `alpha` and its bracket; the memory."""

    x: Array
    f: Array
    g: Array
    p: Array
    alpha: Array
    low: End
    high: End
    n_trials: Array
    pairs: Pairs
    steepest: Array
    i: Array
    n_evals: Array
    n_hvps: Array
    n_flat: Array
    done: Array
    diverged: Array
    trace: Array


def empty_pairs(memory: int, x: Float[Array, " d"], init_scale: Any = "bb") -> Pairs:
    """A ring without pairs.

    Examples
    --------
    >>> empty_pairs(3, jnp.zeros(2)).S.shape
    (3, 2)
    """
    rows, none = jnp.zeros((memory, x.size), x.dtype), jnp.zeros((), jnp.int32)
    gamma = 1.0 if isinstance(init_scale, str) else float(init_scale)
    return Pairs(rows, rows, jnp.asarray(gamma, x.dtype), none, none)


def minimise(
    fun: Callable,
    x0: Float[Array, " d"],
    solver: LBFGS,
    *,
    layout: Any,
    outer_grad: Callable | None = None,
) -> tuple[Array, LimitedMemory, SolveStats]:
    """Minimise a function of a flat array: the minimiser, the inverse Hessian, and how it went.

    Examples
    --------
    >>> from gyri.shine.inverse import Layout
    >>> x0 = jnp.zeros(2)
    >>> x, G, stats = minimise(lambda x: jnp.sum((x - 1) ** 2), x0, LBFGS(), layout=Layout.of(x0))
    >>> x
    Array([1., 1.], dtype=float32)
    """
    tol = clamp_tolerance(float(solver.tol), x0.dtype)
    st = run(fun, x0, empty_pairs(solver.memory, x0, solver.init_scale), tol, solver, outer_grad)
    residual = jnp.where(st.diverged, jnp.inf, norm(st.g))
    stats = SolveStats(st.i, st.n_evals + st.n_hvps, residual, residual <= tol, st.diverged, st.trace)
    return st.x, LimitedMemory(*st.pairs, layout), stats


def run(
    fun: Callable,
    x0: Float[Array, " d"],
    pairs: Pairs,
    tol: Any,
    solver: LBFGS,
    outer_grad: Callable | None = None,
    opa_every: Any = None,
) -> State:
    """L-BFGS from a memory that may hold pairs already; `opa_every` may be traced, in the place of the solver's.

    The first round evaluates at x0, which is a trial with a step of 0: the function stands in the program once.

    Examples
    --------
    >>> x0 = jnp.zeros(2)
    >>> st = run(lambda x: jnp.sum((x - 1) ** 2), x0, empty_pairs(5, x0), 1e-6, LBFGS())
    >>> st.x, int(st.n_evals)
    (Array([1., 1.], dtype=float32), 3)
    """
    zero, none, no = jnp.zeros((), x0.dtype), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    nothing, end = jnp.zeros_like(x0), End(zero, zero, zero)
    trace = jnp.full(solver.max_steps + 1, jnp.nan, x0.dtype)
    state = State(
        x0, zero, nothing, nothing, zero, end, end._replace(alpha=zero + jnp.inf), none, pairs, no, none, none, none,
        none, no, no, trace,
    )  # fmt: skip
    body = partial(_body, fun, tol, solver, outer_grad, solver.opa_every if opa_every is None else opa_every)
    return jax.lax.while_loop(lambda st: ~st.done, body, state)


def _body(fun: Callable, tol: Any, solver: LBFGS, outer_grad: Callable | None, opa_every: Any, st: State) -> State:
    """Evaluate the trial; then either take it and turn, or shorten or stretch the step."""
    initial = st.n_evals == 0
    xt = st.x + st.alpha * st.p
    ft, gt = jax.value_and_grad(fun)(xt)
    trial = End(st.alpha, ft, dot(gt, st.p))
    finite = jnp.isfinite(ft) & jnp.isfinite(gt).all()
    start = dot(st.g, st.p)
    low, high, fits = _judge(st, trial, start, finite)
    accept = (initial | fits) & finite
    n_trials = st.n_trials + 1
    fail = ~accept & (initial | (n_trials >= solver.max_linesearch))
    stop = fail & (initial | st.steepest)

    st = _move(st, accept, initial, xt, ft, gt, solver)
    done = stop | (norm(st.g) <= tol) | (st.i >= solver.max_steps) | (st.n_flat >= FLAT_STEPS)
    st = st._replace(
        n_evals=st.n_evals + 1,
        done=(done & accept) | stop,
        diverged=initial & ~finite,
        pairs=st.pairs._replace(
            n_pairs=jnp.where(fail, 0, st.pairs.n_pairs),
            gamma=jnp.where(fail, _first_gamma(solver, st.x), st.pairs.gamma),
        ),
    )
    if opa_every is not None:
        due = accept & ~st.done & (st.i > 0) & (st.i % opa_every == 0)
        st = _opa(fun, solver, outer_grad, st, due)
    return _turn(st, accept, fail, n_trials, low, high, solver)


def _first_gamma(solver: LBFGS, x: Array) -> Array:
    return jnp.asarray(1.0 if isinstance(solver.init_scale, str) else float(solver.init_scale), x.dtype)


def _judge(st: State, trial: End, start: Array, finite: Array) -> tuple[End, End, Array]:
    """The strong Wolfe conditions: a narrower bracket, and whether the trial meets them."""
    noise = 10 * jnp.finfo(trial.value.dtype).eps * jnp.abs(st.f)
    decreases = trial.value <= st.f + C1 * trial.alpha * start
    # Near a minimum differences of values are noise; slopes still tell (Hager and Zhang).
    decreases |= (trial.value <= st.f + noise) & (trial.slope <= (2 * C1_SLOPE - 1) * start)
    short = finite & decreases & (trial.slope < C2 * start)
    long = ~finite | ~decreases | (trial.slope > -C2 * start)
    pick = lambda mask, new, old: jax.tree.map(lambda a, b: jnp.where(mask, a, b), new, old)
    return pick(short, trial, st.low), pick(long, trial, st.high), ~short & ~long


def _next_trial(low: End, high: End) -> Array:
    """The minimum of the cubic through both ends, kept off them; their middle where there is none; else stretch."""
    width = high.alpha - low.alpha
    d1 = low.slope + high.slope - 3 * (high.value - low.value) / jnp.where(width > 0, width, 1)
    square = d1**2 - low.slope * high.slope
    d2 = jnp.sqrt(jnp.maximum(square, 0))
    below = high.slope - low.slope + 2 * d2
    ratio = 1 - (high.slope + d2 - d1) / jnp.where(below != 0, below, 1)
    usable = (square >= 0) & (below != 0) & jnp.isfinite(ratio)
    inside = low.alpha + jnp.clip(jnp.where(usable, ratio, 0.5), 0.1, 0.9) * width
    return jnp.where(jnp.isfinite(high.alpha), inside, 2 * low.alpha)


def _move(st: State, accept: Array, initial: Array, xt: Array, ft: Array, gt: Array, solver: LBFGS) -> State:
    """Take the trial if it is accepted, and its pair if it tells of curvature."""
    s, y = xt - st.x, gt - st.g
    pairs = _push(st.pairs, s, y, accept & ~initial, solver)
    size = norm(gt)
    flat = (ft >= st.f - jnp.finfo(ft.dtype).eps * jnp.abs(st.f)) & (size >= norm(st.g))
    i = st.i + (accept & ~initial)
    take = lambda new, old: jnp.where(accept, new, old)
    n_flat = jnp.where(accept & ~initial, jnp.where(flat, st.n_flat + 1, 0), st.n_flat)
    trace = st.trace.at[i].set(take(size, st.trace[i]))
    return st._replace(
        x=take(xt, st.x), f=take(ft, st.f), g=take(gt, st.g), pairs=pairs, i=i, n_flat=n_flat, trace=trace
    )


def _push(pairs: Pairs, s: Array, y: Array, wanted: Array, solver: LBFGS) -> Pairs:
    """Add a pair if it is wanted and its curvature is positive. One row is written in place, in any case."""
    S, Y, gamma, count, head = pairs
    sy, yy = dot(s, y), dot(y, y)
    least = 1e-10 if s.dtype == jnp.float64 else 1e-6
    add = wanted & (sy > least * norm(s) * jnp.sqrt(yy)) & jnp.isfinite(yy)
    if solver.init_scale == "bb":
        gamma = jnp.where(add, sy / jnp.where(add, yy, 1), gamma)
    write = lambda rows, new: rows.at[head].set(jnp.where(add, new, rows[head]))
    return Pairs(write(S, s), write(Y, y), gamma, jnp.minimum(count + add, S.shape[0]), (head + add) % S.shape[0])


def _opa(fun: Callable, solver: LBFGS, outer_grad: Callable | None, st: State, due: Array) -> State:
    """The pair of the direction ``G v``, as long as the last step, v the gradient of the outer problem."""
    assert outer_grad is not None
    gradient = jax.grad(fun)
    # Not after round 0, so alpha and p are those of the last step.
    length = st.alpha * norm(st.p)

    def pair(st: State) -> tuple[Array, Array]:
        e = two_loop(*st.pairs, outer_grad(st.x))
        size = norm(e)
        e *= length / jnp.where(size > 0, size, 1)
        if solver.opa_secant == "jvp":
            return e, jax.jvp(gradient, (st.x,), (e,))[1]
        return e, gradient(st.x + e) - st.g

    e, y = jax.lax.cond(due, pair, lambda st: (jnp.zeros_like(st.x), jnp.zeros_like(st.x)), st)
    st = st._replace(pairs=_push(st.pairs, e, y, due, solver))
    if solver.opa_secant == "jvp":
        return st._replace(n_hvps=st.n_hvps + due)
    return st._replace(n_evals=st.n_evals + due)


def _turn(st: State, accept: Array, fail: Array, n_trials: Array, low: End, high: End, solver: LBFGS) -> State:
    """A new direction after a step or a failure; a new trial on the old one otherwise."""
    turn = (accept | fail) & ~st.done
    # A count of 0 makes the recursion a product with gamma: it costs nothing while a line search goes on.
    p = -two_loop(*st.pairs._replace(n_pairs=jnp.where(turn, st.pairs.n_pairs, 0)), st.g)
    uphill = turn & ~(dot(p, st.g) < 0)
    steepest = fail | uphill
    p = jnp.where(steepest, -st.g, p)
    pairs = st.pairs._replace(n_pairs=jnp.where(uphill, 0, st.pairs.n_pairs))
    size = norm(st.g)
    first = jnp.where(pairs.n_pairs > 0, 1.0, jnp.minimum(1.0, 1 / jnp.where(size > 0, size, 1))).astype(st.x.dtype)
    zero = jnp.zeros_like(st.f)
    pick = lambda new, old: jax.tree.map(lambda a, b: jnp.where(turn, a, b), new, old)
    return st._replace(
        p=jnp.where(turn, p, st.p),
        alpha=jnp.where(turn, first, jnp.where(st.done, st.alpha, _next_trial(low, high))),
        low=pick(End(zero, st.f, dot(st.g, p)), low),
        high=pick(End(zero + jnp.inf, zero, zero), high),
        n_trials=jnp.where(turn, 0, n_trials),
        pairs=pairs,
        steepest=jnp.where(turn, steepest, st.steepest),
    )
