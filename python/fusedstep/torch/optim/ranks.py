"""Whether the processes of a group have the same optimizer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fusedstep

#: Keys of groups that do not affect a step.
_UNSEEN = ("params", "param_names", "foreach", "fused", "capturable", "differentiable")


def as_seen_by_all(here: Any, group: Any, device: torch.device) -> Any:
    """The arrays of all processes of a group, float64 and of one shape, in the order of the ranks."""
    distributed = torch.distributed
    mine = torch.from_numpy(np.ascontiguousarray(here)).to(device)
    every = [torch.empty_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(every, mine, group=group)
    return torch.stack(every).cpu().numpy()


def described(optimizer: Any) -> dict[str, str]:
    """What must be equal in all processes, by the names that errors use."""
    found = {"fusedstep": fusedstep.__version__, "optimizer": type(optimizer).__qualname__}
    number = 0
    for place, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name not in _UNSEEN:
                found[f"param_groups[{place}][{name!r}]"] = _text(value)
        names = group.get("param_names") or range(number, number + len(group["params"]))
        number += len(group["params"])
        for name, param in zip(names, group["params"], strict=True):
            found[f"params[{name!r}]"] = f"{str(param.dtype).removeprefix('torch.')} of shape {tuple(param.shape)}"
    return found


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if isinstance(value, tuple | list):
        return f"({', '.join(_text(item) for item in value)})"
    return repr(value) if value is None or isinstance(value, bool | int | float | str) else type(value).__qualname__


def agree(description: Mapping[str, str], groups: list[Any]) -> None:
    """ValueError in all processes, if processes in any of the groups describe an optimizer differently."""
    distributed = torch.distributed
    problem = None
    for group in groups:
        every: list[Any] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(every, (problem, dict(description)), group=group)
        ranks = distributed.get_process_group_ranks(group)
        heard = [theirs for theirs, _ in every if theirs is not None]
        problem = heard[0] if heard else _difference([found for _, found in every], ranks)
    if problem is not None:
        raise ValueError(problem)


def _difference(every: list[dict[str, str]], ranks: list[int]) -> str | None:
    for rank, theirs in zip(ranks, every, strict=True):
        for name in {**every[0], **theirs}:
            ours, got = every[0].get(name), theirs.get(name)
            if ours != got:
                return f"{name}: rank {rank} has {got or 'none'}, rank {ranks[0]} has {ours or 'none'}"
    return None


def check_ranks(optimizer: torch.optim.Optimizer, process_group: Any = None) -> None:
    """Checks that all processes of a group have the same optimizer: class, groups, shapes, dtypes, library version.

    Each process calls it once before training. With DDP no other check finds a rank with another learning rate, because
    a plain tensor does not record which processes have copies of it. DTensors, as FSDP2 makes them, record their mesh;
    with them the first step does this check itself.

    Args:
        optimizer: An optimizer of this library or of PyTorch, also a `ZeroRedundancyOptimizer`.
        process_group: A group of `torch.distributed`; None for all processes.

    Raises:
        TypeError: `optimizer` is no `torch.optim.Optimizer`, or `process_group` no process group.
        ValueError: Two ranks differ; all processes raise the same error. Or this process is not in `process_group`.
        RuntimeError: `torch.distributed` is not initialized.

    Examples:
        >>> import torch
        >>> from fusedstep.torch import optim
        >>> store = torch.distributed.HashStore()
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> optim.check_ranks(optim.AdamW([torch.zeros(2, requires_grad=True)]))
        >>> torch.distributed.destroy_process_group()
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected one of torch.optim, got {type(optimizer).__qualname__}")
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise RuntimeError("process_group: torch.distributed is not initialized: call init_process_group first")
    distributed = torch.distributed
    group = distributed.group.WORLD if process_group is None else process_group
    if group == distributed.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"process_group: rank {distributed.get_rank()} is not one of its members")
    if not isinstance(group, distributed.ProcessGroup):
        raise TypeError(f"process_group: expected a torch.distributed.ProcessGroup, got {type(group).__qualname__}")
    agree(described(optimizer), [group])
