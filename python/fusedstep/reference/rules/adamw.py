"""The equations of `fusedstep.AdamW`, as in `cpp/rules/adamw.h`."""

from types import SimpleNamespace
from typing import Any

from fusedstep.reference.maths import Array
from fusedstep.reference.rules import adam


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    return adam.coefficients(SimpleNamespace(**vars(h), decoupled_weight_decay=True), step, first)


def direction(
    h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array, max_exp_avg_sq: Array | None = None
) -> Array:
    """What the step subtracts from the parameter after its decay; updates the states."""
    return adam.direction(h, c, g, p, exp_avg, exp_avg_sq, max_exp_avg_sq)
