"""EEG with eyes open and closed: one subject, one gain."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..eeg import alpha_waves_observation, bandpass, load_alpha_waves
from ..jansen_rit import JansenRit
from ..simulation import Simulations
from ..summaries import log_psd
from .setting import draw, fixed, train

MODEL = JansenRit()
MAF = (("density_estimator", "maf"),)
CLOSED, OPEN = (135.0, 220.0, 2000.0), (135.0, 220.0, 500.0)
# Simulations, epochs, subjects (stand-ins, for one network, at quick scale).
SIZES = {"quick": (1_000, 40, 5), "paper": (50_000, 200, 19)}


def filtered_psd(x: Any) -> Any:
    """Summary of recordings and simulations alike: both go through the same filter."""
    x = bandpass(x, MODEL.sfreq, 3.0, 40.0)
    return log_psd(x - x.mean(-1, keepdims=True))[..., 1:22]  # bins of the band, 2 to 41 Hz


def stand_in(seed: int, gain: float) -> tuple[Any, Any]:
    """Summaries of five simulated recordings with eyes closed and five with eyes open."""
    both = [
        fixed(MODEL, (*theta, gain), 40 + 2 * seed + i, 5, 0, filtered_psd).x for i, theta in enumerate((CLOSED, OPEN))
    ]
    return both[0], both[1]


def real(subject: int) -> tuple[Any, Any]:
    """Summaries of a subject's recordings."""
    epochs = load_alpha_waves(subject)
    x, x_extra = alpha_waves_observation(epochs, l_freq=None, h_freq=None, context="closed")
    first_open, other_open = alpha_waves_observation(epochs, l_freq=None, h_freq=None, x0_event="open", context="open")
    return tuple(filtered_psd(jnp.asarray(v)) for v in (np.vstack([x, x_extra]), np.vstack([first_open, other_open])))  # type: ignore[return-value]


def draws_of(setting: tuple[str, int, int, bool]) -> dict[str, np.ndarray]:
    """Posterior draws given the first recording of each state, alone and with all others."""
    scale, network, seed, use_real = setting
    n_simulations, epochs, _ = SIZES[scale]
    posterior = train(MODEL, filtered_psd, network, n_simulations, (0, 9), epochs, MAF)
    closed, opened = real(1 + seed) if use_real else stand_in(seed, 5.0)
    found = {}
    for name, x, same, other in (("closed", closed[0], closed[1:], opened), ("open", opened[0], opened[1:], closed)):
        for context, extra in (("none", same[:0]), ("same state", same), ("all", jnp.concatenate([same, other]))):
            sims = Simulations(jnp.zeros((1, 4)), x[None], extra[None], jnp.ones((1, len(extra)), bool))
            found[f"{name}, {context}"] = draw(posterior, seed, sims)[0]
    return found


@experiment(paper="hnpe", figure="EEG", title="EEG: eyes open and closed share their gain")
def alpha_waves(scale: str, key: int, sweep: Any) -> Result:
    """First recording of each state, with none, the same state's or all other recordings of the subject.

    Paper scale: about 10 CPU minutes (extrapolated from the quick run: 1 network with 50 times the simulations, for 19
    subjects); needs the alpha waves dataset, or takes 3 CPU hours on simulated recordings.
    """
    use_real, why = False, "the alpha waves dataset, downloaded at --scale paper"
    if scale == "paper":
        try:
            real(1)
            use_real = True
        except Exception as error:  # whatever keeps a download from succeeding is shown in the report
            why = f"the alpha waves dataset: {str(error).splitlines()[0]}"
    n_runs = SIZES[scale][2]
    seeds = range(key, key + n_runs)
    networks = [0] * n_runs if use_real else [key] * n_runs if scale == "quick" else seeds
    runs = sweep(draws_of, [(scale, network, seed, use_real) for network, seed in zip(networks, seeds, strict=True)])
    mean = lambda name, i: np.array([run[name][:, i].mean() for run in runs])
    sd = lambda name, i: np.array([run[name][:, i].std() for run in runs])
    gap = np.abs(mean("closed, all", 3) - mean("open, all", 3)) / np.maximum(sd("closed, all", 3), sd("open, all", 3))
    apart = (mean("closed, all", 2) - mean("open, all", 2)) / np.sqrt(
        sd("closed, all", 2) ** 2 + sd("open, all", 2) ** 2
    )
    claims = [
        Claim.at_most("gain: difference between states, in sd", "agrees", gap, 1.5),
        Claim.at_least("sigma: difference between states, in sd", "separates", apart, 0.5),
        Claim.at_most(
            "sd of the gain with all recordings over none", "shrinks", sd("closed, all", 3) / sd("closed, none", 3), 1.0
        ),
    ]
    data = Data.real("alpha waves") if use_real else Data.stand_in(for_=why, used="ten simulated recordings, gain 5 dB")
    from ..plot import pairplot

    sets = {name: runs[0][name] for name in ("closed, all", "open, all")}
    pairs, _ = pairplot(sets, MODEL.prior.names, list(zip(*MODEL.prior.bounds, strict=True)))
    return Result(claims, {"States": pairs}, data, {"States": "Draws given all recordings, one run."})
