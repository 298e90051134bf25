"""Adafactor: the second moment of a matrix as a row and a column."""

from math import sqrt
from typing import Any, ClassVar, Unpack

import numpy as np

from fusedstep.optimizers._base import Array, LearningRate, Optimizer, Options
from fusedstep.reference.maths import blend, root_mean_square
from fusedstep.reference.power import real_power


class Adafactor(Optimizer):
    r"""Adafactor: the second moment of a matrix as a row and a column.

    .. code-block:: text

        ρ = min(lr, 1/√t),    α = max(eps[1], RMS(p)) · ρ,    w = 1 − t^beta2_decay
        p ← (1 − lr · weight_decay) · p
        matrix:  R ← w · R + (1 − w) · row means of g²,    C ← w · C + (1 − w) · column means of g²
                 v = R C / max(mean(R), eps[0])
        vector:  v ← w · v + (1 − w) · g²
        u = g / √max(v, eps[0]²)
        p ← p − α · u / max(1, RMS(u) / d)

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        beta2_decay: Power of the step that the averages move by; <= 0.
        eps: (ε1, ε2): what the root of v is at least (None: the resolution of the dtype), and the scale of p; finite,
            >= 0.
        d: What the root mean square of u is clipped to; finite, > 0.
        weight_decay: Decoupled: what the parameter shrinks by per step and unit of lr; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Raises:
        TypeError: A parameter that is no float32 or float64 array; a hyper-parameter that is no number.
        ValueError: A hyper-parameter out of range; parameters that overlap, are read-only or not dense.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.ones((200, 300), np.float32)
        >>> opt = fs.Adafactor(p)
        >>> report = opt.step(p.copy())
        >>> print(p[0, 0].round(4), opt.state[0]["row_var"].shape, opt.state[0]["col_var"].shape)
        0.99 (200, 1) (1, 300)

    Reference:
        Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018, algorithms 4 and
        5, in PyTorch's form. Its means are NumPy's, in double and rounded once, on every instruction set. An eps[0]
        whose square vanishes in the dtype divides by 0 where a gradient always was, as PyTorch's.
    """

    rule: ClassVar[str] = "adafactor"

    def __init__(
        self,
        params: Any,
        lr: LearningRate = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "beta2_decay": beta2_decay,
                "eps": eps,
                "d": d,
                "weight_decay": weight_decay,
            },
            options,
        )

    @staticmethod
    def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
        """What depends on the step alone, in double."""
        return {
            "rate": min(h.lr, 1.0 / sqrt(step)),
            "rest": real_power(step, h.beta2_decay),
            "keep": 1.0 - h.lr * h.weight_decay,
        }

    @staticmethod
    def direction(
        h: Any,
        c: Any,
        g: Array,
        p: Array,
        row_var: Array | None = None,
        col_var: Array | None = None,
        variance: Array | None = None,
    ) -> Array:
        """What is taken off the parameter; the states move on."""
        dtype = p.dtype.type
        if not p.size:
            return p  # it has no means
        eps1 = float(np.finfo(p.dtype).eps) if h.eps[0] is None else h.eps[0]
        alpha = max(h.eps[1], root_mean_square(p)) * float(c.rate)
        square = g * g
        if variance is not None:
            variance[...] = blend(variance, square, c.rest)
            v = variance
        else:
            assert row_var is not None
            assert col_var is not None
            row_var[...] = blend(row_var, square.mean(axis=-1, keepdims=True, dtype=np.float64).astype(dtype), c.rest)
            col_var[...] = blend(col_var, square.mean(axis=-2, keepdims=True, dtype=np.float64).astype(dtype), c.rest)
            mean = row_var.mean(axis=-2, keepdims=True, dtype=np.float64).astype(dtype)
            v = row_var * col_var / np.maximum(mean, dtype(eps1))
        u = g / np.sqrt(np.maximum(v, dtype(eps1 * eps1)))
        return dtype(alpha / max(1.0, root_mean_square(u) / h.d)) * u
