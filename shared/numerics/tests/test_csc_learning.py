"""Dictionary learning: steps against general minimisers, descent, masks, backgrounds, starts and alignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

from gyri.numerics import csc
from gyri.numerics.testing import check_jit, check_lowers, check_no_recompilation, check_vmap


def recording(seed=0, n=1, p=1, k=2, m=16, times=600, density=0.01, noise=0.05):
    """Rank-one atoms at sparse times in noise: signal, atoms, codes."""
    rng = np.random.default_rng(seed)
    t = np.arange(m) / m
    waves = np.stack([np.sin(2 * np.pi * (j + 1) * t + 0.3 * j) * np.hanning(m) for j in range(k)])
    atoms = rng.normal(size=(k, p, 1)) * waves[:, None]
    atoms /= np.sqrt((atoms**2).sum((1, 2), keepdims=True))
    codes = (rng.random((n, k, times - m + 1)) < density) * rng.uniform(1, 3, (n, k, times - m + 1))
    return synthesise(atoms, codes) + noise * rng.normal(size=(n, p, times)), atoms, codes


def synthesise(atoms, codes):
    return np.stack(
        [sum(np.stack([np.convolve(z[k], row) for row in atoms[k]]) for k in range(len(atoms))) for z in codes]
    )


def smoothness(n, strength):
    """Background penalised by its squared first differences: the proximal operator solves a linear system."""
    difference = np.diff(np.eye(n), axis=0)
    penalty = jnp.asarray(strength * difference.T @ difference)
    return csc.Background(Partial(smooth_prox, penalty), Partial(smooth_value, penalty))


def smooth_prox(penalty, residual, weight):
    weight = jnp.ones_like(residual) if weight is None else weight
    solve = lambda r, w: jnp.linalg.solve(penalty + jnp.diag(w), w * r)
    return jax.vmap(jax.vmap(solve))(residual, weight)


def smooth_value(penalty, background):
    return 0.5 * jnp.einsum("npt,ts,nps->", background, penalty, background)


def evaluations(result):
    values = np.asarray(result.objective)
    return values[~np.isnan(values)]


def objective(result, signal, lam, background=None, mask=None):
    """Objective of what came back, by NumPy."""
    residual = np.asarray(signal) - synthesise(np.asarray(result.atoms), np.asarray(result.codes))
    if background is not None:
        residual = residual - np.asarray(result.background)
    if mask is not None:
        residual = np.where(mask, residual, 0)
    value = 0.5 * (residual**2).sum() + lam * np.abs(np.asarray(result.codes)).sum()
    return value if background is None else value + float(background.value(result.background))


def norms(atoms):
    return np.sqrt((np.asarray(atoms) ** 2).sum((1, 2)))


# --- the dictionary step ----------------------------------------------------------------------------------------------


def test_atoms_in_the_ball_reach_the_constrained_minimum(x64):
    signal, atoms, codes = recording(k=3, p=2, m=6, times=80, density=0.1)
    C, E = csc.code_statistics(codes, signal, 6)
    start = np.random.default_rng(1).normal(size=atoms.shape)
    found = csc.update_atoms(start / norms(start)[:, None, None], C, E, n_steps=5000, tol=1e-13)
    fit = lambda d: 0.5 * ((signal - synthesise(d.reshape(atoms.shape), codes)) ** 2).sum()
    balls = [{"type": "ineq", "fun": lambda d, k=k: 1 - (d.reshape(atoms.shape)[k] ** 2).sum()} for k in range(3)]
    oracle = minimize(
        fit, atoms.ravel() * 0.9, method="SLSQP", constraints=balls, options={"maxiter": 500, "ftol": 1e-13}
    )
    assert oracle.success
    assert norms(found).max() <= 1 + 1e-12
    np.testing.assert_allclose(fit(np.asarray(found).ravel()), oracle.fun, rtol=1e-7)


@pytest.mark.parametrize("options", [{}, {"rank1": True}, {"window": np.hanning(9)[1:-1]}], ids=str)
def test_a_step_never_makes_the_fit_worse(dtype, options):
    signal, _, codes = recording(k=3, p=4, m=7, times=100, density=0.1)
    C, E = (np.asarray(x, dtype) for x in csc.code_statistics(codes.astype(dtype), signal.astype(dtype), 7))
    atoms = np.asarray(csc.init_atoms(0, signal.astype(dtype), 3, 7, method="random", rank1="rank1" in options))
    before = None
    for _ in range(4):
        fit = 0.5 * ((signal - synthesise(np.asarray(atoms, float), codes)) ** 2).sum()
        assert before is None or fit <= before * (1 + (1e-9 if dtype == np.float64 else 1e-5))
        before = fit
        atoms = csc.update_atoms(atoms, C, E, n_steps=5, **options)
        assert atoms.dtype == dtype
        assert norms(atoms).max() <= 1 + 1e-5
        if "rank1" in options:
            assert (np.linalg.svd(np.asarray(atoms))[1][:, 1] <= 1e-5).all()


def test_a_window_is_a_change_of_variables(x64):
    signal, _, codes = recording(k=1, m=8, times=60, density=0.1)
    C, E = csc.code_statistics(codes, signal, 8)
    window = np.array([1e-9, 0.5, 1, 1, 1, 1, 0.5, 1e-9])
    start = csc.init_atoms(0, signal, 1, 8, window=window)
    assert np.abs(np.asarray(start)[..., [0, -1]]).max() <= 1e-8
    found = csc.update_atoms(start, C, E, window=window, n_steps=3)
    assert np.abs(np.asarray(found)[..., [0, -1]]).max() <= 1e-8
    assert np.abs(found - start).max() > 1e-3
    # In V = D / window on the atom's inside, the minimum is that without a window, the ends held.
    inside = csc.update_atoms(start, C, E, window=np.where(window > 0.1, window, 0), n_steps=20_000, tol=1e-15)[
        0, 0, 1:-1
    ]
    H = np.array([[C[0, 0, 7 + i - j] for j in range(1, 7)] for i in range(1, 7)])
    rhs = np.asarray(E)[0, 0, 1:-1]
    free = np.linalg.solve(H, rhs)
    ridge = 0.0
    while np.linalg.norm(free) > 1 + 1e-9:  # the ball's multiplier, by Newton's method on 1 / norm - 1
        root = cholesky(H + ridge * np.eye(6), lower=True)
        free = cho_solve((root, True), rhs)
        size = np.linalg.norm(free)
        ridge += (size**2 / (free @ cho_solve((root, True), free))) * (size - 1)
    np.testing.assert_allclose(inside, free, atol=1e-6)


def test_large_dictionaries_multiply_by_transforms(x64, monkeypatch):
    signal, atoms, codes = recording(k=3, p=2, m=7, times=100, density=0.1)
    C, E = csc.code_statistics(codes, signal, 7)
    start = csc.init_atoms(0, signal, 3, 7)
    by_matrix = csc.update_atoms(start, C, E, n_steps=21)
    monkeypatch.setattr("gyri.numerics.csc.dictionary.DENSE_SIZE", 0)
    by_transform = csc.update_atoms(start, C, E, n_steps=22, tol=1e-8)
    np.testing.assert_allclose(by_matrix, by_transform, atol=1e-3)
    from gyri.numerics.csc.dictionary import statistics_product

    product = statistics_product(C)(jnp.asarray(atoms))
    brute = np.zeros_like(atoms)
    for t in range(7):
        for s in range(7):
            brute[:, :, t] += np.einsum("kl,lp->kp", C[:, :, t - s + 6], atoms[:, :, s])
    np.testing.assert_allclose(product, brute, atol=1e-10)


def test_the_nearest_atom_of_rank_one(dtype):
    atoms = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(dtype)
    u, v = csc.rank1_from_full(atoms)
    assert u.dtype == v.dtype == dtype
    left, values, right = np.linalg.svd(atoms)
    best = values[:, 0, None, None] * left[:, :, :1] * right[:, :1]
    np.testing.assert_allclose(u[:, :, None] * v[:, None], best, atol=1e-4 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1, rtol=1e-5)
    assert (np.take_along_axis(np.asarray(v), np.abs(v).argmax(1)[:, None], 1) > 0).all()


# --- learning ---------------------------------------------------------------------------------------------------------

ALL = {"background": smoothness, "mask": np.arange(300) % 31 > 2, "rank1": True, "window": np.hanning(18)[1:-1]}
CASES = {
    "plain": (np.float64, {}),
    "plain, float32": (np.float32, {}),
    "signed, window": (np.float64, {"positive": False, "window": np.hanning(18)[1:-1]}),
    "wide": (np.float64, {"p": 20}),  # more channels than atoms
    "wide rank1, float32": (np.float32, {"p": 20, "rank1": True}),
    "all": (np.float64, ALL),
}


@pytest.fixture(params=CASES.values(), ids=list(CASES))
def case(request):
    with jax.enable_x64(request.param[0] == np.float64):
        yield request.param


def test_the_objective_never_rises_and_is_that_of_the_result(case):
    dtype, options = case
    options = dict(options)
    signal, _, _ = recording(n=2, p=options.pop("p", 2), times=300)
    if "background" in options:
        signal = signal + 2 * np.sin(np.arange(300) / 60)
        options["background"] = smoothness(300, 100.0)
    signal = signal.astype(dtype)
    fast = signal if "background" not in options else signal - np.asarray(options["background"].prox(signal, None))
    atoms = csc.init_atoms(3, fast, 2, 16, rank1="rank1" in options, window=options.get("window"))
    lam = 0.1 * float(csc.csc_lambda_max(atoms, fast))
    result = csc.learn_atoms(signal, atoms, lam, max_iter=8, **options)
    values = evaluations(result)
    assert (np.diff(values) <= (1e-9 if dtype == np.float64 else 1e-6) * values[1:]).all()
    per_iteration = 3 if "background" in options else 2
    assert values.size == per_iteration * int(result.n_iter) + 2
    expected = objective(result, signal, lam, options.get("background"), options.get("mask"))
    np.testing.assert_allclose(values[-1], expected, rtol=1e-9 if dtype == np.float64 else 1e-4)
    assert values[-1] < 0.95 * values[0]
    assert norms(result.atoms).max() <= 1 + 1e-5
    assert result.codes.dtype == result.atoms.dtype == dtype
    if "rank1" in options:
        assert (np.linalg.svd(np.asarray(result.atoms))[1][:, 1] <= 1e-5).all()
    if options.get("positive", True):
        assert (np.asarray(result.codes) >= 0).all()


@pytest.mark.parametrize(("method", "rank1"), [("greedy", False), ("kmeans", True)])
def test_atoms_are_found_again(method, rank1):
    signal, truth, _ = recording(p=3, times=2000)
    signal = signal.astype(np.float32)
    atoms = csc.init_atoms(0, signal, 2, 16, method=method, rank1=rank1)
    result = csc.learn_atoms(signal, atoms, 0.1 * csc.csc_lambda_max(atoms, signal), rank1=rank1, max_iter=60)
    assert csc.align_atoms(result.atoms, truth.astype(np.float32))[3].min() >= 0.95


def test_final_codes_and_background_are_optimal_for_the_atoms(x64):
    signal, _, _ = recording(times=200)
    signal = signal + np.sin(np.arange(200) / 40)
    background = smoothness(200, 100.0)
    atoms = csc.init_atoms(0, signal, 2, 16)
    result = csc.learn_atoms(signal, atoms, 0.2, background=background, max_iter=5, tol_final=1e-7)
    again = csc.csc_solve(signal - result.background, result.atoms, 0.2, tol=1e-6)
    np.testing.assert_allclose(again.codes, result.codes, atol=1e-4)
    np.testing.assert_allclose(
        background.prox(signal - csc.conv_synthesis(result.atoms, result.codes), None), result.background, atol=1e-3
    )


def test_masked_samples_change_nothing(x64):
    signal, _, _ = recording(n=2, p=2, times=300)
    options = ALL | {"background": smoothness(300, 100.0)}
    mask = options["mask"]
    results = []
    for filling in (0.0, 1e6, np.nan):
        filled = np.where(mask, signal, filling)
        atoms = csc.init_atoms(0, filled, 2, 16, mask=mask, rank1=True)
        results.append(csc.learn_atoms(filled, atoms, 0.2, max_iter=8, **options))
    for other in results[1:]:
        same = jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), results[0], other)
        assert all(jax.tree.leaves(same))


def test_scale_and_order_of_the_data_do_not_matter(x64):
    signal, _, _ = recording(n=2, p=2, times=300)
    atoms = np.asarray(csc.init_atoms(0, signal, 2, 16))
    one = csc.learn_atoms(signal, atoms, 0.2, max_iter=8)
    scaled = csc.learn_atoms(100 * signal, atoms, 20.0, max_iter=8)
    np.testing.assert_allclose(scaled.atoms, one.atoms, atol=1e-6)
    np.testing.assert_allclose(scaled.codes, 100 * one.codes, atol=1e-4)
    turned = csc.learn_atoms(signal[::-1, ::-1], atoms[:, ::-1], 0.2, max_iter=8)
    np.testing.assert_allclose(turned.atoms[:, ::-1], one.atoms, atol=1e-6)
    np.testing.assert_allclose(turned.codes[::-1], one.codes, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"rank1": True}], ids=str)
def test_a_level_that_leaves_no_codes_leaves_the_atoms(options):
    rank1 = bool(options)
    signal, _, _ = recording(n=2, p=20 if rank1 else 2, times=300)
    signal = signal.astype(np.float32)
    atoms = csc.init_atoms(0, signal, 2, 16, rank1=rank1)
    lam = 1.01 * float(csc.csc_lambda_max(atoms, signal))
    result = csc.learn_atoms(signal, atoms, lam, max_iter=8, **options)
    assert not result.codes.any()
    assert result.converged
    np.testing.assert_allclose(result.atoms, atoms, atol=1e-6 if rank1 else 0)


def test_constant_signals_give_no_nan():
    for level in (0.0, 3.0):
        signal = jnp.full((2, 2, 300), level)
        for method in ("chunk", "random", "greedy", "kmeans"):
            atoms = csc.init_atoms(0, signal, 2, 16, method=method, rank1=method == "chunk")
            np.testing.assert_allclose(norms(atoms), 1, rtol=1e-5)
            result = csc.learn_atoms(signal, atoms, 0.1 + 100 * level, max_iter=8)
            assert not result.codes.any()
            assert all(jnp.isfinite(x).all() for x in (result.atoms, result.codes, evaluations(result)))


def test_an_unused_atom_is_revived():
    signal, truth, _ = recording(p=3, times=2000)
    signal = signal.astype(np.float32)
    useless = np.zeros((2, 3, 16), np.float32)
    useless[0] = truth[0]
    useless[1] = np.sqrt(1 / 3) * np.where(np.arange(16) % 2, 0.25, -0.25)  # nothing in the signal oscillates so fast
    lam = 0.2 * csc.csc_lambda_max(truth.astype(np.float32), signal)
    result = csc.learn_atoms(signal, useless, lam, max_iter=60)
    assert np.asarray(result.codes[:, 1]).any()
    assert csc.align_atoms(result.atoms, truth.astype(np.float32))[3].min() >= 0.95


def test_learning_transforms(x64):
    signal, _, _ = recording(times=150)
    signals = jnp.asarray(np.stack([signal, signal[..., ::-1]]))
    atoms = jnp.stack([csc.init_atoms(i, x, 2, 16) for i, x in enumerate(signals)])
    levels = jnp.array([0.2, 0.3])
    run = lambda x, d, lam: csc.learn_atoms(x, d, lam, max_iter=3).atoms
    check_jit(run, signals[0], atoms[0], levels[0], atol=1e-9)
    check_vmap(run, signals, atoms, levels, atol=1e-6)
    check_lowers(run, signals[0], atoms[0], levels[0])

    def with_background(x, d, lam, strength):
        return csc.learn_atoms(x, d, lam, max_iter=2, background=smoothness(150, strength))

    arguments = [(x, d, lam, s) for x, d, lam, s in zip(signals, atoms, levels, (10.0, 20.0), strict=True)]
    check_no_recompilation(with_background, *arguments, jit=False)


# --- starts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["chunk", "random", "greedy", "kmeans"])
def test_starts_have_norm_one_and_depend_on_the_key_alone(dtype, method):
    signal = recording(n=2, p=2, times=300)[0].astype(dtype)
    atoms = csc.init_atoms(5, signal, 2, 16, method=method)
    assert atoms.dtype == dtype
    np.testing.assert_allclose(norms(atoms), 1, rtol=1e-5)
    np.testing.assert_array_equal(atoms, csc.init_atoms(jax.random.key(5), signal, 2, 16, method=method))
    if method != "greedy":
        assert np.abs(atoms - csc.init_atoms(6, signal, 2, 16, method=method)).max() > 0.1


def test_chunks_are_windows_of_the_signal_without_masked_samples():
    signal = np.random.default_rng(0).normal(size=(2, 2, 60)).astype(np.float32)
    mask = np.zeros((2, 1, 60), bool)
    mask[0, 0, 10:22] = mask[1, 0, 30:41] = True
    clean = [(0, t) for t in range(10, 15)] + [(1, t) for t in range(30, 34)]
    windows = np.stack([signal[n, :, t : t + 8] for n, t in clean])
    windows /= norms(windows)[:, None, None]
    atoms = np.asarray(csc.init_atoms(0, np.where(mask, signal, np.nan), 5, 8, mask=mask))
    found = [np.abs(windows - atom).max((1, 2)).argmin() for atom in atoms]
    np.testing.assert_allclose(windows[found], atoms, atol=1e-6)
    assert len(set(found)) == 5


def test_starts_for_several_axes():
    signal = np.random.default_rng(0).normal(size=(1, 2, 12, 13)).astype(np.float32)
    for method in ("chunk", "random"):
        assert csc.init_atoms(0, signal, 3, (4, 5), method=method).shape == (3, 2, 4, 5)


def test_greedy_takes_the_largest_window_first():
    signal = np.zeros((1, 1, 50), np.float32)
    signal[0, 0, 30:34] = [1, 5, -3, 1]
    atom = np.asarray(csc.init_atoms(0, signal, 1, 4, method="greedy"))[0, 0]
    np.testing.assert_allclose(atom, np.array([1, 5, -3, 1]) / 6, atol=1e-6)


# --- alignment --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [(9,), (6, 7)])
def test_alignment_undoes_order_shift_and_sign(x64, kernel):
    rng = np.random.default_rng(0)
    reference = np.zeros((3, 2, *kernel))
    inner = tuple(slice(2, n - 2) for n in kernel)
    reference[(slice(None), slice(None), *inner)] = rng.normal(size=(3, 2, *(n - 4 for n in kernel)))
    moves = np.array([[1, -2], [0, 2], [-1, 1]])[:, : len(kernel)]
    axes = tuple(range(1, len(kernel) + 1))
    moved = np.stack([-2.0 * np.roll(r, m, axes) for r, m in zip(reference, moves)])[[2, 0, 1]]
    order, shift, sign, correlation = csc.align_atoms(
        np.concatenate([moved, rng.normal(size=(1, 2, *kernel))]), reference
    )
    np.testing.assert_array_equal(order, [1, 2, 0])
    np.testing.assert_array_equal(shift, -moves[:, 0] if len(kernel) == 1 else -moves)
    np.testing.assert_array_equal(sign, -1)
    np.testing.assert_allclose(correlation, 1, atol=1e-12)


def test_alignment_is_the_largest_cosine_over_shifts(x64):
    rng = np.random.default_rng(1)
    atom, reference = rng.normal(size=(1, 2, 7)), rng.normal(size=(1, 2, 5))
    cosines = sum(np.correlate(reference[0, p], atom[0, p], "full") for p in range(2))
    cosines = cosines / np.linalg.norm(atom) / np.linalg.norm(reference)
    best = np.abs(cosines).argmax()
    _, shift, sign, correlation = csc.align_atoms(atom, reference)
    np.testing.assert_allclose(correlation, np.abs(cosines).max(), atol=1e-12)
    assert shift[0] == best - 6
    assert sign[0] == np.sign(cosines[best])
    assert csc.align_atoms(np.zeros((1, 2, 7)), reference)[3] == 0


# --- bad input --------------------------------------------------------------------------------------------------------

X, D = np.ones((1, 2, 20)), np.ones((3, 2, 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: csc.init_atoms(0, X, 0, 5), "n_atoms: expected an integer"),
        (lambda: csc.init_atoms(0, X, 17, 5), "n_atoms: expected at most"),
        (lambda: csc.init_atoms(0, X, 2, 21), "n_times_atom: expected at most"),
        (lambda: csc.init_atoms(0, X, 2, 0), "n_times_atom: expected an integer"),
        (lambda: csc.init_atoms(0, X[0], 2, 5), "signal: expected shape"),
        (lambda: csc.init_atoms(0, X * np.nan, 2, 5), "signal: expected finite"),
        (lambda: csc.init_atoms(0, X, 2, 5, method="best"), "method: expected one of"),
        (lambda: csc.init_atoms(0, X, 2, 5, window=np.ones(4)), "window: expected shape"),
        (lambda: csc.init_atoms(0, X, 2, 5, mask=np.zeros(20, bool)), "mask: expected at least one"),
        (lambda: csc.init_atoms(0, X[..., None], 2, (5, 1), method="kmeans"), "n_times_atom: expected an integer"),
        (lambda: csc.learn_atoms(X[0], D, 0.1), "signal: expected shape"),
        (lambda: csc.learn_atoms(X * np.inf, D, 0.1), "signal: expected finite"),
        (lambda: csc.learn_atoms(X, D[0], 0.1), "atoms: expected shape"),
        (lambda: csc.learn_atoms(X, D, -0.1), "lam: expected a number"),
        (lambda: csc.learn_atoms(X, D, 0.1, window=np.ones(4)), "window: expected shape"),
        (lambda: csc.learn_atoms(X, D, 0.1, max_iter=0), "max_iter: expected an integer"),
        (lambda: csc.learn_atoms(X, D, 0.1, eps=-1.0), "eps: expected a number"),
        (lambda: csc.learn_atoms(X, D, 0.1, mask=np.ones((3, 20), bool)), "mask: expected a shape"),
        (lambda: csc.update_atoms(D, np.ones((3, 3, 8)), D), "C: expected shape"),
        (lambda: csc.update_atoms(D, np.ones((3, 3, 9)), D[0]), "E: expected shape"),
        (lambda: csc.rank1_from_full(D[0]), "atoms: expected shape"),
        (lambda: csc.align_atoms(D, np.ones((4, 2, 5))), "reference: expected as many"),
        (lambda: csc.align_atoms(D, np.ones((3, 5))), "reference: expected shape"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
