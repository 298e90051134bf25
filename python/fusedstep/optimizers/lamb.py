"""Adam with a step per tensor in proportion to its norm, for large batches."""

from math import sqrt
from typing import Any, ClassVar, Unpack

import numpy as np

from fusedstep.optimizers._base import Array, LearningRate, Optimizer, Options
from fusedstep.reference.power import integer_power


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
        betas: (β1, β2), what is kept of the first and second moment; in [0, 1).
        eps: Added to the root, outside the bias correction; finite, >= 0.
        weight_decay: Added to u; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Raises:
        TypeError: A parameter that is no float32 or float64 array; a hyper-parameter that is no number.
        ValueError: A hyper-parameter out of range; parameters that overlap, are read-only or not dense.

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

    rule: ClassVar[str] = "lamb"
    norms: ClassVar[bool] = True

    def __init__(
        self,
        params: Any,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
            },
            options,
        )

    @staticmethod
    def coefficients(h: Any, step: int, first: bool) -> dict[str, float]:
        """What depends on the step alone, in double."""
        beta1, beta2 = h.betas
        return {
            "beta1": beta1,
            "rest1": 1.0 - beta1,
            "beta2": beta2,
            "rest2": 1.0 - beta2,
            "to_m_hat": 1.0 / (1.0 - integer_power(beta1, step)),
            "to_v_hat": 1.0 / sqrt(1.0 - integer_power(beta2, step)),
            "eps": h.eps,
            "weight_decay": h.weight_decay,
        }

    @staticmethod
    def adapted(c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array) -> Array:
        """The u of the equations; the states move on."""
        exp_avg[...] = c.beta1 * exp_avg + c.rest1 * g
        exp_avg_sq[...] = c.beta2 * exp_avg_sq + c.rest2 * (g * g)
        u: Array = exp_avg * c.to_m_hat / (np.sqrt(exp_avg_sq) * c.to_v_hat + c.eps) + c.weight_decay * p
        return u

    @staticmethod
    def measure(h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array) -> list[tuple[Array, Array]]:
        """‖p‖² and ‖u‖², as factors of their terms; may write into the states, which are copies."""
        u = LAMB.adapted(c, g, p, exp_avg, exp_avg_sq)
        return [(p, p), (u, u)]

    @staticmethod
    def settle(h: Any, norms: list[float], shared: dict[str, float]) -> dict[str, float]:
        """The coefficients that wait for the norms."""
        ratio = norms[0] / norms[1] if norms[0] > 0.0 and norms[1] > 0.0 else 1.0
        return {"step_size": h.lr * ratio}

    @staticmethod
    def direction(h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array) -> Array:
        """What is taken off the parameter; the states move on."""
        return c.step_size * LAMB.adapted(c, g, p, exp_avg, exp_avg_sq)
