"""The equations of `fusedstep.SGD`, as in `cpp/rules/sgd.h`."""

from typing import Any

from fusedstep.reference.maths import Array


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    return {
        "lr": h.lr,
        "momentum": h.momentum,
        "gain": 1.0 if first else 1.0 - h.dampening,
    }


def direction(h: Any, c: Any, g: Array, p: Array, momentum_buffer: Array | None = None) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    if momentum_buffer is None:
        return c.lr * g
    momentum_buffer[...] = c.momentum * momentum_buffer + c.gain * g
    if h.nesterov:
        return c.lr * (g + c.momentum * momentum_buffer)
    return c.lr * momentum_buffer
