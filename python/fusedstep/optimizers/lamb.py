"""Adam with a step per tensor in proportion to its norm, for large batches."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class LAMB(Optimizer):
    r"""Adam with a step per tensor in proportion to its norm, for large batches.

    .. code-block:: text

        m ← β1 · m + (1 − β1) · g
        v ← β2 · v + (1 − β2) · g²
        u = m̂ / (√v̂ + eps) + weight_decay · p,    m̂ = m / (1 − β1ᵗ),  v̂ = v / (1 − β2ᵗ)
        p ← p − lr · ‖p‖ / ‖u‖ · u                  (lr · u where a norm is 0)

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2), decay rates of the first and second moment; in [0, 1).
        eps: Added to the root, outside the bias correction; finite, >= 0.
        weight_decay: Added to u; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([3.0, -4.0], np.float32)  # of norm 5
        >>> opt = fs.LAMB(p, lr=0.1, weight_decay=0.0)
        >>> report = opt.step(p.copy())
        >>> print(p.round(4))  # 0.5 / √2 less
        [ 2.6464 -3.6464]

    Reference:
        You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer and Hsieh, "Large Batch Optimization for Deep
        Learning: Training BERT in 76 minutes", ICLR 2020, algorithm 2, with φ the identity.
    """

    rule = "lamb"
    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.01
