"""The equations of `fusedstep.RMSprop`, as in `cpp/rules/rmsprop.h`."""

from typing import Any

import numpy as np

from fusedstep.reference.maths import Array


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    return {"lr": h.lr, "alpha": h.alpha, "one_minus_alpha": 1.0 - h.alpha, "eps": h.eps, "momentum": h.momentum}


def direction(
    h: Any,
    c: Any,
    g: Array,
    p: Array,
    square_avg: Array,
    momentum_buffer: Array | None = None,
    grad_avg: Array | None = None,
) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    square_avg[...] = c.alpha * square_avg + c.one_minus_alpha * (g * g)
    variance = square_avg
    if grad_avg is not None:
        grad_avg[...] = c.alpha * grad_avg + c.one_minus_alpha * g
        variance = square_avg - grad_avg * grad_avg
        variance = np.where(variance < 0, np.zeros_like(variance), variance)
    scaled = g / (np.sqrt(variance) + c.eps)
    if momentum_buffer is not None:
        momentum_buffer[...] = c.momentum * momentum_buffer + scaled
        scaled = momentum_buffer
    return c.lr * scaled
