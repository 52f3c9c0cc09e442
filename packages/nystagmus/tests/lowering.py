"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

import jax.numpy as jnp

from gyri.nystagmus import tv_threshold

# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    "gyri.nystagmus.tv_threshold": lambda: (tv_threshold, (jnp.float32(3.0), 5.0, 1000.0)),
}

# Name of the public function: why it never runs inside jit.
HOST_SIDE = {
    "gyri.nystagmus.ConvolutionalDictionaryLearning": "a front door: validates, then calls the core",
    "gyri.nystagmus.NystagmusCDL": "a front door: validates, then calls the core",
    "gyri.nystagmus.blink_mask": "reads annotations and channels of an object of MNE",
    "gyri.nystagmus.estimate_tv_threshold": "filters and spectra of SciPy, whose lengths are read off the data",
    "gyri.nystagmus.gaze_to_degrees": "takes and returns objects of MNE",
    "gyri.nystagmus.pattern_correlation": "the period's length is read off the data; NumPy in double precision",
    "gyri.nystagmus.plot_atoms": "draws with matplotlib",
    "gyri.nystagmus.plot_decomposition": "draws with matplotlib",
    "gyri.nystagmus.relative_error": "how many entries are compared is read off the data",
    "gyri.nystagmus.simulate_nystagmus": "draws a random number of saccades with NumPy",
}
