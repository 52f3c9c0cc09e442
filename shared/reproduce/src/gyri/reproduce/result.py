"""What an experiment returns: its claims, its figures, and where its data came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from .claims import Claim


@runtime_checkable
class Figure(Protocol):
    """What the runner asks of a figure: `matplotlib.figure.Figure`, without the import of matplotlib."""

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """Write the figure to a file."""


@dataclass(frozen=True)
class Data:
    """Provenance of an experiment's data. Use the constructors.

    Parameters
    ----------
    kind : {"real", "simulated", "stand-in", "missing"}
        Where the numbers come from.
    name : str
        The recording, the simulation, or what is missing.
    stands_for : str
        Of a stand-in: the data of the paper that it replaces.

    Examples
    --------
    >>> str(Data.real("grasshopper receptor, nitime"))
    'real: grasshopper receptor, nitime'
    >>> str(Data.stand_in(for_="MNE sample", used="simulated MEG, 2 sources"))
    'stand-in for MNE sample: simulated MEG, 2 sources'
    >>> str(Data.missing(needs="Cam-CAN (restricted access)"))
    'not run: needs Cam-CAN (restricted access)'
    """

    kind: Literal["real", "simulated", "stand-in", "missing"]
    name: str
    stands_for: str = ""

    @classmethod
    def real(cls, name: str) -> "Data":
        """Name recorded data."""
        return cls("real", name)

    @classmethod
    def simulated(cls, name: str) -> "Data":
        """Name simulated data, as the paper's."""
        return cls("simulated", name)

    @classmethod
    def stand_in(cls, *, for_: str, used: str) -> "Data":
        """Name the data used instead of the paper's, which cannot be had here."""
        return cls("stand-in", used, stands_for=for_)

    @classmethod
    def missing(cls, *, needs: str) -> "Data":
        """Name the data without which the experiment did not run: no crash and no miss, but visible."""
        return cls("missing", needs)

    def __str__(self) -> str:
        prefix = {"stand-in": f"stand-in for {self.stands_for}", "missing": "not run"}.get(self.kind, self.kind)
        return f"{prefix}: {'needs ' if self.kind == 'missing' else ''}{self.name}"


@dataclass(frozen=True)
class Result:
    """Result of one experiment.

    Parameters
    ----------
    claims : sequence of Claim
        In the order of the report.
    figures : dict of str to matplotlib.figure.Figure
        By name, which becomes part of the file's name. Make them with `matplotlib.figure.Figure`, not with pyplot:
        nothing has to be closed then.
    data : Data
        Where the numbers come from.
    captions : dict of str to str
        A caption of a figure, by the figure's name; it is its alternative text too. Without one, the name serves.

    Raises
    ------
    ValueError
        If a caption has no figure, or the data is missing and yet something was measured.

    Examples
    --------
    >>> result = Result([Claim.at_most("error", 0.1, 0.05)], {}, Data.simulated("two atoms in white noise"))
    >>> result.claims[0].verdict.value
    'met'
    >>> result = Result([Claim.not_run("latency", 86.0, unit="ms")], {}, Data.missing(needs="Cam-CAN"))
    """

    claims: Sequence[Claim]
    figures: Mapping[str, Figure]
    data: Data
    captions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.captions) - set(self.figures):
            raise ValueError(f"captions: no figure is named {sorted(unknown)}; figures: {sorted(self.figures)}")
        if self.data.kind == "missing" and any(claim.measured is not None for claim in self.claims):
            raise ValueError("claims: the data is missing, yet a claim has a measured value; use Claim.not_run")
