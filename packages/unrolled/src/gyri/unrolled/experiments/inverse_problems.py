"""Inverse problems of the paper's first version: inpainting, compressed sensing, deblurring."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from gyri.numerics import linalg
from gyri.reproduce import Claim, Data, Result, experiment

from ..image import restore_image
from ..metrics import psnr
from .setting import photograph, recipe, show_images

SIZES = {"quick": (128, 20), "paper": (128, 300)}  # side, steps
PENALTIES = (0.003, 0.01, 0.03)
SENSED = {"quick": (400, 25), "paper": (2000, 300)}  # samples, steps


def inpaint(setting: tuple[int, int, float, str, int]) -> tuple[float, np.ndarray]:
    """Best PSNR and picture of one method over penalties, for (seed, side, part kept, method, steps)."""
    seed, side, keep, method, max_steps = setting
    truth = photograph(side)
    mask = np.random.default_rng([seed, 4]).random(truth.shape) < keep
    damaged = np.where(mask, truth, np.nan)
    options: dict[str, Any] = {"method": "analysis", "constraint": method}
    penalties: tuple[float, ...] = PENALTIES
    if method == "conv atoms":
        options = {"method": "conv", "patch_size": 8, "n_components": 16, "max_steps": max_steps}
        penalties = (0.01,)
    elif method == "patches":
        options, penalties = {"method": "patch", "patch_size": 8, "epochs": 2}, (0.03,)
    elif method in ("separable", "conv"):
        options |= {"max_steps": max_steps}
        penalties = (0.01,)
    found = [restore_image(damaged, mask=mask, lam=lam, random_state=seed, **options)[0] for lam in penalties]
    best = max(found, key=lambda image: psnr(image, truth))
    return psnr(best, truth), best


METHODS = ("tv", "db4", "haar", "separable", "conv", "patches", "conv atoms")


def sense(setting: tuple[int, int, int, str]) -> dict[str, float]:
    """Relative errors of signals restored from projections or a blur, for (seed, samples, steps, problem)."""
    from ..analysis import AnalysisPrior
    from ..dictionary import DictionaryLearning

    seed, n_samples, max_steps, problem = setting
    rng = np.random.default_rng([seed, 6])
    if problem == "sparse in a dictionary":
        clean = np.asarray(recipe(seed, 30, 40, n_samples)[0])
    else:
        # Jumps anywhere: on a grid, a dictionary of a few boxes would be all that there is to learn.
        jumps = rng.standard_normal((n_samples, 30)) * (rng.random((n_samples, 30)) < 0.1)
        clean = (np.cumsum(jumps, 1) + rng.standard_normal((n_samples, 1))).astype(np.float32)
    each = (rng.standard_normal((n_samples, 15, 30)) / np.sqrt(15)).astype(np.float32)
    y = np.einsum("tij,tj->ti", each, clean) + 0.02 * rng.standard_normal((n_samples, 15)).astype(np.float32)
    error = lambda x: float(np.linalg.norm(x - clean) / np.linalg.norm(clean))
    learned = DictionaryLearning(40, lam=0.05, n_iter=30, init="random", verbose=False, max_steps=4 * max_steps)
    learned.fit(y, operator=each)
    codes = learned.transform(y, operator=each)
    found = {"least squares": error(np.stack([np.linalg.lstsq(A, b, rcond=None)[0] for A, b in zip(each, y)])),
             "synthesis": error(learned.inverse_transform(codes))}  # fmt: skip
    for name in ("unit", "untf", "tv"):
        prior = AnalysisPrior(
            None if name == "tv" else 40, constraint=name, lam=0.05, max_steps=max_steps, verbose=False
        )
        found[name] = error(prior.fit(y, operator=each).transform(y, operator=each, n_iter=500))
    return found


def deblur(setting: tuple[int, int]) -> dict[str, float]:
    """PSNR of a blurred photograph, and of what total variation makes of it, for (seed, side)."""
    from ..analysis import AnalysisPrior

    seed, side = setting
    truth = photograph(side)
    taps = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    blur = linalg.convolution(kernel.astype(np.float32), truth.shape, "same")
    noise = 0.01 * np.random.default_rng([seed, 8]).standard_normal(truth.shape)
    seen = np.asarray(blur.matvec(jnp.asarray(truth))) + noise.astype(np.float32)
    found = {"blurred": psnr(seen, truth)}
    for name, options in (("tv", {"constraint": "tv"}), ("conv", {"constraint": "conv", "kernel_shape": (3, 3)})):
        model = AnalysisPrior(lam=0.002, max_steps=20, verbose=False, **options).fit(seen[None, None], operator=blur)
        found[name] = psnr(model.transform(seen[None, None], operator=blur, n_iter=300)[0, 0], truth)
    return found


@experiment(paper="unrolled", figure="Inverse problems (first version)", title="Inpainting, compressed sensing, blur")
def inverse_problems(scale: str, key: int, sweep: Any) -> Result:
    """Half of a photograph's pixels are missing; priors are learned on the damaged picture alone.

    Fixed priors get the best of three penalties, learned ones one penalty. Compressed sensing: each signal through 15
    Gaussian projections of its own, signals that are sparse in a dictionary, and piecewise constant ones.

    Paper scale: about 20 CPU minutes (extrapolated from the quick run: 15 times the steps, 5 times the samples).
    """
    side, max_steps = SIZES[scale]
    rows = dict(zip(METHODS, sweep(inpaint, [(key, side, 0.5, name, max_steps) for name in METHODS])))
    problems = ("sparse in a dictionary", "piecewise constant")
    sensed = dict(zip(problems, sweep(sense, [(key, *SENSED[scale], name) for name in problems])))
    sharp = sweep(deblur, [(key, 64 if scale == "quick" else side)])[0]
    learned = max(rows["patches"][0], rows["conv atoms"][0])
    fixed = max(rows[name][0] for name in ("tv", "db4", "haar"))
    first, second = (sensed[name] for name in problems)
    claims = [
        *[Claim.info(f"inpainting, half of the pixels: {name}", None, rows[name][0], unit="dB") for name in METHODS],
        Claim.at_least("inpainting: gain of learned atoms over the best fixed prior", "synthesis is more robust",
                       learned - fixed, 1.0, unit="dB"),
        *[Claim.info(f"compressed sensing, {problem}: error of {name}", None, sensed[problem][name])
          for problem in problems for name in sensed[problem]],
        Claim.at_most("sparse in a dictionary: error of synthesis over the best analysis prior", "synthesis is better",
                      first["synthesis"] / min(first[name] for name in ("unit", "untf", "tv")), 1.0),
        Claim.at_most("piecewise constant: error of total variation over synthesis", "analysis works when constrained",
                      second["tv"] / second["synthesis"], 1.0),
        *[Claim.info(f"blur: {name}", None, value, unit="dB") for name, value in sharp.items()],
        Claim.at_least("blur: gain of total variation", None, sharp["tv"] - sharp["blurred"], 0.5, unit="dB"),
    ]  # fmt: skip
    truth = photograph(side)
    mask = np.random.default_rng([key, 4]).random(truth.shape) < 0.5
    pictures = {"truth": truth, "damaged": np.where(mask, truth, 0)}
    pictures |= {f"{name}, {rows[name][0]:.1f} dB": rows[name][1] for name in METHODS}
    captions = {"inpainting": "A photograph of which half the pixels are missing, and how each prior fills them in."}
    data = Data.real("photograph of a flower, scikit-learn, with pixels taken out; simulated signals")
    return Result(claims, {"inpainting": show_images(pictures, 3)}, data, captions)
