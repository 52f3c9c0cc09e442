"""What a hypergradient and a step of a search cost, in gradients of the training loss; their memory.

    python packages/cadda/benchmarks/bench_cadda.py [--quick] [--out FILE.json]

There is no peer to time: the search was never published as a package, and the transforms are compared with braindecode
in shared/numerics/benchmarks. So all is in units of one gradient of the training loss with augmented windows, measured
beside it. The process is bound to one CPU.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gyri.cadda import PolicySearch, SleepStager, augment, descent, hypergradient, init_policy, simulate_sleep
from gyri.cadda.functional import cross_entropy, run_evaluation, run_training, take_apart
from gyri.cadda.spaces import StageSpace
from gyri.cadda.train import Data
from gyri.numerics.transform import eeg_transforms
from gyri.reproduce import bench

BATCH = 16


def say(name: str, value: float, unit: str = "") -> None:
    print(f"{name}: {value:.4g} {unit}", flush=True)


def make(quick: bool) -> tuple[Any, ...]:
    """Windows of the paper's size, or shorter ones; the network and a class-wise policy over eight operations."""
    sfreq = 50.0 if quick else 100.0
    X, y, _ = simulate_sleep(0, 1, 4 * BATCH, sfreq=sfreq)
    data = Data(jnp.asarray(X), jnp.asarray(y, jnp.int32), jnp.ones(5))
    graphs, weights = take_apart(SleepStager(2, 5, X.shape[2], sfreq, rngs=nnx.Rngs(0)))
    transforms = eeg_transforms(sfreq)
    return data, graphs, weights, transforms, init_policy(0, len(transforms), n_classes=5)


def compare_hypergradients(table: bench.Table, quick: bool) -> None:
    """An exact hypergradient, and that by finite differences, against a gradient of the training loss."""
    data, graphs, weights, transforms, policy = make(quick)
    x, y = data.rows(jnp.arange(BATCH))
    x_valid, y_valid = data.rows(jnp.arange(BATCH, 2 * BATCH))
    ones = data.class_weight

    def on_windows(theta: Any, x: Any) -> Any:
        logits, _ = run_training(graphs, weights._replace(params=theta), jax.random.key(0), lambda module: module(x))
        return cross_entropy(logits, y, ones)

    def valid(theta: Any) -> Any:
        return cross_entropy(run_evaluation(graphs, weights._replace(params=theta), x_valid), y_valid, ones)

    for estimator in ("softmax", "relax"):
        train = lambda theta, alpha, e=estimator: on_windows(
            theta, augment(jax.random.key(1), alpha, transforms, x, y, estimator=e)
        )
        gradient = jax.jit(jax.grad(train))
        for method in ("exact", "finite_difference"):
            find = jax.jit(lambda t, a, m=method, f=train: hypergradient(f, valid, t, a, 1e-3, method=m)[0])
            row = bench.paired(
                lambda find=find: find(weights.params, policy), lambda g=gradient: g(weights.params, policy),
                check=lambda ours, _: all(np.isfinite(leaf).all() for leaf in ours), n_rounds=5 if quick else 11,
            )  # fmt: skip
            table.add(f"hypergradient, {estimator}, {method} / gradient of L_tr", row)


def time_steps(quick: bool) -> None:
    """A whole step of the search, in milliseconds."""
    data, graphs, weights, transforms, _ = make(quick)
    rows = np.arange(BATCH, dtype=np.int32)
    rates = descent.Rates(*(np.float32(r) for r in (1e-3, 1e-2, 1e-3)))
    for estimator in ("softmax", "relax"):
        for n_rows in (1, 5):
            space = StageSpace(len(transforms), 5, 2, n_rows)
            setting = descent.Setting(graphs, space, transforms, estimator, "exact", 0.05, 8 if n_rows == 1 else 1)
            step = descent.bilevel_step(setting)
            state = descent.start_search(setting, weights, jax.random.key(0), jnp.float32)
            seconds = []
            for i in range(4 if quick else 12):
                begin = time.process_time()
                state, losses = step(state, jax.random.key(1), np.int32(i), data, data, rows, rows, rates)
                jax.block_until_ready(losses)
                seconds.append(time.process_time() - begin)
            name = f"step of a search, {estimator}, {'class-wise' if n_rows > 1 else 'one policy'}"
            say(f"{name}: first, with compilation", seconds[0], "s of CPU")
            say(name, 1e3 * float(np.median(seconds[1:])), "ms of CPU")


def peak(function: Callable, *arguments: Any) -> float:
    """Temporary memory of a compiled function, in batches of windows."""
    program = jax.jit(function).lower(*arguments).compile()
    return program.memory_analysis().temp_size_in_bytes / arguments[1].nbytes


def measure_memory(quick: bool) -> None:
    """Of the gradient in policy and windows, with more and more operations."""
    base = eeg_transforms(100.0, include=["frequency_shift", "ft_surrogate", "gaussian_noise"])
    x = np.zeros((BATCH, 2, 1500 if quick else 3000), np.float32)
    y = np.arange(BATCH) % 5
    wider = lambda t, i: type(t)(f"{t.name} {i}", lambda k, x, a: t.fn(k, x, (1 + i) * a), t.range, t.unit)
    modes: dict[str, dict[str, str]] = {"softmax": {}, "relax": {"estimator": "relax"}, "sample": {"mode": "sample"}}
    for n in (1, 2, 4):
        transforms = [wider(t, i) for i in range(n) for t in base]
        policy = init_policy(0, len(transforms), n_classes=5)
        for name, options in modes.items():
            loss = lambda p, x, t=transforms, o=options: jnp.sum(jnp.sin(augment(0, p, t, x, y, **o)))
            say(f"memory of {len(transforms)} operations, {name}", peak(jax.grad(loss, (0, 1)), policy, x), "batches")


def time_searches(quick: bool) -> None:
    """A whole search: four subjects of 100 windows, two to validate, sfreq 50, twenty epochs after five."""
    X, y, subject = simulate_sleep(0, 6, 20 if quick else 100, sfreq=50)
    train, valid = subject < 4, subject >= 4
    for method in ("adda", "cadda"):
        for turn in ("with compilation", "again"):
            wall, cpu = time.perf_counter(), time.process_time()
            PolicySearch(method=method, sfreq=50, n_epochs=2 if quick else 20, verbose=False).fit(
                X[train], y[train], X[valid], y[valid]
            )
            say(
                f"search, {method}, {turn}", time.perf_counter() - wall, f"s ({time.process_time() - cpu:.1f} s of CPU)"
            )


def benchmark(table: bench.Table, quick: bool) -> None:
    """Fill the table and print what has no peer."""
    compare_hypergradients(table, quick)
    time_steps(quick)
    measure_memory(quick)
    time_searches(quick)


if __name__ == "__main__":
    sys.exit(bench.main(benchmark, title="Class-wise automatic augmentation"))
