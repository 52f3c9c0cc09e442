"""Tests of gyri.shine.experiments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gyri.reproduce.registry import find_experiments
from gyri.shine import AdjointBroyden, Broyden, JacobianFree, Shine
from gyri.shine.experiments import dense_layers, directions, inversion, multiscale, penalties, training
from gyri.shine.models import MDEQ, MDEQConfig

from .conftest import relative

NAMES = {"contractivity", "directions", "inversion", "layer_inverses", "multiscale", "nls", "search", "training"}


def test_every_experiment_is_registered():
    found = find_experiments(["shine"])
    assert not found.broken
    assert {experiment.name for experiment in found} == NAMES
    assert all(experiment.description and experiment.figure for experiment in found)


def test_errors_are_those_of_numpy(x64):
    W, b, v = directions.draw(3, 12, 1.5)
    assert np.linalg.norm(W, 2) == pytest.approx(1.5)
    free = directions.error(Broyden(40, 1e-12, "abs"), JacobianFree(), False, W, b, v)
    z = np.zeros(12)
    for _ in range(60):
        value = np.tanh(W @ z + b)
        z = z - np.linalg.solve((1 - value**2)[:, None] * np.asarray(W) - np.eye(12), value - z)
    exact = -np.linalg.solve(((1 - z**2)[:, None] * np.asarray(W) - np.eye(12)).T, v)
    np.testing.assert_allclose(free, relative(v, exact), rtol=1e-6)
    opa = directions.error(AdjointBroyden(40, 1e-10, "abs", opa_every=1), Shine(), True, W, b, v)
    assert opa <= 1e-5


def test_awareness_improves_the_prescribed_direction():
    setting = {name: inversion.qualities((name, 0, 8)) for name in ("no OPA", "M = 5")}
    medians = {name: np.median(found["prescribed"][0]) for name, found in setting.items()}
    assert medians["M = 5"] <= medians["no OPA"] / 3
    assert np.median(setting["M = 5"]["Krylov"][0]) <= 1e-6


def test_penalties_of_a_split():
    least, found = penalties.runs(("breast cancer", "logistic", 0, ("SHINE", "grid")))
    result, exact = found["SHINE"]
    assert exact <= 1.01 * least
    assert found["grid"][1] >= 0.999 * least
    assert result.history["hvps"][-1] == 0
    claims = penalties._claims("topics", [(least, penalties_of(found))])
    assert {claim.verdict.value for claim in claims} <= {"met", "missed", "reported"}


def penalties_of(found):
    """All methods, in the place of each the result of SHINE."""
    return dict.fromkeys((*penalties.METHODS, "grid", "random"), found["SHINE"])


def test_without_network_stand_ins_are_named(monkeypatch):
    def fail():
        raise OSError

    monkeypatch.setattr(penalties, "load_20news", fail)
    names, data, _ = penalties._data("paper")
    assert data.kind == "stand-in" and names == ("breast cancer", "digits", "topics")


def test_dense_layers_are_trained_and_measured(monkeypatch):
    monkeypatch.setattr(dense_layers, "EPOCHS", 2)
    model, accuracy = training.train_dense(0, "shine", 1.0, False, 2)
    assert accuracy > 0.7
    X, y = training.digits(0)[1], training.digits(0)[3]
    assert accuracy == pytest.approx((np.asarray(model(jnp.asarray(X))).argmax(1) == y).mean())
    found = dense_layers.qualities((0, 1))
    assert set(found) == set(dense_layers.ESTIMATES)
    assert all(part.shape == (32,) for quality in found.values() for part in quality)
    assert np.median(found["SHINE, adjoint Broyden, OPA"][0]) < np.median(found["Jacobian-free"][0])


def test_jacobian_penalty_enters_the_loss():
    model = training.Dense(64, 16, 10, rngs=nnx.Rngs(0))
    X, y = jnp.asarray(training.digits(0)[0][:8]), jnp.asarray(training.digits(0)[2][:8])
    key = jax.random.key(0)
    assert training.regularized(model, X, y, key) > training.cross_entropy(model, X, y, key)


@pytest.mark.parametrize("name", ["cifar_tiny", "cifar_large", "imagenet_small"])
def test_training_steps_of_the_paper_have_the_right_shapes(name):
    """Traced, not run: a batch of the paper's size through loss and gradient, by each mode, and the optimiser."""
    config = getattr(MDEQConfig, name)()
    size = 224 if config.downsample_times else 32
    batch = jax.ShapeDtypeStruct((4, size, size, 3), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32)
    mode = multiscale.modes_of(config)["shine"]
    model = nnx.eval_shape(lambda: MDEQ(config, nnx.Rngs(0), backward=mode))
    graph, params, others = nnx.split(model, nnx.Param, ...)
    optimizer = multiscale.make_optimizer(config, 50_000)

    def step(params, others, x, y):
        def loss(params):
            return training.cross_entropy(
                nnx.merge(graph, params, jax.tree.map(lambda a: a, others)), x, y, jax.random.key(0)
            )

        gradient = jax.grad(loss)(params)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    updates = jax.eval_shape(step, params, others, *batch)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


def test_without_torchvision_there_is_no_cifar(monkeypatch):
    monkeypatch.setattr(multiscale, "find_spec", lambda name: None)
    assert multiscale.load_cifar() is None


def test_augmented_images_are_shifted_and_mirrored():
    images = jnp.asarray(np.random.default_rng(0).random((40, 6, 5, 2)), jnp.float32)
    moved = np.asarray(multiscale.augment(jax.random.key(0), images, margin=1))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kinds = []
    for image, source in zip(moved, padded, strict=True):
        candidates = [
            source[i : i + 6, j : j + 5][:, :: 1 - 2 * flip] for i in range(3) for j in range(3) for flip in (0, 1)
        ]
        kinds.append(next(k for k, candidate in enumerate(candidates) if np.array_equal(candidate, image)))
    assert len(set(kinds)) > 9  # of 18
    tiny, large = MDEQConfig.cifar_tiny(), MDEQConfig.cifar_large()
    assert multiscale.with_augmentation(tiny, training.cross_entropy) is training.cross_entropy
    assert multiscale.with_augmentation(large, training.cross_entropy) is not training.cross_entropy
