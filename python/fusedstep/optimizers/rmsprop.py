"""RMSProp, centred or not, with or without momentum."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class RMSprop(Optimizer):
    r"""RMSProp, centred or not, with or without momentum.

    .. code-block:: text

        g ← g + weight_decay · p
        σ² ← alpha · σ² + (1 − alpha) · g²
        centred: a ← alpha · a + (1 − alpha) · g, and σ² − a² in place of σ² below, not less than 0
        p ← p − lr · g / (σ + eps)
        with momentum: b ← momentum · b + g / (σ + eps),  p ← p − lr · b

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        alpha: Decay rate of the averages; in [0, 1).
        eps: Added to the root; finite, >= 0.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        momentum: Momentum factor: the decay rate of the buffer; finite, >= 0.
        centered: Divides by the deviation of the gradient, not by its root mean square.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.RMSprop(p, lr=0.01)
        >>> report = opt.step(p.copy())  # the first step is lr · g / (0.1 |g|)
        >>> print(p.round(4), report.lr)
        [ 0.9 -1.9] 0.01

    Reference:
        Tieleman and Hinton, "Lecture 6.5: RMSProp", Coursera 2012; centred after Graves, "Generating Sequences With
        Recurrent Neural Networks", 2013. In PyTorch, rounding may make the centred variance negative and its root NaN;
        here it is at least 0.
    """

    rule = "rmsprop"
    lr: LearningRate = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
