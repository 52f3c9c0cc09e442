"""Pins of the oldest versions follow the declared bounds."""

from pathlib import Path

from tools.lowest import lowest_pins
from tools.projects import Project


def test_the_highest_bound_of_all_projects_is_pinned():
    first = Project("a", Path(), True, {"dependencies": ["numpy>=2.0", "scipy~=1.4", "Py_Yaml", "gyri-b~=0.1.0"]})
    second = Project("b", Path(), True, {"optional-dependencies": {"test": ["numpy>=2.10,<3", "jax[cpu]>=0.10"]}})
    assert lowest_pins([first, second]) == ["jax==0.10.*", "numpy==2.10.*", "scipy==1.4.*"]
