"""`ZeroRedundancyOptimizer`, whose ranks have an optimizer each, of some of the parameters."""

import sys
from typing import Any

_OF_ALL = {"max_grad_norm": None, "skip_nonfinite": False, "telemetry": False}
_CLIP = "whose ranks each step some of the parameters: call torch.nn.utils.clip_grad_norm_ before step()"
_INSTEAD = {
    "max_grad_norm": _CLIP,
    "skip_nonfinite": f"{_CLIP}, and step where the norm that it returns is finite",
    "telemetry": "whose ranks each step some of the parameters, and would measure those",
}


def is_being_made() -> bool:
    """Whether such an optimizer is making the one that asks.

    It tells the optimizers that it makes nothing of itself, and calls their `step` as anybody does. So the question is
    who is calling the constructor.
    """
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    if module is None:
        return False
    code = module.ZeroRedundancyOptimizer._init_local_optimizer.__code__
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def refuse(kind: str) -> None:
    """ValueError for an optimizer whose step all gradients together make."""
    raise ValueError(
        f"optimizer_class: expected no {kind} within ZeroRedundancyOptimizer: all gradients together make its step, "
        "and each rank's optimizer sees some"
    )


def refuse_of_all(shared: bool, kind: str, groups: list[dict[str, Any]]) -> None:
    """ValueError where a step needs the gradients of all parameters."""
    if shared:
        refuse(kind)
    for group in groups:
        for name, nothing in _OF_ALL.items():
            if group.get(name) not in (None, nothing):
                raise ValueError(f"{name}: expected {nothing} within ZeroRedundancyOptimizer, {_INSTEAD[name]}")
