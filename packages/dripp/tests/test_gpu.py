"""The accelerator gives what the CPU gives, to float32's precision. Skipped where there is none."""

import jax
import numpy as np
import pytest

from gyri.dripp import em, lag_table, negative_log_likelihood


@pytest.mark.gpu
def test_likelihood_and_fit_agree_with_the_cpu(problem):
    events = [problem.events, problem.events[::2], problem.events[1::2]]
    table = lag_table(events, problem.drivers, **problem.window)
    params = jax.tree.map(lambda leaf: np.stack([leaf] * 3).astype(np.float32), problem.params)
    results = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            result = em(table)
            results.append((negative_log_likelihood(params, table), result.nll, result.params))
    gpu, cpu = (jax.tree.map(np.asarray, part) for part in results)
    np.testing.assert_allclose(gpu[0], cpu[0], rtol=1e-5)
    np.testing.assert_allclose(gpu[1], cpu[1], rtol=1e-5)
    for ours, theirs in zip(gpu[2], cpu[2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3)
