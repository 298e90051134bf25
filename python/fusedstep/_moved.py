"""Modules under the names that they once had: pickles name the modules of their classes."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: The old name and the new one, within this package. What lies in a package moves with it.
MOVED = {
    **{
        f"curvature._{name}": f"curvature.{name}"
        for name in ("critical", "lr_range", "newton", "products", "quadrature", "smoothness")
    },
    "curvature._escape": "curvature.saddle",
    "curvature._hessian": "curvature.whole_hessian",
    "curvature._spectrum": "curvature.eigenpairs",
    "data._batches": "data.order",
    "_sparse": "sparse",
    "_structure": "_common.structure",
    "_normalization": "normalization",
    "_early_stopping": "training.early_stopping",
    "_snapshots": "training.snapshots",
    "_weights": "training.weights",
    "_checkpoint": "checkpoint.checkpoint",
    "optimizers._base": "optimizers.base",
    "optimizers._states": "optimizers.base.states",
    "bench": "apps.bench",
    "cli": "apps.cli",
    "examples": "apps.examples",
    "doctor.cases": "apps.trial.cases",
    "doctor.healthy": "apps.trial.healthy",
    "doctor.trial": "apps.trial.trial",
}


class MovedFinder(MetaPathFinder, Loader):
    """Imports the module itself, which then stands under both names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds the names in the table, and those within them."""
        return None if new_name(fullname) is None else ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """None is created: the machinery would write the old name into the module."""
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Puts the module itself in the place of the empty one."""
        new = new_name(module.__name__)
        assert new is not None
        sys.modules[module.__name__] = importlib.import_module(new)


def new_name(old: str) -> str | None:
    """The new name of a module; None if its name is not an old one."""
    package, _, name = old.partition(".")
    if package != __package__:
        return None
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        if new := MOVED.get(".".join(parts[:count])):
            return ".".join([package, new, *parts[count:]])
    return None


def install() -> None:
    """Makes the old names known to `import`."""
    # First, because a package under its old name leads to its files, which would be loaded a second time.
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedFinder())
