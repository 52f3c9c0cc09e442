"""DriPP: driven point processes. Which stimuli trigger which recurring events, how often, after what delay.

Allain, Gramfort, Moreau (2022), "DriPP: Driven Point Processes to Model Stimuli Induced Patterns in M/EEG Signals",
ICLR.
"""

from typing import TYPE_CHECKING, Any

from . import datasets as datasets
from ._version import __version__ as __version__
from .events import drivers_from_mne, events_from_activations
from .inference import goodness_of_fit, likelihood_ratio_test
from .lags import lag_table
from .model import Params, negative_log_likelihood
from .optim import em
from .recording import RawEvents, events_from_raw
from .simulation import simulate

if TYPE_CHECKING:
    from .estimator import DriPP

__all__ = [
    "DriPP",
    "Params",
    "RawEvents",
    "drivers_from_mne",
    "em",
    "events_from_activations",
    "events_from_raw",
    "goodness_of_fit",
    "lag_table",
    "likelihood_ratio_test",
    "negative_log_likelihood",
    "simulate",
]


def __getattr__(name: str) -> Any:
    # scikit-learn takes seconds to import, and only the estimator needs it.
    if name == "DriPP":
        from .estimator import DriPP

        return DriPP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "DriPP"])
