"""Tests of gyri.numerics.host: a numba function inside XLA sees the arrays that it should, and nothing else."""

import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from gyri.numerics import host, prox_tv1d

needs_numba = pytest.mark.skipif(not host.available(), reason="numba functions cannot run inside XLA here")


def scaled_running_sum(x, scale, out, last):
    for i in range(out.shape[0]):
        total = 0.0
        for t in range(x.shape[1]):
            total += x[i, t]
            out[i, t] = total * scale[i if scale.shape[0] > 1 else 0]
        last[i] = x.shape[1]


@pytest.fixture(scope="module")
def kernel():
    return host.njit(scaled_running_sum)


def call(kernel, x, scale, grain=16384):
    results = (jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(x.shape[:1], jnp.int32))
    return host.host_call("test_running_sum", kernel, results, x, scale, grain=grain)


@needs_numba
@pytest.mark.parametrize("grain", [1, 7, 10**6])
@pytest.mark.parametrize("shape", [(5, 7), (1, 3), (64, 2), (3, 1), (0, 4), (2, 0)])
def test_every_entry_is_visited_once(kernel, dtype, shape, grain):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(dtype)
    for scale in (np.ones(1, dtype), rng.standard_normal(shape[0]).astype(dtype)):
        out, last = jax.jit(lambda x, s: call(kernel, x, s, grain))(x, scale)
        np.testing.assert_allclose(out, np.cumsum(x, 1) * scale[:, None], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(last, np.full(shape[0], shape[1]))


@needs_numba
@pytest.mark.parametrize("grain", [1, 10**6])
def test_vmap_is_one_more_batch_axis(kernel, x64, grain):
    rng = np.random.default_rng(1)
    x, scale = rng.standard_normal((4, 3, 5, 6)), rng.standard_normal((4, 5))
    one = lambda x, s: call(kernel, x, s, grain)[0]
    expected = np.cumsum(x, -1) * scale[:, None, :, None]
    both = jax.jit(jax.vmap(jax.vmap(one, (0, None)), (0, 0)))
    np.testing.assert_allclose(both(x, scale), expected, atol=1e-12)
    np.testing.assert_allclose(both(x, scale[:, :1]), np.cumsum(x, -1) * scale[:, None, :1, None], atol=1e-12)
    np.testing.assert_allclose(jax.lax.map(lambda a: both(x, a), scale[None])[0], expected, atol=1e-12)


@needs_numba
def test_strides_and_read_only_arrays_are_no_concern(kernel, x64):
    base = np.random.default_rng(2).standard_normal((6, 10))
    for x in (base[::2, ::3], base.T, np.asfortranarray(base), np.broadcast_to(base[0], (4, 10))):
        out = jax.jit(lambda x: call(kernel, x, jnp.ones(1))[0])(x)
        np.testing.assert_allclose(out, np.cumsum(x, 1), atol=1e-12)
    inside = jax.jit(lambda x: call(kernel, x.T[::2], jnp.ones(1))[0].T)  # XLA may choose another layout for x.T
    np.testing.assert_allclose(inside(base), np.cumsum(base.T[::2], 1).T, atol=1e-12)


@needs_numba
def test_two_threads_at_once(kernel, x64):
    x = np.random.default_rng(3).standard_normal((200, 50))
    function = jax.jit(lambda x: call(kernel, x, jnp.ones(1), 1)[0])
    expected, wrong = np.cumsum(x, 1), []
    function(x)

    def work():
        with jax.enable_x64(True):  # a setting of the thread
            wrong.extend(call for call in range(50) if not np.allclose(function(x), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_numba
def test_what_a_kernel_cannot_be_given_is_refused(kernel):
    x = jnp.ones((3, 4))
    with pytest.raises(ValueError, match=r"args\[1\]: expected a batch axis of \(3,\) or 1, got shape \(2,\)"):
        call(kernel, x, jnp.ones(2))
    with pytest.raises(ValueError, match=r"args\[0\]: expected one of float32, .* got bfloat16"):
        call(kernel, x.astype(jnp.bfloat16), jnp.ones(1))
    with pytest.raises(ValueError, match="name: expected a name of one kernel"):
        host.host_call("test_running_sum", host.njit(lambda x, out: None), jax.ShapeDtypeStruct((3, 4), x.dtype), x)
    with pytest.raises(ValueError, match="expected inputs and results"):
        host.host_call("test_nothing", kernel, [], x)


@needs_numba
def test_prox_on_the_host_is_what_xla_computes(x64):
    rng = np.random.default_rng(4)
    for n_signals, n in ((1, 2), (7, 33), (300, 120)):  # the last in several threads
        x = np.cumsum(rng.standard_normal((n_signals, n)), 1)
        lam, weight = rng.exponential(1, (n_signals, n - 1)), (rng.random((n_signals, n)) < 0.7) * 1.0
        for options in ({"lam": 0.7}, {"lam": lam}, {"lam": lam[:, :1]}, {"lam": lam, "sample_weight": weight}):
            ours, xla = (prox_tv1d(x, **options, method=method) for method in ("auto", "scan"))
            np.testing.assert_allclose(ours, xla, atol=1e-12)


@needs_numba
def test_export_for_other_platforms_takes_the_xla_path():
    gradient = jax.jit(lambda x, lam: jax.grad(lambda x: jnp.sum(prox_tv1d(x, lam) ** 2))(x))
    for platform in ("cuda", "tpu"):
        exported = export.export(gradient, platforms=[platform])(jnp.ones((3, 8)), 1.0)
        assert "gyri_prox_tv1d" not in exported.mlir_module()


SWITCHED_OFF = """
import numpy as np
from gyri.numerics import host, prox_tv1d
assert not host.available()
print(prox_tv1d(np.array([0, 1, 5, 6.0], np.float32), 1.0))
try:
    host.host_call("x", None, None)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("how", ["variable", "no numba"])
def test_without_it_nothing_changes_but_speed(how):
    code, variables = SWITCHED_OFF, dict(os.environ)
    if how == "variable":
        variables["GYRI_HOST_KERNELS"] = "0"
    else:
        code = "import sys; sys.modules['numba'] = None\n" + code
    out = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert "[1. 1. 5. 5.]" in out.stdout
    assert "ask gyri.numerics.host.available() first" in out.stdout
