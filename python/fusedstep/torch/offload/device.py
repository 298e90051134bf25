"""The parameters that stay on their device: PyTorch's optimizer of the same name steps them, on float32 masters."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from fusedstep.torch.offload.layout import NARROW

#: Options that PyTorch's optimizers do not have, with the value that turns them off.
_OURS = {"ema_decay": None, "stochastic_rounding": False, "state_dtype": "float32"}
#: Optimizers that take `fused=True`.
_FUSED = ("Adam", "AdamW", "SGD", "Adagrad")


def refuse(name: str, groups: list[dict[str, Any]]) -> None:
    """ValueError where PyTorch cannot step what stays on the device."""
    if not hasattr(torch.optim, name):
        raise ValueError(f"offload_fraction: expected 1 with {name}, which torch.optim does not have")
    for group in groups:
        for option, nothing in _OURS.items():
            if group.get(option) not in (None, nothing):
                raise ValueError(f"{option}: expected {nothing!r} with offload_fraction < 1, got {group[option]!r}")


def staying(params: list[Tensor], fraction: float) -> set[Tensor]:
    """All parameters after the first ones, which have up to this fraction of all elements."""
    limit, elements = fraction * sum(param.numel() for param in params), 0
    for place, param in enumerate(params):
        elements += param.numel()
        if elements > limit:
            return set(params[place:])
    return set()


def squares(grads: list[Tensor]) -> list[tuple[float, int, float]]:
    """The sum of squares of each gradient as s · 2^k, and how many elements are not finite."""
    if not grads:
        return []
    sums = [torch.linalg.vector_norm(grad, dtype=torch.float64).square() for grad in grads]
    counts = [grad.isfinite().logical_not_().sum().double() for grad in grads]
    host = torch.stack([torch.stack(pair) for pair in zip(sums, counts, strict=True)]).tolist()
    return [(total, 0, nonfinite) for total, nonfinite in host]


class DeviceStep:
    """A step of the parameters that stay on their device.

    Args:
        name: The optimizer's, in `torch.optim`.
        members: Of each parameter its group, itself, and its gradient.
        state: The optimizer's.
        factor: What the gradients are multiplied by.
    """

    def __init__(
        self,
        name: str,
        members: list[tuple[dict[str, Any], Tensor, Tensor]],
        state: dict[Any, dict[str, Any]],
        factor: float,
    ) -> None:
        self._kind: Any = getattr(torch.optim, name)
        self._members, self._state, self._factor = members, state, factor
        self._arguments = signature(self._kind.__init__).parameters.keys() - {"self", "params", "fused", "foreach"}

    def _master(self, param: Tensor, grad: Tensor, entry: dict[str, Any]) -> Tensor:
        """The tensor to step, with its gradient: the parameter, or its float32 copy."""
        stepped = param.detach()
        if param.dtype in NARROW:
            wide = param.detach().float()
            before = entry.get("master")
            # A parameter that was changed outside replaces its master.
            stepped = wide if before is None else torch.where(before.to(param.dtype) == param, before, wide)
            grad = grad.float()
        stepped.grad = grad.detach() if self._factor == 1.0 else grad.detach() * self._factor
        return stepped

    def _made(self, groups: list[dict[str, Any]], name: str) -> Any:
        if name in _FUSED:
            try:
                return self._kind(groups, fused=True)
            except RuntimeError:
                # PyTorch has no fused step for this device or for these hyper-parameters.
                return self._kind(groups)
        return self._kind(groups)

    def run(self) -> None:
        """Steps, and writes parameters and state."""
        groups: dict[int, dict[str, Any]] = {}
        masters = []
        for group, param, grad in self._members:
            master = self._master(param, grad, self._state.get(param, {}))
            masters.append(master)
            hypers = {name: value for name, value in group.items() if name in self._arguments}
            groups.setdefault(id(group), {**hypers, "params": []})["params"].append(master)
        optimizer = self._made(list(groups.values()), self._kind.__name__)
        for (_, param, _), master in zip(self._members, masters, strict=True):
            known = {name: value for name, value in self._state.get(param, {}).items() if name != "master"}
            if known:
                optimizer.state[master] = known
        optimizer.step()
        for (_, param, _), master in zip(self._members, masters, strict=True):
            entry = self._state.setdefault(param, {})
            entry.update(optimizer.state[master])
            if param.dtype in NARROW:
                master.grad = None
                entry["master"] = master
                param.copy_(master)
