"""Softmax cross-entropy: the bits of the reference, float64, torch, errors; and the exp and log under it."""

import math

import numpy as np
import pytest
import torch

import fusedstep as fs
from fusedstep.reference.explog import exponential, logarithm
from fusedstep.reference.power import integer_power
from helpers import assert_same_bits

F = np.float32


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000])
@pytest.mark.parametrize("rows", [1, 2, 37])
def test_same_bits_as_the_reference(rows, classes, native, threads, rng):
    logits = (10 * rng.standard_normal((rows, classes))).astype(F)
    labels = rng.integers(0, classes, rows)
    with fs.runtime.use_isa("numpy"):
        expected_loss, expected = fs.softmax_cross_entropy(logits, labels)
    loss, dlogits = fs.softmax_cross_entropy(logits, labels)
    assert loss == expected_loss
    assert_same_bits(dlogits, expected)


def test_non_finite_logits_are_computed_through(native):
    logits = np.array(
        [[0, np.nan, 1], [np.inf, 0, 0], [-np.inf, 0, 1], [-np.inf] * 3, [3e38, -3e38, 0], [1e-40, 0, -0.0]], F
    )
    labels = np.array([0, 1, 0, 1, 1, 2])
    with fs.runtime.use_isa("numpy"):
        _, expected = fs.softmax_cross_entropy(logits, labels)
    loss, dlogits = fs.softmax_cross_entropy(logits, labels)
    assert math.isnan(loss)
    assert_same_bits(dlogits, expected)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_against_float64(scale, native, rng):
    logits = (scale * rng.standard_normal((200, 50))).astype(F)
    labels = rng.integers(0, 50, 200)
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    softmax = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(200), labels]
    onehot = np.eye(50)[labels]
    loss, dlogits = fs.softmax_cross_entropy(logits, labels)
    assert abs(loss - losses.mean()) <= 1e-6 * losses.mean()
    # In units of 1/N: an exponent of size z is good to half a unit in its last place, z 2^-24.
    assert np.abs(dlogits * 200 - (softmax - onehot)).max() <= 1e-6 * max(1.0, min(scale, 30.0))


def test_against_torch(native, rng):
    logits = rng.standard_normal((64, 10)).astype(F)
    labels = rng.integers(0, 10, 64)
    tensor = torch.from_numpy(logits.astype(np.float64)).requires_grad_()
    expected = torch.nn.functional.cross_entropy(tensor, torch.from_numpy(labels))
    expected.backward()
    loss, dlogits = fs.softmax_cross_entropy(logits, labels)
    assert loss == pytest.approx(expected.item(), rel=1e-7)
    np.testing.assert_allclose(dlogits, tensor.grad.numpy(), atol=1e-8)


def test_the_notes_example():
    """The probabilities (0.1, 0.8, 0.1) and the second class: -ln 0.8."""
    loss, _ = fs.softmax_cross_entropy(np.log([[0.1, 0.8, 0.1]]).astype(F), np.array([1]))
    assert round(loss, 4) == 0.2231


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_labels_of_any_integer(dtype):
    loss, _ = fs.softmax_cross_entropy(np.zeros((2, 4), F), np.array([0, 3], dtype))
    assert loss == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (np.zeros((2, 3)), np.zeros(2, int), TypeError, "logits: expected float32, got dtype float64"),
        (np.zeros(3, F), np.zeros(3, int), ValueError, r"logits: expected shape \(N, C\) .* got \(3,\)"),
        (np.zeros((0, 3), F), np.zeros(0, int), ValueError, r"logits: expected shape .* got \(0, 3\)"),
        (np.zeros((3, 2), F).T, np.zeros(2, int), ValueError, "logits: expected a C-contiguous array"),
        (np.zeros((2, 3), F), np.zeros(3, int), ValueError, r"labels: expected shape \(2,\) .* got \(3,\)"),
        (np.zeros((2, 3), F), np.zeros(2), TypeError, "labels: expected an array of integers, got dtype float64"),
        (np.zeros((2, 3), F), [0, 1], TypeError, "labels: expected an array of integers, got list"),
        (np.zeros((2, 3), F), np.array([0, 3]), ValueError, r"labels\[1\]: expected a class in \[0, 3\), got 3"),
        (np.zeros((2, 3), F), np.ma.array([0, 1]), TypeError, "labels: expected an array of integers"),
        (np.zeros((2, 3), F), np.array([-1, 0]), ValueError, r"labels\[0\]: expected a class in \[0, 3\), got -1"),
        (
            np.zeros((2, 3), F),
            np.array([0, 2**64 - 1], np.uint64),
            ValueError,
            r"labels\[1\]: .* got 18446744073709551615",
        ),
    ],
)
@pytest.mark.parametrize("isa", ["numpy", fs.runtime.available_isas()[-1]])
def test_errors(logits, labels, error, message, isa):
    with fs.runtime.use_isa(isa), pytest.raises(error, match=message):
        fs.softmax_cross_entropy(logits, labels)


def test_exp_within_two_ulp(rng):
    x = np.concatenate([rng.uniform(-104, 89, 200_000), np.linspace(-1, 1, 10_001), [-103.9, -87.5, 88.7]]).astype(F)
    expected = np.exp(x.astype(np.float64))
    finite = expected < np.finfo(F).max
    with np.errstate(over="ignore"):
        error = np.abs(exponential(x).astype(np.float64) - expected)[finite] / np.spacing(expected[finite].astype(F))
        edges = exponential(np.array([-np.inf, -200, 0, 200, np.inf, np.nan], F))
    assert error.max() <= 2
    assert_same_bits(edges, np.array([0, 0, 1, np.inf, np.inf, np.nan], F))


def test_log_within_one_ulp(rng):
    x = np.concatenate([1 + rng.uniform(0, 1, 100_000), np.exp(rng.uniform(0, 50, 100_000)), [1.0]])
    expected = np.log(x)
    assert (np.abs(logarithm(x) - expected) <= np.spacing(expected)).all()


@pytest.mark.parametrize("base", [0.0, 0.5, 0.9, 0.999, 0.9999, 0.3, np.nextafter(1.0, 0)])
def test_powers_of_the_reference(base):
    """Against exact rational arithmetic, where it is affordable."""
    from fractions import Fraction

    for n in (1, 2, 3, 7, 30, 100, 1000):
        exact = Fraction(base) ** n
        if exact > Fraction(1, 10**20):
            assert integer_power(base, n) == float(exact)
        else:
            assert integer_power(base, n) < 1e-20
