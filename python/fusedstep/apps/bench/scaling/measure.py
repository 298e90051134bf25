"""The constants of this machine, and the same steps in real processes."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from fusedstep.apps.bench.scaling import simulate
from fusedstep.apps.bench.scaling.collectives import KINDS, Time
from fusedstep.apps.bench.scaling.simulate import Work
from fusedstep.apps.bench.scaling.team import Team
from fusedstep.apps.bench.scaling.traffic import Traffic

#: Prediction and measurement agree if neither is this many times the other.
AGREES = 1.2
#: A machine is loaded if others run more than this many threads,
LOAD = 0.5
#: if a process that only computes is for less than this share of its time on a processor,
ON_PROCESSOR = 0.95
#: or if the memory's speed at the end is so many times that at the beginning, or the other way round.
DRIFT = 1.15
#: Bytes an element that the roof's loop moves: one array read, three read and written.
ROOF_BYTES = 28


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        rule: The optimizer's.
        dtype: Of parameters and gradients.
        options: Of the optimizer.
        clip: Whether gradients are clipped.
        elements: Of the model.
        bucket: Elements that are exchanged at a time.
        ranks: Sizes of groups.
        beside: Processes with one thread each, beside one process with all threads; 0 for none.
        rounds: Of every measurement.
        seconds: Of every rate.
        timeout: Seconds that a measurement may take.
    """

    rule: str = "adamw"
    dtype: str = "float32"
    options: dict[str, Any] = field(default_factory=dict)
    clip: bool = True
    elements: int = 32 << 20
    bucket: int = 25 << 18
    ranks: tuple[int, ...] = (1, 2, 3)
    beside: int = 8
    rounds: int = 9
    seconds: float = 2.0
    timeout: float = 120.0

    def team(self, ranks: int, threads: int, *, group: bool) -> Team:
        """The processes for it."""
        return Team(
            ranks,
            threads,
            group=group,
            timeout=self.timeout,
            rule=self.rule,
            dtype=self.dtype,
            options=self.options,
        )


@dataclass(frozen=True)
class Line:
    """Seconds of an exchange: `start`, and `per_byte` of the array."""

    start: float
    per_byte: float

    def __call__(self, nbytes: float) -> Time:
        """Of an array of so many bytes."""
        return Time(self.start, self.per_byte * nbytes)


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line through measured times with the least relative errors; neither number is below 0.

    Examples:
        >>> line = fit([1e3, 1e6], [2e-3, 3e-3])
        >>> round(line.start, 6), round(line.per_byte, 12)
        (0.001999, 1.001e-09)
    """
    x, y = np.asarray(sizes, float), np.asarray(seconds, float)
    basis = np.stack([1 / y, x / y], axis=1)
    start, per_byte = np.linalg.lstsq(basis, np.ones_like(y), rcond=None)[0]
    if start < 0:
        start, per_byte = 0.0, float((x / y).sum() / ((x / y) ** 2).sum())
    if per_byte < 0:
        start, per_byte = float((1 / y).sum() / (1 / y**2).sum()), 0.0
    return Line(float(start), float(per_byte))


@dataclass(frozen=True)
class Constants:
    """What was measured.

    Attributes:
        cores: Processors that this process may use.
        bandwidth: Bytes a second of the roof's loop on all of them.
        bandwidth_of_one: On one thread.
        step: Seconds an element of a step on one thread.
        step_on_all: On all threads.
        norm: Seconds an element of the norm, on one thread.
        exchanges: Of each number of ranks, the line of each collective.
    """

    cores: int
    bandwidth: float
    bandwidth_of_one: float
    step: float
    step_on_all: float
    norm: float
    exchanges: dict[int, dict[str, Line]]

    def efficiency(self, traffic: Traffic) -> float:
        """The time of a loop that only moves the bytes over that of the step, on all threads; at most 1."""
        return min(1.0, traffic.moved / self.bandwidth / self.step_on_all)


@dataclass(frozen=True)
class Here:
    """The costs on this machine: processes of one thread that share cores and memory."""

    constants: Constants
    traffic: Traffic
    ranks: int

    def exchange(self, kind: str, nbytes: float) -> Time:
        """By the line that was measured with as many processes."""
        return self.constants.exchanges[self.ranks][kind](nbytes)

    def step(self, elements: float) -> float:
        """As fast as a process alone, unless cores or the memory's bandwidth are fewer than the processes need."""
        return self._shared(elements, self.constants.step, self.traffic.moved)

    def norm(self, elements: float) -> float:
        """The same of the norm."""
        return self._shared(elements, self.constants.norm, self.traffic.grad)

    def _shared(self, elements: float, alone: float, moved: float) -> float:
        by_cores = alone * max(1.0, self.ranks / self.constants.cores)
        return elements * max(by_cores, self.ranks * moved / self.constants.bandwidth)


def load() -> float:
    """Threads that run on this machine besides, over the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(plan: Plan, traffic: Traffic, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures constants, predicts steps from them, and takes the steps.

    Args:
        plan: What to measure.
        traffic: Bytes of its step.
        say: Gets what is measured next.

    Returns:
        `constants` (`Constants`), `steps` (a list of `mode`, `ranks`, `predicted`, `measured`, `ratio`), `beside` (or
        None) and `loaded`, the reasons not to trust the figures.

    Raises:
        MeasurementError: A process failed, or took too long.
    """
    before = load()
    say("memory and step, all threads")
    with plan.team(1, cores(), group=False) as team:
        (first,), (all_threads,) = _rates(team, "roof", plan), _rates(team, "step", plan)
    say("memory and step, one thread")
    with plan.team(1, 1, group=False) as team:
        (roof,), (step,) = _rates(team, "roof", plan), _rates(team, "step", plan)
    exchanges: dict[int, dict[str, Line]] = {}
    steps: list[dict[str, Any]] = []
    norm = 0.0
    for ranks in plan.ranks:
        say(f"collectives of {ranks} process{'es' * (ranks > 1)}")
        with plan.team(ranks, 1, group=True) as team:
            if norm == 0.0:
                norm = max(answer["typical"] for answer in _rates(team, "norm", plan))
            exchanges[ranks] = {kind: _line(team, kind, plan) for kind in KINDS}
            steps += [_taken(team, mode, ranks, plan, say) for mode in ("data parallel", "sharded")]
    constants = Constants(
        cores(),
        ROOF_BYTES / first["typical"],
        ROOF_BYTES / roof["typical"],
        step["typical"],
        all_threads["typical"],
        norm,
        exchanges,
    )
    for entry in steps:
        entry["predicted"] = predicted(entry["mode"], entry["ranks"], plan, constants, traffic)
        entry["ratio"] = entry["measured"] / entry["predicted"]
    beside = _beside(plan, all_threads["mean"], say) if plan.beside else None
    say("memory again")
    with plan.team(1, cores(), group=False) as team:
        (last,) = _rates(team, "roof", plan)
    share = [roof["on_processor"], step["on_processor"]]
    reasons = loaded(before, share, last["typical"] / first["typical"])
    return {"constants": constants, "steps": steps, "beside": beside, "loaded": reasons}


def loaded(before: float, on_processor: Sequence[float], drift: float) -> list[str]:
    """The reasons to believe that others used the machine meanwhile.

    Examples:
        >>> loaded(0.1, [1.0, 0.99], 1.02)
        []
        >>> loaded(2.0, [0.5], 1.5)
        ['2.0 threads ran before the start', 'a busy process had a processor 50 % of the time', 'the memory was 1.50 times as fast at the start as at the end']
    """  # noqa: E501
    reasons = []
    if before > LOAD:
        reasons.append(f"{before:.1f} threads ran before the start")
    if (least := min(on_processor, default=1.0)) < ON_PROCESSOR:
        reasons.append(f"a busy process had a processor {least:.0%} of the time".replace("%", " %"))
    if not 1 / DRIFT < drift < DRIFT:
        reasons.append(f"the memory was {drift:.2f} times as fast at the start as at the end")
    return reasons


def predicted(mode: str, ranks: int, plan: Plan, constants: Constants, traffic: Traffic) -> float:
    """Seconds of a step on this machine, by the simulation."""
    work = Work(plan.elements, plan.bucket, traffic.grad, traffic.param, clip=plan.clip)
    costs = Here(constants, traffic, ranks)
    if mode == "sharded":
        return simulate.sharded(work, costs, ranks).end
    return simulate.data_parallel(work, costs).end


def _rates(team: Team, side: str, plan: Plan) -> list[dict[str, float]]:
    """Of each process, see `Worker.rate`."""
    team.ask("prepare", side=side, elements=plan.elements)
    return team.ask("rate", seconds=plan.seconds)


def _line(team: Team, kind: str, plan: Plan) -> Line:
    """From three sizes up to a bucket."""
    nbytes = plan.bucket * (2 if plan.dtype == "bfloat16" else 4)
    sizes = [64, nbytes // 2, nbytes]
    about = {"kind": kind, "elements": plan.elements, "rounds": plan.rounds}
    return fit(sizes, [_slowest(team.ask("collective", nbytes=size, **about)) for size in sizes])


def _taken(team: Team, mode: str, ranks: int, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"{mode}, {ranks} process{'es' * (ranks > 1)}")
    buckets = Work(plan.elements, plan.bucket, 4, 4).buckets()
    answers = team.ask("loop", mode=mode, buckets=buckets, clip=plan.clip, rounds=plan.rounds)
    return {"mode": mode, "ranks": ranks, "measured": _slowest(answers)}


def _slowest(answers: list[list[float]]) -> float:
    """The median over the rounds of the slowest rank's seconds."""
    return float(median(max(seconds) for seconds in zip(*answers, strict=True)))


def _beside(plan: Plan, on_all: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds an element of many processes with a thread each, and of one with all threads.

    Each steps as many elements as the one: shares of them would lie in the cache while their process runs.
    """
    say(f"{plan.beside} processes of one thread")
    with plan.team(plan.beside, 1, group=False) as team:
        answers = _rates(team, "step", plan)
    many = 1 / sum(1 / answer["mean"] for answer in answers)
    return {"processes": plan.beside, "seconds": many, "seconds_of_one": on_all, "ratio": many / on_all}
