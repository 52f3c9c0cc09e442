"""Tests of gyri.shine.deq and gyri.shine.models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gyri.numerics.testing import check_jit, check_vmap
from gyri.shine import DEQ, AdjointBroyden, Broyden, Full, Picard, fixed_point, jacobian_penalty, spectral_radius
from gyri.shine.models import MDEQ, DenseCell, MDEQCell, MDEQConfig, spectral_norm

from .conftest import layer, problem, relative

TIGHT = Broyden(60, 1e-10)
SMALL = MDEQConfig((8, 8), (4, 4), 16, in_channels=1, dropout=0.3, forward_steps=4)


class PlainCell(nnx.Module):
    """No `prepare`, no `init_state`."""

    def __init__(self, dim, rngs):
        self.linear = nnx.Linear(dim, dim, rngs=rngs, param_dtype=jnp.result_type(float))

    def __call__(self, z, x):
        return jnp.tanh(0.5 * self.linear(z) + x)


def test_output_is_the_fixed_point_of_the_cell(x64):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)))
    deq = DEQ(PlainCell(5, nnx.Rngs(0)), solver=TIGHT)
    z, stats = nnx.jit(lambda deq, x: deq(x, return_info=True))(deq, x)
    np.testing.assert_allclose(deq.cell(z, x), z, atol=1e-8)
    assert stats.converged.all() and stats.n_steps.shape == (3,)
    near = nnx.jit(lambda deq, x, z: deq(x, z, return_info=True)[1])(deq, x, z)
    assert (np.asarray(near.n_steps) == 0).all()


def test_prepare_is_a_shortcut_of_the_same_map(x64):
    cell = DenseCell(4, 6, rngs=nnx.Rngs(0), max_gain=0.8)
    rng = np.random.default_rng(0)
    x, v = jnp.asarray(rng.standard_normal((3, 4))), jnp.asarray(rng.standard_normal((3, 6)))

    class Slow(nnx.Module):
        def __init__(self, cell):
            self.inner = cell

        def init_state(self, x):
            return self.inner.init_state(x)

        def __call__(self, z, x):
            return self.inner(z, x)

    def run(wrap):
        deq = DEQ(wrap(cell), solver=TIGHT, backward=Full(60, 1e-10))
        grads = nnx.jit(nnx.grad(lambda deq: (deq(x) * v).sum()))(deq)
        return jax.tree.leaves(grads)

    for fast, slow in zip(run(lambda c: c), run(Slow), strict=True):
        assert relative(fast, slow) <= 1e-6


def test_gradients_of_parameters_match_finite_differences(x64):
    cell = DenseCell(3, 4, rngs=nnx.Rngs(1), max_gain=None)
    deq = DEQ(cell, solver=TIGHT, backward=Full(60, 1e-11))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3)))
    graph, state = nnx.split(deq)
    flat, unravel = jax.flatten_util.ravel_pytree(state)
    loss = jax.jit(lambda flat: (nnx.merge(graph, unravel(flat))(x) ** 2).sum())
    gradient = jax.jit(jax.grad(loss))(flat)
    step = 1e-5
    for i in range(0, flat.size, 7):
        e = step * jnp.eye(flat.size)[i]
        np.testing.assert_allclose(gradient[i], (loss(flat + e) - loss(flat - e)) / (2 * step), rtol=1e-4, atol=1e-7)


def test_evaluation_has_its_own_solver():
    deq = DEQ(PlainCell(4, nnx.Rngs(0)), solver=Picard(3, 1e-6), eval_solver=Picard(7, 1e-6))
    run = nnx.jit(lambda deq: deq(jnp.ones((2, 4)), return_info=True)[1].trace.shape)
    shape = lambda: jax.eval_shape(lambda: deq(jnp.ones((2, 4)), return_info=True)[1].trace).shape
    assert shape() == (4, 2)
    deq.eval()
    assert shape() == (8, 2)
    deq.train()
    assert shape() == (4, 2)
    del run


def test_outer_problem_awareness_reaches_the_solver():
    solver = AdjointBroyden(8, 1e-5, opa_every=1)
    deq = DEQ(PlainCell(4, nnx.Rngs(0)), solver=solver)
    x, t = jnp.ones((2, 4)), jnp.zeros((2, 4))
    with pytest.raises(ValueError, match="outer_grad: expected the gradient"):
        deq(x)
    grads = nnx.jit(nnx.grad(lambda deq: 0.5 * ((deq(x, outer_grad=lambda z: z - t) - t) ** 2).sum()))(deq)
    exact = DEQ(deq.cell, solver=Broyden(30, 1e-6), backward="full")
    expected = nnx.jit(nnx.grad(lambda deq: 0.5 * ((deq(x) - t) ** 2).sum()))(exact)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert relative(ours, theirs) <= 2e-2


def test_bad_layers_are_refused():
    cell = PlainCell(4, nnx.Rngs(0))
    for options, message in (
        ({"solver": "broyden"}, "solver: expected a Broyden"),
        ({"eval_solver": 3}, "eval_solver: expected a Broyden"),
        ({"backward": "newton"}, "backward: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            DEQ(cell, **options)
    with pytest.raises(ValueError, match="max_gain: expected a number > 0"):
        DenseCell(3, 4, rngs=nnx.Rngs(0), max_gain=0.0)
    with pytest.raises(ValueError, match="dim: expected an integer >= 1"):
        DenseCell(3, 0, rngs=nnx.Rngs(0))


def test_gain_is_capped():
    cell = DenseCell(3, 20, rngs=nnx.Rngs(0), max_gain=0.9)
    cell.W[...] = 5 * cell.W[...]
    W = cell.prepare(jnp.ones((1, 3)))[1][0]
    assert np.linalg.norm(W, 2) == pytest.approx(0.9, rel=0.1)
    exact = np.linalg.svd(np.asarray(cell.W[...]))
    assert spectral_norm(cell.W[...], 100) == pytest.approx(exact.S[0], rel=1e-3)
    gradient = jax.grad(lambda W: spectral_norm(W, 100))(cell.W[...])
    np.testing.assert_allclose(gradient, np.outer(exact.U[:, 0], exact.Vh[0]), atol=2e-2)


def test_weights_of_zero_have_finite_gradients():
    deq = DEQ(DenseCell(3, 4, rngs=nnx.Rngs(0)), solver=Picard(3, 1e-3))
    deq.cell.W[...] = jnp.zeros((4, 4))
    grads = nnx.grad(lambda deq: deq(jnp.ones((2, 3))).sum())(deq)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert (jax.tree.leaves(grads["cell"]["W"])[0] != 0).any()


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_output_has_the_precision_of_the_input(x64, precision):
    layer = nnx.eval_shape(lambda: DEQ(DenseCell(3, 4, rngs=nnx.Rngs(0))))
    model = nnx.eval_shape(lambda: MDEQ(SMALL, nnx.Rngs(0)))
    if precision == "float64":
        model.eval()  # in training flax warns of its running means, which are float32
    for network, shape in ((layer, (2, 3)), (model, (1, 8, 8, 1))):
        out = nnx.eval_shape(lambda network, x: network(x), network, jax.ShapeDtypeStruct(shape, precision))
        assert out.dtype == precision


# --- what is measured on a layer --------------------------------------------------------------------------------------


def test_jacobian_penalty_is_the_mean_square_of_the_jacobian(x64):
    W, b, z = problem(0, 5, 1.4)
    J = np.asarray(jax.jacobian(lambda z: layer(z, W, b))(z))
    estimate = jax.jit(lambda W: jacobian_penalty(layer, z, W, b, key=0, n_samples=20_000))
    np.testing.assert_allclose(estimate(W), (J**2).sum() / 5, rtol=0.05)
    one = lambda W: jacobian_penalty(layer, {"z": z}["z"], W, b, key=1)
    direction = jnp.asarray(np.random.default_rng(1).standard_normal((5, 5)))
    step = 1e-5
    expected = (one(W + step * direction) - one(W - step * direction)) / (2 * step)
    np.testing.assert_allclose((jax.grad(one)(W) * direction).sum(), expected, rtol=1e-6)
    check_jit(lambda z: jacobian_penalty(layer, z, W, b, key=0), z)
    check_vmap(lambda z: jacobian_penalty(layer, z, W, b, key=0), jnp.stack([z, 2 * z]))
    with pytest.raises(ValueError, match="n_samples: expected an integer >= 1"):
        jacobian_penalty(layer, z, W, b, key=0, n_samples=0)


@pytest.mark.parametrize("seed", range(4))
def test_spectral_radius_is_that_of_the_jacobian(x64, seed):
    W, b, z = problem(seed, 6, 1.4)  # some of these have a real largest eigenvalue, some a complex pair
    eigenvalues = np.linalg.eigvals(np.asarray(jax.jacobian(lambda z: layer(z, W, b))(z)))
    radius = jax.jit(lambda z: spectral_radius(layer, z, W, b, key=0, n_steps=400))(z)
    np.testing.assert_allclose(radius, np.abs(eigenvalues).max(), rtol=2e-2)


def test_spectral_radius_of_nothing_is_zero():
    assert spectral_radius(lambda z: 0 * z, jnp.ones(3), key=0) == 0
    with pytest.raises(ValueError, match="n_steps: expected an integer >= 1"):
        spectral_radius(lambda z: z, jnp.ones(3), key=0, n_steps=0)


# --- MDEQ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar_tiny", "cifar_large", "imagenet_small"])
def test_configurations_have_the_published_shapes(name):
    config = getattr(MDEQConfig, name)()
    size = 32 if config.downsample_times == 0 else 64
    model = nnx.eval_shape(lambda: MDEQ(config, nnx.Rngs(0)))
    n_parameters = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    # The published models: 0.17, 10 and 18 million.
    assert n_parameters == pytest.approx(
        {"cifar_tiny": 0.17e6, "cifar_large": 10e6, "imagenet_small": 18e6}[name], rel=0.15
    )
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    cell = model.layer.cell
    x = jax.eval_shape(lambda s, im: nnx.merge(graph, s).stem(im), state, images)
    assert x.shape == (2, size >> config.downsample_times, size >> config.downsample_times, config.channels[0])
    branches = [z.shape for z in jax.eval_shape(cell.init_state, x)]
    first = size >> config.downsample_times
    assert branches == [(2, first >> i, first >> i, c) for i, c in enumerate(config.channels)]

    def train(s, im):
        model = nnx.merge(graph, s)
        return model(im), model(im, unroll=config.n_layers)

    for scores in jax.eval_shape(train, state, images):
        assert scores.shape == (2, config.n_classes)


def test_mdeq_solves_its_cell_and_drops_channels_once_a_solve():
    model = MDEQ(SMALL.replace(forward_steps=25), nnx.Rngs(0), solver=Broyden(25, 1e-3))
    images = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 1)), jnp.float32)
    x = model.stem(images)
    step, consts = model.layer.prepare(x)
    masks = consts[2]
    np.testing.assert_allclose(np.unique(masks[0]), [0, 1 / 0.7], rtol=1e-6)
    assert masks[0].shape == (4, 1, 1, 8)
    start, solver = model.layer.cell.init_state(x), Broyden(25, 1e-3)
    solution = jax.jit(lambda consts: fixed_point(step, start, *consts, solver=solver, batch_ndim=1))(consts)
    image = jax.jit(step)(solution.value, *consts)
    residual = np.sqrt(sum(((a - b) ** 2).sum((1, 2, 3)) for a, b in zip(image, solution.value, strict=True)))
    np.testing.assert_allclose(residual, solution.stats.residual, rtol=1e-3)
    assert (residual < 0.5 * np.asarray(solution.stats.trace[0])).all()
    model.eval()
    assert model.layer.prepare(x)[1][2] is None
    again = model(images)
    np.testing.assert_array_equal(again, model(images))


def test_gradients_reach_the_parameters_of_mdeq():
    model = MDEQ(SMALL, nnx.Rngs(0))
    images = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 1)), jnp.float32)
    grads = nnx.jit(nnx.grad(lambda model: (model(images)[:, 0] - 1).mean() ** 2))(model)
    sizes = [float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)]
    assert np.isfinite(sizes).all()
    assert np.mean(np.array(sizes) > 0) > 0.7


def test_branches_of_odd_sizes_fit():
    cell = MDEQCell(SMALL.replace(channels=(8, 8, 8), head_channels=(4, 4, 4), dropout=0.0), rngs=nnx.Rngs(0))
    x = jnp.ones((1, 7, 5, 8))
    z = cell.init_state(x)
    assert [branch.shape for branch in z] == [(1, 7, 5, 8), (1, 4, 3, 8), (1, 2, 2, 8)]
    assert [branch.shape for branch in jax.eval_shape(cell, z, x)] == [branch.shape for branch in z]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (8, 12)}, "channels: expected multiples of 8"),
        ({"channels": (8,)}, "head_channels: expected one for each"),
        ({"final_channels": 0}, "final_channels: expected an integer >= 1"),
        ({"downsample_times": -1}, "downsample_times: expected an integer >= 0"),
        ({"dropout": 1.0}, "dropout: expected a share"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SMALL.replace(**changes)
