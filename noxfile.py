"""The long runs, each in a virtual environment of its own: `nox`, or `nox -s NAME`; what follows `--` is for pytest."""

import shutil
from itertools import chain
from pathlib import Path

import nox

PROJECT = nox.project.load_toml("pyproject.toml")
BUILD = [*PROJECT["build-system"]["requires"], "cmake", "ninja"]


@nox.session
def peers(session: nox.Session) -> None:
    """The suite with torch, BLAS, NumPy and the C library held to other kernels."""
    session.install(".[test]")
    session.run("python", "tests/matrix.py", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """The suite with the lowest version of everything that pyproject.toml allows."""
    project = PROJECT["project"]
    allowed = {*BUILD, *project["dependencies"], *chain(*project["optional-dependencies"].values())}
    constraints = Path(session.create_tmp()) / "lowest.txt"
    constraints.write_text("\n".join(sorted(r.split(",")[0].replace(">=", "==") for r in allowed if ">=" in r)))
    session.install("--constraint", str(constraints), *BUILD)
    session.install("--constraint", str(constraints), "--no-build-isolation", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def clang(session: nox.Session) -> None:
    """The suite on what clang builds; needs its libomp."""
    compiler = next(filter(None, map(shutil.which, ["clang++", *(f"clang++-{n}" for n in range(30, 15, -1))])), None)
    if compiler is None:
        session.error("no clang++ of version 16 or later")
    session.install(".[test]", env={"CXX": compiler})
    session.run("python", "-m", "pytest", *session.posargs)
