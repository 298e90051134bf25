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
        host_gb: Size of a host's memory, in GB.
        network_gbs: Network bandwidth of one rank, each way, in GB/s.
        latency_us: Latency of one message, in microseconds.
        link_gbs: Bandwidth between an accelerator and its host, each way, in GB/s.
        accelerators: Accelerators per node.
        accelerator_gb: Memory of one accelerator, in GB.
        accelerator_tflops: What one accelerator computes in training, in 10¹² operations per second.
        host_tflops: The same for a host without accelerators.
        reserve: The fraction of every memory for activations, gathered layers and the system.
        efficiency: The time of a loop that only moves the bytes, divided by the time of the step.
        algorithm: The algorithm of the collectives, see `exchange`.
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
    """The cost of the parts of a step, in seconds: measured on this machine, or assumed for others."""

    def exchange(self, kind: str, nbytes: float) -> Time:
        """A collective on an array of this many bytes."""

    def step(self, elements: float) -> float:
        """A step of all ranks at the same time, each on this many elements."""

    def norm(self, elements: float) -> float:
        """The norm of this many gradients on each rank, at the same time, without the collective."""


@dataclass(frozen=True)
class Assumed:
    """The costs on a cluster, computed from the constants of a machine.

    Attributes:
        machine: The constants.
        traffic: Bytes of a step.
        ranks: Ranks of the whole cluster.
        on_a_host: Ranks that share a host's memory.
        copied: Bytes per element that copies move during the step: into the host's memory, and out of it.
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
