"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gyri.numerics import csc, eeg, linalg, optim, prox, relax, transform, validation

VECTOR, MATRIX = jnp.ones(4), jnp.eye(4) + 0.5
KEY, WINDOWS = jax.random.key(0), jnp.ones((2, 3, 20))
ATOMS, SIGNAL, CODES = jnp.ones((2, 3, 4)), jnp.ones((1, 3, 20)), jnp.ones((1, 2, 17))


def energy(x, scale=1.0):
    return jnp.sum((x - 2.0) ** 2) + scale * jnp.sum(x**2)


def gradient_of_minimizer(z0, scale):
    z = linalg.implicit_minimizer(lambda z0, scale: 2.0 / (1.0 + scale) + 0.0 * z0, energy)
    return jax.grad(lambda scale: z(z0, scale).sum())(scale)


def fista(x0):
    return optim.fista(lambda x: x - 1.0, prox.soft_threshold, x0, 0.5, max_iter=5, tol=1e-6)


def backtracking_descent(x0):
    return optim.backtracking_descent(
        jax.value_and_grad(energy), energy, lambda x: jnp.minimum(x, 1.5), x0, tol=1e-6, max_iter=5
    )


def backtracking_step(x):
    state = optim.DescentState(x, energy(x), jnp.float32(1.0), jnp.array(False))
    return optim.backtracking_step(jax.grad(energy), energy, lambda x, g, t: x - t * g, state, tol=1e-6)


def armijo_step(x):
    return optim.armijo_step(energy, x, -x, -1.0, step_size=2.0, c=0.1)


def damped_newton(x0):
    return optim.damped_newton(energy, x0, upper=jnp.full(4, 0.5), tol=1e-6)


def gradient_of_prox(x):
    weight = (jnp.arange(8) != 3).astype(x.dtype)
    return jax.grad(lambda x: jnp.sum(prox.prox_tv1d(x, 0.5, sample_weight=weight) ** 2))(x)


# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    "gyri.numerics.linalg.LinearOperator": lambda: (lambda A, x: (A @ A).rmatvec(x), (linalg.dense(MATRIX), VECTOR)),
    "gyri.numerics.linalg.dense": lambda: (lambda A, x: linalg.dense(A).matvec(x), (MATRIX, VECTOR)),
    "gyri.numerics.linalg.identity": lambda: (linalg.identity(4).matvec, (VECTOR,)),
    "gyri.numerics.linalg.mask": lambda: (lambda m, x: linalg.mask(m).matvec(x), (VECTOR, VECTOR)),
    "gyri.numerics.linalg.convolution": lambda: (
        lambda kernel, x: linalg.convolution(kernel, 4).rmatvec(linalg.convolution(kernel, 4).matvec(x)),
        (jnp.ones(3), VECTOR),
    ),
    "gyri.numerics.linalg.as_operator": lambda: (lambda A, x: linalg.as_operator(A).matvec(x), (MATRIX, VECTOR)),
    "gyri.numerics.linalg.operator_norm": lambda: (linalg.operator_norm, (MATRIX,)),
    "gyri.numerics.linalg.power_iteration": lambda: (
        lambda v: linalg.power_iteration(lambda x: MATRIX @ x, v),
        (VECTOR,),
    ),
    "gyri.numerics.linalg.cg": lambda: (lambda b: linalg.cg(lambda x: MATRIX @ x, b), (VECTOR,)),
    "gyri.numerics.linalg.implicit_minimizer": lambda: (gradient_of_minimizer, (VECTOR, 1.0)),
    "gyri.numerics.optim.fista_momentum": lambda: (optim.fista_momentum, (1.0,)),
    "gyri.numerics.optim.fista": lambda: (fista, (VECTOR,)),
    "gyri.numerics.optim.backtracking_descent": lambda: (backtracking_descent, (VECTOR,)),
    "gyri.numerics.optim.backtracking_step": lambda: (backtracking_step, (VECTOR,)),
    "gyri.numerics.optim.armijo_step": lambda: (armijo_step, (VECTOR,)),
    "gyri.numerics.optim.damped_newton": lambda: (damped_newton, (VECTOR,)),
    "gyri.numerics.csc.conv_synthesis": lambda: (csc.conv_synthesis, (ATOMS, CODES)),
    "gyri.numerics.csc.conv_synthesis[fft]": lambda: (partial(csc.conv_synthesis, method="fft"), (ATOMS, CODES)),
    "gyri.numerics.csc.conv_correlate": lambda: (csc.conv_correlate, (ATOMS, SIGNAL)),
    "gyri.numerics.csc.atom_gram": lambda: (csc.atom_gram, (ATOMS,)),
    "gyri.numerics.csc.code_statistics": lambda: (partial(csc.code_statistics, n_times_atom=4), (CODES, SIGNAL)),
    "gyri.numerics.csc.csc_lambda_max": lambda: (csc.csc_lambda_max, (ATOMS, SIGNAL)),
    "gyri.numerics.csc.csc_objective": lambda: (csc.csc_objective, (SIGNAL, ATOMS, CODES, 0.1)),
    "gyri.numerics.csc.csc_solve": lambda: (csc.csc_solve, (SIGNAL, ATOMS, 0.1)),
    "gyri.numerics.csc.csc_solve[fista]": lambda: (partial(csc.csc_solve, solver="fista"), (SIGNAL, ATOMS, 0.1)),
    "gyri.numerics.csc.csc_solve[gradient]": lambda: (
        jax.grad(lambda lam: csc.csc_solve(SIGNAL, ATOMS, lam).codes.sum()),
        (0.1,),
    ),
    **{
        f"gyri.numerics.csc.init_atoms[{method}]": lambda method=method: (
            lambda key, x: csc.init_atoms(key, x, 2, 4, method=method),
            (jax.random.key(0), SIGNAL),
        )
        for method in ("chunk", "random", "greedy", "kmeans")
    },
    "gyri.numerics.csc.update_atoms": lambda: (csc.update_atoms, (ATOMS, jnp.ones((2, 2, 7)), ATOMS)),
    "gyri.numerics.csc.update_atoms[rank1]": lambda: (
        partial(csc.update_atoms, rank1=True),
        (ATOMS, jnp.ones((2, 2, 7)), ATOMS),
    ),
    "gyri.numerics.csc.learn_atoms": lambda: (csc.learn_atoms, (SIGNAL, ATOMS, 0.1)),
    "gyri.numerics.csc.rank1_from_full": lambda: (csc.rank1_from_full, (ATOMS,)),
    "gyri.numerics.prox.soft_threshold": lambda: (prox.soft_threshold, (VECTOR, 0.5)),
    "gyri.numerics.prox.prox_tv1d": lambda: (prox.prox_tv1d, (jnp.ones((3, 8)), 0.5)),
    "gyri.numerics.prox.prox_tv1d[gradient, missing samples]": lambda: (gradient_of_prox, (jnp.ones((3, 8)),)),
    "gyri.numerics.relax.straight_through": lambda: (relax.straight_through, (VECTOR, VECTOR)),
    "gyri.numerics.relax.relaxed_bernoulli": lambda: (
        lambda k, p: relax.relaxed_bernoulli(k, p, hard=True),
        (KEY, VECTOR),
    ),
    "gyri.numerics.relax.relaxed_one_hot": lambda: (lambda k, w: relax.relaxed_one_hot(k, w, hard=True), (KEY, VECTOR)),
    **{
        f"gyri.numerics.eeg.{name}": lambda name=name: (getattr(eeg, name), (WINDOWS,))
        for name in ("identity", "time_reverse", "sign_flip")
    },
    **{
        f"gyri.numerics.eeg.{name}": lambda name=name: (getattr(eeg, name), (KEY, WINDOWS, jnp.full(2, 0.5)))
        for name in ("ft_surrogate", "gaussian_noise", "channels_dropout", "channels_shuffle")
    },
    "gyri.numerics.eeg.channels_symmetry": lambda: (lambda x: eeg.channels_symmetry(x, [1, 0, 2]), (WINDOWS,)),
    "gyri.numerics.eeg.shift_phases": lambda: (eeg.shift_phases, (WINDOWS, jnp.ones((1, 11)))),
    "gyri.numerics.eeg.frequency_shift": lambda: (eeg.frequency_shift, (WINDOWS, 1.0, 100.0)),
    "gyri.numerics.eeg.bandstop_filter": lambda: (eeg.bandstop_filter, (WINDOWS, 10.0, 100.0)),
    "gyri.numerics.eeg.smooth_time_mask": lambda: (eeg.smooth_time_mask, (WINDOWS, 5.0, 5.0)),
    "gyri.numerics.eeg.spline_matrix": lambda: (lambda to: eeg.spline_matrix(np.eye(3), to), (jnp.eye(3),)),
    "gyri.numerics.eeg.sensors_rotation": lambda: (
        lambda x, degrees: eeg.sensors_rotation(x, np.eye(3), degrees),
        (WINDOWS, jnp.ones(2)),
    ),
    "gyri.numerics.transform.Transform": lambda: (
        transform.Transform("gain", lambda key, x, arg: arg * x, (1.0, 3.0)),
        (KEY, WINDOWS, 0.5),
    ),
    "gyri.numerics.validation.check_array": lambda: (lambda x: validation.check_array(x, "x", ndim=1), (VECTOR,)),
    "gyri.numerics.validation.as_key": lambda: (validation.as_key, (jax.random.key(0),)),
}

# Name of the public function: why it never runs inside jit.
HOST_SIDE = {
    "gyri.numerics.host.available": "returns a Python bool",
    "gyri.numerics.host.host_call": "lowers for CPU alone, as its callers take care of",
    "gyri.numerics.host.n_threads": "returns a Python number",
    "gyri.numerics.host.njit": "compiles a function with numba",
    "gyri.numerics.validation.import_extra": "imports a module",
    "gyri.numerics.eeg.symmetry_permutation": "reads names of channels",
    "gyri.numerics.eeg.standard_positions": "reads MNE-Python's templates",
    "gyri.numerics.recordings.is_raw": "returns a Python bool",
    "gyri.numerics.recordings.is_epochs": "returns a Python bool",
    "gyri.numerics.recordings.pick_data": "reads names of channels",
    "gyri.numerics.recordings.find_bad_samples": "reads annotations of MNE",
    "gyri.numerics.transform.eeg_transforms": "builds a tuple of functions",
    "gyri.numerics.csc.align_atoms": "assigns atoms on the host, by SciPy",
    "gyri.numerics.io.as_python": "gives Python numbers",
    "gyri.numerics.io.save_pytree": "writes a file",
    "gyri.numerics.io.load_pytree": "reads a file",
    "gyri.numerics.loops.cached": "keeps functions",
    "gyri.numerics.loops.progress_bar": "writes to the terminal",
    "gyri.numerics.loops.scan_chunks": "drives compiled chunks from the host, so that it can report and stop",
    "gyri.numerics.loops.fit_minibatch": "drives compiled epochs from the host, so that it can report and stop",
    "gyri.numerics.testing.check_jit": "an assertion of tests",
    "gyri.numerics.testing.check_vmap": "an assertion of tests",
    "gyri.numerics.testing.check_lowers": "an assertion of tests",
    "gyri.numerics.testing.check_no_recompilation": "an assertion of tests",
    "gyri.numerics.validation.check_finite": "looks at values, and returns nothing",
    "gyri.numerics.validation.check_same_leading_axis": "returns a Python number",
    "gyri.numerics.validation.check_positive_int": "returns a Python number",
    "gyri.numerics.validation.check_scalar": "returns a Python number",
    "gyri.numerics.validation.check_option": "returns one of a few Python values",
}
