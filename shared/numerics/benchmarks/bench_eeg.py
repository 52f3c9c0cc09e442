"""EEG transforms against those of braindecode, on one thread.

    OMP_NUM_THREADS=1 taskset -c 1 python shared/numerics/benchmarks/bench_eeg.py [--quick] [--out FILE.json]

A batch of 64 windows of 3000 samples in float32, of 2 channels, or of 16 where sensors matter. Both get the same
angles, shifts and places where the peer takes them; random results are compared in what they must keep or change.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.numerics import eeg
from gyri.reproduce import bench

SFREQ, N_WINDOWS, N_TIMES = 100.0, 64, 3000
SENSORS = ["Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "F7", "F8", "T7", "T8", "P7", "P8"]
KEY = jax.random.key(0)


def close(tolerance: float) -> Callable[[Any, Any], bool]:
    return lambda ours, peer: bool(np.abs(np.asarray(ours) - peer.numpy()).max() <= tolerance)


def spectra(signals: Any) -> np.ndarray:
    return np.abs(np.fft.rfft(np.asarray(signals), axis=-1))


def cases(n_windows: int) -> dict[str, tuple[Callable, Callable, Callable]]:
    """Name: ours, the peer's, and when both count as equally good."""
    import torch
    from braindecode.augmentation import functional as peer

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    small, large = (rng.normal(size=(n_windows, c, N_TIMES)).astype(np.float32) for c in (2, len(SENSORS)))
    x, x16, y = torch.as_tensor(small), torch.as_tensor(large), torch.zeros(n_windows)
    degrees, delta, center = (
        rng.uniform(-30, 30, n_windows),
        rng.uniform(-2, 2, n_windows),
        rng.uniform(5, 40, n_windows),
    )
    start = rng.uniform(0, N_TIMES - 100, n_windows)
    places = eeg.standard_positions(SENSORS)
    tensor = lambda values: torch.as_tensor(np.asarray(values, np.float32))
    signals, sensors = jnp.asarray(small), jnp.asarray(large)
    turn, by, about, since = (jnp.asarray(values, jnp.float32) for values in (degrees, delta, center, start))

    rotate = jax.jit(lambda x, d: eeg.sensors_rotation(x, places, d, "z"))
    stop = jax.jit(lambda x, c: eeg.bandstop_filter(x, c, SFREQ, 1.0))
    surrogate, shuffle, noise = (jax.jit(f) for f in (eeg.ft_surrogate, eeg.channels_shuffle, eeg.gaussian_noise))
    mask = jax.jit(eeg.smooth_time_mask)
    shift = jax.jit(lambda x, d: eeg.frequency_shift(x, d, SFREQ))

    def stops(ours: Any, other: Any) -> bool:
        at = np.rint(center * N_TIMES / SFREQ).astype(int)
        return all((spectra(s)[np.arange(n_windows), 0, at] < 0.2 * spectra(small).mean()).all() for s in (ours, other))

    return {
        "rotation_z, 16 channels": (
            lambda: rotate(sensors, turn),
            lambda: peer.sensors_rotation(x16, y, tensor(places), "z", tensor(degrees), True)[0],
            close(5e-3),  # the peer solves its spline systems in single precision
        ),
        "bandstop": (
            lambda: stop(signals, about),
            lambda: peer.bandstop_filter(x, y, SFREQ, 1.0, center)[0],
            stops,
        ),
        "ft_surrogate": (
            lambda: surrogate(KEY, signals),
            lambda: peer.ft_surrogate(x, y, 1.0, False, 0)[0],
            lambda ours, other: all(np.abs(spectra(s) - spectra(small))[..., 1:-1].max() < 0.05 for s in (ours, other)),
        ),
        "time_mask": (
            lambda: mask(signals, since, 100.0),
            lambda: peer.smooth_time_mask(x, y, tensor(start), 100)[0],
            close(1e-3),
        ),
        "channels_shuffle, 16 channels": (
            lambda: shuffle(KEY, sensors, 0.5),
            lambda: peer.channels_shuffle(x16, y, 0.5, 0)[0],
            lambda *both: all(np.allclose(np.sort(np.asarray(s), 1), np.sort(large, 1), atol=1e-5) for s in both),
        ),
        "frequency_shift": (
            lambda: shift(signals, by),
            lambda: peer.frequency_shift(x, y, tensor(delta), SFREQ)[0],
            close(5e-3),
        ),
        "gaussian_noise": (
            lambda: noise(KEY, signals, 0.1),
            lambda: peer.gaussian_noise(x, y, 0.1, 0)[0],
            lambda *both: all(abs((np.asarray(s) - small).std() - 0.1) < 1e-3 for s in both),
        ),
    }


def benchmark(table: bench.Table, quick: bool) -> None:
    warnings.filterwarnings("ignore")  # the peer's, about montages and precision
    for name, (ours, peer, check) in cases(8 if quick else N_WINDOWS).items():
        table.add(name, bench.paired(ours, peer, check=check, n_rounds=3 if quick else 10))


if __name__ == "__main__":
    raise SystemExit(bench.main(benchmark, title="Differentiable EEG transforms", peers=["braindecode", "torch"]))
