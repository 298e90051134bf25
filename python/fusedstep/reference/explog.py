"""exp and log in plain operations, the same bits on every processor.

The constants of log are those of Sun's fdlibm; exp is a polynomial fitted to it (float32: of the least largest error,
4e-9) or its Taylor series (float64).
"""

from dataclasses import dataclass
from math import factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class ExpConstants:
    """For one dtype: the range, what rounds to an integer, ln 2 in two parts, the polynomial, the exponent's bits."""

    least: float
    most: float
    rounding: float
    ln2: tuple[float, float]
    polynomial: tuple[float, ...]
    bits: Any
    bias: int
    mantissa: int


_EXP = {
    np.dtype(np.float32): ExpConstants(
        -104.0,
        89.0,
        1.5 * 2**23,
        (0.693359375, -2.12194440e-4),
        (1.3814540579915047e-3, 8.36874544620514e-3, 4.166838899254799e-2, 1.666652113199234e-1, 4.999999403953552e-1),
        np.int32,
        127,
        23,
    ),
    np.dtype(np.float64): ExpConstants(
        -746.0,
        710.0,
        1.5 * 2**52,
        (6.93147180369123816490e-01, 1.90821492927058770002e-10),
        tuple(1.0 / factorial(k) for k in range(13, 1, -1)),
        np.int64,
        1023,
        52,
    ),
}
_LOG_SERIES = (
    1.479819860511658591e-01,
    1.531383769920937332e-01,
    1.818357216161805012e-01,
    2.222219843214978396e-01,
    2.857142874366239149e-01,
    3.999999999940941908e-01,
    6.666666666666735130e-01,
)
#: Per dtype: the series, ln 2 in two parts, and √2 − 1.
_LOG = {
    np.dtype(np.float32): (
        (0.24279078841, 0.28498786688, 0.40000972152, 0.66666662693),
        (6.9313812256e-01, 9.0580006145e-06),
        0.41421356,
    ),
    np.dtype(np.float64): (_LOG_SERIES, (6.93147180369123816490e-01, 1.90821492927058770002e-10), 0.41421356237309503),
}


def exponential(x: Array) -> Array:
    """e^x = 2^n e^r with |r| <= ln(2)/2, of float32 or float64; 0 and infinite outside of the dtype's range."""
    c, real = _EXP[x.dtype], x.dtype.type
    x = np.where(x > real(c.most), real(c.most), x)
    x = np.where(x < real(c.least), real(c.least), x)
    # Adding and taking away 1.5 * 2^23 (2^52) rounds to the nearest integer, which stands in the low bits meanwhile.
    rounding = real(c.rounding)
    shifted = x * real(1.44269504088896341) + rounding
    n = shifted.view(c.bits) - rounding.view(c.bits)
    whole = shifted - rounding
    r = (x - whole * real(c.ln2[0])) - whole * real(c.ln2[1])
    p = (polynomial(r, c.polynomial) * (r * r) + r) + real(1.0)
    # 2^n in two factors: one alone would leave the range of exponents near both ends.
    half = n >> c.bits(1)
    powers = [((k + c.bits(c.bias)) << c.bits(c.mantissa)).view(real) for k in (half, n - half)]
    scaled: Array = (p * powers[0]) * powers[1]
    return scaled


def polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    """By Horner's rule, the highest power first."""
    real = x.dtype.type
    p: Array = x * real(coefficients[0]) + real(coefficients[1])
    for coefficient in coefficients[2:]:
        p = p * x + real(coefficient)
    return p


def log_of(f: Array, n: Array) -> Array:
    """log(2^n (1 + f)), f in [√½ − 1, √2 − 1], by the series in s = f / (2 + f)."""
    series, ln2, _ = _LOG[f.dtype]
    real = f.dtype.type
    s = f / (f + real(2.0))
    z = s * s
    r = polynomial(z, series) * z
    half_square = (f * f) * real(0.5)
    value: Array = n * real(ln2[0]) - ((half_square - (s * (half_square + r) + n * real(ln2[1]))) - f)
    return value


def logarithm(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The natural logarithm of finite float64 x >= 1: x = 2^n m, m in [√½, √2)."""
    bits = x.view(np.int64)
    n = (bits - np.int64(0x3FE6A09E667F3BCD)) >> 52
    m = (bits - (n << 52)).view(np.float64)
    return log_of(m - 1.0, n.astype(np.float64))


def log_1p(x: Array) -> Array:
    """log(1 + x) for x in [0, 1], of float32 or float64."""
    real = x.dtype.type
    far = x > real(_LOG[x.dtype][2])
    return log_of(np.where(far, (x - real(1.0)) * real(0.5), x), np.where(far, real(1.0), real(0.0)))
