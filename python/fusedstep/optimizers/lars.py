"""Stochastic gradient descent with a rate per tensor in proportion to its norm, for large batches."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class LARS(Optimizer):
    r"""Stochastic gradient descent with a rate per tensor in proportion to its norm, for large batches.

    .. code-block:: text

        r = trust_coefficient · ‖p‖ / (‖g‖ + weight_decay · ‖p‖ + eps)      (1 where ‖p‖ or ‖g‖ is 0)
        g ← r · (g + weight_decay · p)
        b ← momentum · b + (1 − dampening) · g          (at the first step b ← g)
        p ← p − lr · b                                  (Nesterov: p − lr · (g + momentum · b))

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        momentum: Momentum factor: the decay rate of the buffer; finite, >= 0.
        dampening: Part of the gradient that the buffer leaves out.
        weight_decay: L2, scaled with the gradient; finite, >= 0.
        nesterov: Looks one step ahead; needs momentum > 0 and dampening = 0.
        trust_coefficient: Length of a tensor's step at lr = 1, in units of its norm; finite, >= 0.
        eps: Added to the norm of the gradient; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([3.0, -4.0], np.float32)  # of norm 5
        >>> opt = fs.LARS(p, trust_coefficient=0.1)
        >>> report = opt.step(100 * p)
        >>> print(p.round(4))
        [ 2.7 -3.6]

    Reference:
        You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017, algorithm 1; momentum as in
        `SGD`.
    """

    rule = "lars"
    lr: LearningRate = 1.0
    momentum: float = 0.9
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    trust_coefficient: float = 1e-3
    eps: float = 1e-8
