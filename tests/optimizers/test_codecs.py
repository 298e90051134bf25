"""Numbers in fewer bits: rounding, the codes of 8 bits, random words."""

import os
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _core
from fusedstep.reference import codec

F = np.float32
BF16 = np.dtype(ml_dtypes.bfloat16)
NARROW = [np.dtype(np.float16), BF16]
#: False alarms of a test of so many standard deviations: fewer than one in 10⁸, two-sided.
SIGMAS = 6


def every_float(low_halves):
    """float32 numbers of all upper halves with these lower ones, a million at a time."""
    highs = np.arange(2**16, dtype=np.uint32) << 16
    lows = np.array(low_halves, np.uint32)
    for start in range(0, lows.size, 16):
        yield (lows[start : start + 16, None] | highs).reshape(-1).view(F)


def low_halves():
    """All 65,536, with FUSEDSTEP_EXHAUSTIVE; else those around what the roundings cut off."""
    if os.environ.get("FUSEDSTEP_EXHAUSTIVE"):
        return range(2**16)
    corners = {0, 1, 2, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF}
    for bit in range(16):
        corners |= {1 << bit, (1 << bit) - 1, (1 << bit) + 1, 0xFFFF ^ (1 << bit)}
    return sorted(corners)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_rounding_to_the_nearest(dtype):
    """NumPy's and ml_dtypes' conversions, of all sets; NaN stays NaN and keeps its sign."""
    isas = fs.runtime.available_isas()
    for values in every_float(low_halves()):
        expected = values.astype(dtype)
        nan = np.isnan(values)
        for isa in isas:
            actual = np.empty_like(expected)
            with fs.runtime.use_isa(isa):
                _core.testing.narrow(values, actual)
            right = (actual.view(np.uint16) == expected.view(np.uint16)) | nan
            assert right.all(), (isa, values[~right][:3])
            assert np.isnan(actual.astype(F)[nan]).all(), isa
            assert (np.signbit(actual[nan]) == np.signbit(values[nan])).all(), isa


def test_the_mark_of_bfloat16(rng):
    """Words that say what they are, without ml_dtypes."""
    values = rng.standard_normal(1000).astype(F)
    marked = np.empty(1000, np.uint16).view(fs.bfloat16)
    _core.testing.narrow(values, marked)
    np.testing.assert_array_equal(marked.view(np.uint16), values.astype(BF16).view(np.uint16))
    np.testing.assert_array_equal(codec.widened(marked), values.astype(BF16).astype(F))
    assert marked.copy().dtype.metadata == fs.bfloat16.metadata


class TestRandomRounding:
    @pytest.mark.parametrize("dtype", NARROW, ids=str)
    @pytest.mark.parametrize("value", [1.0001, -3.14159, 1e-3, 5.1e-8, 2.9e-5, 6.2e-5, 1e-10, 0.99999])
    def test_is_unbiased(self, dtype, value):
        """The share of those rounded up is the part that is cut off, within six standard deviations."""
        values = np.full(2**18, value, F)
        words = codec.random_words(12345, codec.PARAM_STREAM, values.size)
        rounded = codec.narrowed(values, dtype, words).astype(np.float64)
        low, high = sorted({*rounded})[0], sorted({*rounded})[-1]
        neighbours = np.array([low, high]).astype(dtype).view(np.uint16).astype(int)
        assert abs(neighbours[0] - neighbours[1]) <= 1
        exact = float(values[0])
        assert low <= exact <= high
        deviation = np.sqrt(max((exact - low) * (high - exact), 0) / values.size)
        assert abs(rounded.mean() - exact) <= SIGMAS * deviation + 1e-12 * abs(exact)

    @pytest.mark.parametrize("dtype", NARROW, ids=str)
    def test_keeps_what_needs_no_rounding(self, dtype):
        """All numbers of 16 bits, infinities and NaN among them."""
        stored = np.arange(2**16, dtype=np.uint16).view(dtype)
        values = codec.widened(stored)
        again = codec.narrowed(values, dtype, codec.random_words(7, 4, values.size))
        same = again.view(np.uint16) == stored.view(np.uint16)
        assert (same | np.isnan(values)).all()
        assert np.isnan(codec.widened(again)[np.isnan(values)]).all()

    @pytest.mark.parametrize("stream", range(5))
    def test_words_are_even_and_independent(self, stream):
        """Every bit of a word is set in half of the steps, and that of any other element, or of the next step, agrees
        with it in half of them."""
        steps, size = 8192, 600
        words = np.array(
            [codec.random_words(codec_key(3, step), stream, size)[[0, 1, 255, 256, 599]] for step in range(steps)]
        )
        bits = (words[..., None] >> np.arange(32, dtype=np.uint32) & 1).astype(int)
        bound = SIGMAS * 0.5 / np.sqrt(steps - 1)
        assert (np.abs(bits.mean(axis=0) - 0.5) < bound).all()
        for other in range(1, 5):
            assert (np.abs((bits[:, 0] ^ bits[:, other]).mean(axis=0) - 0.5) < bound).all()
        assert (np.abs((bits[1:] ^ bits[:-1]).mean(axis=0) - 0.5) < bound).all()
        assert (np.abs((bits[..., 1:] ^ bits[..., :-1]).mean(axis=0) - 0.5) < bound).all()

    def test_streams_differ(self):
        words = [codec.random_words(5, stream, 4096) for stream in range(5)]
        for i in range(5):
            for j in range(i):
                assert (words[i] != words[j]).mean() > 0.99


def codec_key(seed, step, tensor=0):
    """What a step makes of seed, step and position."""
    mix = codec._mix
    return mix((mix((mix(seed) + step) & (2**64 - 1)) + tensor) & (2**64 - 1))


class TestCodes:
    @pytest.mark.parametrize("signed", [True, False])
    def test_values_are_those_of_the_formula(self, signed):
        """In fractions; and every code is its own nearest."""
        codes = np.arange(256, dtype=np.uint8)
        octaves = 8 if signed else 16
        for code, value in zip(codes, codec.decode_8bit(codes, np.ones(1, F), signed), strict=True):
            magnitude = int(code & 0x7F) if signed else int(code)
            exponent, mantissa = divmod(magnitude, 16)
            expected = Fraction(16 + mantissa, 16) * Fraction(2) ** (exponent + 1 - octaves) - Fraction(2) ** (
                1 - octaves
            )
            assert abs(Fraction(float(value))) == expected
            assert np.signbit(value) == (signed and code >= 0x80)
        codes[codes & 0x7F == 0x7F] -= 1  # the scale of the last one is the next
        values = codec.decode_8bit(codes, np.full(1, 0.25, F), signed)
        again, scales = codec.encode_8bit(values, signed)
        assert scales == 0.25
        np.testing.assert_array_equal(again, codes if signed else np.maximum(codes, 1))

    @pytest.mark.parametrize("signed", [True, False])
    @pytest.mark.parametrize("exponent", [-100, -20, 0, 60, 120])
    def test_error_is_half_a_unit(self, signed, exponent, rng):
        """A sixteenth of 1.5 octaves at most, half of that apart; and near 0 half of the least code."""
        values = np.abs(rng.standard_normal(10_000)).astype(F) * F(2.0**exponent)
        if signed:
            values *= rng.choice([-1, 1], values.size).astype(F)
        codes, scales = codec.encode_8bit(values, signed)
        decoded = codec.decode_8bit(codes, scales, signed)
        step = 2.0 ** ((-7 if signed else -15) - 4) * np.repeat(scales, 256)[: values.size]
        bound = np.maximum(np.abs(values) / 32 + step / 2, step if not signed else 0)
        assert (np.abs(decoded.astype(float) - values) <= bound * (1 + 1e-6)).all()
        largest = np.maximum.reduceat(np.abs(values), np.arange(0, values.size, 256))
        assert (np.log2(scales) == np.round(np.log2(scales))).all()
        assert ((largest <= 1.9375 * scales) & (largest > 0.9 * scales)).all()

    @pytest.mark.parametrize("signed", [True, False])
    def test_random_rounding_is_unbiased(self, signed, rng):
        """The mean of many roundings of each number, within six standard deviations."""
        values = np.exp2(rng.uniform(-9 if signed else -17, 0, 256)).astype(F)
        values[0] = 1.0
        total = np.zeros(256)
        squares = np.zeros(256)
        rounds = 2000
        for step in range(rounds):
            words = codec.random_words(codec_key(seed=1, step=step), 0, 256)
            decoded = codec.decode_8bit(*codec.encode_8bit(values, signed, words), signed)
            total += decoded
            squares += (decoded - values.astype(float)) ** 2
        deviation = np.sqrt(squares) / rounds
        assert (np.abs(total / rounds - values) <= SIGMAS * deviation + 1e-7 * values).all()

    @pytest.mark.parametrize("signed", [True, False])
    @pytest.mark.parametrize("bad", [np.inf, np.nan, np.float32(3e38)])
    def test_what_is_no_number_does_not_vanish(self, signed, bad):
        values = np.ones(600, F)
        values[300] = bad
        codes, scales = codec.encode_8bit(values, signed)
        decoded = codec.decode_8bit(codes, scales, signed)
        assert np.isnan(decoded[256:512]).all()
        assert np.isfinite(decoded[:256]).all()
        assert np.isfinite(decoded[512:]).all()

    def test_zeros_stay_zeros(self):
        for signed in (True, False):
            codes, scales = codec.encode_8bit(np.zeros(300, F), signed)
            assert not scales.any()
            assert not codec.decode_8bit(codes, scales, signed).any()

    def test_a_root_is_never_of_nothing(self):
        """Beside a large second moment a small one does not become 0, by which the step would be divided."""
        values = np.full(256, 1e-30, F)
        values[0] = 1.0
        decoded = codec.decode_8bit(*codec.encode_8bit(values, False, codec.random_words(1, 0, 256)), False)
        assert (decoded > 0).all()
