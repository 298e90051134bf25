"""The trial step with which `torch.distributed.checkpoint` creates the states of a new optimizer.

It gives every parameter a gradient of zeros, sets lr to 0, and calls `step`. A real step would also change the step
count, and states that start from the first gradient. So the trial only creates the states.
"""

from typing import Any

import torch
from torch import Tensor

from fusedstep.torch.optim.shards import Shards, is_dtensor


def is_asked(optimizer: Any, closure: Any, shards: Shards | None) -> bool:
    """Whether a step is such a trial: there is no state, every lr is 0, and every gradient exists and is 0."""
    if closure is not None or optimizer.state:
        return False
    if not all(_is_zero(group.get("lr")) for group in optimizer.param_groups):
        return False
    params = [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]
    here = all(param.grad is not None and _is_zero_everywhere(param.grad) for param in params)
    return here if shards is None else shards.everywhere(here)


def _is_zero(lr: Any) -> bool:
    return isinstance(lr, int | float | Tensor) and bool(lr == 0)


def _is_zero_everywhere(grad: Tensor) -> bool:
    return grad.layout is torch.strided and not _local(grad).any()


def _local(tensor: Any) -> Tensor:
    found: Tensor = tensor.to_local() if is_dtensor(tensor) else tensor
    return found


class Begun:
    """The states that a trial has created; they are dropped again unless something is written into them.

    Args:
        optimizer: An optimizer without states.
    """

    def __init__(self, optimizer: Any) -> None:
        groups = optimizer.param_groups
        lrs = [group["lr"] for group in groups]
        try:
            for group in groups:  # states may depend on the initial lr
                group["lr"] = group.get("initial_lr", optimizer.defaults["lr"])
            optimizer._native.begin(groups, optimizer.state)
        finally:
            for group, lr in zip(groups, lrs, strict=True):
                group["lr"] = lr
        self._versions = _versions(optimizer)

    def forget(self, optimizer: Any) -> None:
        """Drops unchanged states; the first step then creates them from the parameters at that time."""
        if _versions(optimizer) == self._versions:
            optimizer.state.clear()


def _versions(optimizer: Any) -> list[tuple[int, int]]:
    values = [value for entry in optimizer.state.values() for value in entry.values()]
    return [(id(value), _local(value)._version) for value in values if isinstance(value, Tensor)]
