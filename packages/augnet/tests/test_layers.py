"""Modules: what training and evaluation compute, averages over copies, and what is kept of the trunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gyri.augnet import Augerino, AugmentationLayer, AugNet, Transform, eeg_transforms, image_transforms, mix
from gyri.augnet.mixing import choose_for_each
from gyri.numerics.testing import check_no_recompilation

KEY = jax.random.key(1)
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 30)), jnp.float32)
TIME_FREQ = eeg_transforms(100.0, include="time_freq")


class Trunk(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.norm = nnx.Linear(60, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x.reshape(len(x), -1)))


def make(**options):
    layers = [AugmentationLayer(TIME_FREQ, init_magnitude=0.3) for _ in range(2)]
    return AugNet(Trunk(nnx.Rngs(0)), layers, **options)


def test_a_layer_is_mix_in_training_and_a_draw_in_evaluation():
    layer = AugmentationLayer(TIME_FREQ, init_magnitude=[0.1, 0.2, 0.3, 0.4, 0.5], temperature=0.5)
    np.testing.assert_array_equal(layer.logits[...], np.ones(5))
    np.testing.assert_allclose(layer.weights, 0.2)
    arguments = (KEY, layer.logits[...], layer.magnitude[...], TIME_FREQ, X)
    np.testing.assert_array_equal(layer(X, key=KEY), mix(*arguments, temperature=0.5))
    layer.eval()
    np.testing.assert_array_equal(layer(X, key=KEY), mix(*arguments, temperature=0.5, relaxed=False))
    layer.train()
    np.testing.assert_array_equal(layer(X, key=KEY), mix(*arguments, temperature=0.5))
    other = AugmentationLayer(TIME_FREQ, init_magnitude=[0.1, 0.2, 0.3, 0.4, 0.5], temperature=0.5, sampling="example")
    other.eval()
    np.testing.assert_array_equal(other(X, key=KEY), choose_for_each(*arguments, temperature=0.5))


@pytest.mark.parametrize("aggregate", ["log_softmax", "softmax", "logits", "mean"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("copies", [1, 3])
def test_the_average_is_that_of_a_loop(aggregate, training, copies):
    net = make(copies=copies, train_copies=copies, aggregate=aggregate)
    net.trunk.norm.use_running_average = True
    net.train() if training else net.eval()
    net.trunk.norm.use_running_average = True  # so that copies do not see each other's statistics
    outputs = []
    for c in range(copies):
        x = X
        for i, layer in enumerate(net.layers):
            x = layer(x, key=jax.random.fold_in(jax.random.fold_in(KEY, c), i))
        outputs.append(np.asarray(net.trunk(x)))
    outputs = np.stack(outputs)
    log_softmax = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
    expected = {
        "log_softmax": log_softmax.mean(0), "softmax": np.log(np.exp(log_softmax).mean(0)),
        "logits": outputs.mean(0), "mean": outputs.mean(0),
    }[aggregate]  # fmt: skip
    np.testing.assert_allclose(net(X, key=KEY), expected, atol=1e-5)


def test_many_copies_of_a_group_are_invariant():
    (flip,) = eeg_transforms(100.0, include=("sign_flip",))
    net = AugNet(Trunk(nnx.Rngs(0)), AugmentationLayer((flip,), init_magnitude=0.5), copies=2000, aggregate="logits")
    net.eval()
    np.testing.assert_allclose(net(X, key=KEY), net(-X, key=KEY), atol=0.2)
    assert np.abs(net.trunk(X) - net.trunk(-X)).max() > 1


def test_batch_statistics_are_of_one_batch_in_training_and_stay_in_evaluation():
    net = make(train_copies=4)
    before = np.asarray(net.trunk.norm.mean[...])
    net(X, key=KEY)
    after = np.asarray(net.trunk.norm.mean[...])
    assert np.abs(after - before).max() > 1e-4
    net.eval()
    net(X, key=KEY)
    np.testing.assert_array_equal(net.trunk.norm.mean[...], after)


def test_memory_of_evaluation_does_not_grow_with_the_copies():
    x = jnp.ones((16, 2, 400))
    sizes = []
    for copies in (2, 40):
        net = AugNet(lambda x: x.mean(-1), AugmentationLayer(TIME_FREQ), copies=copies)
        net.eval()
        compiled = jax.jit(lambda x, key, net=net: net(x, key=key)).lower(x, KEY).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] <= sizes[0] + 1024


def test_attributes_can_be_changed_and_are_checked():
    net = make(copies=1)
    net.eval()
    one = net(X, key=KEY)
    net.copies = 5
    assert np.abs(net(X, key=KEY) - one).max() > 1e-6
    net.copies = 0
    with pytest.raises(ValueError, match="copies"):
        net(X, key=KEY)
    net.copies, net.aggregate = 1, "median"
    with pytest.raises(ValueError, match="aggregate"):
        net(X, key=KEY)


def test_description_projection_and_concatenation():
    net = make()
    assert net.weights.shape == net.magnitudes.shape == (10,)
    np.testing.assert_allclose(net.weights.reshape(2, 5).sum(1), 1, rtol=1e-6)
    rows = net.describe()
    assert [row["layer"] for row in rows] == [0] * 5 + [1] * 5
    assert rows[0]["operation"] == "time_reverse" and rows[0]["argument"] is None and rows[0]["unit"] == ""
    assert rows[0]["weight"] == pytest.approx(0.2) and rows[0]["magnitude"] == pytest.approx(0.3)
    assert rows[4]["argument"] == pytest.approx(1.5) and rows[4]["unit"] == "Hz"
    net.layers[0].magnitude[...] = jnp.array([-0.2, 1.7, 0.4, 0.0, 1.0])
    net.project()
    np.testing.assert_allclose(net.layers[0].magnitude[...], [0, 1, 0.4, 0, 1])


def test_nnx_transforms_and_no_recompilation():
    net = make(train_copies=2)

    @nnx.jit
    def gradient(net, x, key):
        return nnx.grad(lambda net: net(x, key=key).mean())(net)

    grads = gradient(net, X, KEY)
    assert np.abs(grads["layers"][0]["magnitude"][...]).max() > 0
    graph, state = nnx.split(net)
    call = jax.jit(lambda state, x, key: nnx.merge(graph, state)(x, key=key))
    check_no_recompilation(call, (state, X, KEY), (jax.tree.map(lambda a: a * 0.9, state), X + 1, jax.random.key(5)))


def test_evaluation_again_without_jit_compiles_nothing():
    net, layer = make(copies=3), AugmentationLayer(TIME_FREQ, init_magnitude=0.3)
    net.eval(), layer.eval()
    for module in (net, layer):
        call = lambda x, key, module=module: module(x, key=key)
        check_no_recompilation(call, (X, KEY), (X + 1, jax.random.key(5)), jit=False)
    before = net(X, key=KEY)
    net.trunk.dense.bias[...] += jnp.arange(3.0)  # parameters are data of the program
    assert np.abs(net(X, key=KEY) - before).max() > 0.1


def test_evaluation_under_jit_vmap_and_grad():
    net = make(copies=3, aggregate="logits")
    net.eval()
    keys = jax.random.split(KEY, 2)
    each = jnp.stack([net(X, key=key) for key in keys])
    np.testing.assert_allclose(jax.vmap(lambda key: net(X, key=key))(keys), each, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(nnx.jit(lambda net, x: net(x, key=keys[0]))(net, X), each[0], rtol=1e-4, atol=1e-5)
    shift = nnx.grad(lambda net: net(X, key=KEY)[:, 0].sum())(net)["trunk"]["norm"]["bias"][...]
    np.testing.assert_allclose(shift, [len(X), 0, 0], atol=1e-5)


def test_a_trunk_that_reads_what_changes_is_read_anew():
    scale = {"factor": 1.0}
    net = AugNet(lambda x: scale["factor"] * x.mean(-1), AugmentationLayer(TIME_FREQ), copies=2, aggregate="mean")
    net.eval()
    one = net(X, key=KEY)
    scale["factor"] = 2.0
    np.testing.assert_allclose(net(X, key=KEY), 2 * one, rtol=1e-5)


def test_things_without_a_hash_in_a_trunk_or_a_transform():
    class Gain:
        __hash__ = None

        def __call__(self, key, x, arg):
            return arg * x

    trunk = Trunk(nnx.Rngs(0))
    trunk.options = {"size": 3}
    for layer in (AugmentationLayer(TIME_FREQ), AugmentationLayer((Transform("gain", Gain(), (1.0, 2.0)),))):
        net = AugNet(trunk, layer, copies=2)
        net.eval()
        assert net(X, key=KEY).shape == (5, 3) and layer(X, key=KEY).shape == X.shape


def test_augerino_beside_layers():
    net = AugNet(lambda x: x.mean((1, 2)), [Augerino(), AugmentationLayer(image_transforms())], copies=2)
    assert net.weights.shape == (5,) and len(net.describe()) == 11
    net.eval()
    assert net(jnp.ones((3, 8, 8, 2)), key=KEY).shape == (3, 2)


def test_float64(x64):
    layer = AugmentationLayer(TIME_FREQ)
    assert layer.logits.dtype == jnp.float64
    assert layer(jnp.asarray(X, jnp.float64), key=KEY).dtype == jnp.float64
    single = AugmentationLayer(TIME_FREQ, param_dtype=jnp.float32)
    assert single.logits.dtype == jnp.float32
    net = AugNet(lambda x: x, single)
    assert net.weights.dtype == net.magnitudes.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_magnitude": 1.5}, "init_magnitude"),
        ({"init_magnitude": [0.1, 0.2]}, "init_magnitude: expected one number"),
        ({"init_magnitude": np.nan}, "init_magnitude"),
        ({"temperature": 0.0}, "temperature"),
        ({"apply_temperature": -1.0}, "apply_temperature"),
        ({"sampling": "batch"}, "sampling"),
    ],
)
def test_bad_layers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AugmentationLayer(TIME_FREQ, **options)


def test_bad_networks_are_refused():
    with pytest.raises(ValueError, match="transforms"):
        AugmentationLayer(())
    layer = AugmentationLayer((Transform("nothing", lambda key, x, arg: x),))
    for layers, options, message in (
        ([], {}, "layers"), ([abs], {}, "layers"), (layer, {"copies": 0}, "copies"),
        (layer, {"train_copies": 0}, "train_copies"), (layer, {"aggregate": "vote"}, "aggregate"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            AugNet(lambda x: x, layers, **options)
