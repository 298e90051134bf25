"""The equations of `fusedstep.ScheduleFreeAdamW`, as in `cpp/rules/schedule_free_adamw.h`."""

from math import sqrt
from typing import Any

import numpy as np

from fusedstep.reference.maths import Array, blend
from fusedstep.reference.power import integer_power, real_power


def coefficients(h: Any, step: int, first: bool, scalars: Any) -> dict[str, float]:
    """The coefficients of a step, in double; updates the scalars."""
    beta1, beta2 = h.betas
    lr = h.lr * (step / h.warmup_steps) if step < h.warmup_steps else h.lr
    scalars.lr_max = max(lr, scalars.lr_max)
    weight = real_power(step, h.r) * real_power(scalars.lr_max, h.weight_lr_power)
    scalars.weight_sum = scalars.weight_sum + weight
    part = weight / scalars.weight_sum if scalars.weight_sum > 0.0 else 0.0
    return {
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "rsqrt_correction2": 1.0 / sqrt(1.0 - integer_power(beta2, step)),
        "eps": h.eps,
        "weight_decay": h.weight_decay,
        "weight": part,
        "step_y": lr * (1.0 - beta1 * (1.0 - part)),
        "step_z": lr,
    }


def update(h: Any, c: Any, g: Array, p: Array, z: Array, exp_avg_sq: Array) -> None:
    """Updates the parameter and the states."""
    exp_avg_sq[...] = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g)
    u = g / (np.sqrt(exp_avg_sq) * c.rsqrt_correction2 + c.eps) + c.weight_decay * p
    p[...] = blend(p, z, c.weight) - c.step_y * u
    z[...] = z - c.step_z * u
