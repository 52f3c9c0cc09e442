"""From raw channels to stimuli: a simulated EEG by MNE's forward model, its dictionary learned, its responses found."""

from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from gyri.reproduce import Claim, Data, Result, experiment

from ..estimator import DriPP
from ..recording import RawEvents, events_from_raw
from .recordings import draw_intensities
from .synthetic_meg import (
    DRIVERS,
    DURATION,
    EVOKED,
    PUBLISHED,
    SFREQ,
    WINDOW,
    make_drivers,
    make_events,
    make_waveforms,
)

SOURCES = ("spontaneous", "blink", "auditory", "visual")
# Of each source: direction from the centre of the head (right, front, up), depth as a part of the radius, orientation.
DIPOLES = (
    ((0.3, -0.1, 0.9), 0.60, (0.0, 1.0, 0.0)),
    ((0.0, 1.0, -0.1), 0.85, (0.0, 1.0, 0.5)),
    ((0.9, 0.0, 0.2), 0.60, (0.0, 0.3, 1.0)),
    ((0.0, -1.0, 0.2), 0.70, (0.0, -1.0, 0.3)),
)
N_CHANNELS, N_ATOMS, ATOM_DURATION = 60, 6, 0.5  # more atoms than sources, as where their number is not known
NOISE = 1e-6  # V
SIZE, THRESHOLD = 8.0, 4.5  # of the activations and of the smallest that counts, in standard deviations of the noise


class Simulated(NamedTuple):
    """A recording and what it was made of.

    Attributes
    ----------
    raw : mne.io.RawArray
        60 channels of EEG, in volts.
    drivers : dict of np.ndarray
        Stimuli, in seconds.
    spatial : np.ndarray, shape (4, 60)
        Topographies of the sources, of unit norm.
    """

    raw: Any
    drivers: dict[str, np.ndarray]
    spatial: Float[np.ndarray, "n_sources n_channels"]


def simulate_topographies() -> tuple[Any, Float[np.ndarray, "n_sources n_channels"]]:
    """Fields of four current dipoles at the electrodes of a montage, in a head of three spheres.

    Returns
    -------
    info : mne.Info
        Electrodes with their positions.
    spatial : np.ndarray, shape (4, 60)
        Of unit norm, against the average reference.
    """
    import mne

    montage = mne.channels.make_standard_montage("biosemi64")
    info = mne.create_info(montage.ch_names[:N_CHANNELS], SFREQ, "eeg", verbose="error")
    info.set_montage(montage, verbose="error")
    head = mne.make_sphere_model("auto", "auto", info, verbose="error")
    radius = head["layers"][0]["rad"]
    unit = lambda vector: np.array(vector) / np.linalg.norm(vector)
    places = np.array([head["r0"] + depth * radius * unit(direction) for direction, depth, _ in DIPOLES])
    orientations = np.array([unit(orientation) for *_, orientation in DIPOLES])
    n = len(DIPOLES)
    dipoles = mne.Dipole(
        np.arange(n) / SFREQ, places, np.full(n, 1e-8), orientations, np.full(n, 100.0), verbose="error"
    )
    forward, _ = mne.make_forward_dipole(dipoles, head, info, verbose="error")
    gain = forward["sol"]["data"].T
    gain = gain - gain.mean(1, keepdims=True)
    return info, gain / np.linalg.norm(gain, axis=1, keepdims=True)


def simulate_raw(seed: int, duration: float = DURATION) -> Simulated:
    """Simulate a recording whose sources have the published parameters of atoms.

    Parameters
    ----------
    seed : int
        Seed of everything random.
    duration : float
        Seconds, at most those of the MNE sample recording.

    Returns
    -------
    Simulated
        The recording, stimuli and topographies.
    """
    import mne

    rng = np.random.default_rng([seed, 60])
    info, spatial = simulate_topographies()
    drivers, waves = make_drivers(rng), make_waveforms()
    events = make_events(rng, drivers)
    n_times = round(duration * SFREQ)
    x = rng.standard_normal((N_CHANNELS, n_times))
    for topography, wave, times in zip(spatial, waves, events, strict=True):
        z = np.zeros(n_times + wave.size)
        start = np.rint(times * SFREQ).astype(int) - np.abs(wave).argmax()
        start = start[(start >= 0) & (start < n_times)]
        np.add.at(z, start, SIZE * rng.lognormal(0, 0.25, start.size))
        x += topography[:, None] * np.convolve(z, wave)[:n_times]
    raw = mne.io.RawArray(NOISE * x, info, verbose="error")
    kept = {name: times[times < duration] for name, times in zip(DRIVERS, drivers, strict=True)}
    return Simulated(raw, kept, spatial)


class Found(NamedTuple):
    """What the pipeline finds of the four sources; `atom` (4,) is the atom that has a source's topography."""

    atom: np.ndarray
    similarity: np.ndarray
    alpha: np.ndarray
    m: np.ndarray
    sigma: np.ndarray
    pvalue: np.ndarray


def match(spatial: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Atom for each source by the topography, signs ignored, and its absolute cosine."""
    from scipy.optimize import linear_sum_assignment

    cosine = np.abs(truth @ spatial.T)
    _, atom = linear_sum_assignment(-cosine)
    return atom, np.take_along_axis(cosine, atom[:, None], 1)[:, 0]


def run_pipeline(seed: int, duration: float = DURATION, n_resamples: int = 199) -> tuple[RawEvents, Found, DriPP]:
    """Learn atoms from a simulated recording, fit the driven process to their events, and test every driver.

    Parameters
    ----------
    seed : int
        Of the recording and of the dictionary.
    duration : float
        Seconds.
    n_resamples : int
        Of the test.

    Returns
    -------
    (RawEvents, Found, DriPP)
        Atoms and events, estimates of the four sources, the model.
    """
    raw, drivers, truth = simulate_raw(seed, duration)
    events = events_from_raw(
        raw, N_ATOMS, ATOM_DURATION, threshold=THRESHOLD * NOISE, max_iter=40, key=seed, progress=False
    )
    atom, similarity = match(events.spatial, truth)
    with jax.enable_x64(True):
        model = DriPP(**WINDOW, sfreq=events.sfreq)
        model.fit([events.events[k] for k in atom], drivers, t_stop=events.t_stop)
        pvalue = np.asarray(model.test(n_resamples=n_resamples, key=seed).pvalue)
    alpha, m, sigma = (np.asarray(leaf) for leaf in (model.alpha_, model.m_, model.sigma_))
    return events, Found(atom, similarity, alpha, m, sigma, pvalue), model


def find_sources(item: tuple[int, int]) -> Found:
    """Run the pipeline for a seed and a number of resamples."""
    return run_pipeline(item[0], n_resamples=item[1])[1]


@experiment(paper="dripp", figure="From raw, in addition", title="Raw EEG in, responses to stimuli out")
def raw_pipeline(scale: str, key: int, sweep: Any) -> Result:
    """Four dipoles in a head of three spheres, 60 electrodes, 278 s at 150 Hz, noise; nothing else is told.

    Two sources answer to stimuli, with the published alpha, latency and jitter of the MNE sample data; one is
    spontaneous, one blinks. `events_from_raw` learns six atoms, and `DriPP` is fitted to their events. An atom is
    named after the source whose topography it has.

    Paper scale: about 20 CPU minutes (extrapolated from the quick run: 7 times the seeds, 5 times the resamples).
    """
    if find_spec("mne") is None:
        missing = [Claim.not_run("latency after tones", 86.0, unit="ms")]
        return Result(missing, {}, Data.missing(needs='MNE: pip install "gyri-dripp[mne]"'))
    seeds, n_resamples = (range(key, key + 3), 199) if scale == "quick" else (range(key, key + 20), 999)
    events, one, model = run_pipeline(key, n_resamples=n_resamples)  # drawn below, too
    found = [one, *sweep(find_sources, [(seed, n_resamples) for seed in seeds[1:]])]
    stacked = Found._make(np.stack(leaves) for leaves in zip(*found, strict=True))
    claims = [
        Claim.at_least(f"cosine of the {name} source's topography with its atom's", 1.0, stacked.similarity[:, k], 0.95)
        for k, name in enumerate(SOURCES)
    ]
    for atom, driver in EVOKED:
        name = SOURCES[atom]
        m, alpha, sigma = (values[:, atom, driver] for values in (stacked.m, stacked.alpha, stacked.sigma))
        true_m, true_alpha = PUBLISHED.m[atom, driver], PUBLISHED.alpha[atom, driver]
        claims += [
            Claim.close(f"latency, {name} source", 1e3 * true_m, 1e3 * m, atol=10.0, unit="ms"),
            Claim.close(f"alpha, {name} source", true_alpha, alpha, atol=0.2 * true_alpha),
            Claim.info(f"jitter, {name} source", 1e3 * PUBLISHED.sigma[atom, driver], 1e3 * sigma, unit="ms"),
            Claim.at_most(
                f"p, {name} source after {DRIVERS[driver]} stimuli", 0, stacked.pvalue[:, atom, driver], 0.01
            ),
        ]
    for atom, source in enumerate(SOURCES):
        for driver, name in enumerate(DRIVERS):
            if (atom, driver) not in EVOKED:
                p = stacked.pvalue[:, atom, driver]
                claims.append(Claim.at_least(f"p, {source} source after {name} stimuli (no effect)", None, p, 0.05))
    figures = {"Atoms": events.plot_atoms(one.atom.tolist()), "Rates": draw_intensities(model, range(len(SOURCES)))}
    order = ", ".join(SOURCES)
    captions = {
        "Atoms": f"As learned from one recording: {order}.",
        "Rates": f"After a stimulus, the same atoms: {order}.",
    }
    data = Data.simulated(f"{len(found)} recordings of EEG by MNE's forward model, 60 channels, 278 s")
    return Result(claims, figures, data, captions)
