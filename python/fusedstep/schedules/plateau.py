"""A rate that falls when a metric no longer improves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fusedstep._common.arguments import choice, number, whole
from fusedstep.schedules.base import Schedule


@dataclass(slots=True)
class ReduceOnPlateau(Schedule):
    r"""Multiplies the rate by a factor when a metric has not improved for a while.

    .. code-block:: text

        improved:  metric < best − margin  (min)     metric > best + margin  (max)
        margin = threshold · |best|  (rel)     threshold  (abs)
        after more than `patience` observations in a row without improvement, the `cooldown` after a reduction apart:
        lr ← max(factor · lr, min_lr),  unless it would move by no more than eps

    PyTorch's margin is threshold · best, with its sign: there, a metric that stays at a negative value improves at
    every observation. For metrics >= 0 both are the same.

    It is the only schedule with a state: it returns the present rate for any step. A NaN is no improvement.
    `Optimizer.load_state_dict` puts saved states into the objects that the optimizer already has, in their order, if it
    has as many; otherwise it puts new objects into `param_groups`.

    Args:
        lr: At the start; finite, >= 0.
        mode: "min" or "max": which metric is better.
        factor: In (0, 1).
        patience: Observations without improvement that do not yet reduce the rate, >= 0.
        threshold: The margin of an improvement, see above; finite, >= 0.
        threshold_mode: "rel" or "abs".
        cooldown: Observations after a reduction that do not count, >= 0.
        min_lr: In [0, lr].
        eps: Finite, >= 0.

    Attributes:
        current_lr: The present rate.
        best: The best metric so far; None before there was one.
        bad_observations: Observations since the best one, without those of a cooldown.
        cooldown_left: Observations left of the cooldown.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number out of range; another mode.

    Examples:
        >>> from fusedstep import schedules
        >>> lr = schedules.ReduceOnPlateau(1.0, factor=0.5, patience=1)
        >>> for loss in (3.0, 2.0, 2.0, 2.0):
        ...     lr.observe(loss)
        >>> print(lr(0), lr.best)
        0.5 2.0
    """

    lr: float
    mode: Literal["min", "max"] = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8
    current_lr: float = field(init=False)
    best: float | None = field(init=False, default=None)
    bad_observations: int = field(init=False, default=0)
    cooldown_left: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._set(
            lr=number(self.lr, "lr", least=0),
            mode=choice(self.mode, "mode", ("min", "max")),
            factor=number(self.factor, "factor", above=0, below=1),
            patience=whole(self.patience, "patience"),
            threshold=number(self.threshold, "threshold", least=0),
            threshold_mode=choice(self.threshold_mode, "threshold_mode", ("rel", "abs")),
            cooldown=whole(self.cooldown, "cooldown"),
            min_lr=number(self.min_lr, "min_lr", least=0),
            eps=number(self.eps, "eps", least=0),
        )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: expected at most lr = {self.lr!r}, got {self.min_lr!r}")
        self.current_lr = self.lr

    def _at(self, step: int) -> float:
        return self.current_lr

    def observe(self, metric: float) -> None:
        """Takes a metric into account; commonly once an epoch, on held-out data.

        Args:
            metric: A number; NaN and infinities too.

        Raises:
            TypeError: It is not a number.
        """
        value = metric_of(metric)
        bad = whole(self.bad_observations + 1, "bad_observations")
        if self._improves(value):
            self.best, self.bad_observations = value, 0
        else:
            self.bad_observations = bad
        if self.cooldown_left > 0:
            self.cooldown_left -= 1
            self.bad_observations = 0
        if self.bad_observations > self.patience:
            reduced = max(self.current_lr * self.factor, self.min_lr)
            if self.current_lr - reduced > self.eps:
                self.current_lr = reduced
            self.cooldown_left, self.bad_observations = self.cooldown, 0

    def _improves(self, value: float) -> bool:
        sign = 1.0 if self.mode == "min" else -1.0
        if self.best is None:
            return sign * value < math.inf
        if self.threshold_mode == "rel" and math.isfinite(self.best):
            # As PyTorch computes it where best >= 0, for the same rounding.
            part = self.threshold if self.best >= 0 else -self.threshold
            return sign * value < sign * (self.best * (1.0 - sign * part))
        return sign * value < sign * (self.best - sign * self.threshold)

    def state_dict(self) -> dict[str, Any]:
        """The state that `observe` changes."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads a state from `state_dict`.

        Raises:
            KeyError: A missing or unknown name.
            TypeError: Something that is no number.
            ValueError: A number out of range. Nothing has changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a dict, got {type(state).__name__}")
        if set(state) != set(_STATE):
            raise KeyError(f"state: expected {list(_STATE)}, got {list(state)}")
        current = number(state["current_lr"], "state['current_lr']", least=0)
        if current > self.lr:
            raise ValueError(f"state['current_lr']: expected at most lr = {self.lr!r}, got {current!r}")
        best = best_of(state["best"])
        self._set(
            best=best,
            bad_observations=whole(state["bad_observations"], "state['bad_observations']"),
            cooldown_left=whole(state["cooldown_left"], "state['cooldown_left']"),
            current_lr=current,
        )


_STATE = ("current_lr", "best", "bad_observations", "cooldown_left")


def best_of(saved: Any) -> float | None:
    """The best metric in a state; None where none was observed."""
    best = None if saved is None else metric_of(saved, "state['best']")
    if best is not None and math.isnan(best):
        raise ValueError("state['best']: expected a number that is not NaN, got nan")
    return best


def metric_of(value: Any, name: str = "metric") -> float:
    """A number, which may be infinite or NaN."""
    if isinstance(value, float | np.floating):
        return float(value)
    return number(value, name)
