"""What all solvers share: their settings, their checks, and one iteration's draws, steps and counts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from gyri.numerics.validation import (
    as_key,
    check_finite,
    check_option,
    check_positive_int,
    check_same_leading_axis,
    check_scalar,
)

from .directions import Side, dot, scale
from .rules import Rule, make_rule
from .sampling import SAMPLINGS, draw, start_sampler
from .types import BilevelSolver, BilevelState


class Settings(NamedTuple):
    """What every solver is made with, checked.

    Attributes
    ----------
    inner_fun, outer_fun : callable
        The losses.
    rules : tuple of Rule
        Of z, v and x.
    batch_size : int or "full"
        Rows of a block.
    sampling : str
        Of the blocks.
    v_radius : float or None
        Radius of the ball in which v stays.
    axis_name : str or None
        Mapped axis over which the rows of blocks are split.
    """

    inner_fun: Callable
    outer_fun: Callable
    rules: tuple[Rule, Rule, Rule]
    batch_size: int | str
    sampling: str
    v_radius: Any
    axis_name: str | None


def make_settings(
    inner_fun: Callable,
    outer_fun: Callable,
    powers: tuple[float, float, float],
    *,
    inner_opt: Any = 0.1,
    outer_opt: Any = 0.1,
    v_opt: Any = None,
    batch_size: int | str = 64,
    sampling: str = "shuffle",
    decay: Any = None,
    v_radius: Any = None,
    axis_name: str | None = None,
) -> Settings:
    """Check what every solver is made with."""
    if batch_size != "full":
        batch_size = check_positive_int(batch_size, "batch_size")
    if v_radius is not None:
        v_radius = check_scalar(v_radius, "v_radius", minimum=0, strict=True)
    if decay is not None:
        powers = tuple(decay) if isinstance(decay, tuple | list) else (decay,) * 3
        if len(powers) != 3:
            raise ValueError(f"decay: expected a number or three, got {len(powers)}")
        powers = tuple(check_scalar(power, "decay", minimum=0) for power in powers)  # type: ignore[assignment]
    rules = (
        make_rule(inner_opt, powers[0], "inner_opt"),
        make_rule(inner_opt, powers[1], "inner_opt") if v_opt is None else make_rule(v_opt, powers[1], "v_opt"),
        make_rule(outer_opt, powers[2], "outer_opt"),
    )
    return Settings(
        inner_fun, outer_fun, rules, batch_size, check_option(sampling, "sampling", SAMPLINGS), v_radius, axis_name
    )


def sides(settings: Settings, inner_data: Any, outer_data: Any) -> tuple[Side, Side]:
    """The two objectives with their data."""
    inner = Side(settings.inner_fun, inner_data, settings.batch_size, settings.axis_name)
    outer = Side(settings.outer_fun, outer_data, settings.batch_size, settings.axis_name)
    return inner, outer


def as_variable(tree: PyTree, name: str) -> PyTree:
    """Arrays of floating numbers, without weak types."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name}: expected at least one array, got none")
    for path, leaf in leaves:
        if not hasattr(leaf, "dtype") and not isinstance(leaf, float):
            raise TypeError(f"{name}{jax.tree_util.keystr(path)}: expected an array, got {type(leaf).__name__}")
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            dtype = jnp.result_type(leaf)
            raise TypeError(f"{name}{jax.tree_util.keystr(path)}: expected floating numbers, got {dtype}")
    check_finite(tree, name)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


def check_data(data: Any, name: str, batch_size: int | str) -> Any:
    """Data with equal leading axes, at least a block of them."""
    if data is None:
        return None
    n = check_same_leading_axis(data, name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if not isinstance(leaf, jax.Array) and np.asarray(leaf).dtype.kind not in "biufcV":
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}: expected numbers, got dtype {np.asarray(leaf).dtype}"
            )
    check_finite(data, name)
    if batch_size != "full" and int(batch_size) > n:
        raise ValueError(
            f"batch_size: expected at most the {n} rows of {name}, got {batch_size}; batch_size='full' takes all rows"
        )
    return jax.tree.map(jnp.asarray, data)


def check_loss(side: Side, z: PyTree, x: PyTree, name: str) -> None:
    """Check that a loss gives a number for a block."""
    rows = lambda a: jax.ShapeDtypeStruct((side.batch_size, *a.shape[1:]), a.dtype)
    shape = getattr(jax.eval_shape(side.fun, z, x, jax.tree.map(rows, side.data)), "shape", None)
    if shape != ():
        raise ValueError(f"{name}: expected a function that returns a scalar, got shape {shape}")


class Iteration:
    """One outer iteration while it is traced: it draws blocks, moves variables and counts calls.

    Parameters
    ----------
    settings : Settings
        Of the solver.
    state : BilevelState
        Before the iteration.
    inner_data, outer_data : pytree or None
        The data.
    """

    def __init__(self, settings: Settings, state: BilevelState, inner_data: Any, outer_data: Any) -> None:
        self.settings, self.state, self.t = settings, state, state.step
        self.inner, self.outer = sides(settings, inner_data, outer_data)
        self.samplers = (state.inner_sampler, state.outer_sampler)
        self.opt_state, self.key = state.opt_state, state.key
        self.calls: list[Any] = [0, 0]

    def draw_inner(self) -> Array:
        """Next inner block."""
        block, sampler = draw(self.samplers[0], self.inner.n_blocks, self.settings.sampling)
        self.samplers = (sampler, self.samplers[1])
        return block

    def draw_outer(self) -> Array:
        """Next outer block."""
        block, sampler = draw(self.samplers[1], self.outer.n_blocks, self.settings.sampling)
        self.samplers = (self.samplers[0], sampler)
        return block

    def draw_key(self) -> Array:
        """A new key."""
        self.key, key = jax.random.split(self.key)
        return key

    def _move(self, which: int, params: PyTree, direction: PyTree) -> PyTree:
        params, new = self.settings.rules[which].apply(self.t, params, direction, self.opt_state[which])
        self.opt_state = tuple(new if i == which else old for i, old in enumerate(self.opt_state))
        return params

    def move_z(self, z: PyTree, direction: PyTree) -> PyTree:
        """Step of z."""
        return self._move(0, z, direction)

    def move_v(self, v: PyTree, direction: PyTree) -> PyTree:
        """Step of v, which stays in its ball."""
        v = self._move(1, v, direction)
        radius = self.settings.v_radius
        if radius is None:
            return v
        norm = jnp.sqrt(dot(v, v))
        return scale(jnp.minimum(1, radius / jnp.where(norm > 0, norm, 1)), v)

    def move_x(self, x: PyTree, direction: PyTree) -> PyTree:
        """Step of x."""
        return self._move(2, x, direction)

    def size(self, which: int) -> Any:
        """Step size of z, v or x at this iteration."""
        size = self.settings.rules[which].size
        assert size is not None  # the factory has checked it
        return size(self.t)

    def repeat(self, n: Any, body: Callable[[PyTree], PyTree], carry: PyTree) -> PyTree:
        """``carry = body(carry)`` n times; the body may draw blocks and move variables."""

        def once(_: Any, loop: tuple) -> tuple:
            carry, self.samplers, self.opt_state = loop
            carry = body(carry)
            return carry, self.samplers, self.opt_state

        loop = jax.lax.fori_loop(0, n, once, (carry, self.samplers, self.opt_state))
        carry, self.samplers, self.opt_state = loop
        return carry

    def either(self, condition: Array, yes: Callable[[], PyTree], no: Callable[[], PyTree]) -> PyTree:
        """One of two branches, which may draw blocks and count calls."""
        start, calls = self.samplers, self.calls

        def branch(function: Callable[[], PyTree]) -> Callable:
            def run(samplers: Any) -> tuple:
                self.samplers, self.calls = samplers, [0, 0]
                value = function()
                return value, self.samplers, jnp.array(self.calls, jnp.int32)

            return run

        value, self.samplers, made = jax.lax.cond(condition, branch(yes), branch(no), start)
        self.calls = [calls[0] + made[0], calls[1] + made[1]]
        return value

    def count(self, inner: Any = 0, outer: Any = 0) -> None:
        """Count oracle calls."""
        self.calls = [self.calls[0] + inner, self.calls[1] + outer]

    def finish(self, z: PyTree, v: PyTree, x: PyTree, extra: Any = None) -> BilevelState:
        """State after the iteration."""
        made = jnp.stack([jnp.asarray(n, jnp.int32) for n in self.calls])
        calls = self.state.calls + made
        return BilevelState(self.t + 1, z, v, x, self.key, *self.samplers, self.opt_state, extra, calls)


def make_solver(
    name: str,
    settings: Settings,
    advance: Callable[[Iteration], BilevelState],
    remember: Callable[[Side, Side, BilevelState], tuple[Any, tuple[int, int]]] | None = None,
) -> BilevelSolver:
    """Make the pair of functions.

    Parameters
    ----------
    name : str
        Of the solver.
    settings : Settings
        What it was made with.
    advance : callable
        One iteration.
    remember : callable, optional
        ``remember(inner, outer, state) -> (extra, calls)`` of the start.
    """

    def init(key: Any, z0: PyTree, x0: PyTree, inner_data: Any, outer_data: Any) -> BilevelState:
        z, x = as_variable(z0, "z0"), as_variable(x0, "x0")
        inner_data = check_data(inner_data, "inner_data", settings.batch_size)
        outer_data = check_data(outer_data, "outer_data", settings.batch_size)
        inner, outer = sides(settings, inner_data, outer_data)
        if settings.axis_name is None:
            check_loss(inner, z, x, "inner_fun")
            check_loss(outer, z, x, "outer_fun")
        key, inner_key, outer_key = jax.random.split(as_key(key), 3)
        v = jax.tree.map(jnp.zeros_like, z)
        state = BilevelState(
            jnp.zeros((), jnp.int32),
            z,
            v,
            x,
            key,
            start_sampler(inner_key, inner.n_blocks, settings.sampling),
            start_sampler(outer_key, outer.n_blocks, settings.sampling),
            tuple(rule.init(u) for rule, u in zip(settings.rules, (z, v, x), strict=True)),
            None,
            jnp.zeros(2, jnp.int32),
        )
        if remember is None:
            return state
        extra, calls = remember(inner, outer, state)
        return state._replace(extra=extra, calls=jnp.array(np.array(calls, np.int32)))

    def update(state: BilevelState, inner_data: Any, outer_data: Any) -> BilevelState:
        return advance(Iteration(settings, state, inner_data, outer_data))

    return BilevelSolver(init, update, name)
