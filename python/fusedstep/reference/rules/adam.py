"""The equations of `fusedstep.Adam`, as in `cpp/rules/adam.h`."""

from math import sqrt
from typing import Any

import numpy as np

from fusedstep.reference.maths import Array
from fusedstep.reference.power import integer_power


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    beta1, beta2 = h.betas
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "step_size": h.lr / (1.0 - integer_power(beta1, step)),
        "rsqrt_correction2": 1.0 / sqrt(1.0 - integer_power(beta2, step)),
        "eps": h.eps,
        "keep": 1.0 - h.lr * h.weight_decay if h.decoupled_weight_decay else 1.0,
    }


def direction(
    h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array, max_exp_avg_sq: Array | None = None
) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    exp_avg[...] = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_avg_sq[...] = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g)

    v = exp_avg_sq
    if max_exp_avg_sq is not None:
        v = max_exp_avg_sq
        v[...] = np.maximum(v, exp_avg_sq)
    return c.step_size * (exp_avg / (np.sqrt(v) * c.rsqrt_correction2 + c.eps))
