"""The equations of `fusedstep.Adamax`, as in `cpp/rules/adamax.h`."""

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
        "eps": h.eps,
        "step_size": h.lr / (1.0 - integer_power(beta1, step)),
    }


def direction(h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_inf: Array) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    exp_avg[...] = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_inf[...] = np.maximum(c.beta2 * exp_inf, np.abs(g) + c.eps)
    return c.step_size * (exp_avg / exp_inf)
