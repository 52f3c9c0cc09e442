"""The total-variation prox as a numba kernel, for `prox.prox_tv1d` on a CPU; imported only where numba is.

One pass from left to right keeps the smallest and the largest level that the current piece may have; where they meet a
contradiction the piece ends. On most signals that takes two to three looks at a sample, at worst a number that grows
with the length of a piece: after `_PATIENCE` looks a sample, a message-passing solver of linear cost takes over.
"""

import inspect

import numpy as np
from numba import types
from numba.extending import overload

from .host import njit

_PATIENCE = 8


@njit
def tv_kernel(x, lam, weight, out):  # type: ignore[no-untyped-def]
    """Prox of every row of x (B, n) into out (B, n); lam (1 or B, 1 or n - 1); weight (1 or B, n), or (1, 1) for none.

    Samples of weight 0 are left out, and get the value of the sample before them (before the first: after them).
    """
    n = x.shape[1]
    buffer = np.empty((9, 2 * n + 2))  # in double precision, whatever the data are
    if lam.shape[1] == 1 and weight.shape[1] == 1 < n:
        for row in range(x.shape[0]):
            bound = float(lam[row if lam.shape[0] > 1 else 0, 0])
            if not _by_levels(x[row], bound, None, out[row]):
                _by_messages(x[row], bound, None, out[row], buffer)
    else:
        for row in range(x.shape[0]):
            i, j = row if lam.shape[0] > 1 else 0, row if weight.shape[0] > 1 else 0
            _prox_general(x[row], lam[i], weight[j], out[row], buffer)


def _at(values, t):  # type: ignore[no-untyped-def]
    """Entry t of an array, the one number that stands for all, or 1 of None: decided when the kernel is compiled."""
    raise NotImplementedError


def _compile_at(values, t):  # type: ignore[no-untyped-def]
    if isinstance(values, types.NoneType):
        return lambda values, t: 1.0
    return (lambda values, t: values) if isinstance(values, types.Float) else (lambda values, t: values[t])


overload(_at)(inspect.unwrap(_compile_at))


@njit
def _prox(x, lam, weight, out, buffer):  # type: ignore[no-untyped-def]
    if not _by_levels(x, lam, weight, out):
        _by_messages(x, lam, weight, out, buffer)


@njit
def _prox_general(x, lam, weight, out, buffer):  # type: ignore[no-untyped-def]
    """Solve the chain of samples with weight, joined by the smallest lam between them; then spread its values."""
    n, m, smallest = x.size, 0, np.inf
    y, w, edges, values = buffer[5, :n], buffer[6, :n], buffer[7, :n], buffer[8, :n]
    for t in range(n):
        own_weight = float(weight[t if weight.size > 1 else 0])
        if own_weight > 0:
            if m > 0:
                edges[m - 1] = smallest
            y[m], w[m], smallest = x[t], own_weight, np.inf
            m += 1
        if t < n - 1:
            smallest = min(smallest, float(lam[t if lam.size > 1 else 0]))
    if m == 0:
        out[:] = 0
        return
    _prox(y[:m], edges, w, values[:m], buffer)
    k = -1
    for t in range(n):
        k += weight[t if weight.size > 1 else 0] > 0
        out[t] = values[max(k, 0)]


@njit
def _by_levels(x, lam, weight, out):  # type: ignore[no-untyped-def]
    """Condat (2013), with weights and a lam an edge; False where it takes too long.

    The piece that begins at `first` may have levels from `low` to `high`; `v_low`, `v_high` are the duals at t under
    the two, `at_low`, `at_high` the last places where they touch their bounds: where the piece ends if it must.
    """
    n = x.size
    t = first = at_low = at_high = looks = 0
    bound = 0.0 if n == 1 else _at(lam, 0)
    total = _at(weight, 0)
    low, high, v_low, v_high = x[0] - bound / total, x[0] + bound / total, bound, -bound
    while t < n - 1:
        value, w = x[t + 1], _at(weight, t + 1)
        bound = _at(lam, t + 1) if t + 2 < n else 0.0
        v_low += w * (value - low)
        v_high += w * (value - high)
        if v_low < -bound:
            last, start = at_low, _at(lam, at_low)
            for i in range(first, last + 1):
                out[i] = low
        elif v_high > bound:
            last, start = at_high, -_at(lam, at_high)
            for i in range(first, last + 1):
                out[i] = high
        else:
            t += 1
            total += w
            if v_low >= bound:
                low += (v_low - bound) / total
                v_low, at_low = bound, t
            if v_high <= -bound:
                high += (v_high + bound) / total
                v_high, at_high = -bound, t
            continue
        looks += t - last
        if looks > _PATIENCE * n:
            return False
        t = first = at_low = at_high = last + 1
        bound = _at(lam, t) if t + 1 < n else 0.0
        total = _at(weight, t)
        low, high = x[t] + (start - bound) / total, x[t] + (start + bound) / total
        v_low, v_high = bound, -bound
    for i in range(first, n):  # low and high are one
        out[i] = low
    return True


@njit
def _by_messages(x, lam, weight, out, buffer):  # type: ignore[no-untyped-def]
    """Johnson (2013), with weights and a lam an edge: dynamic programming on the derivative of the message.

    The derivative of the best cost of the samples so far, as a function of the level of the last one, is increasing and
    piecewise linear; clipping it to [-lam, lam] is what passing an edge does to it. Knots lie in `place`, with the
    changes of slope and of intercept; `lows`, `highs` keep where each clip began and ended, for the way back.
    """
    n = x.size
    place, slope, intercept, lows, highs = buffer[0], buffer[1], buffer[2], buffer[3], buffer[4]
    left, right, offset = n, n - 1, x[0]
    before = 0.0
    for t in range(n):
        bound = _at(lam, t) if t + 1 < n else 0.0
        w = _at(weight, t)
        y = w * (x[t] - offset)
        a, b, i = w, -y - before, left
        while i <= right and a * place[i] + b <= -bound:
            a, b, i = a + slope[i], b + intercept[i], i + 1
        c, d, j = w, -y + before, right
        while j >= i and c * place[j] + d >= bound:
            c, d, j = c - slope[j], d - intercept[j], j - 1
        left, right = i - 1, j + 1
        lows[t] = place[left] = (-bound - b) / a
        slope[left], intercept[left] = a, b + bound
        highs[t] = place[right] = (bound - d) / c
        slope[right], intercept[right] = -c, bound - d
        before = bound
    _walk_back(x, lam, weight, out, lows, highs, offset)


@njit
def _walk_back(x, lam, weight, out, lows, highs, offset):  # type: ignore[no-untyped-def]
    """Find the pieces from the last sample to the first, and give each its exact level."""
    n = x.size
    level, last, dual = lows[n - 1], n - 1, 0.0
    for t in range(n - 2, -2, -1):
        if t >= 0 and lows[t] <= level <= highs[t]:
            continue
        before = 0.0
        if t >= 0:
            bound = _at(lam, t)
            before = bound if level < lows[t] else -bound
            level = lows[t] if level < lows[t] else highs[t]
        total, excess, reference = 0.0, before - dual, float(x[last])
        for i in range(t + 1, last + 1):
            w = _at(weight, i)
            total += w
            excess += w * (x[i] - reference)
        for i in range(t + 1, last + 1):
            out[i] = reference + excess / total
        last, dual = t, before
