"""Pytrees on disk: bit-exact, atomic, and never read when damaged."""

import hashlib
import io
import json
import os
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gyri.numerics.io import load_pytree, save_pytree


class Pair(NamedTuple):
    first: object
    second: object


def bits(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return ("key", str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf)).tobytes())
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        kind = jax.Array if isinstance(leaf, jax.Array) else np.ndarray
        return (kind, np.dtype(leaf.dtype), np.shape(leaf), np.asarray(leaf).tobytes())
    return (type(leaf), repr(leaf))


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert [bits(a) for a in jax.tree.leaves(actual)] == [bits(e) for e in jax.tree.leaves(expected)]


TREE = {
    "z": {"nan": np.array([np.nan, -0.0, np.inf]), "empty": np.zeros((0, 3), np.int8), "": jnp.zeros(())},
    "jax": [jnp.arange(3, dtype=jnp.bfloat16), jnp.array([True, False]), jnp.array([1 + 2j]), jnp.int4(-3)],
    "numpy": (np.float64(1 / 3), np.array([2**63], np.uint64), np.array([1, 2], ">i4"), np.asfortranarray(np.eye(3))),
    "half": np.array([0.1], np.float16),
    "float8": np.array([0.5, 2], ml_dtypes.float8_e4m3fn),
    "scalars": [True, -(10**400), 0.1, float("nan"), float("-inf"), 1 - 0.5j],
    "keys": {"typed": jax.random.key(3), "rbg": jax.random.split(jax.random.key(1, impl="rbg"), 2)},
    "nothing": [None, {}, (), []],
    "odd '/\\ name": jnp.ones((2, 1, 2)),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.weights"  # no suffix is added


def test_every_leaf_and_container_comes_back_bit_exact(path):
    meta = {"sfreq": 100.5, "names": ["a", "b"], "nested": {"n": None, "ok": True}}
    save_pytree(path, TREE, kind="test", meta=meta)
    tree, loaded_meta = load_pytree(path, kind="test")
    assert_identical(tree, TREE)
    assert list(tree) == list(TREE)  # JAX sorts the keys of a dict, the file does not
    assert type(tree["scalars"][0]) is bool
    assert loaded_meta == meta
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("leaf", [jnp.arange(3.0), 3, None, jax.random.key(0)])
def test_a_bare_leaf_is_a_tree(path, leaf):
    save_pytree(path, leaf, kind="test")
    tree, meta = load_pytree(path, kind="test")
    assert_identical(tree, leaf)
    assert meta == {}


def test_like_restores_named_tuples_and_optimiser_states(path):
    import optax

    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    state = Pair(params, optax.adam(1e-3).init(params))
    save_pytree(path, state, kind="test")
    for like in (state, jax.eval_shape(lambda: state)):
        tree, _ = load_pytree(path, kind="test", like=like)
        assert_identical(tree, state)
    with pytest.raises(ValueError, match=r"holds a .*Pair; pass a tree of that structure as `like`"):
        load_pytree(path, kind="test")


def test_like_must_have_the_files_structure_and_shapes(path):
    save_pytree(path, {"w": jnp.ones((2, 3)), "b": 1.0}, kind="test")
    with pytest.raises(ValueError, match=r"tree\['w'\]: expected shape \(3, 2\), got \(2, 3\)"):
        load_pytree(path, kind="test", like={"w": jnp.ones((3, 2)), "b": 1.0})
    with pytest.raises(ValueError, match=r"only in like \[\"\['c'\]\"\], only in file \[\"\['b'\]\"\]"):
        load_pytree(path, kind="test", like={"w": jnp.ones((2, 3)), "c": 1.0})


def test_double_precision_survives_a_process_in_single_precision(path):
    with jax.enable_x64(True):
        saved = jnp.array([1 / 3])
        save_pytree(path, saved, kind="test")
        assert_identical(load_pytree(path, kind="test")[0], saved)
    loaded, _ = load_pytree(path, kind="test")
    assert type(loaded) is np.ndarray
    assert loaded[0] == 1 / 3


def test_the_file_is_an_npz_that_numpy_opens_without_pickle(path):
    save_pytree(path, {"w": [jnp.arange(3)]}, kind="test", meta={"a": 1})
    with np.load(path, allow_pickle=False) as file:
        assert file["tree['w'][0]"].tolist() == [0, 1, 2]
        header = json.loads(file["gyri-header"].tobytes())
    assert (header["kind"], header["package"], header["meta"]) == ("test", "gyri-numerics", {"a": 1})
    assert header["version"]


def test_same_content_same_bytes(path):
    save_pytree(path, TREE, kind="test")
    first = path.read_bytes()
    save_pytree(path, TREE, kind="test")
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (lambda x: x, r"tree\['f'\]\[0\]: expected an array, a Python number or a PRNG key, got a function"),
        (np.array([None]), r"tree\['f'\]\[0\]: expected an array of numbers, got dtype object"),
        ("text", r"tree\['f'\]\[0\]: .*got a str"),
        (os, r"tree\['f'\]\[0\]: .*got a module"),
        (np.array(["x"]), "got dtype <U1"),
        (np.zeros(1, [("a", int)]), "expected an array of numbers"),
    ],
)
def test_other_leaves_are_refused_by_name_and_nothing_is_written(path, leaf, message):
    with pytest.raises(ValueError, match=message):
        save_pytree(path, {"f": [leaf]}, kind="test")
    assert os.listdir(path.parent) == []


def test_tracers_are_refused(path):
    with pytest.raises(ValueError, match=r"tree\['x'\]: expected a concrete array, got a tracer"):
        jax.jit(lambda x: save_pytree(path, {"x": x}, kind="test"))(1.0)


def test_scalars_in_meta_are_python_numbers(path):
    scalars = {"n": np.int64(3), "x": jnp.float32(0.5), "on": np.bool_(True), "s": np.str_("a"), "zero_d": np.array(2)}
    save_pytree(path, {}, kind="test", meta={**scalars, "inside": [scalars]})
    expected = {"n": 3, "x": 0.5, "on": True, "s": "a", "zero_d": 2}
    meta = load_pytree(path, kind="test")[1]
    assert meta == {**expected, "inside": [expected]}
    assert [type(value) for value in meta["inside"][0].values()] == [int, float, bool, str, int]


@pytest.mark.parametrize("meta", [{"a": (1, 2)}, {1: 2}, {"a": float("nan")}, {"a": np.ones(1)}, {"a": {1, 2}}])
def test_meta_that_json_would_change_is_refused(path, meta):
    with pytest.raises(ValueError, match=r"^meta: expected a dict that JSON keeps"):
        save_pytree(path, 1, kind="test", meta=meta)


def test_a_failed_write_leaves_the_old_file_and_no_other(path, monkeypatch):
    save_pytree(path, 1, kind="test")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pytree(path, 2, kind="test")
    assert load_pytree(path, kind="test")[0] == 1
    assert os.listdir(path.parent) == [path.name]


def test_the_file_has_the_permissions_of_any_new_file(path):
    save_pytree(path, 1, kind="test")
    (path.parent / "other").touch()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode


def test_any_truncation_is_an_error_that_says_so(path):
    save_pytree(path, {"w": jnp.arange(4.0), "n": 3}, kind="test")
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="damaged"):
            load_pytree(path, kind="test")
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        load_pytree(path, kind="test")


def test_any_flipped_byte_is_an_error_that_says_so(path):
    save_pytree(path, {"w": jnp.arange(4.0), "n": 3}, kind="test")
    content = path.read_bytes()
    for position in range(len(content)):
        for flip in (0x01, 0x20, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="damaged"):
                load_pytree(path, kind="test")


def test_kind_newer_format_and_foreign_file_are_told_apart(path):
    save_pytree(path, 1, kind="dripp")
    with pytest.raises(ValueError, match="expected a file of kind 'pavi', got 'dripp'"):
        load_pytree(path, kind="pavi")
    np.savez(path.with_suffix(".npz"), w=np.ones(3))
    with pytest.raises(ValueError, match="not a gyri file"):
        load_pytree(path.with_suffix(".npz"), kind="dripp")
    with pytest.raises(FileNotFoundError):
        load_pytree(path.with_suffix(".none"), kind="dripp")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a gyri file"):
        load_pytree(path, kind="dripp")


def forge(path, header, members=(), compression=zipfile.ZIP_STORED):
    """A file with a right digest whose content is wrong."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in [("gyri-header.npy", npy(np.frombuffer(json.dumps(header).encode(), np.uint8))), *members]:
            archive.writestr(name, data)
        archive.comment = b"gyri-sha256:" + b"0" * 64
    body = stream.getvalue()[:-64]
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


HEADER = {"format": 1, "kind": "test", "package": "p", "version": "9", "meta": {}, "structure": 0}
LEAF = {"path": "", "type": "numpy", "dtype": "<f8"}


def test_a_newer_format_says_what_to_upgrade(path):
    forge(path, {**HEADER, "format": 2, "leaves": "unheard of"})
    with pytest.raises(ValueError, match="written in format 2 by p 9, this version reads up to 1: upgrade"):
        load_pytree(path, kind="test")


def test_a_forged_file_is_read_when_right(path):
    forge(path, {**HEADER, "leaves": [LEAF]}, [("tree.npy", npy(np.ones(2)))])
    assert load_pytree(path, kind="test")[0].tolist() == [1, 1]


HUGE = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117)
    + b"\n"
)


@pytest.mark.parametrize(
    ("header", "members", "compression"),
    [
        ({}, [("tree.npy", HUGE)], zipfile.ZIP_STORED),  # a size that would take 8 TB
        ({}, [("tree.npy", npy(np.zeros(10**6)))], zipfile.ZIP_DEFLATED),  # a zip bomb
        ({}, [("tree.npy", npy(np.ones(2, np.float32)))], zipfile.ZIP_STORED),
        ({}, [("other.npy", npy(np.ones(2)))], zipfile.ZIP_STORED),
        ({}, [], zipfile.ZIP_STORED),
        ({}, [("tree.npy", b"no array")], zipfile.ZIP_STORED),
        ({"structure": 7}, [("tree.npy", npy(np.ones(2)))], zipfile.ZIP_STORED),
        ({"structure": {"set": [0]}}, [("tree.npy", npy(np.ones(2)))], zipfile.ZIP_STORED),
        ({"leaves": [{"path": "", "type": "function"}]}, [("tree.npy", npy(np.ones(2)))], zipfile.ZIP_STORED),
        ({"leaves": [{**LEAF, "dtype": "|O"}]}, [("tree.npy", npy(np.ones(2)))], zipfile.ZIP_STORED),
        ({"kind": None}, [("tree.npy", npy(np.ones(2)))], zipfile.ZIP_STORED),
    ],
)
def test_forged_content_is_a_value_error(path, header, members, compression):
    forge(path, {**HEADER, "leaves": [LEAF], **header}, members, compression)
    with pytest.raises(ValueError, match=r"not a valid gyri file|holds a \[0\]"):
        load_pytree(path, kind="test")
