"""Bytes of one step per element: how many move, and how many stay."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedstep import _core
from fusedstep._common.arrays import bfloat16_dtype
from fusedstep.optimizers import REGISTRY
from fusedstep.reference.rules import RULES

#: Elements of the parameter whose states are looked at: a matrix of whole 8-bit blocks.
_SHAPE = (256, 256)

#: Hyper-parameters that give a rule its usual states.
USUAL: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9}}

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Traffic:
    """Bytes per element.

    Attributes:
        moved: What a step reads and writes, past the caches.
        kept: States, averages and masters, between steps.
        param: The parameter.
        grad: The gradient.
        norm: What the norm of the gradients reads besides, where they are clipped.
    """

    moved: float
    kept: float
    param: int
    grad: int
    norm: int

    @property
    def memory(self) -> float:
        """All that a step needs at a time."""
        return self.kept + self.param + self.grad


def traffic(
    rule: str, dtype: str = "float32", *, clip: bool = False, masters_lead: bool = False, **options: Any
) -> Traffic:
    """What one step of a rule moves.

    The states are those that an optimizer of the library makes; each is read and written once. The gradient is read,
    the parameter read and written. A rule that needs sums over whole tensors reads all of them once more before.

    Args:
        rule: Its name in the library.
        dtype: Of parameter and gradient: "float32" or "bfloat16".
        clip: Whether the norm of the gradients is taken by a pass of its own.
        masters_lead: Whether nobody changes the parameter between steps, so that a step with masters only writes it.
        **options: Of `fusedstep.Options`: `state_dtype`, `master_weights`, `ema_decay`.

    Returns:
        The bytes.

    Raises:
        ValueError: There is no such rule, or it has no kernel whose bytes could be counted.

    Examples:
        >>> traffic("adamw").moved  # gradient 4, parameter 8, two moments 16
        28.0
        >>> traffic("adamw", "bfloat16", master_weights=True, masters_lead=True).moved
        28.0
        >>> traffic("adamw", state_dtype="8bit").kept
        2.03125
    """
    check(rule, dtype)
    param = np.ones(_SHAPE, np.float32)
    if dtype == "bfloat16":
        # The upper words of float32 ones.
        param = (param.view(np.uint32) >> 16).astype(np.uint16).view(bfloat16_dtype())
    optimizer = REGISTRY[rule](param, **USUAL.get(rule, {}), **options)
    optimizer.step(param.copy())
    arrays = [value for value in optimizer.state[0].values() if isinstance(value, np.ndarray) and value.size > 1]
    kept = sum(array.nbytes for array in arrays) / param.size
    size = param.itemsize
    masters = "master" in optimizer.state[0]
    moved = size + (size if masters and masters_lead else 2 * size) + 2 * kept
    if needs_whole_tensors(rule):
        moved += 2 * size + kept
    return Traffic(moved, kept, size, size, size if clip else 0)


def needs_whole_tensors(rule: str) -> bool:
    """Whether a rule first needs sums over whole tensors."""
    return hasattr(RULES[rule], "measure")


def check(rule: str, dtype: str) -> None:
    """Refuses what has no bytes to count."""
    rules: Mapping[str, Any] = _core.rules()
    able = [name for name, about in rules.items() if about["native"] and about["dense"]]
    if rule not in able:
        raise ValueError(
            f"rule: expected one with a kernel for dense gradients, got {rule!r}; valid: {', '.join(able)}"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {DTYPES}, got {dtype!r}")
