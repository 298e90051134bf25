"""Adam with Nesterov's momentum, on a schedule."""

from math import sqrt
from typing import Any, ClassVar, Unpack

import numpy as np

from fusedstep.optimizers._base import Array, LearningRate, Optimizer, Options
from fusedstep.reference.power import integer_power, real_power


class NAdam(Optimizer):
    r"""Adam with Nesterov's momentum, on a schedule.

    .. code-block:: text

        g ← g + weight_decay · p                        (decoupled: p ← (1 − lr · weight_decay) · p)
        μ = β1 · (1 − ½ · 0.96^(t · momentum_decay)),   μ' the same at t + 1,   Π ← Π · μ
        m ← β1 · m + (1 − β1) · g
        v ← β2 · v + (1 − β2) · g²
        p ← p − lr · ((1 − μ) / (1 − Π) · g + μ' / (1 − Π · μ') · m) / (√v̂ + eps),    v̂ = v / (1 − β2ᵗ)

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2), what is kept of the first and second moment; in [0, 1).
        eps: Added to the root, outside the bias correction; finite, >= 0.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        momentum_decay: How fast the momentum's schedule approaches β1; finite, >= 0.
        decoupled_weight_decay: Decays the parameter, as AdamW does, instead of adding to the gradient.
        **options: What every optimizer takes, see `Options`.

    Raises:
        TypeError: A parameter that is no float32 or float64 array; a hyper-parameter that is no number.
        ValueError: A hyper-parameter out of range; parameters that overlap, are read-only or not dense.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.NAdam(p, lr=0.1)
        >>> for _ in range(20):
        ...     report = opt.step(p.copy())
        >>> print((abs(p) < [0.5, 1.0]).all(), round(opt.state[0]["mu_product"], 6))
        True 0.0

    Reference:
        Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop; as in PyTorch, m is averaged with β1.
    """

    rule: ClassVar[str] = "nadam"

    def __init__(
        self,
        params: Any,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum_decay": momentum_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
            },
            options,
        )

    @staticmethod
    def coefficients(h: Any, step: int, first: bool, scalars: Any) -> dict[str, float]:
        """What depends on the step alone, in double; moves the scalars on."""
        beta1, beta2 = h.betas
        mu, mu_next = (beta1 * (1.0 - 0.5 * real_power(0.96, t * h.momentum_decay)) for t in (step, step + 1))
        scalars.mu_product = product = scalars.mu_product * mu
        return {
            "beta1": beta1,
            "rest1": 1.0 - beta1,
            "beta2": beta2,
            "rest2": 1.0 - beta2,
            "to_v_hat": 1.0 / sqrt(1.0 - integer_power(beta2, step)),
            "eps": h.eps,
            "of_grad": h.lr * (1.0 - mu) / (1.0 - product),
            "of_exp_avg": h.lr * mu_next / (1.0 - product * mu_next),
            "keep": 1.0 - h.lr * h.weight_decay if h.decoupled_weight_decay else 1.0,
        }

    @staticmethod
    def direction(h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array) -> Array:
        """What is taken off the parameter; the states move on."""
        exp_avg[...] = c.beta1 * exp_avg + c.rest1 * g
        exp_avg_sq[...] = c.beta2 * exp_avg_sq + c.rest2 * (g * g)

        return (c.of_grad * g + c.of_exp_avg * exp_avg) / (np.sqrt(exp_avg_sq) * c.to_v_hat + c.eps)
