"""How numbers are stored in fewer bits than they are computed in.

8 bits: every 256 numbers, in the order of the memory, share a scale, a power of 2 in float32; what is left of a number
is coded as G.711 (μ-law) codes it. With an offset δ added it lies between two floats of 4 bits of mantissa, and these,
counted from δ on, are the codes: value(c) = scale · (float(base + c) − δ), where float(k) is the number whose exponent
and 4 bits are k. Signed, a sign and 128 codes: δ = 2⁻⁷ = float(base). Without a sign, 256 codes: δ = 2⁻¹⁵. The scale is
the least with which the last code, 1.9375 − δ, is no less than the largest number.

Rounding at random goes up with the probability of what is cut off, so that the mean of what is stored is what was
computed. A moving average needs it: it moves by less than half a unit of what it is stored in, and rounded to the
nearest it would not move at all.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedstep._common.arrays import dtype_name

Array = NDArray[Any]
#: Words of 32 bits.
Words = NDArray[Any]

SCALED = 256
#: The arithmetic on codes leaves out scales beyond these: it would meet subnormal numbers, or infinity.
LEAST_SCALE, LARGEST_SCALE = np.float32(2.0**-104), np.float32(2.0**126)
_SHIFT = 19
_MASK64 = (1 << 64) - 1
_LAST = 0x7FF
PARAM_STREAM = 4
_PATTERN = 256


class Companding(NamedTuple):
    """See above; the codes are the last bits of `base` … 0x7FF."""

    base: int
    offset: np.float32
    largest: np.float32


def _companding(octaves: int) -> Companding:
    base = (128 - octaves) << 4
    offset, last = (np.array([code << _SHIFT], np.uint32).view(np.float32)[0] for code in (base, _LAST))
    # A little less than the value of the last code: what is rounded up from there must not pass it.
    return Companding(base, offset, (last - offset) * np.float32(1 - 2.0**-20))


SIGNED, UNSIGNED = _companding(8), _companding(16)


def widened(stored: Array) -> Array:
    """The values in the dtype of the arithmetic on them, float32 or float64: the array itself where it is that."""
    if dtype_name(stored.dtype) == "bfloat16":
        if stored.ndim == 0:  # NumPy's arithmetic would make a number of it
            return widened(stored.reshape(1)).reshape(())
        return (stored.view(np.uint16).astype(np.uint32, order="K") << np.uint32(16)).view(np.float32)
    values: Array = stored.astype(np.float64 if stored.dtype == np.float64 else np.float32, order="K", copy=False)
    return values


def narrowed(values: Array, dtype: np.dtype[Any], words: Words | None = None) -> Array:
    """The values in a dtype of stored ones: rounded to the nearest, ties to even, or by random words of 32 bits."""
    if dtype == values.dtype:
        return values
    if values.ndim == 0:  # NumPy's arithmetic would make a number of it
        return narrowed(values.reshape(1), dtype, words).reshape(())
    if dtype == np.float16:
        if words is not None:
            return _random_float16(values.view(np.uint32), words).view(np.float16)
        with np.errstate(over="ignore"):
            return values.astype(np.float16, order="K")
    bits = values.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + (bits >> 16 & 1) if words is None else words >> 16)
    nan = bits & 0x80000000 | 0x7FC00000
    return (np.where(np.isnan(values), nan, rounded) >> 16).astype(np.uint16, order="K").view(dtype)


def _random_float16(bits: Words, words: Words) -> Words:
    magnitude = bits & 0x7FFFFFFF
    exponent = magnitude >> 23
    # Below the least normal number units are constant: this many bits are cut off.
    cut = 126 - np.minimum(exponent, 112)
    shift = np.minimum(cut, 31)
    mantissa = (magnitude & 0x7FFFFF | np.where(exponent == 0, 0, 0x800000).astype(np.uint32)) >> np.minimum(
        cut - shift, 24
    )
    small = (mantissa + (words >> (32 - shift))) >> shift
    normal = np.minimum((magnitude - np.uint32(112 << 23) + (words >> 19)) >> 13, 0x7C00)
    finite = np.where(magnitude < 113 << 23, small, normal)
    special = np.where(magnitude > 0x7F800000, 0x7E00, 0x7C00)
    rounded: Words = (np.where(magnitude >= 143 << 23, special, finite) | (bits >> 16 & 0x8000)).astype(np.uint16)
    return rounded


def scale_count(size: int) -> int:
    """The number of scales of `size` numbers."""
    return -(-size // SCALED)


def decode_8bit(codes: NDArray[np.uint8], scales: NDArray[np.float32], signed: bool) -> NDArray[np.float32]:
    """The numbers of a vector of codes."""
    c = SIGNED if signed else UNSIGNED
    magnitude = (codes & 0x7F if signed else codes).astype(np.uint32)
    values = ((magnitude + np.uint32(c.base)) << _SHIFT).view(np.float32) - c.offset
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        values *= np.repeat(scales, SCALED)[: codes.size]
    return np.where(codes & 0x80, -values, values) if signed else values


def encode_8bit(
    values: NDArray[np.float32], signed: bool, words: Words | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes and scales of a vector: rounded by random words of 32 bits, or to the nearest.

    An infinity or a NaN, or a sign where there should be none, makes NaN of its whole block. The code 0 is not used
    where there is no sign, because the root of so small a number would divide; zeros alone have the scale 0.
    """
    c = SIGNED if signed else UNSIGNED
    padded = np.zeros((scale_count(values.size), SCALED), np.float32)
    padded.reshape(-1)[: values.size] = np.abs(values) if signed else values
    with np.errstate(all="ignore"):
        least = padded.max(axis=1, initial=0) * (np.float32(1) / c.largest)
        lost = ~(least < LARGEST_SCALE) | np.signbit(padded).any(axis=1)
        power = (np.where(lost, 0, least).astype(np.float32).view(np.uint32) + 0x7FFFFF & 0x7F800000).view(np.float32)
        scales = np.where(least > 0, np.maximum(power, LEAST_SCALE), np.float32(0))
        scales[lost] = np.nan
        unused = ~(scales > 0)
        place = padded * np.where(unused, 0, np.float32(1) / scales).astype(np.float32)[:, None] + c.offset
    places = place.reshape(-1)[: values.size].view(np.uint32)
    places = places + (np.uint32(1 << (_SHIFT - 1)) if words is None else words >> (32 - _SHIFT))
    codes = places >> _SHIFT
    if signed:
        codes = codes & 0x7F | np.where(np.signbit(values), 0x80, 0).astype(np.uint32)
    else:
        codes = np.maximum(codes, c.base + 1) & 0xFF
    return np.where(np.repeat(unused, SCALED)[: values.size], 0, codes).astype(np.uint8), scales


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK64
    return x ^ x >> 31


def random_words(key: int, stream: int, size: int, offset: int = 0) -> Words:
    """The random words of an array, one an element in the order of the memory: pattern(e mod 256) ^ place(e div 256).

    Any two of them are independent. That is as good as one hash for each, because only sums of pairs count here.

    Args:
        key: Made of the seed, the parameter and the step.
        stream: k for the k-th state that the rule keeps, 4 for the parameter.
        size: How many.
        offset: The first one's element.
    """
    key = _mix((key + stream) & _MASK64)
    # Wellons' lowbias32 ("Prospecting for Hash Functions", 2018) with a key before each product.
    x: Any = np.arange(_PATTERN, dtype=np.uint32) + np.uint32(key & 0xFFFFFFFF)
    x = (x ^ x >> 16) * np.uint32(0x7FEB352D) ^ np.uint32(key >> 32)
    x = (x ^ x >> 15) * np.uint32(0x846CA68B)
    pattern = x ^ x >> 16
    first = offset // _PATTERN
    places = _places(np.arange(first, first + size // _PATTERN + 2, dtype=np.uint64) ^ np.uint64(key))
    words: Words = (places[:, None] ^ pattern).reshape(-1)[offset % _PATTERN :][:size]
    return words


def _places(x: Any) -> Any:
    """The upper half of `_mix`."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> 30) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> 27) * np.uint64(0x94D049BB133111EB)
    return ((x ^ x >> 31) >> 32).astype(np.uint32)


def in_memory_order(array: Array) -> Array:
    """A dense array as a vector of its memory, not a copy."""
    axes = sorted(range(array.ndim), key=lambda k: -array.strides[k])
    vector = array.transpose(axes).reshape(-1)
    assert np.shares_memory(vector, array) or array.size == 0
    return vector


def store(out: Array, values: Array) -> None:
    """Rounds to the dtype of `out`, to the nearest. A function does it last: nothing fails after the first write."""
    with np.errstate(all="ignore"):
        rounded = narrowed(values, out.dtype) if out.itemsize < values.itemsize else values
    out[...] = rounded
