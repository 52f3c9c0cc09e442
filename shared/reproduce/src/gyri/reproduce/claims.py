"""Claim: one number of a paper beside ours, and the verdict that follows from the two."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypedDict, Unpack

import numpy as np


class Verdict(StrEnum):
    """What came of a claim."""

    MET = "met"
    MISSED = "missed"
    REPORTED = "reported"
    NOT_RUN = "not run"


class Shown(TypedDict, total=False):
    """What every constructor of `Claim` takes besides its numbers."""

    unit: str
    note: str
    median_range: tuple[Any, Any] | None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A quantity, the paper's figure for it, ours, and the interval in which ours has to fall.

    Use the constructors: `close`, `at_most`, `at_least`, `between`, `info` and `not_run`. The verdict is never passed
    in: it is computed from `measured`, `low` and `high`.

    Parameters
    ----------
    quantity : str
        What is measured, in words.
    paper : float, str or None
        The paper's figure; None where the paper has none ("ours, in addition").
    measured : float, str, array of shape (n_seeds,) or None
        Ours. One number a seed becomes their median, and `median_range` their smallest and largest. Text is for `info`
        alone. None: not run.
    low, high : float or None
        Where `measured` has to fall, ends included; None is open. Both None: nothing is compared.
    unit : str
        Unit of the three numbers, for example ``"ms"``.
    note : str
        A remark shown below the quantity.
    median_range : (float, float) or None
        Smallest and largest over the seeds, where `measured` is their median.
    n_seeds : int or None
        Number of seeds behind `measured`, where it came as an array.

    Raises
    ------
    ValueError
        If a bound is not finite, the interval is empty, or `measured` is neither a number nor a vector.

    Examples
    --------
    >>> claim = Claim.at_most("error at T = 1000 s", 0.07, [0.05, 0.06, 0.08])
    >>> claim.measured, claim.median_range, claim.criterion, claim.verdict.value
    (0.06, (0.05, 0.08), '≤ 0.07', 'met')
    """

    quantity: str
    paper: float | int | str | None
    measured: Any
    low: float | None = None
    high: float | None = None
    unit: str = ""
    note: str = ""
    median_range: tuple[Any, Any] | None = None
    n_seeds: int | None = None

    def __post_init__(self) -> None:
        for name, bound in (("low", self.low), ("high", self.high)):
            if bound is not None and not math.isfinite(bound):
                raise ValueError(f"{name}: expected a finite bound for {self.quantity!r}, got {bound}")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low: expected low <= high for {self.quantity!r}, got {self.low} > {self.high}")
        if self.measured is None or (isinstance(self.measured, str) and self.low is None and self.high is None):
            return
        values = _numbers(self.measured, self.quantity)
        object.__setattr__(self, "measured", float(np.median(values)))
        if values.ndim == 1:
            object.__setattr__(self, "n_seeds", values.size)
            object.__setattr__(self, "median_range", (values.min(), values.max()))
        if self.median_range is not None:
            object.__setattr__(self, "median_range", (float(self.median_range[0]), float(self.median_range[1])))

    @property
    def verdict(self) -> Verdict:
        """Met or missed if there is an interval; a value that is not finite is a miss."""
        if self.measured is None:
            return Verdict.NOT_RUN
        if self.low is None and self.high is None:
            return Verdict.REPORTED
        above = self.low is None or self.measured >= self.low
        below = self.high is None or self.measured <= self.high
        return Verdict.MET if math.isfinite(self.measured) and above and below else Verdict.MISSED

    @property
    def criterion(self) -> str:
        """The interval in words; empty if nothing is compared."""
        if self.low is not None and self.high is not None:
            return f"{self.low:.4g} to {self.high:.4g}"
        if self.low is not None:
            return f"≥ {self.low:.4g}"
        return "" if self.high is None else f"≤ {self.high:.4g}"

    @classmethod
    def close(
        cls,
        quantity: str,
        paper: float | int | str,
        measured: Any,
        *,
        target: float | int | None = None,
        rtol: float | int = 0.0,
        atol: float | int = 0.0,
        **shown: Unpack[Shown],
    ) -> "Claim":
        """Ours is the paper's figure within ``atol + rtol * abs(target)``.

        `target` is the number compared with; it has to be given where `paper` is words.

        Examples
        --------
        >>> Claim.close("latency", 87.0, 86.4, atol=2.0, unit="ms").verdict.value
        'met'
        >>> Claim.close("spikes a loud onset", "2/3", 0.40, target=2 / 3, rtol=0.1).verdict.value
        'missed'
        """
        centre = _bound("target", paper if target is None else target)
        tolerance = atol + rtol * abs(centre)
        low, high = centre - tolerance, centre + tolerance
        return cls(quantity=quantity, paper=paper, measured=measured, low=low, high=high, **shown)

    @classmethod
    def at_most(
        cls,
        quantity: str,
        paper: float | int | str | None,
        measured: Any,
        bound: float | int | None = None,
        **shown: Unpack[Shown],
    ) -> "Claim":
        """Ours is no larger than `bound`; by default no larger than the paper's figure.

        Examples
        --------
        >>> Claim.at_most("error", 0.07, float("nan")).verdict.value
        'missed'
        """
        high = _bound("bound", paper if bound is None else bound)
        return cls(quantity=quantity, paper=paper, measured=measured, high=high, **shown)

    @classmethod
    def at_least(
        cls,
        quantity: str,
        paper: float | int | str | None,
        measured: Any,
        bound: float | int | None = None,
        **shown: Unpack[Shown],
    ) -> "Claim":
        """Ours is no smaller than `bound`; by default no smaller than the paper's figure.

        Examples
        --------
        >>> Claim.at_least("speed-up", "an order of magnitude", 14.2, 10.0).verdict.value
        'met'
        """
        low = _bound("bound", paper if bound is None else bound)
        return cls(quantity=quantity, paper=paper, measured=measured, low=low, **shown)

    @classmethod
    def between(
        cls,
        quantity: str,
        paper: float | int | str | None,
        measured: Any,
        low: float | int,
        high: float | int,
        **shown: Unpack[Shown],
    ) -> "Claim":
        """Ours falls between `low` and `high`, ends included.

        Examples
        --------
        >>> Claim.between("slope of log error over log T", "-1/2", -0.49, -0.6, -0.4).verdict.value
        'met'
        """
        low, high = _bound("low", low), _bound("high", high)
        return cls(quantity=quantity, paper=paper, measured=measured, low=low, high=high, **shown)

    @classmethod
    def info(cls, quantity: str, paper: float | int | str | None, measured: Any, **shown: Unpack[Shown]) -> "Claim":
        """Ours is shown and compared with nothing.

        Examples
        --------
        >>> Claim.info("time of one fit", None, 0.8, unit="s").verdict.value
        'reported'
        """
        return cls(quantity=quantity, paper=paper, measured=measured, **shown)

    @classmethod
    def not_run(cls, quantity: str, paper: float | int | str | None, **shown: Unpack[Shown]) -> "Claim":
        """Show the paper's figure, of an experiment that lacks its data.

        Examples
        --------
        >>> Claim.not_run("latency of the auditory atom", 86.0, unit="ms").verdict.value
        'not run'
        """
        return cls(quantity=quantity, paper=paper, measured=None, **shown)


def _bound(name: str, value: float | int | str | None) -> float:
    """Check the number that a claim is compared with: `paper` may be words, and then it has to be given apart."""
    if value is None or isinstance(value, str):
        raise ValueError(f"{name}: expected a number, as the paper's figure is {value!r}")
    return float(value)


def _numbers(measured: Any, quantity: str) -> np.ndarray:
    """Convert a number, or one a seed, to float64 of 0 or 1 dimension."""
    try:
        values = np.asarray(measured, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"measured: expected a number or one a seed for {quantity!r}, got {measured!r}") from error
    if values.ndim > 1 or values.size == 0:
        raise ValueError(f"measured: expected a number or one a seed for {quantity!r}, got shape {values.shape}")
    return values
