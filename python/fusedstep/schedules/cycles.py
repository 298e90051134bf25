"""Up and down: once, or again and again, or with a level stretch."""

import math
from dataclasses import dataclass
from typing import Literal

from fusedstep._common.arguments import choice, flag, number, whole
from fusedstep.schedules.base import Schedule, between, cosine_part


@dataclass(frozen=True, slots=True)
class one_cycle(Schedule):
    r"""Up from a fraction of the largest rate, then down far below it.

    .. code-block:: text

        lr = max_lr / div_factor,   final_lr = lr / final_div_factor
        two phases:    lr → max_lr → final_lr        at steps 0, r, total_steps − 1
        three phases:  lr → max_lr → lr → final_lr   at steps 0, r, 2 r, total_steps − 1
        r = pct_start · total_steps − 1,  which need not be whole

    The last step of the run, number total_steps − 1, has final_lr, as in PyTorch, and so have all later steps. Momentum
    is not cycled.

    Args:
        max_lr: The largest; finite, >= 0.
        total_steps: >= 2.
        pct_start: The part of the run in which the rate rises, in (0, 1), of more than one step; at most a half with
            three phases.
        div_factor: Finite, > 0.
        final_div_factor: Finite, > 0.
        anneal: "cos" or "linear".
        three_phase: Whether it goes down as it went up, and then farther.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range; another `anneal`.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.one_cycle(1.0, total_steps=101, pct_start=11 / 101, anneal="linear")
        >>> print(lr(0), lr(10), round(lr(100), 12), lr(1000) == lr(100))
        0.04 1.0 4e-06 True

    Reference:
        Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2019.
    """

    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: Literal["cos", "linear"] = "cos"
    three_phase: bool = False

    def __post_init__(self) -> None:
        self._set(
            max_lr=number(self.max_lr, "max_lr", least=0),
            total_steps=whole(self.total_steps, "total_steps", least=2),
            pct_start=number(self.pct_start, "pct_start", above=0, below=1),
            div_factor=number(self.div_factor, "div_factor", above=0),
            final_div_factor=number(self.final_div_factor, "final_div_factor", above=0),
            anneal=choice(self.anneal, "anneal", ("cos", "linear")),
            three_phase=flag(self.three_phase, "three_phase"),
        )
        if self.pct_start * self.total_steps <= 1:
            raise ValueError(
                f"pct_start: expected more than one step of {self.total_steps}, got {self.pct_start!r} of them"
            )
        if self.three_phase and self.pct_start > 0.5:
            raise ValueError(f"pct_start: expected at most 0.5 with three phases, got {self.pct_start!r}")

    def _at(self, step: int) -> float:
        lr = self.max_lr / self.div_factor
        peak, last = self.pct_start * self.total_steps - 1, self.total_steps - 1
        points = [(0.0, lr), (peak, self.max_lr), (float(last), lr / self.final_div_factor)]
        if self.three_phase:
            points.insert(2, (2 * peak, lr))
        at = min(step, last)
        k = next(k for k in range(1, len(points)) if at <= points[k][0])
        (begin, low), (end, high) = points[k - 1 : k + 1]
        part = (at - begin) / (end - begin)
        return between(low, high, cosine_part(part) if self.anneal == "cos" else part)

    def _length(self) -> int | None:
        return self.total_steps


@dataclass(frozen=True, slots=True)
class cyclic(Schedule):
    r"""Triangles, one after the other without end.

    .. code-block:: text

        c = ⌊t / (up + down)⌋,  u = t mod (up + down)
        h = u / up                  (u ≤ up)
        h = (up + down − u) / down  (beyond)
        triangular   η = lr + (max_lr − lr) · h
        triangular2  η = lr + (max_lr − lr) · h / 2ᶜ
        exp_range    η = lr + (max_lr − lr) · h · gammaᵗ

    Args:
        lr: The lowest; finite, >= 0.
        max_lr: The largest; finite, >= lr.
        step_size_up: Steps upwards, >= 1.
        step_size_down: Steps downwards, >= 1; None: as many as upwards.
        mode: "triangular", "triangular2" or "exp_range".
        gamma: In (0, 1]; for exp_range only.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range; another mode; gamma with another mode than exp_range.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.cyclic(0.0, 1.0, step_size_up=2, mode="triangular2")
        >>> [lr(step) for step in range(8)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25]

    Reference:
        Smith, "Cyclical Learning Rates for Training Neural Networks", 2017.
    """

    lr: float
    max_lr: float
    step_size_up: int
    step_size_down: int | None = None
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        self._set(
            lr=number(self.lr, "lr", least=0),
            max_lr=number(self.max_lr, "max_lr", least=0),
            step_size_up=whole(self.step_size_up, "step_size_up", least=1),
            mode=choice(self.mode, "mode", ("triangular", "triangular2", "exp_range")),
            gamma=number(self.gamma, "gamma", above=0),
        )
        if self.step_size_down is not None:
            self._set(step_size_down=whole(self.step_size_down, "step_size_down", least=1))
        if self.max_lr < self.lr:
            raise ValueError(f"max_lr: expected at least lr = {self.lr!r}, got {self.max_lr!r}")
        if self.gamma > 1:
            raise ValueError(f"gamma: expected at most 1, got {self.gamma!r}")
        if self.gamma != 1.0 and self.mode != "exp_range":
            raise ValueError(f"gamma: only for mode 'exp_range', got {self.gamma!r} with {self.mode!r}")

    def _at(self, step: int) -> float:
        up, down = self._sizes()
        cycle, at = divmod(step, up + down)
        height = at / up if at <= up else (up + down - at) / down
        if self.mode == "triangular2":
            height = math.ldexp(height, -cycle)
        elif self.mode == "exp_range":
            height *= self.gamma**step
        return between(self.lr, self.max_lr, height)

    def _sizes(self) -> tuple[int, int]:
        return self.step_size_up, self.step_size_up if self.step_size_down is None else self.step_size_down

    def _ends_cycle(self, taken: int) -> bool:
        return taken > 0 and taken % sum(self._sizes()) == 0


@dataclass(frozen=True, slots=True)
class cosine_warm_restarts(Schedule):
    r"""Half a cosine down, again and again without end.

    .. code-block:: text

        η = final_lr + (lr − final_lr) · (1 + cos(π u / T)) / 2
        u: steps since the last restart;  T = period · period_multᵏ in cycle k = 0, 1, …

    Args:
        lr: At every restart; finite, >= 0.
        period: Steps of the first cycle, >= 1.
        period_mult: How many times as long the next cycle is; a whole number >= 1.
        final_lr: The limit of a cycle, which it never quite reaches; finite, >= 0.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.cosine_warm_restarts(1.0, period=2, period_mult=2)
        >>> [round(lr(step), 3) for step in range(7)]
        [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]

    Reference:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    """

    lr: float
    period: int
    period_mult: int = 1
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        self._set(
            lr=number(self.lr, "lr", least=0),
            period=whole(self.period, "period", least=1),
            period_mult=whole(self.period_mult, "period_mult", least=1),
            final_lr=number(self.final_lr, "final_lr", least=0),
        )

    def _at(self, step: int) -> float:
        at, length = self._place(step)
        return between(self.lr, self.final_lr, cosine_part(at / length))

    def _place(self, step: int) -> tuple[int, int]:
        """Steps since the last restart, and the length of the cycle."""
        length = self.period
        if self.period_mult == 1:
            return step % length, length
        while step >= length:
            step -= length
            length *= self.period_mult
        return step, length

    def _ends_cycle(self, taken: int) -> bool:
        return taken > 0 and self._place(taken)[0] == 0


@dataclass(frozen=True, slots=True)
class warmup_stable_decay(Schedule):
    r"""Up along a line, level, and down at the end.

    .. code-block:: text

        η(t) = lr · t / warmup_steps                  (t < warmup_steps)
        η(t) = lr                                     (t ≤ total_steps − decay_steps)
        η(t) = lr + (final_lr − lr) · f(x)            (t ≤ total_steps; final_lr beyond)
        x = (t − (total_steps − decay_steps)) / decay_steps
        f(x) = x (linear),  (1 − cos πx) / 2 (cosine),  √x (sqrt)

    Args:
        lr: Of the level stretch; finite, >= 0.
        total_steps: When final_lr is reached, >= 1.
        warmup_steps: >= 0.
        decay_steps: >= 1; both together no more than total_steps.
        final_lr: Finite, >= 0.
        decay: "linear", "cosine" or "sqrt".

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range; warm-up and decay longer than the run; another `decay`.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.warmup_stable_decay(1.0, total_steps=100, warmup_steps=10, decay_steps=20)
        >>> print(lr(0), lr(5), lr(10), lr(80), lr(90), lr(100))
        0.0 0.5 1.0 1.0 0.5 0.0

    Reference:
        Hu et al., "MiniCPM", 2024; Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training
        Durations", 2024, for the root.
    """

    lr: float
    total_steps: int
    warmup_steps: int
    decay_steps: int
    final_lr: float = 0.0
    decay: Literal["linear", "cosine", "sqrt"] = "linear"

    def __post_init__(self) -> None:
        self._set(
            lr=number(self.lr, "lr", least=0),
            total_steps=whole(self.total_steps, "total_steps", least=1),
            warmup_steps=whole(self.warmup_steps, "warmup_steps"),
            decay_steps=whole(self.decay_steps, "decay_steps", least=1),
            final_lr=number(self.final_lr, "final_lr", least=0),
            decay=choice(self.decay, "decay", ("linear", "cosine", "sqrt")),
        )
        if self.warmup_steps + self.decay_steps > self.total_steps:
            raise ValueError(
                f"warmup_steps: expected with decay_steps at most total_steps = {self.total_steps}, "
                f"got {self.warmup_steps} + {self.decay_steps}"
            )

    def _at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.lr * (step / self.warmup_steps)
        start = self.total_steps - self.decay_steps
        part = min(max(step - start, 0) / self.decay_steps, 1.0)
        if self.decay != "linear":
            part = cosine_part(part) if self.decay == "cosine" else math.sqrt(part)
        return between(self.lr, self.final_lr, part)

    def _length(self) -> int | None:
        return self.total_steps
