"""What users add around a step: each option against float64 and torch, alone, together and in groups."""

import copy
import math
import pickle

import numpy as np
import pytest

import fusedstep as fs
from cases import CASES
from fusedstep import _core
from fusedstep.optimizers import REGISTRY
from helpers import assert_same_bits, gradient_for, ones
from optional import torch
from runs import DENSE, FROZEN, HYPERS, TORCH, average_of, bits, grads_for, groups_of, mapped, params_for, snapshot

# Where another optimizer takes a state over, hyper-parameters change.
pytestmark = pytest.mark.filterwarnings("ignore:load_state_dict. replaced")

F, D = np.float32, np.float64
DTYPES = [F, D]
CAUTIOUS = [rule for rule, case in CASES.items() if case.cautious]
# The average of the gradients.
MOMENTS = {rule: case.moment for rule, case in CASES.items() if case.moment}


@pytest.fixture(params=["numpy", fs.runtime.available_isas()[-1]])
def isa(request):
    with fs.runtime.use_isa(request.param):
        yield request.param


@pytest.fixture
def double():
    """Torch keeps some scalars of its states in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def spoiled(grads, value):
    """The gradients with `value` as the very last element."""
    grads = mapped(np.copy, grads)
    last = grads[-1].values if isinstance(grads[-1], fs.RowSparse) else grads[-1]
    last[(-1,) * last.ndim] = value
    return grads


def norm(arrays):
    return math.sqrt(math.fsum(float(x) ** 2 for array in arrays for x in np.asarray(array, D).ravel()))


def torch_params(arrays, grads):
    params = [torch.nn.Parameter(torch.from_numpy(np.ascontiguousarray(array).copy())) for array in arrays]
    give_grads(params, grads)
    return params


def give_grads(params, grads):
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else torch.from_numpy(np.ascontiguousarray(grad).copy())


class TestMaxGradNorm:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scale", [1.0, 3.0])
    @pytest.mark.parametrize("bound", [0.25, 1e6, math.inf])
    def test_norm_of_all_tensors_and_groups(self, isa, dtype, scale, bound, rng):
        """In float64, divided by grad_scale, without what has no gradient."""
        params = [np.asarray(rng.standard_normal(n)).astype(dtype) for n in ((5,), (0,), (70, 130), (3, 0, 2), ())]
        grads = [None, *(np.asarray(rng.standard_normal(p.shape)).astype(dtype) for p in params[1:])]
        optimizer = fs.SGD([{"params": params[:2]}, {"params": params[2:], "lr": 0.5}], max_grad_norm=bound)
        report = optimizer.step(grads, grad_scale=scale)
        expected = norm(grads[1:]) / scale
        assert report.grad_norm == pytest.approx(expected, rel=1e-14)
        assert report.clip_coefficient == pytest.approx(min(1.0, bound / (expected + 1e-6)), rel=1e-14)
        assert report.nonfinite == 0

    @pytest.mark.parametrize("bound", [0.5, 1e3])
    @pytest.mark.parametrize("rule", DENSE)
    def test_is_a_step_with_gradients_that_torch_clipped(self, rule, isa, bound, rng):
        params = params_for(rule, rng)
        others = copy.deepcopy(params)
        clipping = REGISTRY[rule](groups_of(params), **HYPERS[rule], max_grad_norm=bound)
        plain = REGISTRY[rule](groups_of(others), **HYPERS[rule])
        for _ in range(3):
            grads = grads_for(rule, params, rng)
            peers = torch_params(params, grads)
            total = float(torch.nn.utils.clip_grad_norm_(peers, bound))
            plain.step([None if peer.grad is None else peer.grad.numpy() for peer in peers])
            report = clipping.step(grads)
            assert report.grad_norm == pytest.approx(total, rel=1e-12)
            assert (report.clip_coefficient < 1.0) == (bound == 0.5)
        for mine, theirs in zip(params, others, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())

    @pytest.mark.parametrize("rule", TORCH)
    @pytest.mark.usefixtures("double")
    def test_is_what_torch_does(self, rule, isa, rng):
        """Its optimizer after its clipping."""
        params = params_for(rule, rng)
        peers = torch_params(params, [None] * 4)
        optimizer = REGISTRY[rule](params, **HYPERS[rule], max_grad_norm=1.0)
        theirs = getattr(torch.optim, CASES[rule].torch)(peers, **HYPERS[rule])
        for _ in range(5):
            grads = grads_for(rule, params, rng)
            give_grads(peers, grads)
            total = torch.nn.utils.clip_grad_norm_(peers, 1.0)
            theirs.step()
            assert optimizer.step(grads).grad_norm == pytest.approx(float(total), rel=1e-12)
        for mine, peer in zip(params, peers, strict=True):
            expected = peer.detach().numpy()
            assert np.abs(mine - expected).max() <= 1e-12 * np.abs(expected).max()

    def test_order_of_the_stages(self, isa, rng):
        """grad_scale, then the norm, then its sign, then coupled decay."""
        p, g = rng.standard_normal((2, 40))
        expected_norm = norm([g]) / 8.0
        coefficient = 0.5 / (expected_norm + 1e-6)
        expected = p - 0.1 * (-coefficient * g / 8.0 + 0.3 * p)
        optimizer = fs.SGD(p, lr=0.1, weight_decay=0.3, maximize=True, max_grad_norm=0.5)
        report = optimizer.step(g, grad_scale=8.0)
        assert report.grad_norm == pytest.approx(expected_norm, rel=1e-14)
        assert report.clip_coefficient == pytest.approx(coefficient, rel=1e-14)
        np.testing.assert_allclose(p, expected, rtol=1e-13, atol=1e-15)

    @pytest.mark.parametrize("bad", [1.0, 1e200, math.inf, math.nan])
    def test_infinity_only_reports(self, isa, bad, rng):
        """The bits of a step without it, whatever the gradients hold and their norm is."""
        p, g = rng.standard_normal((2, 50))
        g[7], other = bad, p.copy()
        fs.SGD(other, lr=0.5).step(g)
        report = fs.SGD(p, lr=0.5, max_grad_norm=math.inf).step(g)
        assert_same_bits(p, other)
        assert (report.clip_coefficient, report.nonfinite) == (1.0, int(not math.isfinite(bad)))

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_gradients_that_are_not_finite_give_what_torch_gives(self, isa, bad, rng):
        """A NaN makes all NaN; an infinity is 0 · inf in its place, and all others are 0."""
        params, grads = ([rng.standard_normal(20), rng.standard_normal(3)] for _ in range(2))
        grads[0][4] = bad
        peers = torch_params(params, grads)
        total = torch.nn.utils.clip_grad_norm_(peers, 2.0)
        torch.optim.SGD(peers, lr=0.5).step()
        report = fs.SGD(params, lr=0.5, max_grad_norm=2.0).step(grads)
        for mine, peer in zip(params, peers, strict=True):
            np.testing.assert_array_equal(mine, peer.detach().numpy())
        assert np.isnan(params[1]).all() == math.isnan(bad)
        np.testing.assert_equal(report.grad_norm, float(total))
        assert (report.nonfinite, report.skipped, report.step) == (1, False, 1)

    def test_zero_gradients(self, isa):
        p = ones(5)
        report = fs.SGD([p, ones(0)], lr=0.5, max_grad_norm=1.0).step([np.zeros(5, F), ones(0)])
        assert (report.grad_norm, report.clip_coefficient) == (0.0, 1.0)
        assert_same_bits(p, ones(5))

    @pytest.mark.parametrize(("bound", "coefficient"), [(1.0, 1.0), (1e-6, 1.0), (2.5e-7, 0.25)])
    def test_no_gradients(self, isa, bound, coefficient):
        """The norm of nothing is 0, and torch adds 1e-6 to it."""
        optimizer = fs.Adam([ones(2), ones(3)], max_grad_norm=bound)
        report = optimizer.step([None, None])
        assert (report.grad_norm, report.nonfinite, report.step) == (0.0, 0, 1)
        assert report.clip_coefficient == pytest.approx(coefficient, rel=1e-15)
        assert optimizer.state == {}

    def test_squares_that_overflow_float32(self, isa):
        p = np.zeros(2, F)
        report = fs.SGD(p, lr=1.0, max_grad_norm=10.0).step(np.array([3e30, -4e30], F))
        assert report.grad_norm == pytest.approx(5e30, rel=1e-6)
        np.testing.assert_allclose(p, [-6.0, 8.0], rtol=1e-6)

    @pytest.mark.parametrize("optimizer_class", [fs.SGD, fs.Adafactor, fs.Muon])
    @pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
    def test_subclasses_are_summed_as_arrays(self, isa, optimizer_class):
        """np.matrix multiplies as matrices: not here, on no set."""
        p, other = np.ones((2, 3)), np.ones((2, 3))
        grad = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])
        report = optimizer_class(p, max_grad_norm=4.0).step(np.matrix(grad))
        assert report.grad_norm == 8.0
        assert optimizer_class(other, max_grad_norm=4.0).step(grad) == report
        assert_same_bits(p, other)

    def test_threads_do_not_change_the_norm(self, native, threads, rng):
        grads = [rng.standard_normal(n) for n in (3, 40_000, 17)]
        report = fs.SGD([np.zeros(g.size) for g in grads], max_grad_norm=1.0).step(grads)
        with fs.runtime.use_isa("numpy"):
            assert report == fs.SGD([np.zeros(g.size) for g in grads], max_grad_norm=1.0).step(grads)
        assert report.grad_norm == pytest.approx(norm(grads), rel=1e-14)


class TestSkipNonfinite:
    @pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_at_the_first_step(self, optimizer_class, isa, dtype, bad, rng):
        """No state appears, and the next step is a first step: no momentum is marked as begun."""
        rule = optimizer_class.rule
        params = params_for(rule, rng, dtype)
        others, grads = copy.deepcopy(params), grads_for(rule, params, rng)
        options = {**HYPERS[rule], **average_of(rule), "skip_nonfinite": True}
        optimizer = optimizer_class(groups_of(params), **options)
        undisturbed = optimizer_class(groups_of(others), **options)
        before = snapshot(optimizer)
        report = optimizer.step(spoiled(grads, bad))
        assert (report.skipped, report.step, report.nonfinite, report.clip_coefficient) == (True, 0, 1, None)
        assert optimizer.state == {}
        assert optimizer.ema == [None] * 4
        assert snapshot(optimizer) == before
        assert optimizer.step(grads) == undisturbed.step(grads)
        assert snapshot(optimizer) == snapshot(undisturbed)

    @pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_at_the_third_step(self, optimizer_class, isa, dtype, bad, rng):
        """Nothing changes, and the run goes on as one that never met it."""
        rule = optimizer_class.rule
        params = params_for(rule, rng, dtype)
        others = copy.deepcopy(params)
        options = {**HYPERS[rule], **average_of(rule), "max_grad_norm": 10.0, "telemetry": True, "skip_nonfinite": True}
        optimizer = optimizer_class(groups_of(params), **options)
        undisturbed = optimizer_class(groups_of(others), **options)
        for _ in range(2):
            grads = grads_for(rule, params, rng)
            assert optimizer.step(grads) == undisturbed.step(grads)
        before, grads = snapshot(optimizer), grads_for(rule, params, rng)
        report = optimizer.step(spoiled(grads, bad), grad_scale=2.0)
        assert (report.skipped, report.step, report.nonfinite, report.clip_coefficient) == (True, 2, 1, None)
        assert report.tensors is report.update_norm is report.param_norm is report.grad_momentum_cosine is None
        assert not math.isfinite(report.grad_norm)
        assert snapshot(optimizer) == before
        report = optimizer.step(grads)
        assert (report.skipped, report.step) == (False, 3)
        assert report == undisturbed.step(grads)
        assert snapshot(optimizer) == snapshot(undisturbed)

    def test_prodigy_keeps_its_step_size(self, isa):
        """What all parameters share stands in the groups."""
        a, b = ones(5), ones(3)
        optimizer = fs.Prodigy([{"params": a}, {"params": b}], d0=1e-2, skip_nonfinite=True)
        for _ in range(4):
            optimizer.step([a.copy(), b.copy()])
        before = snapshot(optimizer)
        assert all(group["d"] > 1e-2 for group in optimizer.param_groups)
        assert optimizer.step([np.full(5, 1e6, F), np.full(3, math.nan, F)]).skipped
        assert snapshot(optimizer) == before

    @pytest.mark.parametrize(("dtype", "large"), [(F, 3e30), (D, 1e200)])
    def test_finite_gradients_whose_squares_overflow(self, optimizer_class, isa, dtype, large, rng):
        rule = optimizer_class.rule
        params = params_for(rule, rng, dtype)
        optimizer = optimizer_class(params, **HYPERS[rule], skip_nonfinite=True)
        report = optimizer.step(spoiled(grads_for(rule, params, rng), large))
        assert (report.skipped, report.step, report.nonfinite) == (False, 1, 0)
        assert report.grad_norm == pytest.approx(large, rel=1e-6)

    def test_every_place(self, native, threads):
        """Heads, tails and borders of vectors, blocks and chunks, in the first tensor and the last."""
        for length in (1, 15, 17, 33, 1025, 4096, 8193, 20_000):
            for place in sorted({0, length // 2, length - 1}):
                for which in (0, 1):
                    params, grads = ([np.ones(length, F), np.ones(length, F)] for _ in range(2))
                    grads[which][place] = -math.inf
                    report = fs.Adam(params, skip_nonfinite=True).step(grads)
                    assert (report.skipped, report.nonfinite) == (True, 1)
                    assert (np.concatenate(params) == 1.0).all()

    def test_a_schedule_is_asked_again_for_the_same_count(self, isa):
        asked = []

        def schedule(taken):
            asked.append(taken)
            return 0.5 ** (taken + 1)

        p = np.zeros(2)
        optimizer = fs.SGD(p, lr=schedule, skip_nonfinite=True)
        reports = [optimizer.step(np.array([1.0, last])) for last in (1.0, math.nan, math.inf, 1.0, 1.0)]
        assert asked == [0, 1, 1, 1, 2]
        assert [report.step for report in reports] == [1, 1, 1, 2, 3]
        assert [report.lr for report in reports] == [0.5, 0.25, 0.25, 0.25, 0.125]
        assert p.tolist() == [-0.875, -0.875]

    def test_a_nan_of_a_parameter_is_none_of_the_gradient(self, isa):
        p = np.array([math.nan, 1.0])
        report = fs.SGD(p, lr=0.5, weight_decay=0.5, skip_nonfinite=True).step(np.ones(2))
        assert not report.skipped
        np.testing.assert_array_equal(p, [math.nan, 0.25])

    def test_without_it_they_go_through(self, isa):
        p = ones(2)
        report = fs.SGD(p, lr=0.5).step(np.array([math.nan, 1.0], F))
        np.testing.assert_array_equal(p, [math.nan, 0.5])
        assert (report.skipped, report.nonfinite, report.step) == (False, None, 1)


class TestMaximizeAndGradScale:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_maximize_is_a_step_with_negated_gradients(self, optimizer_class, isa, dtype, rng):
        rule = optimizer_class.rule
        params = params_for(rule, rng, dtype)
        others = copy.deepcopy(params)
        options = {**HYPERS[rule], **average_of(rule), "max_grad_norm": 1.0}
        up = optimizer_class(groups_of(params), **options, maximize=True)
        down = optimizer_class(groups_of(others), **options)
        for _ in range(3):
            grads = grads_for(rule, params, rng)
            assert up.step(grads) == down.step(mapped(np.negative, grads))
        assert bits([params, up.state]) == bits([others, down.state])

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scale", [0.125, 1024.0])
    def test_a_power_of_two_is_a_step_with_divided_gradients(self, optimizer_class, isa, dtype, scale, rng):
        rule = optimizer_class.rule
        params = params_for(rule, rng, dtype)
        others = copy.deepcopy(params)
        options = {**HYPERS[rule], **average_of(rule)}
        scaled, plain = (optimizer_class(groups_of(arrays), **options) for arrays in (params, others))
        for _ in range(3):
            grads = grads_for(rule, params, rng)
            scaled.step(mapped(lambda g: g * g.dtype.type(scale), grads), grad_scale=scale)
            plain.step(grads)
        assert bits([params, scaled.state]) == bits([others, plain.state])

    def test_a_group_of_its_own(self, isa):
        a, b = np.zeros(2), np.zeros(2)
        optimizer = fs.SGD([{"params": a, "maximize": True}, {"params": b}], lr=0.5)
        optimizer.step([np.ones(2), np.ones(2)], grad_scale=2.0)
        assert (a.tolist(), b.tolist()) == ([0.25, 0.25], [-0.25, -0.25])


class TestEma:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("rule", DENSE)
    def test_equation(self, rule, isa, dtype, rng):
        """From the parameter before its first step; a parameter without gradient keeps its average."""
        params = params_for(rule, rng, dtype)
        optimizer = REGISTRY[rule](groups_of(params), **HYPERS[rule], ema_decay=0.75)
        averages = [param.astype(D) for param in params]
        for step in range(5):
            grads = grads_for(rule, params, rng)
            if step in (1, 2):
                grads[0] = None
            optimizer.step(grads)
            for k, (param, grad) in enumerate(zip(params, grads, strict=True)):
                if grad is not None:
                    averages[k] = 0.75 * averages[k] + 0.25 * param.astype(D)
        epsilon = np.finfo(dtype).eps
        for k, average in enumerate(averages):
            if k == FROZEN:
                assert optimizer.ema[k] is None
                assert k not in optimizer.state
                continue
            np.testing.assert_allclose(optimizer.ema[k], average, rtol=0, atol=8 * epsilon * np.abs(average).max())
            assert (optimizer.ema[k].dtype, optimizer.ema[k].strides) == (params[k].dtype, params[k].strides)
            assert optimizer.ema[k] is optimizer.state[k]["ema"]

    def test_it_starts_from_the_parameter_that_the_first_step_finds(self, isa):
        p = np.ones(3)
        optimizer = fs.SGD([p], lr=1.0, ema_decay=0.5)
        optimizer.step([None])
        p[...] = 5.0
        optimizer.step([np.ones(3)])
        assert optimizer.ema[0].tolist() == [4.5] * 3

    def test_structures(self):
        a, b = np.ones(2), np.ones(3)
        for params, grads, before in (
            (a, np.ones(2), None),
            ([a, b], [np.ones(2), np.ones(3)], [None, None]),
            ((a, b), [np.ones(2), np.ones(3)], [None, None]),
            ({"a": a, "b": b}, {"a": np.ones(2), "b": np.ones(3)}, {"a": None, "b": None}),
            ([{"params": a}, {"params": {"b": b}}], [np.ones(2), np.ones(3)], [None, None]),
        ):
            a[...], b[...] = 1.0, 1.0
            optimizer = fs.SGD(params, lr=1.0, ema_decay=0.25)
            assert optimizer.ema == before
            optimizer.step(grads)
            if before is None:
                assert optimizer.ema.tolist() == [0.25] * 2
            elif isinstance(before, dict):
                assert {name: value.tolist() for name, value in optimizer.ema.items()} == {
                    "a": [0.25] * 2,
                    "b": [0.25] * 3,
                }
            else:
                assert [value.tolist() for value in optimizer.ema] == [[0.25] * 2, [0.25] * 3]

    def test_decays_of_groups(self, isa):
        """½, none, and 0: the parameter itself."""
        params = [np.ones(2) for _ in range(3)]
        groups = [{"params": params[0]}]
        groups += [{"params": p, "ema_decay": decay} for p, decay in zip(params[1:], (None, 0), strict=True)]
        optimizer = fs.SGD(groups, lr=1.0, ema_decay=0.5)
        for _ in range(2):
            optimizer.step([np.ones(2)] * 3)
        assert optimizer.ema[0].tolist() == [-0.25] * 2  # 1, then ½ · 1 + ½ · 0, then ½ · ½ − ½ · 1
        assert optimizer.ema[1] is None
        assert_same_bits(optimizer.ema[2], params[2])

    def test_turned_on_later_and_in_an_added_group(self, isa):
        p, q = np.ones(2), np.ones(2)
        optimizer = fs.SGD(p, lr=1.0)
        optimizer.step(np.ones(2))
        optimizer.param_groups[0]["ema_decay"] = 0.5
        assert optimizer.ema is None
        optimizer.step(np.ones(2))
        assert optimizer.ema.tolist() == [-0.5] * 2
        optimizer.add_param_group({"params": q, "ema_decay": 0.25})
        optimizer.step([None, np.ones(2)])
        assert [average.tolist() for average in optimizer.ema] == [[-0.5] * 2, [0.25] * 2]


def touched(grad, array):
    """What a step with this gradient reads of `array`."""
    return array[np.unique(grad.indices)] if isinstance(grad, fs.RowSparse) else array


def numbers(grad):
    if not isinstance(grad, fs.RowSparse):
        return grad.astype(D)
    dense = np.zeros(grad.shape)
    np.add.at(dense, grad.indices, grad.values.astype(D))
    return touched(grad, dense)


def expected_report(parts):
    """Of (gradient, before, after, moment or None), in float64: the fields of a `TensorReport`."""
    g, before, after = (np.concatenate([np.asarray(part[k], D).ravel() for part in parts]) for k in range(3))
    grad_norm, update_norm, param_norm = norm([g]), norm([after - before]), norm([before])
    cosine = None
    if parts[0][3] is not None:
        m = np.concatenate([np.asarray(part[3], D).ravel() for part in parts])
        cosine = math.fsum(g * m) / (grad_norm * norm([m]))
    return grad_norm, update_norm, param_norm, update_norm / param_norm, cosine, 0


def assert_report(actual, expected, tolerance):
    for name, value in zip(fs.TensorReport.__match_args__, expected, strict=True):
        got = getattr(actual, name)
        if value is None or name == "nonfinite":
            assert got == value, name
        else:
            # A cosine near 0 is a difference of large sums.
            slack = tolerance if name == "grad_momentum_cosine" else 0.0
            assert got == pytest.approx(value, rel=tolerance, abs=slack), name


class TestTelemetry:
    @pytest.mark.parametrize("maximize", [False, True])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_field(self, optimizer_class, isa, dtype, maximize, rng):
        """Of parameters with a gradient, and of the rows that have one where it is row-sparse."""
        rule = optimizer_class.rule
        params = params_for(rule, rng, dtype)
        groups = groups_of(params)
        groups[1]["maximize"] = maximize  # so that the directions of groups differ
        options = {**average_of(rule), "max_grad_norm": 5.0, "telemetry": True}
        if maximize and rule in CAUTIOUS:
            options["cautious"] = True
        optimizer = optimizer_class(groups, **HYPERS[rule], **options)
        tolerance = 1e-6 if dtype == F else 1e-12
        for step in range(1, 4):
            before, grads = copy.deepcopy(params), grads_for(rule, params, rng)
            report = optimizer.step(grads, grad_scale=3.0)
            parts = {}
            for k, grad in enumerate(grads):
                if grad is None:
                    continue
                moment = None
                if rule in MOMENTS and (rule, step) != ("adopt", 1):  # whose average begins with the second step
                    sign = (-1.0 if rule == "momentum" else 1.0) * (-1.0 if maximize and k >= 2 else 1.0)
                    moment = sign * touched(grad, optimizer.state[k][MOMENTS[rule]]).astype(D)
                parts[k] = (numbers(grad) / 3.0, touched(grad, before[k]), touched(grad, params[k]), moment)
                assert_report(report.tensors[k], expected_report([parts[k]]), tolerance)
            whole = expected_report(list(parts.values()))
            assert_report(report, whole, tolerance)
            assert report.clip_coefficient == pytest.approx(min(1.0, 5.0 / (whole[0] + 1e-6)), rel=tolerance)
            assert (report.step, report.skipped) == (step, False)
            assert report.lr == (optimizer.param_groups[0]["lr"], 0.02)
            assert [tensor is None for tensor in report.tensors] == [False, True, False, False]

    def test_does_not_change_the_step(self, optimizer_class, isa, rng):
        rule = optimizer_class.rule
        params = params_for(rule, rng, F)
        others = copy.deepcopy(params)
        options = {**HYPERS[rule], **average_of(rule)}
        watched, plain = optimizer_class(params, **options, telemetry=True), optimizer_class(others, **options)
        for _ in range(3):
            grads = grads_for(rule, params, rng)
            watched.step(grads)
            plain.step(grads)
        assert bits([params, watched.state]) == bits([others, plain.state])

    @pytest.mark.parametrize("maximize", [False, True])
    @pytest.mark.parametrize("rule", sorted(MOMENTS))
    def test_a_steady_gradient_has_a_cosine_of_one(self, rule, isa, maximize):
        """Up or down, and also where the average is a velocity, which points the other way."""
        p, g = np.linspace(1.0, 2.0, 12).reshape(4, 3), np.linspace(-1.0, 3.0, 12).reshape(4, 3)
        momentum = {"momentum": 0.9} if rule in ("sgd", "rmsprop") else {}
        optimizer = REGISTRY[rule](p, **momentum, telemetry=True, maximize=maximize)
        for _ in range(3):
            report = optimizer.step(g if rule in DENSE else fs.RowSparse(np.arange(4), g, g.shape))
        # RMSprop and ADOPT average what they have divided by the root mean square: the signs.
        expected = np.abs(g).sum() / (norm([g]) * math.sqrt(12)) if rule in ("rmsprop", "adopt") else 1.0
        assert report.grad_momentum_cosine == pytest.approx(expected, rel=1e-6 if rule == "rmsprop" else 1e-12)
        assert report.tensors[0].grad_momentum_cosine == report.grad_momentum_cosine

    @pytest.mark.parametrize("optimizer_class", [fs.Momentum, fs.SGD])
    def test_a_turn_of_the_gradient_has_a_negative_cosine(self, isa, optimizer_class):
        optimizer = optimizer_class(np.ones(3), lr=0.1, momentum=0.9, telemetry=True)
        optimizer.step(np.ones(3))
        # 0.9 − 0.5 against −0.5
        assert optimizer.step(np.full(3, -0.5)).grad_momentum_cosine == pytest.approx(-1.0, rel=1e-12)

    @pytest.mark.parametrize("rule", sorted(set(REGISTRY) - set(MOMENTS)))
    def test_no_cosine_without_an_average(self, rule, isa, rng):
        params = [rng.standard_normal((4, 3)), rng.standard_normal(5)]
        report = REGISTRY[rule](params, telemetry=True).step([np.ones((4, 3)), np.ones(5)])
        assert report.grad_momentum_cosine is None
        assert [tensor.grad_momentum_cosine for tensor in report.tensors] == [None, None]
        assert report.update_ratio is not None

    @pytest.mark.parametrize("optimizer_class", [fs.SGD, fs.LARS, fs.RMSprop])
    def test_no_cosine_where_momentum_is_off(self, isa, optimizer_class):
        report = optimizer_class(np.ones(3), momentum=0.0, telemetry=True).step(np.ones(3))
        assert report.grad_momentum_cosine is None

    def test_groups_with_and_without_an_average(self, isa):
        """The whole's cosine is that of the gradients that have an average."""
        groups = [{"params": np.ones(3), "momentum": 0.9}, {"params": np.ones(3)}]
        report = fs.SGD(groups, lr=0.1, telemetry=True).step([np.ones(3), np.full(3, 100.0)])
        assert report.tensors[0].grad_momentum_cosine == pytest.approx(1.0, rel=1e-12)
        assert report.tensors[1].grad_momentum_cosine is None
        assert report.grad_momentum_cosine == pytest.approx(1.0, rel=1e-12)

    def test_no_ratio_of_parameters_that_are_zero(self, isa):
        report = fs.SGD([np.zeros(3), np.ones(3)], lr=0.5, telemetry=True).step([np.ones(3), np.ones(3)])
        zero, one = report.tensors
        assert (zero.param_norm, zero.update_ratio) == (0.0, None)
        assert zero.update_norm == pytest.approx(math.sqrt(0.75), rel=1e-15)
        assert one.update_ratio == pytest.approx(0.5, rel=1e-15)
        assert report.update_ratio == pytest.approx(math.sqrt(0.5), rel=1e-15)

    def test_no_cosine_of_gradients_that_are_zero(self, isa):
        report = fs.Adam(np.ones(3), telemetry=True).step(np.zeros(3))
        assert report.grad_momentum_cosine is None
        assert (report.grad_norm, report.update_norm, report.update_ratio) == (0.0, 0.0, 0.0)

    def test_empty_tensors(self, isa):
        report = fs.Adam([np.ones((0, 3)), np.ones(2)], telemetry=True).step([np.ones((0, 3)), np.ones(2)])
        assert tuple(report.tensors[0]) == (0.0, 0.0, 0.0, None, None, 0)
        assert report.tensors[1].param_norm == report.param_norm == pytest.approx(math.sqrt(2.0), rel=1e-15)

    @pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}])
    def test_no_gradients(self, isa, options):
        """A None per parameter, and the norms of nothing."""
        report = fs.Adam([np.ones(3), np.ones(2)], telemetry=True, **options).step([None, None])
        assert (report.grad_norm, report.nonfinite, report.tensors) == (0.0, 0, (None, None))
        assert (report.update_norm, report.param_norm, report.update_ratio) == (0.0, 0.0, None)
        assert report.grad_momentum_cosine is None

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("options", [{"telemetry": True}, {"max_grad_norm": 1.0, "telemetry": True}])
    def test_counts_of_what_is_not_finite(self, optimizer_class, isa, options, dtype, rng):
        rule = optimizer_class.rule
        params = params_for(rule, rng, dtype)
        grads = grads_for(rule, params, rng)
        if rule not in DENSE:  # each row once
            grads = [g if g is None else fs.RowSparse(np.arange(len(g.values)), g.values, g.shape) for g in grads]
        first, last = (grad.values if isinstance(grad, fs.RowSparse) else grad for grad in (grads[0], grads[3]))
        first[0] = math.nan
        last[0, :3] = math.inf, -math.inf, math.nan
        last[-1, -2:] = np.finfo(dtype).max, math.nan
        report = optimizer_class(params, **HYPERS[rule], **options).step(grads)
        counts = [3 if rule == "muon" else 1, None, 0, 4]  # Muon's first has rows of 3
        assert [tensor and tensor.nonfinite for tensor in report.tensors] == counts
        assert report.nonfinite == counts[0] + 4
        assert (report.skipped, report.step) == (False, 1)

    @pytest.mark.parametrize(("scale", "becomes"), [(1e-30, 0.0), (1e25, math.inf)])
    def test_sizes_whose_squares_leave_float32(self, isa, scale, becomes):
        """As docs/numerics.md says: squares are of the parameter's dtype, but for those of the gradient."""
        for dtype in DTYPES:
            g, p = (np.linspace(1.0, 2.0, 300) * scale).astype(dtype), np.full(300, scale, dtype)
            before = p.copy()
            optimizer = fs.Momentum(p, lr=0.5, telemetry=True)
            report = optimizer.step(g)
            assert report.grad_norm == pytest.approx(norm([g]), rel=1e-14)
            if dtype == F:
                assert (report.update_norm, report.param_norm) == (becomes, becomes)
            else:
                expected = expected_report([(g, before, p, -optimizer.state[0]["velocity"])])
                assert_report(report, expected, 1e-12)

    def test_a_report_is_copied_and_pickled(self):
        report = fs.Adam([ones(3), ones(2)], telemetry=True).step([ones(3), None])
        for twin in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
            assert (type(twin), twin) == (fs.StepReport, report)
            assert type(twin.tensors[0]) is fs.TensorReport

    def test_what_nothing_asked_for_is_none(self, isa):
        report = fs.Adam(ones(3)).step(ones(3))
        assert tuple(report) == (1, 1e-3, None, None, False, None, None, None, None, None, None)
        report = fs.Adam(ones(3), skip_nonfinite=True).step(ones(3))
        assert (report.grad_norm, report.nonfinite, report.skipped) == (pytest.approx(math.sqrt(3)), 0, False)
        assert report.clip_coefficient is report.update_norm is report.tensors is None
        report = fs.Adam(ones(3), telemetry=True).step(ones(3))
        assert report.clip_coefficient is None
        assert report.grad_norm == report.tensors[0].grad_norm == pytest.approx(math.sqrt(3))


class TestCautious:
    @pytest.mark.parametrize("maximize", [False, True])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("rule", CAUTIOUS)
    def test_nothing_moves_against_the_gradient(self, rule, isa, dtype, maximize, rng):
        counts = _core.rules()[rule]["hypers"]
        hypers = {"lr": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.99, 0.999)[: counts.get("betas")]}
        hypers = {name: value for name, value in hypers.items() if name in counts}
        params = params_for(rule, rng, dtype)
        optimizer = REGISTRY[rule](params, **hypers, cautious=True, maximize=maximize)
        held = moved = 0
        for _ in range(4):
            before, grads = copy.deepcopy(params), grads_for(rule, params, rng)
            optimizer.step(grads)
            for param, start, grad in zip(params, before, grads, strict=True):
                if grad is not None:
                    assert ((start - param) * (-grad if maximize else grad) >= 0).all()
                    held += np.count_nonzero(param == start)
                    moved += np.count_nonzero(param != start)
        assert held > 500
        assert moved > 10_000

    @pytest.mark.parametrize("rule", CAUTIOUS)
    def test_against_the_paper(self, rule, isa, rng):
        """Kept components grow by elements / (kept + 1), tensor by tensor."""
        params = [rng.standard_normal(7), rng.standard_normal((2, 3, 4)), np.zeros(0)]
        grads = [[rng.standard_normal(p.shape) for p in params] for _ in range(10)]
        hypers = {**HYPERS[rule], "weight_decay": 0.0}
        expected = CASES[rule].oracle(params, lambda t, p: grads[t - 1], 10, **hypers, cautious=True)
        optimizer = REGISTRY[rule](params, **hypers, cautious=True)
        for step_grads in grads:
            optimizer.step(step_grads)
        for mine, theirs in zip(params, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-13)

    def test_by_hand(self, isa):
        """Lion: the sign of β1 m + (1 − β1) g, with the m of the step before."""
        p = np.zeros(4)
        optimizer = fs.Lion(p, lr=0.5, betas=(0.5, 0.5), weight_decay=0.0, cautious=True)
        optimizer.step(np.array([1.0, 1.0, 1.0, -1.0]))  # all 4 are kept: times 4 / 5
        np.testing.assert_allclose(p, [-0.4, -0.4, -0.4, 0.4], rtol=1e-15)
        p[...] = 0.0
        # m = ½, ½, ½, −½; ½ m + ½ g = ¾, −¼, 0.2 against −0.1, −¼ against 0
        optimizer.step(np.array([1.0, -1.0, -0.1, 0.0]))  # 2 are kept: times 4 / 3
        np.testing.assert_allclose(p, [-2 / 3, 2 / 3, 0.0, 0.0], rtol=1e-15)

    def test_a_group_of_its_own(self, isa, rng):
        a, b, other = np.ones(30), np.ones(30), np.ones(30)
        optimizer, plain = fs.Adam([{"params": a, "cautious": True}, {"params": b}]), fs.Adam(other)
        for _ in range(4):
            grad = rng.standard_normal(30)
            optimizer.step([grad, grad])
            plain.step(grad)
        assert_same_bits(b, other)
        assert not np.array_equal(a, b)

    @pytest.mark.parametrize("rule", sorted(set(REGISTRY) - set(CAUTIOUS)))
    def test_rules_that_have_none(self, rule, rng):
        optimizer_class, p = REGISTRY[rule], ones(3, 2)
        message = f"cautious: does not apply to {optimizer_class.__name__}"
        assert "cautious" not in optimizer_class.options()
        for value in (True, False):
            with pytest.raises(TypeError, match=message):
                optimizer_class(p, cautious=value)
            with pytest.raises(ValueError, match=message):
                optimizer_class([{"params": p, "cautious": value}])
        optimizer = optimizer_class([p])
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": ones(1, 1), "cautious": True})
        before = snapshot(optimizer)
        optimizer.param_groups[0]["cautious"] = True
        with pytest.raises(ValueError, match=f"cautious: does not apply to {rule}"):
            optimizer.step([gradient_for(rule, p, rng)])
        del optimizer.param_groups[0]["cautious"]
        assert snapshot(optimizer) == before


DIFFERENT = (
    ("max_grad_norm", None, 1.0),
    ("max_grad_norm", 1.0, 2.0),
    ("max_grad_norm", 1.0, math.inf),
    ("skip_nonfinite", False, True),
    ("telemetry", True, False),
)


class TestWholeStep:
    """Options that cannot differ between groups."""

    @pytest.mark.parametrize(("name", "one", "other"), DIFFERENT)
    def test_at_construction(self, optimizer_class, name, one, other):
        a, b = ones(2, 2), ones(2, 2)
        for groups, options in (
            ([{"params": a, name: one}, {"params": b, name: other}], {}),
            ([{"params": a}, {"params": b, name: other}], {name: one}),
            ([{"params": a, name: other}, {"params": b}], {name: one}),
        ):
            with pytest.raises(ValueError, match=f"{name}: holds for the whole step: expected the same in all groups"):
                optimizer_class(groups, **options)
        optimizer_class([{"params": a, name: other}, {"params": b, name: other}], **{name: one})

    @pytest.mark.parametrize(("name", "one", "other"), DIFFERENT)
    def test_in_an_added_group_and_later(self, isa, name, one, other):
        a, b = ones(2), ones(2)
        optimizer = fs.Adam([a], **{name: one})
        optimizer.step([ones(2)])
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match=f"{name}: holds for the whole step"):
            optimizer.add_param_group({"params": b, name: other})
        assert snapshot(optimizer) == before
        optimizer.add_param_group({"params": b})
        optimizer.param_groups[1][name] = other
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match=f"{name}: holds for the whole step"):
            optimizer.step([ones(2), ones(2)])
        assert snapshot(optimizer) == before
        optimizer.param_groups[0][name] = other
        assert optimizer.step([ones(2), ones(2)]).step == 2

    def test_in_a_state_that_is_loaded(self):
        optimizer = fs.Adam([{"params": ones(2)}, {"params": ones(2)}])
        before, state = snapshot(optimizer), copy.deepcopy(optimizer.state_dict())
        state["param_groups"][1]["max_grad_norm"] = 1.0
        with pytest.raises(ValueError, match="max_grad_norm: holds for the whole step"):
            optimizer.load_state_dict(state)
        assert snapshot(optimizer) == before

    def test_changed_together_they_hold_from_the_next_step(self, isa):
        optimizer = fs.SGD([{"params": np.zeros(1)}, {"params": np.zeros(1)}], lr=1.0)
        assert optimizer.step([np.full(1, 3.0), np.full(1, 4.0)]).grad_norm is None
        for group in optimizer.param_groups:
            group.update(max_grad_norm=0.5, telemetry=True, skip_nonfinite=True)
        report = optimizer.step([np.full(1, 3.0), np.full(1, 4.0)])
        assert report.clip_coefficient == pytest.approx(0.5 / (5.0 + 1e-6), rel=1e-15)
        assert report.update_norm == pytest.approx(2.5 / (5.0 + 1e-6), rel=1e-14)
        assert optimizer.step([np.full(1, math.nan), np.full(1, 4.0)]).skipped


def bad_values():
    """What each option refuses: (name, value, error, message)."""
    for name in ("maximize", "skip_nonfinite", "telemetry"):
        for value in (1, 0, None, "yes", 1.0):
            yield name, value, TypeError, f"{name}: expected True or False, got {value!r}"
    for value in (1.0, 1, -1e-9, 2, math.nan, math.inf, -math.inf):
        yield "ema_decay", value, ValueError, rf"ema_decay: expected a number in \[0, 1\), got {value}"
    for value in (0.0, 0, -1, -math.inf, math.nan):
        yield "max_grad_norm", value, ValueError, f"max_grad_norm: expected a number > 0, or None, got {value}"
    for name in ("ema_decay", "max_grad_norm"):
        for value, kind in ((True, "bool"), (np.False_, "numpy.bool"), ("1", "str"), ([0.5], "list"), (1j, "complex")):
            yield name, value, TypeError, f"{name}: expected a number, got {kind}"


class TestBadValues:
    @pytest.mark.parametrize(("name", "value", "error", "message"), list(bad_values()))
    def test_are_refused_before_anything_is_written(self, isa, name, value, error, message):
        p, q = ones(3), ones(3)
        with pytest.raises(error, match=message):
            fs.Adam([p], **{name: value})
        with pytest.raises(error, match=message):
            fs.Adam([{"params": p}, {"params": q, name: value}])
        optimizer = fs.Adam([p], ema_decay=0.5, max_grad_norm=1.0, skip_nonfinite=True, telemetry=True)
        optimizer.step([ones(3)])
        before = snapshot(optimizer)
        with pytest.raises(error, match=message):
            optimizer.add_param_group({"params": q, name: value})
        assert snapshot(optimizer) == before
        state = copy.deepcopy(optimizer.state_dict())
        state["param_groups"][0][name] = value
        with pytest.raises(error, match=message):
            optimizer.load_state_dict(state)
        assert snapshot(optimizer) == before
        good = optimizer.param_groups[0][name]
        optimizer.param_groups[0][name] = value
        with pytest.raises(error, match=message):
            optimizer.step([ones(3)])
        optimizer.param_groups[0][name] = good
        assert snapshot(optimizer) == before

    def test_every_rule_in_every_group(self, optimizer_class, rng):
        rule, params = optimizer_class.rule, [ones(3, 2), ones(3, 2)]
        optimizer = optimizer_class([{"params": param} for param in params])
        before = snapshot(optimizer)
        for name, value, error, message in bad_values():
            if name not in optimizer_class.options():
                continue
            good = optimizer.param_groups[1][name]
            optimizer.param_groups[1][name] = value
            with pytest.raises(error, match=message):
                optimizer.step([gradient_for(rule, param, rng) for param in params])
            optimizer.param_groups[1][name] = good
        assert snapshot(optimizer) == before

    @pytest.mark.parametrize("rule", CAUTIOUS)
    def test_cautious(self, rule):
        p = ones(3)
        optimizer = REGISTRY[rule](p)
        for value in (1, None, "yes"):
            with pytest.raises(TypeError, match="cautious: expected True or False"):
                REGISTRY[rule](p, cautious=value)
            optimizer.param_groups[0]["cautious"] = value
            with pytest.raises(TypeError, match="cautious: expected True or False"):
                optimizer.step(ones(3))
        assert optimizer.state == {}
        assert_same_bits(p, ones(3))

    @pytest.mark.parametrize("option", ["clip", "max_norm", "states_dtype"])
    def test_unknown_names(self, optimizer_class, option):
        message = f"{option}: not a hyper-parameter of {optimizer_class.__name__}"
        with pytest.raises(TypeError, match=message):
            optimizer_class(ones(2, 2), **{option: 1.0})
        with pytest.raises(ValueError, match=message):
            optimizer_class([{"params": ones(2, 2), option: 1.0}])

    def test_numbers_of_numpy_are_numbers(self, isa):
        p = np.zeros(1)
        options = {"ema_decay": F(0.5), "max_grad_norm": np.int64(5), "maximize": np.True_, "telemetry": np.True_}
        report = fs.SGD(p, lr=1.0, **options).step(np.full(1, 10.0))
        assert p[0] == report.update_norm == pytest.approx(5.0, rel=1e-6)

    def test_a_group_that_is_refused_leaves_the_kind_of_arrays_alone(self):
        """State is given back as what the parameters are, not as what they might have become."""
        optimizer = fs.SGD([ones(2)], momentum=0.9)
        optimizer.step([ones(2)])
        with pytest.raises(ValueError, match="lr: expected"):
            optimizer.add_param_group({"params": torch.ones(2), "lr": -1.0})
        assert isinstance(optimizer.state_dict()["state"][0]["momentum_buffer"], np.ndarray)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0, "skip_nonfinite": True, "telemetry": True}])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_empty_parameters(optimizer_class, isa, shape, options):
    """Beside one that is not empty: nothing is warned of, nothing is spoiled."""
    rule = optimizer_class.rule
    if rule == "muon" and len(shape) != 2:
        pytest.skip("matrices only")
    params, others = [np.ones(shape), np.ones((2, 2))], [np.ones((2, 2))]
    grads = [np.ones(shape), np.ones((2, 2))]
    if rule not in DENSE:
        grads = [fs.RowSparse([], np.ones((0, *shape[1:])), shape), fs.RowSparse([1], np.ones((1, 2)), (2, 2))]
    optimizer, plain = optimizer_class(params, **options), optimizer_class(others, **options)
    for _ in range(2):
        assert optimizer.step(grads)[:5] == plain.step(grads[1:])[:5]
    assert bits(params[1]) == bits(others[0])


def test_an_average_of_float32_does_not_drift():
    """Two factors that are rounded apart do not add up to 1; a single one does."""
    p = np.linspace(0.5, 1.5, 1000, dtype=np.float32)
    optimizer = fs.SGD(p, lr=0.0, ema_decay=0.9999)
    for _ in range(3000):
        optimizer.step(ones(1000))
    np.testing.assert_array_equal(optimizer.ema, p)


def test_groups_that_share_a_step_size_agree_on_what_makes_it():
    groups = [{"params": ones(2)}, {"params": ones(2), "d_coef": 0.5}]
    with pytest.raises(ValueError, match="d_coef: holds for the whole step"):
        fs.Prodigy(groups)
    with pytest.raises(ValueError, match="d: not a hyper-parameter of Prodigy"):
        fs.Prodigy([{"params": ones(2), "d": 5.0}])
    fs.Prodigy([{"params": ones(2)}, {"params": ones(2), "lr": 0.5, "weight_decay": 0.1}])


def test_grad_scale_whose_reciprocal_vanishes():
    with pytest.raises(ValueError, match="grad_scale: expected a finite number > 0"):
        fs.SGD(ones(2)).step(ones(2), grad_scale=1e50)


def test_scalars_of_functions_must_not_overlap():
    p, ax, mu = np.ones(3), np.zeros(3), np.ones(1)
    with pytest.raises(ValueError, match=r"eta: overlaps param in memory|param: overlaps eta"):
        fs.functional.asgd(p, np.ones(3), ax, p[:1], mu, step=1)
    assert (p == 1.0).all()


def test_names_of_a_state_dict_must_agree():
    saved = fs.SGD({"a": ones(2), "b": ones(2)}, momentum=0.9)
    saved.step({"a": ones(2), "b": 2 * ones(2)})
    other = fs.SGD({"b": ones(2), "a": ones(2)}, momentum=0.9)
    with pytest.raises(ValueError, match=r"state_dict: expected parameters \['b', 'a'\], got \['a', 'b'\]"):
        other.load_state_dict(saved.state_dict())
    assert other.state == {}


class TestEmaWarmup:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("isa", fs.runtime.available_isas())
    def test_as_averaging_has_it(self, isa, dtype, rng):
        """The bits of an `averaging.EMA` that is updated after every step, across a saved state."""
        p = rng.standard_normal(5000).astype(dtype)
        with fs.runtime.use_isa(isa):
            outside = fs.averaging.EMA(p, 0.99999, warmup=True)
            optimizer = fs.AdamW(p, lr=0.1, ema_decay=0.99999, ema_warmup=True)
            for step in range(12):
                if step == 5:
                    saved = optimizer.state_dict()
                    optimizer = fs.AdamW(p, lr=0.1)
                    optimizer.load_state_dict(saved)
                optimizer.step(rng.standard_normal(5000).astype(dtype))
                outside.update()
        np.testing.assert_array_equal(optimizer.ema, outside.params)

    def test_a_short_run(self):
        """After 2,000 steps at 1 the average of 0.99999 has forgotten its start, for (1 + t) / (10 + t) is less."""
        p = np.zeros(1)
        optimizer = fs.SGD(p, lr=0.0, ema_decay=0.99999, ema_warmup=True)
        optimizer.step(np.zeros(1))
        p[...] = 1
        for _ in range(2000):
            optimizer.step(np.zeros(1))
        assert optimizer.ema[0] > 0.999

    def test_errors(self):
        with pytest.raises(ValueError, match="ema_warmup: expected False without ema_decay"):
            fs.SGD(np.zeros(1), ema_warmup=True)
        with pytest.raises(TypeError, match="ema_warmup: expected True or False"):
            fs.SGD(np.zeros(1), ema_decay=0.9, ema_warmup=1)
        with pytest.raises(TypeError, match="ema_warmup: does not apply to SparseAdam"):
            fs.SparseAdam(np.zeros((2, 2)), ema_warmup=True)
