"""The front door of the learned networks: a scikit-learn style estimator. It holds no mathematics."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from gyri.numerics.io import load_pytree, save_pytree
from gyri.numerics.validation import as_key, check_option, check_positive_int, check_scalar

from .networks import INNER, NETWORKS, apply_network, check_rank, constants_of, init_network
from .operators import to_dense
from .problem import check_problem, lambda_max
from .training import SCHEDULES, Data, objective_at, stages, train

_KIND = "gyri.tv.LearnedTV"


class LearnedTV(BaseEstimator):
    r"""Network that solves TV-regularised problems with one operator in a few layers, trained without labels.

    Each layer is an iteration of a solver whose matrices are learned so that the mean of
    :math:`\tfrac12 \|x - A u\|^2 + \lambda \|D u\|_1` over the training signals is small at its output.

    Parameters
    ----------
    n_layers : int
        Layers.
    network : str
        Architecture, see `init_network`; ``"lpgd_taut"`` is the best at every depth in the paper.
    lam : float
        Penalty: a fraction of each signal's `lambda_max`, in (0, 1), or as it is with ``lam_is_ratio=False``.
    lam_is_ratio : bool
        Divide each signal by its `lambda_max` first, and multiply its output by it.
    learn_threshold : bool
        Learn the thresholds of lpgd networks, too.
    n_inner : int
        Inner layers (lpgd_lista).
    inner : {"none", "global", "per_layer"}
        Inner weights fixed, shared or each layer's own (lpgd_lista).
    schedule : {"recursive", "one_shot", "greedy"}
        Layer after layer, all at once, or layer after layer through the last output.
    max_iter : int
        Training steps in all, split evenly over the layers (one each at least); with an optimiser, epochs.
    optimizer : optax.GradientTransformation, optional
        Minibatches with this optimiser; None is full-batch gradient descent with back-tracking, as in the paper.
    batch_size : int, optional
        Signals a minibatch; all when None.
    seed : int
        Draws the minibatches.
    verbose : bool
        Show a progress bar.

    Attributes
    ----------
    params_ : dict
        Parameters as of `init_network`.
    history_ : dict of np.ndarray, shape (n_steps,)
        ``"loss"``, the training loss at each start of a stage and after each step, and ``"n_layers"``, the depth at
        which it was computed.
    lam_ : float
        The penalty, a ratio or not as `lam`.
    A_ : Array, shape (m, k)
        The operator.

    Notes
    -----
    Cherkaoui, Sulam, Moreau (2020), Learning to solve TV regularised problems with unrolled algorithms, NeurIPS.

    Examples
    --------
    >>> from gyri.tv import LearnedTV, simulate
    >>> x, u, z, A = simulate(0, 100)
    >>> model = LearnedTV(n_layers=3, max_iter=30, verbose=False).fit(x, A)
    >>> model.transform(x).shape
    (100, 8)
    >>> bool(model.history_["loss"][-1] < model.history_["loss"][0])
    True
    """

    def __init__(
        self,
        n_layers: Any = 20,
        *,
        network: Any = "lpgd_taut",
        lam: Any = 0.1,
        lam_is_ratio: Any = True,
        learn_threshold: Any = False,
        n_inner: Any = 50,
        inner: Any = "none",
        schedule: Any = "recursive",
        max_iter: Any = 300,
        optimizer: Any = None,
        batch_size: Any = None,
        seed: Any = 0,
        verbose: Any = True,
    ) -> None:
        self.n_layers = n_layers
        self.network = network
        self.lam = lam
        self.lam_is_ratio = lam_is_ratio
        self.learn_threshold = learn_threshold
        self.n_inner = n_inner
        self.inner = inner
        self.schedule = schedule
        self.max_iter = max_iter
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.seed = seed
        self.verbose = verbose

    # --- fit ----------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, A: Any) -> "LearnedTV":
        """Train the network on signals.

        Parameters
        ----------
        X : array-like, shape (n, m)
            Observed signals; their dtype is that of the network.
        A : array-like of shape (m, k), LinearOperator or None
            The operator; None is the identity. Its matrix is formed.

        Returns
        -------
        LearnedTV
            Itself. Ctrl-C keeps the parameters after the last complete block of steps and warns.

        Raises
        ------
        ValueError
            If an argument or a parameter of the estimator is out of range; the message names it.
        """
        lam = self._check_options()
        problem = check_problem(X, A, name="X", ndim=2)
        matrix = to_dense(problem.A, problem.x.dtype).astype(problem.x.dtype)
        check_rank(matrix, self.network)
        x, _ = self._normalise(problem.x, matrix)
        n_layers, n_inner = int(self.n_layers), int(self.n_inner)
        params = init_network(
            matrix, n_layers, self.network, n_inner=n_inner, inner=self.inner,
            learn_threshold=bool(self.learn_threshold),
        )  # fmt: skip
        data = Data(x, jnp.full((len(x), 1), lam, x.dtype), jax.jit(constants_of)(matrix))
        trained = train(
            params, data, stages(self.schedule, n_layers, int(self.max_iter)), network=self.network,
            n_inner=n_inner, optimizer=self.optimizer, batch_size=self.batch_size, key=as_key(self.seed, "seed"),
            progress=bool(self.verbose),
        )  # fmt: skip
        if trained.interrupted:
            warnings.warn(f"interrupted: trained for {trained.loss.size} steps only", stacklevel=2)
        self.params_, self.lam_, self.A_ = trained.params, lam, matrix
        self.history_ = {"loss": trained.loss, "n_layers": trained.n_layers}
        return self

    def _check_options(self) -> float:
        """Check all parameters but the optimiser; return the penalty."""
        for name in ("n_layers", "n_inner", "max_iter"):
            check_positive_int(getattr(self, name), name)
        if self.batch_size is not None:
            check_positive_int(self.batch_size, "batch_size")
            if self.optimizer is None:
                raise ValueError("batch_size: expected None without an optimizer, which has minibatches, got a size")
        if self.optimizer is not None and not hasattr(self.optimizer, "update"):
            raise ValueError(f"optimizer: expected an optax.GradientTransformation or None, got {self.optimizer!r}")
        check_option(self.network, "network", tuple(NETWORKS))
        check_option(self.inner, "inner", INNER)
        check_option(self.schedule, "schedule", SCHEDULES)
        for name in ("lam_is_ratio", "learn_threshold", "verbose"):
            value = getattr(self, name)
            check_option(bool(value) if isinstance(value, np.bool_) else value, name, (False, True))
        return check_scalar(self.lam, "lam", minimum=0, maximum=1 if self.lam_is_ratio else None, strict=True)

    def _normalise(self, x: Array, matrix: Array) -> tuple[Array, Array]:
        """Signals as the network sees them, and the factors (n, 1) that undo it."""
        if not self.lam_is_ratio:
            return x, jnp.ones((len(x), 1), x.dtype)
        scale = lambda_max(x, matrix)[:, None]
        scale = jnp.where(scale > 0, scale, 1)  # a signal that a constant fits perfectly
        return x / scale, scale

    # --- use ----------------------------------------------------------------------------------------------------------

    def transform(self, X: Any, n_layers: int | None = None) -> Float[Array, "n k"]:
        """Approximate solutions for signals.

        Parameters
        ----------
        X : array-like, shape (n, m)
            Observed signals.
        n_layers : int, optional
            Output of an earlier layer; the last by default. Training is for the last one: earlier ones need not be
            as good as a network of that depth.

        Returns
        -------
        Array, shape (n, k)
            The signals, in the unit of `X` over that of `A`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            Shapes that do not fit, NaN, infinity, more layers than there are.
        """
        check_is_fitted(self)
        x, scale = self._signals(X)
        return self._solve(x, n_layers) * scale

    def score(self, X: Any) -> float:
        """Minus the mean objective of the network's solutions, larger is better.

        Parameters
        ----------
        X : array-like, shape (n, m)
            Observed signals. With ``lam_is_ratio`` each counts divided by its `lambda_max`, as in training.

        Returns
        -------
        float
            On the scale of ``history_["loss"]``.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            Shapes that do not fit, NaN or infinity.
        """
        check_is_fitted(self)
        x, _ = self._signals(X)
        data = Data(x, jnp.full((len(x), 1), self.lam_, x.dtype), jax.jit(constants_of)(self.A_))
        return -float(objective_at(self._solve(x, None), data).mean())

    def _signals(self, X: Any) -> tuple[Array, Array]:
        x = check_problem(X, np.asarray(self.A_), name="X", ndim=2).x.astype(self.A_.dtype)
        return self._normalise(x, self.A_)

    def _solve(self, x: Array, n_layers: int | None) -> Array:
        return apply_network(
            self.params_, x, self.A_, self.lam_, network=self.network, n_layers=n_layers, n_inner=self.n_inner
        )

    # --- keep ---------------------------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the fitted network to one file (no pickle), exactly at `path`; an optimiser is not in it."""
        check_is_fitted(self)
        options = self.get_params(deep=False)
        del options["optimizer"]
        tree = {"params": self.params_, "A": self.A_, "history": self.history_, "seed": options.pop("seed")}
        options["lam"] = float(options["lam"])
        save_pytree(path, tree, kind=_KIND, meta={"options": options, "lam": self.lam_})

    @classmethod
    def load(cls, path: Any, *, optimizer: Any = None) -> "LearnedTV":
        """Read what `save` wrote.

        Parameters
        ----------
        path : path-like
            The file.
        optimizer : optax.GradientTransformation, optional
            For a later `fit`.

        Returns
        -------
        LearnedTV
            The fitted network.

        Raises
        ------
        ValueError
            If the file is not of this kind, newer, or damaged.
        """
        tree, meta = load_pytree(path, kind=_KIND)
        model = cls(**meta["options"], seed=tree["seed"], optimizer=optimizer)
        model.params_, model.A_, model.history_ = tree["params"], jnp.asarray(tree["A"]), tree["history"]
        model.lam_ = meta["lam"]
        return model
