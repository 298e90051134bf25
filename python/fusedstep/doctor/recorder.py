"""Writes down what every step of a run reports, in the documented form."""

import math
from collections.abc import Callable
from typing import Any

from fusedstep._common.structure import listed
from fusedstep._core import StepReport
from fusedstep.doctor.measure import Gradients, flattened, grad_cosine, measured
from fusedstep.doctor.run import TELEMETRY
from fusedstep.optimizers import Optimizer

Call = Callable[..., Any]


class RunRecorder:
    """Keeps the telemetry of an optimizer's steps, as equally long lists.

    Args:
        optimizer: The optimizer whose steps are recorded; `telemetry=True` gives most to record.

    Raises:
        TypeError: It is no optimizer.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> opt = fs.SGD(np.ones(2, np.float32), lr=0.5, telemetry=True)
        >>> recorder = fs.doctor.RunRecorder(opt)
        >>> for _ in range(2):
        ...     report = recorder.step(np.ones(2, np.float32))
        >>> print(recorder.telemetry["lr"], recorder.telemetry["nonfinite"])
        [0.5, 0.5] [0.0, 0.0]
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        #: A list per step of each of the names in docs/doctor.md.
        self.telemetry: dict[str, list[float | None]] = {name: [] for name in TELEMETRY}
        self._before: Gradients = []

    def step(self, grads: Any, grad_scale: float = 1.0) -> StepReport:
        """`optimizer.step`, written down."""
        grads = listed(grads, "grads")  # an iterator gives them once
        report = self.optimizer.step(grads, grad_scale)
        self._keep(report, grads)
        return report

    def through(self, call: Call) -> Call:
        """A function that calls as `call(function, …)` does, and records the call if it is this optimizer's step."""

        def kept(function: Call, *args: Any, **kwargs: Any) -> Any:
            result = call(function, *args, **kwargs)
            if function == self.optimizer.step:
                self._keep(result, kwargs["grads"] if "grads" in kwargs else args[0])
            return result

        return kept

    def cut(self, steps: int) -> None:
        """Forgets all after the first `steps` steps: one may have been interrupted."""
        for values in self.telemetry.values():
            del values[steps:]

    def _keep(self, report: StepReport, grads: Any) -> None:
        now = flattened(grads)
        values = {**measured(report), "grad_cosine": grad_cosine(self._before, now)}
        self._before = now
        for name, kept in self.telemetry.items():
            value = values.get(name, math.nan)
            kept.append(value if math.isfinite(value) else None)
