"""The equations of `fusedstep.Muon`, as in `cpp/rules/muon.h`."""

from math import sqrt
from typing import Any

import numpy as np

from fusedstep.reference.maths import Array, blend, norm_parts


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    return {"rest": 1.0 - h.momentum, "momentum": h.momentum, "keep": 1.0 - h.lr * h.weight_decay}


def direction(h: Any, c: Any, g: Array, p: Array, momentum_buffer: Array) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    momentum_buffer[...] = blend(momentum_buffer, g, c.rest)
    x = blend(g, momentum_buffer, c.momentum) if h.nesterov else momentum_buffer
    rows, columns = p.shape
    if h.adjust_lr_fn == "match_rms_adamw":
        adjusted = 0.2 * sqrt(max(rows, columns))
    else:
        adjusted = sqrt(max(1.0, rows / columns)) if columns else 1.0
    return p.dtype.type(h.lr * adjusted) * orthogonalized(x, h.ns_coefficients, int(h.ns_steps), h.eps)


def orthogonalized(x: Array, coefficients: tuple[float, float, float], steps: int, eps: float) -> Array:
    """U Vᵀ of the singular value decomposition U S Vᵀ of x, nearly, by Newton–Schulz iterations."""
    dtype = x.dtype.type
    a, b, c = (dtype(value) for value in coefficients)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    root, exponent = norm_parts(x)
    if exponent > 0 or float(np.ldexp(root, exponent)) > eps:
        x = np.ldexp(x, -exponent) / dtype(root) if exponent else x / dtype(root)
    else:
        x = x / dtype(eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x
