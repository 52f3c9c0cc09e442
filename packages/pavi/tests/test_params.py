"""Tests of parameters in files."""

import jax.numpy as jnp
import numpy as np
import pytest

from gyri.numerics.io import save_pytree
from gyri.pavi import load_params, save_params


def test_round_trip_is_bit_exact(tmp_path):
    params = {"a": jnp.arange(3.0) / 3, "f$params": [{"kernel": jnp.ones((2, 3)) / 7, "bias": jnp.zeros(3)}], "s": 2.0}
    save_params(tmp_path / "fit", params)
    back = load_params(tmp_path / "fit")
    np.testing.assert_array_equal(back["a"], params["a"])
    np.testing.assert_array_equal(back["f$params"][0]["kernel"], params["f$params"][0]["kernel"])
    assert (tmp_path / "fit").exists()


def test_bad_parameters_and_files(tmp_path):
    with pytest.raises(ValueError, match="params"):
        save_params(tmp_path / "fit", [1.0])
    with pytest.raises(ValueError, match="params"):
        save_params(tmp_path / "fit", {"a": jnp.array(jnp.nan)})
    save_pytree(tmp_path / "other", {"a": jnp.ones(2)}, kind="hnpe")
    with pytest.raises(ValueError, match="hnpe"):
        load_params(tmp_path / "other")
    save_params(tmp_path / "fit", {"a": jnp.ones(1000)})
    data = (tmp_path / "fit").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError):
        load_params(tmp_path / "cut")
