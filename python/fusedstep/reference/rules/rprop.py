"""The equations of `fusedstep.Rprop`, as in `cpp/rules/rprop.h`."""

from typing import Any

import numpy as np

from fusedstep.reference.maths import Array, sign

#: What states and scalars hold before the first step, where it is not 0.
starts = {"step_size": "lr"}


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    return {
        "eta_minus": h.etas[0],
        "eta_plus": h.etas[1],
        "step_min": h.step_sizes[0],
        "step_max": h.step_sizes[1],
    }


def direction(h: Any, c: Any, g: Array, p: Array, prev: Array, step_size: Array) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    agreement = g * prev
    factor = np.where(agreement > 0, c.eta_plus, np.where(agreement < 0, c.eta_minus, p.dtype.type(1)))
    step_size[...] = np.minimum(np.maximum(step_size * factor, c.step_min), c.step_max)
    prev[...] = np.where(agreement < 0, p.dtype.type(0), g)
    return sign(prev) * step_size
