"""Equations over a whole step: clipping, what becomes of gradients before the rule, averages, telemetry."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fusedstep.reference.ranged import Ranged, root_of, total_of


class GradientNorm(NamedTuple):
    """The squares of all gradients, √squares / grad_scale, and the number of elements that are infinite or NaN."""

    squares: Ranged
    norm: float
    nonfinite: float


class TensorSums(NamedTuple):
    """The sums of a tensor for telemetry: Σ g², count of not finite g, Σ Δ², Σ p², Σ g m, Σ m².

    `moment_sign` is −1 where the first moment points against the gradient; `averages`, whether the tensor keeps one.
    """

    sums: Sequence[Ranged]
    moment_sign: float
    averages: bool


class Telemetry(NamedTuple):
    """The telemetry of a tensor, or of all."""

    grad_norm: float
    update_norm: float
    param_norm: float
    update_ratio: float | None
    grad_momentum_cosine: float | None
    nonfinite: float


def gradient_norm(squares: Sequence[Ranged], nonfinite: Sequence[float], grad_scale: float) -> GradientNorm:
    """The norm of all gradients together, divided by `grad_scale`."""
    total = total_of(squares)
    return GradientNorm(total, root_of(total, grad_scale), float(sum(nonfinite)))


def clip_coefficient(max_norm: float, gradient: GradientNorm, grad_scale: float) -> float:
    """min(1, max_norm / (norm + 1e-6)), as PyTorch has it; NaN where the norm is."""
    value, exponent = gradient.squares
    with np.errstate(all="ignore"):
        coefficient = np.float64(max_norm) / (gradient.norm + 1e-6)
        if np.isinf(gradient.norm) and np.isfinite(value):
            # The norm is beyond doubles, its root at the scale of the sum is not.
            coefficient = np.ldexp(max_norm / (np.sqrt(np.float64(value)) / grad_scale), -exponent // 2)
    return 1.0 if coefficient > 1.0 else float(coefficient)


def gradient_factor(maximize: bool, grad_scale: float, clip: float) -> float:
    """The factor of the gradient: the sign of `maximize`, unscaling and clipping in one."""
    with np.errstate(all="ignore"):
        return float(np.float64(-1.0 if maximize else 1.0) / grad_scale * clip)


def ema_decay(decay: float, warmup: bool, step: int) -> float:
    """The decay of a parameter's average in its t-th step: with warm-up, min(decay, (1 + t) / (10 + t))."""
    return min(decay, (1.0 + step) / (10.0 + step)) if warmup else decay


def telemetry_of(tensors: Sequence[TensorSums], grad_scale: float) -> tuple[Telemetry, list[Telemetry]]:
    """The telemetry of all tensors together, and of each."""
    signed = [[*t.sums[:4], (t.moment_sign * t.sums[4][0], t.sums[4][1]), t.sums[5]] for t in tensors]
    whole = [total_of([sums[k] for sums in signed]) for k in range(6)]
    averaged = total_of([t.sums[0] for t in tensors if t.averages])
    each = [telemetry_of_sums(t.sums, t.sums[0], grad_scale, t.moment_sign) for t in tensors]
    return telemetry_of_sums(whole, averaged, grad_scale, 1.0), each


def telemetry_of_sums(sums: Sequence[Ranged], averaged: Ranged, grad_scale: float, moment_sign: float) -> Telemetry:
    """Norms, ‖Δ‖ / ‖p‖ and g · m / (‖g‖ ‖m‖); `averaged` is Σ g² of the tensors that keep a first moment."""
    grad, (nonfinite, _), update, param, cross, moment = sums
    ratio, cosine = None, None
    with np.errstate(all="ignore"):
        if param[0] > 0.0:
            quotient = np.sqrt(np.float64(update[0])) / np.sqrt(np.float64(param[0]))
            ratio = float(np.ldexp(quotient, (update[1] - param[1]) // 2))
        norms = np.sqrt(np.float64(averaged[0])) * np.sqrt(np.float64(moment[0]))
        value = float(np.ldexp(moment_sign * cross[0] / norms, cross[1] - (averaged[1] + moment[1]) // 2))
        if norms > 0.0 and np.isfinite(value):
            cosine = max(-1.0, min(1.0, value))
    return Telemetry(root_of(grad, grad_scale), root_of(update), root_of(param), ratio, cosine, nonfinite)
