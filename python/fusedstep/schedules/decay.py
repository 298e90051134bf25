"""From a learning rate downwards."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from fusedstep._common.arguments import number, rising, whole
from fusedstep.schedules.base import Schedule, between, cosine_part, decayed


@dataclass(frozen=True, slots=True)
class constant(Schedule):
    r"""The same at every step.

    .. code-block:: text

        η(t) = lr

    Args:
        lr: Finite, >= 0.

    Raises:
        TypeError: Something that is no number.
        ValueError: lr is out of range.

    Examples:
        >>> from fusedstep import schedules
        >>> schedules.constant(0.1)(1000)
        0.1
    """

    lr: float

    def __post_init__(self) -> None:
        self._set(lr=number(self.lr, "lr", least=0))

    def _at(self, step: int) -> float:
        return self.lr


@dataclass(frozen=True, slots=True)
class step_decay(Schedule):
    r"""Multiplied by gamma every `step_size` steps.

    .. code-block:: text

        η(t) = lr · gamma^⌊t / step_size⌋

    Args:
        lr: At the start; finite, >= 0.
        step_size: Steps between two changes, >= 1.
        gamma: Finite, > 0.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.step_decay(1.0, step_size=30, gamma=0.5)
        >>> print(lr(29), lr(30), lr(90))
        1.0 0.5 0.125

    Reference:
        He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016: a tenth every 30 epochs.
    """

    lr: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        self._set(
            lr=number(self.lr, "lr", least=0),
            step_size=whole(self.step_size, "step_size", least=1),
            gamma=number(self.gamma, "gamma", above=0),
        )

    def _at(self, step: int) -> float:
        return decayed(self.lr, self.gamma, step // self.step_size)


@dataclass(frozen=True, slots=True)
class multi_step(Schedule):
    r"""Multiplied by gamma at each milestone.

    .. code-block:: text

        η(t) = lr · gamma^(number of milestones ≤ t)

    Args:
        lr: At the start; finite, >= 0.
        milestones: Steps, rising, >= 0; at least one. A milestone of 0 holds from the first step on.
        gamma: Finite, > 0.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range; milestones that do not rise; none.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.multi_step(1.0, [100, 150], gamma=0.5)
        >>> print(lr(99), lr(100), lr(150), lr(10_000))
        1.0 0.5 0.25 0.25
    """

    lr: float
    milestones: Sequence[int]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        self._set(
            lr=number(self.lr, "lr", least=0),
            milestones=rising(self.milestones, "milestones"),
            gamma=number(self.gamma, "gamma", above=0),
        )
        if not self.milestones:
            raise ValueError("milestones: expected at least one, got none")

    def _at(self, step: int) -> float:
        return decayed(self.lr, self.gamma, bisect_right(self.milestones, step))

    def _length(self) -> int | None:
        return self.milestones[-1]


@dataclass(frozen=True, slots=True)
class exponential(Schedule):
    r"""Multiplied by gamma every step. With gamma > 1 it rises, for example to find the largest rate that still trains.

    .. code-block:: text

        η(t) = lr · gammaᵗ

    Args:
        lr: At the start; finite, >= 0.
        gamma: Finite, > 0.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range.

    Examples:
        >>> from fusedstep import schedules
        >>> schedules.exponential(1.0, gamma=0.5)(3)
        0.125
    """

    lr: float
    gamma: float

    def __post_init__(self) -> None:
        self._set(lr=number(self.lr, "lr", least=0), gamma=number(self.gamma, "gamma", above=0))

    def _at(self, step: int) -> float:
        return decayed(self.lr, self.gamma, step)


@dataclass(frozen=True, slots=True)
class polynomial(Schedule):
    r"""Along a power of the remaining part of the run.

    .. code-block:: text

        η(t) = final_lr + (lr − final_lr) · (1 − t / total_steps)^power     (t ≤ total_steps; final_lr beyond)

    Args:
        lr: At the start; finite, >= 0.
        total_steps: When final_lr is reached, >= 1.
        power: Finite, > 0.
        final_lr: Finite, >= 0.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.polynomial(1.0, total_steps=4, power=2.0)
        >>> print(lr(0), lr(2), lr(4), lr(5))
        1.0 0.25 0.0 0.0
    """

    lr: float
    total_steps: int
    power: float = 1.0
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        self._set(
            lr=number(self.lr, "lr", least=0),
            total_steps=whole(self.total_steps, "total_steps", least=1),
            power=number(self.power, "power", above=0),
            final_lr=number(self.final_lr, "final_lr", least=0),
        )

    def _at(self, step: int) -> float:
        left = 1.0 - min(step, self.total_steps) / self.total_steps
        return between(self.final_lr, self.lr, left**self.power)

    def _length(self) -> int | None:
        return self.total_steps


@dataclass(frozen=True, slots=True)
class linear(Schedule):
    r"""Along a line; upwards where final_lr is the larger.

    .. code-block:: text

        η(t) = lr + (final_lr − lr) · t / total_steps     (t ≤ total_steps; final_lr beyond)

    Args:
        lr: At the start; finite, >= 0.
        total_steps: When final_lr is reached, >= 0; with 0 it is final_lr from the start.
        final_lr: Finite, >= 0.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.linear(1.0, total_steps=4)
        >>> print(lr(0), lr(1), lr(4), lr(5))
        1.0 0.75 0.0 0.0
    """

    lr: float
    total_steps: int
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        self._set(
            lr=number(self.lr, "lr", least=0),
            total_steps=whole(self.total_steps, "total_steps"),
            final_lr=number(self.final_lr, "final_lr", least=0),
        )

    def _at(self, step: int) -> float:
        return between(self.lr, self.final_lr, step / self.total_steps if step < self.total_steps else 1.0)

    def _length(self) -> int | None:
        return self.total_steps


@dataclass(frozen=True, slots=True)
class cosine(Schedule):
    r"""Along half a cosine.

    .. code-block:: text

        η(t) = final_lr + (lr − final_lr) · (1 + cos(π t / total_steps)) / 2     (t ≤ total_steps; final_lr beyond)

    PyTorch's `CosineAnnealingLR` rises again beyond; `cosine_warm_restarts` starts anew.

    Args:
        lr: At the start; finite, >= 0.
        total_steps: When final_lr is reached, >= 1.
        final_lr: Finite, >= 0.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.cosine(1e-3, total_steps=500)
        >>> print(lr, lr(0), round(lr(250), 12), lr(500), lr(501))
        cosine(lr=0.001, total_steps=500, final_lr=0.0) 0.001 0.0005 0.0 0.0

    Reference:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    """

    lr: float
    total_steps: int
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        self._set(
            lr=number(self.lr, "lr", least=0),
            total_steps=whole(self.total_steps, "total_steps", least=1),
            final_lr=number(self.final_lr, "final_lr", least=0),
        )

    def _at(self, step: int) -> float:
        return between(self.lr, self.final_lr, cosine_part(min(step, self.total_steps) / self.total_steps))

    def _length(self) -> int | None:
        return self.total_steps


@dataclass(frozen=True, slots=True)
class inverse_sqrt(Schedule):
    r"""Up along a line, then down with the root of the step.

    .. code-block:: text

        η(t) = lr · min(t / warmup_steps, √(warmup_steps / t))     (0 at t = 0)

    Args:
        lr: The largest, at warmup_steps; finite, >= 0.
        warmup_steps: >= 1.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.inverse_sqrt(1.0, warmup_steps=4)
        >>> print(lr(0), lr(1), lr(4), lr(16))
        0.0 0.25 1.0 0.5
    """

    lr: float
    warmup_steps: int

    def __post_init__(self) -> None:
        self._set(lr=number(self.lr, "lr", least=0), warmup_steps=whole(self.warmup_steps, "warmup_steps", least=1))

    def _at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.lr * (step / self.warmup_steps)
        return self.lr * math.sqrt(self.warmup_steps / step)


@dataclass(frozen=True, slots=True)
class transformer(Schedule):
    r"""The Transformer's: up along a line, then down with the root of the step, scaled by its width.

    .. code-block:: text

        η(t) = factor · model_size^(−½) · min(s^(−½), s · warmup_steps^(−³⁄₂))     s = t + 1

    The paper counts steps from 1: s is the step about to be taken. The rate is largest at s = warmup_steps.

    Args:
        model_size: The width d of the model, >= 1.
        warmup_steps: >= 1.
        factor: Finite, >= 0.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.transformer(model_size=512, warmup_steps=4000)
        >>> print(f"{lr(0):.3e} {lr(3999):.3e} {lr(15999):.3e}")
        1.747e-07 6.988e-04 3.494e-04

    Reference:
        Vaswani et al., "Attention Is All You Need", 2017, equation 3.
    """

    model_size: int
    warmup_steps: int
    factor: float = 1.0

    def __post_init__(self) -> None:
        self._set(
            model_size=whole(self.model_size, "model_size", least=1),
            warmup_steps=whole(self.warmup_steps, "warmup_steps", least=1),
            factor=number(self.factor, "factor", least=0),
        )

    def _at(self, step: int) -> float:
        taking = step + 1
        shape: float = min(taking**-0.5, taking * self.warmup_steps**-1.5)
        return self.factor / math.sqrt(self.model_size) * shape
