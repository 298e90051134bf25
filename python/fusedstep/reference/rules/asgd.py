"""The equations of `fusedstep.ASGD`, as in `cpp/rules/asgd.h`."""

from typing import Any

from fusedstep.reference.maths import Array, blend
from fusedstep.reference.power import real_power

#: What states and scalars hold before the first step, where it is not 0.
starts = {"eta": "lr", "mu": 1.0}


def coefficients(h: Any, step: int, first: bool, scalars: Any) -> dict[str, float]:
    """The coefficients of a step, in double; updates the scalars."""
    eta, mu = scalars.eta, scalars.mu
    scalars.eta = h.lr / real_power(1.0 + h.lambd * h.lr * step, h.alpha)
    scalars.mu = 1.0 / max(1.0, step - h.t0)
    return {"shrink": 1.0 - h.lambd * eta, "eta": eta, "mu": mu}


def update(h: Any, c: Any, g: Array, p: Array, ax: Array) -> None:
    """Updates the parameter and the states."""
    p[...] = c.shrink * p - c.eta * g
    ax[...] = p if c.mu == 1 else blend(ax, p, c.mu)
