"""The equations of `fusedstep.LAMB`, as in `cpp/rules/lamb.h`."""

from math import sqrt
from typing import Any

import numpy as np

from fusedstep.reference.maths import Array
from fusedstep.reference.power import integer_power

#: The sums are of squares, and their roots are what `settle` takes.
norms = True


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    beta1, beta2 = h.betas
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "inv_correction1": 1.0 / (1.0 - integer_power(beta1, step)),
        "rsqrt_correction2": 1.0 / sqrt(1.0 - integer_power(beta2, step)),
        "eps": h.eps,
        "weight_decay": h.weight_decay,
    }


def adapted(c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array) -> Array:
    """The u of the equations; updates the states."""
    exp_avg[...] = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_avg_sq[...] = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g)
    u: Array = exp_avg * c.inv_correction1 / (np.sqrt(exp_avg_sq) * c.rsqrt_correction2 + c.eps) + c.weight_decay * p
    return u


def measure(h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array) -> list[tuple[Array, Array]]:
    """‖p‖² and ‖u‖², as pairs of factors; the states are copies, and may change."""
    u = adapted(c, g, p, exp_avg, exp_avg_sq)
    return [(p, p), (u, u)]


def settle(h: Any, norms: list[float], shared: dict[str, float]) -> dict[str, float]:
    """The coefficients that depend on the norms."""
    ratio = norms[0] / norms[1] if norms[0] > 0.0 and norms[1] > 0.0 else 1.0
    return {"step_size": h.lr * ratio}


def direction(h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    return c.step_size * adapted(c, g, p, exp_avg, exp_avg_sq)
