"""The main figure: suboptimality against depth, of solvers and of trained networks.

One published result does not come out: that LISTA, which learns on the steps of the signal (synthesis), is soon worse
than proximal gradient descent on the signal without learning (analysis). Ours is better from depth 2 or 3 on. What we
checked, on the draw whose curves are nearest to the published ones (seed 2; start 0.224, published 0.221):

- a second evaluation of the trained network and of its objective in NumPy, signal by signal, agrees to 1e-9;
- after one layer ours is theirs: 0.212 (published 0.210) for lam = 0.1, 2.71 (2.41) for lam = 0.8;
- at depths 2 and 3 ours is at 0.147 and 0.092 (0.193 and 0.171); 0.58 and 0.03 (1.47 and 1.18). With 40 trial steps, as
  many as 10 accepted ones, in the place of 40 accepted steps: 0.166 and 0.116; 0.65 and 0.04. With the first layers
  held as they are: 0.156 and 0.119; 1.22 and 0.32. With both: 0.161 and 0.138; 1.33 and 0.41. The better a network is
  trained, the further it is from the published curve, and all layers have to be trained for it.
- LISTA whose layers learn a step size only is worse than proximal gradient descent on that draw, by published factors:
  1.3 and 1.4 (published for LISTA: 1.3 and 1.4); 2.4 and 3.3 (1.8 and 2.3). On others it is not, for lam = 0.8.

The claim is thus one about what training finds and about the operator drawn, not about what the networks can express.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..datasets import simulate
from ..networks import apply_network, constants_of, init_network
from ..plot import plot_convergence
from ..problem import objective
from ..solvers import solve
from ..training import Data as Signals
from ..training import Stage, train

SOLVERS = {
    "PGD, synthesis": "synthesis_pgd",
    "APGD, synthesis": "synthesis_apgd",
    "PGD": "pgd",
    "APGD": "apgd",
}
NETWORKS = {
    "LISTA": ("lista", 1),
    "LISTA, step sizes": ("lista_step", 1),
    "LPGD-Taut": ("lpgd_taut", 1),
    "LPGD-LISTA 20": ("lpgd_lista", 20),
}
DEPTHS = {"quick": (0, 1, 2, 3, 5, 8), "paper": (0, 1, 2, 3, 5, 8, 13, 22, 40)}
STEPS = "worse than it on the draw nearest to the published curves, not on others: see the module's text"
NOTE = "better trained than the published one: equal after one layer, and the module's text says what was checked"
# Test suboptimality of the authors' code at depths 1, 2, 3, 5, 8: seed 42, 100 + 100 signals, 40 steps a depth.
REFERENCE = {
    0.1: {
        "PGD": (0.176, 0.146, 0.125, 0.0986, 0.0766),
        "APGD": (0.176, 0.146, 0.120, 0.0840, 0.0535),
        "LISTA": (0.210, 0.193, 0.171, 0.138, 0.122),
        "LPGD-Taut": (0.0383, 0.0288, 0.0241, 0.0179, 0.0124),
    },
    0.8: {
        "PGD": (1.40, 0.799, 0.514, 0.264, 0.125),
        "APGD": (1.40, 0.799, 0.459, 0.166, 0.0420),
        "LISTA": (2.41, 1.47, 1.18, 0.999, 0.819),
        "LPGD-Taut": (0.0202, 0.00511, 0.00198, 0.00099, 0.00057),
    },
}


def curves(setting: tuple[int, float, int, int, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Mean test suboptimality by depth of each method, for (seed, lam, signals, steps a depth, depths)."""
    seed, lam, n, n_steps, depths = setting
    with jax.enable_x64(True):
        x, _, _, A = simulate(seed, 2 * n)
        x, x_test = x[:n], x[n:]
        optimum = solve(x_test, A, lam, max_iter=50_000, tol=1e-10, restart=True).objective.mean()
        found = {}
        for name, solver in SOLVERS.items():
            run = solve(x_test, A, lam, solver=solver, max_iter=depths[-1], check_every=1, tol=0, history=True)
            found[name] = np.mean(np.asarray(run.history), 0)[list(depths)] - float(optimum)
        data = Signals(x, jnp.full((n, 1), lam), jax.jit(constants_of)(A))
        for name, (network, n_inner) in NETWORKS.items():
            params, values = init_network(A, depths[-1], network), [found["PGD"][0]]
            for depth in depths[1:]:  # each network starts from the last one and untrained layers
                plan = [Stage(depth, depth, n_steps)]
                params = train(params, data, plan, network=network, n_inner=n_inner).params
                u = apply_network(params, x_test, A, lam, network=network, n_layers=depth, n_inner=n_inner)
                values.append(float(objective(u, x_test, A, lam).mean() - optimum))
            found[name] = np.array(values)
    return found


@experiment(paper="tv", figure="Main figure", title="A few learned layers do the work of many iterations")
def learning(scale: str, key: int, sweep: Any) -> Result:
    """Train on five seeds for a small and a large penalty, and compare on other signals.

    Paper scale: about 1 CPU hour (extrapolated from the quick run: 7.5 times the steps, 5 times the layers, 10 times
    the signals).
    """
    n, n_steps, depths = {"quick": (100, 40, DEPTHS["quick"]), "paper": (1000, 300, DEPTHS["paper"])}[scale]
    penalties = tuple(REFERENCE)
    runs = sweep(curves, [(key + seed, lam, n, n_steps, depths) for lam in penalties for seed in range(5)])
    figures, captions, claims = {}, {}, []
    for i, lam in enumerate(penalties):
        methods = {name: np.stack([run[name] for run in runs[5 * i : 5 * i + 5]]) for name in runs[0]}
        name = f"lam{lam}"
        figures[name] = _figure(methods, depths, f"lam = {lam} of the largest")
        captions[name] = (
            f"Test suboptimality by depth, mean of five seeds, {n} training signals, {n_steps} steps a depth."
        )
        claims += _claims(methods, depths, lam)
    return Result(claims, figures, Data.simulated("Gaussian operators (5 x 8), one jump, 0 dB"), captions)


def _figure(methods: dict[str, np.ndarray], depths: tuple[int, ...], title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    plot_convergence(methods, depths=list(depths), title=title, ax=figure.subplots())
    return figure


def _claims(methods: dict[str, np.ndarray], depths: tuple[int, ...], lam: float) -> list[Claim]:
    at5, at3 = depths.index(5), depths.index(3)
    taut = methods["LPGD-Taut"]
    published = REFERENCE[lam]
    text = f"lam = {lam}, depth 5: suboptimality of LPGD-Taut over that of"
    claims = []
    for other, bound in (("PGD", 0.3), ("APGD", 0.4)):
        paper, ours = published["LPGD-Taut"][3] / published[other][3], (taut / methods[other])[:, at5]
        claims.append(Claim.at_most(f"{text} {other}", paper, ours, bound))
    for at, ref in ((at3, 2), (at5, 3)):
        paper = published["LISTA"][ref] / published["PGD"][ref]
        for name, learned, note in (("LISTA", "matrices", NOTE), ("LISTA, step sizes", "step sizes only", STEPS)):
            what = f"lam = {lam}, depth {depths[at]}: LISTA ({learned} learned) over PGD without learning"
            claims.append(Claim.at_least(what, paper, (methods[name] / methods["PGD"])[:, at], 1.0, note=note))
    best = np.min([methods[name] for name in methods if name != "LPGD-Taut"], axis=0)
    shallow = [i for i, depth in enumerate(depths) if 1 <= depth <= 8]
    largest = (taut / best)[:, shallow].max(1)
    claims.append(Claim.at_most(f"lam = {lam}: LPGD-Taut over the best other, depths 1 to 8", 1, largest, 1.0))
    return claims
