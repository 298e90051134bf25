"""What must pass and the long runs, each in a virtual environment of its own: `nox`, or `nox -s NAME`.

What follows `--` is for pytest: `nox -s tests -- -k adam`.
"""

import shutil
from itertools import chain
from pathlib import Path

import nox

PROJECT = nox.project.load_toml("pyproject.toml")
BUILD = [*PROJECT["build-system"]["requires"], "cmake", "ninja"]
LINT = nox.project.dependency_groups(PROJECT, "lint")
PARALLEL = ["-n", "auto", "--dist", "worksteal"]
nox.options.sessions = ["lint", "tests"]


def pytest(session: nox.Session, *arguments: str) -> None:
    """The installed package's tests, on every processor."""
    session.run("python", "-m", "pytest", *PARALLEL, *arguments, *session.posargs)


def preset(session: nox.Session, name: str, *settings: str) -> None:
    """Configures and builds one of CMakePresets.json."""
    session.run("cmake", "--preset", name, *settings)
    session.run("cmake", "--build", "--preset", name)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint and types, as `.ci/run` and pre-commit want them."""
    if session.virtualenv.is_sandboxed:  # with --no-venv the environment at hand has them
        project = PROJECT["project"]
        session.install(
            *LINT, *project["dependencies"], *project["optional-dependencies"]["bench"]
        )  # mypy reads torch's
    session.run("ruff", "format", "--check", "python", "tests", "examples")
    session.run("ruff", "check", "python", "tests", "examples")
    session.run("mypy")
    sources = [
        path for folder in ("cpp", "bench") for path in Path(folder).rglob("*.*") if path.suffix in (".h", ".cpp")
    ]
    session.run("clang-format", "--dry-run", "--Werror", *map(str, sorted(sources)))


@nox.session
def tests(session: nox.Session) -> None:
    """The suite, as README.md runs it."""
    session.install(".[test]")
    pytest(session)


@nox.session
def docs(session: nox.Session) -> None:
    """Every example of the documents and docstrings runs, and links lead somewhere."""
    session.install(".[test]")
    pytest(session, "-k", "test_docs")


@nox.session
def bench(session: nox.Session) -> None:
    """Both benches build and run; the figures of so short a run say nothing."""
    session.install(".[bench]")
    session.run("fusedstep", "bench", "adamw-1Ki", "--rounds", "1", "--seconds", "0.01")
    if not Path("/usr/include/benchmark/benchmark.h").exists():
        session.skip("no Google Benchmark (Debian: libbenchmark-dev): the native bench is not built")
    session.install("cmake", "ninja")
    preset(session, "bench")
    session.run("build/bench/fusedstep_bench", "--benchmark_filter=adamw", "--benchmark_min_time=0.001", external=True)


@nox.session
def sanitize(session: nox.Session) -> None:
    """The extension with address and undefined-behaviour sanitizers builds."""
    session.install(*BUILD, "numpy")
    python = session.run("python", "-c", "import sys; print(sys.executable)", silent=True).strip()
    pybind11 = session.run("python", "-m", "pybind11", "--cmakedir", silent=True).strip()
    preset(session, "sanitize", f"-DPython_EXECUTABLE={python}", f"-Dpybind11_DIR={pybind11}")


@nox.session
def peers(session: nox.Session) -> None:
    """The suite with torch, BLAS, NumPy and the C library held to other kernels."""
    session.install(".[test]")
    session.run("python", "tests/matrix.py", *PARALLEL, *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """The suite with the lowest version of everything that pyproject.toml allows."""
    project = PROJECT["project"]
    allowed = {*BUILD, *project["dependencies"], *chain(*project["optional-dependencies"].values())}
    constraints = Path(session.create_tmp()) / "lowest.txt"
    constraints.write_text("\n".join(sorted(r.split(",")[0].replace(">=", "==") for r in allowed if ">=" in r)))
    session.install("--constraint", str(constraints), *BUILD)
    session.install("--constraint", str(constraints), "--no-build-isolation", ".[test]")
    pytest(session)


@nox.session
def clang(session: nox.Session) -> None:
    """The suite on what clang builds; needs its libomp."""
    compiler = next(filter(None, map(shutil.which, ["clang++", *(f"clang++-{n}" for n in range(30, 15, -1))])), None)
    if compiler is None:
        session.error("no clang++ of version 16 or later")
    session.install(".[test]", env={"CXX": compiler})
    pytest(session)
