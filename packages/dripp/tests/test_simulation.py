"""Simulated events against the law that they are drawn from."""

import numpy as np
import pytest
from scipy import stats

from gyri.dripp import Params, simulate
from gyri.dripp.datasets import grasshopper, simulate_drivers
from gyri.dripp.model import compensator

WINDOW = {"lower": 0.05, "upper": 0.6, "t_stop": 4000.0}
DRIVERS = [np.arange(-0.2, 4000.0, 2.0), np.arange(0.7, 4000.0, 0.9)]
TRUTH = Params(0.5, np.array([1.5, 0.4]), np.array([0.2, 0.7]), np.array([0.1, 0.2]))


@pytest.mark.parametrize("kernel", ["truncated_gaussian", "raised_cosine", "truncated_exponential"])
@pytest.mark.parametrize("method", ["cluster", "thinning"])
def test_counts_and_places_follow_the_compensator(kernel, method):
    window = WINDOW | {"kernel": kernel}
    events = simulate(3, DRIVERS, TRUTH, **window, method=method)
    assert np.all(np.diff(events) >= 0)
    assert events[0] >= 0 and events[-1] <= 4000
    integral = compensator(np.append(events, 4000.0), DRIVERS, TRUTH, lower=0.05, upper=0.6, kernel=kernel)
    assert stats.poisson.sf(events.size - 1, integral[-1]) > 1e-3
    assert stats.poisson.cdf(events.size, integral[-1]) > 1e-3
    # Under the true law the rescaled intervals are uniform (time rescaling).
    assert stats.kstest(-np.expm1(-np.diff(integral[:-1], prepend=0)), "uniform").pvalue > 1e-3


def test_same_key_same_events_and_atoms_differ():
    again = [simulate(7, DRIVERS, TRUTH, **WINDOW) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    batch = simulate(7, DRIVERS, Params(*(np.stack([leaf, leaf]) for leaf in TRUTH)), **WINDOW)
    assert len(batch) == 2
    assert batch[0].size != batch[1].size or np.any(batch[0] != batch[1])


def test_nothing_happens_without_rate():
    none = Params(0.0, np.array([0.0]), np.array([0.2]), np.array([0.1]))
    for method in ("cluster", "thinning"):
        assert simulate(0, [DRIVERS[0]], none, **WINDOW, method=method).size == 0
    assert simulate(0, None, Params(0.0, np.empty(0), np.empty(0), np.empty(0)), **WINDOW).size == 0


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"method": "ogata"}, "method"),
        ({"kernel": "boxcar"}, "kernel"),
        ({"t_stop": -1.0}, "t_stop"),
        ({"lower": 0.7}, "upper"),
    ],
)
def test_bad_input_is_refused_by_name(change, argument):
    with pytest.raises(ValueError, match=argument):
        simulate(0, DRIVERS, TRUTH, **WINDOW | change)
    with pytest.raises(ValueError, match="params.alpha"):
        simulate(0, DRIVERS[:1], TRUTH, **WINDOW)
    with pytest.raises(ValueError, match="params.baseline"):
        simulate(0, DRIVERS, TRUTH._replace(baseline=-1.0), **WINDOW)


def test_simulated_drivers_lie_on_their_grid_or_near_it():
    full = simulate_drivers(0, 100.0, 1.4)
    np.testing.assert_allclose(full, np.arange(2.8, 97.2, 1.4))
    assert simulate_drivers(0, 100.0, 1.4, keep=0.3).size == int(0.3 * full.size)
    assert simulate_drivers(0, 100.0, 1.4, keep=5).size == 5
    assert np.all(np.isin(simulate_drivers(1, 100.0, 1.4, keep=0.5), full))
    moved = simulate_drivers(0, 100.0, 1.4, jitter=True)
    assert 0 < np.abs(moved - full).max() <= 0.4 * 1.4
    for keep in (1.5, -1, 1000):
        with pytest.raises(ValueError, match="keep"):
            simulate_drivers(0, 100.0, 1.4, keep=keep)
    with pytest.raises(ValueError, match="isi"):
        simulate_drivers(0, 100.0, 0.0)


def test_grasshopper_recordings_are_read_as_published():
    pytest.importorskip("nitime")
    first, second = grasshopper(1), grasshopper(2)
    assert (first.events.size, first.drivers.size, first.t_stop) == (929, 566, 10.0)
    assert second.drivers.size == 2312
    assert np.all(np.diff(first.events) > 0) and first.events[-1] <= 10
    with pytest.raises(ValueError, match="recording"):
        grasshopper(3)
