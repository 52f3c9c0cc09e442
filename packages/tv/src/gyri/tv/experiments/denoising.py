"""In addition to the paper: the exact operator's derivatives, and pictures denoised with it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..prox import prox_tv1d, prox_tv2d

NOISE = 0.1  # of the range of the picture
PENALTIES = (0.02, 0.03, 0.04, 0.06, 0.09)


def picture(scale: str) -> np.ndarray:
    """A grey photograph in [0, 1] that scikit-learn ships; its middle at quick scale."""
    from sklearn.datasets import load_sample_image

    grey = load_sample_image("china.jpg").mean(-1) / 255
    return grey[40:296, 200:456] if scale == "quick" else grey


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal to noise ratio in dB, of pictures in [0, 1]."""
    return float(-10 * np.log10(np.mean(np.square(image - truth))))


def derivatives(seed: int) -> tuple[float, float]:
    """Largest error of the gradients against central differences, and of symmetry and idempotence of the Jacobian."""
    rng = np.random.default_rng([seed, 1])
    x, c, lam, step = rng.standard_normal(200), rng.standard_normal(200), 0.7, 1e-6
    with jax.enable_x64(True):
        value = jax.jit(lambda x, lam: jnp.vdot(c, prox_tv1d(x, lam)))
        in_x, in_lam = jax.grad(value, (0, 1))(x, lam)
        moved = step * np.eye(x.size)
        rows = jax.jit(jax.vmap(value, (0, None)))
        numeric = (rows(x + moved, lam) - rows(x - moved, lam)) / (2 * step)
        numeric_lam = (value(x, lam + step) - value(x, lam - step)) / (2 * step)
        jacobian = np.asarray(jax.jacrev(prox_tv1d)(x, lam))
    gradient = max(np.abs(in_x - numeric).max(), abs(float(in_lam - numeric_lam)))
    algebra = max(np.abs(jacobian - jacobian.T).max(), np.abs(jacobian @ jacobian - jacobian).max())
    return float(gradient), float(algebra)


def denoise(setting: tuple[np.ndarray, int]) -> tuple[np.ndarray, np.ndarray, float]:
    """A noisy picture, the best of the denoised ones and its penalty, for (picture, seed)."""
    truth, seed = setting
    noisy = truth + NOISE * np.random.default_rng([seed, 2]).standard_normal(truth.shape)
    found = [(np.asarray(prox_tv2d(noisy.astype(np.float32), lam, tol=1e-4)), lam) for lam in PENALTIES]
    best, lam = max(found, key=lambda item: psnr(item[0], truth))
    return noisy, best, lam


@experiment(paper="tv", figure="In addition", title="Exact derivatives; a picture denoised by total variation")
def denoising(scale: str, key: int, sweep: Any) -> Result:
    """Three draws (paper: five): signals of 200 samples against central differences; white noise on a photograph.

    Paper scale: about 2 CPU minutes (extrapolated from the quick run: 4 times the pixels, 1.7 times the
    draws).
    """
    truth, n_draws = picture(scale), {"quick": 3, "paper": 5}[scale]
    gradient, algebra = np.transpose(sweep(derivatives, [key + seed for seed in range(n_draws)]))
    results = sweep(denoise, [(truth, key + seed) for seed in range(n_draws)])
    before, after = (np.array([psnr(result[i], truth) for result in results]) for i in (0, 1))
    claims = [
        Claim.at_most("gradient in x and lam against central differences, largest error", None, gradient, 1e-6),
        Claim.at_most("Jacobian: largest error of symmetry and idempotence", None, algebra, 1e-12),
        Claim.info("PSNR of the noisy picture", None, before, unit="dB"),
        Claim.at_least("PSNR gained by prox_tv2d, best of five penalties", None, after - before, 5.0, unit="dB"),
    ]
    noisy, best, lam = results[0]
    figure = _pictures({
        "truth": truth,
        f"noisy, {before[0]:.1f} dB": noisy,
        f"TV, lam = {lam}, {after[0]:.1f} dB": best,
    })  # fmt: skip
    captions = {"picture": "A photograph, with white noise, and denoised by anisotropic total variation."}
    return Result(claims, {"picture": figure}, Data.real("photograph of scikit-learn, simulated noise"), captions)


def _pictures(images: dict[str, np.ndarray]) -> Any:
    from matplotlib.figure import Figure

    height, width = next(iter(images.values())).shape
    figure = Figure(figsize=(9, 9 / 3 * height / width + 0.4), layout="constrained")
    for ax, (title, image) in zip(figure.subplots(1, 3), images.items()):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize="medium")
        ax.set_axis_off()
    return figure
