"""A sound source heard by two microphones."""

from typing import Any

import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..simulators import SourceLocalization
from .setting import N_SEEDS, draw, draw_scatter, first, fixed, train

SIZES = {"quick": (3_000, 40, 10), "paper": (50_000, 200, 100)}
TRUTH = (0.8, 0.6)


def draws_of(setting: tuple[str, int]) -> dict[int, np.ndarray]:
    """Draws given none, one, some and all others."""
    scale, seed = setting
    n_simulations, epochs, most = SIZES[scale]
    model = SourceLocalization(noise=0.02, n_outputs=1, shared="u")
    posterior = train(model, None, seed, n_simulations, (0, most), epochs)
    sims = fixed(model, TRUTH, 300 + seed, 1, most)
    return {n: draw(posterior, seed, first(sims, n))[0] for n in (0, 1, most // 2, most)}


@experiment(paper="hnpe", figure="Sound source", title="A sound source: the branch of a hyperbola collapses")
def sound_source(scale: str, key: int, sweep: Any) -> Result:
    """Two microphones; the recordings' sources have one coordinate in common.

    Paper scale: about 1 CPU hour (extrapolated from the quick run: 140 times the steps, up to 100 others in place of
    10).
    """
    seeds = sweep(draws_of, [(scale, key + i) for i in range(N_SEEDS[scale])])
    most = SIZES[scale][2]
    ratio = [s[most][:, 1].std() / s[0][:, 1].std() for s in seeds]
    error = [abs(s[most][:, 1].mean() - TRUTH[1]) / s[most][:, 1].std() for s in seeds]
    claims = [
        Claim.at_most(f"sd of the shared coordinate, N = {most} over 0", "collapses", ratio, 0.6),
        Claim.at_most("error of its mean, in sd", None, error, 2.0),
    ]
    sets = {f"N = {n}": draws for n, draws in seeds[0].items()}
    figure = draw_scatter(sets, ("v (local)", "u (shared)"), ((-2, 2), (-2, 2)), None, TRUTH)
    caption = {"Source": "Draws of one seed; cross: the truth."}
    return Result(claims, {"Source": figure}, Data.simulated("two microphones in the plane"), caption)
