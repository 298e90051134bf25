"""Schedules: the learning rate as a function of the number of steps taken, for the `lr` of any optimizer or group.

A schedule is a small object that compares by its arguments, is saved with checkpoints, and is called with a step:
`cosine(1e-3, total_steps=500)(0)`. A schedule with an end stays at its final value. Your own function works too, but is
not saved.
"""

from fusedstep.schedules.base import Schedule
from fusedstep.schedules.combinators import join, scale, warmup
from fusedstep.schedules.cycles import cosine_warm_restarts, cyclic, one_cycle, warmup_stable_decay
from fusedstep.schedules.decay import (
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    linear,
    multi_step,
    polynomial,
    step_decay,
    transformer,
)
from fusedstep.schedules.plateau import ReduceOnPlateau
from fusedstep.schedules.plotting import plot

__all__ = [
    "ReduceOnPlateau",
    "Schedule",
    "constant",
    "cosine",
    "cosine_warm_restarts",
    "cyclic",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "multi_step",
    "one_cycle",
    "plot",
    "polynomial",
    "scale",
    "step_decay",
    "transformer",
    "warmup",
    "warmup_stable_decay",
]
