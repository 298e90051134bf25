"""What a step costs on a cluster, what breaks first, and what to set then."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from fusedstep.apps.bench.scaling import simulate
from fusedstep.apps.bench.scaling.machine import GIGA, Assumed, Machine
from fusedstep.apps.bench.scaling.simulate import Timeline, Work
from fusedstep.apps.bench.scaling.traffic import Traffic, needs_whole_tensors, traffic

MODES = ("data parallel", "sharded", "offloaded")
#: The fewest buckets of an offloaded step, and the most of any other: larger models have larger layers.
BUCKETS = 64, 512
#: The largest number of nodes that `fewest_nodes` tries.
MOST_NODES = 1 << 20
#: If the optimizer adds less than this share to the time of the gradients, nothing breaks.
HIDDEN = 0.05

#: What to set, by what breaks.
ADVICE = {
    "host memory": 'shard, over more nodes; state_dtype="bfloat16" or "8bit" keeps fewer bytes',
    "accelerator memory": "shard over more accelerators, or offload",
    "network": "accumulate gradients: one exchange for several backward passes; exchange bfloat16",
    "messages": "larger buckets, a tree in place of a ring, or sharding within groups of nodes",
    "step": 'shard; state_dtype="bfloat16" or "8bit" moves fewer bytes; more sockets',
    "link": "accumulate gradients; offload_fraction below 1 leaves a part on the accelerator",
    "norm": "no max_grad_norm: then no step waits for the last gradient; or a tree for the norm's collective",
}


@dataclass(frozen=True)
class Setting:
    """What is trained, and how.

    Attributes:
        tokens: Tokens per rank and step.
        bucket_bytes: Bytes of gradients in one exchange.
        slot_bytes: Bytes of gradients in one slot on the host.
        slots: Number of slots on the host.
        clip: Whether gradients are clipped.
    """

    tokens: int = 4096
    bucket_bytes: int = 25 << 20
    slot_bytes: int = 8 << 20
    slots: int = 4
    clip: bool = True


@dataclass(frozen=True)
class Forecast:
    """One cluster, one model, one way to train it.

    Attributes:
        mode: One of `MODES`.
        nodes: Number of nodes.
        elements: Number of parameters of the model.
        host_gb: GB of memory that each host needs.
        accelerator_gb: GB of memory that each accelerator needs; 0 without accelerators.
        gradients: Seconds until the last gradient has arrived, without an optimizer.
        exposed: Seconds that the optimizer adds.
        busy: Seconds by part of the step; parts overlap.
        gains: By part, the seconds saved if it took no time. Empty if a memory is too small, or if the optimizer adds
            less than `HIDDEN` to the gradients.
        breaks: What breaks first, a key of `ADVICE`: a memory that is too small, or the part with the largest gain;
            None if neither.
        fits_from: The fewest nodes whose memory suffices; None if it suffices here or never.
    """

    mode: str
    nodes: int
    elements: int
    host_gb: float
    accelerator_gb: float
    gradients: float
    exposed: float
    busy: dict[str, float]
    gains: dict[str, float]
    breaks: str | None
    fits_from: int | None

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return self.breaks is None or not self.breaks.endswith("memory")


def forecast(mode: str, nodes: int, elements: int, machine: Machine, traffic: Traffic, setting: Setting) -> Forecast:
    """One forecast.

    Data-parallel and sharded steps run on hosts without accelerators, one rank per host. Offloaded steps have one rank
    per accelerator. The accelerator keeps its part of parameters and gradients; its host keeps masters and states.
    """
    line = _run(mode, nodes, elements, machine, traffic, setting)
    memory = needs(mode, nodes, elements, machine, traffic, setting)
    lacking = _lacks(memory, machine)
    gains = {}
    if lacking is None and line.exposed > HIDDEN * line.hidden:
        for part, (ideal, lighter, changed) in _without(machine, traffic, setting).items():
            gains[part] = line.exposed - _run(mode, nodes, elements, ideal, lighter, changed).exposed
    return Forecast(
        mode,
        nodes,
        elements,
        *memory,
        line.hidden,
        line.exposed,
        dict(line.busy),
        gains,
        lacking or max(gains, key=lambda part: gains[part], default=None),
        fewest_nodes(mode, elements, machine, traffic, setting) if lacking else None,
    )


def grid(
    nodes: Iterable[int], elements: Iterable[int], machine: Machine, traffics: dict[str, Traffic], setting: Setting
) -> list[Forecast]:
    """All combinations; `traffics` has the bytes by mode."""
    return [
        forecast(mode, count, size, machine, traffics[mode], setting)
        for mode in traffics
        for size in elements
        for count in nodes
    ]


def traffics(rule: str, dtype: str, clip: bool, state_dtype: str, master_weights: bool) -> dict[str, Traffic]:
    """The bytes of a step by mode.

    Offloaded gradients and weights are bfloat16, and the host has float32 masters. Rules that need sums over whole
    tensors have no offloaded entry.
    """
    stored: dict[str, Any] = {"state_dtype": state_dtype}
    whole = traffic(rule, dtype, clip=clip, master_weights=master_weights, **stored)
    found = {"data parallel": whole, "sharded": whole}
    if not needs_whole_tensors(rule):
        found["offloaded"] = traffic(rule, "bfloat16", clip=clip, masters_lead=True, master_weights=True, **stored)
    return found


def fewest_nodes(mode: str, elements: int, machine: Machine, traffic: Traffic, setting: Setting) -> int | None:
    """The fewest nodes whose memory suffices; None if more nodes do not help.

    Examples:
        AdamW in float32 needs 16 bytes per element, so 819 GB of a host hold 51 billion elements.

        >>> fewest_nodes("sharded", 100_000_000_000, Machine(), traffic("adamw"), Setting())
        2
        >>> fewest_nodes("data parallel", 100_000_000_000, Machine(), traffic("adamw"), Setting())
    """
    counts = range(1, MOST_NODES + 1)
    # More nodes never need more memory each.
    at = bisect_left(
        counts, True, key=lambda nodes: _lacks(needs(mode, nodes, elements, machine, traffic, setting), machine) is None
    )
    return counts[at] if at < len(counts) else None


def _bucket(elements: int, ranks: int, traffic: Traffic, setting: Setting, of_hosts: bool) -> int:
    few, many = BUCKETS
    if of_hosts:
        return max(1, setting.bucket_bytes // traffic.grad, ceil(elements / many))
    return max(1, min(setting.slot_bytes // traffic.grad * ranks, ceil(elements / few)))


def _run(mode: str, nodes: int, elements: int, machine: Machine, traffic: Traffic, setting: Setting) -> Timeline:
    of_hosts = mode != "offloaded"
    ranks = nodes if of_hosts else nodes * machine.accelerators
    tflops = machine.host_tflops if of_hosts else machine.accelerator_tflops
    work = Work(
        elements=elements,
        bucket=_bucket(elements, ranks, traffic, setting, of_hosts),
        grad_bytes=traffic.grad,
        param_bytes=traffic.param,
        # The backward pass has four of the six operations per parameter and token.
        arrival=4 * elements * setting.tokens / (tflops * 1e12),
        clip=setting.clip,
    )
    if mode == "data parallel":
        return simulate.data_parallel(work, Assumed(machine, traffic, ranks))
    if mode == "sharded":
        return simulate.sharded(work, Assumed(machine, traffic, ranks), ranks)
    # During the step, gradients are copied into the host's memory and values out of it.
    costs = Assumed(machine, traffic, ranks, on_a_host=machine.accelerators, copied=(traffic.grad, traffic.param))
    return simulate.offloaded(work, costs, ranks, link=machine.link_gbs * GIGA, slots=setting.slots)


def _without(machine: Machine, traffic: Traffic, setting: Setting) -> dict[str, tuple[Machine, Traffic, Setting]]:
    """For each part, the arguments with which it takes no time."""
    at_once = float("inf")
    return {
        "network": (replace(machine, network_gbs=at_once), traffic, setting),
        "messages": (replace(machine, latency_us=0.0), traffic, setting),
        "step": (replace(machine, host_gbs=at_once), traffic, setting),
        "link": (replace(machine, link_gbs=at_once), traffic, setting),
        "norm": (machine, replace(traffic, norm=0), replace(setting, clip=False)),
    }


def needs(
    mode: str, nodes: int, elements: int, machine: Machine, traffic: Traffic, setting: Setting
) -> tuple[float, float]:
    """The GB that each host and each accelerator needs."""
    if mode == "data parallel":
        return elements * traffic.memory / GIGA, 0.0
    if mode == "sharded":
        return elements * traffic.memory / nodes / GIGA, 0.0
    ring = setting.slots * setting.slot_bytes * machine.accelerators * (1 + traffic.param / traffic.grad)
    on_accelerator = elements / (nodes * machine.accelerators) * (traffic.param + traffic.grad)
    return (elements / nodes * traffic.kept + ring) / GIGA, on_accelerator / GIGA


def _lacks(memory: tuple[float, float], machine: Machine) -> str | None:
    """Which memory is too small; None if none is."""
    host_gb, accelerator_gb = memory
    usable = 1 - machine.reserve
    if accelerator_gb > machine.accelerator_gb * usable:
        return "accelerator memory"
    return "host memory" if host_gb > machine.host_gb * usable else None


def rows(forecasts: Iterable[Forecast]) -> list[dict[str, Any]]:
    """Ready for JSON."""
    return [{**vars(entry), "fits": entry.fits} for entry in forecasts]
