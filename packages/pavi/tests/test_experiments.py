"""Tests of gyri.pavi.experiments."""

from gyri.pavi import experiments


def test_shrinkage_meets_its_claims():
    result = experiments.shrinkage("quick", 0)
    assert [claim.verdict.value for claim in result.claims] == ["met"]
