"""Adam that finds its learning rate: lr only scales it."""

from math import sqrt
from typing import Any, ClassVar, Unpack

import numpy as np

from fusedstep.optimizers._base import Array, LearningRate, Optimizer, Options
from fusedstep.reference.power import integer_power


class Prodigy(Optimizer):
    r"""Adam that finds its learning rate: lr only scales it.

    .. code-block:: text

        η = d · lr                                      (use_bias_correction: · √(1 − β2ᵗ) / (1 − β1ᵗ))
        N ← β3 · N + (d / d0) · η · ⟨g, p0 − p⟩,    s ← β3 · s + (d / d0) · η · g       (safeguard_warmup: d for η in s)
        m ← β1 · m + (1 − β1) · d · g,    v ← β2 · v + (1 − β2) · d² · g²
        d̂ = d_coef · N / ‖s‖₁,    d' = min(largest d̂ so far, growth_rate · d), at least d0
        p ← (1 − η · weight_decay) · p − η · m / (√v + d' · eps)

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2), what is kept of the first and second moment; in [0, 1).
        beta3: What is kept of N and s; None: √β2.
        eps: Added to the root; finite, >= 0.
        weight_decay: Decoupled; finite, >= 0.
        use_bias_correction: Corrects m and v as Adam does.
        safeguard_warmup: Leaves lr out of s, for schedules that warm up.
        d0: The first d; finite, > 0.
        d_coef: Scales the estimate of d; finite, > 0.
        growth_rate: How much d may grow in a step; >= 1.
        **options: What every optimizer takes, see `Options`.

    Raises:
        TypeError: A parameter that is no float32 or float64 array; a hyper-parameter that is no number.
        ValueError: A hyper-parameter out of range; parameters that overlap, are read-only or not dense.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.Prodigy(p)
        >>> for _ in range(200):
        ...     report = opt.step(p.copy())
        >>> print((abs(p) < 0.5).all(), opt.param_groups[0]["d"] > 1e-3)
        True True

    Reference:
        Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", ICML 2024, algorithm 4, as
        in the authors' code, but that a step without any gradient moves averages and counters too. d, the largest d̂
        and N are the same for all parameters and stand in the groups; the first estimate beyond d0 is taken at once.
    """

    rule: ClassVar[str] = "prodigy"

    def __init__(
        self,
        params: Any,
        lr: LearningRate = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = float("inf"),
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "beta3": beta3,
                "eps": eps,
                "weight_decay": weight_decay,
                "use_bias_correction": use_bias_correction,
                "safeguard_warmup": safeguard_warmup,
                "d0": d0,
                "d_coef": d_coef,
                "growth_rate": growth_rate,
            },
            options,
        )

    @staticmethod
    def coefficients(h: Any, step: int, first: bool, scalars: Any) -> dict[str, float]:
        """What depends on the step alone, in double; moves the scalars on."""
        beta1, beta2 = h.betas
        d, d_lr = scalars.d, scalars.d * Prodigy.rate(h, step)
        return {
            "beta1": beta1,
            "of_g": d * (1.0 - beta1),
            "beta2": beta2,
            "of_square": d * d * (1.0 - beta2),
            "beta3": sqrt(beta2) if h.beta3 is None else h.beta3,
            "to_s": d / h.d0 * (d if h.safeguard_warmup else d_lr),
            "step_size": d_lr,
            "keep": 1.0 - d_lr * h.weight_decay,
        }

    @staticmethod
    def rate(h: Any, step: int) -> float:
        """The learning rate, bias correction included."""
        if not h.use_bias_correction:
            return float(h.lr)
        beta1, beta2 = h.betas
        return float(h.lr * sqrt(1.0 - integer_power(beta2, step)) / (1.0 - integer_power(beta1, step)))

    @staticmethod
    def measure(
        h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array, s: Array, p0: Array
    ) -> list[tuple[Array, Array]]:
        """⟨g, p0 − p⟩ and ‖s‖₁, as factors of their terms."""
        return [(g, p0 - p), (np.abs(c.beta3 * s + c.to_s * g), np.ones_like(p))]

    @staticmethod
    def weigh(h: Any, step: int, shared: dict[str, float], sums: list[float]) -> None:
        """What the sums of one tensor count for in the total."""
        sums[0] = shared["d"] / h.d0 * (shared["d"] * Prodigy.rate(h, step)) * sums[0]
        if h.lr == 0.0:
            sums[1] = 0.0

    @staticmethod
    def share(h: Any, totals: list[float], shared: dict[str, float]) -> None:
        """Moves d on, for all tensors."""
        if not totals[1] > 0.0:
            return
        beta3 = sqrt(h.betas[1]) if h.beta3 is None else h.beta3
        shared["d_numerator"] = beta3 * shared["d_numerator"] + totals[0]
        d_hat = h.d_coef * shared["d_numerator"] / totals[1]
        d = shared["d"]
        if d == h.d0:
            d = max(d, d_hat)
        shared["d_max"] = max(shared["d_max"], d_hat)
        shared["d"] = min(shared["d_max"], d * h.growth_rate)

    @staticmethod
    def settle(h: Any, sums: list[float], shared: dict[str, float]) -> dict[str, float]:
        """The coefficients that wait for the sums."""
        return {"eps": shared["d"] * h.eps}

    @staticmethod
    def direction(h: Any, c: Any, g: Array, p: Array, exp_avg: Array, exp_avg_sq: Array, s: Array, p0: Array) -> Array:
        """What is taken off the parameter; the states move on."""
        exp_avg[...] = c.beta1 * exp_avg + c.of_g * g
        exp_avg_sq[...] = c.beta2 * exp_avg_sq + c.of_square * (g * g)
        s[...] = c.beta3 * s + c.to_s * g
        return c.step_size * (exp_avg / (np.sqrt(exp_avg_sq) + c.eps))
