"""More elements than 31 bits can count: with FUSEDSTEP_LARGE=1, for it takes 13 GB and some minutes."""

import os

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep.reference import codec

pytestmark = pytest.mark.skipif(not os.environ.get("FUSEDSTEP_LARGE"), reason="FUSEDSTEP_LARGE is not set")

SIZE = 2**31 + 1000
TAIL = 1000 + 3 * 256


def words(value):
    return int(np.array(value, ml_dtypes.bfloat16).view(np.uint16))


def test_sgd_of_bfloat16():
    """The last elements are updated, as the reference updates them."""
    p = np.full(SIZE, words(1.0), np.uint16).view(ml_dtypes.bfloat16)
    g = np.full(SIZE, words(0.5), np.uint16).view(ml_dtypes.bfloat16)
    g[-TAIL:] = np.random.default_rng(0).standard_normal(TAIL).astype(np.float32)
    fs.SGD(p, lr=0.25).step(g)
    expected = np.ones(TAIL, np.float32) - np.float32(0.25) * g[-TAIL:].astype(np.float32)
    np.testing.assert_array_equal(p[-TAIL:], expected.astype(ml_dtypes.bfloat16))
    for start in range(0, SIZE - TAIL, 2**26):
        assert (p[start : min(start + 2**26, SIZE - TAIL)].view(np.uint16) == words(0.875)).all()


def test_adamw_of_8_bits():
    """Codes, scales and random words of the last elements are the reference's."""
    p = np.full(SIZE, words(1.0), np.uint16).view(ml_dtypes.bfloat16)
    g = np.full(SIZE, words(0.5), np.uint16).view(ml_dtypes.bfloat16)
    tail = np.random.default_rng(0).standard_normal(TAIL).astype(ml_dtypes.bfloat16)
    g[-TAIL:] = tail
    optimizer = fs.AdamW(p, lr=0.25, weight_decay=0.0, state_dtype="8bit")
    optimizer.step(g)
    start = SIZE - TAIL
    assert start % 256 == 0
    grad = tail.astype(np.float32)
    for name, stream, values, signed in (
        ("exp_avg", 0, np.float32(0.1) * grad, True),
        ("exp_avg_sq", 1, np.float32(0.001) * (grad * grad), False),
    ):
        first = start // 256
        key = codec._mix(codec._mix(codec._mix(0) + 1))  # seed 0, step 1, position 0
        mixed = codec._mix((key + stream) & (2**64 - 1))
        places = codec._places(np.arange(first, first + 7, dtype=np.uint64) ^ np.uint64(mixed))
        pattern = codec.random_words(key, stream, 256) ^ codec._places(np.array([mixed], np.uint64))
        random = (places[:, None] ^ pattern).reshape(-1)[: values.size]
        codes, scales = codec.encode_8bit(values, signed, random)
        np.testing.assert_array_equal(optimizer.state[0][name][start:], codes)
        np.testing.assert_array_equal(optimizer.state[0][f"{name}_scale"][first:], scales)
    assert (p[-TAIL:].view(np.uint16) != words(1.0)).all()
