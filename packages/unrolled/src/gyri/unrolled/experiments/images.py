"""Figure 5: images restored with what is learned on them alone."""

from functools import lru_cache
from typing import Any

import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..image import restore_image
from ..metrics import psnr, recovery_score
from .setting import mark, new_figure, photograph, show_images

NOISE = 0.1
SIZES = {"quick": (128, 1, (5, 20)), "paper": (128, 5, (1, 2, 5, 10, 20, 50, 100))}
CONV = {"quick": (64, 16, 2, 25), "paper": (128, 50, 50, 300)}  # side, atoms, starts, steps
LEVEL = {"patch": 0.2, "conv": 0.2}
PENALTIES = (0.02, 0.05, 0.1)


def damaged(seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The photograph, and the same with noise."""
    truth = photograph(side)
    return truth, (truth + NOISE * np.random.default_rng([seed, 3]).standard_normal(truth.shape)).astype(np.float32)


@lru_cache(maxsize=8)
def best_fixed(seed: int, side: int, constraint: str) -> np.ndarray:
    """The picture of a fixed prior at its best penalty: the same for all numbers of iterations."""
    truth, noisy = damaged(seed, side)
    found = [restore_image(noisy, method="analysis", constraint=constraint, lam=lam)[0] for lam in PENALTIES]
    return max(found, key=lambda image: psnr(image, truth))


def denoise(setting: tuple[int, int, int]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """PSNR and pictures of methods, for (seed, side, iterations)."""
    seed, side, n_iter = setting
    truth, noisy = damaged(seed, side)
    pictures = {"truth": truth, "noisy": noisy}
    for name, estimator in (("AM", "g1"), ("DDL", "g2")):
        restored, _ = restore_image(
            noisy, method="patch", lam=LEVEL["patch"], n_iter=n_iter, estimator=estimator, epochs=1, random_state=seed
        )
        pictures[name] = restored
    for name in ("tv", "db4"):
        pictures[name] = best_fixed(seed, side, name)
    return {name: psnr(image, truth) for name, image in pictures.items() if name != "truth"}, pictures


def starts(setting: tuple[int, int, int, int, int]) -> tuple[float, np.ndarray]:
    """PSNR and atoms of one random start of convolutional learning, for (seed, start, side, atoms, steps)."""
    seed, start, side, n_atoms, max_steps = setting
    truth, noisy = damaged(seed, side)
    restored, model = restore_image(
        noisy, lam=LEVEL["conv"], patch_size=8, n_components=n_atoms, random_state=start, max_steps=max_steps,
        init="random",
    )  # fmt: skip
    return psnr(restored, truth), model.components_


@experiment(paper="unrolled", figure="Figure 5", title="Images denoised with what is learned on them")
def images(scale: str, key: int, sweep: Any) -> Result:
    """Photograph of a flower, white noise of 0.1: patches by iterations; convolutional atoms from random starts.

    Images come from codes solved to a tolerance at the learned atoms. Fixed priors at their best penalty beside them.

    Paper scale: about 15 CPU hours, a GPU is advised (extrapolated from the quick run: 300 times the steps of
    convolutional atoms, 4 times the pixels, 3 times the atoms).
    """
    side, n_seeds, depths = SIZES[scale]
    conv_side, n_atoms, n_starts, max_steps = CONV[scale]
    runs = {n: sweep(denoise, [(key + i, side, n) for i in range(n_seeds)]) for n in depths}
    found = sweep(starts, [(key, i, conv_side, n_atoms, max_steps) for i in range(n_starts)])
    values = {n: {name: np.array([run[0][name] for run in rows]) for name in rows[0][0]} for n, rows in runs.items()}
    alike = [recovery_score(a[1], b[1]) for i, a in enumerate(found) for b in found[:i]]
    deep = max(depths)
    claims = [
        Claim.info("noisy", None, values[deep]["noisy"], unit="dB"),
        *[Claim.info(f"patches, {name}, N = {n}", None, values[n][name], unit="dB")
          for n in depths for name in ("AM", "DDL")],
        Claim.at_least("gain of patches, DDL, N = 20", None, values[20]["DDL"] - values[20]["noisy"], 6.0, unit="dB"),
        Claim.info("total variation, best of three penalties", None, values[deep]["tv"], unit="dB"),
        Claim.info("wavelets (db4), best of three penalties", None, values[deep]["db4"], unit="dB"),
        Claim.between("convolutional atoms, random starts", "axis of 21 to 25 dB", [f[0] for f in found], 21.0, 27.0,
                      unit="dB"),
        Claim.at_most("largest difference between starts", "small", float(np.ptp([f[0] for f in found])), 1.0,
                      unit="dB"),
        Claim.between("recovery between two starts", "axis of 0.7 to 0.9", alike, 0.5, 0.95),
    ]  # fmt: skip
    scores, pictures = runs[deep][0]
    titles = {f"{name}, {scores[name]:.1f} dB" if name in scores else name: image for name, image in pictures.items()}
    figure, (ax,) = new_figure(1, 4)
    for i, name in enumerate(("AM", "DDL")):
        ax.semilogx(depths, [np.median(values[n][name]) for n in depths], "o-", color=f"C{i}", label=name)
    mark(ax, depths)
    ax.set(xlabel="iterations N", ylabel="PSNR (dB)")
    ax.legend(frameon=False)
    captions = {"pictures": "A photograph with noise, and what each method makes of it.",
                "depth": "PSNR of patches against the iterations in learning."}  # fmt: skip
    return Result(claims, {"pictures": show_images(titles, 3), "depth": figure},
                  Data.real("photograph of a flower, scikit-learn; simulated noise"), captions)  # fmt: skip
