"""Sequential algorithms on a CPU: numba functions as zero-copy XLA:CPU custom calls (extra `gyri-numerics[host]`).

XLA's loops pay for every step; a taut string or greedy coordinate descent is 5 to 25 times faster as compiled code.
:func:`host_call` hands a numba function to XLA through its typed foreign function interface, so that it runs under jit
and vmap without a copy and without Python. It is an option: where numba is missing, the interface is unknown, or the
environment says ``GYRI_HOST_KERNELS=0``, :func:`available` is False and callers take their XLA path. Set that before
`jax.export` for CPUs: JAX exports no custom call of another library (for other platforms the XLA path is exported).

XLA gives a handler the address of one C struct (`XLA_FFI_CallFrame` in jaxlib's ``xla/ffi/api/c_api.h``), read here as
8-byte words::

    frame    0 size, 1 extension*, 2 api*, 3 context*, 4 stage (int32), 5-9 arguments, 10-14 results
    list     0 size, 1 extension*, 2 length, 3 types*, 4 buffers**
    buffer   0 size, 1 extension*, 2 dtype (int32), 3 data*, 4 rank, 5 dims*
"""

import ctypes
import functools
import inspect
import os
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_DTYPES = ("float32", "float64", "int32", "int64", "uint8")  # numba has no 1-byte bool array that XLA would share
_lock = threading.RLock()
_targets: dict[str, Any] = {}  # name of each registered target: what keeps its code alive
_kernels: dict[str, Callable] = {}


@functools.cache
def available() -> bool:
    """Whether numba functions can run inside XLA:CPU here; the answer of the first call holds for the process.

    Returns
    -------
    bool
        False without numba, with ``GYRI_HOST_KERNELS=0`` in the environment, on a 32-bit or big-endian machine,
        without a CPU backend, with a JAX whose interface is another one, or where a trial call gives a wrong result.

    Examples
    --------
    >>> from gyri.numerics import host
    >>> isinstance(host.available(), bool)
    True
    """
    if os.environ.get("GYRI_HOST_KERNELS", "1") == "0" or struct.calcsize("P") != 8 or sys.byteorder != "little":
        return False
    try:
        import numba  # noqa: F401

        with _lock:
            return _trial()
    except Exception:  # whatever is unlike what was tested: there is always the XLA path
        return False


def njit(function: Callable) -> Any:
    """Compile a kernel, or a function that one calls, with `numba.njit` and numba's cache on disk.

    Parameters
    ----------
    function : callable
        As numba takes it. What a run-time type checker has put around it is taken off: numba compiles source.

    Returns
    -------
    callable
        The compiled function, for :func:`host_call`.

    Examples
    --------
    >>> from gyri.numerics import host
    >>> if host.available():
    ...     kernel = host.njit(lambda x, out: None)
    """
    import numba

    source = inspect.unwrap(function)
    try:
        return numba.njit(cache=True)(source)
    except RuntimeError:  # typed into an interpreter, or no folder for the cache can be written
        return numba.njit(source)


def n_threads() -> int:
    """Number of threads that a call may use: the CPUs this process may run on.

    Examples
    --------
    >>> from gyri.numerics import host
    >>> host.n_threads() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def host_call(
    name: str,
    kernel: Callable,
    result_shape_dtypes: jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct],
    *args: Array,
    grain: int = 16384,
) -> Any:
    """Call a numba function on the arrays of a traced computation; for XLA:CPU only, so under `platform_dependent`.

    Parameters
    ----------
    name : str
        Name of the kernel, unique in the process.
    kernel : callable
        A function compiled by :func:`njit`, ``kernel(*inputs, *outputs)``, on C-contiguous arrays that all have one
        leading batch axis; it fills the outputs for every item of the batch and returns nothing. An input whose batch
        axis is 1 belongs to all items. It must not raise, write to inputs, keep a reference, or use global state: it
        runs without the GIL, from several threads at once, on parts of the batch.
    result_shape_dtypes : jax.ShapeDtypeStruct or sequence of them
        Results; their first axis is the batch.
    *args : Array
        Inputs, their first axis of the batch's length or 1; float32, float64, int32, int64 or uint8.
    grain : int
        Fewest entries of the results that are worth a thread of their own.

    Returns
    -------
    Array or list of Array
        Like `result_shape_dtypes`. Under `vmap` there is one more batch axis. No derivatives.

    Raises
    ------
    ValueError
        A shape or dtype that the kernel could not be given.
    RuntimeError
        Where :func:`available` is False.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from gyri.numerics import host
    >>> def running_maximum(x, out):
    ...     for i in range(x.shape[0]):
    ...         best = x[i, 0]
    ...         for t in range(x.shape[1]):
    ...             best = max(best, x[i, t])
    ...             out[i, t] = best
    >>> if host.available():
    ...     x = jnp.array([[1.0, 3.0, 2.0]])
    ...     kernel = host.njit(running_maximum)
    ...     y = host.host_call("doc_running_maximum", kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    """
    if not available():
        raise RuntimeError("host_call: numba functions cannot run here; ask gyri.numerics.host.available() first")
    single = isinstance(result_shape_dtypes, jax.ShapeDtypeStruct)
    results: list[Any] = [result_shape_dtypes] if single else list(result_shape_dtypes)  # type: ignore[arg-type]
    _check(args, results)
    target = _register(name, kernel, args, results)
    # As an argument: the compiled handler is the same on every machine.
    threads = jnp.asarray([n_threads(), grain], jnp.int32)
    out = jax.ffi.ffi_call(target, results, vmap_method="broadcast_all")(*args, threads)
    return out[0] if single else out


def _check(args: Sequence[Any], results: Sequence[Any]) -> None:
    if not results or not args:
        raise ValueError(f"host_call: expected inputs and results, got {len(args)} and {len(results)}")
    n_batch = results[0].shape[:1]
    for what, arrays, lengths in (("args", args, {(1,), n_batch}), ("result_shape_dtypes", results, {n_batch})):
        for i, array in enumerate(arrays):
            if np.dtype(array.dtype).name not in _DTYPES:
                raise ValueError(f"{what}[{i}]: expected one of {', '.join(_DTYPES)}, got {array.dtype}")
            if array.shape[:1] not in lengths:
                raise ValueError(f"{what}[{i}]: expected a batch axis of {n_batch} or 1, got shape {array.shape}")


def _register(name: str, kernel: Callable, args: Sequence[Any], results: Sequence[Any]) -> str:
    """Name of the target for these ranks and dtypes; the first call compiles and registers it."""
    signature = [(np.dtype(a.dtype).name, a.ndim if hasattr(a, "ndim") else len(a.shape)) for a in (*args, *results)]
    target = f"gyri_{name}_" + "_".join(f"{dtype}x{rank}" for dtype, rank in signature) + f"_{len(results)}"
    with _lock:
        if _kernels.setdefault(name, kernel) is not kernel:
            raise ValueError(f"name: expected a name of one kernel, got {name!r}, which another one has")
        if target not in _targets:
            handler, alive = _compile(kernel, signature, len(args))
            capsule = jax.ffi.pycapsule(ctypes.cast(handler.address, ctypes.c_void_p))
            jax.ffi.register_ffi_target(target, capsule, platform="cpu")
            _targets[target] = alive
    return target


_WORK = """
def work(frame_address, start, stop):
    frame = words(frame_address, 15)
    inputs, outputs = words(frame[9], frame[7]), words(frame[14], frame[12])
    first = words(outputs[0], 6)
    n_batch = words(first[5], first[4])[first[4] - {rank}]
    for outer in range(start // n_batch, (stop + n_batch - 1) // n_batch):
        low, high = max(start - outer * n_batch, 0), min(stop - outer * n_batch, n_batch)
{arrays}
        kernel({names})
"""
# One block an array: its dimensions but those that vmap put in front, its place in the buffer, its part of the batch.
_ARRAY = """
        b = words({buffer}, 6)
        d = words(b[5] + 8 * (b[4] - {rank}), {rank})
        size, first, length = {size}, outer * d[0], d[0]
        if length > 1:
            first, length = first + low, high - low
        a{i} = carray(pointer(b[3] + first * size * {itemsize}), (length,{shape}), {dtype})
"""


def _compile(kernel: Callable, signature: Sequence[tuple[str, int]], n_inputs: int) -> tuple[Any, Any]:
    """Handler for one list of ranks and dtypes: reads the frame, splits the batch over threads, calls the kernel."""
    import numba

    pointer, words = _reader()
    arrays = []
    for i, (dtype, rank) in enumerate(signature):
        arrays.append(
            _ARRAY.format(
                i=i,
                buffer=f"inputs[{i}]" if i < n_inputs else f"outputs[{i - n_inputs}]",
                dtype=f"{dtype}_",
                itemsize=np.dtype(dtype).itemsize,
                rank=rank,
                shape="".join(f" d[{k}]," for k in range(1, rank)),
                size=" * ".join(f"d[{k}]" for k in range(1, rank)) or "1",
            )
        )
    names = ", ".join(f"a{i}" for i in range(len(signature)))
    source = _WORK.format(rank=signature[n_inputs][1], arrays="".join(arrays), names=names)
    scope: dict[str, Any] = {"words": words, "pointer": pointer, "carray": numba.carray, "kernel": kernel}
    scope |= {f"{dtype}_": np.dtype(dtype) for dtype in _DTYPES}
    exec(source, scope)  # numba types each array from its place in the source: a loop over arrays would have one type
    work = _compile_typed("void(int64, int64, int64)")(scope["work"])

    @_cfunc
    def part(block_address):  # type: ignore[no-untyped-def]
        block = words(block_address, 3)
        work(block[0], block[1], block[2])
        return 0

    run = _make_run(work, part.address)
    first_rank = signature[n_inputs][1]

    @_cfunc
    def handler(frame_address):  # type: ignore[no-untyped-def]
        frame = words(frame_address, 15)
        if frame[1] != 0:
            extension = words(frame[1], 4)
            if extension[1] & 0xFFFFFFFF == 1:  # the first call, at registration, asks for the version: 0.1
                words(extension[3], 4)[3] = 1 << 32
                return 0
        if frame[4] & 0xFFFFFFFF != 3:  # of the stages instantiate, prepare, initialize, execute
            return 0
        inputs, first = words(frame[9], frame[7]), words(words(frame[14], 1)[0], 6)
        dims = words(first[5], first[4])
        n_items = n_entries = 1
        for i in range(first[4]):
            n_entries *= dims[i]
            if i <= first[4] - first_rank:
                n_items *= dims[i]
        if n_items > 0:
            setting = words(words(inputs[n_inputs], 6)[3], 1)[0]
            threads, grain = setting & 0xFFFFFFFF, setting >> 32
            run(frame_address, n_items, min(threads, n_items, n_entries // max(grain, 1)))
        return 0

    return handler, (handler, part, work, kernel)


def _compile_typed(signature: Any) -> Callable:
    """Numba's `njit` for one signature: without it each literal integer would compile its function anew."""
    import numba

    return lambda function: numba.njit(signature)(inspect.unwrap(function))


def _cfunc(function: Callable) -> Any:
    """C function of an address, what XLA and POSIX threads call."""
    import numba

    return numba.cfunc("int64(int64)")(inspect.unwrap(function))


@functools.cache
def _reader() -> tuple[Any, Any]:
    """Numba functions that make a pointer of an address, and an array of 8-byte words at an address."""
    import numba
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def pointer(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], cgutils.voidptr_t)

        return types.voidptr(address), codegen

    make_pointer: Any = intrinsic(inspect.unwrap(pointer))

    @_compile_typed(types.Array(types.int64, 1, "C")(types.int64, types.int64))
    def words(address, n):  # type: ignore[no-untyped-def]
        return numba.carray(make_pointer(address), (n,), np.int64)

    return make_pointer, words


def _make_run(work: Any, part_address: int) -> Any:
    """Numba function that does items 0 to n of a frame in parts, one a thread."""
    # Plain POSIX threads, made and joined in the call: numba's own pools abort when two calls run at once, and do not
    # survive a fork.
    library = ctypes.CDLL(None) if os.name == "posix" else None
    create, join = getattr(library, "pthread_create", None), getattr(library, "pthread_join", None)
    if create is None or join is None:

        @_compile_typed("void(int64, int64, int64)")
        def run_alone(frame_address, n_items, n_parts):  # type: ignore[no-untyped-def]
            work(frame_address, 0, n_items)

        return run_alone
    create.argtypes, create.restype = [ctypes.c_ssize_t] * 4, ctypes.c_int
    join.argtypes, join.restype = [ctypes.c_ssize_t] * 2, ctypes.c_int

    @_compile_typed("void(int64, int64, int64)")
    def run(frame_address, n_items, n_parts):  # type: ignore[no-untyped-def]
        if n_parts <= 1:
            work(frame_address, 0, n_items)
            return
        blocks = np.empty(5 * n_parts, np.int64)  # for each part: frame, first item, last item, thread, failure
        for p in range(n_parts):
            b = 5 * p
            blocks[b], blocks[b + 1], blocks[b + 2] = (
                frame_address,
                n_items * p // n_parts,
                n_items * (p + 1) // n_parts,
            )
            if p > 0:
                address = blocks.ctypes.data + 8 * b
                blocks[b + 4] = create(address + 24, 0, part_address, address)
        work(frame_address, 0, blocks[2])
        for p in range(1, n_parts):
            b = 5 * p
            if blocks[b + 4] == 0:
                join(blocks[b + 3], 0)
            else:
                work(frame_address, blocks[b + 1], blocks[b + 2])

    return run


def _trial() -> bool:
    """Whether a handler that doubles 64-bit integers, written by hand so that it compiles quickly, does so in XLA."""
    _, words = _reader()

    @_cfunc
    def double(frame_address):  # type: ignore[no-untyped-def]
        frame = words(frame_address, 15)
        if frame[1] != 0:
            extension = words(frame[1], 4)
            if extension[1] & 0xFFFFFFFF == 1:
                words(extension[3], 4)[3] = 1 << 32
                return 0
        if frame[4] & 0xFFFFFFFF == 3 and frame[7] == 1 and frame[12] == 1:
            x, out = words(words(frame[9], 1)[0], 6), words(words(frame[14], 1)[0], 6)
            if x[2] & 0xFFFFFFFF == 4 and x[4] == 2 and words(x[5], 2)[0] == 2 and words(x[5], 2)[1] == 6:
                for i in range(6):  # twelve int32 are six words, which a product by 2 without carry doubles
                    words(out[3], 6)[i] = 2 * words(x[3], 6)[i]
        return 0

    capsule = jax.ffi.pycapsule(ctypes.cast(double.address, ctypes.c_void_p))
    jax.ffi.register_ffi_target("gyri_trial", capsule, platform="cpu")
    _targets["gyri_trial"] = double
    x = np.arange(12, dtype=np.int32).reshape(2, 6)
    call = jax.ffi.ffi_call("gyri_trial", jax.ShapeDtypeStruct(x.shape, x.dtype))
    with jax.ensure_compile_time_eval(), jax.default_device(jax.local_devices(backend="cpu")[0]):
        return bool((np.asarray(jax.jit(call)(x)) == 2 * x).all())
