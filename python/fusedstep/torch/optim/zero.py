"""Checks for `ZeroRedundancyOptimizer`: there each rank has an optimizer for some of the parameters."""

import sys
from typing import Any

_OF_ALL = {"max_grad_norm": None, "skip_nonfinite": False, "telemetry": False}
_CLIP = "where each rank steps only some parameters: call torch.nn.utils.clip_grad_norm_ before step()"
_INSTEAD = {
    "max_grad_norm": _CLIP,
    "skip_nonfinite": f"{_CLIP}, and step where the norm that it returns is finite",
    "telemetry": "where each rank steps only some parameters, and would measure only these",
}


def is_being_made() -> bool:
    """Whether a `ZeroRedundancyOptimizer` is calling the constructor.

    It passes nothing to the optimizers that it creates, and calls their `step` like any other caller. So this looks for
    its frame on the call stack.
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
    """ValueError for an optimizer whose step needs all gradients."""
    raise ValueError(
        f"optimizer_class: expected an optimizer other than {kind} within ZeroRedundancyOptimizer: its step needs all "
        "gradients, and each rank steps only some parameters"
    )


def refuse_of_all(shared: bool, kind: str, groups: list[dict[str, Any]]) -> None:
    """ValueError if a step needs the gradients of all parameters."""
    if shared:
        refuse(kind)
    for group in groups:
        for name, nothing in _OF_ALL.items():
            if group.get(name) not in (None, nothing):
                raise ValueError(f"{name}: expected {nothing} within ZeroRedundancyOptimizer, {_INSTEAD[name]}")
