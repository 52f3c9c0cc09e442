"""Pytrees on disk: one ``.npz`` file, no pickle, every bit checked.

The file is a plain, uncompressed zip that ``numpy.load(path, allow_pickle=False)`` opens too. Its first member is a
JSON header as bytes, the others are the leaves by key path, and its zip comment ends in the SHA-256 digest of all that
comes before. Nothing is parsed before the digest is right.
"""

import contextlib
import hashlib
import io as _io
import json
import math
import os
import re
import secrets
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ._version import __version__

FORMAT_VERSION = 1
_HEADER = "gyri-header"
_COMMENT = b"gyri-sha256:"
_DIGEST_LENGTH = 64
_SCALARS = {"bool": bool, "int": int, "float": float, "complex": complex}


def as_python(value: Any) -> Any:
    """Scalars of NumPy and JAX as the Python numbers that they are, also inside dicts, lists and tuples.

    Parameters
    ----------
    value : object
        Options of an estimator, say, as a grid search sets them.

    Returns
    -------
    object
        Arrays with axes, PRNG keys and all else as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.numerics.io import as_python
    >>> as_python({"n": np.int64(8), "shape": (np.array(3), 4), "name": "a"})
    {'n': 8, 'shape': (3, 4), 'name': 'a'}
    """
    if isinstance(value, dict):
        return {key: as_python(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(as_python, value))
    number = isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0
    return value.item() if number and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value


def save_pytree(path: str | os.PathLike, tree: Any, *, kind: str, meta: dict | None = None) -> None:
    """Write a pytree to one file, atomically.

    Parameters
    ----------
    path : path-like
        Where to write, exactly; an existing file is replaced in one step, or not at all.
    tree : pytree
        Leaves: JAX or NumPy arrays of numbers, typed PRNG keys, Python bools, ints, floats, complex numbers.
    kind : str
        What the file holds; :func:`load_pytree` asks for the same word.
    meta : dict, optional
        Anything that survives JSON unchanged: hyper-parameters, units, the version of the estimator. Scalars of NumPy
        and JAX, such as a grid search sets, are saved as the Python numbers that they are.

    Raises
    ------
    ValueError
        A leaf that is none of these (functions and modules are arguments of an estimator's `load`, never in its
        file), or `meta` that JSON would change.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.io import load_pytree, save_pytree
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.npz"
    ...     save_pytree(path, {"w": jnp.arange(3.0), "n": 2}, kind="demo", meta={"sfreq": 100.0})
    ...     load_pytree(path, kind="demo")
    ({'w': Array([0., 1., 2.], dtype=float32), 'n': 2}, {'sfreq': 100.0})
    """
    meta = as_python({} if meta is None else meta)
    try:
        unchanged = json.loads(json.dumps(meta)) == meta
    except (TypeError, ValueError, RecursionError):
        unchanged = False
    if not unchanged:
        raise ValueError(
            "meta: expected a dict that JSON keeps as it is (str keys, lists, numbers, no NaN), got others"
        )
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(key_path) for key_path, _ in leaves]
    packed = [_pack_leaf(leaf, f"tree{name}") for name, (_, leaf) in zip(names, leaves, strict=True)]
    header = {
        "format": FORMAT_VERSION,
        "kind": kind,
        "package": "gyri-numerics",
        "version": __version__,
        "meta": meta,
        "structure": _encode(tree, iter(range(len(leaves)))),
        "leaves": [{"path": name, **about} for name, (about, _) in zip(names, packed, strict=True)],
    }
    members = [(_HEADER, np.frombuffer(json.dumps(header).encode(), np.uint8))]
    members += [(f"tree{name}", data) for name, (_, data) in zip(names, packed, strict=True) if data is not None]
    _write_atomically(Path(path), members)


def load_pytree(path: str | os.PathLike, *, kind: str, like: Any = None) -> tuple[Any, dict]:
    """Read what :func:`save_pytree` wrote.

    Parameters
    ----------
    path : path-like
        The file.
    kind : str
        What the file must hold.
    like : pytree, optional
        A tree of the same structure (say, a freshly initialised one, or `jax.eval_shape` of it) whose containers are
        taken and whose leaves' shapes are checked; the dtypes are the file's. Needed for named tuples, optimiser
        states and other registered nodes. Without it dicts, lists, tuples and None come back.

    Returns
    -------
    tree : pytree
        JAX arrays as JAX arrays, NumPy arrays as NumPy arrays, all else as saved. A 64-bit JAX array comes back as a
        NumPy array where `jax_enable_x64` is off: JAX could not hold its bits.
    meta : dict
        As saved.

    Raises
    ------
    ValueError
        A foreign, damaged or truncated file, a newer format, another kind, or a tree unlike `like`.
    FileNotFoundError
        No such file.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from gyri.numerics.io import load_pytree, save_pytree
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.npz"
    ...     save_pytree(path, {"n": 2}, kind="demo")
    ...     tree, meta = load_pytree(path, kind="demo", like={"n": 0})
    >>> tree
    {'n': 2}
    """
    content = Path(path).read_bytes()
    _check_digest(content, path)
    try:
        header, arrays = _parse(content)
    except _NewerFormatError as error:
        raise ValueError(f"{path}: {error}") from None
    # Whatever a crafted file makes the parsers raise, the reader learns one thing: it is no file of ours.
    except Exception as error:
        raise ValueError(f"{path}: not a valid gyri file ({type(error).__name__}: {error})") from error
    if header["kind"] != kind:
        raise ValueError(f"{path}: expected a file of kind {kind!r}, got {header['kind']!r}")
    try:
        leaves = [_unpack_leaf(about, arrays) for about in header["leaves"]]
        tree = _decode(header["structure"], leaves) if like is None else None
    except _NeedsLikeError as error:
        raise ValueError(f"{path}: holds a {error}; pass a tree of that structure as `like`") from None
    except Exception as error:
        raise ValueError(f"{path}: not a valid gyri file ({type(error).__name__}: {error})") from error
    if like is not None:
        tree = _restore(like, leaves, [about["path"] for about in header["leaves"]], path)
    return tree, header["meta"]


class _NewerFormatError(Exception):
    pass


class _NeedsLikeError(Exception):
    pass


def _pack_leaf(leaf: Any, name: str) -> tuple[dict, np.ndarray | None]:
    """Describe a leaf in JSON, and give its bits as a plain NumPy array if it has any."""
    if type(leaf) in (bool, int, float, complex):
        numbers = [leaf.real, leaf.imag] if isinstance(leaf, complex) else [leaf]
        bits = [hex(v) if isinstance(v, int) else struct.pack("<d", v).hex() for v in numbers]
        return {"type": type(leaf).__name__, "bits": bits}, None
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(f"{name}: expected a concrete array, got a tracer: save outside of jit, vmap and grad")
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return {"type": "key", "impl": str(jax.random.key_impl(leaf))}, np.asarray(jax.random.key_data(leaf))
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        what = "a function" if callable(leaf) else f"a {type(leaf).__name__}"
        raise ValueError(f"{name}: expected an array, a Python number or a PRNG key, got {what}")
    array = np.asarray(leaf, order="C")
    about = {"type": "jax" if isinstance(leaf, jax.Array) else "numpy", "dtype": array.dtype.name}
    if array.dtype.kind in "biufc":
        return {**about, "dtype": array.dtype.str}, array
    if array.dtype.isbuiltin == 2 and hasattr(ml_dtypes, array.dtype.name):
        return about, array.view(f"u{array.dtype.itemsize}")
    raise ValueError(f"{name}: expected an array of numbers, got dtype {array.dtype}")


def _unpack_leaf(about: dict, arrays: Iterator[np.ndarray]) -> Any:
    if about["type"] in _SCALARS:
        bits = about["bits"]
        if about["type"] in ("bool", "int"):
            return _SCALARS[about["type"]](int(bits[0], 16))
        return _SCALARS[about["type"]](*(struct.unpack("<d", bytes.fromhex(v))[0] for v in bits))
    array = next(arrays)
    if about["type"] == "key":
        return jax.random.wrap_key_data(jnp.array(array), impl=about["impl"])
    extension = re.fullmatch(r"\w+", about["dtype"]) and hasattr(ml_dtypes, about["dtype"])
    dtype = np.dtype(getattr(ml_dtypes, about["dtype"]) if extension else about["dtype"])
    array = array.view(dtype) if extension else array
    if array.dtype != dtype:
        raise ValueError(f"dtype {array.dtype} where the header says {dtype}")
    if about["type"] == "jax" and jax.dtypes.canonicalize_dtype(dtype) == dtype:
        return jnp.array(array)
    return array.copy()


def _encode(node: Any, counter: Iterator[int]) -> Any:
    """Structure in JSON: containers as one-key objects, leaves as their number, None as null."""
    if node is None:
        return None
    if jax.tree_util.all_leaves([node]):
        return next(counter)
    if type(node) is dict and all(type(key) in (str, int) for key in node):
        children = {key: _encode(node[key], counter) for key in sorted(node)}  # JAX numbers leaves by sorted key
        return {"dict": [[key, children[key]] for key in node]}
    if type(node) in (list, tuple):
        return {type(node).__name__: [_encode(child, counter) for child in node]}
    for _ in jax.tree_util.tree_leaves(node):
        next(counter)
    return {"custom": f"{type(node).__module__}.{type(node).__qualname__}"}


def _decode(node: Any, leaves: list) -> Any:
    if node is None:
        return None
    if isinstance(node, int):
        return leaves[node]
    ((container, children),) = node.items()
    if container == "dict":
        return {key: _decode(child, leaves) for key, child in children}
    if container in ("list", "tuple"):
        return (list if container == "list" else tuple)(_decode(child, leaves) for child in children)
    raise _NeedsLikeError(children)


def _restore(like: Any, leaves: list, names: list[str], path: object) -> Any:
    """Put leaves into the containers of `like`, by key path."""
    wanted = [(jax.tree_util.keystr(key_path), leaf) for key_path, leaf in jax.tree_util.tree_leaves_with_path(like)]
    if [name for name, _ in wanted] != names:
        missing = [name for name, _ in wanted if name not in names]
        extra = [name for name in names if name not in dict(wanted)]
        raise ValueError(f"{path}: like: expected the file's structure; only in like {missing}, only in file {extra}")
    for (name, expected), leaf in zip(wanted, leaves, strict=True):
        if np.shape(expected) != np.shape(leaf):
            raise ValueError(f"{path}: tree{name}: expected shape {np.shape(expected)}, got {np.shape(leaf)}")
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), leaves)


def _write_atomically(path: Path, members: list[tuple[str, np.ndarray]]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        # Opened by name, not by `tempfile`: the file gets the permissions that the user's umask gives.
        with open(temporary, "x+b") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, array in members:
                    # A constant date keeps files with the same content identical.
                    info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
                    with archive.open(info, "w", force_zip64=array.nbytes > 2**30) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
                archive.comment = _COMMENT + b"0" * _DIGEST_LENGTH
            _write_digest(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every platform opens folders; the rename is atomic all the same
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_digest(file: Any) -> None:
    left = file.seek(-_DIGEST_LENGTH, os.SEEK_END)
    file.seek(0)
    digest = hashlib.sha256()
    while left:
        block = file.read(min(left, 2**20))
        digest.update(block)
        left -= len(block)
    file.seek(-_DIGEST_LENGTH, os.SEEK_END)
    file.write(digest.hexdigest().encode())


def _check_digest(content: bytes, path: object) -> None:
    body, digest = content[:-_DIGEST_LENGTH], content[-_DIGEST_LENGTH:]
    if body.endswith(_COMMENT) and hashlib.sha256(body).hexdigest().encode() == digest:
        return
    if body.endswith(_COMMENT) or f"{_HEADER}.npy".encode() in content[:100]:
        raise ValueError(f"{path}: damaged or truncated: its content does not match its SHA-256 digest")
    raise ValueError(f"{path}: not a gyri file, or damaged beyond recognition: no gyri header and no digest found")


def _parse(content: bytes) -> tuple[dict, Iterator[np.ndarray]]:
    """Header and arrays as views on the file's bytes; sizes are compared before anything is allocated."""
    with zipfile.ZipFile(_io.BytesIO(content)) as archive:
        infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED or info.file_size > len(content) for info in infos):
            raise ValueError("compressed or oversized member")
        if sum(info.file_size for info in infos) > len(content) or infos[0].filename != f"{_HEADER}.npy":
            raise ValueError("overlapping members or no header")
        header = json.loads(_read_array(archive.read(infos[0])).tobytes())
        if header["format"] > FORMAT_VERSION:
            raise _NewerFormatError(
                f"written in format {header['format']} by {header['package']} {header['version']}, this version reads "
                f"up to {FORMAT_VERSION}: upgrade gyri-numerics"
            )
        if not isinstance(header["kind"], str) or not isinstance(header["meta"], dict):
            raise ValueError("incomplete header")
        stored = [about for about in header["leaves"] if about["type"] not in _SCALARS]
        if [f"tree{about['path']}.npy".replace(os.sep, "/") for about in stored] != [i.filename for i in infos[1:]]:
            raise ValueError("members unlike the header's leaves")
        return header, iter([_read_array(archive.read(info)) for info in infos[1:]])


def _read_array(data: bytes) -> np.ndarray:
    stream = _io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "biufc" or fortran or any(n < 0 for n in shape):
        raise ValueError(f"array of dtype {dtype}, shape {shape}")
    if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"shape {shape} of {dtype} does not fill its member")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)
