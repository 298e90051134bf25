"""The equations of `fusedstep.AdEMAMix`, as in `cpp/rules/ademamix.h`."""

from math import sqrt
from typing import Any

import numpy as np

from fusedstep.reference.maths import Array, blend
from fusedstep.reference.power import integer_power, real_exp, real_log


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    beta1, beta2, beta3 = h.betas
    alpha = h.alpha
    if h.t_alpha is not None and step < h.t_alpha:
        alpha = step * h.alpha / h.t_alpha
    if h.t_beta3 is not None and step < h.t_beta3:
        part, log1, log3 = step / h.t_beta3, real_log(beta1), real_log(beta3)
        beta3 = min(real_exp(log1 * log3 / ((1.0 - part) * log3 + part * log1)), beta3)
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "one_minus_beta3": 1.0 - beta3,
        "alpha": alpha,
        "inv_correction1": 1.0 / (1.0 - integer_power(beta1, step)),
        "rsqrt_correction2": 1.0 / sqrt(1.0 - integer_power(beta2, step)),
        "eps": h.eps,
        "lr": h.lr,
        "keep": 1.0 - h.lr * h.weight_decay,
    }


def direction(h: Any, c: Any, g: Array, p: Array, exp_avg_fast: Array, exp_avg_sq: Array, exp_avg_slow: Array) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    exp_avg_fast[...] = c.beta1 * exp_avg_fast + c.one_minus_beta1 * g
    exp_avg_sq[...] = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g)
    exp_avg_slow[...] = blend(exp_avg_slow, g, c.one_minus_beta3)
    mixed = exp_avg_fast * c.inv_correction1 + c.alpha * exp_avg_slow
    return c.lr * (mixed / (np.sqrt(exp_avg_sq) * c.rsqrt_correction2 + c.eps))
