import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.saba import inner_solve, problems, run, saba, value_function


def test_closed_forms_of_quadratics(x64):
    problem = problems.quadratic(0, n=50, m=40, p=6, d=3, mu=0.2, L=2.0, L_cross=0.3)
    x = jnp.array([0.3, -0.5, 1.0])
    value = lambda x: value_function(problem.inner_fun, problem.outer_fun, problem.z0, x, *problem[2:4], tol=1e-12)
    np.testing.assert_allclose(problem.value(x), value(x)[0], rtol=1e-10)
    np.testing.assert_allclose(problem.inner_solution(x), value(x)[1], rtol=1e-8)
    np.testing.assert_allclose(problem.gradient(x), jax.grad(lambda x: value(x)[0])(x), rtol=1e-8)
    np.testing.assert_allclose(problem.hessian(), jax.jacobian(problem.gradient)(x), rtol=1e-10, atol=1e-12)
    assert np.linalg.eigvalsh(problem.hessian())[0] > 0
    np.testing.assert_allclose(problem.gradient(problem.minimizer()), 0, atol=1e-12)


def test_quadratics_have_the_spectra_asked_for(x64):
    problem = problems.quadratic(1, n=200_000, m=10, p=5, d=3, mu=0.1, L=0.8)
    hessian = jax.hessian(problem.inner_fun)(problem.z0, problem.x0, problem.inner_data)
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian), np.geomspace(0.1, 0.8, 5), rtol=0.03)
    in_x = np.linalg.eigvalsh(jax.hessian(problem.inner_fun, 1)(problem.z0, problem.x0, problem.inner_data))
    np.testing.assert_allclose(in_x, [0, np.sqrt(0.08), 0.8], rtol=0.03, atol=1e-12)


def test_quadratics_from_the_same_key_are_the_same():
    a, b, c = (problems.quadratic(key, n=20, m=20, p=3, d=2) for key in (3, 3, 4))
    assert (a.inner_data["hess_z"] == b.inner_data["hess_z"]).all()
    assert not (a.inner_data["hess_z"] == c.inner_data["hess_z"]).all()
    assert a.z0.dtype == jnp.float32


def test_logistic_losses(x64):
    rng = np.random.default_rng(0)
    X, z = rng.normal(size=(30, 4)), rng.normal(size=4)
    y = np.where(rng.random(30) < 0.5, 1, -1)
    x = rng.normal(size=4)
    problem = problems.logistic_regularisation(X[:20], y[:20], X[20:], y[20:])
    loss = lambda rows: np.mean(np.log1p(np.exp(-y[rows] * (X[rows] @ z))))
    inner = problem.inner_fun(jnp.asarray(z), jnp.asarray(x), problem.inner_data)
    np.testing.assert_allclose(inner, loss(slice(20)) + 0.5 * np.sum(np.exp(x) * z**2))
    outer = problem.outer_fun(jnp.asarray(z), jnp.asarray(x), problem.outer_data)
    np.testing.assert_allclose(outer, loss(slice(20, None)))
    single = problems.logistic_regularisation(X[:20], y[:20], X[20:], y[20:], per="single")
    inner = single.inner_fun(jnp.asarray(z), jnp.array([0.3]), single.inner_data)
    np.testing.assert_allclose(inner, loss(slice(20)) + 0.5 * np.exp(0.3) * np.sum(z**2))


@pytest.mark.parametrize(("per", "size"), [("feature", 4), ("class", 3), ("single", 1)])
def test_softmax_losses(per, size, x64):
    rng = np.random.default_rng(0)
    X, y, z, x = rng.normal(size=(30, 4)), rng.integers(0, 3, 30), rng.normal(size=(4, 3)), rng.normal(size=size)
    y[:3] = [0, 1, 2]
    problem = problems.logistic_regularisation(X[:20], y[:20], X[20:], y[20:], per=per)
    assert problem.x0.shape == (size,)
    scores = X[:20] @ z
    loss = np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(20), y[:20]])
    weights = np.exp(x)[:, None] if per == "feature" else np.exp(x)
    inner = problem.inner_fun(jnp.asarray(z), jnp.asarray(x), problem.inner_data)
    np.testing.assert_allclose(inner, loss + 0.5 * np.sum(weights * z**2))


def test_cleaning_loss_and_a_block_of_it(x64):
    rng = np.random.default_rng(0)
    X, y, z, x = rng.normal(size=(30, 4)), rng.integers(0, 3, 30), rng.normal(size=(4, 3)), rng.normal(size=20)
    problem = problems.hyper_cleaning(X[:20], y[:20], X[20:], y[20:], n_classes=3, reg=0.3)
    scores = X[:20] @ z
    losses = np.log(np.exp(scores).sum(1)) - scores[np.arange(20), y[:20]]
    rows = slice(5, 12)
    batch = jax.tree.map(lambda a: a[rows], problem.inner_data)
    expected = np.mean((losses / (1 + np.exp(-x)))[rows]) + 0.3 * np.sum(z**2)
    np.testing.assert_allclose(problem.inner_fun(jnp.asarray(z), jnp.asarray(x), batch), expected)


def test_starts_of_logistic_problems():
    X, y = np.random.default_rng(0).normal(size=(40, 3)).astype("float32"), np.tile([1, -1], 20)
    fixed = problems.logistic_regularisation(X, y, X, y)
    assert (np.asarray(fixed.z0) == 0).all() and (np.asarray(fixed.x0) == -2).all()
    a, b = (problems.logistic_regularisation(X, y, X, y, key=key) for key in (0, 0))
    assert (a.z0 == b.z0).all() and (np.asarray(a.x0) < 0).all()
    assert not (np.asarray(a.z0) == 0).any()
    assert a.inner_fun is b.inner_fun  # solvers compile once for equal shapes


def test_weights_tell_wrong_labels_from_right_ones():
    pytest.importorskip("sklearn")
    problem = problems.load("digits_cleaning", key=0)
    data = (problem.inner_data, problem.outer_data)
    solver = saba(problem.inner_fun, problem.outer_fun, inner_opt=0.1, outer_opt=100.0, batch_size=64)
    state = run(solver, solver.init(0, problem.z0, problem.x0, *data), *data, 1500)
    clean = np.asarray(problem.inner_data["clean"])
    assert 0.45 < clean.mean() < 0.65
    x = np.asarray(state.x)
    order = np.argsort(np.argsort(x))
    auc = (order[clean].mean() - order[~clean].mean()) / len(x) + 0.5
    assert auc > 0.95


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("breast_cancer", ((455, 30), (114, 30), (30,), (30,))),
        ("digits", ((1150, 64), (288, 64), (64, 10), (10,))),
        ("digits_cleaning", ((1024, 64), (256, 64), (64, 10), (1024,))),
    ],
)
def test_bundled_data(name, shapes):
    pytest.importorskip("sklearn")
    problem = problems.load(name)
    found = (problem.inner_data["X"], problem.outer_data["X"], problem.z0, problem.x0)
    assert tuple(a.shape for a in found) == shapes
    np.testing.assert_allclose(problem.inner_data["X"].mean(0), 0, atol=1e-5)
    value = problem.inner_fun(problem.z0, problem.x0, problem.inner_data)
    assert np.isfinite(value)
    if name != "breast_cancer":
        X, y = problems.load_test(name)
        assert X.shape[1] == 64 and len(X) == len(y)
        both = np.concatenate([problem.inner_data["X"], problem.outer_data["X"]])
        assert not (np.asarray(X[:1]) == both).all(1).any()


def test_simulated_ijcnn1_follows_its_recipe():
    problem = problems.load("simulated_ijcnn1")
    rng = np.random.default_rng(0)
    w = rng.normal(size=22)
    X = rng.normal(size=(49_990, 22)) * np.linspace(0.2, 1, 22)
    y = np.where(rng.random(49_990) < 1 / (1 + np.exp(-2 * X @ w)), 1, -1)
    np.testing.assert_allclose(problem.inner_data["X"], X, rtol=1e-6)
    assert (np.asarray(problem.inner_data["y"]) == y).all()


def test_inner_problem_of_digits_is_solved():
    pytest.importorskip("sklearn")
    with jax.enable_x64(True):
        problem = problems.load("digits")
        z = inner_solve(problem.inner_fun, problem.z0, problem.x0, problem.inner_data)
        gradient = jax.grad(problem.inner_fun)(z, problem.x0, problem.inner_data)
        assert float(jnp.linalg.norm(gradient)) < 1e-8


def test_no_strongly_convex_problem_is_an_error(monkeypatch):
    monkeypatch.setattr(problems, "MAX_DRAWS", 1)

    def draws(key):
        try:
            return problems.quadratic(key, n=20, m=20, p=3, d=2, L_cross=1.0)
        except ValueError:
            return None

    drawn = [draws(key) for key in range(20)]
    assert any(drawn)
    with pytest.raises(ValueError, match="key: no strongly convex problem in 1 draws"):
        problems.quadratic(drawn.index(None), n=20, m=20, p=3, d=2, L_cross=1.0)


def test_bad_input():
    X, y = np.ones((6, 2)), np.array([1, -1, 1, -1, 1, 1])
    with pytest.raises(ValueError, match=r"y_train: expected shape \(6,\)"):
        problems.logistic_regularisation(X, y[:5], X, y)
    with pytest.raises(ValueError, match=r"X_val: expected shape \(n_samples, 2\)"):
        problems.logistic_regularisation(X, y, X[:, :1], y)
    with pytest.raises(ValueError, match="X_train: expected finite"):
        problems.logistic_regularisation(X * np.nan, y, X, y)
    with pytest.raises(ValueError, match="y_train: expected -1 and 1, or class indices from 0 on"):
        problems.logistic_regularisation(X, y * 2, X, y)
    with pytest.raises(ValueError, match="y_train: expected -1 and 1, or class indices, got other"):
        problems.logistic_regularisation(X, y * 0.5, X, y)
    with pytest.raises(ValueError, match="y_val: expected -1 and 1, or class indices, got dtype <U1"):
        problems.logistic_regularisation(X, y, X, list("ababab"))
    with pytest.raises(ValueError, match="per: expected 'feature' or 'single'"):
        problems.logistic_regularisation(X, y, X, y, per="class")
    with pytest.raises(ValueError, match="per: expected one of"):
        problems.logistic_regularisation(X, y, X, y, per="row")
    with pytest.raises(ValueError, match="y_val: expected class indices from 0 to 1"):
        problems.hyper_cleaning(X, np.zeros(6, int), X, np.full(6, 2), n_classes=2)
    with pytest.raises(ValueError, match="reg: expected a number >= 0"):
        problems.hyper_cleaning(X, np.zeros(6, int), X, np.zeros(6, int), n_classes=2, reg=-1.0)
    with pytest.raises(ValueError, match="n_classes: expected an integer >= 2"):
        problems.hyper_cleaning(X, np.zeros(6, int), X, np.zeros(6, int), n_classes=1)
    with pytest.raises(ValueError, match="name: expected one of 'breast_cancer'"):
        problems.load("iris")
    with pytest.raises(ValueError, match="corruption: expected a number"):
        problems.load("digits_cleaning", corruption=2.0)
    with pytest.raises(ValueError, match="n: expected at least p = 10"):
        problems.quadratic(0, n=5)
    with pytest.raises(ValueError, match="L: expected a number >= mu"):
        problems.quadratic(0, mu=1.0, L=0.5)
