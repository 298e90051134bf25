"""Adaptive Nesterov momentum."""

from fusedstep.optimizers.base import LearningRate, Optimizer


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
        betas: (β1, β2, β3), decay rates of m, q and n; in [0, 1).
        eps: Added to the root, outside the bias correction; finite, >= 0.
        weight_decay: Proximal: what the parameter shrinks by per step and unit of lr; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.Adan(p, lr=0.1)
        >>> report = opt.step(p.copy())
        >>> print(p.round(4))
        [ 0.9 -1.9]

    Reference:
        Xie, Zhou, Li, Lin and Yan, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
        TPAMI 2024, algorithm 1; here β is the part that is kept, and the bias corrections are those of the authors'
        code.
    """

    rule = "adan"
    lr: LearningRate = 1e-3
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
