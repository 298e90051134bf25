"""exp and log in plain operations, the same bits on every processor.

The constants are those of Moshier's Cephes (expf) and Sun's fdlibm (log).
"""

import numpy as np
from numpy.typing import NDArray

F = np.float32


def exponential(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """e^x = 2^n e^r with |r| <= ln(2)/2; below -104 it is 0, above 89 infinite, within 2 ULP between."""
    x = np.where(x < F(-104.0), F(-104.0), x)
    x = np.where(x > F(89.0), F(89.0), x)
    # Adding and taking away 1.5 * 2^23 rounds to the nearest integer, which stands in the low bits meanwhile.
    rounding = F(12582912.0)
    shifted = x * F(1.44269504088896341) + rounding
    n = shifted.view(np.int32) - rounding.view(np.int32)
    whole = shifted - rounding
    r = (x - whole * F(0.693359375)) - whole * F(-2.12194440e-4)
    p = r * F(1.9875691500e-4) + F(1.3981999507e-3)
    for coefficient in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + F(coefficient)
    p = (p * (r * r) + r) + F(1.0)
    # 2^n in two factors: one alone would leave the range of exponents near both ends.
    half = n >> 1
    scaled: NDArray[np.float32] = (p * power_of_two(half)) * power_of_two(n - half)
    return scaled


def power_of_two(n: NDArray[np.int32]) -> NDArray[np.float32]:
    """2^n, by its exponent bits."""
    return ((n + np.int32(127)) << np.int32(23)).view(np.float32)


def logarithm(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The natural logarithm of finite x >= 1: x = 2^k m, m in [√½, √2), log m by its series in s = (m−1)/(m+1)."""
    bits = x.view(np.int64)
    k = (bits - np.int64(0x3FE6A09E667F3BCD)) >> 52
    m = (bits - (k << 52)).view(np.float64)
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    p = np.full_like(x, 1.479819860511658591e-01)
    for coefficient in (
        1.531383769920937332e-01,
        1.818357216161805012e-01,
        2.222219843214978396e-01,
        2.857142874366239149e-01,
        3.999999999940941908e-01,
        6.666666666666735130e-01,
    ):
        p = p * z + coefficient
    r = p * z
    half_square = 0.5 * (f * f)
    n = k.astype(np.float64)
    return n * 6.93147180369123816490e-01 - (
        (half_square - (s * (half_square + r) + n * 1.90821492927058770002e-10)) - f
    )
