"""Figure 6 and the comparison of online methods: minibatches against full batches and scikit-learn."""

import time
import warnings
from typing import Any

import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..datasets import simulate
from ..metrics import recovery_score
from .setting import LAM, mark, new_figure

SIZES = {"quick": (10_000, 8, 1), "paper": (100_000, 10, 10)}  # samples, epochs, seeds
BATCHES = {"quick": (500, 2000), "paper": (100, 500, 2000, 10_000)}
N_FEATURES, N_ATOMS, N_ITER = 50, 100, 30


def learn(setting: tuple[int, int, int, tuple[int, ...]]) -> dict[str, tuple[float, float]]:
    """Recovery and warm seconds by method, for (seed, samples, epochs, batch sizes)."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    from ..dictionary import DictionaryLearning

    seed, n_samples, epochs, batches = setting
    simulated = simulate(seed, n_samples, N_FEATURES, N_ATOMS)
    X, truth = np.asarray(simulated.X), simulated.components
    start = np.random.default_rng(seed).standard_normal((N_ATOMS, N_FEATURES)).astype(np.float32)
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    found = {}
    for batch in batches:
        options = {"lam": LAM, "n_iter": N_ITER, "init": start, "batch_size": batch, "verbose": False}
        model = DictionaryLearning(N_ATOMS, epochs=1, **options).fit(X)  # compiles
        begin = time.perf_counter()
        model = DictionaryLearning(N_ATOMS, epochs=epochs, **options).fit(X)
        found[f"SLS, {batch}"] = recovery_score(model.components_, truth), time.perf_counter() - begin
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a start that is no solution
        peer = MiniBatchDictionaryLearning(
            N_ATOMS, alpha=LAM, batch_size=max(b for b in batches if b <= 2000), max_iter=1, fit_algorithm="cd",
            dict_init=start, random_state=seed, tol=0, max_no_improvement=None,
        ).fit(X)  # fmt: skip
    found["scikit-learn, one pass"] = recovery_score(peer.components_, truth), time.perf_counter() - begin
    return found


@experiment(paper="unrolled", figure="Figure 6", title="Stochastic learning from random starts", timed=True)
def stochastic(scale: str, key: int, sweep: Any) -> Result:
    """The recipe with 50 features and 100 atoms, random start, N = 30: recovery, and time, of the stochastic search.

    The paper's online peer, SPAMS, is not on PyPI: scikit-learn's MiniBatchDictionaryLearning stands for it.

    Paper scale: about 2 CPU hours (extrapolated from the quick run: 10 times the seeds, 12.5 times the samples in all,
    4 batch sizes in place of 2).
    """
    n_samples, epochs, n_seeds = SIZES[scale]
    batches = BATCHES[scale]
    runs = sweep(learn, [(key + i, n_samples, epochs, batches) for i in range(n_seeds)])
    score, seconds = ({name: np.array([run[name][i] for run in runs]) for name in runs[0]} for i in (0, 1))
    best = max(score, key=lambda name: np.median(score[name]) if name.startswith("SLS") else -1.0)
    peer = "scikit-learn, one pass"
    claims = [
        *[Claim.info(f"{name}: recovery", None, score[name]) for name in score],
        *[Claim.info(f"{name}: time, warm", None, seconds[name], unit="s") for name in score],
        Claim.at_least("recovery of the best minibatch size", "above 0.95", score[best], 0.85,
                       note="a part of the paper's data and passes" if scale == "quick" else ""),
        Claim.at_most("its time over that of scikit-learn's single pass", None, seconds[best] / seconds[peer], 1.0),
    ]  # fmt: skip
    captions = {"stochastic": "Recovery against warm time; one point a seed."}
    figure, (ax,) = new_figure(1, 4.5)
    for i, name in enumerate(score):
        ax.semilogx(seconds[name], score[name], "o", color=f"C{i}", label=name)
    mark(ax, (1, 3, 10, 30))
    ax.set(xlabel="Time (s)", ylabel="recovery", ylim=(0, 1))
    ax.legend(frameon=False, fontsize="small")
    seeds = "one seed" if n_seeds == 1 else f"{n_seeds} seeds"
    data = Data.simulated(f"the paper's recipe, {n_samples} samples, {seeds}")
    return Result(claims, {"stochastic": figure}, data, captions)
