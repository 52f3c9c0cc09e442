"""The checks must fail where they should."""

import jax
import jax.numpy as jnp
import pytest

from gyri.numerics import testing


def test_check_jit_sees_a_difference():
    testing.check_jit(lambda x: {"y": x + 1}, jnp.ones(3))
    with pytest.raises(AssertionError, match=r"jit and no jit: result\['y'\]"):
        testing.check_jit(lambda x: {"y": x + isinstance(x, jax.core.Tracer)}, jnp.ones(3))
    with pytest.raises(AssertionError, match="other structure"):
        testing.check_jit(lambda x: [x] * (1 + isinstance(x, jax.core.Tracer)), jnp.ones(3))
    with pytest.raises(AssertionError, match="float16 and float32"):
        testing.check_jit(lambda x: x.astype("float16" if isinstance(x, jax.core.Tracer) else "float32"), jnp.ones(3))


def test_check_vmap_sees_a_difference_of_keys_and_of_values():
    testing.check_vmap(lambda key: jax.random.split(key), jax.random.split(jax.random.key(0), 3))
    testing.check_vmap(lambda x, y: (x * y, x.sum()), jnp.ones((3, 2)), jnp.arange(3.0))
    calls = iter(range(9))
    with pytest.raises(AssertionError, match="vmap and loop"):
        testing.check_vmap(lambda x: x + next(calls), jnp.ones(3))


def test_check_lowers_sees_an_operation_without_a_lowering():
    with pytest.raises(Exception, match=r"(?i)lower|not implemented|not found"):
        testing.check_lowers(lambda x: jnp.linalg.eig(x)[0], jnp.eye(2), platforms=("tpu",))


def test_check_no_recompilation_sees_a_compilation():
    testing.check_no_recompilation(jnp.cos, (jnp.ones(3),), (jnp.zeros(3),))
    with pytest.raises(AssertionError, match="the second call compiled"):
        testing.check_no_recompilation(jnp.cos, (jnp.ones(5),), (jnp.zeros(6),))
    with pytest.raises(AssertionError, match="the second call compiled"):
        testing.check_no_recompilation(lambda x: jax.jit(lambda y: y + 1)(x), (jnp.ones(3),), (jnp.ones(3),), jit=False)
