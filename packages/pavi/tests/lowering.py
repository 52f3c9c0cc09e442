"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

from functools import cache

import jax
import jax.numpy as jnp

from gyri.pavi import AutoPAVI, elbo, models, sample_indices

X = jnp.linspace(-1.0, 1.0, 24).reshape(4, 3, 2)


@cache
def guide(encoding, flow):
    return AutoPAVI(
        models.gre, encoding=encoding, flow=flow, hidden=(4,), encoding_size=3, subsample_sizes={"groups": 2}
    )


def case(encoding, flow="affine"):
    def make():
        made = guide(encoding, flow)
        params = made.setup((X,), {}).init_all(jax.random.key(0), (X,), {})

        def function(key, params, x):
            loss = lambda params: elbo(key, params, made, x) + elbo(key, params, made, x, full=True, chunk_size=2)
            draws = made.sample_posterior(key, params, x)
            return jax.grad(loss)(params), draws, made.log_density(params, draws, x), made.encodings(params, x)

        return function, (jax.random.key(0), params, X)

    return make


# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    "gyri.pavi.AutoPAVI[free]": case("free"),
    "gyri.pavi.AutoPAVI[data]": case("data"),
    "gyri.pavi.AutoPAVI[maf]": case("free", "maf"),
    "gyri.pavi.elbo": case("free"),
    "gyri.pavi.sample_indices": lambda: (lambda key: sample_indices(key, 1000, 5), (jax.random.key(0),)),
}

# Name of the public function: why it never runs inside jit.
HOST_SIDE = {
    "gyri.pavi.fit": "a host driver; what it scans is lowered as gyri.pavi.elbo's gradient",
    "gyri.pavi.plate_graph": "reads a model's Python, computes nothing",
    "gyri.pavi.load_params": "reads a file",
    "gyri.pavi.save_params": "writes a file",
    "gyri.pavi.plot_elbo": "draws with matplotlib",
    "gyri.pavi.plot_posterior": "draws with matplotlib",
}
