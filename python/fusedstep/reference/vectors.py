"""Products and sums of whole vectors, in the order of the native ones."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.reference.codec import narrowed
from fusedstep.reference.sums import pair_sum

Array = NDArray[Any]


def dot(x: Array, y: Array) -> float:
    """x · y, in double."""
    return pair_sum(x, y)


def axpy(a: float, x: Array, y: Array) -> None:
    """Y ← y + a x."""
    with np.errstate(all="ignore"):
        y[...] = y + y.dtype.type(a) * x


def narrow(values: Array, out: Array) -> None:
    """Rounds float32 to an array of 16 bits, to the nearest."""
    out[...] = narrowed(values, out.dtype)
