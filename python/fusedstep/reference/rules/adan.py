"""The equations of `fusedstep.Adan`, as in `cpp/rules/adan.h`."""

from math import sqrt
from typing import Any

import numpy as np

from fusedstep.reference.maths import Array
from fusedstep.reference.power import integer_power


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    beta1, beta2, beta3 = h.betas
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "beta3": beta3,
        "one_minus_beta3": 1.0 - beta3,
        "rsqrt_correction3": 1.0 / sqrt(1.0 - integer_power(beta3, step)),
        "eps": h.eps,
        "lr_avg": h.lr / (1.0 - integer_power(beta1, step)),
        "lr_diff": h.lr * beta2 / (1.0 - integer_power(beta2, step)),
        "shrink": 1.0 / (1.0 + h.lr * h.weight_decay),
        "seen": 0.0 if first else 1.0,
    }


def update(
    h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_diff: Array, exp_avg_sq: Array, pre_grad: Array
) -> None:
    """Updates the parameter and the states."""
    diff = g - pre_grad if c.seen else np.zeros_like(g)
    ahead = g + c.beta2 * diff
    exp_avg[...] = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_avg_diff[...] = c.beta2 * exp_avg_diff + c.one_minus_beta2 * diff
    exp_avg_sq[...] = c.beta3 * exp_avg_sq + c.one_minus_beta3 * (ahead * ahead)
    pre_grad[...] = g
    scale = np.sqrt(exp_avg_sq) * c.rsqrt_correction3 + c.eps
    p[...] = c.shrink * (p - (c.lr_avg * exp_avg + c.lr_diff * exp_avg_diff) / scale)
