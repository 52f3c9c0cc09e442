"""The front door: search for a policy on labelled windows, by any of the methods. It holds no mathematics."""

import os
import warnings
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, ScalarLike
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from gyri.numerics.transform import eeg_transforms
from gyri.numerics.validation import as_key, check_option, check_positive_int, check_scalar

from . import descent, trials
from .functional import Graphs, Weights, class_weights, network_dtype, take_apart
from .io import MissingNetwork, load_search, save_search
from .networks import SleepStager
from .policy import ESTIMATORS, Augmenter, Policy, check_transforms, describe
from .spaces import PairSpace, StageSpace, draw_pairs
from .train import Data, count_outputs, fit_weights, on_device, same_shape
from .windows import Windows, read_windows

BILEVEL = ("cadda", "adda", "dada")
TRIALS = ("fast_aa", "autoaugment", "random", "randaugment")
METHODS = (*BILEVEL, "faster_aa", *TRIALS, "none")
HYPERGRADIENTS = ("exact", "finite_difference", "first_order")
N_CHUNKS = 8  # of a batch, where one policy is for all classes; classes are groups enough of their own
PATIENCE = 30


class PolicySearch(BaseEstimator):
    r"""Learn an augmentation policy, for all classes or one a class, from labelled windows.

    Parameters
    ----------
    network : flax.nnx.Module, optional
        Takes (batch, n_channels, n_times), returns logits (batch, n_classes). It is left as it is; trainings start
        from its weights. A new `SleepStager` by default.
    transforms : sequence of Transform or of str, or a set's name, optional
        Operations to choose from; names are those of `gyri.numerics.transform.eeg_transforms`, whose default is the
        default here.
    method : str
        - "cadda", "adda": gradient descent on the validation loss through one step of training; the names differ in
          `class_wise` only.
        - "dada": the same over a list of all pairs of operations (105 at random if there are more), through a step
          with momentum, with weight decay of 1e-3; the 25 heaviest pairs are kept. The paper has
          ``hypergradient="finite_difference", policy_learning_rate=3e-4``.
        - "faster_aa": brings augmented windows close to others in the eyes of a critic on the network's features
          (`network` needs a method `embed`); looks at no validation set. The paper has
          ``estimator="softmax", policy_learning_rate=1e-3``.
        - "fast_aa": trains once without augmentation, then tries policies on the validation set.
        - "autoaugment", "random": train with one discrete policy after another; proposed by a tree-structured Parzen
          estimator, or at random.
        - "randaugment": operations at random with one magnitude, searched on a grid.
        - "none": no augmentation, to compare with.

        "fast_aa" and "autoaugment" need ``gyri-cadda[search]``.
    class_wise : bool, optional
        A policy for each class. None: only for "cadda".
    estimator : {"relax", "gumbel", "softmax"}
        Of gradients in the choice of operations, see `augment`; "dada" has no "softmax", and "faster_aa", whose cost
        is differentiable, no "relax": there it stands for "gumbel".
    hypergradient : {"exact", "finite_difference", "first_order"}
        See `gyri.cadda.hypergradient`.
    n_subpolicies, n_stages : int
        Sub-policies, and stages of each; "dada" has pairs and "randaugment" one sub-policy.
    temperature : float
        Of the relaxations, and of the weights of a policy in use.
    learning_rate, policy_learning_rate : float
        Of Adam on the network, and on the policy.
    unroll_rate : float, optional
        Length of the step of training through which is differentiated; `learning_rate` by default.
    batch_size : int
        Windows a step.
    n_epochs : int
        Epochs of the search. Of methods that try policies: number of policies, and most epochs of each training.
    n_warmup : int
        Epochs without augmentation before a search by gradient descent; 0 for none.
    sfreq : float
        Sampling frequency in Hz; that of epochs of MNE is taken from them.
    ch_names : sequence of str, optional
        Names of the channels in the 10-20 system, which some operations need; those of epochs are taken from them,
        and if these are other names the default is the operations that need none.
    class_weight : "balanced", None, sequence or dict
        Weights of the classes in losses.
    random_state : int or PRNG key
        Same state, same result.
    verbose : bool
        Show bars.

    Attributes
    ----------
    policy_ : Policy
        What was found.
    transforms_ : tuple of Transform
        Its operations.
    history_ : dict of numpy.ndarray
        ``"time"`` in seconds; ``"logits"``, ``"probabilities"`` and ``"magnitudes"`` before the search and after each
        epoch or trial; ``"train_loss"`` and ``"valid_loss"`` of epochs (``"wasserstein"`` for "faster_aa"), or
        ``"score"`` of trials, the lower the better: minus the balanced accuracy, or the loss for "fast_aa".
    n_classes_, sfreq_, ch_names_, window_shape_
        Of the windows.

    Examples
    --------
    >>> from gyri.cadda import PolicySearch, simulate_sleep
    >>> X, y, subject = simulate_sleep(0, 2, 20, sfreq=20, window_s=10)
    >>> search = PolicySearch(
    ...     transforms=["sign_flip", "gaussian_noise"], sfreq=20, n_epochs=1, n_warmup=0, verbose=False
    ... ).fit(X[:20], y[:20], X[20:], y[20:])
    >>> search.policy_.magnitudes.shape
    (5, 5, 2, 2)
    >>> augmented = search.augmenter()(0, X, y)

    References
    ----------
    Rommel, Moreau, Paillard, Gramfort (2022), CADDA. Li et al. (2020), DADA. Hataya et al. (2020), Faster
    AutoAugment. Lim et al. (2019), Fast AutoAugment. Cubuk et al. (2019, 2020), AutoAugment, RandAugment.
    """

    policy_: Policy
    transforms_: tuple
    history_: dict[str, np.ndarray]
    n_classes_: int
    sfreq_: float
    ch_names_: tuple[str, ...] | None
    window_shape_: tuple[int, ...]

    def __init__(
        self,
        network: Any = None,
        transforms: Any = None,
        *,
        method: str = "cadda",
        class_wise: bool | None = None,
        estimator: str = "relax",
        hypergradient: str = "exact",
        n_subpolicies: int = 5,
        n_stages: int = 2,
        temperature: ScalarLike = 0.05,
        learning_rate: ScalarLike = 1e-3,
        policy_learning_rate: ScalarLike = 1e-2,
        unroll_rate: ScalarLike | None = None,
        batch_size: int = 16,
        n_epochs: int = 20,
        n_warmup: int = 5,
        sfreq: ScalarLike = 100.0,
        ch_names: Any = None,
        class_weight: Any = "balanced",
        random_state: Any = 0,
        verbose: bool = True,
    ) -> None:
        self.network = network
        self.transforms = transforms
        self.method = method
        self.class_wise = class_wise
        self.estimator = estimator
        self.hypergradient = hypergradient
        self.n_subpolicies = n_subpolicies
        self.n_stages = n_stages
        self.temperature: Any = temperature
        self.learning_rate: Any = learning_rate
        self.policy_learning_rate: Any = policy_learning_rate
        self.unroll_rate: Any = unroll_rate
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.n_warmup = n_warmup
        self.sfreq: Any = sfreq
        self.ch_names = ch_names
        self.class_weight = class_weight
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self,
        X: Float[Any, "n n_channels n_times"] | Any,
        y: Int[Any, " n"] | Any,
        X_valid: Float[Any, "n_valid n_channels n_times"] | Any = None,
        y_valid: Int[Any, " n_valid"] | Any = None,
    ) -> "PolicySearch":
        """Search for a policy; Ctrl-C keeps the one of the last complete epoch or trial.

        Parameters
        ----------
        X, X_valid : array-like, shape (n, n_channels, n_times), or mne.Epochs
            Windows, z-scored; epochs are z-scored here. Better of different subjects. Without a validation set `X` is
            cut into halves with the same classes.
        y, y_valid : array-like of int, shape (n,)
            Labels from 0. None for epochs: their event codes in increasing order.

        Returns
        -------
        PolicySearch
            Itself, fitted.

        Raises
        ------
        FloatingPointError
            A training loss is not finite.
        ImportError
            An extra that the method needs is not installed.
        ValueError
            Windows or labels of the wrong shape or type, NaN, infinite; an option out of range.
        """
        self._check_options()
        given = read_windows(X, y)
        given, held = self._split(given) if X_valid is None else (given, read_windows(X_valid, y_valid, "_valid"))
        if X_valid is None and y_valid is not None:
            raise ValueError("y_valid: expected None without X_valid, got labels")
        same_shape(given, held)
        self._read_properties(given, held)
        n_classes = None if self.network is None else count_outputs(*take_apart(self.network), given)
        n_classes = n_classes or max(2, int(max(given.y.max(), held.y.max())) + 1)
        given, held = (read_windows(w.X, w.y, s, n_classes) for w, s in ((given, ""), (held, "_valid")))
        self.n_classes_, self.window_shape_ = n_classes, tuple(given.X.shape[1:])
        found = self._search(given, held)
        if found.interrupted:
            warnings.warn(f"interrupted after {found.history['time'].size} epochs or trials", stacklevel=2)
        self.policy_, self.history_ = found.policy, found.history
        return self

    def _check_options(self) -> None:
        if isinstance(self.network, MissingNetwork):
            raise ValueError("network: it was a custom one, which no file holds: hand it to load(network=...)")
        check_option(self.method, "method", METHODS)
        check_option(self.class_wise, "class_wise", (None, False, True))
        check_option(self.estimator, "estimator", ESTIMATORS)
        if self.method == "dada" and self.estimator == "softmax":
            raise ValueError("estimator: expected 'relax' or 'gumbel' for method 'dada', got 'softmax'")
        check_option(self.hypergradient, "hypergradient", HYPERGRADIENTS)
        for name in ("n_subpolicies", "n_stages", "batch_size", "n_epochs"):
            check_positive_int(getattr(self, name), name)
        check_positive_int(self.n_warmup, "n_warmup", minimum=0)
        for name in ("temperature", "learning_rate", "policy_learning_rate", "sfreq"):
            check_scalar(getattr(self, name), name, minimum=0, strict=True)
        if self.unroll_rate is not None:
            check_scalar(self.unroll_rate, "unroll_rate", minimum=0, strict=True)
        if self.method == "faster_aa" and self.batch_size < 2:
            raise ValueError("batch_size: expected 2 or more for method 'faster_aa', which halves batches, got 1")

    def _read_properties(self, given: Windows, held: Windows) -> None:
        """Frequency, names and operations."""
        if held.ch_names is not None and given.ch_names is not None and held.ch_names != given.ch_names:
            raise ValueError(f"X_valid: expected the channels of X, {given.ch_names}, got {held.ch_names}")
        self.sfreq_ = float(self.sfreq) if given.sfreq is None else given.sfreq
        names = given.ch_names if self.ch_names is None else tuple(self.ch_names)
        n_channels = given.X.shape[1]
        if names is not None and len(names) != n_channels:
            raise ValueError(f"ch_names: expected {n_channels} names as there are channels, got {len(names)}")
        self.ch_names_ = names
        self.transforms_ = self._make_transforms()

    def _make_transforms(self) -> tuple:
        transforms, names = self.transforms, self.ch_names_
        if transforms is None and names is not None and len(names) == 1:
            return eeg_transforms(self.sfreq_)  # there is no sensor to swap it with or to interpolate it from
        if transforms is None and names is not None and self.ch_names is None:
            try:
                return eeg_transforms(self.sfreq_, names)
            except ValueError as error:
                warnings.warn(f"{error}: operations that need such names are left out", stacklevel=4)
                return eeg_transforms(self.sfreq_)
        words = transforms is None or isinstance(transforms, str) or all(isinstance(t, str) for t in transforms)
        if words and not (transforms is not None and len(transforms) == 0):
            return eeg_transforms(self.sfreq_, names, transforms)
        return check_transforms(transforms)

    def _split(self, given: Windows) -> tuple[Windows, Windows]:
        """Halves with the same classes."""
        from sklearn.model_selection import train_test_split

        fewest = np.unique(given.y, return_counts=True)[1].min()
        if fewest < 2:
            raise ValueError("X_valid: expected a validation set, as a class has one window only and cannot be halved")
        seed = np.random.default_rng(self._seed(1)).integers(2**31)
        rows = train_test_split(np.arange(len(given.y)), test_size=0.5, stratify=given.y, random_state=int(seed))
        one, other = (given._replace(X=given.X[np.sort(r)], y=given.y[np.sort(r)]) for r in rows)
        return one, other

    def _key(self, stream: int) -> Array:
        """Key of one use of randomness."""
        return jax.random.fold_in(as_key(self.random_state, "random_state"), stream)

    def _seed(self, stream: int) -> np.ndarray:
        return np.asarray(jax.random.key_data(self._key(stream)))

    @property
    def _n_rows(self) -> int:
        class_wise = self.method == "cadda" if self.class_wise is None else self.class_wise
        return self.n_classes_ if class_wise else 1

    def _network(self) -> Any:
        if self.network is not None:
            return self.network
        n_channels, n_times = self.window_shape_
        seed = int(np.random.default_rng(self._seed(2)).integers(2**31))
        return SleepStager(n_channels, self.n_classes_, n_times, self.sfreq_, rngs=nnx.Rngs(seed))

    def _search(self, given: Windows, held: Windows) -> descent.Found:
        graphs, weights = take_apart(self._network())
        of_classes = class_weights(self.class_weight, given.y, self.n_classes_)
        dtype = network_dtype(weights)
        train, valid = on_device(given, dtype, of_classes), on_device(held, dtype, of_classes)
        if self.method in BILEVEL or self.method == "faster_aa":
            return self._descend(graphs, weights, train, valid)
        return self._try(graphs, weights, train, valid)

    def _space(self) -> StageSpace | PairSpace:
        n_ops = len(self.transforms_)
        if self.method == "dada":
            return PairSpace(draw_pairs(np.random.default_rng(self._seed(3)), n_ops), n_ops, self._n_rows)
        return StageSpace(n_ops, self.n_subpolicies, self.n_stages, self._n_rows)

    def _descend(self, graphs: Graphs, weights: Weights, train: Data, valid: Data) -> descent.Found:
        space, dtype, matching = self._space(), network_dtype(weights), self.method == "faster_aa"
        estimator = "gumbel" if matching and self.estimator == "relax" else self.estimator
        batch_size = min(self.batch_size, len(train.y))
        n_chunks = 1 if self._n_rows > 1 else min(N_CHUNKS, max(1, batch_size // (4 if matching else 2)))
        setting = descent.Setting(
            graphs, space, self.transforms_, estimator, self.hypergradient, float(self.temperature), n_chunks
        )
        key, n_epochs = self._key(4), self.n_epochs
        if matching:
            state = descent.start_critic(setting, weights, key, dtype, train.X[:2])
            step, names = descent.density_step(setting), ("train_loss", "wasserstein")
        else:
            options: dict[str, Any] = {"batch_size": batch_size, "learning_rate": float(self.learning_rate)}
            try:
                weights = descent.warm_up(
                    self._key(5), graphs, weights, train, n_epochs=self.n_warmup, verbose=bool(self.verbose), **options
                )
            except KeyboardInterrupt:
                n_epochs = 0
            state = descent.start_search(setting, weights, key, dtype)
            step, names = descent.bilevel_step(setting), ("train_loss", "valid_loss")
        unroll = self.learning_rate if self.unroll_rate is None else self.unroll_rate
        rates = descent.Rates(*(np.float32(r) for r in (self.learning_rate, self.policy_learning_rate, unroll)))
        found = descent.descend_epochs(
            self._key(6), step, state, space, train, valid, rates=rates, n_epochs=n_epochs,
            batch_size=batch_size, verbose=bool(self.verbose), names=names,
        )  # fmt: skip
        return found._replace(interrupted=found.interrupted or not n_epochs)

    def _try(self, graphs: Graphs, weights: Weights, train: Data, valid: Data) -> descent.Found:
        shape, n_ops = (self._n_rows, self.n_subpolicies, self.n_stages), len(self.transforms_)
        start = trials.no_augmentation(shape, n_ops)
        nothing = lambda: trials.try_policies(iter(()), lambda policy: 0.0, start, n_trials=0, verbose=False)
        if self.method == "none":
            return nothing()
        if self.method == "randaugment":
            start = trials.no_augmentation((self._n_rows, 1, self.n_stages), n_ops)
        options: dict[str, Any] = {
            "learning_rate": float(self.learning_rate), "batch_size": self.batch_size, "n_epochs": self.n_epochs,
            "patience": PATIENCE,
        }  # fmt: skip
        if self.method == "fast_aa":
            trained = fit_weights(
                self._key(4), graphs, weights, train, valid, augmenter=None, verbose=bool(self.verbose), **options
            )
            if trained.interrupted:
                return nothing()._replace(interrupted=True)
            loss, key = trials.augmented_loss(graphs), self._key(6)
            score = lambda augmenter: float(loss(trained.weights, valid, augmenter, key))
        else:
            score = trials.score_by_training(self._key(4), graphs, weights, train, valid, **options)
        n_trials = min(self.n_epochs, trials.N_MAGNITUDES) if self.method == "randaugment" else self.n_epochs
        seed = int(np.random.default_rng(self._seed(5)).integers(2**31))
        candidates = trials.proposals(self.method, seed, shape, n_ops, n_trials)
        return trials.try_policies(
            candidates, lambda policy: score(self._augmenter(policy)), start, n_trials=n_trials,
            verbose=bool(self.verbose),
        )  # fmt: skip

    def _augmenter(self, policy: Policy) -> Augmenter:
        return Augmenter(policy, self.transforms_, float(self.temperature), N_CHUNKS)

    def _check_fitted(self) -> None:
        if not hasattr(self, "policy_"):
            raise NotFittedError("PolicySearch: call fit first")

    def augmenter(self, *, step: int | None = None) -> Augmenter:
        """The policy as a function, for `train_classifier` or a training loop of one's own.

        Parameters
        ----------
        step : int, optional
            That of an earlier moment: 0 is before the search, i after the i-th epoch or trial.

        Returns
        -------
        callable
            ``f(key, X, y) -> X``, traceable by JAX; `y` may be left out if one policy is for all classes.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            There is no such step.
        """
        self._check_fitted()
        if step is None:
            return self._augmenter(self.policy_)
        n_steps = len(self.history_["logits"])
        if check_positive_int(step, "step", minimum=0) >= n_steps:
            raise ValueError(f"step: expected 0 to {n_steps - 1}, got {step}")
        return self._augmenter(Policy(*(jax.numpy.asarray(self.history_[name][step]) for name in Policy._fields)))

    def describe(self) -> list[dict[str, Any]]:
        """The policy as a table, see `gyri.cadda.describe`.

        Returns
        -------
        list of dict
            Rows with keys class, subpolicy, stage, operation, weight, probability, magnitude, argument, unit.

        Raises
        ------
        NotFittedError
            Before `fit`.
        """
        self._check_fitted()
        return describe(self.policy_, self.transforms_, temperature=self.temperature)

    def save(self, path: str | os.PathLike) -> None:
        """Write policy, history and options to one file, without code.

        Parameters
        ----------
        path : path-like
            Where, exactly; an existing file is replaced.

        Raises
        ------
        NotFittedError
            Before `fit`.
        """
        self._check_fitted()
        save_search(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike, *, network: Any = None, transforms: Any = None) -> "PolicySearch":
        """Read what `save` wrote.

        Parameters
        ----------
        path : path-like
            The file.
        network : flax.nnx.Module, optional
            For another `fit`, which without it raises a ValueError if the network was a custom one.
        transforms : sequence of Transform, optional
            Custom operations, found by their names. Built-in ones come back by themselves. A policy with others can be
            looked at, but not used.

        Returns
        -------
        PolicySearch
            The fitted search.

        Raises
        ------
        ValueError
            A file of something else, newer or damaged; an operation that the file does not name.
        """
        search: PolicySearch = load_search(cls, path, network, transforms)
        return search
