"""How parameters and gradients may come."""

import numpy as np
import pytest

import fusedstep as fs
from helpers import assert_same_bits, ones

F = np.float32


class TestStructures:
    def test_all_structures_update_alike(self, vector_optimizer, rng):
        grads = [rng.standard_normal((2, 3)).astype(F), rng.standard_normal(4).astype(F)]
        results = []
        for make in (
            lambda a, b: ([a, b], grads),
            lambda a, b: ((a, b), tuple(grads)),
            lambda a, b: ({"a": a, "b": b}, {"b": grads[1], "a": grads[0]}),
            lambda a, b: ([{"params": a}, {"params": [b]}], grads),
            lambda a, b: ([{"params": [a]}, {"params": b}], [[grads[0]], grads[1]]),
            lambda a, b: ([{"params": {"a": a}}, {"params": [b]}], [{"a": grads[0]}, [grads[1]]]),
            lambda a, b: ([{"params": {"a": a, "b": b}}], [{"a": grads[0], "b": grads[1]}]),
        ):
            a, b = ones(2, 3), ones(4)
            params, given = make(a, b)
            optimizer = vector_optimizer(params, lr=0.1)
            for _ in range(2):
                optimizer.step(given)
            results.append((a, b))
        for a, b in results[1:]:
            assert_same_bits(a, results[0][0])
            assert_same_bits(b, results[0][1])
        assert not np.array_equal(results[0][0], ones(2, 3))

    def test_single_array(self):
        p = ones(3)
        report = fs.SGD(p, lr=0.5).step(ones(3))
        assert p.tolist() == [0.5] * 3
        assert (report.step, report.lr) == (1, 0.5)

    def test_zero_dimensional(self):
        p = np.array(1.0, F)
        fs.SGD(p, lr=0.5).step(np.array(1.0, F))
        assert p == 0.5

    def test_no_parameters(self):
        assert fs.AdamW([]).step([]).step == 1

    def test_any_axis_order_and_any_gradient_strides(self, rng):
        base = rng.standard_normal((4, 5, 6)).astype(F)
        grad = rng.standard_normal((6, 4, 5)).astype(F)
        expected = base.transpose(2, 0, 1).copy()
        fs.SGD(expected, lr=0.5).step(grad)
        wide = np.zeros((6, 8, 10), F)
        wide[:, ::2, ::2] = grad
        for given in (grad, np.asfortranarray(grad), wide[:, ::2, ::2], np.ascontiguousarray(grad[::-1])[::-1]):
            param = base.copy().transpose(2, 0, 1)
            fs.SGD(param, lr=0.5).step(given)
            assert_same_bits(param, expected)

    def test_read_only_gradient(self):
        grad = ones(3)
        grad.flags.writeable = False
        p = ones(3)
        fs.SGD(p, lr=1.0).step(grad)
        assert p.tolist() == [0.0] * 3

    def test_same_gradient_twice(self):
        a, b, grad = ones(3), ones(3), ones(3)
        fs.SGD([a, b], lr=1.0).step([grad, grad])
        assert a.tolist() == b.tolist() == [0.0] * 3


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_subclasses_compute_as_arrays():
    """np.matrix multiplies as matrices: not here, on no set."""
    results = []
    for isa in fs.runtime.available_isas():
        p = np.ones((2, 2), F)
        with fs.runtime.use_isa(isa):
            fs.Adam(p, lr=0.5).step(np.matrix([[1, 2], [3, 4]], F))
        results.append(p)
    for result in results:
        assert_same_bits(result, results[0])
