import math

import numpy as np
import pytest

from gyri.reproduce import Claim, Verdict

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        (Claim.close("q", 1.0, 1.1, atol=0.1), "met"),
        (Claim.close("q", 1.0, 1.11, atol=0.1), "missed"),
        (Claim.close("q", -2.0, -2.2, rtol=0.1), "met"),
        (Claim.close("q", -2.0, -2.21, rtol=0.1), "missed"),
        (Claim.close("q", 3, 3), "met"),
        (Claim.close("q", "2/3 of onsets", 0.66, target=2 / 3, rtol=0.02), "met"),
        (Claim.close("q", 1.0, NAN, atol=10.0), "missed"),
        (Claim.at_most("q", 0.1, 0.1), "met"),
        (Claim.at_most("q", 0.1, 0.11), "missed"),
        (Claim.at_most("q", 0.1, 0.11, 0.2), "met"),
        (Claim.at_most("q", None, 0.3, 0.2), "missed"),
        (Claim.at_most("q", 0.1, NAN), "missed"),
        (Claim.at_most("q", 0.1, -INF), "missed"),
        (Claim.at_least("q", 10, 10), "met"),
        (Claim.at_least("q", "tenfold", 9.9, 10), "missed"),
        (Claim.at_least("q", 10, NAN), "missed"),
        (Claim.at_least("q", 10, INF), "missed"),
        (Claim.between("q", "-1/2", -0.6, -0.6, -0.4), "met"),
        (Claim.between("q", "-1/2", -0.61, -0.6, -0.4), "missed"),
        (Claim.between("q", "-1/2", NAN, -0.6, -0.4), "missed"),
        (Claim.info("q", None, 3.0), "reported"),
        (Claim.info("q", 2.0, NAN), "reported"),
        (Claim.info("q", "left", "left"), "reported"),
        (Claim.not_run("q", 86.0), "not run"),
    ],
)
def test_verdict_follows_from_the_numbers(claim, verdict):
    assert claim.verdict is Verdict(verdict)


def test_one_number_a_seed_becomes_median_and_range():
    claim = Claim.at_most("q", 3, np.array([5.0, 1.0, 2.0, 2.5, 2.2], dtype=np.float32))
    assert claim.measured == pytest.approx(2.2)
    assert claim.median_range == (1.0, 5.0)
    assert claim.n_seeds == 5
    assert claim.verdict is Verdict.MET


def test_range_of_a_median_computed_elsewhere():
    assert Claim.info("q", None, 2.0, median_range=(1, np.float32(3))).median_range == (1.0, 3.0)


def test_one_nan_seed_is_a_miss():
    assert Claim.at_most("q", 3, [1.0, NAN, 2.0]).verdict is Verdict.MISSED


def test_array_scalars_of_any_library_become_floats():
    jnp = pytest.importorskip("jax.numpy")
    for measured in (np.float32(1.5), np.array(1.5), jnp.array(1.5)):
        assert type(Claim.info("q", None, measured).measured) is float


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Claim.close("q", "words", 1.0), "target: expected a number"),
        (lambda: Claim.at_most("q", None, 1.0), "bound: expected a number"),
        (lambda: Claim.at_least("q", "words", 1.0), "bound: expected a number"),
        (lambda: Claim.at_most("q", NAN, 1.0), "high: expected a finite bound"),
        (lambda: Claim.between("q", None, 1.0, 2.0, 1.0), "low: expected low <= high"),
        (lambda: Claim.at_most("q", 1.0, "words"), "measured: expected a number"),
        (lambda: Claim.at_most("q", 1.0, []), r"got shape \(0,\)"),
        (lambda: Claim.at_most("q", 1.0, np.zeros((2, 2))), r"got shape \(2, 2\)"),
        (lambda: Claim.info("q", 1.0, object()), "measured: expected a number"),
    ],
)
def test_bad_input_names_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_verdict_cannot_be_passed_in():
    with pytest.raises(TypeError, match="verdict"):
        Claim(quantity="q", paper=1.0, measured=2.0, verdict=Verdict.MET)
