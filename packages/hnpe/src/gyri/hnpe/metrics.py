"""How good posteriors are: distances between samples, distances to the truth."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gyri.numerics.validation import check_array, check_positive_int, check_scalar, import_extra


def sinkhorn_divergence(
    x: Any,
    y: Any,
    a: Any = None,
    b: Any = None,
    blur: float | int = 0.05,
    n_iter: int = 100,
) -> Float[Array, ""]:
    """Debiased entropic transport cost between two weighted samples, for half the squared distance.

    ``OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2``, each regularised with ``blur ** 2``; 0 for equal samples, and
    differentiable.

    Parameters
    ----------
    x, y : array, shape (n, d) and (m, d)
        Points.
    a, b : array, shape (n,) and (m,), optional
        Weights, of sum 1; equal by default.
    blur : float
        Distance below which points are not told apart.
    n_iter : int
        Iterations at the end, after some with a stronger regularisation.

    Returns
    -------
    Array, shape ()
        The divergence.

    Raises
    ------
    ValueError
        Wrong shapes, no points, values that are not finite.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.metrics import sinkhorn_divergence
    >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    >>> round(float(sinkhorn_divergence(x, x + 0.5)), 3)  # half the squared length of the shift
    0.25

    References
    ----------
    Feydy, Séjourné, Vialard, Amari, Trouvé, Peyré (2019), Interpolating between optimal transport and MMD using
    Sinkhorn divergences, AISTATS.
    """
    x = jnp.asarray(check_array(x, "x", ndim=2))
    y = jnp.asarray(check_array(y, "y", shape=(None, x.shape[1])))
    blur = check_scalar(blur, "blur", minimum=0, strict=True)
    weights = []
    for values, name, points in ((a, "a", x), (b, "b", y)):
        n = len(points)
        checked = jnp.full(n, 1 / n, x.dtype) if values is None else check_array(values, name, shape=(n,))
        weights.append(jnp.asarray(checked, x.dtype))
    return _divergence(x, y.astype(x.dtype), *weights, blur, check_positive_int(n_iter, "n_iter"))


@partial(jax.jit, static_argnums=5)
def _divergence(x: Array, y: Array, a: Array, b: Array, blur: Any, n_iter: int) -> Array:
    every = jnp.concatenate([x, y])
    widest = jnp.maximum(jnp.sum((every.max(0) - every.min(0)) ** 2), blur**2)
    # From the square of the diameter down to that of the blur, halved each time, then on with the latter.
    schedule = jnp.concatenate([widest * 0.5 ** jnp.arange(24, dtype=x.dtype), jnp.zeros(n_iter, x.dtype)])
    schedule = jnp.maximum(schedule, jnp.asarray(blur, x.dtype) ** 2)
    costs = [_transport(u, v, p, q, schedule) for u, v, p, q in ((x, y, a, b), (x, x, a, a), (y, y, b, b))]
    return costs[0] - 0.5 * costs[1] - 0.5 * costs[2]


def _transport(x: Array, y: Array, a: Array, b: Array, schedule: Array) -> Array:
    """Dual value after Sinkhorn's iterations on potentials, both updated at once and averaged."""
    cost = 0.5 * jnp.sum((x[:, None] - y[None]) ** 2, -1)
    log_a, log_b = jnp.log(a), jnp.log(b)

    def step(potentials: tuple, eps: Array) -> tuple[tuple, None]:
        f, g = potentials
        new_f = -eps * jax.nn.logsumexp(log_b + (g - cost) / eps, axis=1)
        new_g = -eps * jax.nn.logsumexp(log_a[:, None] + (f[:, None] - cost) / eps, axis=0)
        return ((f + new_f) / 2, (g + new_g) / 2), None

    (f, g), _ = jax.lax.scan(step, (jnp.zeros_like(a), jnp.zeros_like(b)), schedule)
    weighted = lambda w, v: jnp.sum(jnp.where(w > 0, w * v, 0))
    return weighted(a, f) + weighted(b, g)


def _check_samples(samples: Any, theta: Any) -> tuple[Array, Array]:
    samples = jnp.asarray(check_array(samples, "samples", ndim=2))
    return samples, jnp.asarray(check_array(theta, "theta", shape=(samples.shape[1],)), samples.dtype)


def dirac_distance(samples: Any, theta: Any, normalize: bool = False) -> Float[Array, "d"]:
    """Squared 2-Wasserstein distance of each coordinate to the truth: variance plus squared error of the mean.

    Parameters
    ----------
    samples : array, shape (n, d)
        From a posterior.
    theta : array, shape (d,)
        The truth.
    normalize : bool
        Divide by the standard deviation of the sample.

    Returns
    -------
    Array, shape (d,)
        Distances.

    Raises
    ------
    ValueError
        Wrong shapes, no samples.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.metrics import dirac_distance
    >>> dirac_distance(jnp.array([[0.0], [2.0]]), jnp.array([3.0]))
    Array([5.], dtype=float32)
    """
    samples, theta = _check_samples(samples, theta)
    distance = samples.var(0) + (samples.mean(0) - theta) ** 2
    return distance / samples.std(0) if normalize else distance


def contraction(samples: Any, prior_samples: Any) -> Float[Array, "d"]:
    """By how much the data narrowed the prior: 1 minus the ratio of variances.

    Parameters
    ----------
    samples : array, shape (n, d)
        From a posterior.
    prior_samples : array, shape (m, d)
        From the prior.

    Returns
    -------
    Array, shape (d,)
        1 for a known parameter, 0 where nothing was learned.

    Raises
    ------
    ValueError
        Wrong shapes, no samples.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.metrics import contraction
    >>> contraction(jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [2.0]]))
    Array([0.75], dtype=float32)
    """
    samples = jnp.asarray(check_array(samples, "samples", ndim=2))
    prior_samples = jnp.asarray(check_array(prior_samples, "prior_samples", shape=(None, samples.shape[1])))
    return 1 - samples.var(0) / prior_samples.var(0).astype(samples.dtype)


def z_score(samples: Any, theta: Any) -> Float[Array, "d"]:
    """Error of the posterior's mean in its standard deviations.

    Parameters
    ----------
    samples : array, shape (n, d)
        From a posterior.
    theta : array, shape (d,)
        The truth.

    Returns
    -------
    Array, shape (d,)
        Scores.

    Raises
    ------
    ValueError
        Wrong shapes, no samples.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.metrics import z_score
    >>> z_score(jnp.array([[0.0], [2.0]]), jnp.array([3.0]))
    Array([-2.], dtype=float32)
    """
    samples, theta = _check_samples(samples, theta)
    return (samples.mean(0) - theta) / samples.std(0)


def c2st(x: Any, y: Any, *, n_folds: int = 5, seed: int = 0) -> float:
    """How well a classifier tells two samples apart: accuracy of a network over folds; 0.5 if they are alike.

    Needs ``pip install "gyri-hnpe[metrics]"``.

    Parameters
    ----------
    x, y : array, shape (n, d) and (m, d)
        Samples; both are standardised with the moments of the first.
    n_folds : int
        Of the cross-validation.
    seed : int
        Of folds and weights.

    Returns
    -------
    float
        Mean accuracy, balanced if the samples differ in size.

    Raises
    ------
    ImportError
        Without scikit-learn.
    ValueError
        Wrong shapes, values that are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.hnpe.metrics import c2st
    >>> rng = np.random.default_rng(0)
    >>> c2st(rng.normal(size=(200, 1)), 10 + rng.normal(size=(200, 1))) > 0.95
    True

    References
    ----------
    Lopez-Paz, Oquab (2017), Revisiting classifier two-sample tests, ICLR.
    """
    x = np.asarray(check_array(x, "x", ndim=2), np.float64)
    y = np.asarray(check_array(y, "y", shape=(None, x.shape[1])), np.float64)
    import_extra("sklearn", "gyri-hnpe[metrics]", "to classify")
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    scale = np.where(x.std(0) > 0, x.std(0), 1)
    points = (np.concatenate([x, y]) - x.mean(0)) / scale
    labels = np.repeat([0, 1], [len(x), len(y)])
    width = 10 * x.shape[1]
    network = MLPClassifier((width, width), max_iter=1000, early_stopping=len(points) > 1000, random_state=seed)
    folds = StratifiedKFold(check_positive_int(n_folds, "n_folds", minimum=2), shuffle=True, random_state=seed)
    return float(cross_val_score(network, points, labels, cv=folds, scoring="balanced_accuracy").mean())
