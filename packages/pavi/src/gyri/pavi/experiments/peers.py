"""The methods that see all groups at each step, beside PAVI: quality, time, weights and memory as groups are added."""

import time
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal

from gyri.reproduce import Claim, Data, Result, experiment

from ..baselines import AutoCascadingFlow, uivi_fit
from ..models import gre, gre_log_evidence, simulate_gre
from ..train import Options, Programs
from .setting import Peer, draw_curves, fit_gre, gre_guide, n_weights

SHARED: dict[str, dict[str, Any]] = {"PAVI-F": {"encoding": "free"}, "PAVI-E": {"encoding": "data"}}
WHOLE: dict[str, Any] = {
    "mean field": AutoNormal,
    "whole-space normal": AutoMultivariateNormal,
    "whole-space flow": AutoIAFNormal,
    "cascading": AutoCascadingFlow,
}
METHODS = (*SHARED, *WHOLE, "UIVI")
# Methods, numbers of groups, groups a step, steps, seeds. The quick ones are those that come near,
# but for UIVI, which takes as long as all of them.
PEERS: dict[str, Any] = {
    "quick": (("PAVI-F", "PAVI-E", "whole-space flow"), (20,), 2, 2_000, 1),
    "paper": (METHODS, (2, 20, 200, 2_000), 2, 10_000, 5),
}
FIELDS = ("gap", "seconds", "weights", "bytes")
SHOWN = (("gap per group", "nat"), ("time", "s"), ("weights", ""), ("memory", "MB"))


def peer_of(setting: tuple[str, int, str]) -> np.ndarray:
    """Gap per group, seconds without compilation, weights, temporary bytes of its program: (n_numbers, 4)."""
    scale, seed, method = setting
    _, numbers, b, steps, _ = PEERS[scale]
    rows = []
    for n in numbers:
        sizes = (n, 50, 2)
        if method in SHARED:
            found = {**fit_gre(seed, sizes, b, SHARED[method], steps), "bytes": step_bytes(sizes, b, method)}
        else:
            _, x = simulate_gre(1000 + seed, *sizes)
            found = fit_uivi(x, seed, steps) if method == "UIVI" else whole_peer(method, n, steps).fit(x, seed)
            found["gap"] = (float(gre_log_evidence(x)) - found["bound"]) / n
        rows.append([found[field] for field in FIELDS])
    return np.array(rows)


@lru_cache(maxsize=32)
def whole_peer(method: str, n_groups: int, steps: int) -> Peer:
    """One for all seeds: it keeps the shapes of what it first sees."""
    return Peer(WHOLE[method](gre), steps)


@lru_cache(maxsize=32)
def step_bytes(sizes: tuple[int, int, int], b: int, method: str) -> int:
    """What a step of ours needs besides the data, the weights and their moments."""
    guide = gre_guide(sizes, b, tuple(SHARED[method].items()))
    x = jnp.zeros(sizes)
    setup = guide.setup((x,), {})
    programs = Programs(setup, None, 8, True, None)
    carry = programs.start(setup.init_all(jax.random.key(0), (x,), {}))
    options = Options(jax.random.key(0), jnp.int32(1000), jnp.int32(0))
    step = jax.jit(programs.step, donate_argnums=0).lower(carry, jnp.int32(0), options, setup.dynamic((x,), {}))
    used: Any = step.compile().memory_analysis()
    return used.temp_size_in_bytes


def fit_uivi(x: Any, seed: int, steps: int) -> dict[str, float | int]:
    """Unbiased implicit VI, whose bound is estimated from below; its program's memory is not known from outside."""
    key, seconds = jax.random.key(seed), []
    for n in (1, 1, steps):  # each compiles, the first one more: the difference of the others is the steps
        started = time.process_time()
        result = uivi_fit(gre, key, n, x)
        jax.block_until_ready(result.log_joints)
        seconds.append(time.process_time() - started)
    return {
        "bound": float(result.elbo(key)),
        "seconds": max(seconds[2] - seconds[1], 1e-3),
        "weights": n_weights(result.params["network"]),
        "bytes": np.nan,
    }


@experiment(
    paper="pavi", figure="Other families", title="What other families cost and reach as groups are added", timed=True
)
def peers(scale: str, key: int, sweep: Any) -> Result:
    """Gaussian random effects: PAVI on two random groups a step, the others, which cannot, on all of them.

    Paper scale: about 1 CPU day (guessed from the README's time of AutoIAFNormal, whose weights grow with the square of
    the groups: 2,000 groups, 10,000 steps, 5 seeds).
    """
    methods, numbers, _, steps, n_seeds = PEERS[scale]
    rows = sweep(peer_of, [(scale, key + i, method) for method in methods for i in range(n_seeds)])
    values = np.array(rows).reshape(len(methods), n_seeds, len(numbers), len(FIELDS))
    found = dict(zip(methods, values, strict=True))
    last = numbers[-1]
    claims = [Claim.at_least(f"least gap of all, G = {last}", "0 or more", values[..., -1, 0].min(), -0.02, unit="nat")]
    for method, rows in found.items():
        for k, (label, unit) in enumerate(SHOWN):
            value = rows[:, -1, k] / (1e6 if unit == "MB" else 1)
            if np.isfinite(value).all():
                claims.append(Claim.info(f"{method}: {label}, G = {last}", None, value, unit=unit))
    figures = {"Quality": draw_quality({m: rows[:, -1] for m, rows in found.items()})}
    captions = {"Quality": f"{last} groups, {steps} steps; a point a seed; time without compilation."}
    if "UIVI" in found:
        captions["Quality"] += " That of UIVI is good to about a second: it is the difference of two fits."
    if len(numbers) > 1:
        axes = {"xscale": "log", "yscale": "log"}
        for k, label in enumerate(("gap per group (nat)", "time (s)", "weights", "memory (bytes)")):
            curves = {m: (numbers, rows[..., k]) for m, rows in found.items() if np.isfinite(rows[..., k]).all()}
            name = label.partition(" (")[0].capitalize()
            figures[name], captions[name] = draw_curves(curves, "groups", label, **axes), captions["Quality"]
    return Result(claims, figures, Data.simulated("Gaussian random effects"), captions)


def draw_quality(found: dict[str, np.ndarray]) -> Any:
    """Gap over time, and weights."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    quality, weights = figure.subplots(1, 2)
    for k, (method, rows) in enumerate(found.items()):
        quality.plot(rows[:, 1], rows[:, 0], "o", color=f"C{k}", label=method, markersize=5)
        weights.barh(k, np.median(rows[:, 2]), color=f"C{k}")
    quality.set(xlabel="time (s)", ylabel="gap per group (nat)", xscale="log", yscale="log")
    weights.set(xlabel="weights", xscale="log")
    # From decade to decade, so that labels do not run into each other.
    for axis, column in ((quality.xaxis, 1), (quality.yaxis, 0), (weights.xaxis, 2)):
        values = np.log10(np.maximum([rows[:, column] for rows in found.values()], 1e-4))
        axis.axes.set(
            **{f"{axis.axis_name}lim": (10.0 ** np.floor(values.min()), 10.0 ** (np.floor(values.max()) + 1))}
        )
        axis.set_minor_formatter(NullFormatter())
    weights.set_yticks(range(len(found)), list(found))
    weights.invert_yaxis()
    for ax in (quality, weights):
        ax.spines[["top", "right"]].set_visible(False)
    return figure
