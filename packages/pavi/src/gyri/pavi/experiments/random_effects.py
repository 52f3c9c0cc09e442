"""Gaussian random effects, whose evidence is known: size of the encoding, scaling, parts and the whole."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpyro
from numpyro.infer.autoguide import AutoNormal

from gyri.reproduce import Claim, Data, Result, experiment

from ..models import gre, gre_log_evidence, simulate_gre
from .setting import N_SEEDS, Peer, draw_curves, fit_gre

DATA = Data.simulated("Gaussian random effects")

# --- size of the encoding ---------------------------------------------------------------------------------------------

# Sizes of the data, of the encodings, steps.
ENCODING: dict[str, Any] = {
    "quick": ((100, 20, 4), (1, 16), 1_000),
    "paper": ((100, 20, 4), (1, 2, 4, 8, 16, 32), 8_000),
}


def encoding_gap(setting: tuple[str, int, int]) -> float:
    """Gap per group for one size of the encoding."""
    scale, seed, size = setting
    sizes, _, steps = ENCODING[scale]
    return fit_gre(seed, sizes, 10, {"encoding_size": size}, steps)["gap"]


@experiment(paper="pavi", figure="Encoding size", title="Longer encodings lose less, up to what a copy needs")
def encoding_size(scale: str, key: int, sweep: Any) -> Result:
    """PAVI-F with affine flows on four dimensions: a posterior of a copy has 4 + 10 numbers.

    Paper scale: about 3 CPU minutes (extrapolated from the quick run: 1.7 times the seeds, 3 times the sizes, 8 times
    the steps).
    """
    sizes = ENCODING[scale][1]
    gaps = sweep(encoding_gap, [(scale, key + i, size) for i in range(N_SEEDS[scale]) for size in sizes])
    gaps = np.array(gaps).reshape(N_SEEDS[scale], len(sizes))
    claims = [
        Claim.at_least("gap at E = 1 over E = 16", "falls", gaps[:, 0] / gaps[:, sizes.index(16)], 5.0),
        Claim.at_most("gap per group at E = 16", None, gaps[:, sizes.index(16)], 0.2, unit="nat"),
    ]
    if 32 in sizes:
        ratio = gaps[:, sizes.index(32)] / gaps[:, sizes.index(16)]
        claims.append(Claim.at_least("gap at E = 32 over E = 16", "plateau", ratio, 0.5))
    axes = {"xscale": "log", "yscale": "log"}
    figure = draw_curves({"PAVI-F": (sizes, gaps)}, "size of the encoding", "gap per group (nat)", **axes)
    caption = f"log p(X) - ELBO on all groups; median and range over {N_SEEDS[scale]} seeds."
    return Result(claims, {"Encoding": figure}, DATA, {"Encoding": caption})


# --- scaling with the number of groups --------------------------------------------------------------------------------

# Numbers of groups, groups a step, steps.
SCALING: dict[str, Any] = {"quick": ((20, 2_000), 20, 1_000), "paper": ((20, 200, 2_000, 20_000), 20, 4_000)}
METHODS: dict[str, dict[str, Any]] = {
    "PAVI-F": {"encoding": "free"},
    "PAVI-E": {"encoding": "data"},
    "no sharing": {"amortize": False},
}


def scaling_of(setting: tuple[str, int, str]) -> np.ndarray:
    """Gap per group, seconds and weights for each number of groups, shape (n_numbers, 3)."""
    scale, seed, method = setting
    numbers, b, steps = SCALING[scale]
    rows: list[Any] = []
    for n in numbers:
        if method == "mean field":
            rows.append(mean_field(seed, (n, 50, 2), b, steps))
        else:
            found = fit_gre(seed, (n, 50, 2), b, METHODS[method], steps)
            rows.append((found["gap"], found["seconds"], found["weights"]))
    return np.array(rows)


@lru_cache(maxsize=16)
def mean_field_peer(n_groups: int, b: int, steps: int) -> Peer:
    """NumPyro's AutoNormal on b random groups a step."""
    plates = lambda x: numpyro.plate("groups", n_groups, dim=-2, subsample_size=b)
    return Peer(AutoNormal(gre, create_plates=plates), steps, rate=3e-2, whole=AutoNormal(gre))


def mean_field(seed: int, sizes: tuple[int, int, int], b: int, steps: int) -> tuple[float, float, int]:
    """Its gap per group, seconds and weights."""
    _, x = simulate_gre(1000 + seed, *sizes)
    found = mean_field_peer(sizes[0], b, steps).fit(x, seed)
    return (float(gre_log_evidence(x)) - found["bound"]) / sizes[0], found["seconds"], int(found["weights"])


@experiment(paper="pavi", figure="Scaling", title="Sharing keeps its quality as groups are added", timed=True)
def scaling(scale: str, key: int, sweep: Any) -> Result:
    """The same steps, each on the same number of random groups, for more and more groups in all.

    Paper scale: about 5 CPU minutes (extrapolated from the quick run: 1.7 times the seeds, 4 times the steps, twice
    the numbers of groups).
    """
    numbers, _, steps = SCALING[scale]
    methods = (*METHODS, "mean field")
    rows = sweep(scaling_of, [(scale, key + i, method) for method in methods for i in range(N_SEEDS[scale])])
    found = dict(zip(methods, np.array(rows).reshape(len(methods), N_SEEDS[scale], len(numbers), 3), strict=True))
    last = numbers[-1]
    claims = [
        Claim.at_most(
            f"PAVI-E: gap per group, G = {last}, {steps} steps", None, found["PAVI-E"][:, -1, 0], 0.1, unit="nat"
        ),
        *(
            Claim.at_least(
                f"gap of {method} over that of PAVI-E, G = {last}",
                "orders of magnitude faster",
                found[method][:, -1, 0] / found["PAVI-E"][:, -1, 0],
                10.0,
            )
            for method in ("no sharing", "mean field")
        ),
        Claim.close(
            "PAVI-E: weights at the most groups over the fewest",
            1,
            found["PAVI-E"][:, -1, 2] / found["PAVI-E"][:, 0, 2],
        ),
        Claim.at_most(
            f"PAVI-E: seconds of a step, G = {last} over {numbers[0]}",
            None,
            found["PAVI-E"][:, -1, 1] / found["PAVI-E"][:, 0, 1],
            1.5,
        ),
        Claim.info(f"PAVI-F: gap per group, G = {last}", None, found["PAVI-F"][:, -1, 0], unit="nat"),
    ]
    axes = {"xscale": "log", "yscale": "log"}
    gaps = draw_curves({m: (numbers, v[..., 0]) for m, v in found.items()}, "groups", "gap per group (nat)", **axes)
    weights = draw_curves({m: (numbers, v[..., 2]) for m, v in found.items()}, "groups", "weights", **axes)
    caption = f"After {steps} steps; median and range over {N_SEEDS[scale]} seeds."
    return Result(claims, {"Gap": gaps, "Weights": weights}, DATA, {"Gap": caption, "Weights": "Trained numbers."})


# --- parts and the whole ----------------------------------------------------------------------------------------------

# Groups, groups a step, steps.
PARTS: dict[str, Any] = {"quick": (100, (10, 100), 1_000), "paper": (100, (2, 5, 10, 50, 100), 8_000)}


def part_gap(setting: tuple[str, int, str, int]) -> float:
    """Gap per group on all groups, after training on random parts."""
    scale, seed, encoding, b = setting
    n_groups, _, steps = PARTS[scale]
    return fit_gre(seed, (n_groups, 50, 2), b, {"encoding": encoding}, steps)["gap"]


@experiment(paper="pavi", figure="Stochastic training", title="Training on random parts reaches the bound of the whole")
def stochastic(scale: str, key: int, sweep: Any) -> Result:
    """PAVI-F is unbiased; PAVI-E sees a noisy summary of the groups while training: both measured on all groups.

    Paper scale: about 6 CPU minutes (extrapolated from the quick run: 1.7 times the seeds, 8 times the steps, 5 parts
    in place of 2).
    """
    n_groups, parts, _ = PARTS[scale]
    settings = [(scale, key + i, e, b) for e in ("free", "data") for i in range(N_SEEDS[scale]) for b in parts]
    gaps = np.array(sweep(part_gap, settings)).reshape(2, N_SEEDS[scale], len(parts))
    claims = []
    for name, values in zip(("PAVI-F", "PAVI-E"), gaps, strict=True):
        claims.append(
            Claim.at_most(f"{name}: gap per group, 10 of {n_groups} a step", None, values[:, parts.index(10)], 0.1)
        )
        claims.append(Claim.info(f"{name}: gap per group, all groups a step", None, values[:, -1], unit="nat"))
        if 2 in parts:
            few = values[:, parts.index(2)]
            claims.append(Claim.info(f"{name}: gap per group, 2 of {n_groups} a step", None, few, unit="nat"))
    curves = {name: (parts, values) for name, values in zip(("PAVI-F", "PAVI-E"), gaps, strict=True)}
    figure = draw_curves(curves, "groups a step", "gap per group (nat)", xscale="log", yscale="log")
    caption = f"log p(X) - ELBO on all {n_groups} groups; median and range over {N_SEEDS[scale]} seeds."
    return Result(claims, {"Parts": figure}, DATA, {"Parts": caption})
