"""The equations of `fusedstep.LARS`, as in `cpp/rules/lars.h`."""

from typing import Any

from fusedstep.reference.maths import Array

#: The sums are of squares, and their roots are what `settle` takes.
norms = True


def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
    """The coefficients of a step, in double."""
    return {
        "lr": h.lr,
        "momentum": h.momentum,
        "gain": 1.0 if first else 1.0 - h.dampening,
        "weight_decay": h.weight_decay,
    }


def measure(h: Any, c: Any, g: Array, p: Array, momentum_buffer: Array | None = None) -> list[tuple[Array, Array]]:
    """‖p‖² and ‖g‖², as pairs of factors."""
    return [(p, p), (g, g)]


def settle(h: Any, norms: list[float], shared: dict[str, float]) -> dict[str, float]:
    """The coefficients that depend on the norms."""
    p_norm, g_norm = norms
    ratio = 1.0
    if p_norm > 0.0 and g_norm > 0.0:
        ratio = h.trust_coefficient * p_norm / (g_norm + h.weight_decay * p_norm + h.eps)
    return {"ratio": ratio}


def direction(h: Any, c: Any, g: Array, p: Array, momentum_buffer: Array | None = None) -> Array:
    """What the step subtracts from the parameter; updates the states."""
    scaled = c.ratio * (g + c.weight_decay * p)
    if momentum_buffer is None:
        return c.lr * scaled
    momentum_buffer[...] = c.momentum * momentum_buffer + c.gain * scaled
    if h.nesterov:
        return c.lr * (scaled + c.momentum * momentum_buffer)
    return c.lr * momentum_buffer
