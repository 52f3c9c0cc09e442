"""How near posteriors of the toy model are to the exact ones, and what simulation, training and draws cost.

    PEERS_PYTHON=/path/to/python python packages/hnpe/benchmarks/bench_hnpe.py [--quick] [--out FILE.json]

One thread of a process bound to one CPU; CPU time. Peers (requirements.txt) run in processes of their own under the
Python that `PEERS_PYTHON` names, by default this one; those that are not there are skipped, and it is said.
"""

import os

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.hnpe import HNPE, HNPEPosterior, JansenRit, Simulations, ToyModel, sbc, simulate
from gyri.reproduce import bench

TOY = ToyModel(noise=0.05)


def seconds(function: Callable[[], Any], n: int = 5) -> tuple[float, float]:
    """CPU time of the first call, and the median of later ones."""
    times = []
    for _ in range(n + 1):
        start = time.process_time()
        jax.block_until_ready(function())
        times.append(time.process_time() - start)
    return times[0], float(np.median(times[1:]))


def ask_peer(*arguments: str) -> dict | None:
    """What a peer printed, or None if it is not there."""
    python = os.environ.get("PEERS_PYTHON", sys.executable)
    command = [python, str(Path(__file__).resolve().with_name("peers.py")), *arguments]
    with tempfile.TemporaryDirectory() as folder:  # sbi leaves logs where it runs
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        print(f"# no {arguments[0]}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return None
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


# --- accuracy ---------------------------------------------------------------------------------------------------------


def train(aggregate: str, n_extra: Any, model: ToyModel, n: int, **options: Any) -> tuple[HNPE, float]:
    sims = simulate(0, model.prior, model, n, n_extra)
    start = time.process_time()
    estimator = HNPE(model.prior, aggregate=aggregate).append_simulations(*sims)
    estimator.train(1, progress=False, **options)
    return estimator, time.process_time() - start


def mean_w1(posterior: HNPEPosterior, sims: Simulations) -> float:
    """Mean 1-Wasserstein distance of beta's marginal to the exact one, from sorted draws."""
    n = 4000
    draw = jax.jit(jax.vmap(lambda x, e: posterior.sample(0, (n,), x, e)[:, 1]))
    exact = jax.jit(jax.vmap(lambda x, e: TOY.posterior_sample(1, (n,), x, e)[:, 1]))
    found = [np.sort(np.asarray(f(sims.x, sims.x_extra)), 1) for f in (draw, exact)]
    return float(np.abs(found[0] - found[1]).mean())


def check_accuracy(quick: bool) -> None:
    n = 2_000 if quick else 10_000
    test = simulate(99, TOY.prior, TOY, 4_000, 10)
    alpha, beta = test.theta.T
    posteriors = {}
    for aggregate in ("deepset", "mean"):
        estimator, spent = train(aggregate, (0, 10), TOY, n)
        posterior = posteriors[aggregate] = estimator.build_posterior()
        n_epochs = len(estimator.history_["round"])
        print(f"{aggregate}: {n} simulations, {n_epochs} epochs, {spent:.1f} CPU s with compilation")
        for k in (0, 1, 5, 10):
            others = test.x_extra[:, :k]
            exact = jax.vmap(TOY.log_prob_shared)(beta, test.x, others)
            gap = exact - jax.vmap(posterior.log_prob_shared)(beta[:, None], test.x, others)
            exact = jax.vmap(TOY.log_prob_local)(alpha, beta, test.x)
            local = exact - jax.vmap(posterior.log_prob_local)(alpha[:, None], beta[:, None], test.x, others)
            print(f"  N = {k}: nats lost on beta {float(gap.mean()):.3f}, on alpha {float(local.mean()):.3f}")
    few = Simulations(*(leaf[:120] for leaf in test))
    distances = {name: mean_w1(posterior, few) for name, posterior in posteriors.items()}
    ratio = distances["mean"] / distances["deepset"]
    print(f"W1 of beta at N = 10: {distances['deepset']:.4f}; raw mean over it: {ratio:.2f}")
    result = sbc(3, posteriors["deepset"], simulate(4, TOY.prior, TOY, 500, (0, 10)))
    at = np.isclose(result.levels, 0.9)
    coverage = result.coverage[:, at].ravel().round(3)
    print(f"calibration: p = {result.pvalues.round(3)}, coverage of 90 % intervals {coverage}")
    check_noise_free(n)


def check_noise_free(n: int) -> None:
    model, x, x_extra = ToyModel(), np.array([0.25]), 0.5 * np.linspace(0.05, 0.95, 10)[:, None]
    estimator, spent = train("deepset", 10, model, n)
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    found = np.asarray(estimator.build_posterior().sample(0, (20_000,), x, x_extra))
    exact = np.asarray(model.posterior_sample(0, (200_000,), x, x_extra))
    error = np.abs(np.quantile(found[:, 1], levels) - np.quantile(exact[:, 1], levels)).mean()
    residual = np.sqrt(np.mean((found.prod(1) - 0.25) ** 2))
    best = -min(estimator.history_["valid_loss"])
    print(f"no noise, N = 10: quantiles {error:.4f}, rms of x - alpha beta {residual:.4f}, log q {best:.2f}")
    print(f"  {spent:.1f} CPU s with compilation")


# --- cost -------------------------------------------------------------------------------------------------------------


def numpy_loop(theta: np.ndarray, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """One recording by a plain loop over steps."""
    transition, factor = JansenRit()._linear()
    h, (C, mu, sigma, gain) = 1 / 1024, theta
    s = lambda v: 5 / (1 + np.exp(0.56 * (6 - v)))
    q, p = rng.normal(size=(2, 3))
    factor = factor * np.array([0.01, sigma, 1.0])[:, None, None]
    out = np.empty(n_steps)

    def force() -> np.ndarray:
        return np.array([
            325 * s(q[1] - q[2]), 325 * (mu + 0.8 * C * s(C * q[0])), 1100 * 0.25 * C * s(0.25 * C * q[0])
        ])  # fmt: skip

    for i in range(n_steps):
        p = p + h / 2 * force()
        moved = (transition @ np.stack([q, p], 1)[:, :, None] + factor @ rng.normal(size=(3, 2, 1)))[:, :, 0]
        q, p = moved.T
        p = p + h / 2 * force()
        out[i] = q[1] - q[2]
    return 10 ** (gain / 10) * out


def time_jansen_rit(quick: bool) -> None:
    n, model = 64 if quick else 512, JansenRit()
    theta = jnp.tile(jnp.array([135.0, 220.0, 2000.0, 0.0]), (n, 1))
    run = jax.jit(model)
    key = iter(jax.random.split(jax.random.key(0), 100))
    first, before = seconds(lambda: run(next(key), theta))
    peer = None if quick else ask_peer("jrnmm")
    _, after = seconds(lambda: run(next(key), theta))
    each = (before + after) / 2 / n
    sd = float(run(next(key), theta).std(1).mean())
    print(f"Jansen-Rit: {each * 1e3:.3f} ms a recording of 10 s; first call {first:.2f} s; sd {sd:.3f} mV")
    if peer:
        theirs = peer["seconds"]
        print(f"  jrnmm: {theirs * 1e3:.2f} ms ({peer['dtype']}, sd {peer['sd']:.3f}): {theirs / each:.1f} times ours")
    start = time.process_time()
    numpy_loop(np.asarray(theta[0], float), 2048 if quick else 10_240, np.random.default_rng(0))
    loop = (time.process_time() - start) * (5 if quick else 1)
    print(f"  NumPy loop: {loop * 1e3:.0f} ms: {loop / each:.0f} times ours")


def time_toy(quick: bool) -> None:
    n = 10_000 if quick else 300_000
    first, each = seconds(lambda: simulate(0, TOY.prior, TOY, n, 10), 3)
    print(f"toy simulations, N = 10: {n / each:.0f} a second; first call {first:.2f} s; authors' code, elsewhere: 1087")
    sizes = [(n // 4) * (1 + k) for k in (4, 10, 40)]
    costs = [seconds(lambda k=k: simulate(0, TOY.prior, TOY, n // 4, k), 3)[1] for k in (4, 10, 40)]
    print(f"  cost over recordings, log-log slope: {np.polyfit(np.log(sizes), np.log(costs), 1)[0]:.2f}")


def time_training(quick: bool) -> None:
    """To the best validation log density that sbi reaches, on the same simulations."""
    n, n_peer = (2_000, 2) if quick else (10_000, 40)
    sims = simulate(0, TOY.prior, TOY, n, 10)

    def ours(n_epochs: int, seed: int) -> tuple[HNPE, float]:
        start = time.process_time()
        model = HNPE(TOY.prior, seed=seed).append_simulations(*sims)
        model.train(seed, max_epochs=n_epochs, progress=False)
        return model, time.process_time() - start

    with tempfile.TemporaryDirectory() as folder:
        x = np.concatenate([sims.x, sims.x_extra[..., 0]], 1)
        np.savez(f"{folder}/sims.npz", theta=np.asarray(sims.theta), x=x)
        peer = ask_peer("sbi", f"{folder}/sims.npz", str(n_peer))
    goal = max(peer["valid_log_prob"]) if peer else np.inf
    cold, warm = ours(5, 0)[1], ours(5, 0)[1]
    compiling = cold - warm
    for n_epochs in (5, 10, 20, 40, 80):
        model, spent = ours(n_epochs, 1)
        best = -min(model.history_["valid_loss"])
        print(f"training, {n_epochs} epochs: {spent:.1f} CPU s and {compiling:.1f} of compilation; log q {best:.3f}")
        if peer and best >= goal:
            # sbi goes on after its best epoch, to see that it is: that time is not counted.
            each, n_theirs = peer["seconds"] / peer["epochs"], 1 + int(np.argmax(peer["valid_log_prob"]))
            theirs = each * n_theirs
            print(f"  sbi: {theirs:.1f} s to its best epoch, {n_theirs} of {peer['epochs']}, log q {goal:.3f}")
            print(f"  {theirs / (spent + compiling):.1f} times ours, {theirs / spent:.1f} without our compilation")
            print(f"  an epoch: {each / (spent / len(model.history_['round'])):.1f} times ours")
            return


def time_posterior(quick: bool) -> None:
    estimator, _ = train("deepset", (0, 10), TOY, 1_000, max_epochs=2)
    posterior, x, x_extra = estimator.build_posterior(), np.array([0.25]), np.full((10, 1), 0.2)
    theta = np.asarray(TOY.prior.sample(0, (100_000,)))
    first, draws = seconds(lambda: posterior.sample(0, (10_000,), x, x_extra))
    _, densities = seconds(lambda: posterior.log_prob(theta, x, x_extra))
    print(
        f"10 000 draws: {draws * 1e3:.1f} ms (first call {first:.2f} s); densities of 100 000: {densities * 1e3:.0f} ms"
    )


def benchmark(table: bench.Table, quick: bool) -> None:
    time_jansen_rit(quick)
    time_toy(quick)
    time_posterior(quick)
    check_accuracy(quick)
    time_training(quick)


if __name__ == "__main__":
    raise SystemExit(
        bench.main(benchmark, title="Hierarchical posterior estimation", peers=["numpy", "flowjax", "numpyro"])
    )
