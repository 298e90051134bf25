"""AdamW with a second, far slower average of the gradients."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class AdEMAMix(Optimizer):
    r"""AdamW with a second, far slower average of the gradients.

    .. code-block:: text

        p ← (1 − lr · weight_decay) · p
        m1 ← β1 · m1 + (1 − β1) · g,    v ← β2 · v + (1 − β2) · g²,    m2 ← β3 · m2 + (1 − β3) · g
        p ← p − lr · (m1 / (1 − β1ᵗ) + alpha · m2) / (√(v / (1 − β2ᵗ)) + eps)
        with t_alpha:  min(t / t_alpha, 1) · alpha in place of alpha
        with t_beta3:  min(exp(ln β1 ln β3 / ((1 − t / t_beta3) ln β3 + t / t_beta3 ln β1)), β3) in place of β3

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2, β3), decay rates of m1, v and m2; in [0, 1).
        alpha: Weight of the slow average; finite, >= 0.
        eps: Added to the root, outside the bias correction; finite, >= 0.
        weight_decay: Decoupled: what the parameter shrinks by per step and unit of lr; finite, >= 0.
        t_alpha: Steps over which alpha rises from 0; None: it is constant.
        t_beta3: Steps over which β3 rises from β1; None: it is constant.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.AdEMAMix(p, lr=0.1, alpha=5.0, t_alpha=1000)
        >>> report = opt.step(p.copy())
        >>> print(p.round(4))
        [ 0.9 -1.9]

    Reference:
        Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", ICLR 2025, algorithm 1.
    """

    rule = "ademamix"
    lr: LearningRate = 1e-3
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999)
    alpha: float = 2.0
    eps: float = 1e-8
    weight_decay: float = 0.0
    t_alpha: int | None = None
    t_beta3: int | None = None
