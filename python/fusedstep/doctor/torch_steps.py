"""What the steps of a torch optimizer do, measured around them."""

import math
import sys
from typing import Any

from fusedstep.doctor.run import finite
from fusedstep.optimizers import REGISTRY

#: Names of a running average of gradients, in the state of torch's optimizers.
_AVERAGES = ("exp_avg", "momentum_buffer")


def is_torch_optimizer(optimizer: Any) -> bool:
    """Whether it is one, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(optimizer, torch.optim.Optimizer)


def rule_of(optimizer: Any) -> str | None:
    """The name of its rule in this library, by the name of its class; None where there is none."""
    names = {kind.__name__: rule for rule, kind in REGISTRY.items()}
    return names.get(type(optimizer).__name__)


class TorchSteps:
    """The telemetry of an optimizer's steps, by hooks before and after each.

    Between the two hooks the parameters are in memory twice. A gradient is looked at as it lies in `grad` when the step
    begins.

    Args:
        optimizer: A `torch.optim.Optimizer`.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._params: list[tuple[Any, Any]] = []  # with what they were
        self._grads: list[Any] = []
        self._values: dict[str, float] | None = None
        optimizer.register_step_pre_hook(self._keep)
        optimizer.register_step_post_hook(self._measure)

    def take(self) -> dict[str, float]:
        """The numbers of the step since the last call.

        Raises:
            ValueError: There was none.
        """
        values, self._values = self._values, None
        if values is None:
            raise ValueError("optimizer: expected a step before every observation, got none since the last one")
        return values

    def _keep(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._params = [(p, p.detach().clone()) for p in params]

    def _measure(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        params, self._params = self._params, []
        updates = [_norm(p.detach().double() - before.double()) for p, before in params]
        sizes = [_norm(before) for _, before in params]
        grads = [
            p.grad.detach().double().to_dense() if p.grad.is_sparse else p.grad.detach().double() for p, _ in params
        ]
        ratios = [u / s for u, s in zip(updates, sizes, strict=True) if s > 0 and math.isfinite(u / s)]
        update, size = math.hypot(*updates), math.hypot(*sizes)
        values = {
            "lr": max((float(group["lr"]) for group in optimizer.param_groups), default=math.nan),
            "grad_norm": math.hypot(*(_norm(g) for g in grads)),
            "update_norm": update,
            "param_norm": size,
            "update_ratio": update / size if size > 0 else math.nan,
            "largest_update_ratio": max(ratios, default=math.nan),
            "grad_momentum_cosine": _cosine(
                [(g, _average(optimizer, p)) for g, (p, _) in zip(grads, params, strict=True)]
            ),
            "nonfinite": float(sum(int((~g.isfinite()).sum()) for g in grads)),
        }
        same = [g.shape for g in grads] == [g.shape for g in self._grads]
        values["grad_cosine"] = _cosine(list(zip(grads, self._grads, strict=True))) if same else math.nan
        self._grads = grads
        self._values = {name: finite(value) for name, value in values.items()}


def _dense(grad: Any) -> Any:
    grad = grad.detach()
    return (grad.to_dense() if grad.is_sparse else grad).double()


def _average(optimizer: Any, parameter: Any) -> Any:
    state = optimizer.state.get(parameter, {})
    return next((state[name] for name in _AVERAGES if state.get(name) is not None), None)


def _norm(tensor: Any) -> float:
    return float(tensor.detach().double().norm())


def _cosine(pairs: list[tuple[Any, Any]]) -> float:
    """Of the angle between two lists of tensors, over what both have."""
    both = [(a, b.detach().double()) for a, b in pairs if b is not None]
    dot = sum(float((a * b).sum()) for a, b in both)
    norms = math.hypot(*(_norm(a) for a, _ in both)) * math.hypot(*(_norm(b) for _, b in both))
    return max(-1.0, min(1.0, dot / norms)) if norms > 0 and math.isfinite(dot / norms) else math.nan
