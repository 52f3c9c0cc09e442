"""Sphinx settings; pages of the interface and galleries follow from the packages found in the repository."""

import importlib
import inspect
import re
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from tools.projects import Project, find_projects
from tools.public import modules, public_names

PROJECTS = find_projects()

project = "gyri"
author = "the gyri developers"
copyright = "2026, the gyri developers"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # the pages bring MathJax: formulas need no other site
    "sphinx_copybutton",
    "numpydoc",
    "myst_parser",
]
exclude_patterns = ["_build", "_extra", "reproduction", "tutorials"]
html_extra_path = ["_extra"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

templates_path = ["templates"]
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
numpydoc_show_class_members = True
numpydoc_class_members_toctree = False
numpydoc_show_inherited_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "gyri"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
html_sidebars = {"index": []}
html_static_path = ["static"]
html_css_files = ["narrow.css"]
html_show_sourcelink = False

galleries = {DOCS / "tutorials": "gallery/tutorials"}
galleries |= {
    p.folder / "examples": f"gallery/{p.name}" for p in PROJECTS.values() if list(p.folder.glob("examples/*.py"))
}
extensions.append("sphinx_gallery.gen_gallery")
sphinx_gallery_conf = {
    "examples_dirs": [str(folder) for folder in galleries],
    "gallery_dirs": list(galleries.values()),
    "filename_pattern": r"/plot_",
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "capture_repr": ("_repr_html_",),  # what `plt.legend()` gives back is not shown
}
# The gallery draws without a screen: `plt.show()` has nothing to show, and says so.
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive", category=UserWarning)


def write_empty_gallery(package: Project) -> None:
    """Give a paper without an example the page that sphinx-gallery would make."""
    page = DOCS / "gallery" / package.name / "index.rst"
    page.parent.mkdir(parents=True, exist_ok=True)
    title = package.distribution
    page.write_text(f"{title}\n{'=' * len(title)}\n\nNo example yet.\n", encoding="utf-8")


def write_interface(package: Project) -> None:
    """Write the page that lists a package's public names, one section a module; autosummary does the rest."""
    lines = [package.module, "=" * len(package.module), ""]
    for module_name in modules(package):
        names = public_names(package, module_name)
        if not names:
            continue
        if module_name != package.module:
            lines += [module_name, "-" * len(module_name), ""]
        summary = (importlib.import_module(module_name).__doc__ or "").strip().splitlines()
        lines += [*summary[:1], "", f".. currentmodule:: {module_name}", ""]
        lines += [".. autosummary::", "   :toctree: generated", "", *(f"   {name}" for name in names), ""]
    page = DOCS / "api" / f"{package.name}.rst"
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n".join(lines), encoding="utf-8")


def write_changelog(package: Project) -> None:
    """Write the page that shows a package's changelog."""
    page = DOCS / "changelog" / f"{package.name}.md"
    page.parent.mkdir(exist_ok=True)
    changelog = (package.folder / "CHANGELOG.md").relative_to(DOCS.parent).as_posix()
    page.write_text(f"```{{include}} ../../{changelog}\n```\n", encoding="utf-8")


def write_reproduction() -> None:
    """Write the report page of the last run that was kept (tools/keep_report.py), with the code of each experiment."""
    from gyri.reproduce import find_experiments
    from gyri.reproduce.record import load_records
    from gyri.reproduce.report import write_report

    extra = DOCS / "_extra"
    shutil.rmtree(extra, ignore_errors=True)
    shutil.copytree(DOCS / "reproduction", extra)
    code = {e.id: inspect.getsource(sys.modules[e.function.__module__]) for e in find_experiments()}
    for record in load_records(extra):
        replace(record, code=code.get(record.id, "")).save(extra)
    write_report(extra)
    for folder in ("results", "figures"):  # the page holds them
        shutil.rmtree(extra / folder)


# What annotations are at run time, and what a reader would type.
ARRAY = re.compile(r"~?(?:jax\.)?jaxlib\._jax\.Array")
SCALAR = re.compile(
    r"~jaxtyping\.Shaped\[~jax\.Array, ''\] \| ~jaxtyping\.Shaped\[ndarray, ''\] \| ~numpy\.bool \| ~numpy\.number"
    r" \| bool \| int(?: \| float)? \| complex"
)


def shorten(app: Any, what: str, name: str, obj: Any, options: Any, *texts: str | None) -> tuple[str | None, ...]:
    """Signature and return annotation of a page, with JAX's array and jaxtyping's scalars by their names."""
    return tuple(text and SCALAR.sub("~jaxtyping.ScalarLike", ARRAY.sub("~jax.Array", text)) for text in texts)


def setup(app: Any) -> None:
    """Let Sphinx call what is above."""
    app.connect("autodoc-process-signature", shorten)


write_reproduction()
for package in PROJECTS.values():
    write_interface(package)
    write_changelog(package)
    if not package.shared and package.folder / "examples" not in galleries:
        write_empty_gallery(package)
