"""Figures 1, 2 (left) and of the appendix: penalties of linear models by descent, grid and random search.

The paper's data, 20 newsgroups and real-sim, have to be downloaded; data that ship with scikit-learn and simulated
documents stand for them. ``scale="paper"`` tries the download first.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..backward import Full
from ..bilevel import HoagResult, run_hoag, run_search
from ..datasets import (
    load_20news,
    load_breast_cancer,
    load_digits_binary,
    load_real_sim,
    load_topics,
    train_val_test_split,
)
from ..estimator import problem_of
from ..lbfgs import LBFGS
from ..objectives import SparseRows
from ..plot import plot_hoag

# Gradients of the inner objective that the authors' code took on such data (SHINE, no OPA), of another split.
REFERENCE_EVALS = {"breast cancer": 843, "digits": 1119}
LOADERS: dict[str, tuple[Any, float]] = {
    "breast cancer": (load_breast_cancer, 0.5),
    "digits": (load_digits_binary, 0.5),
    "topics": (lambda: load_topics(), 0.9),
    "20 newsgroups": (load_20news, 0.9),
    "real-sim": (load_real_sim, 0.9),
}
MAX_ITER = 30
METHODS: dict[str, dict[str, Any]] = {
    "HOAG": {"backward": "full", "solver": LBFGS(memory=10)},
    "SHINE": {"backward": "shine"},
    "SHINE, 30 pairs": {"backward": "shine", "solver": LBFGS(memory=30)},
    "SHINE, OPA": {"backward": "shine", "solver": LBFGS(memory=60, opa_every=5), "opa_period": lambda k: MAX_ITER - k},
    "SHINE, refined": {"backward": "refine"},
    "Jacobian-free": {"backward": "jacobian_free"},
    "HOAG, 5 products": {"backward": Full(max_steps=5), "solver": LBFGS(memory=10)},
}
NLS_ITER = 50
NLS: dict[str, dict[str, Any]] = {
    "HOAG": {"backward": "full", "solver": LBFGS(memory=10)},
    "SHINE": {"backward": "shine"},
    "SHINE, OPA": {
        "backward": "shine", "solver": LBFGS(memory=60, opa_every=5),
        "opa_period": lambda k: max(1, (NLS_ITER - k) // 4),
    },
    "SHINE, refined": {"backward": "refine", "refine_power": 0.8},
    "Jacobian-free": {"backward": "jacobian_free"},
}  # fmt: skip


def load(name: str, loss: str, seed: int) -> tuple[Any, Any, Any, Any]:
    """Problem, start and data of one split, in float64."""
    loader, share = LOADERS[name]
    X, y = loader()
    parts = train_val_test_split(X, y, train=share, seed=seed)
    on_device = lambda X: SparseRows.of(X, np.float64) if hasattr(X, "tocsr") else jnp.asarray(X, float)
    data = tuple((on_device(X), jnp.asarray(y)) for X, y in parts[:2])
    p = data[0][0].shape[1]
    x0 = jax.random.normal(jax.random.key(seed), (p,))
    return problem_of(loss, p, "float64"), x0, jnp.zeros(1), data


def runs(setting: tuple[str, str, int, tuple[str, ...]]) -> tuple[float, dict[str, tuple[HoagResult, float]]]:
    """For (data, loss, seed, methods): the least validation loss, and each result with its loss, solved exactly."""
    name, loss, seed, names = setting
    with jax.enable_x64(True):
        problem: Any = load(name, loss, seed)
        methods, options = (METHODS, {}) if loss == "logistic" else (NLS, {"max_iter": NLS_ITER, "tol_decay": 0.8})
        found = {}
        for method in names:
            if method in methods:
                result = run_hoag(*problem, **options | methods[method])
            else:
                grid = np.linspace(-12, 12, 10)
                rng = np.random.default_rng(seed)
                result = _search(problem, grid if method == "grid" else rng.uniform(-12, 12, 10))
            found[method] = result
        least = _optimum(problem, found)
        exact = lambda result: _search(problem, np.asarray(result.lam)[None]).outer_value
        return least, {method: (jax.device_get(result), exact(result)) for method, result in found.items()}


def _search(problem: tuple, values: np.ndarray) -> HoagResult:
    statement, x0, lam0, data = problem
    return run_search(statement, x0, lam0, data, values)


def _optimum(problem: Any, found: dict[str, HoagResult]) -> float:
    """Least validation loss on a fine grid around the best penalties, and on a coarse one."""
    best = sorted(float(result.lam) for result in found.values())
    around = np.linspace(max(-12, best[0] - 0.5), min(12, best[-1] + 0.5), 61)
    return _search(problem, np.concatenate([np.linspace(12, -12, 25), around])).outer_value


@experiment(
    paper="shine", figure="Figures 1 and 2, left", title="Penalties from shared inverses: no product with a Hessian"
)
def search(scale: str, key: int, sweep: Any) -> Result:
    """Logistic regression, penalties from 1 on, weights from N(0, 1), five splits (ten at the paper's scale).

    Paper scale: about 4 CPU hours (guessed from the quick run: twice the splits, much larger data); needs 20 newsgroups
    and real-sim, which it downloads; else about 20 CPU minutes on what stands for them.
    """
    names, data, n_seeds = _data(scale)
    methods = (*METHODS, "grid", "random")
    settings = [(name, "logistic", key + seed, methods) for name in names for seed in range(n_seeds)]
    results = sweep(runs, settings)
    claims, figures, captions = [], {}, {}
    for i, name in enumerate(names):
        some = results[i * n_seeds : (i + 1) * n_seeds]
        claims += _claims(name, some)
        figures[name.replace(" ", "_")] = _figure(name, some[0][1])
        captions[name.replace(" ", "_")] = (
            f"{name}: best validation loss so far by time and by inner gradients, above the least of all; first split."
        )
    return Result(claims, figures, data, captions)


def _data(scale: str) -> tuple[tuple[str, ...], Data, int]:
    """The paper's data where they can be had, or what stands for them."""
    if scale == "paper":
        try:
            load_20news()
            load_real_sim()
            return ("20 newsgroups", "real-sim"), Data.real("20 newsgroups and real-sim"), 10
        except OSError:
            pass
    used = "breast cancer and digits of scikit-learn, simulated documents"
    stand_in = Data.stand_in(for_="20 newsgroups and real-sim, which have to be downloaded", used=used)
    names = ("breast cancer", "digits", "topics")
    return (names[:2], stand_in, 5) if scale == "quick" else (names, stand_in, 10)


def _claims(name: str, some: list) -> list[Claim]:
    claims = _losses(name, METHODS, some, 1.001)
    evals = {m: [found[m][0].history["inner_evals"][-1] for _, found in some] for m in some[0][1]}
    products = [found["SHINE"][0].history["hvps"][-1] for _, found in some]
    if name in REFERENCE_EVALS:
        published = REFERENCE_EVALS[name]
        what = f"{name}: inner gradients of SHINE in {MAX_ITER} iterations"
        claims.append(Claim.at_most(what, published, evals["SHINE"], published / 3))
        others = ("SHINE, 30 pairs", "SHINE, OPA")
        claims += [Claim.info(f"{name}: inner gradients of {method}", None, evals[method]) for method in others]
    claims.append(Claim.at_most(f"{name}: products with the Hessian of SHINE", 0, products, 0))
    hoag = [found["HOAG"][0].history["hvps"][-1] for _, found in some]
    claims.append(Claim.info(f"{name}: products with the Hessian of HOAG", None, hoag))
    return claims


def _losses(name: str, methods: dict[str, Any], some: list, bound: float) -> list[Claim]:
    """Validation loss of what each method returns, over the optimum; below it where the weights are not the exact ones.

    Stopping the inner solver early regularises, too: so a second number, of the weights solved for exactly.
    """
    claims = []
    for method in some[0][1]:
        ratio = [found[method][0].outer_value / least for least, found in some]
        exact = [found[method][1] / least for least, found in some]
        what = f"{name}: validation loss of {method} over the optimum"
        if method in methods and "Jacobian-free" not in method and "products" not in method and "30" not in method:
            claims.append(Claim.at_most(what, 1.0, ratio, bound))
            claims.append(Claim.info(f"{what}, solved exactly at its penalty", None, exact))
        else:
            claims.append(Claim.info(what, None, ratio))
    return claims


def _figure(name: str, found: dict[str, tuple[HoagResult, float]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, x in zip(figure.subplots(1, 2), ("time", "inner_evals"), strict=True):
        plot_hoag({method: result for method, (result, _) in found.items()}, ax=axes, x=x)
        axes.set_title(name)
    return figure


@experiment(
    paper="shine", figure="Appendix, non-linear least squares", title="The same on a problem that is not convex"
)
def nls(scale: str, key: int, sweep: Any) -> Result:
    """Squared error of a sigmoid on targets of -1 and 1, 50 iterations, five splits.

    Paper scale: about 2 CPU hours (guessed from search: 10 splits of one set); needs 20 newsgroups and real-sim, which
    it downloads; else about 1 CPU minute on digits.
    """
    real, data, n_seeds = _data(scale)
    name = "20 newsgroups" if "20 newsgroups" in real else "digits"
    some = sweep(runs, [(name, "nls", key + seed, tuple(NLS)) for seed in range(n_seeds)])
    claims = _losses(f"{name}, least squares", NLS, some, 1.01)
    figure = _figure(f"{name}, non-linear least squares", some[0][1])
    caption = "Best validation loss so far by time and by inner gradients, above the least of all; first split."
    return Result(claims, {"nls": figure}, data, {"nls": caption})
