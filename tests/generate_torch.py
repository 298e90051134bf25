"""The types of `fusedstep.torch.optim`, whose classes are made at run time; see `generate`."""

import inspect

from fusedstep.optimizers import REGISTRY as ARRAYS
from fusedstep.optimizers import Options
from fusedstep.optimizers.base import LearningRate
from fusedstep.torch import optim

_HEAD = '''"""Made by `python tests/generate.py`; see __init__.py."""

from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer as Optimizer
from torch.optim import lr_scheduler as lr_scheduler
from torch.optim import swa_utils as swa_utils
from torch.optim.optimizer import ParamsT

from fusedstep.torch.optim.backward import attach as attach
from fusedstep.torch.optim.lbfgs import LBFGS as LBFGS
from fusedstep.torch.optim.optimizer import FusedOptimizer as FusedOptimizer
from fusedstep.torch.optim.ranks import check_ranks as check_ranks

REGISTRY: dict[str, type[FusedOptimizer]]
'''

#: What only PyTorch's arguments have, and those of a whole network.
_TYPES = {
    "params": "ParamsT",
    "foreach": "bool | None",
    "fused": "bool | None",
    "capturable": "bool",
    "differentiable": "bool",
    "decoupled_weight_decay": "bool",
    "in_backward": "bool | int",
    "use_muon": "Callable[[str | None, Tensor], bool] | None",
    "adamw_lr": "float | Tensor | None",
    "adamw_betas": "tuple[float, float] | None",
    "adamw_eps": "float | None",
    "adamw_weight_decay": "float | None",
}


def stub():
    """One class a rule, with its constructor."""
    lines = [_HEAD]
    for rule, kind in optim.REGISTRY.items():
        lines += [f"class {kind.__name__}(FusedOptimizer):", "    def __init__(", "        self,"]
        star = False
        for p in inspect.signature(kind).parameters.values():
            if p.kind is p.KEYWORD_ONLY and not star:
                lines.append("        *,")
                star = True
            default = "..." if p.default == float("inf") else repr(p.default).replace("'", '"')
            default = "" if p.default is p.empty else f" = {default}"
            lines.append(f"        {p.name}: {_type(rule, p.name)}{default},")
        lines += ["    ) -> None: ...", ""]
    return "\n".join(lines[:-1]) + "\n"


def _type(rule, name):
    fields = ARRAYS[rule]._fields
    if name not in fields:
        return _TYPES.get(name) or inspect.formatannotation(Options.__annotations__[name])
    kind = fields[name].kind
    return "float | Tensor" if kind == LearningRate else inspect.formatannotation(kind)
