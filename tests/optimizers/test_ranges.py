"""Norms of doubles whose squares overflow or vanish."""

import math

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.optimizers import REGISTRY
from helpers import assert_same_bits, every_native_setting

SCALES = [2.0**-1000, 1e-170, 1e-163, 1.0, 1e154, 1e160, 2.0**1000]
SETS = fs.runtime.available_isas()


@pytest.fixture(params=SETS)
def isa(request):
    with fs.runtime.use_isa(request.param):
        yield request.param


def close(actual, expected):
    assert math.isclose(actual, expected, rel_tol=1e-12), (actual, expected)


@pytest.mark.parametrize("scale", SCALES)
class TestGradients:
    def test_clipping(self, scale, isa):
        """[3, 4] at any scale, clipped to a fifth of its norm, is a fifth of itself."""
        p, g = np.zeros(2), scale * np.array([3.0, 4.0])
        report = fs.SGD(p, lr=1.0, max_grad_norm=scale, skip_nonfinite=True).step(g)
        close(report.grad_norm, 5 * scale)
        assert not report.skipped
        assert report.nonfinite == 0
        if scale >= 1:  # below, 1e-6 is larger than the norm
            np.testing.assert_allclose(p, [-0.6 * scale, -0.8 * scale], rtol=1e-6)

    def test_of_all_tensors(self, scale, isa, rng):
        """Beside tensors of other sizes, other dtypes, row-sparse ones and empty ones."""
        big = rng.standard_normal(5000)
        params = [np.zeros(5000), np.zeros(3), np.zeros(3, np.float32), np.zeros(0), np.zeros((4, 2))]
        rows = fs.RowSparse([1, 3], scale * np.ones((2, 2)), (4, 2))
        grads = [scale * big, np.ones(3), np.ones(3, np.float32), np.zeros(0), rows]
        report = fs.SGD(params, lr=1.0, max_grad_norm=math.inf, telemetry=True).step(grads)
        parts = [scale * np.linalg.norm(big), math.sqrt(3), math.sqrt(3), 0.0, scale * 2]
        largest = max(parts)
        close(report.grad_norm, largest * math.sqrt(sum((part / largest) ** 2 for part in parts)))
        for tensor, part in zip(report.tensors, parts, strict=True):
            close(tensor.grad_norm, part)
            assert math.isclose(tensor.update_norm, part, rel_tol=1e-6)

    def test_telemetry(self, scale, isa, rng):
        p, g = scale * rng.standard_normal((2, 300))
        start = p.copy()
        report = fs.Momentum(p, lr=0.5, momentum=0.9, telemetry=True).step(g)
        close(report.grad_norm, scale * np.linalg.norm(g / scale))
        close(report.param_norm, scale * np.linalg.norm(start / scale))
        close(report.update_norm, scale * np.linalg.norm((p - start) / scale))
        close(report.update_ratio, np.linalg.norm((p - start) / scale) / np.linalg.norm(start / scale))
        close(report.grad_momentum_cosine, 1.0)

    def test_relative_steps(self, scale, isa, rng):
        """LAMB and LARS move in proportion to the parameter, at any scale."""
        start = np.array([3.0, -4.0])
        p = scale * start
        fs.LARS(p, trust_coefficient=0.1, momentum=0.0, eps=0.0).step(p.copy())
        np.testing.assert_allclose(p, 0.9 * scale * start, rtol=1e-12)
        if 1e-150 < scale < 1e150:
            return  # LAMB keeps squares of the gradient, so only its parameters may be of any size
        p = scale * start
        fs.LAMB(p, lr=0.1, weight_decay=0.0).step(start.copy())
        np.testing.assert_allclose(p, scale * (start - 0.5 / math.sqrt(2) * np.sign(start)), rtol=1e-5)

    def test_matrices(self, scale):
        """Muon's direction does not depend on the size of the gradient."""
        g = np.array([[3.0, 1.0, 0.0], [0.0, 0.5, 2.0]])
        directions = []
        for factor in (1.0, scale):
            p = np.zeros((2, 3))
            fs.Muon(p, lr=1.0, weight_decay=0.0, eps=0.0).step(factor * g)
            directions.append(p)
        np.testing.assert_allclose(*directions, rtol=1e-9)

    def test_adafactor(self, scale):
        """A step is lr of the parameter's root mean square."""
        p = np.full((4, 4), scale)
        fs.Adafactor(p, lr=0.01, eps=(None, 0.0)).step(np.ones((4, 4)))
        np.testing.assert_allclose(p, 0.99 * scale, rtol=1e-12)


def test_a_norm_beyond_the_doubles(isa):
    """The norm is infinite, and what is clipped by it is not."""
    p = np.zeros(4)
    report = fs.SGD(p, lr=1.0, max_grad_norm=1e300, skip_nonfinite=True).step(np.full(4, 1.5e308))
    assert report.grad_norm == math.inf
    assert not report.skipped
    np.testing.assert_allclose(p, -0.5e300, rtol=1e-9)


def test_what_is_not_finite(isa):
    for value in (np.inf, np.nan):
        report = fs.SGD(np.zeros(2), skip_nonfinite=True, telemetry=True).step(np.array([value, 1e160]))
        assert report.skipped
        assert report.nonfinite == 1
        assert not math.isfinite(report.grad_norm)


def test_zeros_are_zeros(isa):
    report = fs.SGD(np.zeros(5), max_grad_norm=1.0, telemetry=True).step(np.zeros(5))
    assert (report.grad_norm, report.update_norm, report.param_norm, report.update_ratio) == (0.0, 0.0, 0.0, None)


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adamw", "lamb", "lars", "prodigy"])
def test_same_bits(rule, rng):
    """Of reports and parameters, on every set and any number of threads."""
    sizes = [3, 5000, 9001]
    starts = [rng.standard_normal(n) * scale for n, scale in zip(sizes, (1e160, 1e-170, 1.0), strict=True)]
    grads = [rng.standard_normal(n) * scale for n, scale in zip(sizes, (1e158, 1.0, 1e-175), strict=True)]

    def run():
        params = [start.copy() for start in starts]
        optimizer = REGISTRY[rule](params, max_grad_norm=2.0, telemetry=True)
        return repr([optimizer.step(grads) for _ in range(2)]), params

    with fs.runtime.use_isa("numpy"):
        report, params = run()
    for setting in every_native_setting():
        mine, my_params = run()
        assert mine == report, setting
        for actual, expected in zip(my_params, params, strict=True):
            assert_same_bits(actual, expected, setting)


@pytest.mark.parametrize("scale", SCALES)
def test_cosine_of_the_doctor(scale):
    from fusedstep.doctor.measure import flattened, grad_cosine

    close(grad_cosine(flattened([scale * np.array([3.0, 4.0])]), flattened([np.array([4.0, 3.0])])), 0.96)
