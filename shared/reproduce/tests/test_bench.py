import json
from dataclasses import dataclass

import numpy as np
import pytest

from gyri.reproduce import bench


class FakeClock:
    """A clock that only its calls advance."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        """Make a function that takes the next of `seconds`; the last one again and again."""
        remaining = list(seconds)

        def function(*args):
            self.calls.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]
            return name

        return function


def agree(ours, peer):
    return True


def test_calls_alternate_and_who_goes_first_changes():
    clock = FakeClock()
    ours, peer = clock.call("o", [1.0]), clock.call("p", [2.0])
    bench.paired(ours, peer, check=agree, n_rounds=3, warmup=2, clock=clock)
    assert "".join(clock.calls) == "op" + "opop" + "op" + "po" + "op"


def test_first_call_and_warmup_are_apart_and_ratio_is_paired():
    clock = FakeClock()
    ours = clock.call("o", [100.0, 50.0, 1.0, 2.0, 4.0, 8.0, 16.0])
    peer = clock.call("p", [70.0, 60.0, 3.0, 8.0, 20.0, 48.0, 112.0])
    comparison = bench.paired(ours, peer, check=agree, clock=clock)
    assert (comparison.ours_first, comparison.peer_first) == (100.0, 70.0)
    assert comparison.ours == (1.0, 2.0, 4.0, 8.0, 16.0)
    assert comparison.peer == (3.0, 8.0, 20.0, 48.0, 112.0)
    assert comparison.ratio == (4.0, 5.0, 6.0)  # of 3, 4, 5, 6, 7


def test_a_function_may_be_compared_with_itself():
    clock = FakeClock()
    function = clock.call("f", [1.0])
    comparison = bench.paired(function, function, check=agree, n_rounds=4, clock=clock)
    assert comparison.ours == comparison.peer == (1.0,) * 4


@pytest.mark.parametrize("outcome", [False, np.False_, 0])
def test_unequal_accuracy_is_an_error_before_any_timing(outcome):
    clock = FakeClock()
    with pytest.raises(ValueError, match="not equally accurate"):
        bench.paired(clock.call("o", [1.0]), clock.call("p", [1.0]), check=lambda ours, peer: outcome, clock=clock)
    assert clock.calls == ["o", "p"]


def test_check_gets_both_results_and_may_assert():
    seen = []
    bench.paired(lambda: 1, lambda: 2, check=lambda ours, peer: seen.append((ours, peer)), n_rounds=1)
    assert seen == [(1, 2)]
    with pytest.raises(AssertionError):
        bench.paired(lambda: 1.0, lambda: 2.0, check=np.testing.assert_allclose)


@pytest.mark.parametrize("options", [{"n_rounds": 0}, {"warmup": -1}])
def test_bad_rounds_are_an_error(options):
    with pytest.raises(ValueError, match="n_rounds"):
        bench.paired(lambda: 1, lambda: 1, check=agree, **options)


def test_slope_of_a_power_law():
    clock = FakeClock()

    def quadratic(n):
        clock.now += 3e-6 * n**2

    measured = bench.slope(quadratic, [10, 100, 1000], clock=clock)
    assert measured.exponent == pytest.approx(2.0)
    assert measured.seconds == pytest.approx((3e-4, 3e-2, 3.0))


def test_setup_is_made_once_a_size_and_not_timed():
    clock, made = FakeClock(), []

    def setup(n):
        made.append(n)
        clock.now += 1000.0
        return [0] * n

    def linear(data):
        clock.now += len(data)

    assert bench.slope(linear, [1, 10], setup=setup, clock=clock).exponent == pytest.approx(1.0)
    assert made == [1, 10]


@pytest.mark.parametrize(("sizes", "options"), [([10], {}), ([10, 10], {}), ([1, 2], {"n_rounds": 0})])
def test_bad_sizes_are_an_error(sizes, options):
    with pytest.raises(ValueError, match="sizes: expected two or more"):
        bench.slope(lambda n: None, sizes, **options)


class Pending:
    """What JAX returns before it has computed."""

    __slots__ = ("ready",)

    def __init__(self):
        self.ready = False

    def block_until_ready(self):
        self.ready = True


def test_wait_finds_arrays_in_any_container():
    @dataclass(frozen=True, slots=True)
    class State:
        x: Pending

    class Estimator:
        pass

    arrays = [Pending() for _ in range(5)]
    estimator = Estimator()
    estimator.coef_, estimator.itself = arrays[0], estimator
    bench.wait(
        [arrays[1], (arrays[2],), {"a": arrays[3]}, State(arrays[4]), estimator, None, 3, "text", len, Estimator]
    )
    assert all(array.ready for array in arrays)


def test_time_includes_the_wait():
    clock = FakeClock()

    class Slow(Pending):
        def block_until_ready(self):
            clock.now += 5.0

    assert bench.paired(Slow, Slow, check=agree, n_rounds=1, clock=clock).ours == (5.0,)


def test_jax_functions_are_waited_for():
    jnp = pytest.importorskip("jax.numpy")
    x = jnp.arange(10.0)
    comparison = bench.paired(lambda: {"y": x @ x}, lambda: {"y": (x * x).sum()}, check=lambda o, p: o["y"] == p["y"])
    assert min(comparison.ours) > 0


def test_table_prints_aligned_and_writes_json(tmp_path, capsys):
    def benchmark(table, quick):
        assert quick
        table.add("short", bench.Comparison((2e-3,) * 3, (6e-3, 8e-3, 7e-3), 1.5, 6e-3))
        table.add("a longer name", bench.Comparison((2e-7,), (2e-5,), 1e-3, 3e-5))
        table.add("growth", bench.Slope((10, 1000), (1e-3, 1e-1)))

    path = tmp_path / "bench.json"
    arguments = ["--quick", "--out", str(path)]
    assert bench.main(benchmark, title="Against joblib", peers=["joblib"], argv=arguments) == 0
    title, header, first, second, growth = capsys.readouterr().out.splitlines()
    assert title == "Against joblib"
    assert len(header) == len(first) == len(second)
    assert first.split() == ["short", "2", "ms", "7", "ms", "3.5x", "3.25-3.75", "1.5", "s", "6", "ms"]
    assert second.split() == ["a", "longer", "name", "200", "ns", "20", "us", "100x", "100-100", "1", "ms", "30", "us"]
    assert growth == "growth: time ~ size^1.00 from 10 (1 ms) to 1000 (100 ms)"

    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert "joblib" in content["versions"]
    assert set(content["machine"]) == {"cpu", "cores", "memory_gib", "os"}
    assert [row["kind"] for row in content["rows"]] == ["comparison", "comparison", "slope"]
    assert content["rows"][0]["ratio"] == pytest.approx({"low": 3.25, "median": 3.5, "high": 3.75})
    assert content["rows"][2]["exponent"] == pytest.approx(1.0)
