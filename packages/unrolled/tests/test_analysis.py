"""Analysis priors: maps and adjoints, the primal-dual iterations, constraints, what is learned, files, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pywt
from scipy.signal import correlate
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gyri.numerics import linalg, prox_tv1d
from gyri.numerics.testing import check_no_recompilation
from gyri.unrolled import AnalysisPrior, priors
from gyri.unrolled.coding import Measurement
from gyri.unrolled.metrics import psnr

QUIET = {"verbose": False, "max_steps": 6}


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


MAPS = {
    "dense": (priors.DENSE, lambda: draw((7, 12)), (12,)),
    "filters in time": (priors.BANK, lambda: draw((3, 4)), (2, 12)),
    "filters of images": (priors.BANK, lambda: draw((2, 3, 3)), (3, 6, 7)),
    "differences": (priors.differences(1), lambda: (), (12,)),
    "differences of images": (priors.differences(2), lambda: (), (2, 5, 6)),
    "wavelets": (priors.wavelets((16,), "haar"), lambda: (), (16,)),
    "wavelets of images": (priors.wavelets((16, 8), "haar"), lambda: (), (1, 16, 8)),
}


@pytest.mark.parametrize("name", MAPS)
def test_adjoints_and_norms(name, x64):
    analysis, make, shape = MAPS[name]
    prior, x = make(), draw((2, *shape), 1)
    image = analysis.apply(prior, x)
    v = jax.tree.map(lambda leaf: draw(leaf.shape, 2), image)
    left = sum(float(jnp.vdot(a, b)) for a, b in zip(jax.tree.leaves(image), jax.tree.leaves(v)))
    right = float(jnp.vdot(x, analysis.adjoint(prior, v, shape)))
    assert left == pytest.approx(right, abs=1e-11)
    rows = jax.tree.leaves(analysis.apply(prior, jnp.eye(int(np.prod(shape))).reshape(-1, *shape)))
    n = int(np.prod(shape))
    # Leading axes of filters' images count samples and channels together.
    matrix = np.concatenate([np.asarray(leaf).reshape(n, -1) for leaf in rows], 1)
    exact = np.linalg.norm(matrix, 2) ** 2
    assert exact <= float(analysis.square(prior, shape)) * (1 + 1e-12)
    assert float(analysis.square(prior, shape)) <= 1.5 * exact


def test_filters_are_correlated(x64):
    prior, x = draw((2, 3, 2)), draw((1, 1, 6, 5), 1)
    found = priors.BANK.apply(prior, x)
    for k in range(2):
        np.testing.assert_allclose(found[0, k], correlate(x[0, 0], prior[k], "valid"), atol=1e-12)


@pytest.mark.parametrize("wavelet", ["haar", "db4"])
def test_wavelets_are_pywts(wavelet, x64):
    x = draw((1, 32, 32))
    n_levels = len(priors.wavelet_matrices(32, wavelet))
    details = pywt.wavedec2(np.asarray(x[0]), wavelet, "periodization", level=n_levels)[1:]
    expected = np.sort(np.concatenate([np.abs(part).ravel() for level in details for part in level]))
    found = np.abs(np.asarray(priors.wavelets((32, 32), wavelet).apply((), x))).ravel()
    np.testing.assert_allclose(np.sort(found)[-expected.size :], expected, atol=1e-12)
    assert np.count_nonzero(found) <= expected.size


def plain_restore(y, matrix, lam, sigmas, A=None):
    """Condat and Vu as they are written."""
    A = np.eye(matrix.shape[1]) if A is None else A
    x, v = np.zeros(matrix.shape[1]), np.zeros(len(matrix))
    lip_a, lip_g = np.linalg.norm(A, 2) ** 2, np.linalg.norm(matrix, 2) ** 2
    for i, sigma in enumerate(sigmas):
        tau = 1 / (lip_a / 2 + sigma * lip_g)
        new = x - tau * (A.T @ (A @ x - y) + matrix.T @ v)
        if i == len(sigmas) - 1:
            return new
        v = np.clip(v + sigma * matrix @ (2 * new - x), -lam, lam)
        x = new


def test_iterations_are_those_written(x64):
    prior, X = draw((7, 5)), draw((3, 5), 1)
    sigmas = jnp.linspace(0.5, 2, 6)
    found = priors.restore(X, prior, 0.2, sigmas, Measurement(), jnp.ones(()), priors.DENSE, (5,))
    expected = [plain_restore(np.asarray(y), np.asarray(prior), 0.2, np.asarray(sigmas)) for y in X]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    each = draw((3, 4, 5), 2)
    squares = jnp.asarray([[np.linalg.norm(a, 2) ** 2] for a in each])
    Y = jnp.einsum("tij,tj->ti", each, X)
    found = priors.restore(Y, prior, 0.2, sigmas, Measurement(None, each, squares), squares, priors.DENSE, (5,))
    expected = [plain_restore(np.asarray(y), np.asarray(prior), 0.2, np.asarray(sigmas), np.asarray(a))
                for y, a in zip(Y, each)]  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_total_variation_is_exact_in_the_end(x64):
    x = np.repeat(np.random.default_rng(0).standard_normal((4, 5)), 6, 1)
    x = x + 0.1 * np.random.default_rng(1).standard_normal(x.shape)
    model = AnalysisPrior(constraint="tv", lam=0.3, verbose=False).fit(x)
    np.testing.assert_allclose(model.transform(x, n_iter=4000), prox_tv1d(jnp.asarray(x), 0.3), atol=1e-4)
    np.testing.assert_allclose(model.prior_, np.diff(np.eye(30), axis=0), atol=0)


def test_gradients_match_central_differences(x64):
    X = draw((2, 8), 1)
    mask = jnp.asarray(np.random.default_rng(0).random(X.shape) < 0.8, float)
    prior = draw((5, 8), 2)
    measurement = Measurement(mask=mask)
    fixed = priors.Analysis(priors.DENSE.apply, priors.DENSE.adjoint, lambda _, shape: jnp.asarray(9.0))

    def loss(prior, sigmas):
        x = priors.restore(X, prior, 0.2, sigmas, measurement, jnp.ones(()), fixed, (8,))
        return priors.restoration_objective(X, x, prior, 0.2, measurement, fixed)

    at = (prior, jnp.linspace(0.5, 1.5, 5))
    for argument, gradient in enumerate(jax.grad(loss, (0, 1))(*at)):
        for place in ([(0, 0), (4, 7), (2, 3)], [(0,), (3,), (4,)])[argument]:
            ends = []
            for sign in (1, -1):
                moved = list(at)
                moved[argument] = at[argument].at[place].add(sign * 1e-6)
                ends.append(loss(*moved))
            assert abs((ends[0] - ends[1]) / 2e-6 - gradient[place]) < 1e-6
    # The last iteration moves the signals only, so that every step size counts.
    assert np.all(np.abs(jax.grad(loss, 1)(*at)) > 1e-12)


def test_one_iteration_is_a_gradient_step(x64):
    X = np.asarray(draw((4, 6)))
    model = AnalysisPrior(8, n_iter=1, lam=0.1, learn_steps=False, **QUIET).fit(X)
    expected = X / (0.5 + np.linalg.norm(model.prior_, 2) ** 2)
    np.testing.assert_allclose(model.transform(X), expected, rtol=1e-6)
    assert np.all(np.diff(model.history_["loss"]) < 0)


# --- constraints ----------------------------------------------------------------------------------------------------


def steps_of(seed, n=40, m=24):
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.standard_normal((n, m // 4)), 4, 1)
    return x, x + 0.2 * rng.standard_normal(x.shape)


def blocks(seed, n=48):
    rng = np.random.default_rng(seed)
    image = np.zeros((n, n))
    for _ in range(10):
        a, b = rng.integers(0, n - 8, 2)
        h, w = rng.integers(8, 24, 2)
        image[a : a + h, b : b + w] = rng.random()
    return image, image + 0.05 * rng.standard_normal(image.shape)


@pytest.mark.parametrize(
    ("constraint", "options"),
    [
        ("unit", {"n_components": 30}),
        ("unit", {"kernel_shape": 3}),
        ("untf", {"n_components": 30}),
        ("conv", {"kernel_shape": (3, 3), "n_components": 3}),
        ("conv", {"kernel_shape": 4}),
        ("conv_corners", {"kernel_shape": (3, 3)}),
        ("separable", {"kernel_shape": (3, 3)}),
    ],
)
def test_constraints_hold_and_losses_fall(constraint, options):
    kernel = options.get("kernel_shape")
    noisy = steps_of(0)[1]
    noisy = noisy if kernel is None else noisy[:, None] if kernel in (3, 4) else blocks(0)[1][None, None]
    model = AnalysisPrior(constraint=constraint, lam=0.05, **(QUIET | options)).fit(noisy)
    assert np.all(np.diff(model.history_["loss"]) < 0) and model.n_steps_ == 12  # six of the prior, six with steps
    prior = model.prior_
    if constraint in ("unit", "untf"):
        np.testing.assert_allclose(np.linalg.norm(prior.reshape(len(prior), -1), axis=1), 1, atol=1e-6)
    else:
        assert np.linalg.norm(prior) == pytest.approx(1, abs=1e-6)
    if constraint == "untf":
        np.testing.assert_allclose(prior.T @ prior, 30 / 24 * np.eye(24), atol=5e-3)
    if constraint == "conv_corners":
        assert not prior[:, [0, 0, 2, 2], [0, 2, 0, 2]].any() and np.all(prior[:, 1] != 0)
    if constraint == "separable":
        assert not prior[0][:, [0, 2]].any() and not prior[1][[0, 2]].any() and np.any(prior[0][:, 1])
    assert model.transform(noisy).shape == noisy.shape


def test_cayleys_curve_keeps_frames(x64):
    frame, gradient = priors.first_frame(draw((9, 6)), draw((9, 6), 1)), draw((9, 6), 2)
    np.testing.assert_allclose(frame.T @ frame, 1.5 * np.eye(6), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(frame, axis=1), 1, atol=1e-12)
    moved = priors.move(frame, gradient, jnp.asarray(0.01), "untf")
    np.testing.assert_allclose(moved.T @ moved, 1.5 * np.eye(6), atol=1e-3)
    assert np.sum(np.asarray((moved - frame) * gradient)) < 0
    start = priors.first_frame(jnp.zeros((9, 6)), draw((9, 6), 1))
    assert np.isfinite(start).all()


@pytest.mark.slow
def test_separable_filters_become_differences():
    image, noisy = blocks(1)
    model = AnalysisPrior(constraint="separable", kernel_shape=(3, 3), lam=0.05, max_steps=400, verbose=False)
    model.fit(noisy[None, None])
    for taps in (model.prior_[0][:, 1], model.prior_[1][1]):
        norm = np.linalg.norm(taps)
        assert abs(taps.sum()) <= 0.05 * norm
        cosines = [abs(taps @ d) / norm / np.sqrt(2) for d in ([1, -1, 0], [0, 1, -1])]
        assert max(cosines) >= 0.9
    assert psnr(model.transform(noisy[None, None])[0, 0], image) >= psnr(noisy, image) + 0.5


@pytest.mark.parametrize("constraint", ["tv", "haar", "db4"])
def test_fixed_priors_denoise(constraint):
    image, noisy = blocks(0)
    model = AnalysisPrior(constraint=constraint, lam=0.05, verbose=False).fit(noisy[None, None])
    assert model.n_steps_ == 0
    assert psnr(model.transform(noisy[None, None], n_iter=200)[0, 0], image) > psnr(noisy, image) + 1
    vectors = np.random.default_rng(0).standard_normal((3, 32))
    small = AnalysisPrior(constraint=constraint, verbose=False).fit(vectors)
    assert small.prior_.shape[1] == 32 and small.transform(vectors).shape == (3, 32)


def test_masks_and_operators():
    x, noisy = steps_of(1)
    mask = np.random.default_rng(0).random(x.shape) < 0.6
    fits = [AnalysisPrior(24, lam=0.1, **QUIET).fit(np.where(mask, noisy, v), mask=mask) for v in (0, np.nan)]
    np.testing.assert_array_equal(fits[0].prior_, fits[1].prior_)
    tv = AnalysisPrior(constraint="tv", lam=0.1, verbose=False).fit(noisy, mask=mask)
    filled = tv.transform(np.where(mask, noisy, np.nan), mask=mask, n_iter=500)
    assert np.mean((filled - x)[~mask] ** 2) < 0.4 * np.mean(x[~mask] ** 2)
    A = np.random.default_rng(2).standard_normal((16, 24)) / 4
    model = AnalysisPrior(constraint="tv", lam=0.01, verbose=False).fit(x @ A.T, operator=A)
    restored = model.transform(x @ A.T, operator=A, n_iter=1000)
    assert np.mean((restored - x) ** 2) < 0.3 * np.mean(x**2)
    each = np.random.default_rng(3).standard_normal((40, 16, 24)) / 4
    Y = np.einsum("tij,tj->ti", each, x)
    learned = AnalysisPrior(30, lam=0.05, **QUIET).fit(Y, operator=each)
    assert np.all(np.diff(learned.history_["loss"]) < 0) and learned.transform(Y, operator=each).shape == (40, 24)
    image, _ = blocks(0)
    blur = linalg.convolution(np.ones((3, 3)) / 9, image.shape, "same")
    blurred = np.asarray(blur.matvec(jnp.asarray(image)))
    model = AnalysisPrior(constraint="tv", lam=1e-3, verbose=False).fit(blurred[None, None], operator=blur)
    sharp = model.transform(blurred[None, None], operator=blur, n_iter=300)[0, 0]
    assert psnr(sharp, image) > psnr(blurred, image) + 3


def test_learned_steps_lower_the_loss():
    noisy = steps_of(0)[1]
    options = {"lam": 0.3, "n_iter": 4, "max_steps": 60, "verbose": False}
    fixed, learned = (AnalysisPrior(24, learn_steps=s, **options).fit(noisy) for s in (False, True))
    assert learned.history_["loss"][-1] <= fixed.history_["loss"][-1] * 1.001
    np.testing.assert_array_equal(fixed.steps_, 1)


def test_double_precision_keys_and_compilation(x64):
    noisy = steps_of(0)[1]
    make = lambda seed, lam=0.1: AnalysisPrior(24, lam=lam, random_state=seed, **QUIET).fit(noisy)
    assert make(0).prior_.dtype == np.float64
    np.testing.assert_array_equal(make(0).prior_, make(0).prior_)
    assert np.any(make(0).prior_ != make(1).prior_)
    check_no_recompilation(lambda lam: make(0, lam) and None, (0.1,), (0.2,), jit=False)


@pytest.mark.parametrize("options", [{}, {"constraint": "conv", "kernel_shape": (2, 3)}, {"constraint": "tv"}])
def test_save_and_load(tmp_path, options):
    noisy = blocks(0)[1][None, None] if options else steps_of(0)[1]
    model = AnalysisPrior(lam=0.1, **(QUIET | options)).fit(noisy)
    path = tmp_path / "model.npz"
    model.save(path)
    again = AnalysisPrior.load(path)
    assert again.get_params() == model.get_params()
    np.testing.assert_array_equal(again.transform(noisy), model.transform(noisy))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="model.npz"):
        AnalysisPrior.load(path)


def test_it_is_an_estimator(tmp_path):
    model = AnalysisPrior(3, kernel_shape=(3, 3), constraint="conv")
    assert clone(model).get_params() == model.get_params()
    for call in (lambda: model.transform(np.ones((1, 1, 9, 9))), lambda: model.save(tmp_path)):
        with pytest.raises(NotFittedError):
            call()


@pytest.mark.parametrize(
    ("options", "X", "message"),
    [
        ({"constraint": "l2"}, None, "constraint: expected one of 'unit'"),
        ({"constraint": "conv"}, None, "kernel_shape: expected the shape of filters"),
        ({"constraint": "untf", "kernel_shape": 3}, None, "kernel_shape: expected None with 'untf'"),
        ({"constraint": "untf", "n_components": 3}, None, "n_components: expected at least the 8 features"),
        ({"constraint": "separable", "kernel_shape": 3}, None, "kernel_shape: expected two axes"),
        ({"constraint": "separable", "kernel_shape": (3, 3), "n_components": 3}, None, "kernel_shape: expected two"),
        ({"constraint": "conv", "kernel_shape": 9}, np.ones((2, 1, 8)), "kernel_shape: expected at most"),
        ({"kernel_shape": 0}, None, "kernel_shape: expected an integer >= 1"),
        ({"lam": -1}, None, "lam: expected a number > 0"),
        ({"n_iter": 0}, None, "n_iter: expected an integer >= 1"),
        ({"random_state": None}, None, "^random_state: expected an integer seed"),
        ({"max_steps": 0}, None, "max_steps: expected an integer >= 1"),
        ({"learn_steps": None}, None, "learn_steps: expected one of"),
        ({"n_components": 0}, None, "n_components: expected an integer >= 1"),
        ({"init": np.ones((2, 2))}, None, r"init: expected shape \(8, 8\)"),
        ({"constraint": "db4"}, np.ones((2, 7)), "X: expected even sizes"),
        ({}, np.ones(8), "X: expected shape"),
        ({}, np.ones((2, 1, 8)), "X: expected shape"),
        ({}, np.full((2, 8), np.nan), "X: expected finite"),
        ({}, np.zeros((0, 8)), "X: expected at least one entry"),
    ],
)
def test_bad_input(options, X, message):
    with pytest.raises(ValueError, match=message):
        AnalysisPrior(**(QUIET | options)).fit(np.ones((2, 8)) if X is None else X)


@pytest.mark.parametrize(
    ("operator", "n"),
    [(np.ones((8, 8)), 8), (np.ones((8, 9)), 20), (np.ones((20, 8, 9)), 20), (linalg.identity(8), 20), ("blur", 20)],
)
def test_an_operator_is_not_taken_for_labels(operator, n):
    for y in (operator, np.ones((n, 8))):
        with pytest.raises(ValueError, match=r"^y: expected None or labels.*operator="):
            AnalysisPrior(**QUIET).fit(np.ones((n, 8)), y)


def test_labels_of_a_pipeline_are_not_used():
    X = np.random.default_rng(0).standard_normal((20, 8))
    plain = AnalysisPrior(**QUIET).fit(X).prior_
    for y in (np.arange(20), list("ab" * 10), np.ones((20, 1)), np.ones((20, 3))):
        np.testing.assert_array_equal(AnalysisPrior(**QUIET).fit(X, y).prior_, plain)


def test_bad_measurements():
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 8\)"):
        AnalysisPrior(**QUIET).fit(np.ones((2, 8)), mask=np.ones((2, 7)))
    with pytest.raises(ValueError, match="operator: expected shape"):
        AnalysisPrior(**QUIET).fit(np.ones((2, 8)), operator=np.ones((7, 8)))
    with pytest.raises(ValueError, match="operator: expected None or a LinearOperator"):
        AnalysisPrior(constraint="tv", verbose=False).fit(np.ones((1, 1, 8, 8)), operator=np.eye(8))
    model = AnalysisPrior(**QUIET).fit(np.random.default_rng(0).standard_normal((5, 8)))
    with pytest.raises(ValueError, match=r"X: expected signals of shape \(8,\)"):
        model.transform(np.ones((2, 7)))
