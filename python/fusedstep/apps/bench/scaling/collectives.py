"""The time of an exchange between ranks: messages one after the other, and the bytes that a rank sends.

Every message costs a latency, every byte the rank's bandwidth. Adding numbers up takes no time here.
"""

from dataclasses import dataclass
from math import ceil, log2

ALGORITHMS = ("ring", "tree", "best")
KINDS = ("all_reduce", "reduce_scatter", "all_gather")


@dataclass(frozen=True)
class Time:
    """Seconds of one exchange: of messages, and of bytes."""

    latency: float
    volume: float

    @property
    def total(self) -> float:
        """Both."""
        return self.latency + self.volume


def volume(kind: str, ranks: int, nbytes: float) -> float:
    """The bytes that each rank sends, of an array of `nbytes` as a whole (all shards together).

    All-reduce is a reduce-scatter and an all-gather.

    Examples:
        >>> volume("all_reduce", 4, 1000.0), volume("all_gather", 4, 1000.0), volume("all_reduce", 1, 1000.0)
        (1500.0, 750.0, 0.0)
    """
    share = (ranks - 1) / ranks * nbytes
    return 2 * share if kind == "all_reduce" else share


def messages(kind: str, ranks: int, algorithm: str) -> int:
    """How many messages follow one another: round the ring, or up and down a tree.

    Examples:
        >>> messages("all_reduce", 8, "ring"), messages("all_reduce", 8, "tree"), messages("all_gather", 1, "tree")
        (14, 6, 0)
    """
    once = ranks - 1 if algorithm == "ring" else ceil(log2(ranks))
    return 2 * once if kind == "all_reduce" else once


def exchange(
    kind: str, ranks: int, nbytes: float, *, latency: float, bandwidth: float, algorithm: str = "best"
) -> Time:
    """The time of one exchange.

    A ring sends the least: `volume`. A tree halves the ranks with every message. Its reduce-scatter and all-gather
    (recursive halving and doubling) send as much as the ring's. Its all-reduce sends the whole array up and down, cut
    into pieces that follow one another.

    Args:
        kind: One of `KINDS`.
        ranks: How many.
        nbytes: Of the whole array.
        latency: Seconds a message.
        bandwidth: Bytes a second that a rank sends.
        algorithm: "ring", "tree", or "best": the faster of both.
    """
    if algorithm == "best":
        times = [
            exchange(kind, ranks, nbytes, latency=latency, bandwidth=bandwidth, algorithm=name)
            for name in ("ring", "tree")
        ]
        return min(times, key=lambda time: time.total)
    sent = volume(kind, ranks, nbytes)
    if algorithm == "tree" and kind == "all_reduce" and ranks > 1:
        sent = 2 * nbytes
    return Time(messages(kind, ranks, algorithm) * latency, sent / bandwidth)
