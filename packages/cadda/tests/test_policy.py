"""Policies: what they do to windows, their gradients, their laws, their memory, their checks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.cadda import Augmenter, Policy, augment, describe, exposure, init_policy
from gyri.cadda.policy import project
from gyri.numerics.testing import check_jit, check_no_recompilation
from gyri.numerics.transform import Transform, eeg_transforms

FLIP = Transform("flip", lambda key, x, arg: -x)
GAIN = Transform(
    "gain", lambda key, x, arg: x * (jnp.reshape(arg, (-1, 1, 1)) if jnp.ndim(arg) else arg), (1.0, 5.0), "V"
)
NOISE = Transform("noise", lambda key, x, arg: x + jax.random.normal(key, x.shape, x.dtype))
X = np.random.default_rng(0).standard_normal((6, 2, 8)).astype("f4")
Y = np.array([0, 1, 2, 0, 1, 2])
WAYS = [("relaxed", "softmax"), ("relaxed", "gumbel"), ("relaxed", "relax"), ("sample", "softmax")]


def policy_of(logits, p, mu, n_stages=1, n_subpolicies=1, dtype="f4"):
    """Every row, stage and sub-policy the same; rows come from the first axis of each."""
    arrays = [np.asarray(a, dtype) for a in (logits, p, mu)]
    return Policy(*(np.tile(np.atleast_2d(a)[:, None, None], (1, n_subpolicies, n_stages, 1)) for a in arrays))


@pytest.mark.parametrize(("mode", "estimator"), WAYS)
@pytest.mark.parametrize("n_chunks", [1, 4])
def test_probability_zero_is_the_identity_and_one_the_operation(mode, estimator, n_chunks):
    options = {"mode": mode, "estimator": estimator, "n_chunks": n_chunks}
    never, always = policy_of([0, 0], [0, 0], [0.5, 0.5]), policy_of([9, 0], [1, 1], [0.5, 0.5])
    np.testing.assert_allclose(augment(0, never, (FLIP, GAIN), X, **options), X, rtol=1e-6)
    # exp(9 / 0.05) to 1 for softmax; exp(9) to 1 for one-hot draws, which this key makes 0
    np.testing.assert_allclose(augment(0, always, (FLIP, GAIN), X, **options), -X, rtol=1e-5)
    twice = policy_of([0], [1], [0.5], n_stages=2)
    np.testing.assert_allclose(augment(0, twice, (GAIN,), X, **options), 9 * X, rtol=1e-5)


@pytest.mark.parametrize(("mode", "estimator"), WAYS)
def test_each_class_has_its_row(mode, estimator):
    policy = policy_of([[0], [0], [0]], [[1], [0], [1]], [[0], [0.5], [1]])
    out = augment(0, policy, (GAIN,), X, Y, mode=mode, estimator=estimator, n_chunks=2)
    gains = np.array([1, 1, 5, 1, 1, 5])
    np.testing.assert_allclose(out, gains[:, None, None] * X, rtol=1e-5)


def test_softmax_is_the_weighted_sum():
    w, p, mu = [0.02, -0.03, 0.01], [1, 1, 1], [0.0, 0.3, 0.9]
    transforms = (FLIP, GAIN, Transform("zero", lambda key, x, arg: 0 * x))
    weights = np.exp(np.array(w) / 0.05) / np.exp(np.array(w) / 0.05).sum()
    expected = (-weights[0] + weights[1] * 2.2) * X
    np.testing.assert_allclose(augment(0, policy_of(w, p, mu), transforms, X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mode", "estimator"), [("relaxed", "gumbel"), ("relaxed", "relax"), ("sample", "softmax")])
def test_choices_have_the_laws_that_they_should(mode, estimator):
    w, p, n = np.array([0.03, -0.02]), np.array([0.3, 0.8]), 4000
    scale = 0.05 if mode == "sample" else 1.0
    weights = np.exp(w / scale) / np.exp(w / scale).sum()
    policy = policy_of(w, p, [0.5, 0.5])
    x = np.ones((n, 1, 1), "f4")
    transforms = (FLIP, Transform("double", lambda key, x, arg: 2 * x))
    out = np.asarray(augment(1, policy, transforms, x, mode=mode, estimator=estimator, n_chunks=n)).ravel()
    for share, expected in ((out < 0, weights[0] * p[0]), (out > 1.5, weights[1] * p[1])):
        assert abs(share.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_subpolicies_are_drawn_uniformly_and_once_a_chunk():
    p = np.array([0.0, 1.0, 0.0, 1.0], "f4").reshape(1, 4, 1, 1)
    policy = Policy(np.zeros_like(p), p, np.zeros_like(p))
    out = np.asarray(augment(0, policy, (FLIP,), np.ones((3000, 1, 1), "f4"), mode="sample", n_chunks=1000)).reshape(
        -1, 3
    )
    assert np.all(out == out[:, :1])
    assert abs((out[:, 0] < 0).mean() - 0.5) < 0.07


@pytest.mark.parametrize(("mode", "estimator"), WAYS)
@pytest.mark.parametrize(
    ("n_chunks", "sizes"),
    [(2, [5, 4]), (4, [3, 2, 2, 2]), (8, [2, 1, 1, 1, 1, 1, 1, 1]), (12, 9 * [1]), (3, [3, 3, 3])],
)
def test_chunks_are_of_equal_size_up_to_rounding(mode, estimator, n_chunks, sizes):
    mu = np.linspace(0, 1, 5000, dtype="f4").reshape(1, -1, 1, 1)  # so many sub-policies that each chunk has another
    policy = Policy(np.zeros_like(mu), np.ones_like(mu), mu)
    add = Transform("add", lambda key, x, arg: x + jnp.reshape(jnp.broadcast_to(arg, len(x)), (-1, 1, 1)), (0.0, 9.0))
    x = 10 * np.arange(9, dtype="f4")[:, None, None]
    added = augment(0, policy, (add,), x, mode=mode, estimator=estimator, n_chunks=n_chunks) - x
    assert np.all((added >= 0) & (added <= 9))  # windows keep their places
    found, counts = np.unique(np.round(added.ravel(), 3), return_counts=True)
    order = np.argsort([np.argmin(np.abs(added.ravel() - value)) for value in found])
    assert counts[order].tolist() == sizes


@pytest.mark.parametrize(("mode", "estimator"), WAYS)
def test_noise_differs_between_windows_and_keys(mode, estimator):
    policy, options = policy_of([0], [1], [0]), {"mode": mode, "estimator": estimator, "n_chunks": 3}
    out = np.asarray(augment(0, policy, (NOISE,), 0 * X, **options))
    assert all(np.abs(out[i] - out[j]).max() > 0.1 for i, j in itertools.combinations(range(6), 2))
    assert np.abs(out - augment(1, policy, (NOISE,), 0 * X, **options)).max() > 0.1
    np.testing.assert_array_equal(out, augment(0, policy, (NOISE,), 0 * X, **options))


@pytest.mark.parametrize("estimator", ["softmax", "relax"])
def test_gradients_are_those_of_finite_differences(estimator, x64):
    policy = policy_of([[0.01, -0.02], [0.0, 0.03]], [[0.4, 0.6], [0.5, 0.3]], [[0.2, 0.6], [0.5, 0.4]], 2, 2, "f8")
    x, y = X.astype("f8"), Y % 2
    weights = np.random.default_rng(1).standard_normal(X.shape)

    @jax.jit
    def f(policy, x):
        out = augment(3, policy, (GAIN, FLIP), x, y, estimator=estimator, n_chunks=2, temperature=0.5)
        return jnp.sum(out * weights)

    slope, in_x = jax.jit(jax.grad(f, (0, 1)))(policy, x)
    e = 1e-5
    for name, at in itertools.product(
        ["probabilities", "magnitudes", "logits"], [(0, 0, 1, 0), (1, 1, 0, 0), (0, 1, 0, 1)]
    ):
        if estimator == "relax" and name == "logits":
            assert not np.asarray(slope.logits).any()  # relax_gradient has to estimate it
            continue
        leaf = getattr(policy, name)
        move = lambda s, name=name, leaf=leaf, at=at: policy._replace(**{name: jnp.asarray(leaf).at[at].add(s)})
        expected = (f(move(e), x) - f(move(-e), x)) / (2 * e)
        np.testing.assert_allclose(getattr(slope, name)[at], expected, rtol=1e-4, atol=1e-9)
    bump = np.zeros_like(x)
    bump[2, 1, 3] = e
    np.testing.assert_allclose(in_x[2, 1, 3], (f(policy, x + bump) - f(policy, x - bump)) / (2 * e), rtol=1e-6)


def test_gumbel_has_a_gradient_in_the_choice_and_sampling_none():
    policy = policy_of([0.0, 0.0], [0.5, 0.5], [0.5, 0.5])
    loss = lambda policy, **options: jnp.sum(augment(0, policy, (FLIP, GAIN), X, **options) ** 2)
    slope = jax.grad(loss)(policy, estimator="gumbel")
    assert np.abs(slope.logits).max() > 0 and np.abs(slope.probabilities).max() > 0
    assert all(not np.asarray(leaf).any() for leaf in jax.grad(loss)(policy, mode="sample"))


def test_hypergradients_go_through_every_estimator():
    """Forward over reverse and reverse over forward pass the switch and the rematerialisation."""
    from gyri.cadda import hypergradient

    policy = policy_of([[0, 0], [0, 0], [0, 0]], [[0.5, 0.5]] * 3, [[0.5, 0.5]] * 3)
    for estimator in ("softmax", "gumbel", "relax"):
        train = lambda t, a, e=estimator: jnp.mean(
            (augment(0, a, (FLIP, GAIN), X, Y, estimator=e).sum((1, 2)) - t) ** 2
        )
        exact, _ = hypergradient(train, lambda t: (t - 1) ** 2, jnp.array(0.3), policy, 0.1)
        again, _ = hypergradient(train, lambda t: (t - 1) ** 2, jnp.array(0.3), policy, 0.1, method="finite_difference")
        assert np.abs(exact.probabilities).max() > 1e-4
        np.testing.assert_allclose(exact.probabilities, again.probabilities, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("mode", "estimator"), WAYS)
def test_dtypes_jit_and_recompilation(mode, estimator, dtype):
    transforms = eeg_transforms(50.0, include=["sign_flip", "time_mask"])
    policy = init_policy(0, 2, n_classes=3, dtype=dtype)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 2, 20)), dtype)
    f = lambda key, policy, x, y: augment(key, policy, transforms, x, y, mode=mode, estimator=estimator, n_chunks=2)
    assert f(jax.random.key(0), policy, x, Y).dtype == dtype
    check_jit(f, jax.random.key(0), policy, x, jnp.asarray(Y), rtol=1e-4, atol=1e-5)
    other = policy._replace(magnitudes=policy.magnitudes / 2)
    arguments = (
        (jax.random.key(0), policy, x, jnp.asarray(Y)),
        (jax.random.key(1), other, x, jnp.asarray(Y[::-1].copy())),
    )
    check_no_recompilation(f, *arguments)


@pytest.mark.parametrize(("mode", "estimator"), WAYS)
def test_a_second_call_without_jit_compiles_nothing(mode, estimator):
    policy = policy_of([[0, 0]] * 3, [[0.5, 0.5]] * 3, [[0.5, 0.5]] * 3, n_subpolicies=2)
    other = policy._replace(magnitudes=policy.magnitudes / 2)
    f = lambda key, policy: augment(key, policy, [NOISE, GAIN], X, Y, mode=mode, estimator=estimator, n_chunks=2)
    check_no_recompilation(f, (0, policy), (1, other), jit=False)
    apply = lambda key, policy: Augmenter(policy, (NOISE, GAIN), n_chunks=2)(key, X, Y)
    check_no_recompilation(apply, (0, policy), (1, other), jit=False)


@pytest.mark.parametrize(("mode", "estimator"), WAYS)
def test_operations_of_another_precision(mode, estimator, x64):
    double = Transform("double", lambda key, x, arg: 2 * x.astype("f8"))
    out = augment(0, policy_of([0], [1], [0]), (double,), X, mode=mode, estimator=estimator)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, 2 * X, rtol=1e-5)


def test_memory_of_one_operation_does_not_grow_with_their_number():
    base = eeg_transforms(50.0, include=["frequency_shift", "ft_surrogate"])
    x = jax.ShapeDtypeStruct((8, 2, 256), np.float32)
    size = {}
    for n, estimator in itertools.product((1, 4), ("softmax", "relax")):
        copies = [
            Transform(f"{t.name}{i}", lambda k, x, a, t=t, i=i: t.fn(k, x, (1 + i) * a), t.range)
            for i in range(n)
            for t in base
        ]
        loss = lambda p, x, c=copies, e=estimator: jnp.sum(jnp.sin(augment(0, p, c, x, jnp.arange(8) % 2, estimator=e)))
        policy = jax.eval_shape(lambda n=n: init_policy(0, 2 * n, n_classes=2))
        program = jax.jit(jax.grad(loss, (0, 1))).lower(policy, x).compile()
        size[estimator, n] = program.memory_analysis().temp_size_in_bytes / (8 * 2 * 256 * 4)
    assert size["relax", 4] < 1.2 * size["relax", 1] < 40
    assert 2 < size["softmax", 4] / size["softmax", 1] < 4.5


def test_start_projection_exposure_and_table():
    policy = init_policy(3, 4, n_subpolicies=2, n_stages=3, n_classes=5)
    assert all(leaf.shape == (5, 2, 3, 4) and leaf.dtype == np.float32 for leaf in policy)
    assert np.abs(policy.logits).max() < 0.01 and np.abs(np.asarray(policy.probabilities) - 0.5).max() < 0.01
    assert np.abs(policy.probabilities - policy.magnitudes).max() > 1e-4
    assert init_policy(0, 4).logits.shape == (1, 5, 2, 4)
    moved = project(Policy(policy.logits - 3, policy.probabilities + 3, policy.magnitudes - 3))
    assert np.all(moved.probabilities == 1) and np.all(moved.magnitudes == 0) and np.all(moved.logits < -2)
    random = Policy(*(np.random.default_rng(0).random((3, 2, 2, 4)) for _ in range(3)))
    e = np.exp(random.logits / 0.3)
    expected = (e / e.sum(-1, keepdims=True) * random.probabilities).mean((1, 2))
    np.testing.assert_allclose(exposure(random, temperature=0.3), expected, rtol=1e-5)
    rows = describe(policy_of([0.0, 0.05], [0.2, 0.4], [0.1, 0.5]), (FLIP, GAIN))
    assert [set(row) for row in rows] == 2 * [
        {"class", "subpolicy", "stage", "operation", "weight", "probability", "magnitude", "argument", "unit"}
    ]
    assert rows[0]["class"] is None and rows[0]["argument"] is None and rows[0]["operation"] == "flip"
    assert rows[1]["argument"] == pytest.approx(3) and rows[1]["unit"] == "V"
    assert rows[1]["weight"] == pytest.approx(np.e / (1 + np.e))
    assert {row["class"] for row in describe(policy, eeg_transforms(50.0)[:4])} == set(range(5))
    for call in (
        lambda t: describe(policy, eeg_transforms(50.0)[:4], temperature=t),
        lambda t: exposure(policy, temperature=t),
    ):
        with pytest.raises(ValueError, match="temperature: expected a number > 0, got 0"):
            call(0)


def test_an_augmenter_is_an_argument():
    one, other = (Augmenter(policy_of([0], [p], [0]), (FLIP,)) for p in (0, 1))
    check_no_recompilation(lambda a, key, x: a(key, x), (one, jax.random.key(0), X), (other, jax.random.key(0), X))
    np.testing.assert_array_equal(jax.jit(lambda a: a(jax.random.key(0), X))(other), -X)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, r"x: expected shape \(batch, n_channels, n_times\), got \(2, 8\)"),
        ({"x": X[:0]}, "x: expected at least one entry"),
        ({"x": X * 1j}, "x: expected an array of real numbers"),
        ({"x": np.where(X > 1, np.nan, X)}, "x: expected finite"),
        ({"y": None}, "y: expected labels, as the policy has 3 classes, got None"),
        ({"y": Y[:4]}, r"y: expected shape \(6,\)"),
        ({"y": Y.astype(float)}, "y: expected integer labels, got dtype float64"),
        ({"y": Y + 1}, "y: expected labels >= 0 and < 3, got labels from 1 to 3"),
        ({"transforms": (FLIP,)}, "transforms: expected 2 as the policy has operations, got 1"),
        ({"transforms": ("flip", "gain")}, "transforms: expected one or more"),
        ({"transforms": ()}, "transforms: expected one or more"),
        ({"policy": "cadda"}, "policy: expected a Policy, got str"),
        ({"policy": policy_of([0, 0], [1.2, 0], [0, 0])}, r"policy.probabilities: expected values in \[0, 1\]"),
        ({"policy": policy_of([0, 0], [1, 0], [-1, 0])}, r"policy.magnitudes: expected values in \[0, 1\]"),
        ({"policy": policy_of([0, 0], [1], [0, 0])}, "policy.probabilities: expected the shape of logits"),
        ({"policy": Policy(*3 * (np.zeros(2),))}, "policy.logits: expected 4 axes"),
        ({"mode": "hard"}, "mode: expected one of"),
        ({"estimator": "reinforce"}, "estimator: expected one of"),
        ({"temperature": 0.0}, "temperature: expected a number > 0"),
        ({"n_chunks": 0}, "n_chunks: expected an integer >= 1"),
    ],
)
def test_bad_input(change, message):
    policy = policy_of([[0, 0]] * 3, [[0.5, 0.5]] * 3, [[0.5, 0.5]] * 3)
    arguments = {"key": 0, "policy": policy, "transforms": (FLIP, GAIN), "x": X, "y": Y} | change
    with pytest.raises(ValueError, match=message):
        augment(**arguments)


@pytest.mark.parametrize("arguments", [{"n_ops": 0}, {"n_ops": 2, "n_classes": 0}, {"n_ops": 2, "dtype": "int32"}])
def test_bad_starts(arguments):
    with pytest.raises(ValueError, match="expected"):
        init_policy(0, **arguments)
