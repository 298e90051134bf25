"""Adam that finds its learning rate: lr only scales it."""

from fusedstep.optimizers.base import LearningRate, Optimizer


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
        betas: (β1, β2), decay rates of the first and second moment; in [0, 1).
        beta3: Decay rate of N and s; None: √β2.
        eps: Added to the root; finite, >= 0.
        weight_decay: Decoupled weight decay; finite, >= 0.
        use_bias_correction: Corrects m and v as Adam does.
        safeguard_warmup: Leaves lr out of s, for schedules that warm up.
        d0: The first d; finite, > 0.
        d_coef: Scales the estimate of d; finite, > 0.
        growth_rate: How much d may grow in a step; >= 1.
        **options: What every optimizer takes, see `Options`.

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
        in the authors' code, except that a step without any gradient moves averages and counters too. d, the largest d̂
        and N are the same for all parameters, and are kept in the groups; the first estimate beyond d0 is taken at
        once.
    """

    rule = "prodigy"
    lr: LearningRate = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    beta3: float | None = None
    eps: float = 1e-8
    weight_decay: float = 0.0
    use_bias_correction: bool = False
    safeguard_warmup: bool = False
    d0: float = 1e-6
    d_coef: float = 1.0
    growth_rate: float = float("inf")
