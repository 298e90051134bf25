"""What all schedules share."""

import math
from typing import Any

from fusedstep._common.arguments import whole


class Schedule:
    """A learning rate as a function of the number of steps taken so far, 0 for the first step.

    Called with a whole number in [0, 2⁵³); the result depends on that number alone, so steps can be evaluated in any
    order. A schedule with an end stays at its final value.

    Raises:
        TypeError: The step is no whole number.
        ValueError: It is out of range.
    """

    __slots__ = ()

    def __call__(self, step: int) -> float:
        """The rate after `step` steps."""
        return self._at(whole(step, "step"))

    def _at(self, step: int) -> float:
        raise NotImplementedError

    def _length(self) -> int | None:
        """The step from which on it is constant; None if there is no such step."""
        return None

    def _ends_cycle(self, taken: int) -> bool:
        """Whether a cycle is complete after `taken` steps."""
        raise TypeError(f"schedule: expected one with cycles, got {self!r}")

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


def between(start: float, end: float, part: float) -> float:
    """From start to end along a line, exact at both ends."""
    return start * (1.0 - part) + end * part


def cosine_part(part: float) -> float:
    """From 0 to 1 along half a cosine."""
    return (1.0 - math.cos(math.pi * part)) / 2.0


def decayed(lr: float, gamma: float, times: int) -> float:
    """lr · gamma ** times; infinity where it overflows, which an optimizer refuses as a learning rate."""
    try:
        return lr * gamma**times
    except OverflowError:
        return math.inf if lr > 0 else 0.0
