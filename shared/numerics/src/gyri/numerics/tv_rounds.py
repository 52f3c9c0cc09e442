"""The total-variation prox in rounds of XLA operations, for `prox.prox_tv1d`: exact, on any device.

Every signal is cut into pieces, at first one; the dual v is known at their ends. A round takes each piece at its level
c, the mean that its ends allow. Where the dual inside passes its bounds the piece is too long: the samples that the
solution puts above c and those below are then told apart by one pass of the dual clipped to its bounds, and the piece
is cut wherever they meet. Each cut is final, and about half of the pieces' samples change hands in a round, so that
the number of rounds grows like the logarithm of the number of pieces.

Two lowerings of a round: :func:`by_scans`, two scans over time with the signals side by side (best on a CPU), and
:func:`by_prefix_sums`, logarithmic depth (for accelerators). In both `x` is (n, B), `lam` (1 or n - 1, B or 1), its
entries may be infinite (never cut there), and `weight` (n, B) or None may be 0 where an infinite lam leads to a sample
with weight.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _tolerance(x: Float[Array, "n B"], lam: Array) -> Float[Array, " B"]:
    """Excess of a dual over its bound that is rounding."""
    eps = jnp.finfo(x.dtype).eps
    largest = jnp.where(jnp.isfinite(lam), lam, 0).max(0)
    return 64 * eps * largest + 8 * eps * jnp.abs(x).max(0)


def _level(reference: Array, excess: Array, total: Array) -> Array:
    """Level of a piece; samples of weight 0 alone, in a signal without any weight, have none: 0 / 1."""
    return reference + excess / jnp.where(total > 0, total, 1)


def _mean(x: Float[Array, "n B"], weight: Array | None) -> Float[Array, " B"]:
    return x.mean(0) if weight is None else _level(jnp.zeros_like(x[0]), (weight * x).sum(0), weight.sum(0))


def by_scans(
    x: Float[Array, "n B"], lam: Float[Array, "m C"], weight: Float[Array, "n B"] | None
) -> Float[Array, "n B"]:
    """Prox of every column, by one forward and one reverse scan over time a round.

    Parameters
    ----------
    x, lam, weight
        See the module.

    Returns
    -------
    Array, shape (n, B)
        The prox.
    """
    n = x.shape[0]
    tol, zero = _tolerance(x, lam), jnp.zeros_like(x[0])
    # A weight or lam of each sample is scanned along; one number for all stays outside.
    along: dict[str, Array] = {} if weight is None else {"weight": weight}
    if lam.shape[0] > 1:
        along["lam"] = jnp.concatenate([lam, lam[:1]])  # the last sample is an end, and reads none
    number = {"weight": jnp.ones_like(zero), "lam": lam[0]}

    # `ends` is the dual at the end of a piece and NaN elsewhere, `levels` there the level of the piece that follows.
    def forward(carry: tuple, inputs: tuple) -> tuple:
        level, dual, clipped, excess = carry
        value, end, following, own = inputs
        own = number | own
        step = own["weight"] * (value - level) if "weight" in along else value - level
        dual, pushed = dual + step, clipped + step
        at_end = end == end
        inside = jnp.where(pushed >= own["lam"], 1.0, jnp.where(pushed <= -own["lam"], -1.0, 0.0))
        label = jnp.where(at_end, jnp.where(pushed >= end, 1.0, -1.0), inside).astype(x.dtype)
        excess = jnp.where(at_end, excess, jnp.maximum(excess, jnp.abs(dual) - own["lam"]))
        clipped = jnp.clip(pushed, -own["lam"], own["lam"])
        level, dual, clipped = (jnp.where(at_end, a, b) for a, b in ((following, level), (end, dual), (end, clipped)))
        return (level, dual, clipped, jnp.where(at_end, -jnp.inf, excess)), (label, excess)

    def backward(carry: tuple, inputs: tuple) -> tuple:
        after, too_long, total, excess, reference, dual, cuts = carry
        value, end, label, worst, own = inputs
        own = number | own
        at_end = end == end
        too_long = jnp.where(at_end, (worst > tol).astype(x.dtype), too_long)
        label = jnp.where(label == 0, after, label)
        cut = (too_long > 0) & (label != after) & ~at_end
        new, here = at_end | cut, jnp.where(at_end, end, label * own["lam"])
        following = _level(reference, excess + here - dual, total)
        excess = jnp.where(new, 0, excess + own["weight"] * (value - reference))
        total = jnp.where(new, own["weight"], total + own["weight"])
        reference, dual = jnp.where(new, value, reference), jnp.where(new, here, dual)
        cuts = jnp.where(cut, jnp.ones_like(cuts), cuts)
        return (label, too_long, total, excess, reference, dual, cuts), (jnp.where(new, here, jnp.nan), following)

    def one_round(state: tuple) -> tuple:
        ends, levels, first, _ = state
        begin = (first, zero, zero, jnp.full_like(zero, -jnp.inf))
        marks: Any = jax.lax.scan(forward, begin, (x, ends, levels, along))[1]  # labels, and excess at the ends
        end = (zero, zero, zero + 1, zero, zero, zero, zero)
        carry, (ends, levels) = jax.lax.scan(backward, end, (x, ends, *marks, along), reverse=True)
        _, _, total, excess, reference, dual, cuts = carry
        return ends, levels, _level(reference, excess - dual, total), (cuts > 0).any()

    def fill(level: Array, inputs: tuple) -> tuple:
        end, following = inputs
        return jnp.where(end == end, following, level), level

    ends = jnp.full_like(x, jnp.nan).at[-1].set(0)
    state = (ends, jnp.zeros_like(x), _mean(x, weight), jnp.array(n > 1))
    ends, levels, first, _ = jax.lax.while_loop(lambda s: s[3], one_round, state)
    return jax.lax.scan(fill, first, (ends, levels))[1]


def _clip_after(earlier: tuple, later: tuple) -> tuple:
    """Composition of the maps m -> clip(m + shift, low, high), the earlier one first."""
    shift, low, high = later
    bound = lambda value: jnp.minimum(jnp.maximum(value + shift, low), high)
    return earlier[0] + shift, bound(earlier[1]), bound(earlier[2])


def _walk(shift: Array, low: Array, high: Array) -> Array:
    """m_j = clip(m_{j-1} + shift_j, low_j, high_j) from m = 0, along the first axis."""
    shift, low, high = jax.lax.associative_scan(_clip_after, (shift, low, high))
    return jnp.minimum(jnp.maximum(shift, low), high)


def _delay(x: Array) -> Array:
    return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])


def by_prefix_sums(
    x: Float[Array, "n B"], lam: Float[Array, "m C"], weight: Float[Array, "n B"] | None
) -> Float[Array, "n B"]:
    """Prox of every column, by prefix sums over time: a round has logarithmic depth.

    Parameters
    ----------
    x, lam, weight
        See the module.

    Returns
    -------
    Array, shape (n, B)
        The prox.
    """
    n, n_signals = x.shape
    tol, w = _tolerance(x, lam), jnp.ones_like(x) if weight is None else weight
    bound = jnp.concatenate([jnp.broadcast_to(lam, (n - 1, n_signals)), jnp.zeros_like(x[:1])])
    column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)

    def pieces(ends: Array) -> tuple[Array, Array]:
        """Number of the piece of each sample, and the level that the piece's ends allow."""
        at_end = ends == ends
        piece = jnp.cumsum(at_end, 0, dtype=jnp.int32) - at_end + n * column
        add = lambda values: jax.ops.segment_sum(values.ravel(), piece.ravel(), n * n_signals)
        dual = jnp.where(at_end, ends, 0)
        reference = add(jnp.where(at_end, x, 0))[piece]
        excess = add(w * (x - reference) - dual + _delay(dual))
        return piece, _level(reference, excess[piece], add(w)[piece])

    def one_round(state: tuple) -> tuple:
        ends, piece, level, _ = state
        at_end, step = ends == ends, w * (x - level)
        # The dual clipped to its bounds, and as it is: one walk side by side compiles twice as fast as two.
        both = jnp.concatenate([bound, jnp.full_like(bound, jnp.inf)], 1)
        at_ends, values = jnp.tile(at_end, 2), jnp.tile(ends, 2)
        walk = _walk(jnp.tile(step, 2), jnp.where(at_ends, values, -both), jnp.where(at_ends, values, both))
        clipped, dual = jnp.split(walk, 2, 1)
        excess = jnp.where(at_end, -jnp.inf, jnp.abs(dual) - bound)
        worst = jax.ops.segment_max(excess.ravel(), piece.ravel(), n * n_signals)[piece]
        pushed = _delay(clipped) + step
        inside = jnp.where(pushed >= bound, 1, jnp.where(pushed <= -bound, -1, 0))
        label = jnp.where(at_end, jnp.where(pushed >= ends, 1, -1), inside)
        label = jax.lax.associative_scan(lambda after, own: jnp.where(own == 0, after, own), label, reverse=True)
        cut = ~at_end & (worst > tol) & (label != jnp.concatenate([label[1:], label[-1:]]))
        ends = jnp.where(cut, label * bound, ends)
        return ends, *pieces(ends), cut.any()

    # Not by `pieces`: XLA would spend seconds on folding its sums over constants.
    ends = jnp.full_like(x, jnp.nan).at[-1].set(0)
    state = (ends, n * column, jnp.broadcast_to(_mean(x, weight), x.shape), jnp.array(n > 1))
    return jax.lax.while_loop(lambda s: s[3], one_round, state)[2]
