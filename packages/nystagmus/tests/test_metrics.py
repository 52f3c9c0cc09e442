"""The recovery score against its definition, spelled out in loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyri.nystagmus import pattern_correlation, relative_error


def by_definition(pattern, atom):
    period = pattern[: np.flatnonzero(pattern)[-1] + 1]
    period = period - period.mean()
    period = period / np.linalg.norm(period)
    atom = atom - atom.mean()
    atom = atom / np.linalg.norm(atom)
    tiled = np.tile(period, 2)
    best = 0.0
    for t in range(period.size):
        segment = tiled[t : t + period.size]
        best = max(best, np.abs(np.correlate(atom, segment, "valid")).max())
    return best


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(3, 20), st.integers(2, 35))
def test_score_is_its_definition(seed, n_period, n_atom):
    rng = np.random.default_rng(seed)
    pattern, atoms = rng.standard_normal(n_period), rng.standard_normal((3, n_atom))
    expected = [by_definition(pattern, atom) for atom in atoms]
    padded = np.pad(pattern, (0, 5))
    np.testing.assert_allclose(pattern_correlation(padded, atoms), expected, atol=1e-12)
    assert np.max(expected) <= 1 + 1e-12


def test_score_does_not_see_size_sign_offset_or_phase():
    rng = np.random.default_rng(0)
    period = np.cumsum(rng.standard_normal(40))
    atom = np.roll(period, 11)
    scores = pattern_correlation(3 * period + 2, [atom, -5 * atom + 7, np.zeros(40), np.full(40, 3.1)])
    np.testing.assert_allclose(scores, [1, 1, 0, 0], atol=1e-12)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="pattern"):
        pattern_correlation(np.ones((2, 3)), np.ones((1, 3)))
    with pytest.raises(ValueError, match="atoms"):
        pattern_correlation(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="atoms"):
        pattern_correlation(np.ones(3), [[np.nan, 1.0]])


def test_relative_error_leaves_out_what_is_not_known():
    assert relative_error([3.0, 4.0, np.nan], [3.0, 3.5, 9.0]) == pytest.approx(0.1)
    assert relative_error([3.0, 4.0, 5.0], [3.0, 3.5, np.nan]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="estimate"):
        relative_error([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="truth"):
        relative_error([0.0, np.nan], [1.0, 1.0])
