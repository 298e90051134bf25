"""Adam that converges with any β2."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class ADOPT(Optimizer):
    r"""Adam that converges with any β2.

    .. code-block:: text

        g ← g + weight_decay · p                        (decoupled: p ← (1 − lr · weight_decay) · p)
        t = 1: v ← g², and nothing else moves
        n = clip(g / max(√v, eps), ±(t − 1)^¼)
        m ← m + (1 − β1) · (n − m)
        p ← p − lr · m
        v ← β2 · v + (1 − β2) · g²

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2), decay rates of the first and second moment; in [0, 1).
        eps: Smallest root that is divided by; finite, > 0.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        decoupled_weight_decay: Decays the parameter, as AdamW does, instead of adding to the gradient.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.ADOPT(p, lr=0.1, betas=(0.0, 0.9999))
        >>> for _ in range(2):
        ...     report = opt.step(p.copy())
        >>> print(p.round(4))
        [ 0.9 -1.9]

    Reference:
        Taniguchi, Harada, Minegishi, Oshima, Jeong, Nagahara, Iiyama, Suzuki, Iwasawa and Matsuo, "ADOPT: Modified Adam
        Can Converge with Any β2 with the Optimal Rate", NeurIPS 2024, algorithm 2.
    """

    rule = "adopt"
    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.9999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
