"""The hardware of a cluster, and what the parts of a step cost on it."""

from dataclasses import dataclass
from typing import Protocol

from fusedstep.apps.bench.scaling.collectives import Time, exchange
from fusedstep.apps.bench.scaling.traffic import Traffic

GIGA = 1e9


@dataclass(frozen=True)
class Machine:
    """One node and its network; all nodes are alike. The defaults are assumptions, not measurements.

    Attributes:
        host_gbs: Bandwidth of a host's memory, all sockets together, in GB/s.
        host_gb: Its size, in GB.
        network_gbs: What one rank sends over the network, each way, in GB/s.
        latency_us: Of one message, in microseconds.
        link_gbs: Between an accelerator and its host, each way, in GB/s.
        accelerators: On a node.
        accelerator_gb: Memory of one, in GB.
        accelerator_tflops: What one computes in training, in 10¹² operations a second.
        host_tflops: What a host computes where there is no accelerator.
        reserve: The part of every memory that activations, gathered layers and the system take.
        efficiency: The time of a loop that only moves the bytes over that of the step.
        algorithm: Of the collectives, see `exchange`.
    """

    host_gbs: float = 300.0
    host_gb: float = 1024.0
    network_gbs: float = 50.0
    latency_us: float = 5.0
    link_gbs: float = 50.0
    accelerators: int = 8
    accelerator_gb: float = 80.0
    accelerator_tflops: float = 400.0
    host_tflops: float = 3.0
    reserve: float = 0.2
    efficiency: float = 0.9
    algorithm: str = "best"


class Costs(Protocol):
    """What the parts of a step cost, in seconds; measured here, or assumed of other machines."""

    def exchange(self, kind: str, nbytes: float) -> Time:
        """A collective of an array of so many bytes."""

    def step(self, elements: float) -> float:
        """A step on so many elements, by every rank at once."""

    def norm(self, elements: float) -> float:
        """The norm of so many gradients, by every rank at once, before ranks add theirs up."""


@dataclass(frozen=True)
class Assumed:
    """The costs on a cluster, by a machine's constants.

    Attributes:
        machine: The constants.
        traffic: Bytes of a step.
        ranks: Of the whole cluster.
        on_a_host: Ranks that share a host's memory.
        copied: Bytes an element that copies move through the host's memory meanwhile: into it, and out of it.
    """

    machine: Machine
    traffic: Traffic
    ranks: int
    on_a_host: int = 1
    copied: tuple[float, float] = (0.0, 0.0)

    def exchange(self, kind: str, nbytes: float) -> Time:
        """By latency and bandwidth of the network."""
        m = self.machine
        return exchange(
            kind,
            self.ranks,
            nbytes,
            latency=1e-6 * m.latency_us,
            bandwidth=m.network_gbs * GIGA,
            algorithm=m.algorithm,
        )

    def step(self, elements: float) -> float:
        """At the part of the memory's bandwidth that the step reaches."""
        return elements * (self.traffic.moved + sum(self.copied)) / self._bandwidth()

    def norm(self, elements: float) -> float:
        """A pass over the gradients, where there is one."""
        return elements * (self.traffic.norm + self.copied[0]) / self._bandwidth() if self.traffic.norm else 0.0

    def _bandwidth(self) -> float:
        return self.machine.host_gbs * GIGA * self.machine.efficiency / self.on_a_host
