"""A step, stage by stage."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def run(rule: str, tensors: list[tuple[Any, ...]]) -> None:
    """One step of `rule` for every tensor, in place."""
    from fusedstep.optimizers import REGISTRY  # the rules import their reference maths from this package

    optimizer: Any = REGISTRY[rule]
    for p, grad, states, ema, hypers, step, first, grad_factor, decay, ema_decay in tensors:
        dtype = p.dtype.type
        h = SimpleNamespace(**hypers)
        # In double, narrowed once.
        coefficients = optimizer.coefficients(h, step, first)
        c = SimpleNamespace(**{name: dtype(value) for name, value in coefficients.items()})
        with np.errstate(all="ignore"):
            g = gradient_stage(grad, p, grad_factor, decay)
            optimizer.update(h, c, g, p, *states)
            if ema is not None:
                ema[...] = dtype(ema_decay) * ema + dtype(1.0 - ema_decay) * p


def gradient_stage(g: Array, p: Array, factor: float, decay: float) -> Array:
    """Unscaling and the sign of maximize in one factor, then coupled L2; what is off leaves no trace."""
    dtype = p.dtype.type
    if factor != 1.0:
        g = dtype(factor) * g
    if decay != 0.0:
        g = g + dtype(decay) * p
    return g
