"""The equations of `fusedstep.Lion`, as in `cpp/rules/lion.h`."""

from typing import Any

from fusedstep.reference.maths import Array, sign


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    beta1, beta2 = h.betas
    return {
        "lr": h.lr,
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "keep": 1.0 - h.lr * h.weight_decay,
    }


def direction(h: Any, c: Any, g: Array, p: Array, exp_avg: Array) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    mixed = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_avg[...] = c.beta2 * exp_avg + c.one_minus_beta2 * g
    return c.lr * sign(mixed)
