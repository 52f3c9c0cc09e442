"""What goes in and out of solvers: states, results, problems."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, Key, PyTree


class BilevelState(NamedTuple):
    """Everything that one iteration changes; a pytree that can be saved, copied, mapped over.

    Attributes
    ----------
    step : Array of int32, shape ()
        Iterations done.
    z, v, x : pytree of Array
        Inner variable, minus the inverse Hessian times the outer gradient (like z; zero for solvers without it), and
        outer variable.
    key : PRNG key
        Of solvers that draw directions or truncations.
    inner_sampler, outer_sampler : Sampler
        Which blocks come next.
    opt_state : tuple
        States of the optimisers of z, v and x.
    extra : pytree
        Of the solver: memory, momentum, snapshots; or None.
    calls : Array of int32, shape (2,)
        Oracle calls so far, inner and outer: one block times one of the gradients and products.
    """

    step: Int[Array, "*batch"]
    z: PyTree
    v: PyTree
    x: PyTree
    key: Key[Array, "*batch"]
    inner_sampler: Any
    outer_sampler: Any
    opt_state: Any
    extra: Any
    calls: Int[Array, "*batch 2"]


class BilevelSolver(NamedTuple):
    """A solver: a pair of pure functions, as in optax.

    Attributes
    ----------
    init : callable
        ``init(key, z0, x0, inner_data, outer_data) -> BilevelState``.
    update : callable
        ``update(state, inner_data, outer_data) -> BilevelState``: one outer iteration.
    name : str
        Of the solver.
    """

    init: Callable[..., BilevelState]
    update: Callable[..., BilevelState]
    name: str


class Result(NamedTuple):
    """What :func:`minimize` returns.

    Attributes
    ----------
    z, v, x : pytree of Array
        The last iterate.
    state : BilevelState
        From which to go on.
    history : dict of numpy.ndarray, shape (n_records,)
        ``"step"``, ``"calls_inner"``, ``"calls_outer"``, ``"time_s"`` (seconds, compilation included, metrics not), and
        what `metrics` returned; the first record is the start.
    """

    z: PyTree
    v: PyTree
    x: PyTree
    state: BilevelState
    history: dict[str, Any]


class BilevelProblem(NamedTuple):
    """A problem: minimise ``outer_fun`` at the minimiser of ``inner_fun``.

    Attributes
    ----------
    inner_fun, outer_fun : callable
        ``fun(z, x, batch) -> scalar``, a mean over the rows of the batch.
    inner_data, outer_data : pytree of Array
        Their leading axes are the samples.
    z0, x0 : pytree of Array
        Where to start.
    """

    inner_fun: Callable
    outer_fun: Callable
    inner_data: Any
    outer_data: Any
    z0: PyTree
    x0: PyTree


class Hypergradient(NamedTuple):
    """What :func:`hypergradient` returns.

    Attributes
    ----------
    grad : pytree of Array
        Like x.
    v : pytree of Array or None
        Minus the inverse Hessian times the outer gradient, like z; None for ``"unrolled"``.
    value : Array, shape ()
        Outer objective at the given z and x.
    residual : Array, shape ()
        Norm of the linear system's residual over that of its right-hand side; NaN for ``"unrolled"``.
    """

    grad: PyTree
    v: PyTree | None
    value: Float[Array, ""]
    residual: Float[Array, ""]
