"""Dropout: what random words keep and what they drop."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.reference.codec import store, widened
from fusedstep.reference.philox import element_words

Array = NDArray[Any]


def dropped_words(p: float) -> float:
    """How many of the 2³² random words drop, when the probability is p."""
    return float(np.rint(p * 2.0**32))


def dropout(x: Array, residual: Array | None, y: Array, key: int, offset: int, unit: int, p: float) -> None:
    """y = residual + (x / (1 − p) where the random word does not drop it, else 0): a word for every `unit` elements.

    p is rounded to a multiple of 2⁻³².
    """
    dropped = dropped_words(p)
    scale = 1.0 / (1.0 - dropped * 2.0**-32)
    words = np.repeat(element_words(key, offset, x.size // unit), unit)
    kept = (words >= np.uint32(dropped)).reshape(x.shape)
    with np.errstate(all="ignore"):
        z = widened(x)
        values = np.where(kept, z * z.dtype.type(scale), z.dtype.type(0))
        store(y, values if residual is None else widened(residual) + values)
