"""Linear operators with exact adjoints, norms, conjugate gradients, implicit differentiation of minimisers."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, ScalarLike

from .validation import check_array, check_option, check_positive_int

_HIGHEST = jax.lax.Precision.HIGHEST  # an adjoint in TensorFloat-32 would be one to three digits only


class LinearOperator:
    """A real linear map between arrays, and its adjoint; a pytree whose leaves are what defines the map.

    Made by :func:`dense`, :func:`identity`, :func:`mask`, :func:`convolution` and composition, ``A @ B``. To add one,
    subclass, register the subclass as a pytree (`jax.tree_util.register_dataclass`) and give it `in_shape`,
    `out_shape`, `_forward` and `_adjoint`, both on any number of leading batch axes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.linalg import convolution, mask
    >>> operator = mask(jnp.array([1.0, 0.0, 1.0])) @ convolution(jnp.array([1.0, 2.0]), 2)
    >>> operator.shape
    (3, 2)
    >>> operator.matvec(jnp.ones((4, 2)))[0]
    Array([1., 0., 2.], dtype=float32)
    """

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input, without batch axes."""
        raise NotImplementedError

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of one output, without batch axes."""
        raise NotImplementedError

    def _forward(self, x: Array) -> Array:
        raise NotImplementedError

    def _adjoint(self, y: Array) -> Array:
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of output and input entries, as of a matrix."""
        return math.prod(self.out_shape), math.prod(self.in_shape)

    def matvec(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Apply the map to ``(*batch, *in_shape)``; gives ``(*batch, *out_shape)``."""
        _check_trailing(x, self.in_shape, "x")
        return self._forward(x)

    def rmatvec(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Apply the adjoint to ``(*batch, *out_shape)``; gives ``(*batch, *in_shape)``."""
        _check_trailing(y, self.out_shape, "y")
        return self._adjoint(y)

    def __matmul__(self, other: "LinearOperator") -> "LinearOperator":
        if not isinstance(other, LinearOperator):
            return NotImplemented
        if self.in_shape != other.out_shape:
            raise ValueError(f"other: expected out_shape {self.in_shape}, got {other.out_shape}")
        return _Composition(self, other)


def _check_trailing(x: Array, shape: tuple[int, ...], name: str) -> None:
    if x.shape[max(x.ndim - len(shape), 0) :] != shape:
        expected = ", ".join(["...", *map(str, shape)])
        raise ValueError(f"{name}: expected shape ({expected}), got {x.shape}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Dense(LinearOperator):
    matrix: Any  # an array, or what JAX puts in an array's place when it unflattens

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.matrix.shape[-1:]

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.matrix.shape[-2:-1]

    def _forward(self, x: Array) -> Array:
        return jnp.einsum("...mn,...n->...m", self.matrix, x, precision=_HIGHEST)

    def _adjoint(self, y: Array) -> Array:
        return jnp.einsum("...mn,...m->...n", self.matrix, y, precision=_HIGHEST)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Identity(LinearOperator):
    axes: tuple[int, ...] = field(metadata={"static": True})

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.axes

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.axes

    def _forward(self, x: Array) -> Array:
        return x

    def _adjoint(self, y: Array) -> Array:
        return y


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Mask(LinearOperator):
    weights: Any

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.weights.shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.weights.shape

    def _forward(self, x: Array) -> Array:
        return self.weights * x

    def _adjoint(self, y: Array) -> Array:
        return self.weights * y


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Composition(LinearOperator):
    left: Any
    right: Any

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.right.in_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.left.out_shape

    def _forward(self, x: Array) -> Array:
        return self.left.matvec(self.right.matvec(x))

    def _adjoint(self, y: Array) -> Array:
        return self.right.rmatvec(self.left.rmatvec(y))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Convolution(LinearOperator):
    kernel: Any
    axes: tuple[int, ...] = field(metadata={"static": True})
    mode: str = field(metadata={"static": True})
    method: str = field(metadata={"static": True})

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.axes

    @property
    def out_shape(self) -> tuple[int, ...]:
        grow = {"full": 1, "same": 0, "valid": -1}[self.mode]
        return tuple(n + grow * (k - 1) for n, k in zip(self.axes, self.kernel.shape, strict=True))

    def _offsets(self) -> list[int]:
        """Where the output starts in the full convolution, along each axis."""
        start = {"full": lambda k: 0, "same": lambda k: (k - 1) // 2, "valid": lambda k: k - 1}[self.mode]
        return [start(k) for k in self.kernel.shape]

    def _forward(self, x: Array) -> Array:
        # Output t reads the input from t + offset - (k - 1) to t + offset.
        return self._correlate(x, jnp.flip(self.kernel), [k - 1 - s for k, s in self._each()], self.out_shape)

    def _adjoint(self, y: Array) -> Array:
        return self._correlate(y, self.kernel, [s for _, s in self._each()], self.in_shape)

    def _each(self) -> list[tuple[int, int]]:
        return list(zip(self.kernel.shape, self._offsets(), strict=True))

    def _correlate(self, x: Array, taps: Array, left: list[int], out_shape: tuple[int, ...]) -> Array:
        """``out[t] = sum_j taps[j] x[t - left + j]``, zero outside `x`, along the last axes."""
        axes = x.shape[x.ndim - len(out_shape) :]
        batch = x.shape[: x.ndim - len(out_shape)]
        dtype = jnp.result_type(x, taps)
        if self.method == "direct":
            widths = [(p, m - n - p + k - 1) for p, m, n, k in zip(left, out_shape, axes, taps.shape, strict=True)]
            out = jax.lax.conv_general_dilated(
                x.reshape(-1, 1, *axes).astype(dtype), taps[None, None].astype(dtype), (1,) * len(axes), widths,
                precision=_HIGHEST,
            )  # fmt: skip
            return out.reshape(*batch, *out_shape)
        from scipy.fft import next_fast_len

        over = tuple(range(-len(axes), 0))
        lengths = [next_fast_len(n + k - 1, real=True) for n, k in zip(axes, taps.shape, strict=True)]
        spectrum = jnp.fft.rfftn(x, lengths, over) * jnp.fft.rfftn(jnp.flip(taps), lengths, over)
        full = jnp.fft.irfftn(spectrum, lengths, over).astype(dtype)
        # Output t is entry t - left + k - 1 of the full convolution with the flipped taps.
        window = [slice(k - 1 - p, k - 1 - p + m) for p, m, k in zip(left, out_shape, taps.shape, strict=True)]
        return full[(..., *window)]


def _floats(x: Any, name: str, ndim: int | tuple[int, ...] | None = None) -> Array:
    return jnp.asarray(check_array(x, name, ndim=ndim))


def dense(A: Any) -> LinearOperator:
    """Matrix as an operator.

    Parameters
    ----------
    A : array-like, shape (..., m, n)
        Finite numbers. Leading axes are a batch of matrices, matched with the batch axes of what they act on.

    Returns
    -------
    LinearOperator
        From (..., n) to (..., m). Products run in full float32 on every accelerator.

    Raises
    ------
    ValueError
        Fewer than two axes, empty or not finite.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.linalg import dense
    >>> dense([[1, 2], [3, 4]]).rmatvec(jnp.array([1.0, 1.0]))
    Array([4., 6.], dtype=float32)
    """
    matrix = _floats(A, "A")
    if matrix.ndim < 2:
        raise ValueError(f"A: expected shape (..., m, n), got {matrix.shape}")
    return _Dense(matrix)


def identity(n: int | tuple[int, ...]) -> LinearOperator:
    """Identity on arrays of `n` entries, or of shape `n`.

    Parameters
    ----------
    n : int or tuple of int
        Length, or shape.

    Returns
    -------
    LinearOperator
        The identity.

    Raises
    ------
    ValueError
        Not positive.

    Examples
    --------
    >>> from gyri.numerics.linalg import identity
    >>> identity(3).shape
    (3, 3)
    """
    return _Identity(_as_shape(n, "n"))


def mask(m: Any) -> LinearOperator:
    """Entrywise product with a mask or weights; its own adjoint.

    Parameters
    ----------
    m : array-like, shape (n,) or (height, width) or more
        Booleans or numbers; its whole shape is the domain. For a mask a sample, build it under `jax.vmap`.

    Returns
    -------
    LinearOperator
        From ``(..., *m.shape)`` to the same.

    Raises
    ------
    ValueError
        Empty or not finite.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.linalg import mask
    >>> mask([True, False]).matvec(jnp.array([5.0, 7.0]))
    Array([5., 0.], dtype=float32)
    """
    return _Mask(_floats(m, "m"))


def convolution(kernel: Any, n: int | tuple[int, ...], mode: str = "full", *, method: str = "auto") -> LinearOperator:
    """Convolution with a fixed kernel, zero outside the signal, in one or two dimensions.

    Parameters
    ----------
    kernel : array-like, shape (k,) or (k1, k2)
        The kernel.
    n : int or tuple of int
        Length, or (height, width), of the input.
    mode : {"full", "same", "valid"}
        Output of ``n + k - 1``, ``n`` (the centre of the full one) or ``n - k + 1`` entries along each axis.
    method : {"auto", "direct", "fft"}
        "auto" takes the direct sum for kernels of up to nine entries and for half precision, else the FFT, which is
        accurate to the dtype's precision relative to the largest output.

    Returns
    -------
    LinearOperator
        From (..., n) to (..., m), or (..., height, width) to (..., height', width').

    Raises
    ------
    ValueError
        Wrong number of axes, unknown mode, or a kernel longer than the input with "valid".

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.linalg import convolution
    >>> convolution([1.0, 2.0], 3).matvec(jnp.array([1.0, 0.0, 1.0]))
    Array([1., 2., 1., 2.], dtype=float32)
    """
    taps, axes = _floats(kernel, "kernel", (1, 2)), _as_shape(n, "n")
    check_option(mode, "mode", ("full", "same", "valid"))
    check_option(method, "method", ("auto", "direct", "fft"))
    if len(axes) != taps.ndim:
        raise ValueError(f"n: expected {taps.ndim} axes as in kernel of shape {taps.shape}, got {n}")
    if mode == "valid" and any(k > length for k, length in zip(taps.shape, axes, strict=True)):
        raise ValueError(f"kernel: expected at most the input's shape {axes} for mode 'valid', got {taps.shape}")
    if method == "auto":
        # XLA's FFT passed its direct sum at some ten taps on every shape measured on a CPU, by 10x at a hundred.
        method = "fft" if taps.size > 9 and taps.dtype in (jnp.float32, jnp.float64) else "direct"
    return _Convolution(taps, axes, mode, method)


def _as_shape(n: Any, name: str) -> tuple[int, ...]:
    return tuple(check_positive_int(length, name) for length in (n if isinstance(n, tuple | list) else (n,)))


def as_operator(A: Any, n: int | tuple[int, ...] | None = None) -> LinearOperator:
    """Operator from a matrix, an operator, or nothing (the identity).

    Parameters
    ----------
    A : array-like of shape (..., m, n), LinearOperator or None
        What to take.
    n : int or tuple of int, optional
        Expected length or shape of the input; needed for None.

    Returns
    -------
    LinearOperator
        `A` itself if it is one.

    Raises
    ------
    ValueError
        None without `n`, a matrix that :func:`dense` refuses, or an input unlike `n`.

    Examples
    --------
    >>> from gyri.numerics import as_operator
    >>> as_operator(None, 4).shape
    (4, 4)
    """
    if A is None:
        if n is None:
            raise ValueError("n: expected the input's length with A=None, got None")
        return identity(n)
    operator = A if isinstance(A, LinearOperator) else dense(A)
    if n is not None and operator.in_shape != _as_shape(n, "n"):
        raise ValueError(f"A: expected an input of shape {_as_shape(n, 'n')}, got {operator.in_shape}")
    return operator


def operator_norm(
    operator: Any, *, key: Key[Array, ""] | None = None, n_steps: int = 100, tol: ScalarLike = 1e-6
) -> Float[Array, ""]:
    """Largest singular value of an operator, by power iteration on its Gram operator.

    Parameters
    ----------
    operator : LinearOperator or array-like of shape (m, n)
        The map, one: a batch of matrices goes through `jax.vmap`.
    key : PRNG key, optional
        Draws the start; a fixed Gaussian vector when None.
    n_steps : int
        Most iterations.
    tol : float
        Stop when an iteration raises the estimate by at most this, relatively.

    Returns
    -------
    Array, shape ()
        A lower bound up to rounding; below the norm by about `tol` over the relative gap of the two largest singular
        values. Never differentiated: it counts as a constant.

    Raises
    ------
    ValueError
        A batch of matrices.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.linalg import operator_norm
    >>> operator_norm(jnp.diag(jnp.array([1.0, -3.0]))).round(4)
    Array(3., dtype=float32)
    """
    A = jax.lax.stop_gradient(as_operator(operator))
    dtype = jnp.result_type(*(jax.tree.leaves(A) or [float]))
    key = jax.random.key(0) if key is None else key
    gram = lambda x: A.rmatvec(A.matvec(x))
    start = jax.random.normal(key, A.in_shape, dtype)
    out_shape = jax.eval_shape(A.matvec, start).shape
    if out_shape != A.out_shape:
        raise ValueError(f"operator: expected one operator with outputs of shape {A.out_shape}, got {out_shape}")
    # A relative change of the singular value is half that of the eigenvalue.
    _, vector = power_iteration(gram, start, n_steps=n_steps, tol=2 * jnp.asarray(tol, dtype))
    return jax.lax.stop_gradient(jnp.linalg.norm(A.matvec(vector).ravel()))


def power_iteration(
    matvec: Callable[[Float[Array, "..."]], Float[Array, "..."]],
    shape_or_v0: int | tuple[int, ...] | Float[Array, "..."],
    *,
    key: Key[Array, ""] | None = None,
    n_steps: int = 200,
    tol: ScalarLike = 1e-8,
) -> tuple[Float[Array, ""], Float[Array, "..."]]:
    r"""Eigenvalue of largest modulus of a square linear map, if it is real and alone, by power iteration.

    Parameters
    ----------
    matvec : callable
        The map, on arrays of one shape; it need not be symmetric.
    shape_or_v0 : int, tuple of int or Array
        Shape of a random start (in JAX's default float), or the start.
    key : PRNG key, optional
        Draws the start; a fixed Gaussian vector when None.
    n_steps : int
        Most iterations.
    tol : float
        Stop when the quotient changes by at most this, relatively (at least the dtype's precision).

    Returns
    -------
    value : Array, shape ()
        Rayleigh quotient :math:`v^\top M v` of the last unit vector; 0 for a map that sends it to 0.
    vector : Array
        That vector, in the start's shape and dtype.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.linalg import power_iteration
    >>> value, vector = power_iteration(lambda v: jnp.array([1.0, -4.0]) * v, 2)
    >>> value.round(3)
    Array(-4., dtype=float32)
    """
    if isinstance(shape_or_v0, int | tuple):
        v0 = jax.random.normal(jax.random.key(0) if key is None else key, _as_shape(shape_or_v0, "shape_or_v0"))
    else:
        v0 = shape_or_v0
    tol = jnp.maximum(jnp.asarray(tol, v0.dtype), jnp.finfo(v0.dtype).eps)

    def unit(v: Array, otherwise: Array) -> Array:
        largest = jnp.abs(v).max()  # scaled first: the squares of a long vector must not overflow
        scaled = v / jnp.where(largest > 0, largest, 1)
        return jnp.where(largest > 0, scaled / jnp.linalg.norm(scaled.ravel()), otherwise)

    def body(state: tuple) -> tuple:
        i, v, image, value, _ = state
        v = unit(image, v)
        image = matvec(v)
        new = jnp.vdot(v, image, precision=_HIGHEST)
        return i + 1, v, image, new, jnp.abs(new - value) <= tol * jnp.abs(new)

    v0 = unit(v0, v0)
    image = matvec(v0)
    state = (0, v0, image, jnp.vdot(v0, image, precision=_HIGHEST), jnp.zeros((), bool))
    _, vector, _, value, _ = jax.lax.while_loop(lambda s: (s[0] < n_steps) & ~s[4], body, state)
    return value, vector


class CGInfo(NamedTuple):
    """What :func:`cg` reports: iterations, and the residual ``||b - A x|| / ||b||``."""

    n_iter: Int[Array, ""]
    residual: Float[Array, ""]


def _tree_dot(a: PyTree, b: PyTree) -> Array:
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.vdot(x, y, precision=_HIGHEST), a, b)), jnp.zeros(()))


def _tree_axpy(alpha: ScalarLike, x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: (alpha * x + y).astype(y.dtype), x, y)


def _cg_loop(
    matvec: Callable, b: PyTree, x0: PyTree, tol: ScalarLike, maxiter: int | Int[Array, ""] | None
) -> tuple[PyTree, CGInfo]:
    size = sum(leaf.size for leaf in jax.tree.leaves(b))
    maxiter = 10 * size if maxiter is None else maxiter
    b_norm = jnp.sqrt(_tree_dot(b, b))

    def body(state: tuple) -> tuple:
        i, x, r, p, rr, _ = state
        image = matvec(p)
        curvature = _tree_dot(p, image)
        usable = curvature > 0  # a direction without curvature (or NaN) ends the iteration with the last good x
        alpha = jnp.where(usable, rr / jnp.where(usable, curvature, 1), 0)
        x, r = _tree_axpy(alpha, p, x), _tree_axpy(-alpha, image, r)
        rr_new = _tree_dot(r, r)
        p = _tree_axpy(jnp.where(rr > 0, rr_new / jnp.where(rr > 0, rr, 1), 0), p, r)
        return i + usable, x, r, p, jnp.where(usable, rr_new, rr), usable

    def go_on(state: tuple) -> Bool[Array, ""]:
        i, _, _, _, rr, usable = state
        return (i < maxiter) & usable & (jnp.sqrt(rr) > tol * b_norm)

    residual = lambda x: _tree_axpy(-1, matvec(x), b)
    r = residual(x0)
    state = (jnp.zeros((), jnp.int32), x0, r, r, _tree_dot(r, r), jnp.ones((), bool))
    n_iter, x, *_ = jax.lax.while_loop(go_on, body, state)
    r = residual(x)  # the recursive residual drifts away from the true one in float32
    return x, CGInfo(n_iter, jnp.sqrt(_tree_dot(r, r)) / jnp.where(b_norm > 0, b_norm, 1))


def cg(
    matvec: Callable[[PyTree], PyTree],
    b: PyTree,
    x0: PyTree | None = None,
    *,
    tol: ScalarLike = 1e-6,
    maxiter: int | Int[Array, ""] | None = None,
) -> tuple[PyTree, CGInfo]:
    """Solve a symmetric positive definite system by conjugate gradients.

    Parameters
    ----------
    matvec : callable
        The map, from pytrees like `b` to pytrees like `b`. It may close over what is differentiated.
    b : pytree of Array
        Right-hand side.
    x0 : pytree of Array, optional
        Start; zero when None. The solution has no derivative in it.
    tol : float
        Stop when ``||b - A x|| <= tol * ||b||``.
    maxiter : int, optional
        Most iterations; ten times the number of unknowns when None.

    Returns
    -------
    x : pytree of Array
        The solution; where the map is not positive definite, the iterate at which that showed. Differentiable, in
        both modes and to any order, as the solution of the system (each derivative costs one more solve).
    info : CGInfo
        `n_iter`, and `residual`, the true one over ``||b||``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.linalg import cg
    >>> x, info = cg(lambda v: {"w": 2.0 * v["w"]}, {"w": jnp.array([2.0, 4.0])})
    >>> x["w"], int(info.n_iter)
    (Array([1., 2.], dtype=float32), 1)

    References
    ----------
    Hestenes, Stiefel (1952), Methods of conjugate gradients for solving linear systems.
    """
    start = jax.tree.map(jnp.zeros_like, b) if x0 is None else x0

    # As the root of A x - b, so that only the first solve starts from x0: derivatives have other right-hand sides.
    def solve(_: Callable, x: PyTree) -> tuple[PyTree, tuple]:
        x, info = _cg_loop(matvec, b, x, tol, maxiter)
        return x, (info.n_iter.astype(info.residual.dtype), info.residual)  # custom_root wants floating extras

    x, (n_iter, residual) = jax.lax.custom_root(
        lambda x: _tree_axpy(-1, b, matvec(x)),
        start,
        solve,
        lambda linear, rhs: _symmetric_solve(linear, rhs, tol, maxiter),
        has_aux=True,
    )
    return x, CGInfo(n_iter.astype(jnp.int32), residual)


def _symmetric_solve(linear: Callable, rhs: PyTree, tol: ScalarLike, maxiter: int | Int[Array, ""] | None) -> PyTree:
    def solve(linear: Callable, rhs: PyTree) -> PyTree:
        return _cg_loop(linear, rhs, jax.tree.map(jnp.zeros_like, rhs), tol, maxiter)[0]

    return jax.lax.custom_linear_solve(linear, rhs, solve, symmetric=True)


def implicit_minimizer(
    solve: Callable[..., PyTree],
    fun: Callable[..., Float[Array, ""]],
    *,
    tol: ScalarLike | None = None,
    maxiter: int | None = None,
) -> Callable[..., PyTree]:
    r"""Make a solver of :math:`z^*(\theta) = \arg\min_z f(z, \theta)` differentiable by the implicit function theorem.

    Parameters
    ----------
    solve : callable
        ``solve(z0, *args) -> z``, any jit-able minimiser; it is never differentiated.
    fun : callable
        ``fun(z, *args) -> scalar``, twice differentiable, strongly convex around the solution.
    tol : float, optional
        Relative tolerance of the conjugate gradients in a derivative: 1e-10 in float64 and 1e-6 in float32 when None.
    maxiter : int, optional
        Their most iterations; ten times the size of z when None.

    Returns
    -------
    callable
        ``z(z0, *args)``. Its derivative in `args`, and in whatever `solve` and `fun` close over, is that of the
        exact minimiser, as exact as `solve` is; in `z0` it is zero. Forward and reverse mode, of any order that
        `fun` has; integers, keys and None may be among `args`. The backward pass stores z and `args`, not the
        solver's iterates nor the intermediate results of `fun`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.linalg import implicit_minimizer
    >>> ridge = lambda z, lam: 0.5 * jnp.sum((z - 2.0) ** 2) + 0.5 * lam * jnp.sum(z**2)
    >>> z = implicit_minimizer(lambda z0, lam: jnp.full_like(z0, 2.0 / (1.0 + lam)), ridge)
    >>> jax.grad(lambda lam: z(jnp.zeros(1), lam)[0])(1.0)
    Array(-0.5, dtype=float32, weak_type=True)

    References
    ----------
    Griewank, Walther (2008), Evaluating Derivatives, chapter 15.
    """

    def minimizer(z0: PyTree, *args: Any) -> PyTree:
        dtype = jnp.result_type(*jax.tree.leaves(z0))
        accuracy = (1e-10 if dtype == jnp.float64 else 1e-6) if tol is None else tol
        # Rematerialised: a derivative recomputes the gradient of fun instead of storing what it passed through.
        return jax.lax.custom_root(
            jax.checkpoint(lambda z: jax.grad(fun)(z, *args)),
            jax.tree.map(jnp.asarray, z0),
            lambda _, z: solve(z, *args),
            lambda linear, rhs: _symmetric_solve(linear, rhs, accuracy, maxiter),
        )

    return minimizer
