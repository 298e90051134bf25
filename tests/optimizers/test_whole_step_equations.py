"""Clipping, averages and telemetry of a whole step: the formulas, and the same bits on every instruction set."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusedstep as fs
from fusedstep.reference import whole_step
from fusedstep.reference.ranged import root_of, total_of
from helpers import ones

SETS = fs.runtime.available_isas()


def exact(sum_):
    """The number that s · 2^k stands for."""
    value, exponent = sum_
    return Fraction(value) * Fraction(2) ** exponent


def on_every_set(run):
    """What a function gives on each instruction set: the reference first."""
    results = []
    for name in SETS:
        with fs.runtime.use_isa(name):
            results.append(run())
    return results


def same(a, b):
    """Whether two reports hold the same bits."""
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b and math.copysign(1, a or 0) == math.copysign(1, b or 0)


values = st.floats(min_value=0.0, allow_infinity=False)
ranged = st.tuples(st.floats(0.25, 1.0), st.integers(-1000, 1000).map(lambda k: 2 * k))


class TestRanged:
    @given(st.lists(ranged, min_size=1, max_size=20))
    def test_total(self, parts):
        """Against the sum of fractions, whatever the exponents."""
        expected = sum(map(exact, parts))
        assert abs(exact(total_of(parts)) - expected) <= expected * Fraction(len(parts), 2**53)

    @given(st.lists(values, max_size=20))
    def test_plain_sums_stay(self, numbers):
        """In range, no exponent comes up, and the sum is that of doubles in order."""
        total = 0.0
        for number in numbers:
            total += number
        if 2.0**-970 <= total < math.inf:
            assert total_of([(number, 0) for number in numbers]) == (total, 0)

    @pytest.mark.parametrize("special", [math.inf, math.nan])
    def test_not_finite(self, special):
        total, exponent = total_of([(1.0, 0), (special, 0), (0.5, 400)])
        assert exponent == 0
        assert math.isnan(total) if math.isnan(special) else total == special

    @given(ranged, st.floats(0.5, 2.0))
    def test_root(self, squares, divisor):
        """√squares / divisor, to two roundings, where a double holds it."""
        root = root_of(squares, divisor)
        if 2.0**-1022 <= root < math.inf:
            quotient = (Fraction(root) * Fraction(divisor)) ** 2 / exact(squares)
            assert abs(quotient - 1) < Fraction(1, 2**50)


class TestClipping:
    @pytest.mark.parametrize("max_norm", [0.5, 1.0, 5.0, 1e9])
    def test_formula(self, max_norm, rng):
        """min(1, max_norm / (norm + 1e-6)) with the norm of exact sums."""
        grads = [rng.standard_normal(5), rng.standard_normal((3, 4))]
        norm = math.sqrt(math.fsum(x * x for g in grads for x in g.ravel().tolist())) / 2
        for report in on_every_set(
            lambda: fs.SGD([np.zeros(5), np.zeros((3, 4))], lr=1.0, max_grad_norm=max_norm).step(grads, grad_scale=2.0)
        ):
            assert math.isclose(report.grad_norm, norm, rel_tol=1e-14)
            assert math.isclose(report.clip_coefficient, min(1.0, max_norm / (norm + 1e-6)), rel_tol=1e-14)

    def test_as_pytorch(self, rng):
        torch = pytest.importorskip("torch")
        grads = [rng.standard_normal(50), rng.standard_normal(7)]
        tensors = [torch.zeros_like(torch.from_numpy(g), requires_grad=True) for g in grads]
        for tensor, g in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(g.copy())
        torch.nn.utils.clip_grad_norm_(tensors, 0.75)
        params = [np.zeros(50), np.zeros(7)]
        fs.SGD(params, lr=1.0, max_grad_norm=0.75).step(grads)
        for p, tensor in zip(params, tensors, strict=True):
            np.testing.assert_allclose(-p, tensor.grad.numpy(), rtol=1e-13)

    @pytest.mark.parametrize("special", [math.nan, math.inf])
    def test_not_finite(self, special):
        """NaN stays NaN, and an infinite norm clips to 0."""
        for report in on_every_set(lambda: fs.SGD(ones(2), lr=1.0, max_grad_norm=1.0).step(np.float32([1, special]))):
            assert math.isnan(report.clip_coefficient) if math.isnan(special) else report.clip_coefficient == 0.0
            assert report.nonfinite == 1

    @given(st.sampled_from([-1.0, 1.0]), st.floats(2.0**-100, 2.0**100), st.floats(0.0, 1.0))
    def test_factor(self, sign, grad_scale, clip):
        """Sign, unscaling and clipping, one rounding each."""
        factor = whole_step.gradient_factor(sign < 0, grad_scale, clip)
        assert factor == float(Fraction(float(Fraction(sign) / Fraction(grad_scale))) * Fraction(clip))


class TestAverages:
    @pytest.mark.parametrize("step", [1, 2, 9, 100, 10**6])
    @pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999])
    def test_decay(self, decay, step):
        """min(decay, (1 + t) / (10 + t)); without warm-up the decay."""
        assert whole_step.ema_decay(decay, False, step) == decay
        assert whole_step.ema_decay(decay, True, step) == min(decay, float(Fraction(1 + step, 10 + step)))

    def test_warmup(self):
        """Of p = 1 after p = 0: 1 − 2/11, then the rest shrinks by 3/12."""
        for after in on_every_set(self.averages):
            np.testing.assert_allclose(after, [9 / 11, 1 - 2 / 11 * 3 / 12], rtol=1e-15)

    @staticmethod
    def averages():
        p = np.zeros(1)
        opt = fs.SGD(p, lr=1.0, ema_decay=0.999, ema_warmup=True)
        after = []
        for g in (-1.0, 0.0):
            opt.step(np.array([g]))
            after.append(float(opt.ema[0]))
        return after


class TestTelemetry:
    def test_formula(self, rng):
        """Norms, ratio and cosine of two groups, one of which climbs, from exact sums."""
        starts = [rng.standard_normal(40), rng.standard_normal((6, 7))]
        grads = [rng.standard_normal(40), rng.standard_normal((6, 7))]
        beta, scale = 0.5, 4.0

        def run():
            params = [start.copy() for start in starts]
            groups = [{"params": [params[0]]}, {"params": [params[1]], "maximize": True}]
            opt = fs.Momentum(groups, lr=0.1, momentum=beta, telemetry=True)
            opt.step([g[::-1].copy() for g in grads])
            moved = [p.copy() for p in params]
            report = opt.step(grads, grad_scale=scale)
            return report, moved, params

        def norm(arrays):
            return math.sqrt(math.fsum(x * x for array in arrays for x in array.ravel().tolist()))

        for report, before, after in on_every_set(run):
            signed = [grads[0] / scale, -grads[1] / scale]
            moments = [beta * s + g for s, g in zip([grads[0][::-1], -grads[1][::-1]], signed, strict=True)]
            changes = [a - b for a, b in zip(after, before, strict=True)]
            dot = math.fsum(x for s, m in zip(signed, moments, strict=True) for x in (s * m).ravel().tolist())
            expected = {
                "grad_norm": norm(signed),
                "update_norm": norm(changes),
                "param_norm": norm(before),
                "update_ratio": norm(changes) / norm(before),
                "grad_momentum_cosine": dot / (norm(signed) * norm(moments)),
            }
            for name, value in expected.items():
                assert math.isclose(getattr(report, name), value, rel_tol=1e-12), name

    def test_zeros(self):
        """No ratio where the parameters are 0, and no cosine where the gradients are."""
        for report in on_every_set(lambda: fs.Momentum(np.zeros(3), lr=0.1, telemetry=True).step(np.zeros(3))):
            assert report.update_ratio is None
            assert report.grad_momentum_cosine is None
            assert report.tensors[0].update_ratio is None

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("scale", [2.0**-120, 1.0, 2.0**120, 2.0**-700, 2.0**700])
    def test_same_bits(self, dtype, scale, rng):
        """Reports, parameters and averages of native sets and of the reference."""
        if dtype == np.float32 and not 2.0**-121 < scale < 2.0**121:
            return
        starts = [scale * rng.standard_normal(300), scale * rng.standard_normal((5, 9)), np.ones(3)]
        grads = [rng.standard_normal(300), scale * rng.standard_normal((5, 9)), np.zeros(3)]

        def run():
            params = [start.astype(dtype) for start in starts]
            groups = [{"params": params[:2], "maximize": True}, {"params": params[2:], "momentum": 0.0}]
            options = {"max_grad_norm": 0.3, "telemetry": True, "ema_decay": 0.9, "ema_warmup": True}
            opt = fs.Momentum(groups, lr=0.1, momentum=0.9, **options)
            reports = [opt.step([g.astype(dtype) for g in grads], grad_scale=s) for s in (1.0, 3.0, 1024.0)]
            return reports, [p.tobytes() for p in params], [average.tobytes() for average in opt.ema]

        first, *others = on_every_set(run)
        for reports, params, averages in others:
            assert params == first[1]
            assert averages == first[2]
            assert all(map(same, reports, first[0]))
