"""Adam with a rectified variance of its learning rate."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class RAdam(Optimizer):
    r"""Adam with a rectified variance of its learning rate.

    .. code-block:: text

        g ← g + weight_decay · p                        (decoupled: p ← (1 − lr · weight_decay) · p)
        m ← β1 · m + (1 − β1) · g
        v ← β2 · v + (1 − β2) · g²
        ρ∞ = 2 / (1 − β2) − 1,    ρ = ρ∞ − 2t · β2ᵗ / (1 − β2ᵗ)
        r = √((ρ − 4)(ρ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρ))
        p ← p − lr · m̂ · r · √(1 − β2ᵗ) / (√v + eps)    where ρ > 5, else p − lr · m̂;    m̂ = m / (1 − β1ᵗ)

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2), decay rates of the first and second moment; in [0, 1).
        eps: Added to the root, inside the bias correction; finite, >= 0.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        decoupled_weight_decay: Decays the parameter, as AdamW does, instead of adding to the gradient.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.RAdam(p, lr=0.1)
        >>> report = opt.step(p.copy())  # the first steps are momentum alone
        >>> print(p.round(4), report.lr)
        [ 0.9 -1.8] 0.1

    Reference:
        Liu, Jiang, He, Chen, Liu, Gao and Han, "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020,
        algorithm 2, which rectifies for ρ > 4; here, as in PyTorch, for ρ > 5.
    """

    rule = "radam"
    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
