"""Adaptive Nesterov momentum."""

from math import sqrt
from typing import Any, ClassVar, Unpack

import numpy as np

from fusedstep.optimizers._base import Array, LearningRate, Optimizer, Options
from fusedstep.reference.power import integer_power


class Adan(Optimizer):
    r"""Adaptive Nesterov momentum.

    .. code-block:: text

        Δ = g − g₋₁                                     (0 at the first step)
        m ← β1 · m + (1 − β1) · g,    q ← β2 · q + (1 − β2) · Δ
        n ← β3 · n + (1 − β3) · (g + β2 · Δ)²
        p ← (p − (lr · m̂ + lr · β2 · q̂) / (√n̂ + eps)) / (1 + lr · weight_decay)
        m̂ = m / (1 − β1ᵗ),  q̂ = q / (1 − β2ᵗ),  n̂ = n / (1 − β3ᵗ)

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2, β3), what is kept of m, q and n; in [0, 1).
        eps: Added to the root, outside the bias correction; finite, >= 0.
        weight_decay: Proximal: what the parameter shrinks by per step and unit of lr; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Raises:
        TypeError: A parameter that is no float32 or float64 array; a hyper-parameter that is no number.
        ValueError: A hyper-parameter out of range; parameters that overlap, are read-only or not dense.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.Adan(p, lr=0.1)
        >>> report = opt.step(p.copy())
        >>> print(p.round(4))
        [ 0.9 -1.9]

    Reference:
        Xie, Zhou, Li, Lin and Yan, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
        TPAMI 2024, algorithm 1; β is what is kept, and the bias corrections are those of the authors' code.
    """

    rule: ClassVar[str] = "adan"

    def __init__(
        self,
        params: Any,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
            },
            options,
        )

    @staticmethod
    def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
        """What depends on the step alone, in double."""
        beta1, beta2, beta3 = h.betas
        return {
            "beta1": beta1,
            "rest1": 1.0 - beta1,
            "beta2": beta2,
            "rest2": 1.0 - beta2,
            "beta3": beta3,
            "rest3": 1.0 - beta3,
            "to_n_hat": 1.0 / sqrt(1.0 - integer_power(beta3, step)),
            "eps": h.eps,
            "of_avg": h.lr / (1.0 - integer_power(beta1, step)),
            "of_diff": h.lr * beta2 / (1.0 - integer_power(beta2, step)),
            "shrink": 1.0 / (1.0 + h.lr * h.weight_decay),
            "seen": 0.0 if first else 1.0,
        }

    @staticmethod
    def update(
        h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_diff: Array, exp_avg_sq: Array, pre_grad: Array
    ) -> None:
        """The equations in place, on arrays."""
        diff = g - pre_grad if c.seen else np.zeros_like(g)
        ahead = g + c.beta2 * diff
        exp_avg[...] = c.beta1 * exp_avg + c.rest1 * g
        exp_avg_diff[...] = c.beta2 * exp_avg_diff + c.rest2 * diff
        exp_avg_sq[...] = c.beta3 * exp_avg_sq + c.rest3 * (ahead * ahead)
        pre_grad[...] = g
        scale = np.sqrt(exp_avg_sq) * c.to_n_hat + c.eps
        p[...] = c.shrink * (p - (c.of_avg * exp_avg + c.of_diff * exp_avg_diff) / scale)
