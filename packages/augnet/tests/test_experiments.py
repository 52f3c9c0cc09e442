"""The experiments run at a small size, and say what they found."""

import matplotlib.figure
import pytest

from gyri.augnet.experiments import images, networks, pose, sinusoids, sleep


def check(result):
    assert result.claims and all(isinstance(f, matplotlib.figure.Figure) for f in result.figures.values())
    assert set(result.captions) == set(result.figures)
    return {claim.quantity: claim for claim in result.claims}


def test_pose(monkeypatch):
    monkeypatch.setitem(pose.SETTINGS, "paper", (8, 96, 32, 2, (1, 4, 4), (True, True)))
    claims = check(pose.pose("paper", 0, lambda fn, items: [fn(items[0])] * len(items)))
    assert claims["learned rotation, first magnitudes 1/2"].measured > claims["learned rotation"].measured > 0


def test_sinusoids(monkeypatch):
    monkeypatch.setattr(sinusoids, "N_EACH", 12)
    monkeypatch.setattr(sinusoids, "TRUNKS", ((2, 1),))
    sinusoids.sinusoids.cache_clear()
    once: dict = {}

    def sweep(fn, items):
        for item in items:
            once.setdefault(item[0], None)
            once[item[0]] = fn(item) if once[item[0]] is None else once[item[0]]
        return [once[item[0]] for item in items]

    claims = check(sinusoids.capacity("paper", 0, sweep))
    for name in ("AugNet", "AugNet, C = 1", "AugNet, C = 4"):
        assert 0 <= claims[f"2 x 1, {name}: accuracy"].measured <= 1
    once.clear()
    assert "weight of the frequency shift" in check(sinusoids.freqnet("quick", 0, sweep))
    sinusoids.sinusoids.cache_clear()


def test_images(monkeypatch):
    monkeypatch.setattr(images, "PAPER", {method: images.PAPER[method] for method in ("no augmentation", "AugNet")})
    full = images.AugNetClassifier
    monkeypatch.setattr(images, "AugNetClassifier", lambda *a, **k: full(*a, **k | {"n_epochs": 1, "copies": 2}))
    monkeypatch.setattr(images, "rotated_digits", lambda seed, n: [part[:60] for part in DIGITS(seed, n)])
    claims = check(images.images("quick", 0, lambda fn, items: [fn(items[0])] * len(items)))
    assert "AugNet: accuracy" in claims


DIGITS = images.rotated_digits


def test_images_without_cifar10_say_what_is_missing(monkeypatch):
    monkeypatch.delenv(images.VARIABLE, raising=False)
    result = images.images("paper", 0)
    assert {claim.verdict.value for claim in result.claims} == {"not run"} and images.VARIABLE in str(result.data)


def test_images_at_the_size_of_the_paper(tmp_path, monkeypatch):
    (tmp_path / "data_batch_1.bin").touch()
    monkeypatch.setenv(images.VARIABLE, str(tmp_path))

    def train(setting):
        found = {"accuracy": images.LAMBDAS.get(setting[0], 0.5), "invariance": ([0.9, 0.7], [0.2, 0.4])}
        return found | {"copies": {c: (0.5, 0.1 * c) for c in images.COPIES["paper"]}}

    monkeypatch.setattr(images, "train", train)
    claims = check(images.images("paper", 0, lambda fn, items: [fn(item) for item in items]))
    assert claims["AugNet, lambda 0.05: accuracy"].measured == 0.05 and "AugNet with 40 copies: accuracy" in claims
    assert claims["its trunk alone: median invariance to rotations after training"].measured == pytest.approx(0.3)


def test_the_files_of_cifar10_are_read(tmp_path):
    import numpy as np

    rows = np.arange(3 * 3073, dtype=np.uint32).reshape(3, 3073).astype(np.uint8)
    rows[:, 0] = (1, 7, 9)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows.tofile(tmp_path / name)
    X, X_test, y, y_test = images.cifar10(str(tmp_path))
    assert X.shape == (15, 32, 32, 3) and X_test.shape == (3, 32, 32, 3) and y_test.tolist() == [1, 7, 9]
    assert len(y) == 15 and X[1, 0, 1, 2] == np.float32(rows[1, 1 + 2 * 1024 + 1]) / 255


def test_the_residual_network_has_the_shapes_of_the_paper():
    import jax
    from flax import nnx

    make = lambda: networks.PreActResNet18((0.5,) * 3, (0.2,) * 3, 10, nnx.Rngs(0))
    model = nnx.eval_shape(make)
    n = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert n == 11_171_146  # the usual count of this network
    small = networks.PreActResNet18((0.5,) * 3, (0.2,) * 3, 10, nnx.Rngs(0), k=4)
    assert small(jax.numpy.ones((2, 32, 32, 3))).shape == (2, 10)


def test_sleep(monkeypatch):
    pytest.importorskip("gyri.cadda")
    monkeypatch.setattr(sleep, "QUICK", (10, 1, 1, 50.0, 1))
    sleep.simulated.cache_clear()
    claims = check(sleep.sleep("quick", 0, lambda fn, items: [fn(items[0])] * len(items)))
    assert 0 <= claims["AugNet: balanced accuracy"].measured <= 1
    sleep.simulated.cache_clear()
