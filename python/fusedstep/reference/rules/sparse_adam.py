"""The equations of `fusedstep.SparseAdam`, as in `cpp/rules/sparse_adam.h`."""

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
        "step_size": h.lr * sqrt(1.0 - integer_power(beta2, step)) / (1.0 - integer_power(beta1, step)),
        "eps": h.eps,
    }


def direction(h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    exp_avg[...] = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_avg_sq[...] = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g)

    return c.step_size * (exp_avg / (np.sqrt(exp_avg_sq) + c.eps))
