"""A step of training of a torch module, for `lr_range_test`."""

import sys
from collections.abc import Callable
from typing import Any

from fusedstep._common.arguments import function


def is_module(value: Any) -> bool:
    """Whether it is a `torch.nn.Module`, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def module_step(module: Any, optimizer: Any, loss: Any) -> Callable[[float], float]:
    """Trains one batch with a rate in all groups, and gives the loss before the update.

    Raises:
        TypeError: No torch optimizer, no function; a loss that is no tensor.
        ValueError: A loss of more than one number; an optimizer of other parameters.
    """
    torch = sys.modules["torch"]
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer: expected a torch.optim.Optimizer of the module, got {type(optimizer).__qualname__}"
        )
    function(loss, "loss")
    own = {id(parameter) for parameter in module.parameters()}
    if not all(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer: expected one of the module's parameters, got one that has others too")

    def step(lr: float) -> float:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        optimizer.zero_grad()
        value = loss()
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"loss: expected a tensor, got {type(value).__qualname__}")
        if value.numel() != 1:
            raise ValueError(f"loss: expected a tensor of one number, got shape {tuple(value.shape)}")
        value.backward()
        optimizer.step()
        return float(value.detach())

    return step


class Gradients:
    """The gradients of a module as a state that can be put back: the tensors themselves."""

    def __init__(self, module: Any) -> None:
        self._parameters = list(module.parameters())

    def state_dict(self) -> dict[str, Any]:
        """The gradients; None where there is none."""
        return {str(k): _Held(parameter.grad) for k, parameter in enumerate(self._parameters)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        for k, parameter in enumerate(self._parameters):
            parameter.grad = state[str(k)].put_back()


class _Held:
    """A tensor and what it was; copying it copies nothing more."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor
        self._value = None if tensor is None else tensor.detach().clone()

    def __deepcopy__(self, memo: Any) -> "_Held":
        return self

    def put_back(self) -> Any:
        if self._tensor is not None:
            self._tensor.detach().copy_(self._value)
        return self._tensor
