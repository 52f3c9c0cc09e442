"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

import jax.numpy as jnp

from gyri.pavi import shrunk_mean

# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    "gyri.pavi.shrunk_mean": lambda: (shrunk_mean, (jnp.ones((5, 3)), 1.0)),
}

# Name of the public function: why it never runs inside jit.
HOST_SIDE: dict[str, str] = {}
