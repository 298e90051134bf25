"""The timing of a benchmark: first the results of all sides are compared, then the sides run in turn in one process.

The speed of a machine drifts. So every round runs each side once, in a rotating order, and the medians over the rounds
are compared.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

import fusedstep as fs

#: A sample takes at least this long, with several calls if necessary.
SAMPLE_SECONDS = 2e-3


def torch_or_none() -> Any:
    """PyTorch with the number of threads of this library, or None."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    torch.set_num_threads(fs.runtime.num_threads())
    return torch


@dataclass
class Subject:
    """A benchmark.

    Attributes:
        name: Its name on the command line.
        ours: This library's side, the first one.
        others: The other sides by name: peers, and the roof (a loop that only moves the bytes).
        check: Raises if the sides do not compute the same result; called before any timing.
        goal: By side, the least ratio to reach.
        group: The group of benchmarks that it belongs to; the report has the geometric mean of their ratios.
        group_goal: By side, the least mean to reach.
    """

    name: str
    ours: Callable[[], Any]
    others: dict[str, Callable[[], Any]]
    check: Callable[[], None]
    goal: dict[str, float] = field(default_factory=dict)
    group: str | None = None
    group_goal: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Microseconds per call over the rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float


def measure(subject: Subject, rounds: int, seconds: float) -> dict[str, Timing]:
    """Times all sides of a subject in `rounds` rounds; after the fifth, stops once `seconds` have passed."""
    subject.check()
    sides = {"fusedstep": subject.ours, **subject.others}
    calls = {name: _calls_per_sample(run) for name, run in sides.items()}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = perf_counter()
        for taken in range(rounds):
            if taken >= 5 and perf_counter() - start > seconds:
                break
            for name in order:
                samples[name].append(_sample(sides[name], calls[name]))
            order.append(order.pop(0))
    finally:
        if collecting:
            gc.enable()
    return {name: _timing(values) for name, values in samples.items()}


def report(subject: Subject, timings: dict[str, Timing]) -> dict[str, Any]:
    """One subject's figures, ready for JSON. A ratio is the other side's median over ours."""
    ours = timings["fusedstep"].median
    return {
        "subject": subject.name,
        "us": {
            name: {"median": t.median, "quartiles": [t.lower_quartile, t.upper_quartile]} for name, t in timings.items()
        },
        "ratio": {name: timings[name].median / ours for name in subject.others},
        "goal": subject.goal,
        "group": subject.group,
        "group_goal": subject.group_goal,
    }


def means(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The geometric mean of the ratios of every group with several subjects, ready for JSON."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in reports:
        if entry["group"] is not None:
            groups.setdefault(entry["group"], []).append(entry)
    return [
        {
            "group": name,
            "ratio": {
                side: float(np.exp(np.mean([np.log(e["ratio"][side]) for e in entries])))
                for side in entries[0]["ratio"]
            },
            "goal": entries[0]["group_goal"],
        }
        for name, entries in groups.items()
    ]


def _calls_per_sample(run: Callable[[], Any]) -> int:
    run()
    calls = 1
    while _sample(run, calls) * calls < SAMPLE_SECONDS * 1e6 and calls < 1 << 20:
        calls *= 2
    return calls


def _sample(run: Callable[[], Any], calls: int) -> float:
    # One call is not timed: the previous side has left its data in the caches and its threads running.
    run()
    start = perf_counter()
    for _ in range(calls):
        run()
    return (perf_counter() - start) / calls * 1e6


def _timing(samples: list[float]) -> Timing:
    lower, median, upper = np.quantile(samples, [0.25, 0.5, 0.75])
    return Timing(float(median), float(lower), float(upper))
