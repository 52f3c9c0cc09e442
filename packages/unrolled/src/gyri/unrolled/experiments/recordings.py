"""Figure 7 and table 1: rank-one atoms of MEG, learned from windows of a recording."""

import time
from typing import Any

import numpy as np

from gyri.numerics.csc import align_atoms
from gyri.reproduce import Claim, Data, Result, experiment

from ..plot import plot_atoms
from .setting import new_figure

N_SEEDS = {"quick": 1, "paper": 10}
N_CHANNELS, LENGTH, N_PLANTED = 20, 60, 3


def plant(seed: int, n_times: int = 12_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recording with three sparse events of rank one in noise, their topographies and waveforms."""
    rng = np.random.default_rng([seed, 7])
    t = np.linspace(0, 1, LENGTH)
    spatial = rng.standard_normal((N_PLANTED, N_CHANNELS))
    temporal = np.stack([
        np.sin(2 * np.pi * 2 * t) * np.hanning(LENGTH), np.sin(2 * np.pi * 6 * t) * np.hanning(LENGTH),
        np.exp(-t / 0.15) * np.sin(2 * np.pi * 4 * t),
    ])  # fmt: skip
    spatial /= np.linalg.norm(spatial, axis=1, keepdims=True)
    temporal /= np.linalg.norm(temporal, axis=1, keepdims=True)
    n = n_times - LENGTH + 1
    codes = (rng.random((N_PLANTED, n)) < 0.003) * (4 + rng.random((N_PLANTED, n)))
    signal = sum(u[:, None] * np.convolve(z, v)[None] for u, z, v in zip(spatial, codes, temporal))
    return 1e-12 * (signal + 0.2 * rng.standard_normal((N_CHANNELS, n_times))), spatial, temporal


def fit_planted(setting: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, float, Any]:
    """Scores of topographies and waveforms, seconds, and the model, for (seed, minibatches an epoch)."""
    from ..conv import ConvDictionaryLearning

    seed, per_epoch = setting
    X, spatial, temporal = plant(seed)
    model = ConvDictionaryLearning(
        8, LENGTH, lam=0.1, lam_is_ratio=True, rank1=True, n_iter=30, window_length=500, batch_size=10,
        iterations_per_epoch=per_epoch, random_state=seed, verbose=False,
    )  # fmt: skip
    begin = time.perf_counter()
    model.fit(X)
    seconds = time.perf_counter() - begin
    truth = (spatial[:, :, None] * temporal[:, None]).astype(np.float32)
    order = align_atoms(model.components_, truth)[0]
    topographies = np.abs(np.sum(model.spatial_[order] * spatial, 1))
    waveforms = align_atoms(model.temporal_[order][:, None], temporal[:, None].astype(np.float32))[3]
    return topographies, np.asarray(waveforms), seconds, model


def load_sample() -> Any:
    """Gradiometers of the MNE sample recording, filtered as in the paper; None where it is not on this machine."""
    import mne

    folder = mne.datasets.sample.data_path(download=False, verbose="error")
    if not folder.name:
        return None
    path = folder / "MEG" / "sample" / "sample_audvis_raw.fif"
    raw = mne.io.read_raw_fif(path, preload=True, verbose="error").pick("grad")
    raw.notch_filter([60, 120, 180], verbose="error").filter(2, None, verbose="error")
    return raw.resample(150, verbose="error")


def fit_sample() -> tuple[Any, float]:
    """Model and seconds of the paper's settings on the sample recording."""
    from ..conv import ConvDictionaryLearning

    raw = load_sample()
    model = ConvDictionaryLearning(
        40, 150, lam=0.3, lam_is_ratio=True, rank1=True, n_iter=30, window_length=1000, batch_size=20, window="tukey",
        verbose=False,
    )  # fmt: skip
    begin = time.perf_counter()
    return model.fit(raw), time.perf_counter() - begin


def heartbeats(seed: int) -> tuple[float, np.ndarray]:
    """How alike the beats of an electrocardiogram and the best of four atoms are, and the atoms."""
    import pywt

    from ..conv import ConvDictionaryLearning

    x = np.asarray(pywt.data.ecg(), float)
    x = x - x.mean()
    model = ConvDictionaryLearning(
        4, 60, lam=0.1, lam_is_ratio=True, n_iter=30, max_steps=60, random_state=seed, verbose=False
    )
    model.fit(x[None, None])
    peaks = [p for p in np.flatnonzero(x > 0.6 * x.max()) if x[p] == x[max(p - 40, 0) : p + 40].max()]
    beats = np.stack([x[p - 10 : p + 11] for p in peaks if 10 <= p < x.size - 11]).mean(0)
    scores = align_atoms(model.components_, (beats / np.linalg.norm(beats))[None, None].astype(np.float32))[3]
    return float(scores[0]), model.components_[:, 0]


@experiment(paper="unrolled", figure="Figure 7, table 1", title="Rank-one atoms of recordings", timed=True)
def recordings(scale: str, key: int, sweep: Any) -> Result:
    """Three planted events in 20 channels, 8 atoms learned from windows; an electrocardiogram; MEG where it is there.

    The paper's MEG recording (`mne.datasets.sample`) is used where it was downloaded before. Its table scores against
    atoms picked by hand out of another package's, and its values are not known to us.

    Paper scale: about 5 CPU minutes (extrapolated from the quick run: 10 times the seeds, 2.5 times the minibatches);
    as long again where it finds the MNE sample data, 1.5 GB.
    """
    from importlib.util import find_spec

    runs = sweep(fit_planted, [(key + i, 12 if scale == "quick" else 30) for i in range(N_SEEDS[scale])])
    topographies, waveforms = (np.array([run[i].min() for run in runs]) for i in (0, 1))
    beats = sweep(heartbeats, [key + i for i in range(N_SEEDS[scale])])
    claims = [
        Claim.at_least("planted events: least cosine of a topography", None, topographies, 0.95),
        Claim.at_least("planted events: least correlation of a waveform", None, waveforms, 0.9),
        Claim.info("time of a fit with compilation, 12 000 samples of 20 channels", None, [run[2] for run in runs],
                   unit="s"),
        Claim.at_least("electrocardiogram: correlation of the beat and an atom", None, [b[0] for b in beats], 0.9),
    ]  # fmt: skip
    sample = find_spec("mne") is not None and load_sample() is not None
    figures = {"planted": plot_atoms(runs[0][3])}
    captions = {"planted": "Atoms learned from the simulated recording: topographies and waveforms."}
    figure, (ax,) = new_figure(1, 5)
    ax.plot(beats[0][1].T, linewidth=1.2)
    ax.set(xlabel="sample", title="atoms of an electrocardiogram")
    figures["heartbeats"], captions["heartbeats"] = figure, "Four atoms of an electrocardiogram."
    what = "MEG, mne.datasets.sample"
    if sample and scale == "paper":
        model, seconds = fit_sample()
        claims.append(Claim.at_most("MEG: time of the fit", "10 min on a V100", seconds, 600.0, unit="s"))
        figures["meg"], captions["meg"] = plot_atoms(model), "Atoms of the MEG recording."
        return Result(
            claims, figures, Data.real(f"{what}, electrocardiogram of PyWavelets; simulated events"), captions
        )
    claims.append(Claim.not_run("MEG: time of the fit", "10 min on a V100", unit="s"))
    used = "simulated recordings with planted atoms, and the electrocardiogram of PyWavelets"
    return Result(claims, figures, Data.stand_in(for_=what, used=used), captions)
