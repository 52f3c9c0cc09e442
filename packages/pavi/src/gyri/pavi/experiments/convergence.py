"""How soon a fit is good: sharing against not sharing, against mean field and a locally enhanced bound."""

import time
from typing import Any

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal, AutoSemiDAIS

from gyri.reproduce import Claim, Data, Result, experiment

from ..bound import elbo
from ..models import gre_log_evidence, simulate_gre
from ..train import fit
from .random_effects import METHODS, mean_field
from .setting import N_SEEDS, draw_curves, gre_guide

# Groups, groups a step, numbers of steps (each a fit of its own), the gap per group to reach.
BUDGETS: dict[str, Any] = {
    "quick": (1_000, 20, (250, 1_000), 0.05),
    "paper": (1_000, 20, (250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 64_000), 0.05),
}


def gaps_of(setting: tuple[str, int, str]) -> np.ndarray:
    """Gap per group and CPU seconds for each budget, shape (n_budgets, 2)."""
    scale, seed, method = setting
    n, b, budgets, _ = BUDGETS[scale]
    sizes = (n, 50, 2)
    if method == "locally enhanced":
        return np.array([semi_dais(seed, sizes, b, steps) for steps in budgets])
    if method == "mean field":
        return np.array([mean_field(seed, sizes, b, steps)[:2] for steps in budgets])
    _, x = simulate_gre(1000 + seed, *sizes)
    guide = gre_guide(sizes, b, tuple(METHODS[method].items()))
    fit(guide, 0, 1, x, progress_bar=False)  # compiles
    rows = []
    for steps in budgets:
        started = time.process_time()
        params = fit(guide, jax.random.key(seed), steps, x, progress_bar=False).params
        seconds = time.process_time() - started
        bound = float(elbo(jax.random.key(seed), params, guide, x, num_particles=50, full=True))
        rows.append(((float(gre_log_evidence(x)) - bound) / n, seconds))
    return np.array(rows)


def semi_dais(seed: int, sizes: tuple[int, int, int], b: int, steps: int, eta: float = 1e-3) -> tuple[float, float]:
    """NumPyro's AutoSemiDAIS on b random groups a step: gap per group and seconds.

    Its default first step size, 1e-2, is beyond the posterior's spread here and diverges.
    """
    _, x = simulate_gre(1000 + seed, *sizes)

    def common() -> Any:
        return numpyro.sample("mu", dist.Normal(0, 1).expand([sizes[2]]).to_event(1))

    def local(mu: Any) -> None:
        with numpyro.plate("groups", sizes[0], subsample_size=b) as g:
            theta = numpyro.sample("theta", dist.Normal(mu, 0.2).to_event(1))
            numpyro.sample("x", dist.Normal(theta[..., None, :], 0.05).to_event(2), obs=x[g])

    model = lambda: local(common())
    guide = AutoSemiDAIS(model, local, AutoNormal(common), eta_init=eta, eta_max=10 * eta)
    svi = SVI(model, guide, optax.adam(optax.cosine_decay_schedule(1e-2, steps, 0.01)), Trace_ELBO(8))
    state = svi.init(jax.random.key(seed))
    update = lambda state: jax.lax.scan(lambda s, _: svi.update(s), state, length=steps)[0]
    run = jax.jit(update).lower(state).compile()
    started = time.process_time()
    params = svi.get_params(jax.block_until_ready(run(state)))
    seconds = time.process_time() - started
    # The bound of random groups is unbiased: a mean over many of them.
    bound = lambda key: -Trace_ELBO(8).loss(key, params, model, guide)
    bounds = jax.jit(lambda keys: jax.lax.map(bound, keys))(jax.random.split(jax.random.key(seed), 1000))
    return (float(gre_log_evidence(x)) - float(bounds.mean())) / sizes[0], seconds


def steps_to(gaps: np.ndarray, budgets: tuple[int, ...], goal: float) -> float:
    """The first budget whose gap reaches the goal; twice the last one if none does."""
    reached = [steps for steps, gap in zip(budgets, gaps, strict=True) if gap <= goal]
    return float(reached[0] if reached else 2 * budgets[-1])


@experiment(paper="pavi", figure="Convergence speed", title="Shared weights learn from every group", timed=True)
def convergence(scale: str, key: int, sweep: Any) -> Result:
    """The gap to the evidence after more and more steps, each on the same number of random groups.

    Paper scale: about 1 CPU hour (extrapolated from the quick run: 1.7 times the seeds, 77 times the steps, and a
    fifth, slower method).
    """
    n, _, budgets, goal = BUDGETS[scale]
    methods = (*METHODS, "mean field", *(["locally enhanced"] if scale == "paper" else []))
    rows = sweep(gaps_of, [(scale, key + i, method) for method in methods for i in range(N_SEEDS[scale])])
    found = dict(zip(methods, np.array(rows).reshape(len(methods), N_SEEDS[scale], len(budgets), 2), strict=True))
    needed = {m: np.array([steps_to(gaps, budgets, goal) for gaps in v[..., 0]]) for m, v in found.items()}
    claims = [
        Claim.at_most(f"PAVI-E: steps to a gap of {goal} nat per group", None, needed["PAVI-E"], 1_000),
        Claim.info(f"PAVI-F: the same (more than the last of {budgets} if twice that)", None, needed["PAVI-F"]),
        *(
            Claim.at_least(
                f"gap of {method} over that of PAVI-E, {budgets[1]} steps",
                "orders of magnitude faster",
                found[method][:, 1, 0] / found["PAVI-E"][:, 1, 0],
                10.0,
            )
            for method in ("no sharing", "mean field")
        ),
    ]
    curves = {m: (budgets, v[..., 0]) for m, v in found.items()}
    steps = draw_curves(curves, "steps", "gap per group (nat)", xscale="log", yscale="log")
    caption = f"{n} groups; each point a fit of its own; median and range over {N_SEEDS[scale]} seeds."
    return Result(claims, {"Steps": steps}, Data.simulated("Gaussian random effects"), {"Steps": caption})
