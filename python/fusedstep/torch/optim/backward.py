"""Steps in the backward pass: each parameter as soon as its gradient is there, while it is in the cache."""

from typing import Any

from torch import Tensor

#: What needs the gradients of all parameters at once, with the value that asks for nothing.
_OF_ALL = {"max_grad_norm": None, "skip_nonfinite": False, "telemetry": False}


def refuse_of_all(optimizer: Any) -> None:
    """ValueError where a step in the backward pass cannot do what the groups ask for."""
    kind = type(optimizer).__name__
    if optimizer._shared:
        raise ValueError(f"in_backward: expected False for {kind}, whose step size needs all gradients")
    for group in optimizer.param_groups:
        for name, nothing in _OF_ALL.items():
            if group.get(name) not in (None, nothing):
                raise ValueError(f"{name}: expected {nothing} with in_backward, which has one gradient at a time")


class BackwardSteps:
    """The hooks of an optimizer's parameters.

    Args:
        optimizer: The optimizer.
        every: A parameter is stepped at every so many backward passes that reach it, with the sum of their gradients.
    """

    def __init__(self, optimizer: Any, every: int) -> None:
        self._optimizer, self._every = optimizer, every
        self._natives: dict[int, Any] = {}
        self._counts: dict[int, int] = {}
        self._handles: dict[int, Any] = {}

    def follow(self) -> None:
        """Registers hooks for the parameters that have none yet."""
        for group in self._optimizer.param_groups:
            names = group.get("param_names") or [None] * len(group["params"])
            for name, param in zip(names, group["params"], strict=True):
                if id(param) not in self._handles and param.requires_grad:
                    hook = self._hook(group, name)
                    self._handles[id(param)] = param.register_post_accumulate_grad_hook(hook)

    def _hook(self, group: dict[str, Any], name: Any) -> Any:
        place = next(k for k, other in enumerate(self._optimizer.param_groups) if other is group)

        def step(param: Tensor) -> None:
            key = id(param)
            self._counts[key] = self._counts.get(key, 0) + 1
            if self._counts[key] % self._every:
                return
            optimizer = self._optimizer
            refuse_of_all(optimizer)
            alone = {**optimizer.param_groups[place], "params": [param]}
            if name is not None:
                alone["param_names"] = [name]
            if key not in self._natives:
                self._natives[key] = optimizer._make_native()
            self._natives[key].step([alone], optimizer.state, 1.0)
            param.grad = None

        return step

    def remove(self) -> None:
        """Takes the hooks away: steps are `step()`'s again."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()


def attach(model: Any, optimizer: Any, *, every: int = 1, **arguments: Any) -> Any:
    """An optimizer of a model's parameters that steps each of them in the backward pass, and frees its gradient.

    Args:
        model: The module.
        optimizer: A class of `fusedstep.torch.optim`.
        every: A parameter is stepped at every so many backward passes that reach it, with the sum of their gradients.
        arguments: The optimizer's; not `max_grad_norm`, `skip_nonfinite` and `telemetry`, which need all gradients.

    Returns:
        The optimizer. Its `step()` does nothing but run hooks, for schedulers that count on it.

    Raises:
        ValueError: An argument that asks for all gradients at once.

    Examples:
        >>> import torch
        >>> from fusedstep.torch import optim
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> opt = optim.attach(model, optim.SGD, lr=0.1)
        >>> model(torch.tensor([[1.0, 2.0]])).sum().backward()
        >>> print(model.weight.detach().numpy().round(2), model.weight.grad)
        [[0.9 0.8]] None
    """
    return optimizer(model.named_parameters(), in_backward=every, **arguments)
