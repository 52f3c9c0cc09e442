"""The paper's clinical examples, whose recordings are private: their settings on simulated patients."""

from typing import Any

import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..datasets import simulate_nystagmus
from ..metrics import pattern_correlation

SFREQ = 1000.0
# Segments, samples, atoms, length of an atom, reg, weight of the trend, frequency: the last one is ours.
PATIENTS = {"A": (6, 1200, 3, 200, 0.7, 0.2, 6.0), "B": (9, 3500, 3, 500, 0.2, 0.1, 3.5)}
N_DRAWS = {"quick": 2, "paper": 5}  # simulated patients for each
SMOOTHING = 21  # samples of the Hann window


def fit_patient(setting: tuple[str, int, int]) -> tuple[float, Any, np.ndarray]:
    """Best correlation among the atoms of one simulated patient, the model, and the pattern."""
    from ..estimator import NystagmusCDL

    name, seed, max_iter = setting
    n_segments, n_times, n_atoms, length, reg, mu, frequency = PATIENTS[name]
    about: dict[str, Any] = {"kind": "jerk_sf_up" if name == "A" else "pendular", "frequency": frequency}
    about |= {"nystagmus_std": 3.0, "saccade_std": 2.0, "slow_std": 1.0, "curvature": 0.5}  # fixation: little else
    data = simulate_nystagmus(np.random.default_rng([seed, ord(name)]), n_segments, n_times, SFREQ, **about)
    x = data.recording
    if name == "A":
        taper = np.hanning(SMOOTHING + 2)[1:-1]
        x = np.apply_along_axis(np.convolve, -1, x, taper / taper.sum(), "same")
    model = NystagmusCDL(
        n_atoms,
        n_times_atom=length,
        sfreq=SFREQ,
        reg=reg,
        trend_reg=mu,
        normalize="l2",
        max_iter=max_iter,
        tol_final=1e-2,  # the atoms are looked at, not the codes
    ).fit(x)
    return float(pattern_correlation(data.pattern[0], model.atoms_[:, 0]).max()), model, data.pattern[0]


@experiment(paper="nystagmus", figure="Clinical examples", title="The settings of two patients, on simulated ones")
def clinical(scale: str, key: int, sweep: Any) -> Result:
    """Segments as trials, each centred and divided by its norm; three atoms, sparsity and trend as in the authors'.

    The recordings are not published. Simulated patients stand for them, two each (paper scale: five): a jerk at 6 Hz
    and a pendular movement at 3.5 Hz under small saccades. `gyri.nystagmus.datasets.load_eyefant` reads the device's
    own files.

    Paper scale: about 10 CPU minutes (extrapolated from the quick run: 2.5 times the patients, up to 5
    times the iterations).
    """
    max_iter = 20 if scale == "quick" else 100
    settings = [(name, key + i, max_iter) for name in PATIENTS for i in range(N_DRAWS[scale])]
    runs = dict(zip(settings, sweep(fit_patient, settings), strict=True))
    claims = []
    for name in PATIENTS:
        scores = [runs[setting][0] for setting in settings if setting[0] == name]
        claims.append(
            Claim.at_least(f"patient {name}: correlation of the best atom", "shown, not measured", scores, 0.8)
        )
    from matplotlib.figure import Figure

    figures = {}
    for name in PATIENTS:
        canvas = Figure(figsize=(9, 2.6), layout="constrained")
        runs[(name, key, max_iter)][1].plot_atoms(canvas.subplots(1, 3))
        figures[f"Patient {name}"] = canvas
    captions = {
        f"Patient {name}": f"Atoms of the first simulated patient {name}, at their median size." for name in PATIENTS
    }
    data = Data.stand_in(
        for_="the paper's recordings of two patients", used=f"simulated nystagmus, {N_DRAWS[scale]} patients each"
    )
    return Result(claims, figures, data, captions)
