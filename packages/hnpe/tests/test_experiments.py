"""Tests of gyri.hnpe.experiments."""

from gyri.hnpe import experiments


def test_shrinkage_meets_its_claims():
    result = experiments.shrinkage("quick", 0)
    assert [claim.verdict.value for claim in result.claims] == ["met"]
