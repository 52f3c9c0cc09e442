"""Fixtures of gyri-hnpe's tests: both precisions, a small trained posterior."""

import jax
import matplotlib
import pytest

from gyri.hnpe import HNPE, ToyModel, simulate

matplotlib.use("Agg")


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Run a test in both precisions."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def x64():
    """Run a test in double precision without touching JAX's global configuration."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def toy():
    """The toy model with noise."""
    return ToyModel(noise=0.05)


@pytest.fixture(scope="session")
def simulations(toy):
    """A thousand sets of up to four others."""
    return simulate(0, toy.prior, toy, 1000, (0, 4))


@pytest.fixture(scope="session")
def estimator(toy, simulations):
    """Trained for a few epochs: good enough for everything but accuracy."""
    return (
        HNPE(toy.prior, hidden=(16,), n_features=8)
        .append_simulations(*simulations)
        .train(1, max_epochs=8, progress=False)
    )


@pytest.fixture(scope="session")
def posterior(estimator):
    """Of the small estimator."""
    return estimator.build_posterior()
