"""Resilient backpropagation: steps by the signs of the gradient, for full batches."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class Rprop(Optimizer):
    r"""Resilient backpropagation: steps by the signs of the gradient, for full batches.

    .. code-block:: text

        a = g · g₋₁
        s ← clip(s · (etas[1] where a > 0, etas[0] where a < 0, else 1), step_sizes)
        g ← 0 where a < 0
        p ← p − sign(g) · s

    Args:
        params: What to update, see `Optimizer`.
        lr: First value of the steps s; finite, >= 0. A later lr changes only new states. A schedule resets the states
            in every step at which its rate has risen: s is the rate during a warm-up, and adapts after it. While the
            rate stays or falls, the schedule changes nothing. (PyTorch's steps begin with the rate of the first step,
            whatever follows.)
        etas: How s shrinks and grows; less than 1, more than 1.
        step_sizes: Smallest and largest s; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.Rprop(p, lr=0.1)
        >>> for _ in range(3):
        ...     report = opt.step(p.copy())  # steps of 0.1, 0.12, 0.144
        >>> print(p.round(4))
        [ 0.636 -1.636]

    Reference:
        Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm", ICNN
        1993, in the variant without weight-backtracking (iRprop−, Igel and Hüsken 2000).
    """

    rule = "rprop"
    lr: LearningRate = 1e-2
    etas: tuple[float, float] = (0.5, 1.2)
    step_sizes: tuple[float, float] = (1e-6, 50.0)
