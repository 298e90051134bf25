"""When to stop."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from fusedstep._common.arguments import choice, flag, number, whole
from fusedstep.schedules.plateau import best_of, metric_of
from fusedstep.training.weights import Array, Structure, Weights, check_keys, kept


class EarlyStopping:
    r"""Says when a metric has not improved for a while, and keeps the weights that were best.

    .. code-block:: text

        improved:  metric < best − min_delta  (min)     metric > best + min_delta  (max)
        stop: `patience` observations in a row without improvement

    A NaN is no improvement.

    Args:
        patience: >= 1.
        min_delta: A change of at most this is no improvement; finite, >= 0.
        mode: "min" or "max": which metric is better.
        restore_best: Whether the best weights are kept, and put back when it says to stop.
        params: The arrays, in any structure that an optimizer takes, running statistics of batch norm included. None to
            keep no weights.

    Attributes:
        best: The best metric so far; None before there was one.
        best_step: Its step.
        bad_observations: Observations since the best one.

    Raises:
        TypeError: Something that is no number, or no array.
        ValueError: A number out of range; another mode; an array that cannot be written.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> w = np.zeros(1, np.float32)
        >>> stopping = fs.EarlyStopping(patience=2, params={"w": w})
        >>> for step, loss in enumerate([3.0, 2.0, 2.5, 2.25, 1.0]):
        ...     w[...] = step
        ...     if stopping.observe(loss, step):
        ...         break
        >>> print(step, stopping.best, stopping.best_step, w)
        3 2.0 1 [1.]

    Reference:
        Prechelt, "Early Stopping - But When?", 1998.
    """

    def __init__(
        self,
        patience: int,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "min",
        restore_best: bool = True,
        params: Structure | None = None,
    ) -> None:
        self.patience = whole(patience, "patience", least=1)
        self.min_delta = number(min_delta, "min_delta", least=0)
        self.mode = choice(mode, "mode", ("min", "max"))
        self.restore_best = flag(restore_best, "restore_best")
        self.best: float | None = None
        self.best_step: int | None = None
        self.bad_observations = 0
        self._observations = 0
        self._weights = None if params is None or not self.restore_best else Weights(params)
        self._kept: list[Array] | None = None

    def observe(self, metric: float, step: int | None = None) -> bool:
        """Takes a metric into account; commonly once an epoch, on held-out data.

        Args:
            metric: A number; NaN and infinities too.
            step: The step of the metric, for `best_step`; None for the number of observations before this one.

        Returns:
            Whether to stop. The best weights are then restored, if they are kept.

        Raises:
            TypeError: Something that is no number.
            ValueError: `step` is out of range. Nothing has changed then.
        """
        value = metric_of(metric)
        at = self._observations if step is None else whole(step, "step")
        observations = whole(self._observations + 1, "observations")
        bad = whole(self.bad_observations + 1, "bad_observations")
        self._observations = observations
        if self._improves(value):
            copies = None if self._weights is None else self._weights.copies()
            self.best, self.best_step, self.bad_observations, self._kept = value, at, 0, copies
            return False
        self.bad_observations = bad
        stop = self.bad_observations >= self.patience
        if stop and self._kept is not None:
            self.restore()
        return stop

    def _improves(self, value: float) -> bool:
        if self.best is None:
            return not math.isnan(value)
        return value < self.best - self.min_delta if self.mode == "min" else value > self.best + self.min_delta

    def restore(self) -> None:
        """Restores the best weights, for example when the run ends before it is stopped.

        Raises:
            RuntimeError: No weights are kept.
        """
        if self._weights is None or self._kept is None:
            raise RuntimeError("restore: no weights are kept (params, restore_best), or nothing was observed")
        self._weights.write(self._kept)

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """A state for `load_state_dict`, and for the metadata of `save_checkpoint`.

        Args:
            copy: False returns its own arrays: to write them out at once.
        """
        best = None if self._weights is None or self._kept is None else self._weights.built(kept(self._kept, copy))
        return {
            "best": self.best,
            "best_step": self.best_step,
            "bad_observations": self.bad_observations,
            "observations": self._observations,
            "best_params": best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copies a state, with the best weights of its run if it has some.

        Raises:
            KeyError: A missing or unknown name.
            TypeError: Another dtype or structure; something that is no number.
            ValueError: Another shape; a number out of range; weights although none are kept; no weights although they
                are kept and there is a best metric. Nothing has changed then.
        """
        check_keys(state, ("best", "best_step", "bad_observations", "observations", "best_params"))
        best = best_of(state["best"])
        best_step = None if state["best_step"] is None else whole(state["best_step"], "state['best_step']")
        if (best is None) != (best_step is None):
            raise ValueError(f"state['best_step']: got {best_step} with a best of {best}")
        bad, observations = (whole(state[key], f"state[{key!r}]") for key in ("bad_observations", "observations"))
        given = state["best_params"]
        if (given is not None) != (self._weights is not None and best is not None):
            raise ValueError(
                f"state['best_params']: expected {'none' if given is not None else 'the best weights'}, "
                f"got {'some' if given is not None else 'none'}"
            )
        copies = None
        if self._weights is not None and given is not None:
            copies = self._weights.read(given, "state['best_params']", self._weights.arrays)
        self.best, self.best_step, self.bad_observations, self._observations = best, best_step, bad, observations
        self._kept = copies
