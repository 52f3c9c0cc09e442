"""Figure E.2 and the table of contractivity, on equilibrium layers trained on handwritten digits."""

import time
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..backward import Full, JacobianFree, Shine, solve_transposed
from ..deq import spectral_radius
from ..implicit import fixed_point
from ..inverse import inverse_quality
from ..plot import plot_inverse_quality
from ..solvers import AdjointBroyden, Broyden
from .training import digits, train_dense

MODES = ("shine", "jacobian_free", "refine", "full")
EPOCHS = 15
DIGITS = Data.stand_in(for_="CIFAR-10 and ImageNet on GPUs", used="handwritten digits, scikit-learn")
ESTIMATES: dict[str, Any] = {
    "Jacobian-free": Broyden(18, 1e-3),
    "SHINE, Broyden": Broyden(18, 1e-3),
    "SHINE, adjoint Broyden": AdjointBroyden(18, 1e-3),
    "SHINE, adjoint Broyden, OPA": AdjointBroyden(18, 1e-3, opa_every=5),
}


def accuracies(setting: tuple[int, int]) -> dict[str, float]:
    """Test accuracy by backward mode, for (seed, epochs)."""
    seed, epochs = setting
    return {mode: train_dense(seed, mode, 1.0, False, epochs)[1] for mode in MODES}


@experiment(
    paper="shine", figure="Figure 3, on a CPU", title="Training does not need the exact backward pass", timed=True
)
def training(scale: str, key: int, sweep: Any) -> Result:
    """Dense layers of 80 units on digits, 15 epochs: accuracy by mode, and the time of one backward pass.

    Paper scale: about 2 CPU minutes (extrapolated from the quick run: 10 seeds in place of 3).
    """
    from matplotlib.figure import Figure

    n_seeds = {"quick": 3, "paper": 10}[scale]
    found = sweep(accuracies, [(key + seed, EPOCHS) for seed in range(n_seeds)])
    milliseconds = backward_times(key)
    claims = [Claim.at_least(f"accuracy, {mode}", None, np.mean([run[mode] for run in found]), 0.945) for mode in MODES]
    for mode, paper in (("shine", 13.0), ("jacobian_free", 16.2)):
        ratio = milliseconds["full"] / milliseconds[mode]
        claims.append(Claim.at_least(f"backward pass: time of full over that of {mode}", paper, ratio, 5.0))
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for mode in MODES:
        axes.plot([milliseconds[mode]] * n_seeds, [run[mode] for run in found], "o", label=mode)
    axes.set(xscale="log", xlabel="backward pass (ms)", ylabel="test accuracy")
    axes.legend()
    caption = "Test accuracy by the time of the backward pass of a batch of 64, one point a seed."
    return Result(claims, {"accuracy": figure}, DIGITS, {"accuracy": caption})


def backward_times(seed: int) -> dict[str, float]:
    """Median milliseconds of the pullback alone, batch of 64."""
    model, _ = train_dense(seed, "shine", 1.0, False, EPOCHS)
    X = jnp.asarray(digits(seed)[1][:64])
    step, consts = model.layer.prepare(X)
    pull = jax.jit(lambda pull, v: pull(v))
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    pulls = {}
    for mode in MODES:
        solve = lambda *consts, mode=mode: (
            fixed_point(
                step, model.layer.cell.init_state(X), *consts, batch_ndim=1, backward=mode, solver=Broyden(18, 1e-3)
            ).value
        )
        z, pulls[mode] = jax.vjp(jax.jit(solve), *consts)
        jax.block_until_ready(pull(pulls[mode], z))
    for _ in range(50):
        for mode in MODES:
            start = time.perf_counter()
            jax.block_until_ready(pull(pulls[mode], z))
            times[mode].append(1e3 * (time.perf_counter() - start))
    return {mode: float(np.median(some)) for mode, some in times.items()}


def qualities(setting: tuple[int, int]) -> dict[str, tuple[np.ndarray, ...]]:
    """Error, ratio of norms and cosine of w by the estimate, one a sample, for (seed, batches)."""
    seed, n_batches = setting
    model, _ = train_dense(seed, "shine", 1.0, False, EPOCHS)
    X, y = digits(seed)[0], digits(seed)[2]
    rng = np.random.default_rng(seed)
    found: dict[str, list] = {name: [] for name in ESTIMATES}
    for _ in range(n_batches):
        rows = rng.integers(0, len(y), 32)
        consts = model.layer.prepare(jnp.asarray(X[rows]))[1]
        head = model.linear.kernel[...], model.linear.bias[...]
        for name, solver in ESTIMATES.items():
            free = name == "Jacobian-free"
            found[name].append(jax.device_get(_quality(solver, free, consts, head, jnp.asarray(y[rows]))))
    return {name: tuple(np.concatenate(part) for part in zip(*some, strict=True)) for name, some in found.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _quality(solver: Any, free: bool, consts: tuple, head: tuple, y: jax.Array) -> tuple[jax.Array, ...]:
    """W of a mode against 35 steps of the exact solve, both at the solution of this solver."""
    from ..models import dense_step

    loss = lambda z: -jax.nn.log_softmax(z @ head[0] + head[1])[jnp.arange(len(y)), y].sum()
    outer = lambda z, *consts: jax.grad(loss)(z)
    start = jnp.zeros_like(consts[1])
    solution = fixed_point(dense_step, start, *consts, solver=solver, batch_ndim=1, outer_grad=outer)
    z, pull = solution.value, jax.vjp(lambda z: dense_step(z, *consts) - z, solution.value)[1]
    estimate: Any = solution.inverse
    modes = (JacobianFree() if free else Shine(), Full(max_steps=35))
    approx, exact = (solve_transposed(mode, estimate, outer(z), lambda w: pull(w)[0], identity=-1.0) for mode in modes)
    return inverse_quality(approx, exact)


@experiment(
    paper="shine", figure="Figure E.2", title="The inverse in a trained layer: better estimates, better directions"
)
def layer_inverses(scale: str, key: int, sweep: Any) -> Result:
    """Batches of 32 digits through a trained layer, 18 steps forward; exact w: 35 Broyden steps.

    Paper scale: about 1 CPU minute (extrapolated from the quick run: 10 times the batches; compilation stays).
    """
    from matplotlib.figure import Figure

    n_batches = {"quick": 10, "paper": 100}[scale]
    found = sweep(qualities, [(key, n_batches)])[0]
    cosine = {name: float(np.median(found[name][2])) for name in found}
    error = {name: float(np.median(found[name][0])) for name in found}
    claims = [Claim.info(f"cosine with the exact w, {name}", None, cosine[name]) for name in found]
    claims += [Claim.info(f"relative error of w, {name}", None, error[name]) for name in found]
    others = [name for name in found if name != "Jacobian-free"]
    for worse, better in pairwise(others):
        what = f"relative error of {better} over that of {worse}"
        claims.append(Claim.at_most(what, "below 1", error[better] / error[worse], 1.0))
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    plot_inverse_quality(found, ax=figure.subplots())
    caption = "Cosine and ratio of norms of w against the exact one, one point a sample."
    return Result(claims, {"quality": figure}, DIGITS, {"quality": caption})


def contraction(setting: tuple[int, float | None, bool, int]) -> dict[str, float]:
    """For (seed, largest gain, with the Jacobian penalty, epochs): accuracy, spectral radius, steps."""
    seed, max_gain, regularize, epochs = setting
    model, accuracy = train_dense(seed, "refine", max_gain, regularize, epochs)
    X = jnp.asarray(digits(seed)[1][:64])
    step, consts = model.layer.prepare(X)
    solved = _solve(step, model.layer.cell.init_state(X), consts)
    radius = [float(_radius(solved.value[i : i + 1], consts[0], consts[1][i : i + 1])) for i in range(10)]
    return {
        "accuracy": accuracy,
        "radius": max(radius),
        "growth": float(_nonlinear_radius(solved.value, *consts)),
        "steps": float(np.mean(solved.stats.n_steps)),
        "norm": float(jnp.linalg.norm(consts[0], 2)),
    }


@partial(jax.jit, static_argnums=0)
def _solve(step: Any, start: jax.Array, consts: tuple) -> Any:
    return fixed_point(step, start, *consts, batch_ndim=1, solver=Broyden(60, 1e-4))


@jax.jit
def _radius(z: jax.Array, W: jax.Array, injection: jax.Array) -> jax.Array:
    from ..models import dense_step

    return spectral_radius(dense_step, z, W, injection, key=0)


@jax.jit
def _nonlinear_radius(z: jax.Array, W: jax.Array, injection: jax.Array) -> jax.Array:
    """Norm of f after its input was brought to length 1 again and again, largest of the batch."""
    from ..models import dense_step

    def body(_: int, z: jax.Array) -> jax.Array:
        return dense_step(z / jnp.linalg.norm(z, axis=-1, keepdims=True), W, injection)

    return jnp.linalg.norm(jax.lax.fori_loop(0, 200, body, z), axis=-1).max()


@experiment(
    paper="shine",
    figure="Contractivity",
    title="Trained layers need not contract; a Jacobian penalty keeps them easy to solve",
)
def contractivity(scale: str, key: int, sweep: Any) -> Result:
    """Layers with the gain capped, with a Jacobian penalty, and free, trained with the refined mode.

    Paper scale: about 2 CPU minutes (extrapolated from the quick run: 10 seeds in place of 3, 25 epochs in place of
    15).
    """
    from matplotlib.figure import Figure

    n_seeds, epochs = {"quick": (3, EPOCHS), "paper": (10, 25)}[scale]
    kinds = {"capped": (1.0, False), "capped, Jacobian penalty": (1.0, True), "free": (None, False)}
    settings = [(key + seed, *kind, epochs) for kind in kinds.values() for seed in range(n_seeds)]
    runs = sweep(contraction, settings)
    found = {name: runs[i * n_seeds : (i + 1) * n_seeds] for i, name in enumerate(kinds)}
    pick = lambda name, what: [run[what] for run in found[name]]
    claims = []
    for name in kinds:
        claims.append(Claim.info(f"{name}: spectral radius, worst of ten samples", None, pick(name, "radius")))
        claims.append(Claim.info(f"{name}: norm after non-linear power iteration", None, pick(name, "growth")))
        claims.append(Claim.info(f"{name}: test accuracy", None, pick(name, "accuracy")))
        claims.append(Claim.info(f"{name}: steps to a tolerance of 1e-4", None, pick(name, "steps")))
    ratio = np.divide(pick("capped, Jacobian penalty", "steps"), pick("capped", "steps"))
    claims.append(Claim.at_most("steps with the Jacobian penalty over steps without", "below 1", ratio, 1.0))
    claims.append(Claim.at_most("capped: spectral radius", 1.0, pick("capped", "radius"), 1.0))
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in kinds:
        axes.plot(pick(name, "radius"), pick(name, "steps"), "o", label=name)
    axes.set(xlabel="spectral radius", ylabel="steps to 1e-4")
    axes.legend()
    caption = "Steps of the solve by the spectral radius of the Jacobian at the solution, one point a seed."
    return Result(claims, {"contractivity": figure}, DIGITS, {"contractivity": caption})
