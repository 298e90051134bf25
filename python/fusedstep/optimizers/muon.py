"""Momentum, orthogonalized: for the weight matrices of hidden layers."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class Muon(Optimizer):
    r"""Momentum, orthogonalized: for the weight matrices of hidden layers.

    .. code-block:: text

        b ← b + (1 − momentum) · (g − b)
        X = b                                           (Nesterov: g + momentum · (b − g))
        X ← X / max(‖X‖, eps)
        ns_steps times:  A = X Xᵀ,  X ← a · X + (b · A + c · A²) X          with ns_coefficients (a, b, c)
        p ← (1 − lr · weight_decay) · p
        p ← p − lr · √max(1, rows / columns) · X        (match_rms_adamw: 0.2 · √max(rows, columns))

    Args:
        params: The matrices to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        weight_decay: Decoupled: what the parameter shrinks by per step and unit of lr; finite, >= 0.
        momentum: Momentum factor: the decay rate of the buffer; in [0, 1).
        nesterov: Mixes the gradient into the buffer once more.
        ns_coefficients: (a, b, c) of the Newton–Schulz iteration.
        eps: Smallest norm that is divided by; finite, >= 0.
        ns_steps: Iterations; a whole number >= 0.
        adjust_lr_fn: "original" (None is the same) or "match_rms_adamw", see above.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.zeros((2, 3), np.float32)
        >>> opt = fs.Muon(p, lr=1.0)
        >>> report = opt.step(np.array([[3, 0, 0], [0, 0.5, 0]], np.float32))
        >>> print((abs(np.linalg.svd(p)[1] - 1) < 0.4).all())  # singular values near 1
        True

    Reference:
        Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein, "Muon: An optimizer for hidden layers in neural
        networks", 2024. Its matrix products are NumPy's, in the dtype of the parameter (PyTorch's in bfloat16), and so
        their last bits are those of its BLAS.
    """

    rule = "muon"
    lr: LearningRate = 1e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    eps: float = 1e-7
    ns_steps: int = 5
    adjust_lr_fn: str | None = None
