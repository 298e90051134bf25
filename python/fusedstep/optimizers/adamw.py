"""Adam with decoupled weight decay."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class AdamW(Optimizer):
    r"""Adam with decoupled weight decay.

    .. code-block:: text

        p ← (1 − lr · weight_decay) · p
        m ← β1 · m + (1 − β1) · g
        v ← β2 · v + (1 − β2) · g²
        p ← p − lr · m̂ / (√v̂ + eps),    m̂ = m / (1 − β1ᵗ),  v̂ = v / (1 − β2ᵗ)
        amsgrad: w ← max(w, v), and w in place of v in v̂

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2), decay rates of the first and second moment; in [0, 1).
        eps: Added to the root, outside the bias correction; finite, >= 0.
        weight_decay: What the parameter shrinks by per step and unit of lr; finite, >= 0.
        amsgrad: Divides by the largest second moment so far.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> params = {"w": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
        >>> opt = fs.AdamW(params, lr=0.1, weight_decay=0.0)
        >>> report = opt.step({"w": np.full((2, 2), 3.0, np.float32), "b": None})
        >>> print(params["w"][0].round(4), params["b"], report.step)
        [0.9 0.9] [0. 0.] 1

    Reference:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2, where the paper's
        schedule multiplier is folded into lr, as PyTorch does.
    """

    rule = "adamw"
    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    amsgrad: bool = False
