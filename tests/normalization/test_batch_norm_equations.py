"""Equations of one number a channel: the reference against exact fractions, the native sets against its bits, torch."""

import math
from fractions import Fraction

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.reference import batch_norm as reference
from helpers import assert_same_bits
from optional import torch

F = np.float32
MOMENTA = [0.0, 0.1, 1 / 3, 0.999, 1.0]


def statistics(rng, channels, count):
    return fs.BatchStats(count, rng.standard_normal(channels) * 1e3, rng.chisquare(count, channels) * 10.0)


def running(rng, channels, dtype):
    return rng.standard_normal(channels).astype(dtype), rng.chisquare(3, channels).astype(dtype)


def close(actual, expected, dtype):
    """Within two roundings of the dtype, relative to the terms, which do not cancel."""
    np.testing.assert_allclose(actual, [float(e) for e in expected], rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [F, np.float64])
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("unbiased", [True, False])
def test_running_statistics_against_fractions(dtype, momentum, unbiased, rng):
    """running ← (1 − momentum) · running + momentum · batch, of positive means, so that no digits cancel."""
    stats = fs.BatchStats(7, rng.uniform(1, 9, 20), rng.uniform(1, 9, 20))
    mean, var = rng.uniform(1, 9, 20).astype(dtype), rng.uniform(1, 9, 20).astype(dtype)
    moved = reference.running_statistics(mean, var, stats.mean, stats.m2, stats.count, momentum, unbiased)
    part = Fraction(momentum)
    close(
        moved[0],
        [(1 - part) * Fraction(float(r)) + part * Fraction(float(b)) for r, b in zip(mean, stats.mean, strict=True)],
        dtype,
    )
    close(
        moved[1],
        [
            (1 - part) * Fraction(float(r)) + part * Fraction(float(b)) / (6 if unbiased else 7)
            for r, b in zip(var, stats.m2, strict=True)
        ],
        dtype,
    )
    assert [a.dtype for a in moved] == [dtype, dtype]


def test_inverse_deviation_against_fractions(rng):
    """1 / √(m2 / count + eps): its square times (m2 / count + eps) is 1."""
    for m2, count, eps in zip(rng.uniform(0, 9, 50), rng.integers(1, 99, 50), rng.uniform(1e-9, 1, 50), strict=True):
        result = Fraction(float(reference.inverse_deviation(np.array([m2]), float(count), eps)[0]))
        assert abs(result**2 * (Fraction(m2) / int(count) + Fraction(eps)) - 1) < Fraction(2) ** -50


def test_gradients_of_parameters_against_fractions(rng):
    inv_std, dy, dy_d = rng.standard_normal((3, 50))
    dweight, dbias = reference.parameter_gradients(inv_std, dy, dy_d, "float64")
    for got, a, b in zip(dweight, inv_std, dy_d, strict=True):
        assert abs(Fraction(float(got)) - Fraction(float(a)) * Fraction(float(b))) <= abs(Fraction(float(got))) / 2**52
    assert (dbias == dy).all()


def test_cumulative_momentum_is_the_average():
    """Of 1, 2, …, n the average is (n + 1) / 2."""
    average = 0.0
    for batches, value in enumerate(range(1, 101)):
        momentum = reference.cumulative_momentum(batches)
        average = (1.0 - momentum) * average + momentum * value
        assert math.isclose(average, (value + 1) / 2, rel_tol=1e-14)


def test_sums_of_workers_are_added_in_order():
    """1e16 + 1 + 1 is 1e16 in this order: each 1 is lost."""
    parts = [fs.BatchGradSums(np.array([v]), np.array([-v])) for v in (1e16, 1.0, 1.0)]
    merged = fs.merge_grad_sums(parts)
    assert (merged.dy[0], merged.dy_d[0]) == (1e16, -1e16)
    assert fs.merge_grad_sums(parts[::-1]).dy[0] == 1e16 + 2


@pytest.mark.parametrize("dtype", [F, np.float64])
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("skip_nonfinite", [True, False])
def test_every_set_moves_them_to_the_same_bits(dtype, momentum, unbiased, skip_nonfinite, native, rng):
    for number in (1.0, 1e300, np.inf, np.nan):
        stats = statistics(rng, 37, 5)
        stats.mean[3] = stats.m2[4] = number
        start = running(rng, 37, dtype)
        results = []
        for isa in ("numpy", native):
            arrays = [a.copy() for a in start]
            with fs.runtime.use_isa(isa):
                taken = fs.update_running_stats(
                    *arrays, stats, momentum=momentum, unbiased=unbiased, skip_nonfinite=skip_nonfinite
                )
            assert taken is not (skip_nonfinite and not math.isfinite(number))
            results.append(arrays)
        for mine, theirs in zip(*results, strict=True):
            assert_same_bits(mine, theirs)


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_against_torch(training, native, rng):
    x = rng.standard_normal((9, 5, 3)) + 2.0
    mine, theirs = running(rng, 5, np.float64), []
    for isa in ("numpy", native):
        arrays = [a.copy() for a in mine]
        with fs.runtime.use_isa(isa):
            fs.batch_norm(x, None, None, *arrays, training=training, momentum=0.3)
        theirs.append(arrays)
    tensors = [torch.from_numpy(a.copy()) for a in mine]
    torch.nn.functional.batch_norm(torch.from_numpy(x), *tensors, training=training, momentum=0.3)
    for arrays in theirs:
        for got, expected in zip(arrays, tensors, strict=True):
            np.testing.assert_allclose(got, expected.numpy(), rtol=1e-14)
