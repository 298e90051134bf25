"""The equations of `fusedstep.ADOPT`, as in `cpp/rules/adopt.h`."""

from math import sqrt
from typing import Any

import numpy as np

from fusedstep.reference.maths import Array, blend


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    beta1, beta2 = h.betas
    starts = first or step == 1
    return {
        "lr": h.lr,
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": 0.0 if starts else beta2,
        "one_minus_beta2": 1.0 if starts else 1.0 - beta2,
        "eps": h.eps,
        "clip": 0.0 if starts else sqrt(sqrt(step - 1)),
        "keep": 1.0 - h.lr * h.weight_decay if h.decoupled_weight_decay and not starts else 1.0,
    }


def direction(h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    normed = np.minimum(np.maximum(g / np.maximum(np.sqrt(exp_avg_sq), c.eps), -c.clip), c.clip)
    exp_avg_sq[...] = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g)
    if c.clip == 0:
        return np.zeros_like(p)
    exp_avg[...] = blend(exp_avg, normed, c.one_minus_beta1)
    return c.lr * exp_avg
