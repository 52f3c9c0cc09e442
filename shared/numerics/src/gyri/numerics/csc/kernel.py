"""Locally greedy coordinate descent as a numba kernel, for a CPU; imported only where numba is.

The segments of a trial are visited in turn, each moves its best coordinate, and one in which nothing is left to move is
not looked at again before a neighbour changes it: the cost is that of the moves, while the red-black form of
`coordinates.py` looks at every segment in every sweep.
"""

import numpy as np

from ..host import njit


@njit
def descend(z, beta, G, lam, inverse, allowed, limit, most, out, sweeps):  # type: ignore[no-untyped-def]
    """Codes z (B, K, V) of every trial into `out`, and the number of passes into `sweeps` (B,).

    G (1 or B, K, K, 2 L - 1), levels and inverse squared norms (1 or B, K), allowed (1 or B, K, V) or (1, 1, 1) for all,
    limit of a move (1 or B,), most passes and whether codes are non-negative (1 or B, 2).
    """
    n_atoms, n_positions = z.shape[1:]
    n = (G.shape[3] + 1) // 2
    active = np.empty((n_positions + n - 1) // n, np.uint8)
    rest = np.empty((n_atoms, n_positions), z.dtype)
    for row in range(z.shape[0]):
        g, a, p = _of(row, G), _of(row, allowed), _of(row, most)
        codes = out[row]
        codes[:] = z[row]
        rest[:] = beta[row]
        active[:] = 1
        sweeps[row] = _descend_trial(
            codes,
            rest,
            G[g],
            lam[_of(row, lam)],
            inverse[_of(row, inverse)],
            allowed[a],
            limit[_of(row, limit)],
            most[p, 0],
            most[p, 1] != 0,
            active,
        )


@njit
def _of(row, values):  # type: ignore[no-untyped-def]
    return row if values.shape[0] > 1 else 0


@njit
def _descend_trial(z, beta, G, lam, inverse, allowed, limit, most, positive, active):  # type: ignore[no-untyped-def]
    """Move codes and correlations of one trial in place; the number of passes."""
    n_atoms, n_positions = z.shape
    n = (G.shape[2] + 1) // 2
    some = allowed.shape[0] * allowed.shape[1] == z.size
    for i in range(most):
        moved, skipped = False, False
        for segment in range(active.size):
            if active[segment] == 0:
                skipped = True
                continue
            first, last = segment * n, min((segment + 1) * n, n_positions)
            best, atom = lam[0] - lam[0], -1
            for k in range(n_atoms):
                low = z.dtype.type(np.inf) if positive else lam[k] * inverse[k]
                if some:
                    most_here = _largest_allowed(
                        z[k, first:last], beta[k, first:last], allowed[k, first:last], lam[k], inverse[k], low
                    )
                else:
                    most_here = _largest(z[k, first:last], beta[k, first:last], lam[k], inverse[k], low)
                if most_here > best:
                    best, atom = most_here, k
            if atom < 0:
                active[segment] = 0
                continue
            low = z.dtype.type(np.inf) if positive else lam[atom] * inverse[atom]
            place, delta = first, z.dtype.type(0)
            for t in range(first, last):
                d = _move(z[atom, t], beta[atom, t], lam[atom], inverse[atom], low)
                if abs(d) > abs(delta) and (not some or allowed[atom, t] != 0):
                    place, delta = t, d
            z[atom, place] += delta
            start, end = max(place - n + 1, 0), min(place + n, n_positions)
            shift = n - 1 - place
            for l in range(n_atoms):
                _subtract(beta[l, start:end], delta, G[atom, l, start + shift : end + shift])
            if best > limit:
                moved = True
                for s in range(start // n, (end - 1) // n + 1):
                    active[s] = 1
            else:  # made, but not followed up
                active[segment] = 0
        if not moved and not skipped:
            return i + 1
        if not moved:  # small moves that were not followed up may have added up
            active[:] = 1
    return most


@njit
def _move(z, beta, lam, inverse, low):  # type: ignore[no-untyped-def]
    """By how much one coordinate moves; `low` is infinite where codes are non-negative."""
    x, high = z + beta * inverse, lam * inverse
    zero = lam - lam  # in the data's dtype, as a literal would not be
    return (x - high if x > high else zero) + (x + low if x < -low else zero) - z


@njit(fastmath={"nnan", "nsz"})
def _largest(z, beta, lam, inverse, low):  # type: ignore[no-untyped-def]
    best = lam - lam
    for t in range(z.size):
        d = abs(_move(z[t], beta[t], lam, inverse, low))
        best = d if d > best else best
    return best


@njit(fastmath={"nnan", "nsz"})
def _largest_allowed(z, beta, allowed, lam, inverse, low):  # type: ignore[no-untyped-def]
    best = zero = lam - lam
    for t in range(z.size):
        d = abs(_move(z[t], beta[t], lam, inverse, low))
        d = d if allowed[t] != 0 else zero
        best = d if d > best else best
    return best


@njit
def _subtract(y, factor, x):  # type: ignore[no-untyped-def]
    for t in range(y.size):
        y[t] -= factor * x[t]
