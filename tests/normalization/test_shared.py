"""The messages of workers: statistics against exact fractions, and what is said where they disagree."""

from fractions import Fraction

import numpy as np
import pytest

from fusedstep import _core
from fusedstep.normalization import shared

RNG = np.random.default_rng(20260101)
PARTS = {
    "any": [RNG.normal(3, 2, n) for n in (5, 1, 40)],
    "one_worker": [RNG.normal(3, 2, 7)],
    "none_of_some": [np.zeros(0), RNG.normal(0, 1, 5), np.zeros(0), RNG.normal(0, 1, 2)],
    "constant": [np.full(3, 0.1), np.full(4, 0.1)],
    "a_large_mean": [1e6 + RNG.normal(0, 1e-3, n) for n in (10, 20, 1)],
    "one_value_each": [np.array([value]) for value in RNG.normal(1e5, 1e-2, 64)],
    # The first is the origin of the others.
    "a_far_first": [np.array([1e8]), RNG.normal(0, 1, 300), RNG.normal(0, 1, 200)],
    "two_far_ones": [np.array([1e12]), np.array([-1e12]), RNG.normal(0, 1e-3, 50)],
}


def rank(k):
    return f"rank {k}"


def table_of(parts, texts=None):
    texts = texts or [shared.described(layer=1)] * len(parts)
    return np.stack([
        shared.forward_message(1, text, _core.batch_norm_stats(part[:, None], 1))
        for text, part in zip(texts, parts, strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_statistics(name):
    count, mean, m2 = shared.read_forward(table_of(PARTS[name]), rank)
    values = [Fraction(float(value)) for value in np.concatenate(PARTS[name])]
    exact = sum(values) / len(values)
    squares = sum((value - exact) ** 2 for value in values)
    assert count == len(values)
    assert abs(Fraction(float(mean[0])) - exact) <= Fraction(float(np.spacing(abs(float(exact)))))
    assert abs(Fraction(float(m2[0])) - squares) <= squares * Fraction(4, 2**53)


def test_nothing_anywhere():
    count, mean, m2 = shared.read_forward(table_of([np.zeros(0)] * 2), rank)
    assert (count, mean.tolist(), m2.tolist()) == (0, [0.0], [0.0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_not_finite(value, place):
    parts = [np.array([1.0, 2.0]), np.array([3.0, 4.0])]
    parts[place][0] = value
    count, mean, m2 = shared.read_forward(table_of(parts), rank)
    assert count == 4
    assert not np.isfinite(mean).any()
    assert np.isnan(m2).all()


def test_sums_in_the_order_of_workers():
    sums = [(np.array([value]), np.array([1.0])) for value in (1e16, 1.0, -1e16)]
    table = np.stack([shared.backward_message(1, shared.described(layer=1), part) for part in sums])
    dy, dy_d = shared.read_backward(table, rank)
    assert (dy[0], dy_d[0]) == ((1e16 + 1.0) - 1e16, 3.0)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (shared.described(layer=1, eps=0.5), "eps: rank 1 has 0.5, rank 0 has none"),
        (shared.described(layer=2), "layer: rank 1 has 2, rank 0 has 1"),
        (shared.refused(ValueError("input: one; two")), "rank 1 refused: ValueError: input: one; two"),
        (shared.refused(TypeError("ü" * 300)), "rank 1 refused: TypeError: üü"),
    ],
)
def test_disagreement(second, words):
    parts = [np.ones(2), np.ones(2)]
    with pytest.raises(shared.DisagreementError) as caught:
        shared.read_forward(table_of(parts, [shared.described(layer=1), second]), rank)
    assert str(caught.value).startswith(words)
