"""Adam with Nesterov's momentum, on a schedule."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class NAdam(Optimizer):
    r"""Adam with Nesterov's momentum, on a schedule.

    .. code-block:: text

        g ← g + weight_decay · p                        (decoupled: p ← (1 − lr · weight_decay) · p)
        μ = β1 · (1 − ½ · 0.96^(t · momentum_decay)),   μ' the same at t + 1,   Π ← Π · μ
        m ← β1 · m + (1 − β1) · g
        v ← β2 · v + (1 − β2) · g²
        p ← p − lr · ((1 − μ) / (1 − Π) · g + μ' / (1 − Π · μ') · m) / (√v̂ + eps),    v̂ = v / (1 − β2ᵗ)

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2), decay rates of the first and second moment; in [0, 1).
        eps: Added to the root, outside the bias correction; finite, >= 0.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        momentum_decay: How fast the momentum's schedule approaches β1; finite, >= 0.
        decoupled_weight_decay: Decays the parameter, as AdamW does, instead of adding to the gradient.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.NAdam(p, lr=0.1)
        >>> for _ in range(20):
        ...     report = opt.step(p.copy())
        >>> print((abs(p) < [0.5, 1.0]).all(), round(opt.state[0]["mu_product"], 6))
        True 0.0

    Reference:
        Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop; as in PyTorch, m is averaged with β1.
    """

    rule = "nadam"
    lr: LearningRate = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum_decay: float = 4e-3
    decoupled_weight_decay: bool = False
