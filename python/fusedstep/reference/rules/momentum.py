"""The equations of `fusedstep.Momentum`, as in `cpp/rules/momentum.h`."""

from typing import Any

from fusedstep.reference.maths import Array


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    return {"lr": h.lr, "momentum": h.momentum, "one_plus_momentum": 1.0 + h.momentum}


def update(h: Any, c: Any, g: Array, p: Array, velocity: Array) -> None:
    """Updates the parameter and the states."""
    before = velocity.copy()
    velocity[...] = c.momentum * velocity - c.lr * g
    if h.nesterov:
        p[...] = p - c.momentum * before + c.one_plus_momentum * velocity
    else:
        p[...] = p + velocity
