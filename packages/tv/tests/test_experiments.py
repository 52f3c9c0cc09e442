"""Tests of gyri.tv.experiments."""

import numpy as np

from gyri.tv.experiments import conditioning, learning


def test_conditioning_meets_its_claims():
    result = conditioning.conditioning("quick", 0)
    assert {claim.verdict.value for claim in result.claims} == {"met"}


def test_curves_fall_and_start_together():
    found = learning.curves((0, 0.1, 30, 5, (0, 1, 3)))
    assert set(found) == set(learning.SOLVERS) | set(learning.NETWORKS)
    starts = [curve[0] for curve in found.values()]
    np.testing.assert_allclose(starts, starts[0], rtol=1e-9)
    assert all(curve[-1] < curve[0] for curve in found.values())
    assert found["LPGD-Taut"][-1] < found["PGD"][-1]
