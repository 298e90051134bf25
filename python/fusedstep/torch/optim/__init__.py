"""The optimizers of this library as `torch.optim`'s: one changed import.

    from fusedstep.torch import optim

Each is a `torch.optim.Optimizer` with PyTorch's arguments, defaults, groups, state and state dict, and takes a step of
all its parameters in one native call: `torch.optim.lr_scheduler`, `torch.amp.GradScaler`, `torch.optim.swa_utils`,
hooks, `copy.deepcopy` and `pickle` work as they do with PyTorch's. Beside PyTorch's arguments they take the options of
`fusedstep.Options` by name. Tensors are float32, float64, bfloat16 or float16, on the CPU. They may be DTensors, as
those of `fully_shard` are: then norms and other sums are of the whole, and `docs/distributed.md` says what is refused.

Examples:
    >>> import torch
    >>> from fusedstep.torch import optim
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> opt = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> model(torch.tensor([[1.0, 2.0]])).sum().backward()
    >>> opt.step()
    >>> print(model.weight.detach().numpy().round(2), sorted(opt.state[model.weight]))
    [[0.9 0.8]] ['momentum_buffer']
"""

from typing import Any

from torch.optim import Optimizer, lr_scheduler, swa_utils

import fusedstep.torch  # noqa: F401
from fusedstep.optimizers import REGISTRY as _ARRAYS
from fusedstep.torch.optim.backward import attach
from fusedstep.torch.optim.classes import made as _made
from fusedstep.torch.optim.lbfgs import LBFGS
from fusedstep.torch.optim.network import Muon as _Muon
from fusedstep.torch.optim.optimizer import FusedOptimizer
from fusedstep.torch.optim.ranks import check_ranks

#: Every optimizer that is a rule of one step, by the name of the rule.
REGISTRY: dict[str, type[FusedOptimizer]] = {rule: _made(kind, __name__) for rule, kind in _ARRAYS.items()} | {
    "muon": _Muon
}
globals().update({kind.__name__: kind for kind in REGISTRY.values()})
LBFGS.__module__ = __name__

__all__ = ["LBFGS", "REGISTRY", "FusedOptimizer", "Optimizer", "attach", "check_ranks", "lr_scheduler", "swa_utils"]
__all__ += sorted(kind.__name__ for kind in REGISTRY.values())


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
