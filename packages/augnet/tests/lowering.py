"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

import jax
import jax.numpy as jnp
from flax import nnx

from gyri.augnet import Augerino, AugmentationLayer, AugNet, eeg_transforms, image_transforms, invariance, mix
from gyri.augnet.losses import invariance_penalty

KEY, WINDOWS, IMAGES = jax.random.key(0), jnp.ones((3, 2, 40)), jnp.ones((3, 8, 8, 3)) / 2
TRANSFORMS = eeg_transforms(100.0, include="time_freq")


def layer(x, key):
    return AugmentationLayer(image_transforms("geometric"))(x, key=key)


def evaluated(x, key):
    net = AugNet(lambda x: x.mean(-1), AugmentationLayer(TRANSFORMS), copies=3)
    net.eval()
    return net(x, key=key)


def trained(x, key):
    net = AugNet(lambda x: x.mean((1, 2)), AugmentationLayer(image_transforms("non_affine")), train_copies=2)
    graph, state = nnx.split(net)
    return jax.grad(lambda state: nnx.merge(graph, state)(x, key=key).sum())(state)


# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    "gyri.augnet.AugmentationLayer": lambda: (layer, (IMAGES, KEY)),
    "gyri.augnet.AugNet": lambda: (evaluated, (WINDOWS, KEY)),
    "gyri.augnet.AugNet[gradient]": lambda: (trained, (IMAGES, KEY)),
    "gyri.augnet.Augerino": lambda: (lambda x, c: Augerino().apply(x, c), (IMAGES, jnp.ones((3, 6)) / 10)),
    "gyri.augnet.invariance": lambda: (
        lambda x, key: invariance(lambda key, x: x**2, x, lambda key, x: -x, key),
        (WINDOWS, KEY),
    ),
    "gyri.augnet.invariance_penalty": lambda: (lambda w, mu: invariance_penalty((w, mu)), (jnp.ones(3), jnp.ones(3))),
    "gyri.augnet.mix": lambda: (
        lambda key, u, mu, x: mix(key, u, mu, TRANSFORMS, x),
        (KEY, jnp.ones(5), jnp.ones(5), WINDOWS),
    ),
    "gyri.augnet.mix[drawn]": lambda: (
        lambda key, u, mu, x: mix(key, u, mu, TRANSFORMS, x, relaxed=False),
        (KEY, jnp.ones(5), jnp.ones(5), WINDOWS),
    ),
}

# Name of the public function: why it never runs inside jit.
HOST_SIDE = {
    "gyri.augnet.eeg_transforms": "builds a tuple of functions",
    "gyri.augnet.AugNetClassifier": "a scikit-learn estimator",
    "gyri.augnet.image_transforms": "builds a tuple of functions",
    "gyri.augnet.plot_augmentations": "draws a figure on the host",
}
