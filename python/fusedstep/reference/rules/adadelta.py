"""The equations of `fusedstep.Adadelta`, as in `cpp/rules/adadelta.h`."""

from typing import Any

import numpy as np

from fusedstep.reference.maths import Array


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    return {"lr": h.lr, "rho": h.rho, "one_minus_rho": 1.0 - h.rho, "eps": h.eps}


def direction(h: Any, c: Any, g: Array, p: Array, square_avg: Array, acc_delta: Array) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    square_avg[...] = c.rho * square_avg + c.one_minus_rho * (g * g)
    delta = np.sqrt((acc_delta + c.eps) / (square_avg + c.eps)) * g
    acc_delta[...] = c.rho * acc_delta + c.one_minus_rho * (delta * delta)
    return c.lr * delta
