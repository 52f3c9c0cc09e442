"""One big plate over several devices: two that are forced on the host, in a process of their own."""

import os
import subprocess
import sys

PROGRAM = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from gyri.pavi import AutoPAVI, fit
from gyri.pavi.models import gre, simulate_gre

assert len(jax.devices()) == 2
x = np.asarray(simulate_gre(jax.random.key(0), 4096, 3, 2)[1])
mesh = Mesh(np.array(jax.devices()), ("copies",))
split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("copies")))
for encoding in ("free", "data"):
    guide = AutoPAVI(gre, encoding=encoding, subsample_sizes={"groups": 8}, hidden=(4,), encoding_size=3)
    one = fit(guide, 0, 20, x, progress_bar=False)
    two = fit(guide, 0, 20, split, progress_bar=False, mesh=mesh)
    np.testing.assert_allclose(one.losses, two.losses, rtol=1e-3)
    if encoding == "free":
        table = two.params["theta_auto_encoding"]
        shards = table.addressable_shards
        assert [s.data.shape for s in shards] == [(2048, 1, 3)] * 2, [s.data.shape for s in shards]
        np.testing.assert_allclose(table, one.params["theta_auto_encoding"], atol=1e-3)
try:
    fit(AutoPAVI(gre, subsample_sizes={"groups": 3}), 0, 2, split, progress_bar=False, mesh=mesh)
except ValueError as error:
    assert "divides 3" in str(error)
else:
    raise AssertionError("an odd number of copies on two devices")
print("fine")
"""


def test_two_devices_fit_as_one():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "fine" in done.stdout, done.stderr[-3000:]
