"""The shrunk mean against NumPy's mean, on equal input."""

import sys

import jax
import numpy as np

import gyri.reproduce.bench as bench
from gyri.pavi import shrunk_mean


def benchmark(table: bench.Table, quick: bool) -> None:
    """Fill the table: one ratio, equal results checked first."""
    x = np.asarray(jax.random.normal(jax.random.key(0), (1_000 if quick else 100_000, 8)))
    on_device = jax.device_put(x)
    ours = jax.jit(shrunk_mean)

    def agree(mine: jax.Array, numpys: np.ndarray) -> bool:
        return np.allclose(mine, numpys, atol=1e-4)

    table.add("mean of 8 columns", bench.paired(lambda: ours(on_device, 0.0), lambda: x.mean(0), check=agree))


if __name__ == "__main__":
    sys.exit(bench.main(benchmark, title="Shrunk mean", peers=["numpy"]))
