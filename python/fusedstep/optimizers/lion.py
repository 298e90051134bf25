"""Lion: steps by the sign of an interpolated momentum."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class Lion(Optimizer):
    r"""Lion: steps by the sign of an interpolated momentum.

    .. code-block:: text

        p ← (1 − lr · weight_decay) · p
        p ← p − lr · sign(β1 · m + (1 − β1) · g)        (the sign of 0 is 0)
        m ← β2 · m + (1 − β2) · g

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2), decay rates of m in the step and in m itself; in [0, 1).
        weight_decay: Decoupled: what the parameter shrinks by per step and unit of lr; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0, 0.0], np.float32)
        >>> opt = fs.Lion(p, lr=0.1)
        >>> report = opt.step(p.copy())
        >>> print(p.round(4))
        [ 0.9 -1.9  0. ]

    Reference:
        Chen, Liang, Huang, Real, Wang, Liu, Pham, Dong, Luong, Hsieh, Lu and Le, "Symbolic Discovery of Optimization
        Algorithms", NeurIPS 2023, program 1.
    """

    rule = "lion"
    lr: LearningRate = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
