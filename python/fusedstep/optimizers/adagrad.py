"""AdaGrad, with the sum or the mean of the squared gradients."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class Adagrad(Optimizer):
    r"""AdaGrad, with the sum or the mean of the squared gradients.

    .. code-block:: text

        g ← g + weight_decay · p
        s ← s + g²
        p ← p − lr / (1 + (t − 1) · lr_decay) · g / (√s + eps)          (mean: √(s / t) in place of √s)

    Row-sparse gradients need weight_decay = 0.

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        lr_decay: Divides lr by 1 + lr_decay · (t − 1) in the t-th step; finite, >= 0.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        initial_accumulator_value: First value of s; finite, >= 0.
        eps: Added to the root; finite, >= 0.
        accumulator: "sum", as published, or "mean": the root mean square of the gradients so far.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.Adagrad(p, lr=0.1)
        >>> for _ in range(4):
        ...     report = opt.step(np.ones(2, np.float32))  # steps of 0.1, 0.1/√2, 0.1/√3, 0.1/√4
        >>> print(p.round(4))
        [ 0.7216 -2.2784]

    Reference:
        Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR
        2011. The mean form with lr / √t is the sum form with lr.
    """

    rule = "adagrad"
    lr: LearningRate = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10
    accumulator: str = "sum"
