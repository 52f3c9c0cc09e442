"""Ways of learning atoms: all data at once, some windows at a time, atom by atom, from several starts, with outliers.

Pure functions over `gyri.numerics.csc`, and the loop that runs them.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gyri.numerics.csc import csc_solve, init_atoms
from gyri.numerics.csc.coordinates import coordinate_descent
from gyri.numerics.csc.dictionary import confine, update
from gyri.numerics.csc.initial import take_windows
from gyri.numerics.csc.learning import (
    LearnData,
    LearnState,
    background_step,
    finish_learning,
    learn_step,
    residual_at,
    revive,
    start_learning,
    value_at,
)
from gyri.numerics.csc.operators import correlate, gram, largest_correlation, statistics, synthesis
from gyri.numerics.loops import scan_chunks

ALGORITHMS = ("batch", "online", "greedy")
LAM_MODES = ("scaled", "fixed", "shared", "per_atom")
OUTLIERS = ("mad", "quantile", "iqr", "zscore")
CHUNK = 10  # iterations between two looks of the host
N_STEPS, UPDATE_TOL = 50, 1e-8  # of the dictionary step
FORGET = 0.8  # weight of the statistics so far when a batch of windows is added
ONLINE_ROUNDS = 2  # codes and background in turns
ONLINE_REST = 1e-3  # relative change of the atoms
MAD_FACTOR, MAD_TO_STD = 3.5, 0.6745
QUANTILE, IQR_FACTOR, Z_FACTOR = 0.99, 1.5, 3.0


class Plan(NamedTuple):
    """How to learn: all that is compiled in.

    Attributes
    ----------
    algorithm, lam_mode, outliers, init : str or None
        As the estimators name them; `init` is None where atoms are given.
    n_atoms, n_times_atom, n_restarts, n_sweeps : int
        As the estimators name them.
    batch_size, window_length : int
        Of ``"online"``; else 0, so that they ask for no compilation of their own.
    stage : int
        Of ``"greedy"``: iterations after which the next atom comes in; else 0.
    rank1, positive, unbiased : bool
        As the estimators name them.
    """

    algorithm: str
    lam_mode: str
    outliers: str | None
    init: str | None
    n_atoms: int
    n_times_atom: int
    n_restarts: int
    n_sweeps: int
    batch_size: int
    window_length: int
    stage: int
    rank1: bool
    positive: bool
    unbiased: bool


class Levels(NamedTuple):
    """Numbers that may change without a new compilation.

    Attributes
    ----------
    reg : float
        Sparsity, in units of the signal if ``lam_mode="fixed"``.
    tol, tol_final, eps : float
        As the estimators name them.
    """

    reg: Any
    tol: Any
    tol_final: Any
    eps: Any


class Progress(NamedTuple):
    """What a callback is told.

    Attributes
    ----------
    n_iter : int
        Iterations done.
    objective : float
        In the data's unit squared, of the best start.
    atoms : np.ndarray, shape (n_atoms, n_channels, n_times_atom)
        Of the best start.
    """

    n_iter: int
    objective: float
    atoms: np.ndarray


class Learned(NamedTuple):
    """What was learned.

    Attributes
    ----------
    atoms, codes, background : Array
        Of the best start; no background is None.
    lam : Array, shape (n_atoms,)
        Levels of sparsity.
    objective : np.ndarray
        After each step of each iteration, and last of what is given back.
    n_iter : int
        Iterations done.
    converged, interrupted : bool
        Whether the objective came to rest; whether Ctrl-C ended it.
    """

    atoms: Any
    codes: Any
    background: Any
    lam: Any
    objective: np.ndarray
    n_iter: int
    converged: bool
    interrupted: bool


class Carry(NamedTuple):
    """State of the loop; all leaves have a leading axis over starts.

    Attributes
    ----------
    state : LearnState
        Atoms, codes, background, objective; codes and background of ``"online"`` are those of its last windows.
    lam : Array, shape (n_atoms,)
        Levels of sparsity.
    n_iter : Array of int
        Iterations done.
    memory : (Array, Array) or None
        Statistics of the windows so far.
    """

    state: LearnState
    lam: Array
    n_iter: Array
    memory: Any


# --- levels of sparsity, outliers -------------------------------------------------------------------------------------


def find_lam(data: LearnData, atoms: Array, background: Array | None, reg: Any, plan: Plan) -> Array:
    """Level of sparsity of each atom, shape (n_atoms,)."""
    if plan.lam_mode == "fixed":
        return jnp.full(atoms.shape[0], reg, atoms.dtype)
    rest = data.signal if background is None else data.signal - background
    rest = rest if data.mask is None else jnp.where(data.mask, rest, 0)
    largest = largest_correlation(atoms, rest, positive=plan.positive, per_atom=plan.lam_mode == "per_atom")
    return jnp.broadcast_to(reg * largest, atoms.shape[0]).astype(atoms.dtype)


def with_lam(data: LearnData, state: LearnState, lam: Array) -> tuple[LearnData, LearnState]:
    """Change the level of sparsity, and the objective with it."""
    data = data._replace(lam=lam)
    residual = residual_at(data, state.atoms, state.codes, state.background)
    return data, state._replace(objective=value_at(data, residual, state.codes, state.background))


def find_inliers(residual: Array, n_times_atom: int, method: str, mask: Array | None = None) -> Array:
    """Samples at least half an atom away from any whose surroundings have an extraordinary residual.

    Parameters
    ----------
    residual : Array, shape (n_trials, n_channels, n_times)
        Zero where masked.
    n_times_atom : int
        Length of the surroundings over which squares are averaged.
    method : {"mad", "quantile", "iqr", "zscore"}
        Threshold on these averages: median and median absolute deviation, a quantile, quartiles, or mean and standard
        deviation.
    mask : Array of bool, shape (n_trials, n_channels, n_times), optional
        True where valid: other samples have no part in averages and threshold, and are no outliers.

    Returns
    -------
    Array of bool, shape (n_trials, 1, n_times)
        True where the atoms may learn.

    Notes
    -----
    After RoseCDL (AISTATS 2026).

    Examples
    --------
    >>> residual = jnp.zeros((1, 1, 100)).at[0, 0, 50].set(9.0) + 0.1 * jnp.sin(jnp.arange(100.0))
    >>> inliers = find_inliers(residual, 4, "mad")
    >>> bool(inliers[0, 0, 50]), int((~inliers).sum())
    (False, 8)
    """
    valid = jnp.ones(residual.shape, bool) if mask is None else mask
    width = (1, 1, n_times_atom)
    around = lambda x: jax.lax.reduce_window(x.sum(1, keepdims=True), 0.0, jax.lax.add, width, (1, 1, 1), "SAME")
    count = around(valid.astype(residual.dtype))
    error = residual.shape[1] * around(jnp.square(residual)) / jnp.maximum(count, 1)
    error = jnp.where(valid.any(1, keepdims=True), error, jnp.nan)
    if method == "mad":
        middle = jnp.nanmedian(error)
        threshold = middle + MAD_FACTOR * jnp.nanmedian(jnp.abs(error - middle)) / MAD_TO_STD
    elif method == "quantile":
        threshold = jnp.nanquantile(error, QUANTILE)
    elif method == "iqr":
        low, high = jnp.nanquantile(error, jnp.array([0.25, 0.75], error.dtype))
        threshold = high + IQR_FACTOR * (high - low)
    else:
        threshold = jnp.nanmean(error) + Z_FACTOR * jnp.nanstd(error)
    outlying = (error > threshold).astype(error.dtype)
    near = 2 * (n_times_atom // 2) + 1
    return jax.lax.reduce_window(outlying, -jnp.inf, jax.lax.max, (1, 1, near), (1, 1, 1), "SAME") == 0


def robust_step(data: LearnData, state: LearnState, levels: Levels, plan: Plan, method: str) -> LearnState:
    """One iteration whose atoms learn from ordinary samples only; the objective, over all samples, may rise."""
    # Without a dictionary step first; where outliers are, the model itself is then taken for the data.
    before = state.objective
    state = learn_step(data, state, levels.eps, **_options(plan, levels) | {"n_steps": 0})
    atoms, codes, background = state.atoms, state.codes, state.background
    residual = residual_at(data, atoms, codes, background)
    kept = jnp.where(find_inliers(residual, atoms.shape[-1], method, data.mask), residual, 0)
    C, E = statistics(codes, kept + synthesis(atoms, codes), atoms.shape[-1])
    atoms = update(atoms, C, E, data.window, UPDATE_TOL, rank1=plan.rank1, n_steps=N_STEPS)
    value = value_at(data, residual_at(data, atoms, codes, background), codes, background)
    at_rest = jnp.abs(before - value) <= levels.eps * jnp.abs(value)
    trace = state.trace.at[-1].set(value)
    return state._replace(atoms=atoms, objective=value, trace=trace, converged=at_rest)


def make_data(signal: Array, mask: Any, window: Any, background: Any) -> LearnData:
    """Gather a problem; levels of sparsity come later."""
    mask = None if mask is None else jnp.asarray(mask)
    return LearnData(signal, jnp.zeros((), signal.dtype), mask, window, background)


@jax.jit
def take_off(data: LearnData) -> tuple[Array, Array]:
    """Background of the data alone, as the two-step method takes it off, and its penalty."""
    assert data.background is not None
    weight = None if data.mask is None else data.mask.astype(data.signal.dtype)
    background = data.background.prox(data.signal, weight)
    return background, data.background.value(background)


@jax.jit
def variances(atoms: Array, codes: Array) -> Array:
    """Variance of each atom's part of the signal."""
    one = lambda pair: jnp.var(synthesis(pair[0][None], pair[1][:, None]))
    return jax.lax.map(one, (atoms, jnp.swapaxes(codes, 0, 1)))


# --- one iteration ----------------------------------------------------------------------------------------------------


def _options(plan: Plan, levels: Levels) -> dict[str, Any]:
    return {
        "rank1": plan.rank1,
        "positive": plan.positive,
        "n_sweeps": plan.n_sweeps,
        "n_steps": N_STEPS,
        "sweep_stop": 0.1 * levels.tol,
    }


def batch_step(data: LearnData, carry: Carry, levels: Levels, plan: Plan) -> Carry:
    """One iteration over all data."""
    state, lam = carry.state, carry.lam
    if plan.lam_mode in ("shared", "per_atom"):
        lam = find_lam(data, state.atoms, state.background, levels.reg, plan)
        data, state = with_lam(data, state, lam)
    else:
        data = data._replace(lam=lam)
    if plan.outliers is None:
        state = learn_step(data, state, levels.eps, **_options(plan, levels))
    else:
        state = robust_step(data, state, levels, plan, plan.outliers)
    return Carry(state, lam, carry.n_iter + 1, carry.memory)


def greedy_step(data: LearnData, carry: Carry, levels: Levels, plan: Plan) -> Carry:
    """One iteration with the atoms that are in so far; another one comes in after an equal share of the iterations.

    Atoms that are not in yet are zero, so that no code uses them; `learn_step` puts a window of the residual in the
    first of these, which is let in when its time has come.
    """
    new = batch_step(data, carry, levels, plan)
    n_active = jnp.minimum(1 + new.n_iter // plan.stage, plan.n_atoms)
    active = jnp.arange(plan.n_atoms) < n_active
    atoms = jnp.where(active[:, None, None], new.state.atoms, 0)
    state = new.state._replace(atoms=atoms, converged=new.state.converged & (n_active == plan.n_atoms))
    return new._replace(state=state)


def online_step(data: LearnData, carry: Carry, levels: Levels, plan: Plan, key: Array) -> Carry:
    """One iteration over a batch of random windows: their codes, what these add to the statistics, then the atoms.

    Codes within an atom's length of a window's end are left out: there the atoms are cut.
    """
    atoms, n = carry.state.atoms, plan.n_times_atom
    windows = sample_windows(jax.random.fold_in(key, carry.n_iter), data, plan)
    lam = carry.lam
    if plan.lam_mode in ("shared", "per_atom"):
        first = background_step(windows, atoms, jnp.zeros(_codes_shape(windows, plan), atoms.dtype))
        lam = find_lam(windows, atoms, first, levels.reg, plan)
    windows = windows._replace(lam=lam)
    codes, background = encode(windows, atoms, levels, plan)
    residual = residual_at(windows, atoms, codes, background)
    value = value_at(windows, residual, codes, background)
    place = jnp.arange(codes.shape[-1])
    inside = jnp.where((place >= n) & (place < codes.shape[-1] - n), codes, 0)
    kept = residual
    if plan.outliers is not None:
        kept = jnp.where(find_inliers(residual, n, plan.outliers, windows.mask), residual, 0)
    C, E = statistics(inside, kept + synthesis(atoms, inside), n)
    memory = (FORGET * carry.memory[0] + C, FORGET * carry.memory[1] + E)
    new = update(atoms, *memory, data.window, UPDATE_TOL, rank1=plan.rank1, n_steps=N_STEPS)
    used = jnp.diagonal(memory[0][..., n - 1])  # squares of all codes so far: an atom without any is replaced
    unused = used == 0
    new, revived = jax.lax.cond(
        unused.any() & ~unused.all(),
        lambda atoms: revive(windows, atoms, unused, residual, plan.rank1),
        lambda atoms: (atoms, jnp.zeros((), bool)),
        new,
    )
    change = jnp.sqrt(jnp.sum(jnp.square(new - atoms)) / jnp.sum(jnp.square(atoms)))
    scale = data.signal.shape[0] * data.signal.shape[-1] / (plan.batch_size * plan.window_length)
    value = scale * value  # as if all the recording were like these windows
    state = carry.state._replace(
        atoms=new, objective=value, trace=jnp.full_like(carry.state.trace, value), revived=revived
    )
    # Windows differ: the atoms never quite stop. Whether they came to rest is told, and ends nothing.
    return Carry(state._replace(converged=change <= ONLINE_REST), lam, carry.n_iter + 1, memory)


def sample_windows(key: Array, data: LearnData, plan: Plan) -> LearnData:
    """Draw windows of all trials with replacement."""
    n_trials, _, n_times = data.signal.shape
    kernel = (plan.window_length,)
    place = jax.random.randint(key, (plan.batch_size,), 0, n_trials * (n_times - plan.window_length + 1))
    mask = None if data.mask is None else take_windows(data.mask, place, kernel)
    return data._replace(signal=take_windows(data.signal, place, kernel), mask=mask)


def _codes_shape(data: LearnData, plan: Plan) -> tuple[int, int, int]:
    n_trials, _, n_times = data.signal.shape
    return n_trials, plan.n_atoms, n_times - plan.n_times_atom + 1


def encode(data: LearnData, atoms: Array, levels: Levels, plan: Plan) -> tuple[Array, Array | None]:
    """Codes and background by some rounds of descent from zero."""
    codes = jnp.zeros(_codes_shape(data, plan), atoms.dtype)
    G = gram(atoms)

    def improve(_: Any, state: tuple) -> tuple:
        codes, background = state
        beta = correlate(atoms, residual_at(data, atoms, codes, background))
        stop = 0.1 * levels.tol * data.lam
        codes, _ = coordinate_descent(codes, beta, G, data.lam, None, plan.n_sweeps, stop, positive=plan.positive)
        return codes, background_step(data, atoms, codes)

    return jax.lax.fori_loop(0, ONLINE_ROUNDS, improve, (codes, background_step(data, atoms, codes)))


# --- the loop ---------------------------------------------------------------------------------------------------------


def over_starts(function: Callable, carry: Carry) -> Carry:
    """Apply to each start: in turn on a CPU, where loops that end at different times would wait; else at once."""
    if carry.n_iter.size == 1:
        one = function(jax.tree.map(lambda leaf: leaf[0], carry))
        return jax.tree.map(lambda leaf: leaf[None], one)
    return jax.lax.platform_dependent(
        carry, cpu=lambda c: jax.lax.map(function, c), default=lambda c: jax.vmap(function)(c)
    )


@lru_cache(maxsize=64)
def make_step(plan: Plan) -> Callable:
    """Build the step of `scan_chunks` for a plan; the same one for the same plan, so that it compiles once."""

    def step(carry: Carry, i: Array, data: LearnData, levels: Levels, keys: Array) -> tuple[Carry, dict]:
        def advance(carry: Carry) -> Carry:
            if plan.algorithm == "online":
                return online_step(data, carry, levels, plan, keys)
            one = greedy_step if plan.algorithm == "greedy" else batch_step
            return jax.lax.cond(carry.state.converged, lambda c: c, lambda c: one(data, c, levels, plan), carry)

        carry = over_starts(advance, carry)
        return carry, {"loss": carry.state.objective, "trace": carry.state.trace}

    return step


@jax.jit
def comparable(data: LearnData, carry: Carry) -> Array:
    """Objectives of the starts at one level of sparsity, for a start with a lower level has a lower objective.

    Codes of ``"online"`` are not kept: its objectives, over the same windows, stand as they are.
    """
    if carry.state.codes.size == 0:
        return carry.state.objective
    lam = carry.lam.mean(0)
    return jax.lax.map(lambda state: with_lam(data, state, lam)[1].objective, carry.state)


def all_at_rest(carry: Carry) -> Array:
    """Whether no start moves any more."""
    return carry.state.converged.all()


@partial(jax.jit, static_argnames="plan")
def begin(data: LearnData, atoms: Array, levels: Levels, plan: Plan) -> Carry:
    """State of all starts before the first iteration; atoms of shape (n_starts, n_atoms, n_channels, n_times_atom)."""

    def one(atoms: Array) -> Carry:
        atoms = confine(atoms, rank1=plan.rank1)
        state = start_learning(data._replace(lam=jnp.zeros(plan.n_atoms, atoms.dtype)), atoms)
        lam = find_lam(data, atoms, state.background, levels.reg, plan)
        n, memory = plan.n_times_atom, None
        if plan.algorithm == "greedy":
            state = state._replace(atoms=atoms * (jnp.arange(plan.n_atoms) == 0)[:, None, None])
        if plan.algorithm == "online":
            # Codes of all the data are not kept: an empty array stands for them.
            memory = (jnp.zeros((plan.n_atoms, plan.n_atoms, 2 * n - 1), atoms.dtype), jnp.zeros_like(atoms))
            state = state._replace(codes=state.codes[..., :0], background=None)
        return Carry(state, lam, jnp.zeros((), jnp.int32), memory)

    return jax.lax.map(one, atoms)


start = jax.jit(start_learning)


@partial(jax.jit, static_argnames="plan")
def finish(data: LearnData, state: LearnState, tol: Any, plan: Plan) -> LearnState:
    """Codes and background to the final tolerance, at the atoms given, amplitudes without bias if asked."""
    state = finish_learning(data, state, tol, positive=plan.positive)
    if not plan.unbiased:
        return state
    rest = data.signal if state.background is None else data.signal - state.background
    codes = csc_solve(
        rest,
        state.atoms,
        0.0,
        codes=state.codes,
        support=state.codes != 0,
        mask=data.mask,
        positive=plan.positive,
        tol=tol,
    ).codes
    value = value_at(data, residual_at(data, state.atoms, codes, state.background), codes, state.background)
    return state._replace(codes=codes, objective=value)


@partial(jax.jit, static_argnames="plan")
def decode(data: LearnData, atoms: Array, tol: Any, plan: Plan) -> LearnState:
    """Codes and background of data at given atoms and ``data.lam``: what `transform` needs."""
    return finish(data, start_learning(data, atoms), tol, plan=plan)


@partial(jax.jit, static_argnames="plan")
def make_atoms(data: LearnData, keys: Array, plan: Plan) -> Array:
    """Initial atoms of all starts, from what the background leaves."""
    zero = jnp.zeros((plan.n_atoms, data.signal.shape[1], plan.n_times_atom), data.signal.dtype)
    background = background_step(data, zero, jnp.zeros(_codes_shape(data, plan), zero.dtype))
    rest = data.signal if background is None else data.signal - background
    one = partial(
        init_atoms,
        signal=rest,
        n_atoms=plan.n_atoms,
        n_times_atom=plan.n_times_atom,
        method=plan.init or "random",
        mask=data.mask,
        rank1=plan.rank1,
        window=data.window,
    )
    return jax.lax.map(one, keys)


def learn(
    data: LearnData,
    plan: Plan,
    levels: Levels,
    key: Any,
    atoms: Any = None,
    *,
    max_iter: int = 100,
    verbose: bool = False,
    report: Callable | None = None,
) -> Learned:
    """Run the iterations, then solve for codes and background at the atoms of the best start.

    Parameters
    ----------
    data : LearnData
        The problem; its `lam` is not used.
    plan, levels : Plan, Levels
        How to learn.
    key : PRNG key
        Of the starts and of the windows of ``"online"``.
    atoms : Array, shape (n_atoms, n_channels, n_times_atom), optional
        Where to start; otherwise as the plan says.
    max_iter : int
        Most iterations.
    verbose : bool
        Show a progress bar.
    report : callable, optional
        ``report(n_iter, objective, atoms)`` every few iterations; True stops.

    Returns
    -------
    Learned
        Atoms, codes, background.
    """
    start_key, window_key = jax.random.split(key)
    keys = jax.random.split(start_key, plan.n_restarts)
    starts = make_atoms(data, keys, plan) if atoms is None else jnp.asarray(atoms)[None]
    carry = begin(data, starts, levels, plan)
    first = np.asarray(carry.state.objective)
    told_to_stop: list[bool] = []

    def callback(n_done: int, carry: Carry, outputs: dict) -> bool:
        if report is None:
            return False
        best = int(np.argmin(outputs["loss"][-1]))
        stop = report(n_done, float(outputs["loss"][-1][best]), np.asarray(carry.state.atoms[best])) is True
        told_to_stop.extend([True] * stop)
        return stop

    carry, outputs = scan_chunks(
        make_step(plan),
        carry,
        max_iter,
        args=(data, levels, window_key),
        chunk=CHUNK,
        desc="atoms",
        progress=verbose,
        stop=None if plan.algorithm == "online" else all_at_rest,
        callback=callback,
    )
    best = int(jnp.argmin(comparable(data, carry)))
    one = jax.tree.map(lambda leaf: leaf[best], carry)
    state, n_iter, at_rest = one.state, int(one.n_iter), bool(one.state.converged)
    n_done = len(outputs["loss"])
    ended = n_done >= max_iter or bool(told_to_stop) or bool(all_at_rest(carry))
    data = data._replace(lam=one.lam)
    if plan.algorithm == "online":
        state = start(data, state.atoms)
    if ended:  # after Ctrl-C the state is consistent as it is, and the user does not want to wait
        state = finish(data, state, levels.tol_final, plan)
    history = np.concatenate([[first[best]], outputs["trace"][:n_iter, best].reshape(-1), [state.objective]])
    return Learned(state.atoms, state.codes, state.background, one.lam, history, n_iter, at_rest, not ended)
