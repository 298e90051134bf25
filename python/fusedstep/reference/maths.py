"""Functions of arrays that the rules share."""

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.reference.sums import pair_sum

Array = NDArray[Any]


def blend(a: Array, b: Array, weight: Any) -> Array:
    """A + weight (b − a)."""
    return a + weight * (b - a)  # type: ignore[no-any-return]


def sign(x: Array) -> Array:
    """1, −1, and x itself where it is 0 or NaN."""
    one = x.dtype.type(1)
    return np.where(x > 0, one, np.where(x < 0, -one, x))


def sum_of_squares(x: Array) -> float:
    """In double, in the order of every sum."""
    flat = x.ravel(order="K")
    return pair_sum(flat, flat)


def root_mean_square(x: Array) -> float:
    """The root of the mean of the squares; 0 of no elements."""
    return sqrt(sum_of_squares(x) / x.size) if x.size else 0.0
