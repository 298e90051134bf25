"""The optimizers: one file each, with its hyper-parameters and documentation."""

from fusedstep import _core
from fusedstep.optimizers import _list
from fusedstep.optimizers._base import Optimizer
from fusedstep.optimizers._list import *  # noqa: F403
from fusedstep.optimizers._options import OPTIONS, Options

#: The public names of all optimizers, and of what they report.
NAMES = [name for name in vars(_list) if not name.startswith("_")]

__all__ = ["OPTIONS", "Optimizer", "Options"]
__all__ += NAMES

_CLASSES = [vars(_list)[name] for name in NAMES]
_BY_RULE: dict[str, type[Optimizer]] = {kind.rule: kind for kind in _CLASSES if issubclass(kind, Optimizer)}
#: Every optimizer that is a rule of one step, by the name of the rule, in the order of `cpp/rules/list.h`.
REGISTRY: dict[str, type[Optimizer]] = {rule: _BY_RULE[rule] for rule in _core.rules() if rule in _BY_RULE}
