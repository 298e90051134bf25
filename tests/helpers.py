"""Comparing bits, and arrays at chosen places in memory."""

import numpy as np

BLOCK, CHUNK = 1024, 8192
LENGTHS = [
    0,
    1,
    2,
    3,
    15,
    16,
    17,
    63,
    64,
    65,
    255,
    256,
    257,
    1023,
    1024,
    1025,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    3 * CHUNK + 5,
]


def misaligned(values, offset):
    """A copy that starts `offset` items past a cache line."""
    values = np.asarray(values)
    line = 64 // values.itemsize
    buffer = np.empty(values.size + 2 * line, values.dtype)
    start = (-buffer.ctypes.data // values.itemsize) % line + offset
    view = buffer[start : start + values.size].reshape(values.shape)
    view[...] = values
    return view


def assert_same_bits(actual, expected, what=""):
    """Equal to the last bit; any NaN equals any NaN."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype, what
    assert actual.shape == expected.shape, what
    words = {4: np.uint32, 8: np.uint64}[actual.itemsize]
    same = (actual.view(words) == expected.view(words)) | (np.isnan(actual) & np.isnan(expected))
    assert same.all(), f"{what}: {np.count_nonzero(~same)} of {same.size} differ, first at {np.argmin(same.ravel())}"


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)
