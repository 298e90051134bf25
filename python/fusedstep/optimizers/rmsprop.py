"""RMSProp, centred or not, with or without momentum."""

from typing import Any, ClassVar, Unpack

import numpy as np

from fusedstep.optimizers._base import Array, LearningRate, Optimizer, Options


class RMSprop(Optimizer):
    r"""RMSProp, centred or not, with or without momentum.

    .. code-block:: text

        g ← g + weight_decay · p
        σ² ← alpha · σ² + (1 − alpha) · g²
        centred: a ← alpha · a + (1 − alpha) · g, and σ² − a² in place of σ² below, not less than 0
        p ← p − lr · g / (σ + eps)
        with momentum: b ← momentum · b + g / (σ + eps),  p ← p − lr · b

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        alpha: What is kept of the averages; in [0, 1).
        eps: Added to the root; finite, >= 0.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        momentum: What is kept of the buffer; finite, >= 0.
        centered: Divides by the deviation of the gradient, not by its root mean square.
        **options: What every optimizer takes, see `Options`.

    Raises:
        TypeError: A parameter that is no float32 or float64 array; a hyper-parameter that is no number.
        ValueError: A hyper-parameter out of range; parameters that overlap, are read-only or not dense.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.RMSprop(p, lr=0.01)
        >>> report = opt.step(p.copy())  # the first step is lr · g / (0.1 |g|)
        >>> print(p.round(4), report.lr)
        [ 0.9 -1.9] 0.01

    Reference:
        Tieleman and Hinton, "Lecture 6.5: RMSProp", Coursera 2012; centred after Graves, "Generating Sequences With
        Recurrent Neural Networks", 2013. PyTorch's centred variance may be negative by rounding, and NaN its root; here
        it is at least 0.
    """

    rule: ClassVar[str] = "rmsprop"

    def __init__(
        self,
        params: Any,
        lr: LearningRate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
            },
            options,
        )

    @staticmethod
    def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
        """What depends on the step alone, in double."""
        return {"lr": h.lr, "alpha": h.alpha, "rest": 1.0 - h.alpha, "eps": h.eps, "momentum": h.momentum}

    @staticmethod
    def direction(
        h: Any,
        c: Any,
        g: Array,
        p: Array,
        square_avg: Array,
        momentum_buffer: Array | None = None,
        grad_avg: Array | None = None,
    ) -> Array:
        """What is taken off the parameter; the states move on."""
        square_avg[...] = c.alpha * square_avg + c.rest * (g * g)
        variance = square_avg
        if grad_avg is not None:
            grad_avg[...] = c.alpha * grad_avg + c.rest * g
            variance = square_avg - grad_avg * grad_avg
            variance = np.where(variance < 0, np.zeros_like(variance), variance)
        scaled = g / (np.sqrt(variance) + c.eps)
        if momentum_buffer is not None:
            momentum_buffer[...] = c.momentum * momentum_buffer + scaled
            scaled = momentum_buffer
        return c.lr * scaled
