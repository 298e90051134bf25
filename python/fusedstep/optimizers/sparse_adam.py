"""Adam on the rows that have a gradient."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class SparseAdam(Optimizer):
    r"""Adam on the rows that have a gradient.

    .. code-block:: text

        for the rows of the gradient:
        m ← β1 · m + (1 − β1) · g
        v ← β2 · v + (1 − β2) · g²
        p ← p − lr · √(1 − β2ᵗ) / (1 − β1ᵗ) · m / (√v + eps)

    Gradients must be `RowSparse`: the averages of the other rows, and the rows, stay as they are.

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2), decay rates of the first and second moment; in [0, 1).
        eps: Added to the root, inside the bias correction; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> table = np.ones((1000, 2), np.float32)
        >>> opt = fs.SparseAdam(table, lr=0.1)
        >>> report = opt.step(fs.RowSparse([7], np.ones((1, 2), np.float32), table.shape))
        >>> print(table[6:9].round(4).tolist())
        [[1.0, 1.0], [0.8999999761581421, 0.8999999761581421], [1.0, 1.0]]

    Reference:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1; lazily, as PyTorch's
        SparseAdam.
    """

    rule = "sparse_adam"
    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
