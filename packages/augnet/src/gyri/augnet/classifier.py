"""The front door: a scikit-learn classifier around any network. It holds no mathematics."""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from gyri.numerics.io import load_pytree, save_pytree
from gyri.numerics.loops import progress_bar
from gyri.numerics.transform import SETS as EEG_SETS
from gyri.numerics.transform import Transform, eeg_transforms
from gyri.numerics.validation import as_key, check_array, check_option, check_positive_int, check_scalar

from .augerino import NAMES, Augerino
from .image import COLOUR, image_transforms
from .image import SETS as IMAGE_SETS
from .invariance import invariance
from .layers import AugmentationLayer, AugNet
from .losses import KINDS
from .training import Rates, as_static, begin, end, flatten, predict, train_step, unflatten

_KIND = "gyri.augnet.AugNetClassifier"
# Settings that a file keeps in a place of their own, or that are code by nature.
_ELSEWHERE = ("trunk", "layers", "ch_names", "random_state")
# What may be changed on a fitted model: attributes of the network, and of each layer.
_OF_NETWORK = ("copies", "train_copies", "aggregate")
_OF_LAYER = ("temperature", "apply_temperature", "sampling")


def _plain(value: Any) -> Any:
    """Numbers and sequences of numbers as JSON has them; all else as it is."""
    numbers = isinstance(value, np.generic | np.ndarray | jax.Array | list | tuple)
    return np.asarray(value).tolist() if numbers else value


class AugNetClassifier(ClassifierMixin, BaseEstimator):
    r"""Classifier that learns from its training set which transforms leave the labels unchanged, and how far.

    Trains a network behind learnable augmentation layers on the cross-entropy minus `reg` times the size of the
    augmentation, by Adam, and averages its predictions over augmented copies.

    Parameters
    ----------
    trunk : nnx.Module or callable
        Network (n, ...) -> (n, n_classes), which is copied and so not trained itself; or a function of `nnx.Rngs` that
        makes one.
    layers : str, sequence of Transform, Augerino, or sequence of these
        What each augmentation layer chooses from: "affine", "non_affine" or "geometric" for images (n, n_rows,
        n_columns, n_channels) in [0, 1]; "time_freq", "spatial" or "all" for EEG (n, n_channels, n_times); or
        transforms. A sequence of names or of sequences makes one layer each.
    n_layers : int
        Number of layers where `layers` describes one.
    reg : float
        Factor :math:`\lambda \ge 0` of the reward.
    reg_schedule : callable, optional
        Factor of `reg` for each epoch, counted from 0.
    penalty : {"selective", "magnitude", "width", "width_safe"}
        What is rewarded, see :func:`invariance_penalty`.
    init_magnitude : float
        First magnitudes, in [0, 1].
    temperature : float
        Temperature of the weights.
    copies, train_copies : int
        Augmented copies in prediction and in training.
    learning_rate : float or callable
        Of Adam, or an optax schedule, for the network.
    aug_learning_rate : float or callable, optional
        The same for the augmentations; that of the network when None.
    weight_decay, aug_weight_decay : float
        Decays; that of the augmentations is the network's when None.
    decoupled : bool
        Whether decays act beside Adam (AdamW) or are added to the gradient before it. The choice changes what is
        learned: the second pulls unrewarded magnitudes to 0.
    batch_size : int
        Examples a step, at most the training set; the rest of a shuffled epoch that does not fill a batch is left out.
    n_epochs : int
        Passes over the training set.
    sfreq : float, optional
        Sampling frequency in hertz, needed for the named EEG sets.
    ch_names : sequence of str, optional
        Names of channels, needed for the sets "spatial" and "all".
    random_state : int or PRNG key
        Source of all randomness: same data, settings and versions, same result.
    verbose : bool
        Show a progress bar.

    Attributes
    ----------
    model_ : AugNet
        In evaluation mode.
    classes_ : np.ndarray, shape (n_classes,)
        Labels.
    history_ : dict of np.ndarray
        One entry an epoch: loss, ce (cross-entropy), accuracy (of the augmented batches as they were trained on),
        weights (n_epochs, n), magnitudes (n_epochs, n).
    input_shape_ : tuple of int
        Shape of one example.
    n_features_in_ : int
        Numbers in one example.

    Notes
    -----
    Integer labels must lie in [0, n_classes), where the number of classes is that of the network's outputs. Other
    labels are sorted, and there must be as many as outputs.

    References
    ----------
    Rommel, Moreau, Gramfort (2022), "Deep invariant networks with differentiable augmentation layers", NeurIPS.

    Examples
    --------
    >>> import numpy as np
    >>> from flax import nnx
    >>> from gyri.augnet import AugNetClassifier, eeg_transforms
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((40, 1, 64)).astype("float32")
    >>> X[20:] += 2.0
    >>> trunk = lambda rngs: nnx.Sequential(lambda x: x[:, 0], nnx.Linear(64, 2, rngs=rngs))
    >>> flips = eeg_transforms(100.0, include=("time_reverse", "sign_flip"))
    >>> model = AugNetClassifier(trunk, flips, n_epochs=20, batch_size=10, learning_rate=0.02, verbose=False)
    >>> bool(model.fit(X, np.repeat([0, 1], 20)).score(X, np.repeat([0, 1], 20)) > 0.9)
    True
    """

    def __init__(
        self,
        trunk: Any,
        layers: Any = "affine",
        *,
        n_layers: int = 1,
        reg: float | int = 0.5,
        reg_schedule: Callable[[int], Any] | None = None,
        penalty: str = "selective",
        init_magnitude: Any = 0.05,
        temperature: float | int = 0.01,
        copies: int = 20,
        train_copies: int = 1,
        learning_rate: Any = 1e-3,
        aug_learning_rate: Any = None,
        weight_decay: float | int = 0.0,
        aug_weight_decay: float | int | None = None,
        decoupled: bool = False,
        batch_size: int = 128,
        n_epochs: int = 20,
        sfreq: float | int | None = None,
        ch_names: Sequence[str] | None = None,
        random_state: Any = 0,
        verbose: bool = True,
    ) -> None:
        self.trunk = trunk
        self.layers = layers
        self.n_layers = n_layers
        self.reg = reg
        self.reg_schedule = reg_schedule
        self.penalty = penalty
        self.init_magnitude = init_magnitude
        self.temperature = temperature
        self.copies = copies
        self.train_copies = train_copies
        self.learning_rate = learning_rate
        self.aug_learning_rate = aug_learning_rate
        self.weight_decay = weight_decay
        self.aug_weight_decay = aug_weight_decay
        self.decoupled = decoupled
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.sfreq = sfreq
        self.ch_names = ch_names
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> "AugNetClassifier":
        """Train the network and its augmentations.

        Parameters
        ----------
        X : array-like, shape (n, ...)
            Examples, finite.
        y : array-like, shape (n,)
            Labels.

        Returns
        -------
        AugNetClassifier
            Itself. After Ctrl-C it holds what the last complete step left, with a warning.

        Raises
        ------
        ValueError
            For bad data or settings; the message names the argument.
        FloatingPointError
            If the loss is no longer finite.
        """
        reg = check_scalar(self.reg, "reg", minimum=0.0)
        check_option(self.penalty, "penalty", KINDS)
        n_epochs = check_positive_int(self.n_epochs, "n_epochs")
        rates = self._rates()
        X = self._check_data(X)
        key = as_key(self.random_state, "random_state")
        model = self._build(X)
        labels = self._check_labels(y, X, self._n_outputs(model, X))
        self.input_shape_, self.n_features_in_ = X.shape[1:], X[0].size
        model.train()
        graph, carry = begin(model, rates)
        carry = self._run(graph, rates, carry, X, labels, reg, n_epochs, key)
        self.model_: Any = end(graph, carry)
        self.model_.eval()
        return self

    def _run(self, graph: Any, rates: Any, carry: Any, X: Any, labels: Any, reg: float, n_epochs: int, key: Any) -> Any:
        """All epochs; one host synchronisation each. Sets `history_`."""
        x, y = jnp.asarray(X), jnp.asarray(labels)
        batch_size = min(check_positive_int(self.batch_size, "batch_size"), len(x))
        n_batches = len(x) // batch_size
        leaves, structure = flatten(carry)
        static = as_static((graph, structure, self.penalty))
        ran = [leaves]  # what the last step left comes last
        key_order, key_step = jax.random.split(key)
        rows: list[dict[str, Any]] = []
        try:
            with progress_bar(n_epochs, "augnet", self.verbose) as bar:
                for epoch in range(n_epochs):
                    order = jax.random.permutation(jax.random.fold_in(key_order, epoch), len(x))
                    batches = order[: n_batches * batch_size].reshape(n_batches, batch_size)
                    factor = 1.0 if self.reg_schedule is None else self.reg_schedule(epoch)
                    factor = jnp.asarray(check_scalar(reg * factor, "reg_schedule", minimum=0.0))
                    for _ in range(n_batches):
                        args = (static, ran[-1], x, y, batches, factor, rates, key_step)
                        # One call that Ctrl-C cannot cut in two: a step overwrites the arrays that it is given.
                        ran.extend(map(train_step, *zip(args)))
                        del ran[:-1]
                    carry = unflatten(structure, ran[-1])
                    rows.append(self._row(graph, carry, n_batches, epoch))
                    carry = carry._replace(totals=jax.tree.map(jnp.zeros_like, carry.totals))
                    ran.append(flatten(carry)[0])
                    bar.set_postfix(loss=f"{rows[-1]['loss']:.3g}", accuracy=f"{rows[-1]['accuracy']:.3f}")
                    bar.update()
        except KeyboardInterrupt:
            if any(leaf.is_deleted() for leaf in ran[-1]):
                raise  # cut in two while the first step was compiled, which is Python: there is nothing to keep
            warnings.warn(f"interrupted after {len(rows)} complete epochs; the fit holds what they left", stacklevel=3)
        names = ("loss", "ce", "accuracy", "weights", "magnitudes")
        self.history_ = {name: np.array([row[name] for row in rows]) for name in names}
        return unflatten(structure, ran[-1])

    @staticmethod
    def _row(graph: Any, carry: Any, n_batches: int, epoch: int) -> dict[str, Any]:
        model: Any = nnx.merge(graph, carry.augmentation, carry.trunk, carry.rest)
        values = jax.device_get((*carry.totals, model.weights, model.magnitudes))
        loss, ce, accuracy = (float(total) / n_batches for total in values[:3])
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss} in epoch {epoch + 1}: lower learning_rate, or look for extreme values in X"
            )
        return {"loss": loss, "ce": ce, "accuracy": accuracy, "weights": values[3], "magnitudes": values[4]}

    def predict_proba(self, X: Any, *, key: Any = None) -> Float[np.ndarray, "n n_classes"]:
        """Probabilities of the classes.

        Parameters
        ----------
        X : array-like, shape (n, ...)
            Examples.
        key : PRNG key or int, optional
            Source of the copies' randomness, derived from `random_state` when None: the same at each call.

        Returns
        -------
        np.ndarray, shape (n, n_classes)
            Averages over copies of log-probabilities, renormalised.
        """
        return np.asarray(jax.nn.softmax(self._outputs(X, key)))

    def predict(self, X: Any, *, key: Any = None) -> np.ndarray:
        """Most probable labels.

        Parameters
        ----------
        X : array-like, shape (n, ...)
            Examples.
        key : PRNG key or int, optional
            As in :meth:`predict_proba`.

        Returns
        -------
        np.ndarray, shape (n,)
            Labels.
        """
        best = np.asarray(self._outputs(X, key).argmax(1))
        return self.classes_[best]

    def invariance(self, X: Any, transform: Callable[..., Array]) -> Float[np.ndarray, "n"]:
        """How little the averaged log-probabilities move under a transform, see :func:`gyri.augnet.invariance`.

        Parameters
        ----------
        X : array-like, shape (n, ...)
            At least two examples.
        transform : callable or Transform
            ``transform(key, x)``.

        Returns
        -------
        np.ndarray, shape (n,)
            1 for an invariant network, 0 for one that moves as much as between examples.
        """
        X = self._check_fitted(X)
        # What the transform gives is not the caller's: images with noise may leave [0, 1].
        return np.asarray(invariance(lambda key, x: self._run_model(x, key), X, transform, self._key(1)))

    def _outputs(self, X: Any, key: Any) -> Float[Array, "n n_classes"]:
        return self._run_model(self._check_fitted(X), self._key(0) if key is None else as_key(key))

    def _run_model(self, X: Any, key: Key[Array, ""]) -> Float[Array, "n n_classes"]:
        batch_size = check_positive_int(self.batch_size, "batch_size")
        # Few programs: powers of two up to the batch size.
        size = min(batch_size, 1 << max(len(X) - 1, 0).bit_length())
        return predict(self.model_, X, key, size)

    def _key(self, purpose: int) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(as_key(self.random_state, "random_state"), 2**31 - 1), purpose)

    def _check_fitted(self, X: Any) -> Any:
        check_is_fitted(self)
        X = self._check_data(X)
        if X.shape[1:] != self.input_shape_:
            raise ValueError(f"X: expected examples of shape {self.input_shape_} as in fit, got {X.shape[1:]}")
        return X

    def _check_data(self, X: Any) -> Any:
        X = check_array(X, "X")
        if X.ndim < 2:
            raise ValueError(f"X: expected shape (n, ...), got {X.shape}")
        names = [self.layers] if isinstance(self.layers, str) else self.layers if self._named() else []
        for known, ndim, shape in (
            (IMAGE_SETS, 4, "(n, n_rows, n_columns, n_channels) for images"),
            (EEG_SETS, 3, "(n, n_channels, n_times) for EEG"),
        ):
            if any(name in known for name in names) and X.ndim != ndim:
                raise ValueError(f"X: expected shape {shape}, got {X.shape}")
        used = [t for layer in self._transforms() for t in layer if isinstance(t, Transform)]
        if any(t.name in COLOUR for t in used):
            low, high = float(X.min()), float(X.max())
            if low < 0 or high > 1:
                raise ValueError(f"X: expected images in [0, 1] for {', '.join(COLOUR)}, got [{low:.3g}, {high:.3g}]")
        return X

    def _check_labels(self, y: Any, X: Any, n_outputs: int) -> np.ndarray:
        y = np.asarray(y)
        if y.shape != (len(X),):
            raise ValueError(f"y: expected shape ({len(X)},), one label an example, got {y.shape}")
        if y.dtype.kind in "iu":
            if y.min() < 0 or y.max() >= n_outputs:
                raise ValueError(f"y: expected labels in [0, {n_outputs}), got {y.min()} to {y.max()}")
            self.classes_ = np.arange(n_outputs)
            return y.astype(np.int32)
        if y.dtype.kind not in "USOb":
            raise ValueError(f"y: expected integers or names, got dtype {y.dtype}")
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) != n_outputs:
            raise ValueError(f"y: expected {n_outputs} different labels, as the trunk has outputs, got {self.classes_}")
        return labels.astype(np.int32)

    def _rates(self) -> tuple[Rates, Rates]:
        def checked(rate: Any, decay: Any, prefix: str) -> Rates:
            schedule = rate if callable(rate) else None
            number = 0.0 if schedule else check_scalar(rate, f"{prefix}learning_rate", minimum=0.0)
            decay = check_scalar(decay, f"{prefix}weight_decay", minimum=0.0)
            return Rates(jnp.asarray(number), jnp.asarray(decay), schedule, bool(self.decoupled))

        rate = self.learning_rate if self.aug_learning_rate is None else self.aug_learning_rate
        decay = self.weight_decay if self.aug_weight_decay is None else self.aug_weight_decay
        return checked(self.learning_rate, self.weight_decay, ""), checked(rate, decay, "aug_")

    def _transforms(self) -> list[Any]:
        """One entry a layer: a tuple of transforms, or an Augerino."""
        layers = self.layers
        single = isinstance(layers, str | Augerino) or all(isinstance(layer, Transform) for layer in layers)
        n = check_positive_int(self.n_layers, "n_layers")
        return [self._layer(layer) for layer in ([layers] * n if single else list(layers))]

    def _named(self) -> bool:
        """Whether the layers were given by the names of sets."""
        if isinstance(self.layers, str | Augerino):
            return isinstance(self.layers, str)
        return all(isinstance(layer, str) for layer in self.layers)

    def _layer(self, layer: Any) -> Any:
        if isinstance(layer, Augerino):
            return (layer,)
        if not isinstance(layer, str):
            return tuple(layer)
        if layer in IMAGE_SETS:
            return image_transforms(layer)
        if layer in EEG_SETS:
            if self.sfreq is None:
                raise ValueError(f"sfreq: expected the sampling frequency in hertz for layers={layer!r}, got None")
            return eeg_transforms(self.sfreq, self.ch_names, layer)
        known = ", ".join(map(repr, (*IMAGE_SETS, *EEG_SETS)))
        raise ValueError(f"layers: expected one of {known}, or transforms, got {layer!r}")

    def _build(self, X: Any) -> AugNet:
        """An untrained model; its parameters have the dtype of the data."""
        trunk = self.trunk
        if isinstance(trunk, nnx.Module):
            trunk = nnx.clone(trunk)
        elif callable(trunk):
            trunk = trunk(nnx.Rngs(jax.random.fold_in(as_key(self.random_state, "random_state"), 2**31 - 2)))
        if not isinstance(trunk, nnx.Module):
            raise ValueError(f"trunk: expected an nnx.Module or a function of nnx.Rngs that makes one, got {trunk!r}")
        dtype = jnp.result_type(jnp.asarray(X[:1]))
        layers = [
            nnx.clone(layer[0])
            if isinstance(layer[0], Augerino)
            else AugmentationLayer(
                layer,
                init_magnitude=self.init_magnitude,
                temperature=check_scalar(self.temperature, "temperature"),
                apply_temperature=0.1 if X.ndim == 4 else 0.05,
                param_dtype=jnp.promote_types(dtype, jnp.float32),
            )
            for layer in self._transforms()
        ]
        copies, train_copies = (check_positive_int(getattr(self, k), k) for k in ("copies", "train_copies"))
        return AugNet(trunk, layers, copies=copies, train_copies=train_copies)

    @staticmethod
    def _n_outputs(model: AugNet, X: Any) -> int:
        model.eval()
        key = jax.random.key(0)
        x = jax.ShapeDtypeStruct((2, *X.shape[1:]), jnp.result_type(jnp.asarray(X[:1])))
        shape = nnx.eval_shape(lambda model, x: model(x, key=key), model, x).shape
        if len(shape) != 2:
            raise ValueError(f"trunk: expected outputs of shape (n, n_classes), got {shape}")
        return shape[1]

    def save(self, path: str | os.PathLike) -> None:
        """Write the fitted classifier to one file, without code: not the trunk, nor transforms of your own.

        A warning names schedules, which are functions and so not written either; they matter to another fit only.

        Parameters
        ----------
        path : path-like
            File, written at exactly this name.

        Raises
        ------
        ValueError
            If `layers` or `n_layers` are no longer those of the fit.
        """
        check_is_fitted(self)
        settings = {k: _plain(v) for k, v in self.get_params(deep=False).items() if k not in _ELSEWHERE}
        if isinstance(self.random_state, int | np.integer):  # else a key, which is among the arrays
            settings["random_state"] = int(self.random_state)
        functions = [name for name, value in settings.items() if callable(value)]
        if functions:
            warnings.warn(f"functions are not written: set {', '.join(functions)} before another fit", stacklevel=2)
        operations = [row["operation"] for row in self.model_.describe()]
        now = [NAMES if isinstance(layer[0], Augerino) else [t.name for t in layer] for layer in self._transforms()]
        if operations != [name for names in now for name in names]:
            raise ValueError(f"layers, n_layers: expected those of the fit, {operations}, got {now}")
        meta = {
            "settings": {name: value for name, value in settings.items() if name not in functions},
            "network": {name: _plain(getattr(self.model_, name)) for name in _OF_NETWORK},
            "each_layer": [
                {name: _plain(getattr(layer, name)) for name in _OF_LAYER if hasattr(layer, name)}
                for layer in self.model_.layers
            ],
            "ch_names": None if self.ch_names is None else list(self.ch_names),
            "layers": (self.layers if isinstance(self.layers, str) else list(self.layers)) if self._named() else None,
            "operations": operations,
            "classes": self.classes_.tolist(),
            "input_shape": list(self.input_shape_),
        }
        state = jax.tree.leaves(nnx.state(self.model_))
        tree = {"state": state, "history": self.history_, "key": as_key(self.random_state, "random_state")}
        save_pytree(path, tree, kind=_KIND, meta=meta)

    @classmethod
    def load(cls, path: str | os.PathLike, *, trunk: Any, layers: Any = None) -> "AugNetClassifier":
        """Read a classifier that :meth:`save` wrote.

        Parameters
        ----------
        path : path-like
            File.
        trunk : nnx.Module or callable
            The network that was trained, as it was given to the constructor; its parameters come from the file.
        layers : optional
            As given to the constructor, unless they were names of sets.

        Returns
        -------
        AugNetClassifier
            Fitted; it predicts what the saved one predicts.

        Raises
        ------
        ValueError
            If the file is not such a classifier, or trunk or layers are not those of the file.
        """
        tree, meta = load_pytree(path, kind=_KIND)
        if layers is None and meta["layers"] is None:
            raise ValueError("layers: expected the transforms that the classifier was made with, got None")
        estimator = cls(trunk, meta["layers"] if layers is None else layers, **meta["settings"])
        estimator.ch_names = meta["ch_names"]
        if not isinstance(meta["settings"].get("random_state"), int):
            estimator.random_state = tree["key"]
        model: Any = estimator._build(np.zeros((1, *meta["input_shape"]), np.float32))
        operations = [row["operation"] for row in model.describe()]
        if operations != meta["operations"]:
            raise ValueError(f"layers: expected {meta['operations']}, got {operations}")
        leaves, structure = jax.tree.flatten(nnx.state(model))
        if [jnp.shape(leaf) for leaf in leaves] != [jnp.shape(leaf) for leaf in tree["state"]]:
            raise ValueError("trunk: expected the network that the classifier was made with, got other shapes")
        nnx.update(model, jax.tree.unflatten(structure, tree["state"]))
        model.eval()
        changed = zip((model, *model.layers), (meta.get("network", {}), *meta.get("each_layer", ())))
        for part, values in changed:
            for name, value in values.items():
                setattr(part, name, value)
        estimator.model_ = model
        estimator.history_ = {name: np.asarray(value) for name, value in tree["history"].items()}
        estimator.classes_ = np.array(meta["classes"])
        estimator.input_shape_ = tuple(meta["input_shape"])
        estimator.n_features_in_ = math.prod(estimator.input_shape_)
        return estimator
