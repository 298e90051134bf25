"""The equations of `fusedstep.RAdam`, as in `cpp/rules/radam.h`."""

from math import sqrt
from typing import Any

import numpy as np

from fusedstep.reference.maths import Array
from fusedstep.reference.power import integer_power


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    beta1, beta2 = h.betas
    power2 = integer_power(beta2, step)
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_inf - 2.0 * step * power2 / (1.0 - power2)
    rectified = 0.0
    if rho > 5.0:
        rectified = sqrt((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)) * sqrt(
            1.0 - power2
        )
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "eps": h.eps,
        "step_size": h.lr / (1.0 - integer_power(beta1, step)),
        "rectified": rectified,
        "keep": 1.0 - h.lr * h.weight_decay if h.decoupled_weight_decay else 1.0,
    }


def direction(h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    exp_avg[...] = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_avg_sq[...] = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g)

    if c.rectified == 0:
        return c.step_size * exp_avg
    return c.step_size * (exp_avg * c.rectified / (np.sqrt(exp_avg_sq) + c.eps))
