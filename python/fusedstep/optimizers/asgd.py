"""Stochastic gradient descent with the average of its iterates."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class ASGD(Optimizer):
    r"""Stochastic gradient descent with the average of its iterates.

    .. code-block:: text

        g ← g + weight_decay · p
        p ← (1 − lambd · η) · p − η · g
        a ← a + μ · (p − a)
        then, for the next step:  η ← lr / (1 + lambd · lr · t)^alpha,    μ ← 1 / max(1, t − t0)

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        lambd: Decay of the parameter and of η; finite, >= 0.
        alpha: Exponent of the decay of η; finite, >= 0.
        t0: When averaging starts; finite, >= 0.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.ASGD(p, lr=0.1, t0=0)
        >>> for _ in range(3):
        ...     report = opt.step(p.copy())
        >>> print(p.round(4), opt.state[0]["ax"].round(4))
        [ 0.729 -1.458] [ 0.7695 -1.539 ]

    Reference:
        Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 1992. The
        first step's η is lr, and μ is 1 until t > t0 + 1, as in PyTorch; the average is the state `ax`.
    """

    rule = "asgd"
    lr: LearningRate = 1e-2
    lambd: float = 1e-4
    alpha: float = 0.75
    t0: float = 1e6
    weight_decay: float = 0.0
