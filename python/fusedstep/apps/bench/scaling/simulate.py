"""A step as events: buckets of gradients that arrive, exchanges, the step, and values that go back.

Every part has a resource that serves one bucket at a time, first come, first served.
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fusedstep.apps.bench.scaling.machine import Costs

#: A scalar in double, which ranks add up for the norm.
NORM_BYTES = 8


@dataclass(frozen=True)
class Stage:
    """One part of a bucket's way.

    Attributes:
        resource: What serves it; stages with the same resource wait for each other.
        seconds: Per bucket.
        takes_slot: Whether a bucket needs a free slot before this stage.
        frees_slot: Whether its slot is free after it.
    """

    resource: str
    seconds: Sequence[float]
    takes_slot: bool = False
    frees_slot: bool = False


@dataclass
class Timeline:
    """What a step took.

    Attributes:
        end: When the last value was there, in seconds from the first gradient.
        hidden: Up to when gradients arrived, which happens without any optimizer.
        busy: Seconds that each part worked.
    """

    end: float = 0.0
    hidden: float = 0.0
    busy: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def exposed(self) -> float:
        """What the optimizer's part adds to the gradients' arrival."""
        return max(0.0, self.end - self.hidden)


def pipeline(stages: Sequence[Stage], ready: Sequence[float], slots: int | None = None) -> list[float]:
    """When each bucket leaves the last stage.

    Args:
        stages: In the order of the way.
        ready: When each bucket comes to the first stage.
        slots: How many buckets may be between the stage that takes a slot and the one that frees it; None: any number.

    Examples:
        Three buckets through two stages of 2 and 3 seconds: the slower one sets the pace.

        >>> stages = [Stage("a", [2, 2, 2], takes_slot=True), Stage("b", [3, 3, 3], frees_slot=True)]
        >>> pipeline(stages, [0, 0, 0])
        [5.0, 8.0, 11.0]
        >>> pipeline(stages, [0, 0, 0], slots=1)
        [5.0, 10.0, 15.0]
    """
    free = float("inf") if slots is None else slots
    waiting: list[deque[tuple[int, int]]] = [deque() for _ in stages]
    users: dict[str, list[int]] = defaultdict(list)
    for at, stage in enumerate(stages):
        users[stage.resource].append(at)
    idle = dict.fromkeys(users, True)
    left = [0.0] * len(ready)
    events = [(float(at), k, 0, False) for k, at in enumerate(ready)]
    heapq.heapify(events)
    order = 0
    while events:
        now, bucket, at, served = heapq.heappop(events)
        if served:
            idle[stages[at].resource] = True
            free += stages[at].frees_slot
            at += 1
        if at == len(stages):
            left[bucket] = now
        else:
            waiting[at].append((order, bucket))
            order += 1
        for resource, mine in users.items():
            # Without a free slot, a stage that takes one has to wait.
            able = [at for at in mine if waiting[at] and (free > 0 or not stages[at].takes_slot)]
            if idle[resource] and able:
                at = min(able, key=lambda at: waiting[at][0])
                _, bucket = waiting[at].popleft()
                idle[resource] = False
                free -= stages[at].takes_slot
                heapq.heappush(events, (now + stages[at].seconds[bucket], bucket, at, True))
    return left


@dataclass(frozen=True)
class Work:
    """The work of a step.

    Attributes:
        elements: Elements of the whole model.
        bucket: Elements in one exchange.
        grad_bytes: Bytes of one gradient element.
        param_bytes: Bytes of one parameter element.
        arrival: Seconds from the first gradient to the last.
        clip: Whether gradients are clipped by the norm of all of them.
    """

    elements: int
    bucket: int
    grad_bytes: int
    param_bytes: int
    arrival: float = 0.0
    clip: bool = False

    def buckets(self) -> list[int]:
        """Elements of each."""
        whole, rest = divmod(self.elements, self.bucket)
        return [self.bucket] * whole + [rest] * (rest > 0)

    def ready(self) -> list[float]:
        """When the gradients of each bucket have arrived, in seconds."""
        times, done = [], 0
        for elements in self.buckets():
            done += elements
            times.append(self.arrival * done / self.elements)
        return times


def data_parallel(work: Work, costs: Costs) -> Timeline:
    """Every rank has all parameters: all-reduce of every bucket, then a step on all parameters.

    All ranks have the same gradients, so the norm needs no collective.
    """
    line = Timeline(hidden=work.arrival)
    sizes = work.buckets()
    reduced = _exchanges(line, "all_reduce", [size * work.grad_bytes for size in sizes], costs)
    line.end = max(pipeline([Stage("network", reduced)], work.ready()), default=0.0)
    _add(line, "norm", costs.norm(work.elements) if work.clip else 0.0)
    _add(line, "step", costs.step(work.elements))
    return line


def sharded(work: Work, costs: Costs, ranks: int) -> Timeline:
    """Every rank has its part: reduce-scatter of every bucket, a step on the part, all-gather of every bucket."""
    line = Timeline(hidden=work.arrival)
    sizes = work.buckets()
    scattered = _exchanges(line, "reduce_scatter", [size * work.grad_bytes for size in sizes], costs)
    line.end = max(pipeline([Stage("network", scattered)], work.ready()), default=0.0)
    if work.clip:
        _norm(line, costs, work.elements / ranks)
    _add(line, "step", costs.step(work.elements / ranks))
    for seconds in _exchanges(line, "all_gather", [size * work.param_bytes for size in sizes], costs):
        line.end += seconds
    return line


def offloaded(work: Work, costs: Costs, ranks: int, *, link: float, slots: int) -> Timeline:
    """Like `sharded`, with the step on the host: each rank copies its part of every bucket there, and back.

    At most `slots` buckets are on the host at a time. With a clip, gradients are copied to the host twice: once for the
    norm, once for the step. Gradients that are still in a slot are not copied again.

    Args:
        work: The model.
        costs: Of the collectives between accelerators, and of the host's step and norm.
        ranks: Accelerators of the cluster.
        link: Bytes per second between accelerator and host, each way.
        slots: Number of buckets on the host at a time.
    """
    line = Timeline(hidden=work.arrival)
    sizes, parts = work.buckets(), [size / ranks for size in work.buckets()]
    scattered = Stage("network", _exchanges(line, "reduce_scatter", [size * work.grad_bytes for size in sizes], costs))
    gathered = Stage("network", _exchanges(line, "all_gather", [size * work.param_bytes for size in sizes], costs))
    down = [part * work.grad_bytes / link for part in parts]
    stepped = Stage("host", [costs.step(part) for part in parts])
    up = Stage("up", [part * work.param_bytes / link for part in parts], frees_slot=True)
    ready = work.ready()
    line.busy["link"] += sum(down)
    if work.clip:
        measured = Stage("host", [costs.norm(part) for part in parts], frees_slot=True)
        line.end = max(pipeline([scattered, Stage("down", down, takes_slot=True), measured], ready, slots), default=0.0)
        line.busy["norm"] += sum(measured.seconds)
        _norm(line, costs, 0.0)
        ready = [line.end] * len(parts)
        down = [0.0 if k < slots else seconds for k, seconds in enumerate(down)]
        line.busy["link"] += sum(down)
    going = [] if work.clip else [scattered]
    line.end = max(
        pipeline([*going, Stage("down", down, takes_slot=True), stepped, up, gathered], ready, slots), default=line.end
    )
    line.busy["link"] += sum(up.seconds)
    line.busy["step"] += sum(stepped.seconds)
    return line


def _exchanges(line: Timeline, kind: str, sizes: Sequence[float], costs: Costs) -> list[float]:
    """Seconds of each; the timeline gets the sums."""
    times: dict[float, Any] = {size: costs.exchange(kind, size) for size in set(sizes)}
    for size in sizes:
        line.busy["messages"] += times[size].latency
        line.busy["network"] += times[size].volume
    return [times[size].total for size in sizes]


def _norm(line: Timeline, costs: Costs, elements: float) -> None:
    _add(line, "norm", costs.norm(elements))
    _add(line, "norm's collective", costs.exchange("all_reduce", NORM_BYTES).total)


def _add(line: Timeline, name: str, seconds: float) -> None:
    line.busy[name] += seconds
    line.end += seconds
