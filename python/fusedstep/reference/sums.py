"""The order of every sum."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 32
CHUNK = 4096
STRIP = 256
#: Of squares below 2^-1022, which lose bits, 2^40 do not matter in it.
LEAST_SUM = 2.0**-970


def lane_sum(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums the last axis in double: value i to lane i mod 32, then the lanes in a tree, far half to near half."""
    length = values.shape[-1]
    rows = -(-length // LANES)
    padded = np.zeros((*values.shape[:-1], rows * LANES))
    padded[..., :length] = values
    # NumPy adds along an outer axis one row after the other.
    lanes = np.add.reduce(padded.reshape(*values.shape[:-1], rows, LANES), axis=-2, initial=0.0)
    return lane_tree(lanes)


def term_sum(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums the last axis: strips of 64 as (t0 + t1) + (t2 + t3), rows of 16 of their dtype; strips in 16 doubles."""
    length = values.shape[-1]
    strips = -(-length // 64)
    padded = np.zeros((*values.shape[:-1], strips * 64), values.dtype)
    padded[..., :length] = values
    t = padded.reshape(*values.shape[:-1], strips, 4, 16)
    terms = (t[..., 0, :] + t[..., 1, :]) + (t[..., 2, :] + t[..., 3, :])
    return lane_tree(np.add.reduce(terms.astype(np.float64), axis=-2, initial=0.0))


def lane_tree(lanes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adds the lanes of the last axis, a power of two of them."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def pair_sums(a: NDArray[Any], b: NDArray[Any]) -> Iterator[float]:
    """The lane sum of a · b of each chunk of two vectors."""
    for start in range(0, a.size, CHUNK):
        part = slice(start, start + CHUNK)
        yield float(lane_sum(a[part].astype(np.float64) * b[part].astype(np.float64)))


def strip_sums(a: NDArray[Any], b: NDArray[Any]) -> Iterator[float]:
    """The same as telemetry does it: the 8 rows of lanes of a strip are added in the vectors' dtype first."""
    for start in range(0, a.size, CHUNK):
        terms = a[start : start + CHUNK] * b[start : start + CHUNK]
        strips = np.zeros((-(-terms.size // STRIP), STRIP // LANES, LANES), a.dtype)
        strips.reshape(-1)[: terms.size] = terms
        rows = np.add.reduce(strips, axis=1, initial=0.0)
        yield float(lane_sum(rows.astype(np.float64).reshape(-1)))


def in_range(total: float) -> bool:
    """Whether nothing was lost of a sum of products of doubles: none overflowed, and none that counts underflowed."""
    return LEAST_SUM <= abs(total) < np.inf


def scaled_to_one(x: NDArray[Any]) -> tuple[NDArray[Any], int] | None:
    """x / 2^e with the largest of it between 1/2 and 1, and e; None where it is 0, or not finite."""
    largest = float(np.abs(x).max(initial=0.0))
    if not 0.0 < largest < np.inf:
        return None
    exponent = int(np.frexp(largest)[1])
    return np.ldexp(x, -exponent), exponent


def pair_sum(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Sums a · b of two vectors, chunk after chunk."""
    total = 0.0
    with np.errstate(all="ignore"):
        for part in pair_sums(a, b):  # not sum(), which compensates from Python 3.12 on
            total += part
    return total
