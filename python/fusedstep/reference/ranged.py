"""Sums of products beyond what a double holds, as s · 2^k: the squares of doubles beyond 10^±154 are no numbers."""

from collections.abc import Sequence

import numpy as np

from fusedstep.reference.sums import in_range

#: s and k for s · 2^k; k is 0 where the sum was in range, and even for squares.
Ranged = tuple[float, int]


def root_of(squares: Ranged, divisor: float = 1.0) -> float:
    """√squares / divisor."""
    value, exponent = squares
    with np.errstate(all="ignore"):
        return float(np.ldexp(np.sqrt(np.float64(value)) / divisor, exponent // 2))


def total_of(parts: Sequence[Ranged]) -> Ranged:
    """The sum in the order of the parts: as it is, or at the scale of the largest part where that is out of range."""
    plain = 0.0
    for value, _ in parts:
        plain += value
    magnitudes = [int(np.frexp(value)[1]) - 1 + k for value, k in parts if value != 0.0 and np.isfinite(value)]
    finite = all(np.isfinite(value) for value, _ in parts)
    scaled = any(k != 0 for _, k in parts)
    if not finite or (not scaled and in_range(plain)) or not magnitudes:
        return plain, 0
    exponent = max(magnitudes)
    exponent -= exponent % 2
    total = 0.0
    with np.errstate(all="ignore"):
        for value, k in parts:
            total += float(np.ldexp(value, k - exponent))
    return total, exponent
