"""The equations of `fusedstep.NAdam`, as in `cpp/rules/nadam.h`."""

from math import sqrt
from typing import Any

import numpy as np

from fusedstep.reference.maths import Array
from fusedstep.reference.power import integer_power, real_power

#: What states and scalars hold before the first step, where it is not 0.
starts = {"mu_product": 1.0}


def coefficients(h: Any, step: int, first: bool, scalars: Any) -> dict[str, float]:
    """The coefficients of a step, in double; updates the scalars."""
    beta1, beta2 = h.betas
    mu, mu_next = (beta1 * (1.0 - 0.5 * real_power(0.96, t * h.momentum_decay)) for t in (step, step + 1))
    scalars.mu_product = product = scalars.mu_product * mu
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "rsqrt_correction2": 1.0 / sqrt(1.0 - integer_power(beta2, step)),
        "eps": h.eps,
        "lr_grad": h.lr * (1.0 - mu) / (1.0 - product),
        "lr_exp_avg": h.lr * mu_next / (1.0 - product * mu_next),
        "keep": 1.0 - h.lr * h.weight_decay if h.decoupled_weight_decay else 1.0,
    }


def direction(h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    exp_avg[...] = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_avg_sq[...] = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g)

    return (c.lr_grad * g + c.lr_exp_avg * exp_avg) / (np.sqrt(exp_avg_sq) * c.rsqrt_correction2 + c.eps)
