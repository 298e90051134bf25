"""The equations of `fusedstep.Adafactor`, as in `cpp/rules/adafactor.h`."""

from math import sqrt
from typing import Any

import numpy as np

from fusedstep.reference.maths import Array, blend, root_mean_square
from fusedstep.reference.power import real_power


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    return {
        "rate": min(h.lr, 1.0 / sqrt(step)),
        "one_minus_beta2": real_power(step, h.beta2_decay),
        "keep": 1.0 - h.lr * h.weight_decay,
    }


def direction(
    h: Any,
    c: Any,
    g: Array,
    p: Array,
    row_var: Array | None = None,
    col_var: Array | None = None,
    variance: Array | None = None,
) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    dtype = p.dtype.type
    if not p.size:
        return p  # it has no means
    eps1 = float(np.finfo(p.dtype).eps) if h.eps[0] is None else h.eps[0]
    alpha = max(h.eps[1], root_mean_square(p)) * float(c.rate)
    square = g * g
    if variance is not None:
        variance[...] = blend(variance, square, c.one_minus_beta2)
        v = variance
    else:
        assert row_var is not None
        assert col_var is not None
        row_var[...] = blend(
            row_var, square.mean(axis=-1, keepdims=True, dtype=np.float64).astype(dtype), c.one_minus_beta2
        )
        col_var[...] = blend(
            col_var, square.mean(axis=-2, keepdims=True, dtype=np.float64).astype(dtype), c.one_minus_beta2
        )
        mean = row_var.mean(axis=-2, keepdims=True, dtype=np.float64).astype(dtype)
        v = row_var * col_var / np.maximum(mean, dtype(eps1))
    u = g / np.sqrt(np.maximum(v, dtype(eps1 * eps1)))
    return dtype(alpha / max(1.0, root_mean_square(u) / h.d)) * u
