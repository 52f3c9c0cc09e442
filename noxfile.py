"""Sessions of the repository; `python3 -m nox --list` names them, CONTRIBUTING.md says which to use when."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from tools import lowest as lowest_bounds  # noqa: E402
from tools import scaffold  # noqa: E402
from tools.projects import Project, find_projects  # noqa: E402

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"  # a Python that is missing is skipped, not fetched
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

PROJECTS = find_projects()
WHEELS = ROOT / ".cache" / "wheels"

# A session runs once, on the Python that runs nox, unless the command line names versions: `nox -s tests -p 3.12`.
VERSIONS = ["3.11", "3.12", "3.13"]
NAMED = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
PYTHONS = VERSIONS if any(version in argument for version in VERSIONS for argument in NAMED) else None

# What a package's examples, quickstart and pages may use; `host`, `dask` and `ray` are for those who ask.
SHOWN_EXTRAS = ("data", "mne", "pandas", "plot", "experiments")
CROSS_TEST_TOOLS = ("build>=1.2", "hatchling>=1.27", "packaging>=24", "pip>=24", "pyyaml>=6", "ruff>=0.12")
DOCS_TOOLS = (
    "sphinx>=8",
    "pydata-sphinx-theme>=0.16",
    "numpydoc>=1.8",
    "sphinx-gallery>=0.18",
    "sphinx-copybutton>=0.5.2",
    "sphinx-mathjax-offline>=0.0.2",
    "myst-parser>=4",
)

# Compilations outlive a process and are shared by the workers of pytest-xdist.
ENVIRONMENT = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "MPLBACKEND": "agg",
}


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run all tests in one environment; what follows `--` goes to pytest (folders replace the default ones)."""
    install_editable(session, PROJECTS.values(), "test")
    session.install(*CROSS_TEST_TOOLS)
    folders = [p.folder / "tests" for p in PROJECTS.values()] + [ROOT / "tests"]
    run_pytest(session, folders, session.posargs, env=compile_fast(session))


@nox.session
def wheels(session: nox.Session) -> None:
    """Build and check every project's wheel; `isolated` calls it."""
    session.install("build", "hatchling")
    shutil.rmtree(WHEELS, ignore_errors=True)
    session.run("python", "-m", "tools.wheels", str(WHEELS))


@nox.session(python=PYTHONS, reuse_venv=False, requires=["wheels"])
@nox.parametrize("package", list(PROJECTS))
def isolated(session: nox.Session, package: str) -> None:
    """Test each package alone, from its wheel; `-- --smoke`: import, pip check, quickstart; `-- NAME`: just that."""
    smoke = "--smoke" in session.posargs
    chosen = [argument for argument in session.posargs if argument != "--smoke"]
    check_names(session, chosen)
    if chosen and package not in chosen:
        session.skip(f"only {', '.join(chosen)} was asked for")
    project = PROJECTS[package]
    install_wheel(session, project, extra="" if smoke else "test")
    session.run("python", "-c", f"import {project.module} as m; print(m.__name__, m.__version__, m.__file__)")
    if smoke:
        check_installed(session)
        session.run("python", "tools/quickstart.py", str(project.folder / "README.md"), env=ENVIRONMENT)
    else:
        run_pytest(session, [project.folder / "tests"], [])


@nox.session(python=PYTHONS, reuse_venv=False)
def lowest(session: nox.Session) -> None:
    """Run all tests with the oldest direct dependencies that the packages declare."""
    editable = [part for p in PROJECTS.values() for part in ("-e", p.requirement("test"))]
    if session.venv_backend == "uv":
        session.install("--resolution", "lowest-direct", *editable)
    else:
        pins = Path(session.create_tmp()) / "pins.txt"
        pins.write_text("\n".join(lowest_bounds.lowest_pins(PROJECTS.values())) + "\n")
        session.install("-c", str(pins), *editable)
    run_pytest(session, [p.folder / "tests" for p in PROJECTS.values()], session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules and format with ruff; `-- --fix` repairs what it can."""
    session.install("ruff>=0.12")
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Run mypy over every package's source, the tools and this file."""
    install_editable(session, PROJECTS.values(), "experiments")
    session.install("mypy>=1.18", "nox")
    # mypy sees `gyri`, a namespace over several folders, as one through MYPYPATH; no list of folders in a file.
    path = os.pathsep.join(str(p.source) for p in PROJECTS.values())
    folders = [str(p.source) for p in PROJECTS.values()]
    session.run("mypy", *folders, "tools", "noxfile.py", *session.posargs, env={"MYPYPATH": path})


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages into docs/_build/html; a warning is an error."""
    install_editable(session, PROJECTS.values(), *SHOWN_EXTRAS)
    session.install(*DOCS_TOOLS)
    out = ROOT / "docs" / "_build"
    command = [
        "sphinx-build",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-d",
        str(out / "doctrees"),
        "docs",
        str(out / "html"),
    ]
    session.run(*command, *session.posargs, env=ENVIRONMENT)
    session.log(f"the pages are in {out / 'html' / 'index.html'}")


@nox.session
def site(session: nox.Session) -> None:
    """Look at the pages that `docs` built in headless Chromium, wide and at 400 px; needs a Chromium on the machine."""
    session.install("playwright>=1.45")
    session.run("python", "-m", "tools.check_site", str(ROOT / "docs" / "_build" / "html"), *session.posargs)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Reproduce the papers, two experiments at a time, into report/; `-- dripp`, `-- --scale paper`, `-- --jobs 8`."""
    names = dict.fromkeys(argument.partition("/")[0] for argument in session.posargs)
    papers = [PROJECTS[name] for name in names if name in PROJECTS] or [p for p in PROJECTS.values() if not p.shared]
    install_editable(session, close_over(papers), "experiments")
    # An experiment has one core: to compile a program in parts would only cost more.
    flags = {"XLA_FLAGS": xla_flags("--xla_cpu_parallel_codegen_split_count=1")}
    session.run("gyri-reproduce", "run", "--jobs", "2", *session.posargs, env=ENVIRONMENT | flags)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks of one package: `-- NAME`; named peers come from its benchmarks/requirements.txt."""
    name, *arguments = session.posargs or [""]
    check_names(session, [name])
    project = PROJECTS[name]
    scripts = sorted((project.folder / "benchmarks").glob("[!_]*.py"))
    if not scripts:
        session.error(f"{project.folder / 'benchmarks'} has no script")
    install_editable(session, close_over([project]), *SHOWN_EXTRAS)
    peers = project.folder / "benchmarks" / "requirements.txt"
    if peers.exists():
        session.install("-r", str(peers))
    for script in scripts:
        session.run("python", str(script), *arguments)


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the tests marked `gpu` on a CUDA device; fail where there is none."""
    if shutil.which("nvidia-smi") is None or subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode:
        session.error("no CUDA device: `nvidia-smi -L` lists none on this machine, so nothing was tested")
    install_editable(session, PROJECTS.values(), "test")
    session.install("jax[cuda12]")
    check = "import jax; assert jax.default_backend() == 'gpu', f'JAX sees only {jax.devices()}'"
    session.run("python", "-c", check)
    run_pytest(session, [p.folder / "tests" for p in PROJECTS.values()], ["-m", "gpu", "-n", "0", *session.posargs])


@nox.session(venv_backend="none")
def dev(session: nox.Session) -> None:
    """Make .venv with every package editable and the tools of the other sessions."""
    python = ROOT / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    installer = [str(python), "-m", "pip"]
    if shutil.which("uv"):
        session.run("uv", "venv", "--allow-existing", "--python", sys.executable, ".venv")
        installer = ["uv", "pip"]
    else:
        session.run(sys.executable, "-m", "venv", ".venv")
    target = ["--python", str(python)] if installer[0] == "uv" else []
    editable = [part for p in PROJECTS.values() for part in ("-e", p.requirement("test"))]
    tools = [*CROSS_TEST_TOOLS, *DOCS_TOOLS, "mypy>=1.18", "nox"]
    session.run(*installer, "install", *target, *editable, *tools)
    session.log("ready: source .venv/bin/activate")


@nox.session(venv_backend="none")
def new(session: nox.Session) -> None:
    """Scaffold packages/NAME for a new paper: `-- NAME`."""
    if len(session.posargs) != 1:
        session.error("usage: nox -s new -- NAME")
    try:
        created = scaffold.create(session.posargs[0])
    except ValueError as error:
        session.error(str(error))
    folder = created.relative_to(ROOT)
    session.log(f"created {folder}, which passes every session; try: nox -s tests -- {folder / 'tests'}")


@nox.session
def release(session: nox.Session) -> None:
    """Prepare a release: `-- NAME major|minor|patch`; prints the commands that publish it and pushes nothing."""
    session.install("build", "hatchling", "packaging")
    session.run("python", "-m", "tools.release", *session.posargs)


def run_pytest(
    session: nox.Session, folders: Iterable[Path], arguments: list[str], env: Mapping[str, str] = ENVIRONMENT
) -> None:
    """Run pytest on two workers, each file on one; folders or files among the arguments replace the default ones."""
    named = any(Path(argument.partition("::")[0]).exists() for argument in arguments)
    default = [] if named else [str(folder.relative_to(ROOT)) for folder in folders if folder.exists()]
    session.run("pytest", "-n", "2", "--dist", "loadfile", *default, *arguments, env=env)


def compile_fast(session: nox.Session) -> dict[str, str]:
    """Environment where XLA spends no time on optimising: most of the tests' time is that of small programs.

    Rounding differs from what users get, which shows what leans on it; `isolated` and `lowest` compile as users do.
    """
    show = "from importlib.metadata import version; print(version('jaxlib'))"
    jaxlib = session.run("python", "-c", show, silent=True) or ""
    flags = ["--xla_cpu_parallel_codegen_split_count=1"]
    if jaxlib.startswith("0.10."):  # later ones have no other emitters, and end at a flag that they do not know
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return ENVIRONMENT | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": xla_flags(*flags)}


def xla_flags(*flags: str) -> str:
    """Value of XLA_FLAGS with further ones."""
    return " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()


def install_editable(session: nox.Session, projects: Iterable[Project], *extras: str) -> None:
    """Install projects in place, with those of the extras that each has."""
    session.install(*(part for p in projects for part in ("-e", p.requirement(*extras))))


def install_wheel(session: nox.Session, project: Project, *, extra: str) -> None:
    """Install one wheel, its siblings from their wheels where it needs them, and the rest from the registry."""
    constraints = Path(session.create_tmp()) / "siblings.txt"
    lines = [f"{p.distribution} @ {wheel_of(p).as_uri()}" for p in PROJECTS.values() if p != project]
    constraints.write_text("\n".join(lines) + "\n")
    brackets = f"[{extra}]" if extra else ""
    session.install("-c", str(constraints), f"{project.distribution}{brackets} @ {wheel_of(project).as_uri()}")


def wheel_of(project: Project) -> Path:
    """Where the session `wheels` puts a project's wheel."""
    return WHEELS / f"gyri_{project.name}-{project.version}-py3-none-any.whl"


def check_installed(session: nox.Session) -> None:
    """Fail if the requirements of what is installed contradict each other."""
    if session.venv_backend == "uv":
        session.run("uv", "pip", "check")
    else:
        session.run("python", "-m", "pip", "check")


def check_names(session: nox.Session, names: Iterable[str]) -> None:
    """Fail if a name is no package."""
    for name in names:
        if name not in PROJECTS:
            session.error(f"expected one of {', '.join(PROJECTS)} after `--`, got {name!r}")


def close_over(projects: Iterable[Project]) -> list[Project]:
    """Projects with all that they depend on, to be installed from the source tree."""
    found = {p.name: p for p in projects}
    while missing := {s for p in found.values() for s in p.siblings(extras=True)} - set(found):
        found |= {name: PROJECTS[name] for name in missing}
    return list(found.values())
