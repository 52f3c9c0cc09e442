import contextlib
import re
import runpy
from pathlib import Path

import pytest

from gyri.reproduce import registry

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize(
    ("number", "output"), [(0, "slope of log error over log n met\nerror of 10 000 samples met\n"), (1, "squared norm")]
)
def test_readme_examples_run(number, output, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    script = tmp_path / "script.py"
    script.write_text(re.findall("```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[number])
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    assert output in capsys.readouterr().out
