"""The equations of `fusedstep.Adagrad`, as in `cpp/rules/adagrad.h`."""

from typing import Any

import numpy as np

from fusedstep.reference.maths import Array

#: What states and scalars hold before the first step, where it is not 0.
starts = {"sum": "initial_accumulator_value"}


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    return {"lr": h.lr / (1.0 + (step - 1) * h.lr_decay), "eps": h.eps, "inv_step": 1.0 / step}


def direction(h: Any, c: Any, g: Array, p: Array, sum: Array) -> Array:  # noqa: A002
    """What the step subtracts from the parameter; updates the states."""
    sum[...] = sum + g * g
    if h.accumulator == "mean":
        return c.lr * (g / (np.sqrt(sum * c.inv_step) + c.eps))
    return c.lr * (g / (np.sqrt(sum) + c.eps))
