"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

import jax.numpy as jnp

from gyri.dripp import Params, em, lag_table, negative_log_likelihood


def table():
    return lag_table([0.3, 0.9, 1.4], [0.1, 0.6, 1.2], lower=0.0, upper=0.4, t_stop=2.0)


def params():
    return Params(jnp.float32(1.0), jnp.array([0.5]), jnp.array([0.2]), jnp.array([0.1]))


# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    "gyri.dripp.negative_log_likelihood": lambda: (negative_log_likelihood, (params(), table())),
    "gyri.dripp.em": lambda: (lambda table, init: em(table, init, max_iter=5), (table(), params())),
}

# Name of the public function: why it never runs inside jit.
HOST_SIDE = {
    "gyri.dripp.DriPP": "a front door: validates, then calls the core",
    "gyri.dripp.drivers_from_mne": "reads objects of MNE",
    "gyri.dripp.events_from_activations": "returns lists of unequal lengths",
    "gyri.dripp.events_from_raw": "reads a recording of MNE, and reports progress while it learns",
    "gyri.dripp.goodness_of_fit": "rescales the times of any number of events in float64, and calls SciPy",
    "gyri.dripp.lag_table": "builds the table by binary searches in float64",
    "gyri.dripp.likelihood_ratio_test": "builds and fits one table a resample",
    "gyri.dripp.simulate": "returns a random number of events",
}
