"""Comparing bits, and arrays at chosen places in memory."""

import numpy as np

import fusedstep as fs
from fusedstep import _core

BLOCK, CHUNK = 1024, 4096
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
    words = {2: np.uint16, 4: np.uint32, 8: np.uint64}[actual.itemsize]
    same = (actual.view(words) == expected.view(words)) | (np.isnan(actual) & np.isnan(expected))
    assert same.all(), f"{what}: {np.count_nonzero(~same)} of {same.size} differ, first at {np.argmin(same.ravel())}"


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def every_native_setting():
    """Every native instruction set on 1, 2 and 3 threads, active while its name is out; small work is parallel too."""
    _core.testing.force_parallel(True)
    try:
        for isa in fs.runtime.available_isas():
            if isa == "numpy":
                continue
            for count in (1, 2, 3):
                with fs.runtime.use_isa(isa), fs.runtime.threads(count):
                    yield f"{isa}, {count} threads"
    finally:
        _core.testing.force_parallel(False)


def gradient_for(rule, param, rng, offset=0, scale=1.0):
    """A random gradient of the kind that the rule takes; row-sparse ones repeat rows."""
    if _core.rules()[rule]["dense"]:
        values = np.asarray(scale * rng.standard_normal(param.shape), param.dtype)
        return misaligned(values, offset) if offset else values
    rows = param.shape[0]
    indices = rng.integers(0, rows, rows // 2 + 1) if rows else np.empty(0, np.int64)
    values = np.asarray(scale * rng.standard_normal((len(indices), *param.shape[1:])), param.dtype)
    return fs.RowSparse(indices, values, param.shape)


def reshaped_for(rule, array):
    """The array as a parameter that the rule takes."""
    return array.reshape(-1, 1) if rule == "muon" and array.ndim != 2 else array
