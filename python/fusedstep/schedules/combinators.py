"""Schedules made of schedules."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fusedstep._common.arguments import is_number, number, rising, whole
from fusedstep.schedules.base import Schedule, between
from fusedstep.schedules.decay import constant

#: The most schedules within one (with itself; a shared one counts each time), and how deep they may nest.
MOST_PARTS, DEEPEST = 10_000, 50


@dataclass(frozen=True, slots=True)
class warmup(Schedule):
    r"""A schedule times a factor that rises along a line to 1.

    .. code-block:: text

        η(t) = schedule(t) · (start_factor + (1 − start_factor) · min(t / steps, 1))

    The schedule within sees the steps of the whole run: `warmup(cosine(lr, 500), 100)` ends at step 500, and follows
    the cosine from step 100 on as if there had been no warm-up. For a schedule that starts when the warm-up ends, see
    `join`. With a start_factor of 0 the first step has a rate of 0. A warm-up of 0 steps changes nothing.

    Args:
        schedule: A schedule, any function of the number of steps taken, or a number for a constant rate.
        steps: How long it rises, >= 0, and no longer than the schedule lasts.
        start_factor: At step 0, in [0, 1].

    Raises:
        TypeError: Something that is no number, or no schedule.
        ValueError: A number out of range; a warm-up that is longer than the run; too many nested schedules.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.warmup(1.0, 4)
        >>> [lr(step) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]

    Reference:
        Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017.
    """

    schedule: Callable[[int], float] | float
    steps: int
    start_factor: float = 0.0

    def __post_init__(self) -> None:
        self._set(
            schedule=_schedule(self.schedule, "schedule"),
            steps=whole(self.steps, "steps"),
            start_factor=number(self.start_factor, "start_factor", least=0),
        )
        if self.start_factor > 1:
            raise ValueError(f"start_factor: expected at most 1, got {self.start_factor!r}")
        length = self._length()
        if length is not None and self.steps > length:
            raise ValueError(f"steps: expected a warm-up no longer than the run of {length} steps, got {self.steps}")
        _check_parts(self)

    def _at(self, step: int) -> float:
        part = step / self.steps if step < self.steps else 1.0
        return _rate(self.schedule, step) * between(self.start_factor, 1.0, part)

    def _length(self) -> int | None:
        return _length(self.schedule)

    def _ends_cycle(self, taken: int) -> bool:
        return ends_cycle(self.schedule, taken)


@dataclass(frozen=True, slots=True)
class join(Schedule):
    r"""One schedule after the other; each counts steps from its own start.

    .. code-block:: text

        η(t) = schedulesₖ(t − milestonesₖ₋₁)     (milestonesₖ₋₁ ≤ t < milestonesₖ, counted from milestones₋₁ = 0)

    Args:
        schedules: At least one, of this module, functions of the number of steps, or numbers for constant rates.
        milestones: The steps at which the next schedule begins, rising, >= 0; one fewer than schedules. If the first is
            0, the first schedule has no steps.

    Raises:
        TypeError: Something that is no number, or no schedule.
        ValueError: Milestones that do not rise; another number of them; no schedule; too many nested schedules.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.join([schedules.linear(0.0, 10, final_lr=1.0), schedules.cosine(1.0, 90)], [10])
        >>> print(lr(0), lr(5), lr(10), round(lr(55), 12), lr(100))
        0.0 0.5 1.0 0.5 0.0
    """

    schedules: Sequence[Callable[[int], float] | float]
    milestones: Sequence[int]

    def __post_init__(self) -> None:
        if not isinstance(self.schedules, list | tuple):
            raise TypeError(f"schedules: expected a list, got {type(self.schedules).__name__}")
        if not self.schedules:
            raise ValueError("schedules: expected at least one, got none")
        self._set(
            schedules=tuple(_schedule(schedule, f"schedules[{k}]") for k, schedule in enumerate(self.schedules)),
            milestones=rising(self.milestones, "milestones"),
        )
        if len(self.milestones) != len(self.schedules) - 1:
            raise ValueError(
                f"milestones: expected {len(self.schedules) - 1} for {len(self.schedules)} schedules, "
                f"got {len(self.milestones)}"
            )
        _check_parts(self)

    def _at(self, step: int) -> float:
        schedule, start = self._part(step)
        return _rate(schedule, step - start)

    def _part(self, step: int) -> tuple[Any, int]:
        """The schedule of a step, and where it starts."""
        k = bisect_right(self.milestones, step)
        return self.schedules[k], self.milestones[k - 1] if k > 0 else 0

    def _length(self) -> int | None:
        last = _length(self.schedules[-1])
        return None if last is None else last + (self.milestones[-1] if self.milestones else 0)

    def _ends_cycle(self, taken: int) -> bool:
        if taken == 0:
            return False
        schedule, start = self._part(taken - 1)
        return has_cycles(schedule) and ends_cycle(schedule, taken - start)


@dataclass(frozen=True, slots=True)
class scale(Schedule):
    r"""A schedule times a number: the same course for a group with another rate.

    .. code-block:: text

        η(t) = factor · schedule(t)

    Args:
        schedule: A schedule, any function of the number of steps taken, or a number for a constant rate.
        factor: Finite, >= 0.

    Raises:
        TypeError: Something that is no number, or no schedule.
        ValueError: The factor is out of range; too many nested schedules.

    Examples:
        >>> from fusedstep import schedules
        >>> schedules.scale(schedules.linear(1.0, 4), 0.5)(2)
        0.25
    """

    schedule: Callable[[int], float] | float
    factor: float

    def __post_init__(self) -> None:
        self._set(schedule=_schedule(self.schedule, "schedule"), factor=number(self.factor, "factor", least=0))
        _check_parts(self)

    def _at(self, step: int) -> float:
        return self.factor * _rate(self.schedule, step)

    def _length(self) -> int | None:
        return _length(self.schedule)

    def _ends_cycle(self, taken: int) -> bool:
        return ends_cycle(self.schedule, taken)


def parts_of(schedule: Any) -> Sequence[Any]:
    """The schedules that one is made of."""
    if isinstance(schedule, join):
        return schedule.schedules
    return [schedule.schedule] if isinstance(schedule, warmup | scale) else []


def _check_parts(schedule: Any) -> None:
    """Refuses too many parts: a schedule twice in one that is twice in another, and so on."""
    left, count = [(schedule, 1)], 0
    while left:
        part, depth = left.pop()
        count += 1
        if count > MOST_PARTS:
            raise ValueError(f"schedule: expected at most {MOST_PARTS} schedules in one, got more")
        if depth > DEEPEST:
            raise ValueError(f"schedule: expected schedules at most {DEEPEST} deep in each other, got more")
        left.extend((inner, depth + 1) for inner in parts_of(part))


def has_cycles(schedule: Any) -> bool:
    """Whether `ends_cycle` applies to it."""
    if isinstance(schedule, warmup | scale):
        return has_cycles(schedule.schedule)
    if isinstance(schedule, join):
        return any(has_cycles(part) for part in schedule.schedules)
    return isinstance(schedule, Schedule) and type(schedule)._ends_cycle is not Schedule._ends_cycle


def ends_cycle(schedule: Any, taken: int) -> bool:
    """Whether a cycle of a schedule is complete after `taken` steps."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: expected one with cycles, got {type(schedule).__name__}")
    return schedule._ends_cycle(taken)


def _length(schedule: Any) -> int | None:
    return schedule._length() if isinstance(schedule, Schedule) else None


def _schedule(given: Any, name: str) -> Callable[[int], float]:
    """The given schedule; a number as a constant one, which checkpoints save like any other."""
    if is_number(given):
        return constant(number(given, name, least=0))
    if not callable(given) or isinstance(given, type):
        raise TypeError(f"{name}: expected a schedule, got {given!r}")
    return given  # type: ignore[no-any-return]


def _rate(schedule: Any, step: int) -> float:
    rate: float = schedule(step)
    return rate
