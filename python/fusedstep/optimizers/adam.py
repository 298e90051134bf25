"""Adam, with L2 regularization coupled to the gradient."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class Adam(Optimizer):
    r"""Adam, with L2 regularization coupled to the gradient.

    .. code-block:: text

        g ← g + weight_decay · p                        (decoupled: p ← (1 − lr · weight_decay) · p)
        m ← β1 · m + (1 − β1) · g
        v ← β2 · v + (1 − β2) · g²
        p ← p − lr · m̂ / (√v̂ + eps),    m̂ = m / (1 − β1ᵗ),  v̂ = v / (1 − β2ᵗ)
        amsgrad: w ← max(w, v), and w in place of v in v̂

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2), decay rates of the first and second moment; in [0, 1).
        eps: Added to the root, outside the bias correction; finite, >= 0.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        amsgrad: Divides by the largest second moment so far.
        decoupled_weight_decay: Decays the parameter, as AdamW does, instead of adding to the gradient.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.Adam(p, lr=0.1)
        >>> report = opt.step(p.copy())
        >>> print(p.round(4), report.lr)
        [ 0.9 -1.9] 0.1

    Reference:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1. AMSGrad: Reddi, Kale and
        Kumar, "On the Convergence of Adam and Beyond", ICLR 2018, algorithm 2; here, as in PyTorch, with Adam's bias
        corrections.
    """

    rule = "adam"
    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    decoupled_weight_decay: bool = False
