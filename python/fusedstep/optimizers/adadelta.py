"""ADADELTA: steps in the units of the parameters."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class Adadelta(Optimizer):
    r"""ADADELTA: steps in the units of the parameters.

    .. code-block:: text

        g ← g + weight_decay · p
        v ← rho · v + (1 − rho) · g²
        Δ = √((u + eps) / (v + eps)) · g
        u ← rho · u + (1 − rho) · Δ²
        p ← p − lr · Δ

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        rho: Decay rate of both averages; in [0, 1).
        eps: Added inside both roots; finite, >= 0.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.Adadelta(p)
        >>> for _ in range(100):
        ...     report = opt.step(p.copy())
        >>> print((abs(p) < [0.9, 1.9]).all(), report.lr)
        True 1.0

    Reference:
        Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012, algorithm 1, where lr is 1.
    """

    rule = "adadelta"
    lr: LearningRate = 1.0
    rho: float = 0.9
    eps: float = 1e-6
    weight_decay: float = 0.0
