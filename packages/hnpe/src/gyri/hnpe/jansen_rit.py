"""Stochastic neural mass model of a cortical column, integrated by Strang splitting."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gyri.numerics.validation import as_key, check_array, check_positive_int, check_scalar

from .prior import HierarchicalPrior

_N_NOISE = 6  # normal numbers a step: two for each oscillator


@cache
def jansen_rit_prior() -> HierarchicalPrior:
    """Prior of the paper: connectivity C, mean mu and size sigma of the input; the gain (dB) is shared.

    Examples
    --------
    >>> from gyri.hnpe.jansen_rit import jansen_rit_prior
    >>> jansen_rit_prior().names
    ('C', 'mu', 'sigma', 'gain')
    """
    from numpyro.distributions import Uniform

    local = {"C": Uniform(10.0, 250.0), "mu": Uniform(50.0, 500.0), "sigma": Uniform(100.0, 5000.0)}
    return HierarchicalPrior(local, {"gain": Uniform(-20.0, 20.0)})


@dataclasses.dataclass(frozen=True)
class JansenRit:
    r"""Three populations of neurons driven by noise; the output is a potential like that of an EEG channel.

    With :math:`S(v) = v_{max} / (1 + e^{r (v_0 - v)})`, in mV and seconds,

    .. math::
        \ddot q_1 &= A a\,S(q_2 - q_3) - 2 a \dot q_1 - a^2 q_1 + \sigma_4 \dot W_4 \\
        \ddot q_2 &= A a\,(\mu + 0.8 C\,S(C q_1)) - 2 a \dot q_2 - a^2 q_2 + \sigma \dot W_5 \\
        \ddot q_3 &= B b\,0.25 C\,S(0.25 C q_1) - 2 b \dot q_3 - b^2 q_3 + \sigma_6 \dot W_6

    and :math:`x = 10^{g/10} (q_2 - q_3)`. The linear part is solved exactly in law, so that without coupling (C = 0)
    the stationary law is exact at any step; with it the scheme is of second order.

    Parameters
    ----------
    duration : float
        Of a recording, seconds.
    sfreq : float
        Samples a second; ``dt`` has to divide its period.
    dt : float
        Step of the integration, seconds.
    burn_in : float
        Seconds left out at the start, rounded to whole samples.
    center : bool
        Subtract the mean over time.
    sigma4, sigma6 : float
        Noise of the first and third population.
    A, B : float
        Sizes of excitatory and inhibitory potentials, mV.
    a, b : float
        Their rates, 1/s.
    v0, vmax, r : float
        Potential of half activation (mV), highest rate (1/s), steepness (1/mV).

    Attributes
    ----------
    prior : HierarchicalPrior
        Of C, mu, sigma (local) and the gain in dB (shared).
    n_times : int
        Samples of a recording.

    Raises
    ------
    ValueError
        If a number is out of range, or `dt` does not divide ``1 / sfreq``.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe import JansenRit
    >>> model = JansenRit(duration=1.0, burn_in=0.5)
    >>> x = model(jax.random.key(0), jnp.array([[135.0, 220.0, 2000.0, 0.0]] * 3))  # three recordings
    >>> x.shape
    (3, 128)

    References
    ----------
    Rodrigues, Moreau, Louppe, Gramfort (2021); Ableidinger, Buckwar, Hinterleitner (2017), A stochastic
    version of the Jansen and Rit neural mass model, J. Math. Neurosci., for the model and the splitting.
    """

    duration: float = 8.0
    sfreq: float = 128.0
    dt: float = 1 / 1024
    burn_in: float = 2.0
    center: bool = True
    sigma4: float = 0.01
    sigma6: float = 1.0
    A: float = 3.25
    B: float = 22.0
    a: float = 100.0
    b: float = 50.0
    v0: float = 6.0
    vmax: float = 5.0
    r: float = 0.56

    def __post_init__(self) -> None:
        for name in ("duration", "sfreq", "dt", "a", "b"):
            object.__setattr__(self, name, check_scalar(getattr(self, name), name, minimum=0, strict=True))
        for name in ("burn_in", "sigma4", "sigma6"):
            object.__setattr__(self, name, check_scalar(getattr(self, name), name, minimum=0))
        for name in ("A", "B", "v0", "vmax", "r"):
            object.__setattr__(self, name, check_scalar(getattr(self, name), name))
        ratio = 1 / (self.sfreq * self.dt)
        if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6 * ratio:
            raise ValueError(f"dt: expected to divide 1 / sfreq = {1 / self.sfreq:.6g} s, got {self.dt:.6g} s")
        if self.n_times < 1:
            raise ValueError(f"duration: expected at least a sample of {1 / self.sfreq:.6g} s, got {self.duration} s")

    @property
    def prior(self) -> HierarchicalPrior:
        """The paper's, the same object each time."""
        return jansen_rit_prior()

    @property
    def n_times(self) -> int:
        """Samples of a recording."""
        return round(self.duration * self.sfreq)

    @property
    def _stride(self) -> int:
        return round(1 / (self.sfreq * self.dt))

    def __call__(
        self,
        key: Key[Array, ""] | Array | int,
        theta: Any,
        initial_state: Any = None,
    ) -> Float[Array, "*n n_times"]:
        """Simulate recordings.

        Parameters
        ----------
        key : PRNG key or int
            Of the noise and the initial state.
        theta : array, shape (..., 4)
            C, mu, sigma, gain (dB).
        initial_state : array, shape (..., 6), optional
            q1, q2, q3 and their derivatives; standard normal by default.

        Returns
        -------
        Array, shape (..., n_times)
            Potential at times ``burn_in + k / sfreq``.

        Raises
        ------
        ValueError
            Wrong shapes, values that are not finite.
        """
        theta = jnp.asarray(check_array(theta, "theta", allow_empty=True))
        if theta.ndim == 0 or theta.shape[-1] != 4:
            raise ValueError(f"theta: expected shape (..., 4), got {theta.shape}")
        leading = theta.shape[:-1]
        state, words = self._start(as_key(key), leading, theta.dtype, initial_state)
        step, n_burn = self._step(theta), round(self.burn_in * self.sfreq)

        def sample(state: tuple, block: Array) -> tuple[tuple, Array]:
            noise = self._noise(words, block, leading, theta.dtype)
            return jax.lax.scan(lambda *args: (step(*args), None), state, noise)[0], state[1] - state[2]

        # The inner loop is computed anew in the backward pass: memory of a state a sample, not a step.
        blocks = jnp.arange(n_burn + self.n_times)
        _, x = jax.lax.scan(jax.checkpoint(sample), self._half_kick(state, theta), blocks)
        x = jnp.moveaxis(x[n_burn:], 0, -1) * 10 ** (theta[..., 3:] / 10)
        return x - x.mean(-1, keepdims=True) if self.center else x

    def trajectory(
        self,
        key: Key[Array, ""] | Array | int,
        theta: Any,
        initial_state: Any = None,
        n_steps: int | None = None,
    ) -> Float[Array, "n_steps_1 6"]:
        """All states at every step, from the initial one on: no burn-in cut, no gain.

        Parameters
        ----------
        key : PRNG key or int
            Of the noise and the initial state; the same as for a recording gives the same path.
        theta : array, shape (4,)
            C, mu, sigma, gain (not used).
        initial_state : array, shape (6,), optional
            q1, q2, q3 and their derivatives; standard normal by default.
        n_steps : int, optional
            How many; those of burn-in and recording by default.

        Returns
        -------
        Array, shape (n_steps + 1, 6)
            States at multiples of `dt`.

        Raises
        ------
        ValueError
            Wrong shapes, values that are not finite.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> from gyri.hnpe import JansenRit
        >>> JansenRit().trajectory(0, jnp.array([135.0, 220.0, 2000.0, 0.0]), n_steps=10).shape
        (11, 6)
        """
        theta = jnp.asarray(check_array(theta, "theta", shape=(4,)))
        n_all = round((self.burn_in + self.duration) / self.dt)
        n_steps = n_all if n_steps is None else check_positive_int(n_steps, "n_steps", minimum=0)
        first, words = self._start(as_key(key), (), theta.dtype, initial_state)
        step = self._step(theta)

        def record(state: tuple, noise: Array) -> tuple[tuple, Array]:
            new = step(state, noise)
            # Kicks of neighbouring steps are merged; half of the last one is not yet part of the state.
            return new, jnp.stack(self._half_kick(new, theta, sign=-1.0))

        def block(state: tuple, i: Array) -> tuple[tuple, Array]:
            return jax.lax.scan(record, state, self._noise(words, i, (), theta.dtype))

        n_blocks = -(-n_steps // self._stride)
        _, path = jax.lax.scan(block, self._half_kick(first, theta), jnp.arange(n_blocks))
        return jnp.concatenate([jnp.stack(first)[None], path.reshape(-1, 6)[:n_steps]])

    # --- one step -----------------------------------------------------------------------------------------------------

    def _start(self, key: Array, shape: tuple[int, ...], dtype: Any, initial_state: Any) -> tuple[tuple, Array]:
        """Initial state, one array a variable, and the two words that all noise is made from."""
        state_key, noise_key = jax.random.split(key)
        if initial_state is None:
            state = jax.random.normal(state_key, (*shape, 6), dtype)
        else:
            state = jnp.asarray(check_array(initial_state, "initial_state", shape=(*shape, 6)), dtype)
        return tuple(jnp.moveaxis(state, -1, 0)), jax.random.bits(noise_key, (2,), jnp.uint32)

    def _noise(self, words: Array, block: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """Normal numbers of all steps up to the next sample.

        They take more than half of a simulation. Threefry in counter mode, both halves of its output used: with one key
        a recording under `vmap` this is 2.5 times faster than `jax.random.normal` with keys folded in.
        """
        from jax.extend.random import threefry2x32_p

        half = (self._stride, _N_NOISE // 2, *shape)
        counter = jnp.arange(int(np.prod(half)), dtype=jnp.uint32).reshape(half)
        high = jnp.broadcast_to(block.astype(jnp.uint32), half)
        bits = jnp.concatenate(threefry2x32_p.bind(*(jnp.broadcast_to(w, half) for w in words), high, counter), 1)
        # Centred cells of the open interval (-1, 1): never infinite.
        uniform = ((bits >> 8).astype(jnp.int32).astype(dtype) - (2**23 - 0.5)) * 2.0**-23
        return jax.lax.erf_inv(uniform) * np.sqrt(2).astype(dtype)

    def _forces(self, state: tuple, theta: Array) -> tuple[Array, Array, Array]:
        q1, q2, q3 = state[:3]
        C, mu = theta[..., 0], theta[..., 1]
        activation = lambda v: self.vmax * jax.nn.sigmoid(self.r * (v - self.v0))
        return (
            self.A * self.a * activation(q2 - q3),
            self.A * self.a * (mu + 0.8 * C * activation(C * q1)),
            self.B * self.b * 0.25 * C * activation(0.25 * C * q1),
        )

    def _half_kick(self, state: tuple, theta: Array, sign: float = 1.0) -> tuple:
        """Half a step of the nonlinear part, which moves only the derivatives and depends only on the positions."""
        forces = self._forces(state, theta)
        return (*state[:3], *(p + 0.5 * sign * self.dt * f for p, f in zip(state[3:], forces, strict=True)))

    def _linear(self) -> tuple[np.ndarray, np.ndarray]:
        """Transition matrices of the oscillators, and Cholesky factors of their noise for a unit sigma, in float64."""
        k, h = np.array([self.a, self.a, self.b]), self.dt
        decay, kh = np.exp(-k * h), k * h
        transition = decay[:, None, None] * np.moveaxis(np.array([[1 + kh, h + 0 * k], [-(k**2) * h, 1 - kh]]), -1, 0)
        qq = (-np.expm1(-2 * kh) - decay**2 * (2 * kh + 2 * kh**2)) / (4 * k**3)
        qp = h**2 * decay**2 / 2
        pp = (-np.expm1(-2 * kh) + decay**2 * (2 * kh - 2 * kh**2)) / (4 * k)
        # Differences of nearly equal numbers: for small k h their Taylor series is what is accurate.
        qq = np.where(kh < 1e-2, h**3 * (1 / 3 - kh / 2 + 2 * kh**2 / 5), qq)
        factor = np.zeros((3, 2, 2))
        factor[:, 0, 0] = np.sqrt(qq)
        factor[:, 1, 0] = qp / factor[:, 0, 0]
        factor[:, 1, 1] = np.sqrt(np.maximum(pp - factor[:, 1, 0] ** 2, 0))
        return transition, factor

    def _step(self, theta: Array) -> Callable[[tuple, Array], tuple]:
        """``step(state, noise)``: an exact step of the linear part and a full kick, two half ones merged."""
        F, L = (m.astype(theta.dtype) for m in self._linear())
        sizes = (self.sigma4, theta[..., 2], self.sigma6)

        def step(state: tuple, noise: Array) -> tuple:
            q, p = [], []
            for i in range(3):
                u, v = sizes[i] * noise[2 * i], sizes[i] * noise[2 * i + 1]
                q.append(F[i, 0, 0] * state[i] + F[i, 0, 1] * state[3 + i] + L[i, 0, 0] * u)
                p.append(F[i, 1, 0] * state[i] + F[i, 1, 1] * state[3 + i] + L[i, 1, 0] * u + L[i, 1, 1] * v)
            forces = self._forces((*q, *p), theta)
            return (*q, *(p[i] + self.dt * forces[i] for i in range(3)))

        return step
