"""Deep equilibrium layers: a flax module around `fixed_point`, and what to measure on one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from gyri.numerics.linalg import power_iteration
from gyri.numerics.validation import as_key, check_positive_int

from .backward import as_mode
from .implicit import SOLVERS, fixed_point
from .solvers import Broyden


class DEQ(nnx.Module):
    """Layer whose output is the fixed point of a cell, one for each element of the batch.

    Parameters
    ----------
    cell : nnx.Module
        ``cell(z, x)`` returns a pytree like z, the batch on the first axis of all leaves, each element by itself (no
        batch normalisation, no dropout drawn inside). If it has ``init_state(x)``, that is the start; zeros like x
        otherwise. If it has ``prepare(x)``, which returns ``(step, consts)`` with ``step(z, *consts) = cell(z, x)``,
        that is called once for a solve: for weight normalisation, dropout masks, or the injection of x.
    solver : Broyden, AdjointBroyden, Anderson or Picard
        Of training; None is the default.
    backward : str, Shine, JacobianFree or Full
        As in `fixed_point`.
    eval_solver : Broyden, AdjointBroyden, Anderson or Picard, optional
        After ``.eval()``; the same as `solver` when None.

    Raises
    ------
    ValueError
        If an argument is of another kind.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from gyri.shine import DEQ
    >>> from gyri.shine.models import DenseCell
    >>> layer = DEQ(DenseCell(3, 5, rngs=nnx.Rngs(0)), backward="shine")
    >>> z, stats = layer(jnp.ones((2, 3)), return_info=True)
    >>> z.shape, stats.n_steps.shape
    ((2, 5), (2,))

    References
    ----------
    Bai, Kolter, Koltun (2019), Deep equilibrium models; Ramzi et al. (2022), SHINE, section 3.2.
    """

    def __init__(
        self,
        cell: Any,
        *,
        solver: Any = Broyden(),  # noqa: B008 - frozen
        backward: Any = "shine",
        eval_solver: Any = None,
    ) -> None:
        self.solver = Broyden() if solver is None else solver
        self.eval_solver = self.solver if eval_solver is None else eval_solver
        for name in ("solver", "eval_solver"):
            if not isinstance(getattr(self, name), SOLVERS):
                names = ", ".join(s.__name__ for s in SOLVERS)
                raise ValueError(f"{name}: expected a {names}, got {getattr(self, name)!r}")
        self.backward = as_mode(backward)
        self.cell = cell
        self.deterministic = False  # what .eval() and .train() set

    def __call__(
        self, x: PyTree, z0: PyTree | None = None, return_info: bool = False, *, outer_grad: Callable | None = None
    ) -> Any:
        """Solve for a batch.

        Parameters
        ----------
        x : pytree of Array, each of shape (batch, ...)
            Input.
        z0 : pytree of Array, optional
            Start.
        return_info : bool
            Return the statistics of the solve, too.
        outer_grad : callable, optional
            ``outer_grad(z)``, gradient of the loss at z, for a solver with OPA.

        Returns
        -------
        z : pytree of Array
            The fixed points.
        stats : SolveStats
            If `return_info`.
        """
        if z0 is None:
            z0 = self.cell.init_state(x) if hasattr(self.cell, "init_state") else jax.tree.map(jnp.zeros_like, x)
        step, consts = self.prepare(x)
        outer = None if outer_grad is None else lambda z, *consts: outer_grad(z)
        solution = fixed_point(
            step, z0, *consts, batch_ndim=1, backward=self.backward, outer_grad=outer,
            solver=self.eval_solver if self.deterministic else self.solver,
        )  # fmt: skip
        return (solution.value, solution.stats) if return_info else solution.value

    def prepare(self, x: PyTree) -> tuple[Callable, tuple]:
        """The map of one solve, ``step(z, *consts)``: the cell's own, or the cell with its state as a constant."""
        if hasattr(self.cell, "prepare"):
            step, consts = self.cell.prepare(x)
            return step, tuple(consts)
        graph, state = nnx.split(self.cell)
        return lambda z, state, x: nnx.merge(graph, state)(z, x), (state, x)


def jacobian_penalty(
    f: Callable, z: PyTree, *args: Any, key: Key[Array, ""] | Array | int, n_samples: int = 1
) -> Float[Array, ""]:
    r"""Estimate :math:`\|J_f(z)\|_F^2 / d` by Hutchinson's method, d being the number of all entries of z.

    Added to a loss it keeps a deep equilibrium model easy to solve. Differentiable in `args`, in what f closes over,
    and in z.

    Parameters
    ----------
    f : callable
        ``f(z, *args)`` returns a pytree like z.
    z : pytree of Array
        Where to take the Jacobian, say the solution.
    *args : pytree
        Further arguments.
    key : PRNG key or int
        Draws the probes.
    n_samples : int
        Number of probes.

    Returns
    -------
    Array, shape ()
        The penalty, without bias.

    Raises
    ------
    ValueError
        If there is no probe.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.shine import jacobian_penalty
    >>> jacobian_penalty(lambda z: 3.0 * z, jnp.ones((4, 5)), key=0, n_samples=500).round(0)
    Array(9., dtype=float32)

    References
    ----------
    Bai, Koltun, Kolter (2021), Stabilizing equilibrium models by Jacobian regularization, equation 6.
    """
    check_positive_int(n_samples, "n_samples")
    _, pull = jax.vjp(lambda z: f(z, *args), z)
    leaves: list[Array]
    treedef: Any
    leaves, treedef = jax.tree.flatten(z)

    def probe(key: Array) -> Array:
        keys = jax.random.split(key, len(leaves))
        noise = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
        return jnp.stack([jnp.sum(x**2) for x in jax.tree.leaves(pull(treedef.unflatten(noise))[0])]).sum()

    total = jax.lax.map(probe, jax.random.split(as_key(key), n_samples)).mean()
    return total / sum(leaf.size for leaf in leaves)


def spectral_radius(
    f: Callable, z: PyTree, *args: Any, key: Key[Array, ""] | Array | int, n_steps: int = 200
) -> Float[Array, ""]:
    """Estimate the spectral radius of the Jacobian of f at z: below 1, f is a contraction near z in some norm.

    Power iteration with vector-Jacobian products. Where the largest eigenvalue is real and alone, its modulus; where
    it is one of a complex pair, the Rayleigh quotient does not settle, and the rate at which vectors grow is taken.

    Parameters
    ----------
    f : callable
        ``f(z, *args)`` returns a pytree like z.
    z : pytree of Array
        Where to take the Jacobian.
    *args : pytree
        Further arguments.
    key : PRNG key or int
        Draws the start.
    n_steps : int
        Products, twice as many where there is a complex pair.

    Returns
    -------
    Array, shape ()
        The estimate, for the batch as a whole: that of its worst element.

    Raises
    ------
    ValueError
        If there is no step.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.shine import spectral_radius
    >>> rotation = jnp.array([[0.0, -2.0], [2.0, 0.0]])
    >>> spectral_radius(lambda z: rotation @ z, jnp.ones(2), key=0).round(3)
    Array(2., dtype=float32)

    References
    ----------
    Ramzi et al. (2022), SHINE, appendix on contractivity.
    """
    check_positive_int(n_steps, "n_steps")
    flat, unravel = ravel_pytree(z)
    _, pull = jax.vjp(lambda z: f(z, *args), z)
    apply = lambda v: ravel_pytree(pull(unravel(v))[0])[0]
    start = jax.random.normal(as_key(key), flat.shape, flat.dtype)
    value, vector = power_iteration(apply, start, n_steps=n_steps, tol=0.0)
    settled = jnp.linalg.norm(apply(vector) - value * vector) <= 1e-2 * jnp.abs(value)

    # The norm grows by the modulus a step on average: as many steps again, as it turns with the pair.
    def grow(v: Array, _: None) -> tuple[Array, Array]:
        image = apply(v)
        size = jnp.linalg.norm(image)
        return image / jnp.where(size > 0, size, 1), size

    _, sizes = jax.lax.scan(grow, vector, length=n_steps)
    growth = jnp.where((sizes > 0).all(), jnp.exp(jnp.log(jnp.where(sizes > 0, sizes, 1)).mean()), 0)
    return jnp.where(settled, jnp.abs(value), growth)
