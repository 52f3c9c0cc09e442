"""Peers of bench_hnpe.py, run by the Python that has them: ``peers.py jrnmm`` or ``peers.py sbi FILE N_EPOCHS``.

Prints one line of JSON; times are CPU seconds of one process, after a first call that compiles.
"""

import json
import os
import sys
import time

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def time_jrnmm() -> dict:
    """512 recordings of 10 s under one jit, double precision as the package sets it."""
    import jax
    import jrnmm
    from jax import numpy as jnp

    n = 512
    state = jax.random.normal(jax.random.PRNGKey(0), (n, 6))
    run = jax.jit(
        lambda key, theta: jrnmm.simulate(
            key, dt=1 / 1024, t_end=10.0, initial_states=state,
            Cs=theta[:, 0], mus=theta[:, 1], sigmas=theta[:, 2], gains=theta[:, 3],
        )
    )  # fmt: skip
    theta = jnp.tile(jnp.array([135.0, 220.0, 2000.0, 0.0]), (n, 1))
    times = []
    for i in range(4):
        start = time.process_time()
        x = jax.block_until_ready(run(jax.random.PRNGKey(i), theta))
        times.append((time.process_time() - start) / n)
    x = x.reshape(n, -1)[:, 2048:]
    return {"seconds": sorted(times[1:])[1], "sd": float(x.std(1).mean()), "dtype": str(x.dtype)}


def time_sbi(path: str, n_epochs: int) -> dict:
    """Train NPE (spline flow of ten transforms) on a file's theta and x."""
    import numpy as np
    import torch
    from sbi.inference import NPE
    from sbi.neural_nets import posterior_nn
    from sbi.utils import BoxUniform

    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = np.load(path)
    build = posterior_nn("nsf", num_transforms=10, hidden_features=50, num_bins=10)
    inference = NPE(BoxUniform(torch.zeros(2), torch.ones(2)), density_estimator=build, show_progress_bars=False)
    inference.append_simulations(torch.as_tensor(data["theta"]), torch.as_tensor(data["x"]))
    start = time.process_time()
    inference.train(training_batch_size=100, max_num_epochs=n_epochs)
    seconds = time.process_time() - start
    losses = [float(v) for v in inference.summary["validation_loss"]]
    return {"seconds": seconds, "epochs": len(losses), "valid_log_prob": [-v for v in losses]}


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    found = time_jrnmm() if name == "jrnmm" else time_sbi(arguments[0], int(arguments[1]))
    print("\n" + json.dumps(found))  # after whatever the peer has printed without an end of line
