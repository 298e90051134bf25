"""The equations of `fusedstep.Prodigy`, as in `cpp/rules/prodigy.h`."""

from math import sqrt
from typing import Any

import numpy as np

from fusedstep.reference.maths import Array
from fusedstep.reference.power import integer_power

#: What states and scalars hold before the first step, where it is not 0.
starts = {"d": "d0", "d_max": "d0"}


def coefficients(h: Any, step: int, first: bool, scalars: Any) -> dict[str, float]:
    """The coefficients of a step, in double; updates the scalars."""
    beta1, beta2 = h.betas
    d, d_lr = scalars.d, scalars.d * rate(h, step)
    return {
        "beta1": beta1,
        "grad_weight": d * (1.0 - beta1),
        "beta2": beta2,
        "square_weight": d * d * (1.0 - beta2),
        "beta3": sqrt(beta2) if h.beta3 is None else h.beta3,
        "s_weight": d / h.d0 * (d if h.safeguard_warmup else d_lr),
        "step_size": d_lr,
        "keep": 1.0 - d_lr * h.weight_decay,
    }


def rate(h: Any, step: int) -> float:
    """The learning rate, bias correction included."""
    if not h.use_bias_correction:
        return float(h.lr)
    beta1, beta2 = h.betas
    return float(h.lr * sqrt(1.0 - integer_power(beta2, step)) / (1.0 - integer_power(beta1, step)))


def measure(
    h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array, s: Array, p0: Array
) -> list[tuple[Array, Array]]:
    """⟨g, p0 − p⟩ and ‖s‖₁, as pairs of factors."""
    return [(g, p0 - p), (np.abs(c.beta3 * s + c.s_weight * g), np.ones_like(p))]


def weigh(h: Any, step: int, shared: dict[str, float], sums: list[float]) -> None:
    """Makes the sums of one tensor what it adds to the totals."""
    sums[0] = shared["d"] / h.d0 * (shared["d"] * rate(h, step)) * sums[0]
    if h.lr == 0.0:
        sums[1] = 0.0


def share(h: Any, totals: list[float], shared: dict[str, float]) -> None:
    """Updates d, which all tensors share."""
    if not totals[1] > 0.0:
        return
    beta3 = sqrt(h.betas[1]) if h.beta3 is None else h.beta3
    shared["d_numerator"] = beta3 * shared["d_numerator"] + totals[0]
    d_hat = h.d_coef * shared["d_numerator"] / totals[1]
    d = shared["d"]
    if d == h.d0:
        d = max(d, d_hat)
    shared["d_max"] = max(shared["d_max"], d_hat)
    shared["d"] = min(shared["d_max"], d * h.growth_rate)


def settle(h: Any, sums: list[float], shared: dict[str, float]) -> dict[str, float]:
    """The coefficients that depend on the sums."""
    return {"eps": shared["d"] * h.eps}


def direction(h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array, s: Array, p0: Array) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    exp_avg[...] = c.beta1 * exp_avg + c.grad_weight * g
    exp_avg_sq[...] = c.beta2 * exp_avg_sq + c.square_weight * (g * g)
    s[...] = c.beta3 * s + c.s_weight * g
    return c.step_size * (exp_avg / (np.sqrt(exp_avg_sq) + c.eps))
