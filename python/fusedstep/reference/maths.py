"""Functions of arrays that the rules share."""

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.reference.sums import in_range, pair_sum, scaled_to_one

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


def norm_parts(x: Array) -> tuple[float, int]:
    """(r, e): the root of the sum of the squares is r · 2^e. e is 0 where the squares need no scaling."""
    squares = sum_of_squares(x)
    if in_range(squares) or x.dtype != np.float64:
        return sqrt(squares), 0
    with np.errstate(all="ignore"):
        scaled = scaled_to_one(x)
    if scaled is None:
        return sqrt(squares), 0
    return sqrt(sum_of_squares(scaled[0])), scaled[1]


def root_mean_square(x: Array) -> float:
    """The root of the mean of the squares; 0 of no elements."""
    if not x.size:
        return 0.0
    squares = sum_of_squares(x)
    if in_range(squares) or x.dtype != np.float64:
        return sqrt(squares / x.size)
    root, exponent = norm_parts(x)
    return float(np.ldexp(root / sqrt(x.size), exponent))
