"""Figures of policies; matplotlib is imported when one is drawn."""

from typing import Any

import numpy as np

from gyri.numerics.validation import import_extra

from .policy import Policy, check_policy, check_transforms, exposure


def _pyplot() -> Any:
    return import_extra("matplotlib.pyplot", "gyri-cadda[plot]", "to plot")


def plot_policy(search_or_policy: Any, transforms: Any = None, ax: Any = None) -> Any:
    """Draw how often a policy applies each operation to each class, and how strongly.

    Cells show the mean over sub-policies and stages of weight times probability; the number in a cell is the mean
    argument of the operation, weighted in the same way, for operations that have one.

    Parameters
    ----------
    search_or_policy : PolicySearch or Policy
        Fitted search, or a policy.
    transforms : sequence of Transform, optional
        Operations of a policy; those of a search are its own.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        A search that is not fitted, a policy without operations, or of another number of them.

    Examples
    --------
    >>> from gyri.cadda import init_policy, plot_policy
    >>> from gyri.numerics.transform import eeg_transforms
    >>> transforms = eeg_transforms(100.0, include=["sign_flip", "time_mask"])
    >>> plot_policy(init_policy(0, 2, n_classes=3), transforms).axes[0].get_ylabel()
    'class'
    """
    policy, transforms, temperature = _read(search_or_policy, transforms)
    exposed = np.asarray(exposure(policy, temperature=temperature))
    if ax is None:
        size = (2.2 + 0.55 * len(transforms), 1.9 + 0.4 * len(exposed))
        ax = _pyplot().subplots(figsize=size, layout="constrained")[1]
    top = max(float(exposed.max()), 1e-3)
    image = ax.imshow(exposed, cmap="viridis", vmin=0, vmax=top, aspect="auto")
    for c, n in np.ndindex(exposed.shape):
        argument = transforms[n].argument(_mean_magnitude(policy, temperature, c, n))
        if argument is not None and exposed[c, n] > 0:
            color = "black" if exposed[c, n] > 0.6 * top else "white"
            ax.text(n, c, f"{argument:.2g}", ha="center", va="center", color=color, fontsize="small")
    units = [f"{t.name} ({t.unit})" if t.unit else t.name for t in transforms]
    ax.set_xticks(range(len(transforms)), units, rotation=40, ha="right", fontsize="small")
    one = len(exposed) == 1
    ax.set_yticks(range(len(exposed)), ["all"] if one else [str(c) for c in range(len(exposed))])
    ax.set_ylabel("class")
    ax.figure.colorbar(image, ax=ax, label="exposure")
    return ax.figure


def _read(search_or_policy: Any, transforms: Any) -> tuple[Policy, tuple, Any]:
    if isinstance(search_or_policy, Policy):
        if transforms is None:
            raise ValueError("transforms: expected the operations of the policy, got None")
        transforms = check_transforms(transforms)
        return check_policy(search_or_policy, transforms), transforms, 0.05
    policy = getattr(search_or_policy, "policy_", None)
    if policy is None:
        raise ValueError("search_or_policy: expected a Policy or a fitted PolicySearch")
    transforms = search_or_policy.transforms_ if transforms is None else check_transforms(transforms)
    return check_policy(policy, transforms), transforms, search_or_policy.temperature


def _mean_magnitude(policy: Policy, temperature: Any, c: int, n: int) -> float:
    """Mean magnitude of one operation for one class, weighted by how often it is applied."""
    scaled = np.asarray(policy.logits[c], float) / float(temperature)
    weights = np.exp(scaled - scaled.max(-1, keepdims=True))
    weights = (weights / weights.sum(-1, keepdims=True))[..., n] * np.asarray(policy.probabilities[c, ..., n])
    return float(np.sum(weights * np.asarray(policy.magnitudes[c, ..., n])) / max(weights.sum(), 1e-12))


def plot_search(search: Any) -> Any:
    """Draw how a search went: the exposure of each operation along its epochs or trials, and losses or scores.

    Parameters
    ----------
    search : PolicySearch
        Fitted.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels; exposures are means over classes.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        If the search is not fitted.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from gyri.cadda import init_policy, plot_search
    >>> from gyri.numerics.transform import eeg_transforms
    >>> start = {name: leaf[None] for name, leaf in init_policy(0, 1)._asdict().items()}
    >>> transforms = eeg_transforms(100.0, include=["sign_flip"])
    >>> search = SimpleNamespace(history_=start, transforms_=transforms, temperature=0.05)
    >>> len(plot_search(search).axes)
    2
    """
    history = getattr(search, "history_", None)
    if history is None:
        raise ValueError("search: expected a fitted one, got one without history_")
    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
    policies = [Policy(*leaves) for leaves in zip(*(history[name] for name in Policy._fields))]
    exposed = np.array([np.asarray(exposure(p, temperature=search.temperature)).mean(0) for p in policies])
    for n, transform in enumerate(search.transforms_):
        style = {"color": f"C{n % 10}", "linestyle": "-" if n < 10 else "--"}
        left.plot(exposed[:, n], marker=".", label=transform.name, **style)
    trials = "score" in history
    room = 1.2 + 0.1 * len(search.transforms_) / 2  # for the names above the lines
    left.set(xlabel="trial" if trials else "epoch", ylabel="exposure", ylim=(0, room * max(exposed.max(), 1e-3)))
    left.legend(frameon=False, fontsize="x-small", ncols=2, loc="upper left")
    names = ("score",) if trials else ("train_loss", "valid_loss", "wasserstein")
    for name in names:
        if name in history and len(history[name]):
            right.plot(np.arange(1, len(history[name]) + 1), history[name], ".-", label=name.replace("_", " "))
    right.set(xlabel="trial" if trials else "epoch", ylabel="score, the lower the better" if trials else "loss")
    if right.lines and not trials:
        right.legend(frameon=False, fontsize="small")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure
