r"""Augmentation policies, one for all classes or one a class, and how they are applied to a batch.

A policy has L sub-policies of K stages; a stage is one of n operations, applied with a probability and a magnitude.
Rommel et al. (2022); Hataya et al. (2020), Faster AutoAugment.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, ScalarLike

from gyri.numerics.relax import relaxed_bernoulli, relaxed_one_hot
from gyri.numerics.transform import Transform
from gyri.numerics.validation import as_key, check_array, check_option, check_positive_int, check_scalar

MODES = ("relaxed", "sample")
ESTIMATORS = ("softmax", "gumbel", "relax")
SPREAD = 1e-3  # of the start about its middle
GUMBEL = 2.0  # temperature of one-hot choices over that of the apply-or-not variables: 0.1 and 0.05


class Policy(NamedTuple):
    """Parameters of a policy, each of shape (n_classes or 1, n_subpolicies, n_stages, n_ops).

    Attributes
    ----------
    logits : Array
        Log-weights of the operations of a stage.
    probabilities : Array
        Probability, in [0, 1], that an operation is applied once it is chosen.
    magnitudes : Array
        Strength of an operation, in [0, 1].
    """

    logits: Float[Any, "n_rows n_subpolicies n_stages n_ops"]
    probabilities: Float[Any, "n_rows n_subpolicies n_stages n_ops"]
    magnitudes: Float[Any, "n_rows n_subpolicies n_stages n_ops"]


def init_policy(
    key: Any,
    n_ops: int,
    *,
    n_subpolicies: int = 5,
    n_stages: int = 2,
    n_classes: int | None = None,
    dtype: Any = None,
) -> Policy:
    """Start of a search: log-weights 0, probabilities and magnitudes 1/2, all with a little noise.

    Parameters
    ----------
    key : PRNG key or int
        Of the noise, normal with standard deviation 1e-3.
    n_ops : int
        Operations to choose from.
    n_subpolicies, n_stages : int
        Sub-policies, and stages of each.
    n_classes : int, optional
        Classes with a policy of their own; None for one policy for all.
    dtype : dtype, optional
        Floating; JAX's default otherwise.

    Returns
    -------
    Policy
        Arrays of shape (n_classes or 1, n_subpolicies, n_stages, n_ops).

    Raises
    ------
    ValueError
        A number that is no positive integer, a dtype that is not floating.

    Examples
    --------
    >>> from gyri.cadda import init_policy
    >>> init_policy(0, 12, n_classes=5).magnitudes.shape
    (5, 5, 2, 12)

    References
    ----------
    Li et al. (2020), DADA, for the start.
    """
    sizes = {"n_subpolicies": n_subpolicies, "n_stages": n_stages, "n_ops": n_ops}
    shape = [check_positive_int(value, name) for name, value in sizes.items()]
    rows = 1 if n_classes is None else check_positive_int(n_classes, "n_classes")
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype: expected a floating one, got {dtype}")
    noise = SPREAD * jax.random.normal(as_key(key), (3, rows, *shape), dtype)
    return Policy(noise[0], 0.5 + noise[1], 0.5 + noise[2])


def project(policy: Policy) -> Policy:
    """Probabilities and magnitudes clipped to [0, 1]; for after an update, not for inside a loss.

    Examples
    --------
    >>> project(Policy(jnp.array([3.0]), jnp.array([1.5]), jnp.array([-1.0]))).probabilities
    Array([1.], dtype=float32)
    """
    return policy._replace(
        probabilities=jnp.clip(policy.probabilities, 0, 1), magnitudes=jnp.clip(policy.magnitudes, 0, 1)
    )


def exposure(policy: Policy | Any, *, temperature: ScalarLike = 0.05) -> Float[Array, "n_rows n_ops"]:
    r"""How often a policy applies each operation: the mean over sub-policies and stages of weight times probability.

    Parameters
    ----------
    policy : Policy
        Of one row, or one row a class.
    temperature : float
        Of the weights, :math:`\operatorname{softmax}(w / \eta)`.

    Returns
    -------
    Array, shape (n_classes or 1, n_ops)
        In [0, 1].

    Raises
    ------
    ValueError
        Arrays of different shapes, values outside [0, 1], a temperature that is not positive.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.cadda import Policy, exposure
    >>> exposure(Policy(jnp.zeros((1, 1, 1, 2)), jnp.ones((1, 1, 1, 2)), jnp.ones((1, 1, 1, 2))))
    Array([[0.5, 0.5]], dtype=float32)
    """
    policy = check_policy(policy)
    temperature = check_scalar(temperature, "temperature", minimum=0, strict=True)
    return jnp.mean(jax.nn.softmax(policy.logits / temperature) * policy.probabilities, (1, 2))


def describe(
    policy: Policy | Any, transforms: Sequence[Transform] | Any, *, temperature: ScalarLike = 0.05
) -> list[dict[str, Any]]:
    """A policy as rows of a table, such as `pandas.DataFrame` takes.

    Parameters
    ----------
    policy : Policy
        Of one row, or one row a class.
    transforms : sequence of Transform
        Its operations, in order.
    temperature : float
        Of the weights.

    Returns
    -------
    list of dict
        One an operation of a stage of a sub-policy of a class: ``"class"`` (None: all), ``"subpolicy"``, ``"stage"``,
        ``"operation"`` (its name), ``"weight"`` (probability to be chosen), ``"probability"`` (to be applied then),
        ``"magnitude"`` in [0, 1], ``"argument"`` it stands for (None without a range) and its ``"unit"``.

    Raises
    ------
    ValueError
        A policy of another number of operations, a temperature that is not positive.

    Examples
    --------
    >>> from gyri.cadda import describe, init_policy
    >>> from gyri.numerics.transform import eeg_transforms
    >>> transforms = eeg_transforms(100.0, include=["sign_flip", "time_mask"])
    >>> row = describe(init_policy(0, 2), transforms)[1]
    >>> row["operation"], round(row["argument"]), row["unit"]
    ('time_mask', 50, 'samples')
    """
    transforms = check_transforms(transforms)
    policy = check_policy(policy, transforms)
    temperature = check_scalar(temperature, "temperature", minimum=0, strict=True)
    weights = np.asarray(jax.nn.softmax(policy.logits / temperature))
    p, mu = np.asarray(policy.probabilities), np.asarray(policy.magnitudes)
    rows = []
    for c, l, k, n in np.ndindex(weights.shape):
        argument = transforms[n].argument(float(mu[c, l, k, n]))
        rows.append({
            "class": None if len(weights) == 1 else c, "subpolicy": l, "stage": k, "operation": transforms[n].name,
            "weight": float(weights[c, l, k, n]), "probability": float(p[c, l, k, n]),
            "magnitude": float(mu[c, l, k, n]), "argument": argument, "unit": transforms[n].unit,
        })  # fmt: skip
    return rows


def augment(
    key: Any,
    policy: Policy | Any,
    transforms: Sequence[Transform] | Any,
    x: Float[Any, "batch n_channels n_times"] | Any,
    y: Int[Any, " batch"] | Any = None,
    *,
    mode: str = "relaxed",
    estimator: str = "softmax",
    temperature: ScalarLike | Array = 0.05,
    n_chunks: int = 1,
) -> Float[Array, "batch n_channels n_times"]:
    r"""Apply a policy to a batch, differentiably or not.

    The batch is cut into chunks, each of which draws one sub-policy. Whether an operation is applied, and what is
    random in it, is drawn for each window.

    Parameters
    ----------
    key : PRNG key or int
        Same key, same result.
    policy : Policy
        One row for all windows, or one a class.
    transforms : sequence of Transform
        Its operations, in order.
    x : array-like, shape (batch, n_channels, n_times)
        Windows.
    y : array-like of int, shape (batch,), optional
        Classes; a policy of several rows needs them, another ignores them.
    mode : {"relaxed", "sample"}
        "relaxed": to learn a policy. An operation is mixed with the identity by a relaxed Bernoulli variable, and
        gradients flow to probabilities and magnitudes. "sample": to use one. The operation of a stage is drawn with
        weights :math:`\operatorname{softmax}(w / \eta)`, and applied or not; no gradient flows to the policy.
    estimator : {"softmax", "gumbel", "relax"}
        What "relaxed" does about the choice of an operation. "softmax": the sum of all, weighted by
        :math:`\operatorname{softmax}(w / \eta)`. "gumbel": one drawn with weights :math:`\operatorname{softmax}(w)`,
        with the gradient of the Gumbel-softmax. "relax": one drawn in that way, without a gradient in `logits`, which
        `relax_gradient` estimates; it costs one operation a stage and class, where the others compute all.
    temperature : float
        :math:`\eta`, and that of the relaxed Bernoulli variables; twice as much for "gumbel".
    n_chunks : int
        Number of chunks, of equal size up to rounding.

    Returns
    -------
    Array, shape (batch, n_channels, n_times)
        Augmented windows in the dtype of `x`.

    Raises
    ------
    ValueError
        Shapes that do not fit each other, no labels for a policy of several rows, labels outside of it, values of the
        policy outside [0, 1], NaN or infinity in `x`, an argument out of range. Values are not looked at under `jit`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.cadda import augment, init_policy
    >>> from gyri.numerics.transform import eeg_transforms
    >>> transforms = eeg_transforms(100.0, include=["sign_flip", "time_mask"])
    >>> policy = init_policy(0, 2, n_classes=3)
    >>> augment(0, policy, transforms, jnp.ones((4, 2, 300)), jnp.array([0, 1, 2, 0])).shape
    (4, 2, 300)

    References
    ----------
    Rommel et al. (2022), algorithm 1.
    """
    check_option(mode, "mode", MODES)
    check_option(estimator, "estimator", ESTIMATORS)
    transforms = check_transforms(transforms)
    policy = check_policy(policy, transforms)
    x = jnp.asarray(check_array(x, "x", shape=("batch", "n_channels", "n_times")))
    temperature = check_scalar(temperature, "temperature", minimum=0, strict=True)
    n_chunks = check_positive_int(n_chunks, "n_chunks")
    y = check_classes(y, len(x), len(policy.logits))
    return apply_policy(as_key(key), policy, transforms, x, y, mode, estimator, temperature, n_chunks)


# Compiled once for the operations and options, also where `augment` is called outside of `jit`.
@partial(jax.jit, static_argnames=("transforms", "mode", "estimator", "n_chunks"))
def apply_policy(
    key: Array, policy: Policy, transforms: tuple[Transform, ...], x: Array, y: Array, mode: str, estimator: str,
    temperature: Any, n_chunks: int,
) -> Array:  # fmt: skip
    """What `augment` does with checked arguments."""
    if mode == "relaxed" and estimator != "relax":
        return mix_all(key, policy, transforms, x, y, estimator, temperature, n_chunks)
    subpolicy_key, choice_key, apply_key = jax.random.split(key, 3)
    drawn = draw_subpolicies(subpolicy_key, policy, n_chunks)
    scale = temperature if mode == "sample" else 1
    ops = jax.random.categorical(choice_key, jax.lax.stop_gradient(drawn.logits / scale))
    stages = chosen_stages(drawn, ops)
    if mode == "sample":
        stages = jax.lax.stop_gradient(stages)
    return apply_stages(apply_key, transforms, x, y, stages, temperature if mode == "relaxed" else None)


# --- every operation, weighted --------------------------------------------------------------------------------------


def draw_subpolicies(key: Array, policy: Policy, n_chunks: int) -> Policy:
    """Parameters of the sub-policy of each chunk: arrays of shape (n_chunks, n_rows, n_stages, n_ops)."""
    chosen = jax.random.randint(key, (n_chunks,), 0, policy.logits.shape[1])
    return Policy(*(jnp.swapaxes(leaf[:, chosen], 0, 1) for leaf in policy))


def chunk_of_windows(batch: int, n_chunks: int) -> np.ndarray:
    """Chunk of each window: chunks follow one another, and the first ones have a window more where they must.

    Examples
    --------
    >>> chunk_of_windows(5, 3)
    array([0, 0, 1, 1, 2])
    """
    size, n_larger = divmod(batch, n_chunks)
    return np.repeat(np.arange(n_chunks), size + (np.arange(n_chunks) < n_larger))


def mix_all(
    key: Array, policy: Policy, transforms: tuple[Transform, ...], x: Array, y: Array, estimator: str,
    temperature: Any, n_chunks: int,
) -> Array:  # fmt: skip
    """Stages as weighted sums of all operations."""
    subpolicy_key, choice_key, stage_key = jax.random.split(key, 3)
    drawn = draw_subpolicies(subpolicy_key, policy, n_chunks)
    if estimator == "softmax":
        weights = jax.nn.softmax(drawn.logits / temperature)
    else:
        weights = relaxed_one_hot(choice_key, drawn.logits, temperature=GUMBEL * temperature, hard=True)
    chunk = chunk_of_windows(len(x), n_chunks)
    # (n_stages, n_ops, batch): the number of each window.
    each = lambda leaf: jnp.moveaxis(leaf[chunk, y], 0, -1).astype(x.dtype)
    numbers = (each(weights), each(drawn.probabilities), each(drawn.magnitudes))

    def stage(x: Array, inputs: tuple) -> tuple[Array, None]:
        key, (weight, p, mu) = inputs
        kept, total = jnp.ones(len(x), x.dtype), jnp.zeros_like(x)
        for n, transform in enumerate(transforms):
            apply_key, noise_key = jax.random.split(jax.random.fold_in(key, n))
            share = weight[n] * relaxed_bernoulli(apply_key, p[n], temperature=temperature)
            kept = kept - share
            total = total + share[:, None, None] * transform(noise_key, x, mu[n]).astype(x.dtype)
        return kept[:, None, None] * x + total, None

    return jax.lax.scan(stage, x, (jax.random.split(stage_key, policy.logits.shape[2]), numbers))[0]


# --- one operation a stage ------------------------------------------------------------------------------------------


class Stages(NamedTuple):
    """What each chunk does to each class, arrays of shape (n_chunks, n_rows, n_stages).

    Attributes
    ----------
    ops : Array of int
        Index of the operation.
    probabilities, magnitudes : Array
        Of that operation.
    """

    ops: Array
    probabilities: Array
    magnitudes: Array


def chosen_stages(drawn: Policy, ops: Array) -> Stages:
    """Parameters of the chosen operations of `draw_subpolicies`."""
    pick = lambda leaf: jnp.take_along_axis(leaf, ops[..., None], -1)[..., 0]
    return Stages(ops, pick(drawn.probabilities), pick(drawn.magnitudes))


def apply_one(transforms: tuple[Transform, ...], op: Array, key: Array, x: Array, mu: Array) -> Array:
    """The operation of this index; only it is computed."""
    branches: list[Callable] = [lambda key, x, mu, t=t: t(key, x, mu).astype(x.dtype) for t in transforms]
    return jax.lax.switch(op, branches, key, x, mu)


def cut(a: Array, n_chunks: int) -> Array:
    """Chunks as in `chunk_of_windows`, (n_chunks, size, ...); the smaller ones are filled up with a zero."""
    size, n_larger = divmod(len(a), n_chunks)
    larger = a[: n_larger * (size + 1)].reshape(n_larger, size + 1, *a.shape[1:])
    smaller = a[n_larger * (size + 1) :].reshape(n_chunks - n_larger, size, *a.shape[1:])
    if not n_larger:
        return smaller
    return jnp.concatenate([larger, jnp.pad(smaller, ((0, 0), (0, 1), *[(0, 0)] * (a.ndim - 1)))])


def join(chunks: Array, batch: int) -> Array:
    """What was `cut`."""
    size, n_larger = divmod(batch, len(chunks))
    parts = chunks[:n_larger], chunks[n_larger:, :size]
    return jnp.concatenate([part.reshape(-1, *chunks.shape[2:]) for part in parts])


def apply_stages(
    key: Array, transforms: tuple[Transform, ...], x: Array, y: Array, stages: Stages, temperature: Any
) -> Array:
    """Chunk after chunk, stage after stage, class after class: one operation at a time.

    `temperature` is that of relaxed Bernoulli variables; None applies operations or not.
    """
    n_chunks, n_rows, n_stages = stages.ops.shape
    size = -(-len(x) // n_chunks)
    keys = jax.random.split(key, (n_chunks, n_stages, n_rows))

    # Recomputed in the backward pass: what a stage holds is its input, not what is inside of the operations.
    @jax.checkpoint
    def share_of_class(x: Array, y: Array, key: Array, row: Array, op: Array, p: Array, mu: Array) -> Array:
        """Windows of one class after the stage, and 0 in place of the others."""
        apply_key, noise_key = jax.random.split(key)
        if temperature is None:
            s = jax.random.bernoulli(apply_key, p, (size,)).astype(x.dtype)
        else:
            s = relaxed_bernoulli(apply_key, p.astype(x.dtype), (size,), temperature=temperature)
        s = s[:, None, None]
        changed = apply_one(transforms, op, noise_key, x, mu.astype(x.dtype))
        return jnp.where((y == row)[:, None, None], s * changed + (1 - s) * x, 0)

    def stage(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        x, y = carry
        add = lambda total, per_class: (total + share_of_class(x, y, *per_class), None)
        return (jax.lax.scan(add, jnp.zeros_like(x), inputs)[0], y), None

    def chunk(inputs: tuple) -> Array:
        x, y, keys, per_stage = inputs
        rows = jnp.broadcast_to(jnp.arange(n_rows), (n_stages, n_rows))
        return jax.lax.scan(stage, (x, y), (keys, rows, *per_stage))[0][0]

    per_stage = tuple(jnp.swapaxes(leaf, 1, 2) for leaf in stages)
    return join(jax.lax.map(chunk, (cut(x, n_chunks), cut(y, n_chunks), keys, per_stage)), len(x))


# --- checks ---------------------------------------------------------------------------------------------------------


def check_transforms(transforms: Any) -> tuple[Transform, ...]:
    """A tuple of transforms, at least one."""
    given = tuple(transforms) if isinstance(transforms, Sequence) else transforms
    if not isinstance(given, tuple) or not given or not all(isinstance(t, Transform) for t in given):
        raise ValueError(f"transforms: expected one or more gyri.numerics.transform.Transform, got {transforms!r}")
    return given


def check_policy(policy: Any, transforms: Any = None) -> Policy:
    """Three arrays of one shape, with as many operations as there are transforms, probabilities within [0, 1]."""
    if not isinstance(policy, Policy):
        raise ValueError(f"policy: expected a Policy, got {type(policy).__name__}")
    checked = Policy(
        *(jnp.asarray(check_array(leaf, f"policy.{name}", ndim=4)) for name, leaf in policy._asdict().items())
    )
    for name, leaf in checked._asdict().items():
        if leaf.shape != checked.logits.shape:
            raise ValueError(f"policy.{name}: expected the shape of logits, {checked.logits.shape}, got {leaf.shape}")
        if name != "logits" and not isinstance(leaf, jax.core.Tracer):
            least, most = np.min(np.asarray(leaf)), np.max(np.asarray(leaf))
            if least < 0 or most > 1:
                raise ValueError(f"policy.{name}: expected values in [0, 1], got {least:g} to {most:g}")
    n_ops = checked.logits.shape[-1]
    if transforms is not None and len(transforms) != n_ops:
        raise ValueError(f"transforms: expected {n_ops} as the policy has operations, got {len(transforms)}")
    return checked


def check_classes(y: Any, n: int, n_rows: int) -> Array:
    """Row of the policy of each window."""
    if n_rows == 1:
        return jnp.zeros(n, jnp.int32)
    if y is None:
        raise ValueError(f"y: expected labels, as the policy has {n_rows} classes, got None")
    labels = y if isinstance(y, jax.Array) else np.asarray(y)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"y: expected integer labels, got dtype {labels.dtype}")
    if labels.shape != (n,):
        raise ValueError(f"y: expected shape ({n},) as there are {n} windows, got {labels.shape}")
    if not isinstance(labels, jax.core.Tracer):
        least, most = np.min(np.asarray(labels)), np.max(np.asarray(labels))
        if least < 0 or most >= n_rows:
            raise ValueError(f"y: expected labels >= 0 and < {n_rows}, got labels from {least} to {most}")
    return jnp.asarray(labels)


@partial(
    jax.tree_util.register_dataclass, data_fields=["policy"], meta_fields=["transforms", "temperature", "n_chunks"]
)
@dataclass(frozen=True)
class Augmenter:
    """A learned policy as a function of (key, X, y), to train with.

    Parameters
    ----------
    policy : Policy
        One row, or one a class.
    transforms : tuple of Transform
        Its operations.
    temperature : float
        Of the weights.
    n_chunks : int
        Sub-policies drawn for a batch.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.cadda import init_policy
    >>> from gyri.numerics.transform import eeg_transforms
    >>> augmenter = Augmenter(init_policy(0, 1), eeg_transforms(100.0, include=["sign_flip"]))
    >>> augmenter(0, jnp.ones((3, 2, 10))).shape
    (3, 2, 10)
    """

    policy: Any
    transforms: tuple[Transform, ...]
    temperature: float = 0.05
    n_chunks: int = 8

    def __call__(self, key: Any, X: Any, y: Any = None) -> Float[Array, "batch n_channels n_times"]:
        """Augment a batch of windows; `y` is needed by a policy of several classes."""
        n_chunks = min(self.n_chunks, len(X))
        return augment(
            key, self.policy, self.transforms, X, y, mode="sample", temperature=self.temperature, n_chunks=n_chunks
        )
