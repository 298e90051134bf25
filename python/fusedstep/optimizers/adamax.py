"""Adam with the infinity norm."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class Adamax(Optimizer):
    r"""Adam with the infinity norm.

    .. code-block:: text

        g ← g + weight_decay · p
        m ← β1 · m + (1 − β1) · g
        u ← max(β2 · u, |g| + eps)
        p ← p − lr / (1 − β1ᵗ) · m / u

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2), decay rates of the first moment and of the norm; in [0, 1).
        eps: Added to |g|, so that u is not 0; finite, >= 0.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.Adamax(p, lr=0.1)
        >>> report = opt.step(p.copy())
        >>> print(p.round(4), report.lr)
        [ 0.9 -1.9] 0.1

    Reference:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 2; the eps is PyTorch's.
    """

    rule = "adamax"
    lr: LearningRate = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
