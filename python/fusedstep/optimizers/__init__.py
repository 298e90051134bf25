"""The optimizers: one file each, with its hyper-parameters and documentation."""

from fusedstep import _core
from fusedstep.optimizers import exports
from fusedstep.optimizers.base import Optimizer
from fusedstep.optimizers.base.options import OPTIONS, Options
from fusedstep.optimizers.exports import *  # noqa: F403

#: The public names of all optimizers, and of what they report.
NAMES = [name for name in vars(exports) if not name.startswith("_")]

__all__ = ["OPTIONS", "Optimizer", "Options"]
__all__ += NAMES

_CLASSES = [vars(exports)[name] for name in NAMES]
_BY_RULE: dict[str, type[Optimizer]] = {kind.rule: kind for kind in _CLASSES if issubclass(kind, Optimizer)}
#: Every optimizer that is a rule of one step, by the name of the rule, in the order of `cpp/rules/list.h`.
REGISTRY: dict[str, type[Optimizer]] = {rule: _BY_RULE[rule] for rule in _core.rules() if rule in _BY_RULE}
