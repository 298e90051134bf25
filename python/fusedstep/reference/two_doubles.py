"""Numbers of twice the precision of double: high and low parts.

Dekker, "A floating-point technique for extending the available precision", Numerische Mathematik 18, 1971.
"""

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
#: A number, and what rounding left of it.
TwoDoubles = tuple[Doubles, Doubles]


def two_sum(a: Doubles, b: Doubles) -> TwoDoubles:
    """a + b without error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Doubles, b: Doubles) -> TwoDoubles:
    """a · b without error, by Dekker's splitting: the C++ has a fused multiply-add for it."""
    product = a * b
    # Near the ends of the range of doubles, numbers are scaled by a power of 2, so that no part leaves the range.
    size = np.abs(product)
    scale = np.where(size > 2.0**900, 2.0**-100, np.where(size < 2.0**-800, 2.0**250, 1.0))
    larger, smaller = np.where(np.abs(a) >= np.abs(b), (a, b), (b, a))
    x, y = larger * np.minimum(scale, 1.0), smaller * np.maximum(scale, 1.0)
    near = x * y
    x_high, x_low = split(x)
    y_high, y_low = split(y)
    error = ((x_high * y_high - near) + x_high * y_low + x_low * y_high) + x_low * y_low
    return product, ((near - product * scale) + error) / scale


def split(a: Doubles) -> TwoDoubles:
    """Two halves of 26 bits each."""
    huge = np.where(np.abs(a) > 2.0**990, 2.0**-30, 1.0)  # whose product would overflow
    small = a * huge
    scaled = small * 134217729.0
    high = (scaled - (scaled - small)) / huge
    return high, a - high


def multiply(a: TwoDoubles, b: TwoDoubles) -> TwoDoubles:
    """a · b."""
    product, error = two_product(a[0], b[0])
    return two_sum(product, error + (a[0] * b[1] + a[1] * b[0]))


def add(a: TwoDoubles, b: TwoDoubles) -> TwoDoubles:
    """a + b."""
    total, error = two_sum(a[0], b[0])
    rest, below = two_sum(a[1], b[1])
    near, low = two_sum(total, error + rest)
    return two_sum(near, low + below)


def negative(a: TwoDoubles) -> TwoDoubles:
    """−a."""
    return -a[0], -a[1]


def quotient(a: int, b: int, shape: tuple[int, ...]) -> TwoDoubles:
    """a / b of whole numbers below 2^53, for every channel."""
    near = np.full(shape, a / b)
    product, error = two_product(near, np.full(shape, float(b)))
    return near, ((a - product) - error) / b


def accumulate(total: TwoDoubles, more: TwoDoubles) -> TwoDoubles:
    """The sum. Its low part may grow beyond half a unit in the last place of the high one."""
    high, low = two_sum(total[0], more[0])
    return high, total[1] + (more[1] + low)
