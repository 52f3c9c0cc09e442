"""Root finders on a batch, each element with its own estimate of its inverse Jacobian and its own stop.

All share one loop, :func:`iterate`. A method brings its memory: ``start`` makes it, ``arrive`` updates it at a new
iterate and says where to go next, ``compact`` makes room in it, ``estimate`` reads the inverse out of it.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gyri.numerics.validation import check_option, check_positive_int, check_scalar

from .inverse import dot, einsum, norm, products

STOPS = ("rel", "abs")
DIVERGED = 1e6  # times the first residual
STALL_STEPS, STALL_RATIO = 30, 1.3
ARMIJO, MIN_STEP = 1e-4, 1e-2

_warned: set[tuple[str, float]] = set()


class SolveStats(NamedTuple):
    """How a solve went, each but `trace` in the shape of the batch.

    Attributes
    ----------
    n_steps : Array of int
        Steps made.
    n_evals : Array of int
        Evaluations of the function, or of the gradient.
    residual : Array
        Norm of the residual at the value returned.
    converged, diverged : Array of bool
        It met the tolerance; it grew a million times, or was not finite.
    trace : Array, shape (max_steps + 1, ...)
        Norm of the residual at the start and after each step, NaN from the stop on.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.shine import fixed_point
    >>> bool(fixed_point(lambda z: 0.5 * jnp.cos(z), jnp.zeros(3)).stats.converged)
    True
    """

    n_steps: Int[Array, "*batch"]
    n_evals: Int[Array, "*batch"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    diverged: Bool[Array, "*batch"]
    trace: Float[Array, "steps *batch"]


def clamp_tolerance(tol: float, dtype: Any) -> float:
    """Raise a tolerance to what the dtype can tell, and say so once.

    Examples
    --------
    >>> clamp_tolerance(1e-3, jnp.float32)
    0.001
    """
    least = 10 * float(jnp.finfo(dtype).eps)
    if tol >= least:
        return tol
    if tol < least / 2 and (str(dtype), tol) not in _warned:  # 1e-6 is a fair wish in float32
        _warned.add((str(dtype), tol))
        warnings.warn(f"tol: {tol} is below what {dtype} can tell; {least:.1e} is used", stacklevel=2)
    return least


# --- methods ----------------------------------------------------------------------------------------------------------


class Arrival(NamedTuple):
    """What a method sees at a new iterate, all of it on a batch.

    `z`, residual `g` there and `g_old` before, `step` that led there, `update`: elements that go on and have a step
    behind them, `i`: the number of steps, `first` residual norm, `scale` of the initial estimate, `pull`: the vjp of
    the residual at z (adjoint Broyden), `outer_grad` (OPA).
    """

    z: Array
    g: Array
    g_old: Array
    step: Array
    update: Array
    i: Array
    first: Array
    scale: Array
    pull: Callable | None
    outer_grad: Callable | None


class Rows(NamedTuple):
    """Memory of the Broyden methods: rows of U and V below `slot` hold terms, zero where an element skipped one.

    One slot for all elements: a row is then written in place. `Gg` is the estimate times the residual; `pair` is what
    the last term was made of.
    """

    U: Float[Array, "b m d"]
    V: Float[Array, "b m d"]
    slot: Int[Array, ""]
    Gg: Float[Array, "b d"]
    pair: tuple


def _check_common(solver: Any) -> None:
    check_positive_int(solver.max_steps, "max_steps")
    check_scalar(solver.tol, "tol", minimum=0)
    check_option(solver.stop, "stop", STOPS)


@dataclass(frozen=True)
class Broyden:
    """Good Broyden method with an estimate of the inverse Jacobian of each element.

    Parameters
    ----------
    max_steps : int
        Most steps.
    tol : float
        Stop at a residual norm of ``tol`` times that of f(z) (of the first residual, for `root`), or of `tol`.
    stop : {"rel", "abs"}
        Which of the two.
    memory : int, optional
        Most rank-one terms, each of two vectors like z; as many as there are steps when None.
    overflow : {"restart", "svd"}
        What a full memory does: forget all but the last term, or keep the most that one term fewer can say. Where
        the best iterate is older than that, its estimate is gone, and the last one is returned. A memory of 1 is
        emptied at every step.
    line_search : bool
        Back-track until the residual decreases.
    init_scale : float, optional
        The first estimate is this times the identity. None: -1 for fixed points, so that the first step is
        z <- f(z); for roots ``-0.5 max(|z0|, 1) / |g(z0)|``.

    Raises
    ------
    ValueError
        If a value is out of range.

    Notes
    -----
    A term is valid together with all terms before it. A memory that is full is therefore emptied or compressed, never
    overwritten from its oldest term on.

    Examples
    --------
    >>> from gyri.shine import Broyden
    >>> Broyden(max_steps=18, memory=0)
    Traceback (most recent call last):
    ValueError: memory: expected an integer >= 1, got 0

    References
    ----------
    Broyden (1965), A class of methods for solving nonlinear simultaneous equations.
    """

    max_steps: int = 30
    tol: float | int = 1e-4
    stop: str = "rel"
    memory: int | None = None
    overflow: str = "restart"
    line_search: bool = False
    init_scale: float | int | None = None

    def __post_init__(self) -> None:
        _check_common(self)
        if self.memory is not None:
            check_positive_int(self.memory, "memory")
        check_option(self.overflow, "overflow", ("restart", "svd"))
        check_option(self.line_search, "line_search", (False, True))
        if self.init_scale is not None and check_scalar(self.init_scale, "init_scale") == 0:
            raise ValueError("init_scale: expected a number other than 0, got 0")

    @property
    def linearized(self) -> bool:
        """Whether the method needs the vjp at each iterate."""
        return False

    @property
    def opa_period(self) -> int | None:
        """Steps between two terms for the outer problem."""
        return None

    @property
    def rows_a_step(self) -> int:
        """Most terms that one step adds."""
        return 1 + (self.opa_period is not None)

    def n_rows(self) -> int:
        """Slots of the memory."""
        most = self.max_steps + (0 if self.opa_period is None else self.max_steps // self.opa_period)
        return most if self.memory is None else min(self.memory, most)

    @property
    def overflows(self) -> bool:
        """Whether the memory may fill up."""
        return self.memory is not None and self.n_rows() == self.memory

    def start(self, z: Array) -> Rows:
        """An empty memory."""
        b, d = z.shape
        rows, one = jnp.zeros((b, self.n_rows(), d), z.dtype), jnp.zeros_like(z)
        return Rows(rows, rows, jnp.zeros((), jnp.int32), one, (one, one) if self.overflows else ())

    def full(self, memory: Rows) -> Array:
        """Whether the next step may not find room."""
        return memory.slot + self.rows_a_step > memory.U.shape[1]

    def arrive(self, memory: Rows, at: Arrival) -> tuple[Rows, Array]:
        """Update at a new iterate: memory and direction."""
        h, vt = self._multiply(memory, at, at.g, at.step)
        y = at.g - at.g_old
        den = dot(vt, y)
        ok = at.update & (norm(y) > 10 * jnp.finfo(y.dtype).eps * at.first) & _usable(den, vt, y)
        u = (at.step - (h - memory.Gg)) / jnp.where(ok, den, 1)[:, None]
        memory = self._append(memory._replace(Gg=h), at, ok, u, vt, (at.step, y))
        return memory, -memory.Gg

    def _multiply(self, memory: Rows, at: Arrival, x: Array, x_transposed: Array) -> tuple[Array, Array]:
        """``G x`` and ``G^T x_transposed``."""
        scale, U, V = at.scale[:, None], memory.U, memory.V
        return scale * x + products(U, V, x), scale * x_transposed + products(V, U, x_transposed)

    def _append(self, memory: Rows, at: Arrival, ok: Array, u: Array, vt: Array, pair: tuple) -> Rows:
        """Write a term where `ok` and zeros elsewhere; the slot advances if any element has used it."""
        U, V, slot, Gg, last = memory
        ok &= jnp.isfinite(dot(u, u))
        u, vt = jnp.where(ok[:, None], u, 0), jnp.where(ok[:, None], vt, 0)
        Gg += u * dot(vt, at.g)[:, None]
        if self.overflows:  # the slot may be that of a term which an element that has stopped must keep
            row = lambda rows, new: jnp.where(
                at.update[:, None], new, jax.lax.dynamic_index_in_dim(rows, slot, 1, False)
            )
            u, vt = row(U, u), row(V, vt)
            last = jax.tree.map(lambda old, new: jnp.where(ok[:, None], new, old), last, pair)
        write = lambda rows, new: jax.lax.dynamic_update_index_in_dim(rows, new, slot, 1)
        return Rows(write(U, u), write(V, vt), slot + ok.any(), Gg, last)

    def compact(self, memory: Rows, g: Array, scale: Array, active: Array) -> Rows:
        """Make room for one step, in the memory of the elements that go on."""
        keep = memory.U.shape[1] - self.rows_a_step
        if keep == 0:
            U, V = jnp.zeros_like(memory.U), jnp.zeros_like(memory.V)
        elif self.overflow == "svd":
            U, V = compress(memory.U, memory.V, keep)
        else:
            keep = 1
            u, vt = self.first_term(memory.pair, scale)
            U, V = (jnp.zeros_like(memory.U).at[:, 0].set(row) for row in (u, vt))
        U, V = (jnp.where(active[:, None, None], new, old) for new, old in ((U, memory.U), (V, memory.V)))
        Gg = scale[:, None] * g + products(U, V, g)
        return memory._replace(U=U, V=V, slot=jnp.asarray(keep, jnp.int32), Gg=Gg)

    def first_term(self, pair: tuple, scale: Array) -> tuple[Array, Array]:
        """The term of a pair on top of the initial estimate."""
        s, y = pair
        vt = scale[:, None] * s
        den = dot(vt, y)
        ok = _usable(den, vt, y)
        u = (s - scale[:, None] * y) / jnp.where(ok, den, 1)[:, None]
        return jnp.where(ok[:, None], u, 0), jnp.where(ok[:, None], vt, 0)

    def mark(self, memory: Rows) -> Array:
        """What has to be kept to go back to the present estimate: the number of rows."""
        return jnp.broadcast_to(memory.slot, memory.Gg.shape[:1])

    def forget(self, mark: Array, active: Array) -> Array:
        """Marks after `compact`: of an estimate that is gone, the present one is the nearest."""
        return jnp.where(active, self.n_rows(), mark)

    def estimate(self, memory: Rows, mark: Array) -> tuple[Array, Array, Array]:
        """U, V and the number of rows of each element."""
        return memory.U, memory.V, mark


def _usable(den: Array, a: Array, b: Array) -> Array:
    """Whether an inner product is far enough from 0 to divide by it."""
    least = 1e-12 if den.dtype == jnp.float64 else 1e-6
    return (jnp.abs(den) > least * norm(a) * norm(b)) & jnp.isfinite(den)


def compress(U: Array, V: Array, keep: int) -> tuple[Array, Array]:
    """The best sum of `keep` terms, in spectral norm, for a sum of more."""
    qu, ru = jnp.linalg.qr(U.swapaxes(1, 2))
    qv, rv = jnp.linalg.qr(V.swapaxes(1, 2))
    left, values, right = jnp.linalg.svd(einsum("bij,bkj->bik", ru, rv), full_matrices=False)
    keep = min(keep, values.shape[-1])
    terms = einsum("bdi,bik->bkd", qu, left[..., :keep] * values[:, None, :keep])
    fill = lambda rows, old: jnp.zeros_like(old).at[:, :keep].set(rows)
    return fill(terms, U), fill(einsum("bdi,bki->bkd", qv, right[:, :keep]), V)


@dataclass(frozen=True)
class AdjointBroyden(Broyden):
    """Adjoint Broyden method: one vjp more a step than `Broyden`, a better estimate, and OPA.

    Parameters
    ----------
    max_steps, tol, stop, memory, overflow, line_search, init_scale
        As those of `Broyden`.
    opa_every : int, optional
        Before every so many steps, make the estimate exact for the gradient of the outer problem (outer-problem
        awareness); needs ``outer_grad``. 1 is the most exact, 5 the paper's choice.

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> from gyri.shine import AdjointBroyden
    >>> AdjointBroyden(opa_every=5).max_steps
    30

    References
    ----------
    Schlenkrich, Griewank, Walther (2010), On the local convergence of adjoint Broyden methods; Ramzi et al. (2022),
    section 2.3.
    """

    opa_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.opa_every is not None:
            check_positive_int(self.opa_every, "opa_every")
            if self.memory == 1:
                raise ValueError("memory: expected at least 2 with opa_every, which adds up to two terms a step, got 1")

    @property
    def linearized(self) -> bool:
        """Whether the method needs the vjp at each iterate."""
        return True

    @property
    def opa_period(self) -> int | None:
        """Steps between two terms for the outer problem."""
        return self.opa_every

    def arrive(self, memory: Rows, at: Arrival) -> tuple[Rows, Array]:
        """Update at a new iterate: memory and direction."""
        assert at.pull is not None
        q = at.pull(at.g)
        h, b = self._multiply(memory, at, at.g, q)
        ok = at.update & (norm(at.g) > 10 * jnp.finfo(q.dtype).eps * at.first)
        memory = self._append_adjoint(memory._replace(Gg=h), at, ok, at.g, q, h, b)
        if self.opa_every is not None:
            memory = self._opa(memory, at)
        return memory, -memory.Gg

    def _append_adjoint(self, memory: Rows, at: Arrival, ok: Array, sigma: Array, q: Array, h: Array, b: Array) -> Rows:
        """Append the term that makes ``sigma^T J`` exact, for ``q = J^T sigma``, ``h = G sigma``, ``b = G^T q``."""
        den = dot(b, sigma)
        ok &= _usable(den, b, sigma)
        vt = (sigma - b) / jnp.where(ok, den, 1)[:, None]
        return self._append(memory, at, ok, h, vt, (sigma, q))

    def _opa(self, memory: Rows, at: Arrival) -> Rows:
        """The term for the outer problem, in the direction ``G^T v``; what a term costs only where one is due."""
        pull, outer_grad, every = at.pull, at.outer_grad, self.opa_every
        assert pull is not None
        assert outer_grad is not None
        assert every is not None

        def term(memory: Rows) -> tuple[Array, ...]:
            v = outer_grad(at.z)
            sigma = at.scale[:, None] * v + products(memory.V, memory.U, v)
            q = pull(sigma)
            return (sigma, q, *self._multiply(memory, at, sigma, q))

        due = (at.i > 0) & (at.i % every == 0)
        nothing = lambda memory: (jnp.zeros_like(memory.Gg),) * 4
        terms = term(memory) if every == 1 else jax.lax.cond(due, term, nothing, memory)
        return self._append_adjoint(memory, at, at.update & due, *terms)

    def first_term(self, pair: tuple, scale: Array) -> tuple[Array, Array]:
        """The term of a pair on top of the initial estimate."""
        sigma, q = pair
        b = scale[:, None] * q
        den = dot(b, sigma)
        ok = _usable(den, b, sigma)
        vt = (sigma - b) / jnp.where(ok, den, 1)[:, None]
        return jnp.where(ok[:, None], scale[:, None] * sigma, 0), jnp.where(ok[:, None], vt, 0)


class Window(NamedTuple):
    """Memory of Anderson's method: the last differences of iterates and of residuals, in a ring."""

    d_iterates: Float[Array, "b m d"]
    d_residuals: Float[Array, "b m d"]
    gram: Float[Array, "b m m"]
    slot: Int[Array, ""]


@dataclass(frozen=True)
class Anderson:
    """Anderson's method (type II): the best mix of the last iterates; its estimate of the inverse serves SHINE, too.

    Parameters
    ----------
    max_steps, tol, stop
        As those of `Broyden`.
    memory : int
        Differences in the mix.
    beta : float
        Share of the residual that is added, in (0, 1] usually.
    ridge : float
        Regularisation, relative to the mean square of the differences; raised to what the dtype can tell.

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> from gyri.shine import Anderson
    >>> Anderson(memory=4).beta
    1.0

    References
    ----------
    Walker, Ni (2011), Anderson acceleration for fixed-point iterations.
    """

    max_steps: int = 50
    tol: float | int = 1e-4
    stop: str = "rel"
    memory: int = 6
    beta: float | int = 1.0
    ridge: float | int = 1e-8

    line_search = linearized = overflows = False
    opa_period = None

    def __post_init__(self) -> None:
        _check_common(self)
        check_positive_int(self.memory, "memory")
        check_scalar(self.beta, "beta", minimum=0, strict=True)
        check_scalar(self.ridge, "ridge", minimum=0)

    @property
    def init_scale(self) -> float:
        """Scale of the estimate."""
        return -float(self.beta)

    def start(self, z: Array) -> Window:
        """An empty memory."""
        b, d = z.shape
        m = min(self.memory, self.max_steps)
        rows = jnp.zeros((b, m, d), z.dtype)
        return Window(rows, rows, jnp.zeros((b, m, m), z.dtype), jnp.zeros((), jnp.int32))

    def arrive(self, memory: Window, at: Arrival) -> tuple[Window, Array]:
        """Update at a new iterate: memory and direction."""
        d_iterates, d_residuals, gram, slot = memory
        dr = at.g - at.g_old
        # The first arrival has no step behind it; an element that has stopped keeps its rows.
        write = lambda rows, new: jax.lax.dynamic_update_index_in_dim(
            rows, jnp.where(at.update[:, None], new, jax.lax.dynamic_index_in_dim(rows, slot, 1, False)), slot, 1
        )
        d_iterates, d_residuals = write(d_iterates, at.step), write(d_residuals, dr)
        row = einsum("bmd,bd->bm", d_residuals, jax.lax.dynamic_index_in_dim(d_residuals, slot, 1, False))
        gram = jax.lax.dynamic_update_index_in_dim(gram, row, slot, 1)
        gram = jax.lax.dynamic_update_index_in_dim(gram, row, slot, 2)
        weights = self._solve(gram, einsum("bmd,bd->bm", d_residuals, at.g)[..., None])[..., 0]
        mixed = einsum("bmd,bm->bd", d_iterates, weights) + self.beta * einsum("bmd,bm->bd", d_residuals, weights)
        memory = Window(d_iterates, d_residuals, gram, jnp.where(at.i > 0, (slot + 1) % d_iterates.shape[1], slot))
        return memory, self.beta * at.g - mixed

    def _solve(self, gram: Array, right: Array) -> Array:
        """Solve with the regularised Gram matrix; an empty row keeps out of it."""
        m = gram.shape[-1]
        diagonal = jnp.einsum("bii->bi", gram)
        ridge = max(float(self.ridge), 10 * float(jnp.finfo(gram.dtype).eps))
        add = jnp.where(diagonal > 0, ridge * diagonal.sum(-1, keepdims=True) / m, 1)
        solved = jnp.linalg.solve(gram + add[..., None] * jnp.eye(m, dtype=gram.dtype), right)
        return jnp.where(jnp.isfinite(solved), solved, 0)

    def mark(self, memory: Window) -> tuple[Array, Array]:
        """What has to be kept to go back to the present estimate: all of it."""
        return memory.d_iterates, memory.d_residuals

    def estimate(self, memory: Window, mark: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """U, V and the number of rows of each element."""
        d_iterates, d_residuals = mark
        U = self._solve(einsum("bmd,bnd->bmn", d_residuals, d_residuals), d_iterates + self.beta * d_residuals)
        return U, d_residuals, jnp.full(d_residuals.shape[:1], d_residuals.shape[1])


@dataclass(frozen=True)
class Picard:
    """Damped fixed-point iteration, ``z <- (1 - beta) z + beta f(z)``. Its estimate is minus the identity.

    Parameters
    ----------
    max_steps, tol, stop
        As those of `Broyden`.
    beta : float
        Damping, in (0, 1] usually.

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> from gyri.shine import Picard
    >>> Picard(beta=0.5).max_steps
    100
    """

    max_steps: int = 100
    tol: float | int = 1e-4
    stop: str = "rel"
    beta: float | int = 1.0

    line_search = linearized = overflows = False
    init_scale = -1.0
    opa_period = None

    def __post_init__(self) -> None:
        _check_common(self)
        check_scalar(self.beta, "beta", minimum=0, strict=True)

    def start(self, z: Array) -> Array:
        """No memory: rows without number."""
        return jnp.zeros((z.shape[0], 0, z.shape[1]), z.dtype)

    def arrive(self, memory: Array, at: Arrival) -> tuple[Array, Array]:
        """Direction at a new iterate."""
        return memory, self.beta * at.g

    def mark(self, memory: Array) -> tuple:
        """Nothing has to be kept."""
        return ()

    def estimate(self, memory: Array, mark: tuple) -> tuple[Array, Array, Array]:
        """U, V and the number of rows of each element."""
        return memory, memory, jnp.zeros(memory.shape[0], jnp.int32)


@dataclass(frozen=True)
class Refinement(Broyden):
    """Broyden's method on top of a low-rank estimate, which stays as it is: the linear system of a backward pass."""

    base: Any = None

    def __post_init__(self) -> None:
        """Take any number of steps, 0 included: made by `backward`, whose options are checked."""

    def n_rows(self) -> int:
        """Slots of the memory."""
        return max(1, self.max_steps)

    def _multiply(self, memory: Rows, at: Arrival, x: Array, x_transposed: Array) -> tuple[Array, Array]:
        h, vt = super()._multiply(memory, at, x, x_transposed)
        U, V, n_rows = self.base
        return h + products(U, V, x, n_rows), vt + products(V, U, x_transposed, n_rows)


# --- the loop ---------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """Carry of :func:`iterate`: `i` steps made, iterate and residual, next `step`, memory, the best so far, flags."""

    i: Array
    z: Array
    g: Array
    step: Array
    scale: Array
    memory: Any
    best_z: Array
    best: Array
    mark: Any
    active: Array
    converged: Array
    diverged: Array
    first: Array
    last: Array
    n_steps: Array
    n_evals: Array
    trace: Array


def iterate(
    residual: Callable,
    z0: Float[Array, "b d"],
    solver: Any,
    *,
    init_scale: Callable,
    outer_grad: Callable | None = None,
    tol: Any = None,
) -> State:
    """Run a method until each element has met its tolerance, has diverged or stalled, or the steps are over.

    The loop evaluates first and updates then, so that `residual` stands in the program once: round 0 has a step of 0.

    Parameters
    ----------
    residual : callable
        ``residual(z) -> (g, reference)``, reference: what a relative tolerance is relative to, None for the first
        residual.
    z0 : Array, shape (b, d)
        The start.
    solver : object
        A method of this module.
    init_scale : callable
        ``init_scale(z0, norm of g(z0)) -> (b,)``, scale of the first estimate.
    outer_grad : callable, optional
        Gradient of the outer problem at z, for OPA.
    tol : float, optional
        In the place of the solver's.

    Returns
    -------
    State
        The last state; ``best_z``, ``best`` and ``mark`` are what a caller wants.
    """
    tol = clamp_tolerance(float(solver.tol), z0.dtype) if tol is None else tol
    b = z0.shape[0]
    zeros, flags = jnp.zeros(b, z0.dtype), jnp.zeros(b, bool)
    memory = solver.start(z0)
    state = State(
        jnp.zeros((), jnp.int32), z0, jnp.zeros_like(z0), jnp.zeros_like(z0), zeros, memory, z0,
        jnp.full(b, jnp.inf, z0.dtype), solver.mark(memory), ~flags, flags, flags, zeros, zeros,
        jnp.zeros(b, jnp.int32), jnp.zeros(b, jnp.int32), jnp.full((solver.max_steps + 1, b), jnp.nan, z0.dtype),
    )  # fmt: skip
    body = partial(_body, residual, solver, init_scale, outer_grad, tol)
    go_on = lambda st: (st.i <= solver.max_steps) & st.active.any()
    if not solver.overflows:
        return jax.lax.while_loop(go_on, body, state)

    def fill(st: State) -> State:
        """Run until the memory is full, and make room in it."""
        st = jax.lax.while_loop(lambda s: go_on(s) & ~solver.full(s.memory), body, st)
        return jax.lax.cond(go_on(st), make_room, lambda s: s, st)

    def make_room(st: State) -> State:
        compacted = solver.compact(st.memory, st.g, st.scale, st.active)
        return st._replace(memory=compacted, mark=solver.forget(st.mark, st.active))

    return jax.lax.while_loop(go_on, fill, state)


def _body(
    residual: Callable, solver: Any, init_scale: Callable, outer_grad: Callable | None, tol: Any, st: State
) -> State:
    """Evaluate at the next iterate, judge it, update the memory of those that go on."""
    first = st.i == 0
    step = jnp.where(st.active[:, None], st.step, 0)
    pull: Callable | None = None
    n_trials: Any = 0
    if solver.line_search:
        step, g, reference, n_trials = _search(residual, st, step)
    z = st.z + step
    if solver.linearized:
        g, vjp, reference = jax.vjp(residual, z, has_aux=True)
        pull, n_trials = lambda sigma: vjp(sigma)[0], n_trials + 1
    elif not solver.line_search:
        g, reference = residual(z)
        n_trials = 1
    res = norm(g)
    scale = jnp.where(first, init_scale(z, res), st.scale)
    initial = jnp.where(first, res, st.first)
    trace = st.trace.at[st.i].set(jnp.where(st.active, res, jnp.nan))
    st = st._replace(z=z, scale=scale, first=initial, trace=trace, last=jnp.where(st.active, res, st.last))

    bound = tol * jnp.ones_like(res)
    if solver.stop == "rel":
        bound = tol * (initial if reference is None else reference)
    finite = jnp.isfinite(res)
    converged = st.active & finite & (res <= bound)
    diverged = st.active & ~(finite & (res <= DIVERGED * initial))
    better = st.active & finite & (res < st.best)
    active = st.active & ~(converged | diverged | _stalled(solver, st, bound))

    at = Arrival(z, g, st.g, step, active & ~first, st.i, initial, scale, pull, outer_grad)
    memory, direction = solver.arrive(st.memory, at)
    choose = lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return st._replace(
        i=st.i + 1,
        g=g,
        step=direction,
        memory=memory,
        best_z=choose(z, st.best_z),
        best=choose(res, st.best),
        mark=jax.tree.map(choose, solver.mark(memory), st.mark),
        active=active,
        converged=st.converged | converged,
        diverged=st.diverged | diverged,
        n_steps=jnp.where(st.active, st.i, st.n_steps),
        n_evals=st.n_evals + jnp.where(st.active, n_trials, 0),
    )


def _stalled(solver: Any, st: State, bound: Array) -> Array:
    """Near the tolerance, and hardly a change in the last steps."""
    if solver.max_steps < STALL_STEPS:
        return jnp.zeros_like(st.active)
    start = jnp.maximum(st.i - STALL_STEPS + 1, 0)
    window = jax.lax.dynamic_slice_in_dim(st.trace, start, STALL_STEPS)
    flat = window.max(0) < STALL_RATIO * window.min(0)
    return (st.i >= STALL_STEPS - 1) & (st.last < 3 * bound) & flat


def _search(residual: Callable, st: State, step: Array) -> tuple[Array, Array, Any, Array]:
    """Shorten the steps until the squared residual decreases enough; the whole step where nothing helps."""
    start = dot(st.g, st.g)
    any_ = jnp.zeros_like(st.best)
    shapes = jax.eval_shape(residual, st.z)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def trial(state: tuple) -> tuple:
        k, alpha, wanted, n, kept, whole = state
        new = residual(st.z + alpha[:, None] * step)
        value = dot(new[0], new[0])
        pick = lambda mask, a, b: jax.tree.map(
            lambda x, y: jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b
        )
        whole = pick(wanted & (k == 0), new, whole)
        kept = pick(wanted, new, kept)
        enough = (value <= (1 - 2 * ARMIJO * alpha) * start) | (st.i == 0)
        # The minimum of the parabola through the value and slope at 0 and the value at alpha.
        curvature = value - start + 2 * start * alpha
        factor = jnp.where(curvature > 0, start * alpha / jnp.where(curvature > 0, curvature, 1), 0.1)
        shorter = alpha * jnp.clip(jnp.nan_to_num(factor, nan=0.1), 0.1, 0.5)
        n = n + wanted
        wanted = wanted & ~enough
        failed = wanted & (shorter < MIN_STEP)
        kept = pick(failed, whole, kept)
        alpha = jnp.where(failed, 1, jnp.where(wanted, shorter, alpha))
        return k + 1, alpha, wanted & ~failed, n, kept, whole

    init = (jnp.zeros((), jnp.int32), any_ + 1, st.active, jnp.zeros_like(st.n_evals), empty, empty)
    _, alpha, _, n, (g, reference), _ = jax.lax.while_loop(lambda s: s[2].any(), trial, init)
    return alpha[:, None] * step, jnp.where(st.active[:, None], g, st.g), reference, n
