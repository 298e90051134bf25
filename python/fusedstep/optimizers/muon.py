"""Momentum, orthogonalized: for the weight matrices of hidden layers."""

from math import sqrt
from typing import Any, ClassVar, Unpack

import numpy as np

from fusedstep.optimizers._base import Array, LearningRate, Optimizer, Options
from fusedstep.reference.maths import blend, norm_parts


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
        momentum: What is kept of the buffer; in [0, 1).
        nesterov: Mixes the gradient into the buffer once more.
        ns_coefficients: Of the Newton–Schulz iteration.
        eps: What the norm is at least; finite, >= 0.
        ns_steps: Iterations; a whole number >= 0.
        adjust_lr_fn: "original" (None is the same) or "match_rms_adamw", see above.
        **options: What every optimizer takes, see `Options`.

    Raises:
        TypeError: A parameter that is no float32 or float64 array; a hyper-parameter that is no number.
        ValueError: A hyper-parameter out of range; parameters that overlap, are read-only or not dense.

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

    rule: ClassVar[str] = "muon"

    def __init__(
        self,
        params: Any,
        lr: LearningRate = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "ns_coefficients": ns_coefficients,
                "eps": eps,
                "ns_steps": ns_steps,
                "adjust_lr_fn": adjust_lr_fn,
            },
            options,
        )

    @staticmethod
    def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
        """What depends on the step alone, in double."""
        return {"rest": 1.0 - h.momentum, "momentum": h.momentum, "keep": 1.0 - h.lr * h.weight_decay}

    @staticmethod
    def direction(h: Any, c: Any, g: Array, p: Array, momentum_buffer: Array) -> Array:
        """What is taken off the parameter; the states move on."""
        momentum_buffer[...] = blend(momentum_buffer, g, c.rest)
        x = blend(g, momentum_buffer, c.momentum) if h.nesterov else momentum_buffer
        rows, columns = p.shape
        if h.adjust_lr_fn == "match_rms_adamw":
            adjusted = 0.2 * sqrt(max(rows, columns))
        else:
            adjusted = sqrt(max(1.0, rows / columns)) if columns else 1.0
        return p.dtype.type(h.lr * adjusted) * Muon.orthogonalized(x, h.ns_coefficients, int(h.ns_steps), h.eps)

    @staticmethod
    def orthogonalized(x: Array, coefficients: tuple[float, float, float], steps: int, eps: float) -> Array:
        """U Vᵀ of the singular value decomposition U S Vᵀ of x, nearly, by Newton–Schulz iterations."""
        dtype = x.dtype.type
        a, b, c = (dtype(value) for value in coefficients)
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        root, exponent = norm_parts(x)
        if exponent > 0 or float(np.ldexp(root, exponent)) > eps:
            x = np.ldexp(x, -exponent) / dtype(root) if exponent else x / dtype(root)
        else:
            x = x / dtype(eps)
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        return x.T if tall else x
