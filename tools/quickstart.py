"""Run the ```python blocks of a README in order, in an empty folder, with warnings as errors.

`python tools/quickstart.py README.md` needs the standard library and what the README imports. A block that needs an
extra is fenced as ```py: it is shown and not run.
"""

import os
import re
import sys
import tempfile
import warnings
from pathlib import Path


def python_blocks(markdown: str) -> str:
    r"""Join the blocks to one script in which every line keeps its number, so that a traceback points into the README.

    Examples
    --------
    >>> python_blocks("# Title\n```python\nx = 1\n```\n```py\nno\n```\n")
    '\n\nx = 1\n\n\n\n\n'
    """
    kept, inside = [], False
    for line in markdown.splitlines():
        fence = re.match(r"```(\w*)", line)
        if fence:
            inside = fence[1] == "python"
        kept.append(line if inside and not fence else "")
    return "\n".join(kept) + "\n"


def run(readme: Path) -> int:
    """Execute the blocks of a README; return the number of lines run."""
    script = python_blocks(readme.read_text(encoding="utf-8"))
    code = compile(script, str(readme), "exec")
    warnings.simplefilter("error")
    os.environ.setdefault("MPLBACKEND", "agg")
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            exec(code, {"__name__": "__main__"})
        finally:
            os.chdir(home)
    return sum(bool(line) for line in script.splitlines())


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(f"{argument}: {run(Path(argument).resolve())} lines of Python ran")
