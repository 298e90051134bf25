"""Fused kernels beside the reference, on the steps of a run."""

import copy
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from fusedstep import runtime

if TYPE_CHECKING:
    from fusedstep.apps.examples.digits import MLP
    from fusedstep.optimizers import Optimizer


class Comparison:
    """Times the fused kernels of every step, and of some steps on the reference too, from the same state."""

    def __init__(self) -> None:
        self.all: list[float] = []
        self.native: list[float] = []
        self.reference: list[float] = []
        self.equal = 0

    def step(
        self, step: Callable[..., tuple[float, float]], model: "MLP", optimizer: "Optimizer", compared: bool
    ) -> tuple[float, float]:
        """One step of training; on the reference with copies first, where compared."""
        if compared:
            other, other_optimizer = copy.deepcopy((model, optimizer))
            clock = Clock()
            with runtime.use_isa("numpy"):
                step(other, other_optimizer, clock.call)
            self.reference.append(clock.seconds)
        clock = Clock()
        result = step(model, optimizer, clock.call)
        self.all.append(clock.seconds)
        if compared:
            self.native.append(clock.seconds)
            mine, theirs = {**model.params, **model.buffers()}, {**other.params, **other.buffers()}
            self.equal += all(value.tobytes() == theirs[name].tobytes() for name, value in mine.items())
        return result

    def result(self) -> dict[str, Any]:
        """Medians per step in microseconds."""

        def median(seconds: list[float]) -> float | None:
            return float(np.median(seconds)) * 1e6 if seconds else None

        return {
            "us_per_step": median(self.all),
            "compared_steps": len(self.reference),
            "compared_us_per_step": median(self.native),
            "numpy_us_per_step": median(self.reference),
            "steps_with_equal_bits": self.equal,
        }


class Clock:
    """Adds up the time spent in the calls that go through it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls and keeps the time."""
        start = perf_counter()
        result = function(*args, **kwargs)
        self.seconds += perf_counter() - start
        return result
