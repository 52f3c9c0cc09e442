"""On an accelerator: the same numbers as on the host, and a fit that ends in the same place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.pavi import AutoPAVI, elbo, fit, sample_indices
from gyri.pavi.models import gre, gre_log_evidence, simulate_gre

pytestmark = pytest.mark.gpu


def on_both(function):
    results = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            results.append(jax.tree.map(np.asarray, function()))
    return results


def test_indices_are_those_of_the_host():
    here, there = on_both(lambda: sample_indices(jax.random.key(0), 10**6, 100))
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("encoding", ["free", "data"])
def test_elbo_is_that_of_the_host(encoding):
    x = np.asarray(simulate_gre(jax.random.key(0), 20, 5, 2)[1])
    guide = AutoPAVI(gre, encoding=encoding, subsample_sizes={"groups": 5})
    params = jax.tree.map(np.asarray, fit(guide, 0, 5, jnp.asarray(x), progress_bar=False).params)
    here, there = on_both(lambda: elbo(1, params, guide, jnp.asarray(x), full=True))
    np.testing.assert_allclose(here, there, rtol=1e-3)


def test_fit_reaches_the_evidence():
    x = simulate_gre(jax.random.key(0), 1000, 50, 2)[1]
    guide = AutoPAVI(gre, encoding="data", subsample_sizes={"groups": 20})
    params = fit(guide, 0, 1000, x, progress_bar=False).params
    gap = gre_log_evidence(x) - elbo(1, params, guide, x, full=True, num_particles=20)
    assert gap / 1000 < 0.05
