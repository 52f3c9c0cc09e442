"""Convolutional sparse coding and dictionary learning against alphacsc and sporco.

    OMP_NUM_THREADS=1 python shared/numerics/benchmarks/bench_csc.py [--quick] [--out FILE.json]

One signal of 20 000 samples, three atoms of 64 samples at sparse times in noise; float64, the same data, level and
start for all. Ours has to reach an objective at least as low as the peer's (for atoms: within a thousandth) before it
is timed.
"""

import time
import warnings
from typing import Any

import jax
import numpy as np

from gyri.numerics import csc
from gyri.reproduce import bench

N_ATOMS, N_TIMES_ATOM, DENSITY, NOISE = 3, 64, 0.002, 0.1
TIE = 1e-3  # both still move when they stop: objectives of atoms this close count as equal


def make(n_times: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Signal and true atoms."""
    rng = np.random.default_rng(seed)
    t = np.arange(N_TIMES_ATOM) / N_TIMES_ATOM
    waves = ((2, 0.0, 1.0), (4, 1.0, 1.0), (1, 0.5, 0.5))
    atoms = np.stack([np.sin(2 * np.pi * f * t + phase) * np.hanning(t.size) ** power for f, phase, power in waves])
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    shape = (N_ATOMS, n_times - N_TIMES_ATOM + 1)
    codes = (rng.random(shape) < DENSITY) * rng.uniform(1, 3, shape)
    signal = sum(np.convolve(z, d) for z, d in zip(codes, atoms)) + NOISE * rng.normal(size=n_times)
    return signal[None, None], atoms[:, None]


def value(signal: np.ndarray, atoms: Any, codes: Any, lam: float) -> float:
    """Objective, by NumPy."""
    atoms, codes = np.asarray(atoms)[:, 0], np.asarray(codes)[0]
    residual = signal[0, 0] - sum(np.convolve(z, d) for z, d in zip(codes, atoms))
    return 0.5 * float(residual @ residual) + lam * float(np.abs(codes).sum())


def alphacsc_codes(signal: np.ndarray, atoms: np.ndarray, lam: float, tol: float) -> np.ndarray:
    from alphacsc.update_z_multi import update_z_multi

    options = {"max_iter": 10_000_000, "tol": tol}
    codes = update_z_multi(signal, atoms.copy(), reg=lam, solver="lgcd", solver_kwargs=options, n_jobs=1)[0]
    return codes if isinstance(codes, np.ndarray) else np.stack([z.toarray() for z in codes])


def sporco_atoms(signal: np.ndarray, start: np.ndarray, lam: float, n_iter: int) -> np.ndarray:
    """Atoms of ADMM dictionary learning; it pads circularly and signs its codes freely."""
    from sporco.dictlrn import cbpdndl

    options = cbpdndl.ConvBPDNDictLearn.Options(
        {"MaxMainIter": n_iter, "CBPDN": {"NonNegCoef": True, "rho": 50.0 * lam + 0.5}, "CCMOD": {"rho": 10.0}},
        dmethod="cns",
    )
    padded = np.concatenate([signal[0, 0], np.zeros(N_TIMES_ATOM)])[:, None]
    learner = cbpdndl.ConvBPDNDictLearn(start[:, 0].T, padded, lam, options, dmethod="cns", dimK=1, dimN=1)
    return np.asarray(learner.solve()).squeeze().T[:, None]


def alphacsc_atoms(signal: np.ndarray, start: np.ndarray, lam: float, n_iter: int) -> np.ndarray:
    """Atoms of alternate minimisation by locally greedy coordinate descent; it divides the signal by its deviation."""
    from alphacsc.learn_d_z_multi import learn_d_z_multi

    _, _, atoms, *_ = learn_d_z_multi(
        signal,
        N_ATOMS,
        N_TIMES_ATOM,
        n_iter=n_iter,
        reg=lam / signal.std(),
        rank1=False,
        solver_z="lgcd",
        solver_z_kwargs={"tol": 1e-2, "max_iter": 10_000_000},
        D_init=start,
        raise_on_increase=False,
        verbose=0,
        random_state=0,
    )
    return np.asarray(atoms)


def code(table: bench.Table, signal: np.ndarray, atoms: np.ndarray, lam: float) -> None:
    """Codes for the true atoms, to two precisions."""
    best = float(csc.csc_solve(signal, atoms, lam, tol=1e-10).objective)
    for ours_tol, peer_tol in ((1e-2, 1e-2), (1e-6, 1e-3)):
        ours = lambda tol=ours_tol: csc.csc_solve(signal, atoms, lam, tol=tol).codes
        peer = lambda tol=peer_tol: alphacsc_codes(signal, atoms, lam, tol)

        def as_good(a: Any, b: Any) -> bool:
            values = [value(signal, atoms, z, lam) for z in (a, b)]
            print(f"# above the optimum {best:.9g}: ours {values[0] - best:.2g}, alphacsc {values[1] - best:.2g}")
            return values[0] <= values[1]

        row = bench.paired(ours, peer, check=as_good)
        table.add(f"codes, tolerance {ours_tol:g}, against alphacsc's at {peer_tol:g}", row)
    exact = value(signal, atoms, alphacsc_codes(signal, atoms, lam, 1e-6), lam)
    print(f"# objectives at the optimum: ours {best:.10g}, alphacsc {exact:.10g}, relative {abs(best / exact - 1):.1g}")


def learn(table: bench.Table, signal: np.ndarray, truth: np.ndarray, quick: bool) -> None:
    """Atoms from the same three windows of the signal."""
    start = np.asarray(csc.init_atoms(0, signal, N_ATOMS, N_TIMES_ATOM))
    lam = 0.1 * float(csc.csc_lambda_max(start, signal))
    n_iter = 20 if quick else 200
    exact = lambda atoms: float(csc.csc_solve(signal, atoms, lam, tol=1e-6).objective)  # with the best codes for them
    ours = lambda: csc.learn_atoms(signal, start, lam, max_iter=30).atoms
    peers = {
        f"sporco's {n_iter}": lambda: sporco_atoms(signal, start, lam, n_iter),
        "alphacsc's 30": lambda: alphacsc_atoms(signal, start, lam, 30),
    }
    for name, peer in peers.items():

        def as_good(a: Any, b: Any, name: str = name) -> bool:
            values = {}
            for label, atoms in (("ours", a), (name, b)):
                values[label] = exact(atoms)
                likeness = np.asarray(csc.align_atoms(atoms, truth)[3]).round(3)
                print(f"# {label}: objective with exact codes {values[label]:.6g}, likeness to the truth {likeness}")
            return values["ours"] <= values[name] * (1 + TIE)

        table.add(f"atoms, 30 iterations, against {name}", bench.paired(ours, peer, check=as_good, n_rounds=3))


def first_call(signal: np.ndarray, atoms: np.ndarray) -> None:
    """What the first fit of a shape costs, compilation included."""
    jax.clear_caches()
    begin = time.perf_counter()
    jax.block_until_ready(csc.learn_atoms(signal[..., :5000], atoms, 0.5, max_iter=3))
    print(f"first fit with compilation: {time.perf_counter() - begin:.3g} s", flush=True)


def benchmark(table: bench.Table, quick: bool) -> None:
    warnings.filterwarnings("ignore", message="np.dot")  # numba's advice to the peer
    with jax.enable_x64(True):
        signal, atoms = make(5_000 if quick else 20_000)
        lam = 0.1 * float(csc.csc_lambda_max(atoms, signal))
        code(table, signal, atoms, lam)
        sizes = (5_000, 20_000) if quick else (20_000, 80_000)
        row = bench.slope(
            lambda x: csc.learn_atoms(x, atoms, lam, max_iter=20), sizes, setup=lambda n: make(n)[0], n_rounds=3
        )
        table.add("atoms, 20 iterations, in samples", row)
        learn(table, signal, atoms, quick)
        first_call(signal, atoms)


if __name__ == "__main__":
    raise SystemExit(bench.main(benchmark, title="Convolutional sparse coding", peers=["alphacsc", "sporco"]))
