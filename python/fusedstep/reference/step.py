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
    with np.errstate(all="ignore"):
        # All before the first write, as the native sets do.
        prepared = [prepare(optimizer, *tensor) for tensor in tensors]
        for h, c, p, grad, states, ema, grad_factor, decay, ema_decay in prepared:
            g = gradient_stage(grad, p, grad_factor, decay)
            optimizer.update(h, c, g, p, **states)
            if ema is not None:
                dtype = p.dtype.type
                ema[...] = dtype(ema_decay) * ema + dtype(1.0 - ema_decay) * p


def prepare(
    optimizer: Any,
    p: Array,
    grad: Array,
    states: dict[str, Array],
    ema: Array | None,
    hypers: dict[str, Any],
    step: int,
    first: bool,
    grad_factor: float,
    decay: float,
    ema_decay: float,
) -> tuple[Any, ...]:
    """The coefficients, in double and narrowed once; and plain arrays, for a subclass may redefine arithmetic."""
    h = SimpleNamespace(**hypers)
    coefficients = optimizer.coefficients(h, step, first)
    c = SimpleNamespace(**{name: p.dtype.type(value) for name, value in coefficients.items()})
    plain = {name: np.asarray(state) for name, state in states.items()}
    average = None if ema is None else np.asarray(ema)
    return h, c, np.asarray(p), np.asarray(grad), plain, average, grad_factor, decay, ema_decay


def gradient_stage(g: Array, p: Array, factor: float, decay: float) -> Array:
    """Unscaling and the sign of maximize in one factor, then coupled L2; what is off leaves no trace."""
    dtype = p.dtype.type
    if factor != 1.0:
        g = dtype(factor) * g
    if decay != 0.0:
        g = g + dtype(decay) * p
    return g
