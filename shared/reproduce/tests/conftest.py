"""A fake distribution with experiments of every outcome, found through its entry points like a real one."""

import itertools
import sys
import textwrap

import pytest

from gyri.reproduce import registry

_numbers = itertools.count()

GOOD = '''
import os, time
from gyri.reproduce import Claim, Data, Result, experiment

def square(item):
    return float(item) ** 2

def process(item):
    time.sleep(0.3)
    return os.getpid()

@experiment(paper="good", figure="Figure 10", title="A <script>alert(1)</script> title")
def squares(scale, key, sweep):
    """Squares of seeds."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([0, 1])
    claims = [
        Claim.at_most("square", 20, sweep(square, range(key, key + 5))),
        Claim.close("latency", 7.0, 7.01, atol=0.1, unit="ms", note="of the seeds & more"),
        Claim.info("time", None, float("nan")),
    ]
    return Result(claims, {"a line": figure}, Data.real("grasshopper"), captions={"a line": "One <line>."})

@experiment(paper="good", figure="Figure 2", title="Processes of a sweep")
def processes(scale, key, sweep):
    claim = Claim.info("processes", None, len(set(sweep(process, range(4)))))
    return Result([claim], {}, Data.simulated("none"))
'''
BAD = """
import os, signal, time
from gyri.reproduce import Claim, Data, Result, experiment

@experiment(paper="bad", figure="Figure 1", title="Missed")
def missed(scale, key, sweep):
    return Result([Claim.at_most("error", 0.1, float("nan"))], {}, Data.stand_in(for_="MNE sample", used="noise"))

@experiment(paper="bad", figure="Figure 2", title="Raises")
def raises(scale, key, sweep):
    raise RuntimeError(f"no such thing as <b> in {__file__}")

@experiment(paper="bad", figure="Figure 3", title="Dies")
def dies(scale, key, sweep):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

@experiment(paper="bad", figure="Figure 4", title="Lacks its data")
def lacks(scale, key, sweep):
    return Result([Claim.not_run("latency", 86.0)], {}, Data.missing(needs="Cam-CAN"))

@experiment(paper="bad", figure="Figure 5", title="Returns something else")
def returns_a_number(scale, key, sweep):
    return 3
"""
SLOW = """
import os, signal, time
from gyri.reproduce import Claim, Data, Result, experiment

def die(item):
    os.kill(os.getpid(), signal.SIGKILL)

@experiment(paper="slow", figure="Figure 3", title="A process of the sweep dies")
def sweep_dies(scale, key, sweep):
    sweep(die, range(2))

@experiment(paper="slow", figure="Figure 1", title="Quick")
def first(scale, key, sweep):
    return Result([], {}, Data.simulated("none"))

@experiment(paper="slow", figure="Figure 2", title="Slow")
def second(scale, key, sweep):
    time.sleep(120)
    return Result([], {}, Data.simulated("none"))
"""
FLAGS = """
import os
from gyri.reproduce import Data, Result, experiment

@experiment(paper="flags", figure="Figure 1", title="Flags of XLA")
def plain(scale, key, sweep):
    return Result([], {}, Data.simulated(os.environ.get("XLA_FLAGS", "")))

@experiment(paper="flags", figure="Figure 1", title="Flags of XLA where times are reported", timed=True)
def timed(scale, key, sweep):
    return plain(scale, key, sweep)
"""


@pytest.fixture
def papers(tmp_path, monkeypatch):
    """Install papers "good", "bad", "slow", "flags" and "broken" for one test; other distributions are out of sight."""
    package = f"fake_papers_{next(_numbers)}"
    site = tmp_path / "site"
    info = site / "gyri_good-0.3.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gyri-good\nVersion: 0.3.0\n")
    sources = {"good": GOOD, "bad": BAD, "slow": SLOW, "flags": FLAGS, "broken": "import no_such_module_anywhere\n"}
    points = "".join(f"{name} = {package}.{name}\n" for name in sources)
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINT_GROUP}]\n{points}")
    (site / package).mkdir()
    for name, source in sources.items():
        (site / package / f"{name}.py").write_text(textwrap.dedent(source))

    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.setattr(registry, "_registered", {})
    all_points = registry.entry_points
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [p for p in all_points(group=group) if p.dist.name == "gyri-good"]
    )
    return site
