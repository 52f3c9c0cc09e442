"""The front door: simulations in, posterior out. It holds no mathematics."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gyri.numerics.validation import as_key, check_array, check_option, check_positive_int, check_scalar

from .losses import make_loss
from .network import AGGREGATES, make_network, split_network
from .posterior import HNPEPosterior, Spec, Standardizer
from .prior import HierarchicalPrior
from .simulation import Simulations, parse_n_extra, simulate


class HNPE:
    """Hierarchical neural posterior estimation: one network for any number of additional recordings.

    Learns p(local, shared parameters | one recording, others with the same shared parameters) from simulations.

    Parameters
    ----------
    prior : HierarchicalPrior
        Of the parameters.
    density_estimator : {"nsf", "maf"}
        Spline flows or affine autoregressive ones, in an unconstrained space: draws never leave the prior's support.
    factorized : bool
        One flow for the shared parameters, one for the local ones given them and their own recording. False: one flow
        for all (of twice the layers), the ablation of the paper.
    aggregate : {"deepset", "mean", "stack"} or callable
        How the other recordings become one vector: mean of learned features, mean, or one after the other (fixed number
        only); or ``aggregate(features (N_max, d), mask (N_max,)) -> (k,)``, trained if it is an Equinox module.
    embedding : callable, optional
        Of a standardised recording: ``embedding(x) -> (k,)``, trained if it is an Equinox module.
    n_features : int
        Learned features of each of the other recordings.
    hidden : tuple of int
        Widths of the hidden layers of every network; equal.
    n_layers : int, optional
        Layers of each flow; 1 in one dimension, 5 in more.
    n_bins : int
        Bins of the splines.
    dtype : dtype, optional
        float32 or float64; JAX's default.
    seed : int
        Of the initial weights.

    Attributes
    ----------
    history_ : dict of list
        ``"train_loss"``, ``"valid_loss"`` (minus the log density of the parameters in round 0, the atomic loss later;
        without dropout) and ``"round"``, one entry an epoch.
    params_ : pytree of Array
        Trained weights.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import jax
    >>> from gyri.hnpe import HNPE, ToyModel
    >>> model = ToyModel(noise=0.05)
    >>> posterior = HNPE(model.prior).fit(
    ...     jax.random.key(0), model, n_simulations=1000, n_extra=(0, 5), max_epochs=5, progress=False
    ... )
    >>> posterior.sample(jax.random.key(1), (100,), x=[0.25], x_extra=[[0.1], [0.4]]).shape
    (100, 2)

    References
    ----------
    Rodrigues, Moreau, Louppe, Gramfort (2021), HNPE: Leveraging Global Parameters for Neural Posterior Estimation,
    NeurIPS.
    """

    history_: dict[str, list]
    params_: Any

    def __init__(
        self,
        prior: Any,
        *,
        density_estimator: str = "nsf",
        factorized: bool = True,
        aggregate: Any = "deepset",
        embedding: Any = None,
        n_features: int = 32,
        hidden: tuple[int, ...] = (64, 64),
        n_layers: int | None = None,
        n_bins: int = 10,
        dtype: Any = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(prior, HierarchicalPrior):
            raise ValueError(f"prior: expected a HierarchicalPrior, got {type(prior).__name__}")
        check_option(density_estimator, "density_estimator", ("nsf", "maf"))
        if not callable(aggregate):
            check_option(aggregate, "aggregate", AGGREGATES)
        if embedding is not None and not callable(embedding):
            raise ValueError(f"embedding: expected a callable, got {type(embedding).__name__}")
        hidden = tuple(check_positive_int(width, "hidden") for width in hidden)
        if len(set(hidden)) != 1:
            raise ValueError(f"hidden: expected one or more equal widths, got {hidden}")
        self.prior: HierarchicalPrior = prior
        self.density_estimator, self.factorized, self.aggregate = density_estimator, bool(factorized), aggregate
        self.embedding, self.hidden = embedding, hidden
        self.n_features = check_positive_int(n_features, "n_features")
        self.n_layers = None if n_layers is None else check_positive_int(n_layers, "n_layers")
        self.n_bins = check_positive_int(n_bins, "n_bins", minimum=2)
        self.dtype = _check_dtype(dtype)
        self.seed = check_positive_int(seed, "seed", minimum=0)
        self._reset()

    def _reset(self) -> None:
        self._rounds: list[tuple[Simulations, bool]] = []
        self._spec: Spec | None = None
        self._standardizer: Standardizer | None = None
        self.history_ = {"train_loss": [], "valid_loss": [], "round": []}
        vars(self).pop("params_", None)

    # --- data ---------------------------------------------------------------------------------------------------------

    def append_simulations(
        self, theta: Any, x: Any, x_extra: Any = None, mask: Any = None, *, from_prior: bool = True
    ) -> "HNPE":
        """Add simulations, made by any simulator.

        Parameters
        ----------
        theta : array, shape (n, dim)
            Local, then shared parameters.
        x : array, shape (n, ...)
            A recording for each.
        x_extra : array, shape (n, N_max, ...), optional
            Others with the same shared parameters.
        mask : array of bool, shape (n, N_max), optional
            Which of them there are; all by default.
        from_prior : bool
            Whether theta was drawn from the prior; otherwise from a proposal, and the atomic loss is used.

        Returns
        -------
        HNPE
            Itself. Rows with recordings that are not finite are left out, with a warning.

        Raises
        ------
        ValueError
            Wrong or different shapes, no row left, parameters outside the prior's support.
        """
        simulations = self._check_simulations(theta, x, x_extra, mask)
        finite = np.isfinite(simulations.x).reshape(len(simulations.x), -1).all(1)
        finite &= np.isfinite(simulations.x_extra).reshape(len(finite), -1).all(1)
        n_bad = int((~finite).sum())
        if n_bad == len(finite):
            raise ValueError(f"x: expected finite recordings, got none among {n_bad} simulations")
        if n_bad:
            warnings.warn(f"x: {n_bad} of {len(finite)} simulations are not finite and are left out", stacklevel=2)
            simulations = Simulations(*(leaf[finite] for leaf in simulations))
        self._rounds.append((simulations, bool(from_prior)))
        return self

    def _check_simulations(self, theta: Any, x: Any, x_extra: Any, mask: Any) -> Simulations:
        dtype = np.dtype(self.dtype)
        theta = np.asarray(check_array(theta, "theta", shape=("n", self.prior.dim)), dtype)
        x = np.asarray(_as_floats(x, "x"), dtype)
        if x.ndim < 1 or len(x) != len(theta):
            raise ValueError(f"x: expected {len(theta)} recordings as theta has rows, got shape {x.shape}")
        n, event = len(x), x.shape[1:]
        x_extra = (
            np.zeros((n, 0, *event), dtype) if x_extra is None else np.asarray(_as_floats(x_extra, "x_extra"), dtype)
        )
        if x_extra.ndim < 2 or x_extra.shape[:1] + x_extra.shape[2:] != x.shape:
            raise ValueError(f"x_extra: expected shape {(n, 'N', *event)}, got {x_extra.shape}".replace("'N'", "N"))
        mask = np.ones(x_extra.shape[:2], bool) if mask is None else np.asarray(mask)
        if mask.shape != x_extra.shape[:2] or mask.dtype != bool:
            raise ValueError(f"mask: expected bool of shape {x_extra.shape[:2]}, got {mask.dtype} of {mask.shape}")
        if self.aggregate == "stack" and not mask.all():
            raise ValueError(
                'aggregate: "stack" takes a fixed number of other recordings, got a mask with missing ones'
            )
        for other, _ in self._rounds[:1]:
            if other.x.shape[1:] != event:
                raise ValueError(f"x: expected recordings of shape {other.x.shape[1:]} as before, got {event}")
        inside = np.isfinite(np.asarray(self.prior.log_prob(theta)))
        if not inside.all():
            raise ValueError(f"theta: expected parameters in the prior's support, got {(~inside).sum()} outside")
        x_extra = np.where(mask.reshape(*mask.shape, *[1] * len(event)), x_extra, 0)
        return Simulations(theta, x, x_extra, mask)

    def _gather(self, discard_prior_samples: bool) -> tuple[Simulations, np.ndarray]:
        """All rounds as one, padded to the same number of others; and which rows came from the prior."""
        rounds = self._rounds
        if discard_prior_samples and any(not prior for _, prior in rounds):
            rounds = [entry for entry in rounds if not entry[1]]
        n_max = max(sims.mask.shape[1] for sims, _ in self._rounds)
        if self._spec is not None and n_max > self._spec.n_max:
            raise ValueError(f"x_extra: expected at most {self._spec.n_max} others, as in the first round, got {n_max}")
        if self._spec is not None:
            n_max = self._spec.n_max
        if self.aggregate == "stack" and any(sims.mask.shape[1] != n_max for sims, _ in rounds):
            raise ValueError('aggregate: "stack" takes a fixed number of other recordings, got several numbers')

        def pad(sims: Simulations) -> Simulations:
            more = n_max - sims.mask.shape[1]
            widths = lambda leaf: [(0, 0), (0, more), *[(0, 0)] * (leaf.ndim - 2)]
            return sims._replace(
                x_extra=np.pad(sims.x_extra, widths(sims.x_extra)), mask=np.pad(sims.mask, widths(sims.mask))
            )

        parts = [pad(sims) for sims, _ in rounds]
        every = Simulations(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))
        return every, np.concatenate([np.full(len(sims.x), prior) for sims, prior in rounds])

    # --- training -----------------------------------------------------------------------------------------------------

    def _build(self, simulations: Simulations) -> None:
        """Network and standardisation, from the first simulations; later rounds keep both."""
        n_max, event = simulations.mask.shape[1], simulations.x.shape[1:]
        self._standardizer = Standardizer.of(simulations)
        network = make_network(
            jax.random.key(self.seed), event_shape=event, n_max=n_max, n_local=self.prior.n_local,
            n_shared=self.prior.n_shared, **self._architecture(),
        )  # fmt: skip
        self.params_, static = split_network(network)
        self._spec = Spec(self.prior, static, event, n_max, np.dtype(self.dtype).name)

    def _architecture(self) -> dict[str, Any]:
        names = "density_estimator factorized aggregate embedding n_features hidden n_layers n_bins dtype"
        return {name: getattr(self, name) for name in names.split()}

    def train(
        self,
        key: Key[Array, ""] | Array | int,
        *,
        batch_size: int = 200,
        learning_rate: float = 2e-3,
        max_epochs: int = 200,
        patience: int = 20,
        validation_fraction: float = 0.1,
        clip_norm: float | None = 5.0,
        n_atoms: int = 10,
        combined_loss: bool = True,
        discard_prior_samples: bool = False,
        progress: bool = True,
    ) -> "HNPE":
        """Train on all simulations so far; a further call goes on from the weights of the last.

        Maximum likelihood as long as all parameters came from the prior, the atomic loss afterwards. Ctrl-C keeps the
        best weights so far.

        Parameters
        ----------
        key : PRNG key or int
            Splits, shuffles, draws atoms.
        batch_size : int
            Simulations a step.
        learning_rate : float
            Of Adam, at the start; it falls to zero along a cosine over `max_epochs`.
        max_epochs : int
            Most epochs.
        patience : int
            After so many epochs without a better validation loss, go on from the best weights for as many epochs while
            the learning rate falls to zero, then stop.
        validation_fraction : float
            Share of the simulations held out.
        clip_norm : float, optional
            Longest gradient.
        n_atoms : int
            Of the atomic loss.
        combined_loss : bool
            Add to the atomic loss the maximum-likelihood loss on the rows that came from the prior.
        discard_prior_samples : bool
            Once there are draws from a proposal, train on these alone.
        progress : bool
            Show a bar.

        Returns
        -------
        HNPE
            Itself.

        Raises
        ------
        ValueError
            No simulations, fewer than two batches, an argument out of range.
        FloatingPointError
            The loss is not finite.
        """
        if not self._rounds:
            raise ValueError("theta: expected simulations before training, got none: call append_simulations")
        batch_size = check_positive_int(batch_size, "batch_size")
        n_atoms = check_positive_int(n_atoms, "n_atoms", minimum=2)
        rate = check_scalar(learning_rate, "learning_rate", minimum=0, strict=True)
        max_epochs = check_positive_int(max_epochs, "max_epochs")
        simulations, from_prior = self._gather(discard_prior_samples)
        n = len(from_prior)
        if n < 2 * batch_size:
            raise ValueError(f"batch_size: expected at most {n // 2}, two batches of {n} simulations, got {batch_size}")
        if self._spec is None:
            self._build(simulations)
        assert self._spec is not None
        assert self._standardizer is not None
        atomic = not from_prior.all()
        form = self._spec.static, n_atoms if atomic else 0, atomic and bool(combined_loss)
        data = self._standardizer.prepare(self.prior, simulations)
        if atomic:
            data |= {"from_prior": from_prior, "log_prior": np.asarray(self.prior.log_prob(simulations.theta))}
        fraction = check_scalar(validation_fraction, "validation_fraction", minimum=0, maximum=1)
        from .train import fit  # brings optax, which takes half of an import of this package

        self.params_, history = fit(
            as_key(key), make_loss(*form), self.params_, data, valid_loss_fn=make_loss(*form, training=False),
            learning_rate=rate, batch_size=batch_size, max_epochs=max_epochs,
            patience=check_positive_int(patience, "patience"), validation_fraction=fraction, clip_norm=clip_norm,
            progress=progress,
        )  # fmt: skip
        number = self.history_["round"][-1] + 1 if self.history_["round"] else 0
        for name, values in history.items():
            self.history_[name] += values.tolist()
        self.history_["round"] += [number] * len(history["train_loss"])
        return self

    def build_posterior(self) -> HNPEPosterior:
        """Posterior with the weights as they are now.

        Returns
        -------
        HNPEPosterior
            Not yet conditioned.

        Raises
        ------
        RuntimeError
            Before training.
        """
        if self._spec is None or not self.history_["round"]:
            raise RuntimeError("not trained yet: call train (or fit) before build_posterior")
        assert self._standardizer is not None
        return HNPEPosterior(self._spec, self.params_, self._standardizer, about=self._about())

    def _about(self) -> dict[str, Any]:
        """Choices that a file records: those that rebuild the network."""
        about = self._architecture() | {"dtype": np.dtype(self.dtype).name, "hidden": list(self.hidden)}
        about["aggregate"] = self.aggregate if isinstance(self.aggregate, str) else None
        about["embedding"] = self.embedding is not None
        return about

    def fit(
        self,
        key: Key[Array, ""] | Array | int,
        simulator: Callable,
        *,
        n_simulations: int = 10_000,
        n_rounds: int = 1,
        n_extra: Any = 0,
        x_o: Any = None,
        x_extra_o: Any = None,
        summary: Callable | None = None,
        **train_kwargs: Any,
    ) -> HNPEPosterior:
        """Simulate and train, from new weights; one round is amortised, more rounds zoom in on one observation.

        Parameters
        ----------
        key : PRNG key or int
            Of simulations and training.
        simulator : callable
            As in :func:`simulate`.
        n_simulations : int
            Of each round.
        n_rounds : int
            The first draws from the prior, the others from the posterior of `x_o` and `x_extra_o`.
        n_extra : int or (int, int)
            As in :func:`simulate`.
        x_o : array, optional
            The recording of interest, in the space of `summary`'s output.
        x_extra_o : array, shape (N, ...), optional
            The others.
        summary : callable, optional
            As in :func:`simulate`.
        **train_kwargs
            As in :meth:`train`.

        Returns
        -------
        HNPEPosterior
            Conditioned on the observation where there is one.

        Raises
        ------
        ValueError
            More than one round without `x_o`, or what simulation, training or conditioning refuse.
        """
        n_rounds = check_positive_int(n_rounds, "n_rounds")
        if n_rounds > 1 and x_o is None:
            raise ValueError(f"x_o: expected an observation for n_rounds = {n_rounds}, got None")
        if x_o is None and x_extra_o is not None:
            raise ValueError("x_o: expected an observation beside x_extra_o, got None")
        low, high = parse_n_extra(n_extra)
        if self.aggregate == "stack" and low != high:
            raise ValueError(f'n_extra: expected one number for aggregate="stack", got ({low}, {high})')
        if x_extra_o is not None and len(x_extra_o) > high:
            raise ValueError(f"x_extra_o: expected at most {high} others, as n_extra allows, got {len(x_extra_o)}")
        self._reset()
        proposal = None
        for round_key in jax.random.split(as_key(key), n_rounds):
            simulate_key, train_key = jax.random.split(round_key)
            simulations = simulate(
                simulate_key, self.prior, simulator, n_simulations, n_extra, summary=summary, proposal=proposal,
                progress=train_kwargs.get("progress", True),
            )  # fmt: skip
            self.append_simulations(*simulations, from_prior=proposal is None).train(train_key, **train_kwargs)
            posterior = self.build_posterior()
            if x_o is not None:
                posterior = proposal = posterior.condition(x_o, x_extra_o)
        return posterior


def _as_floats(x: Any, name: str) -> Any:
    """Check everything but the values: rows that are not finite are dropped later."""
    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as error:  # no array: a recording of MNE, ragged lists
        raise ValueError(f"{name}: expected an array of numbers, got {type(x).__name__}: {error}") from error
    check_array(np.zeros(array.shape, array.dtype), name, allow_empty=name == "x_extra")
    return array


def _check_dtype(dtype: Any) -> Any:
    default = jnp.result_type(float)
    if dtype is None:
        return default
    dtype = jnp.dtype(dtype)
    if dtype.name not in ("float32", "float64"):
        raise ValueError(f"dtype: expected float32 or float64, got {dtype}")
    if dtype.name == "float64" and default != dtype:
        raise ValueError("dtype: expected float32, or float64 with jax_enable_x64 set, got float64 without")
    return dtype
