"""Imports between the packages run one way, and what only an extra installs is imported where it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fusedstep
from fusedstep import _moved

PACKAGE = Path(fusedstep.__file__).parent
#: A package imports packages of the lines above its own. "fusedstep" is the top, which exports the public names.
ORDER = [
    {"_core"},
    {"_common"},
    {"reference"},
    {"sparse", "schedules", "runtime", "_moved"},
    {"optimizers", "normalization", "losses", "regularization"},
    {"functional", "training", "data"},
    {"averaging", "checkpoint", "curvature", "doctor", "mpi"},
    {"fusedstep"},
    {"torch"},
    {"apps"},
    {"gallery", "__main__"},
]
#: What programs import beside public names, and why.
APPS = {
    "bench.batch_norm": {"_core"},  # loops that move the same bytes
    "bench.offload": {"_core"},
    "bench.subjects": {"_core"},
    "bench.scaling.traffic": {"_core"},  # which rules have kernels
    "bench.scaling.worker": {"_core"},
    "cli.info": {"_core"},  # the compiler
    "cli.doctor": {"doctor.stream"},  # the file that the command is given
}


def modules():
    """The name of every module within the package, and its syntax tree."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imported(tree):
    """The full names that a tree imports, each with its line; of `from a import b` a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def own(name):
    """A name within this package, without the package; None where it is of another."""
    package, _, rest = name.partition(".")
    return rest if package == "fusedstep" else None


def unit(name):
    """The package that a name within ours lies in: one of those in ORDER."""
    first = name.partition(".")[0]
    return first if any(first in line for line in ORDER) else "fusedstep"


def test_every_package_is_in_the_order():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} | {"_core", "fusedstep"} == set().union(*ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_one_way(module):
    places = {name: k for k, line in enumerate(ORDER) for name in line}
    mine = unit(module)
    for name, line in imported(MODULES[module]):
        if (target := own(name)) is not None and unit(target) != mine:
            assert places[unit(target)] < places[mine], f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_no_old_names(module):
    for name, line in imported(MODULES[module]):
        assert _moved.new_name(name) is None, f"{module}:{line} imports {name}, which has moved"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("apps")])
def test_programs_use_what_is_public(module):
    allowed = APPS.get(module.removeprefix("apps."), set())
    for name, line in imported(MODULES[module]):
        target = own(name)
        if target is None or unit(target) in ("apps", "_common", "fusedstep", "reference"):
            continue
        # `from package import name`, or the package itself.
        parts = target.split(".")
        inner = ".".join(parts[:2]) if ".".join(parts[:2]) in MODULES and len(parts) > 2 else parts[0]
        if inner in allowed:
            continue
        assert len(parts) <= 2, f"{module}:{line} imports {name}"
        assert not any(part.startswith("_") for part in parts), f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_extras_are_imported_where_they_are_used(module):
    if module.partition(".")[0] == "torch":
        return
    known = {*sys.stdlib_module_names, "numpy", "fusedstep"}
    top = ast.Module([node for node in MODULES[module].body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    for name, line in imported(top):
        assert name.partition(".")[0] in known, f"{module}:{line} imports {name}"


def test_nothing_else_is_imported_with_the_library():
    code = "import fusedstep, sys; print(*sys.modules)"
    search = {"PYTHONPATH": str(PACKAGE.parent)}
    found = subprocess.run([sys.executable, "-c", code], env=search, capture_output=True, text=True, check=True)
    names = {name.partition(".")[0] for name in found.stdout.split()}
    assert not names & {"torch", "scipy", "sklearn", "matplotlib", "rich", "safetensors", "ml_dtypes", "mpi4py"}
    assert not any(name.startswith("fusedstep.apps") for name in found.stdout.split())
