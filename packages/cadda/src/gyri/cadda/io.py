"""A fitted search on disk: policy, history, options, and its operations by name, range and unit."""

import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from gyri.numerics.io import as_python, load_pytree, save_pytree
from gyri.numerics.transform import Transform, eeg_transforms

from ._version import __version__
from .policy import Policy

KIND = "gyri.cadda.PolicySearch"


def is_built_in(transform: Transform, sfreq: float, ch_names: tuple[str, ...] | None) -> bool:
    """Whether `eeg_transforms` makes this transform for these channels and this frequency."""
    try:
        known = eeg_transforms(sfreq, ch_names, [transform.name])[0]
    except ValueError:
        return False
    return (known.range, known.unit) == (transform.range, transform.unit) and same_function(known.fn, transform.fn)


def same_function(one: Any, other: Any) -> bool:
    """Whether two functions are one, or come from one place in the code with equal values of what they close over.

    Examples
    --------
    >>> scale = lambda factor: lambda x: factor * x
    >>> same_function(scale(2), scale(2)), same_function(scale(2), scale(3))
    (True, False)
    """
    if one is other:
        return True
    if getattr(one, "__code__", 0) is not getattr(other, "__code__", 1):
        return False
    values = [[cell.cell_contents for cell in fn.__closure__ or ()] for fn in (one, other)]
    return all(np.array_equal(a, b) for a, b in zip(*values))


def describe_transforms(
    transforms: tuple[Transform, ...], sfreq: float, ch_names: tuple[str, ...] | None
) -> list[dict[str, Any]]:
    """What a file says of the operations."""
    built_in = [is_built_in(t, sfreq, ch_names) for t in transforms]
    return [
        {"name": t.name, "range": None if t.range is None else list(t.range), "unit": t.unit, "built_in": known}
        for t, known in zip(transforms, built_in)
    ]


def missing(name: str) -> Any:
    """The function of an operation that was not handed in."""

    def fn(key: Any, x: Any, arg: Any) -> Any:
        raise ValueError(f"transforms: '{name}' is a custom one, which no file holds: hand it to load(transforms=...)")

    return fn


class MissingNetwork:
    """Stands for a custom network, which no file holds, until one is handed in."""

    def __repr__(self) -> str:
        return "<a custom network>"


def restore_transforms(
    described: list[dict[str, Any]], given: Any, sfreq: float, ch_names: tuple[str, ...] | None
) -> tuple[Transform, ...]:
    """Operations of a file: built-in ones by name, custom ones from those given."""
    handed = {t.name: t for t in ([] if given is None else given)}
    unknown = set(handed) - {row["name"] for row in described}
    if unknown:
        names = [row["name"] for row in described]
        raise ValueError(f"transforms: expected some of {names} as in the file, got {sorted(unknown)}")
    found = []
    for row in described:
        name, limits = row["name"], None if row["range"] is None else tuple(row["range"])
        if name in handed:
            found.append(handed[name])
        elif row["built_in"]:
            found.append(eeg_transforms(sfreq, ch_names, [name])[0])
        else:
            found.append(Transform(name, missing(name), limits, row["unit"]))
    return tuple(found)


def save_search(path: str | os.PathLike, search: Any) -> None:
    """Write a fitted `PolicySearch`."""
    options = search.get_params(deep=False)
    for code in ("network", "transforms"):
        options.pop(code)
    options = as_python(options)
    is_word = lambda value: value is None or isinstance(value, bool | int | float | str)
    arrays = {name: value for name, value in options.items() if not is_word(value)}
    words = {name: value for name, value in options.items() if is_word(value)}
    if arrays.get("ch_names") is not None:
        words["ch_names"] = list(arrays.pop("ch_names"))
    if isinstance(arrays.get("class_weight"), dict):  # JSON would turn classes into text
        given = arrays["class_weight"]
        arrays["class_weight"] = np.array([float(given.get(c, 1)) for c in range(search.n_classes_)])
    ch_names = search.ch_names_
    meta = {
        "version": __version__, "options": words, "sfreq": search.sfreq_, "n_classes": search.n_classes_,
        "ch_names": None if ch_names is None else list(ch_names),
        "window_shape": list(search.window_shape_), "custom_network": search.network is not None,
        "transforms": describe_transforms(search.transforms_, search.sfreq_, ch_names),
    }  # fmt: skip
    tree = {"policy": search.policy_._asdict(), "history": search.history_, "options": arrays}
    save_pytree(path, tree, kind=KIND, meta=meta)


def load_search(cls: type, path: str | os.PathLike, network: Any, transforms: Any) -> Any:
    """Read what `save_search` wrote."""
    tree, meta = load_pytree(path, kind=KIND)
    ch_names = None if meta["ch_names"] is None else tuple(meta["ch_names"])
    if network is None and meta.get("custom_network", False):  # files of 0.1.0 do not say
        network = MissingNetwork()
    search = cls(network=network, **meta["options"] | tree["options"])
    search.transforms_ = restore_transforms(meta["transforms"], transforms, meta["sfreq"], ch_names)
    search.transforms = list(search.transforms_)
    search.policy_ = Policy(**{name: jnp.asarray(leaf) for name, leaf in tree["policy"].items()})
    search.history_ = tree["history"]
    search.sfreq_, search.ch_names_, search.n_classes_ = meta["sfreq"], ch_names, meta["n_classes"]
    search.window_shape_ = tuple(meta["window_shape"])
    return search
