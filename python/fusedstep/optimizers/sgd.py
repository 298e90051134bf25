"""Stochastic gradient descent with momentum, in PyTorch's convention."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class SGD(Optimizer):
    r"""Stochastic gradient descent with momentum, in PyTorch's convention.

    .. code-block:: text

        g ← g + weight_decay · p
        b ← momentum · b + (1 − dampening) · g      (at the first step b ← g)
        p ← p − lr · b                              (Nesterov: p − lr · (g + momentum · b))

    Without momentum there is no b, and p ← p − lr · g. Row-sparse gradients need momentum = 0 and weight_decay = 0.

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        momentum: Momentum factor: the decay rate of the buffer; finite, >= 0.
        dampening: Part of the gradient that the buffer leaves out.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        nesterov: Looks one step ahead; needs momentum > 0 and dampening = 0.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.SGD(p, lr=0.1, momentum=0.9)
        >>> for _ in range(3):
        ...     report = opt.step(p.copy())  # the gradient of |p|²/2 is p
        >>> print(p.round(4), report.step)
        [ 0.486 -0.972] 3

    Reference:
        Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning",
        ICML 2013. There, and in `Momentum`, lr is inside the velocity; the two differ when lr changes.
    """

    rule = "sgd"
    lr: LearningRate = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
