"""Convolutional dictionary learning: codes, an optional background and atoms by block descent."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from ..validation import check_array, check_positive_int, check_scalar
from .coordinates import coordinate_descent
from .dictionary import check_window, confine, leading_pair, norms, rank1_factors, update
from .initial import largest_patch
from .operators import (
    Shaped,
    check_lam,
    check_mask,
    check_signal,
    correlate,
    gram,
    objective_of,
    statistics,
    synthesis,
)
from .solvers import accelerated, greedy, pose

# Crowded codes may not reach the final tolerance: they end as they are then. With a background each round solves anew.
FINAL_ROUNDS, FINAL_SWEEPS, ROUND_SWEEPS = 50, 1000, 200
SWEEP_STOP = 1e-4  # moves smaller than this, relative to the level, end the sweeps of an iteration


class Background(NamedTuple):
    """A penalised component beside the atoms: trend, baseline, drift.

    `prox(residual, sample_weight)` minimises half the weighted square of residual minus background plus the penalty,
    over arrays of the signal's shape (sample_weight: None, or 0/1 of that shape), exactly; `value(background)` is the
    penalty, a scalar. Parameters that change from call to call without a new compilation go into a
    `jax.tree_util.Partial`.
    """

    prox: Callable[[Array, Array | None], Array]
    value: Callable[[Array], Array]


class CDLResult(NamedTuple):
    """What :func:`learn_atoms` returns.

    `atoms` (n_atoms, n_channels, n_times_atom); `codes` (n_trials, n_atoms, n_positions); `background`, of the signal's
    shape, or None; `objective` (n_evals,), at the start, after every block step and at the end, then NaN; `n_iter` ();
    `converged` ().
    """

    atoms: Float[Array, "n_atoms n_channels n_times_atom"]
    codes: Float[Array, "n_trials n_atoms n_positions"]
    background: Float[Array, "n_trials n_channels n_times"] | None
    objective: Float[Array, " n_evals"]
    n_iter: Int[Array, ""]
    converged: Bool[Array, ""]


class LearnData(NamedTuple):
    """What does not change while atoms are learned."""

    signal: Array
    lam: Array
    mask: Array | None
    window: Array | None
    background: Background | None


class LearnState(NamedTuple):
    """What one iteration changes; `objective` is its last value, `trace` those after each of its block steps."""

    atoms: Array
    codes: Array
    background: Array | None
    objective: Array
    trace: Array
    revived: Array
    converged: Array


def masked(data: LearnData, x: Array) -> Array:
    """Set masked samples to 0."""
    return x if data.mask is None else jnp.where(data.mask, x, 0)


def is_wide(atoms: Array) -> bool:
    """Whether there are more channels than atoms, so that work on the channels is to be avoided."""
    return atoms.shape[1] > atoms.shape[0]


def model_of(atoms: Array, codes: Array, rank1: bool) -> Array:
    """Signal of the codes; atoms of rank one are convolved with their codes before they spread over the channels."""
    if not (rank1 and is_wide(atoms)):
        return synthesis(atoms, codes)
    u, v = rank1_factors(atoms)
    one = lambda v, z: synthesis(v[None, None], z[:, None], method="fft")[:, 0]
    sources = jax.vmap(one, (0, 1), 1)(v, codes)
    return jnp.einsum("kp,nkt->npt", u, sources, precision="highest")


def correlations_at(atoms: Array, G: Array, codes: Array, target: Array, rank1: bool) -> Array:
    """Correlations of the atoms with what the codes leave of the target, without the residual if it is wide."""
    if not is_wide(atoms):
        return correlate(atoms, target - synthesis(atoms, codes))
    n = atoms.shape[2]
    explained = synthesis(G, codes)[..., n - 1 : 1 - n or None]
    if not rank1:
        return correlate(atoms, target) - explained
    u, v = rank1_factors(atoms)
    sources = jnp.einsum("kp,npt->nkt", u, target, precision="highest")
    one = lambda v, x: correlate(v[None, None], x[:, None], method="fft")[:, 0]
    return jax.vmap(one, (0, 1), 1)(v, sources) - explained


def target_at(data: LearnData, atoms: Array, codes: Array, background: Array | None, rank1: bool) -> Array:
    """What atoms and codes have to explain; where masked it is what they do: the objective is majorised."""
    target = data.signal if background is None else data.signal - background
    return target if data.mask is None else jnp.where(data.mask, target, model_of(atoms, codes, rank1))


def residual_at(data: LearnData, atoms: Array, codes: Array, background: Array | None, rank1: bool = False) -> Array:
    """Residual, 0 where masked."""
    rest = data.signal - model_of(atoms, codes, rank1)
    return masked(data, rest if background is None else rest - background)


def value_at(data: LearnData, residual: Array, codes: Array, background: Array | None) -> Array:
    """Objective from the residual."""
    value = objective_of(residual, codes, data.lam)
    if data.background is None or background is None:
        return value
    return value + jnp.asarray(data.background.value(background), value.dtype)


def choose(better: Array, new: Any, old: Any) -> Any:
    """One tree or the other."""
    return jax.tree.map(partial(jnp.where, better), new, old)


def background_step(data: LearnData, atoms: Array, codes: Array, rank1: bool = False) -> Array | None:
    """Best background for given atoms and codes."""
    if data.background is None:
        return None
    weight = None if data.mask is None else data.mask.astype(data.signal.dtype)
    rest = masked(data, data.signal - model_of(atoms, codes, rank1))
    return jnp.asarray(data.background.prox(rest, weight), data.signal.dtype)


def start_learning(data: LearnData, atoms: Array) -> LearnState:
    """State without codes."""
    n_trials, _, n_times = data.signal.shape
    codes = jnp.zeros((n_trials, atoms.shape[0], n_times - atoms.shape[2] + 1), atoms.dtype)
    background = background_step(data, atoms, codes)
    value = value_at(data, residual_at(data, atoms, codes, background), codes, background)
    no = jnp.zeros((), bool)
    trace = jnp.full(2 if background is None else 3, jnp.nan, atoms.dtype)
    return LearnState(atoms, codes, background, value, trace, no, no)


def revive(data: LearnData, atoms: Array, unused: Array, residual: Array, rank1: bool) -> tuple[Array, Array]:
    """Replace the first unused atom by the residual's window of the largest energy, if that has any."""
    patch = largest_patch(residual, atoms.shape[2:])
    patch = patch if data.window is None else patch * data.window
    if rank1:
        u, v = leading_pair(patch)
        patch = u[:, :, None] * v[:, None]
    size = norms(patch)
    revived = (size > 0).all()
    first = jnp.arange(unused.size) == jnp.argmax(unused)
    new = jnp.where(first[:, None, None], patch / jnp.where(size > 0, size, 1), atoms)
    return jnp.where(revived, new, atoms), revived


def learn_step(
    data: LearnData,
    state: LearnState,
    eps: ScalarLike,
    *,
    rank1: bool,
    positive: bool,
    n_sweeps: int,
    n_steps: int,
    sweep_stop: ScalarLike = SWEEP_STOP,
) -> LearnState:
    """One iteration: codes, background, atoms, each of which keeps what it had where rounding would make it worse."""
    atoms, codes, background, before, *_ = state

    def value_of(atoms: Array, codes: Array, background: Array | None) -> Array:
        return value_at(data, residual_at(data, atoms, codes, background, rank1), codes, background)

    G = gram(atoms)
    target = target_at(data, atoms, codes, background, rank1)
    beta = correlations_at(atoms, G, codes, target, rank1)
    stop = sweep_stop * data.lam
    swept, _ = coordinate_descent(codes, beta, G, data.lam, None, n_sweeps, stop, positive=positive)
    value = value_of(atoms, swept, background)
    codes, after_codes = choose(value <= before, (swept, value), (codes, before))
    values = [after_codes]

    if background is not None:
        moved = background_step(data, atoms, codes, rank1)
        value = value_of(atoms, codes, moved)
        background, value = choose(value <= values[-1], (moved, value), (background, values[-1]))
        values.append(value)

    # The statistics are those of the background just found; masked samples hold the model as it is now.
    C, E = statistics(codes, target_at(data, atoms, codes, background, rank1), atoms.shape[2])
    new = update(atoms, C, E, data.window, 1e-8, rank1=rank1, n_steps=n_steps)
    value = value_of(new, codes, background)
    better = (value <= values[-1]) & jnp.any(codes != 0)
    atoms, value = choose(better, (new, value), (atoms, values[-1]))
    values.append(value)
    small = jnp.maximum(before - values[-2], values[-2] - value) <= eps * jnp.abs(value)
    unused = ~jnp.any(codes != 0, (0, 2))
    atoms, revived = jax.lax.cond(
        unused.any() & ~unused.all(),
        lambda atoms: revive(data, atoms, unused, residual_at(data, atoms, codes, background, rank1), rank1),
        lambda atoms: (atoms, jnp.zeros((), bool)),
        atoms,
    )
    # An atom revived for the first time deserves an iteration; one that stays unused does not hold up the end.
    converged = small & (~revived | state.revived)
    return LearnState(atoms, codes, background, value, jnp.stack(values), revived, converged)


def finish_learning(data: LearnData, state: LearnState, tol: ScalarLike, *, positive: bool) -> LearnState:
    """Codes (and background, in turns) solved to the tolerance for the atoms learned; codes come last."""
    atoms = state.atoms
    tol = jnp.asarray(tol, atoms.dtype)
    problem = pose(data.signal, atoms, data.lam, data.mask, None, positive)
    most = FINAL_SWEEPS if data.background is None else ROUND_SWEEPS
    rounding = 8 * jnp.finfo(atoms.dtype).eps

    def alternate(carry: tuple) -> tuple:
        i, codes, background, before, _ = carry
        moved = background_step(data, atoms, codes)
        target = data.signal if moved is None else masked(data, data.signal - moved)
        problem_now = problem._replace(signal=target)
        if data.mask is None:
            solved, _, _ = greedy(problem_now, codes, tol=tol, positive=positive, max_iter=most, polish=True)
        else:
            solved, _, _ = accelerated(problem_now, codes, tol=tol, positive=positive, max_iter=FINAL_SWEEPS)
        value = value_at(data, residual_at(data, atoms, solved, moved), solved, moved)
        better = value <= before
        again = better & (before - value > jnp.maximum(1e-2 * tol, rounding) * jnp.abs(before))
        kept = choose(better, (solved, moved, value), (codes, background, before))
        return i + 1, *kept, again

    first = (jnp.zeros((), jnp.int32), state.codes, state.background, state.objective, jnp.ones((), bool))
    rounds = 1 if data.background is None else FINAL_ROUNDS
    _, codes, background, value, _ = jax.lax.while_loop(lambda c: (c[0] < rounds) & c[4], alternate, first)
    return state._replace(codes=codes, background=background, objective=value)


@partial(jax.jit, static_argnames=("rank1", "positive", "max_iter", "n_sweeps", "n_steps"))
def learn(
    data: LearnData,
    atoms: Array,
    eps: ScalarLike,
    tol_final: ScalarLike,
    *,
    rank1: bool,
    positive: bool,
    max_iter: int,
    n_sweeps: int,
    n_steps: int,
) -> CDLResult:
    """`learn_atoms` without checks."""
    dtype = jnp.result_type(data.signal, atoms)
    data = data._replace(
        signal=jnp.asarray(data.signal, dtype),
        lam=jnp.broadcast_to(jnp.asarray(data.lam, dtype), atoms.shape[:1]),
        window=None if data.window is None else jnp.asarray(data.window, dtype),
    )
    first = start_learning(data, confine(jnp.asarray(atoms, dtype), rank1=rank1))
    n_values = first.trace.size
    history = jnp.full(max_iter * n_values + 2, jnp.nan, dtype).at[0].set(first.objective)

    def body(carry: tuple) -> tuple:
        i, state, history = carry
        state = learn_step(data, state, eps, rank1=rank1, positive=positive, n_sweeps=n_sweeps, n_steps=n_steps)
        return i + 1, state, jax.lax.dynamic_update_slice(history, state.trace, (1 + i * n_values,))

    carry = (jnp.zeros((), jnp.int32), first, history)
    n_iter, state, history = jax.lax.while_loop(lambda c: (c[0] < max_iter) & ~c[1].converged, body, carry)
    converged = state.converged
    state = finish_learning(data, state, tol_final, positive=positive)
    history = history.at[1 + n_iter * n_values].set(state.objective)
    return CDLResult(state.atoms, state.codes, state.background, history, n_iter, converged)


def as_tree(background: Background | None) -> Background | None:
    """Background whose functions may cross the border of a compiled program."""
    if background is None:
        return None
    return Background(*(f if isinstance(f, Partial) else Partial(f) for f in background))


def learn_atoms(
    signal: Shaped,
    atoms: Shaped,
    lam: Shaped | ScalarLike,
    *,
    background: Background | None = None,
    mask: Any = None,
    rank1: bool = False,
    window: Any = None,
    positive: bool = True,
    max_iter: int = 100,
    n_sweeps: int = 20,
    n_steps: int = 50,
    eps: ScalarLike | None = None,
    tol_final: ScalarLike = 1e-4,
) -> CDLResult:
    r"""Learn atoms, their codes and an optional background that together explain a signal.

    Descends :math:`\tfrac12 \|M(X - B - \sum_k z_k * D_k)\|^2 + \sum_k \lambda_k \|z_k\|_1 + \phi(B)` over codes
    :math:`z \ge 0` (any sign without `positive`), atoms :math:`\|D_k\|_F \le 1` and the background B, in turns; the
    objective never rises. At the end codes and background are solved for the atoms found.

    Parameters
    ----------
    signal : Array, shape (n_trials, n_channels, n_times)
        Signal X; NaN is allowed in masked samples.
    atoms : Array, shape (n_atoms, n_channels, n_times_atom)
        Start D, see :func:`init_atoms`; scaled to norm one where longer.
    lam : float or Array, shape (n_atoms,)
        Level of sparsity, in the unit of the signal (:func:`csc_lambda_max`).
    background : Background, optional
        Proximal operator and value of :math:`\phi`.
    mask : Array of bool, optional
        M, True where a sample is valid; broadcast to the signal. What masked samples hold changes nothing.
    rank1 : bool
        Atoms of rank one, a spatial pattern times a time course (:func:`rank1_from_full` gives both).
    window : Array, shape (n_times_atom,), optional
        See :func:`update_atoms`.
    positive : bool
        Non-negative codes.
    max_iter : int
        Most iterations.
    n_sweeps, n_steps : int
        Most sweeps over the codes, and most steps on the atoms, in an iteration.
    eps : float, optional
        Stop when neither codes with background nor atoms lower the objective by more than `eps` times its value; by
        default 1e-6 in float32 and 1e-8 in float64.
    tol_final : float
        Precision of the final codes, see :func:`csc_solve`.

    Returns
    -------
    CDLResult
        `atoms`, `codes`, `background`, `objective` (at the start, after every block step and at the end, then NaN),
        `n_iter`, `converged`. An atom that no code uses is replaced by the largest window of the residual, one an
        iteration, unless none is used: at a level that leaves no codes, atoms come back as they went in.

    Raises
    ------
    ValueError
        Shapes that do not fit, non-finite values in valid samples, negative `lam`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> from gyri.numerics.csc import conv_synthesis, init_atoms, learn_atoms
    >>> codes = jnp.zeros((1, 1, 60)).at[0, 0, jnp.array([5, 20, 42])].set(jnp.array([2.0, 1.0, 3.0]))
    >>> signal = conv_synthesis(jnp.array([[[0.1, 0.3, 0.9, 0.3]]]), codes)
    >>> result = learn_atoms(signal, init_atoms(0, signal, 1, 4, method="greedy"), 0.1)
    >>> print(np.asarray(result.atoms).round(1))
    [[[0.1 0.3 0.9 0.3]]]

    References
    ----------
    Lalanne, Rateaux, Oudre, Robert, Moreau (2020), Extraction of nystagmus patterns from eye-tracker data with
    convolutional sparse coding (the joint problem); Moreau, Gramfort (2022), DiCoDiLe, section 2.
    """
    atoms = check_array(atoms, "atoms", shape=("n_atoms", "n_channels", "n_times_atom"))
    mask = check_mask(mask, signal)
    signal = check_signal(signal, atoms, mask=mask)
    lam = check_lam(lam, atoms.shape[0])
    window = check_window(window, atoms.shape[2])
    if eps is None:
        eps = 1e-8 if jnp.result_type(signal, atoms) == jnp.float64 else 1e-6
    return learn(
        LearnData(signal, lam, mask, window, as_tree(background)),
        atoms,
        check_scalar(eps, "eps", minimum=0),
        check_scalar(tol_final, "tol_final", minimum=0),
        rank1=rank1,
        positive=positive,
        max_iter=check_positive_int(max_iter, "max_iter"),
        n_sweeps=check_positive_int(n_sweeps, "n_sweeps"),
        n_steps=check_positive_int(n_steps, "n_steps"),
    )
