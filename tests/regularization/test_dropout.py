"""Dropout: Philox's published vectors, the bits of the reference, the share that is kept, errors."""

import importlib.util
import inspect
import math

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _core
from fusedstep.reference.philox import element_words, philox
from helpers import LENGTHS, assert_same_bits, misaligned

F = np.float32
DTYPES = [F, np.float64, np.float16, ml_dtypes.bfloat16]
MOST = 2**64 - 1
#: Counter, key and words of philox4x32-10 in Random123's kat_vectors.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_of_the_reference(counter, key, expected):
    assert philox(np.array([words(counter)], np.uint32), tuple(words(key)))[0].tolist() == words(expected)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_of_the_kernels(counter, key, expected, native):
    c, k = words(counter), words(key)
    number = c[0] + (c[1] << 32)
    group = _core.testing.philox_words(k[0] + (k[1] << 32), c[2] + (c[3] << 32), number // 16, 1).reshape(4, 16)
    assert group[:, number % 16].tolist() == words(expected)


def test_words_of_many_counters(native):
    """Where a counter's lower word ends too."""
    for key, group in ((0, 0), (MOST, 2**28 - 2), (0x123456789ABCDEF0, 2**60 - 3)):
        expected = element_words(key, group * 64, 3 * 64)
        assert (_core.testing.philox_words(key, 0, group, 3) == expected).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_same_bits_as_the_reference(dtype, native, threads, rng):
    for n in LENGTHS:
        x = misaligned(rng.standard_normal(n).astype(dtype), n % 7)
        residual = misaligned(rng.standard_normal(n).astype(dtype), n % 3)
        for p, seed, offset in ((0.0, 0, 0), (0.5, 1, 0), (0.1, MOST, 37), (0.999, 2**40, 2**63 + 5)):
            for given in (None, residual):
                with fs.runtime.use_isa("numpy"):
                    expected = fs.dropout(x, p, seed=seed, offset=offset, residual=given)
                actual = fs.dropout(x, p, seed=seed, offset=offset, residual=given)
                assert_same_bits(actual, expected, f"{n} {p} {offset}")


def test_same_bits_of_a_large_array(native, threads, rng):
    """Past the size from which the result is streamed."""
    x = rng.standard_normal(2 * 1024 * 1024 + 77, F)
    with fs.runtime.use_isa("numpy"):
        expected = fs.dropout(x, 0.3, seed=9, offset=11)
    assert_same_bits(fs.dropout(x, 0.3, seed=9, offset=11), expected)
    assert fs.dropout(x, 0.3, seed=9, offset=11, out=x) is x
    assert_same_bits(x, expected)


def test_what_it_computes(rng):
    x = rng.standard_normal((50, 60))
    residual = rng.standard_normal((50, 60))
    y = fs.dropout(x, 0.25, seed=4, residual=residual)
    kept = fs.dropout(np.ones_like(x), 0.25, seed=4) != 0
    np.testing.assert_allclose(y, residual + np.where(kept, x / 0.75, 0), rtol=1e-15, atol=1e-15)
    dy = rng.standard_normal((50, 60))
    np.testing.assert_allclose(fs.dropout_backward(dy, 0.25, seed=4), np.where(kept, dy / 0.75, 0), rtol=1e-15)
    assert_same_bits(fs.drop_connect(x, 0.25, seed=4), fs.dropout(x, 0.25, seed=4))


def test_what_is_dropped_may_be_infinite(native):
    x = np.full(64, np.inf, F)
    y = fs.dropout(x, 0.5, seed=0)
    assert set(y.tolist()) == {0.0, math.inf}


def test_offsets_continue(native, rng):
    x = rng.standard_normal(300, F)
    whole = fs.dropout(x, 0.4, seed=7)
    parts = [fs.dropout(x[a:b], 0.4, seed=7, offset=a) for a, b in ((0, 65), (65, 66), (66, 300))]
    assert_same_bits(np.concatenate(parts), whole)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_that_is_kept(p):
    """Of 10^9 draws each within 5 standard deviations; the chance of a false alarm is 2 in a million."""
    x, y = np.ones(4 << 20, np.float16), np.empty(4 << 20, np.float16)
    rounds = 239
    kept = 0
    for k in range(rounds):
        kept += np.count_nonzero(fs.dropout(x, p, seed=12345, offset=k * x.size, out=y).view(np.uint16))
    draws = rounds * x.size
    assert draws > 10**9
    assert abs(kept - (1 - p) * draws) <= 5 * math.sqrt(draws * p * (1 - p))


def test_neighbours_and_seeds_are_independent():
    """Correlations of 2^20 choices with those of the next element, counter, group and seed; 6 standard deviations."""
    n = 1 << 20
    choice = fs.dropout(np.ones(n, F), 0.5, seed=3) - 1
    for other in (1, 16, 64):
        assert abs(float(choice[:-other] @ choice[other:])) <= 6 * math.sqrt(n)
    for seed, offset in ((4, 0), (3 + 2**32, 0), (3, n)):
        assert abs(float(choice @ (fs.dropout(np.ones(n, F), 0.5, seed=seed, offset=offset) - 1))) <= 6 * math.sqrt(n)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_stochastic_depth(dtype, native, threads, rng):
    """Samples shorter and longer than a chunk, and than what a thread takes."""
    for shape in ((200, 3, 4), (1, 7), (70, 1), (5, 4097), (3, 20_000), (0, 3), (3, 0)):
        x, residual = rng.standard_normal((2, *shape)).astype(dtype)
        for seed, offset in ((5, 0), (6, 2**63 + 61)):
            with fs.runtime.use_isa("numpy"):
                alone = fs.stochastic_depth(x, 0.25, seed=seed, offset=offset)
                added = fs.stochastic_depth(x, 0.25, seed=seed, offset=offset, residual=residual)
            assert_same_bits(fs.stochastic_depth(x, 0.25, seed=seed, offset=offset), alone)
            assert_same_bits(fs.stochastic_depth(x, 0.25, seed=seed, offset=offset, residual=residual), added)


def test_what_stochastic_depth_computes(rng):
    x, residual = rng.standard_normal((2, 200, 3, 4))
    y = fs.stochastic_depth(x, 0.25, seed=5, residual=residual)
    kept = fs.dropout(np.ones(200), 0.25, seed=5) != 0
    assert 100 < kept.sum() < 190
    assert_same_bits(y[~kept], residual[~kept])
    np.testing.assert_allclose(y[kept], residual[kept] + x[kept] / 0.75, rtol=1e-15, atol=1e-15)
    assert fs.stochastic_depth(x, 0.25, seed=5, residual=residual, out=x) is x
    assert_same_bits(x, y)
    assert fs.stochastic_depth(np.full((4, 2), np.inf, F), 0.9, seed=2).min() == 0


def test_a_result_between_cache_lines(native, rng):
    """Streamed in pieces that end elsewhere than the words do."""
    n = 2 * 1024 * 1024 + 4096
    memory = np.empty(n + 16, F)
    for start in (1, 4, 15):
        x, y = rng.standard_normal(n, F), memory[start : start + n]
        assert_same_bits(fs.dropout(x, 0.5, seed=1, offset=63, out=y), fs.dropout(x, 0.5, seed=1, offset=63))


X = np.ones(8, F)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"p": 1.0}, ValueError, r"p: expected a number in \[0, 1\), to 32 bits, got 1.0"),
        ({"p": 1 - 2**-34}, ValueError, r"p: expected a number in \[0, 1\)"),
        ({"p": -0.1}, ValueError, r"p: expected a number in \[0, 1\), to 32 bits, got -0.1"),
        ({"p": math.nan}, ValueError, r"p: expected a number in \[0, 1\), to 32 bits, got nan"),
        ({"p": "half"}, TypeError, "p"),
        ({"seed": -1}, ValueError, r"seed: expected an integer in \[0, 2\^64\), got -1"),
        ({"seed": 2**64}, ValueError, r"seed: expected an integer in \[0, 2\^64\)"),
        ({"seed": 1.5}, TypeError, "seed: expected an integer, got float"),
        ({"seed": True}, TypeError, "seed: expected an integer, got bool"),
        ({"offset": -3}, ValueError, r"offset: expected an integer in \[0, 2\^64\)"),
        ({"offset": MOST}, ValueError, r"offset: expected offset and elements below 2\^64"),
        ({"x": [1.0]}, TypeError, "x: expected a NumPy array, got list"),
        ({"x": np.ones(8, int)}, TypeError, "x: expected float32, .* got dtype int64"),
        ({"out": np.ones(16, F)[::2]}, ValueError, "out: expected a C-contiguous array"),
        ({"residual": np.ones(8)}, TypeError, "residual: expected dtype float32 as x has, got float64"),
        ({"residual": X[:4]}, ValueError, r"residual: expected shape \(8,\) as x has, got \(4,\)"),
        ({"out": X[:4]}, ValueError, r"out: expected shape \(8,\) as x has, got \(4,\)"),
    ],
)
@pytest.mark.parametrize("isa", ["numpy", fs.runtime.available_isas()[-1]])
def test_errors(arguments, error, message, isa):
    given = {"x": X, "p": 0.5, "seed": 0, **arguments}
    with fs.runtime.use_isa(isa), pytest.raises(error, match=message):
        fs.dropout(given.pop("x"), given.pop("p"), **given)


def test_arrays_that_overlap():
    memory = np.ones(12, F)
    with pytest.raises(ValueError, match="out: overlaps x"):
        fs.dropout(memory[:8], 0.5, seed=0, out=memory[4:])
    with pytest.raises(ValueError, match="out: overlaps residual"):
        fs.dropout(X.copy(), 0.5, seed=0, residual=memory[:8], out=memory[4:])
    with pytest.raises(ValueError, match="out: overlaps dy"):
        fs.dropout_backward(memory[:8], 0.5, seed=0, out=memory[4:])
    assert (memory == 1).all()
    residual = np.ones(8, F)
    assert fs.dropout(X, 0.5, seed=0, residual=residual, out=residual) is residual


def test_stochastic_depth_errors():
    with pytest.raises(TypeError, match="x: expected a NumPy array, got list"):
        fs.stochastic_depth([1.0], 0.5, seed=0)
    with pytest.raises(TypeError, match=r"x: expected float32, .* got dtype int64"):
        fs.stochastic_depth(np.ones((2, 2), int), 0.5, seed=0)
    with pytest.raises(ValueError, match="out: expected a C-contiguous array"):
        fs.stochastic_depth(np.ones((3, 2), F), 0.5, seed=0, out=np.ones((2, 3), F).T)
    memory = np.ones(15, F)
    with pytest.raises(ValueError, match="out: overlaps x"):
        fs.stochastic_depth(memory[:12].reshape(4, 3), 0.5, seed=0, out=memory[3:].reshape(4, 3))
    with pytest.raises(ValueError, match="x: expected at least one axis"):
        fs.stochastic_depth(np.array(1.0), 0.5, seed=0)
    with pytest.raises(ValueError, match=r"residual: expected shape \(2, 2\)"):
        fs.stochastic_depth(np.ones((2, 2), F), 0.5, seed=0, residual=np.ones((2, 3), F))
    with pytest.raises(ValueError, match=r"p: expected a number in \[0, 1\)"):
        fs.stochastic_depth(np.ones((2, 2), F), 1.0, seed=0)


def test_no_module_takes_the_name_of_a_function():
    """Importing `fusedstep.dropout` as a module would put it in the place of the function."""
    functions = [name for name in fs.__all__ if not inspect.ismodule(getattr(fs, name))]
    assert "dropout" in functions
    assert [name for name in functions if importlib.util.find_spec(f"fusedstep.{name}")] == []
