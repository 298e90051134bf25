"""Groups, schedules, step counts, averages, copies and state dicts."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

import fusedstep as fs
from helpers import assert_same_bits, ones

# Where another optimizer takes a state over, hyper-parameters change.
pytestmark = pytest.mark.filterwarnings("ignore:load_state_dict. replaced")

F = np.float32


class TestState:
    def test_frozen_parameters_keep_their_own_steps(self):
        a, b = ones(2), ones(2)
        optimizer = fs.Adam([a, b])
        optimizer.step([ones(2), None])
        assert list(optimizer.state) == [0]
        assert b.tolist() == [1.0, 1.0]
        optimizer.step([None, ones(2)])
        optimizer.step([ones(2), ones(2)])
        assert [optimizer.state[k]["step"] for k in (0, 1)] == [2, 2]
        assert_same_bits(a, b)

    def test_hyper_parameters_change_between_steps(self):
        p = ones(1)
        optimizer = fs.SGD(p, lr=0.5)
        optimizer.step(ones(1))
        optimizer.param_groups[0]["lr"] = 0.25
        optimizer.step(ones(1))
        assert p[0] == 0.25
        optimizer.param_groups[0]["lr"] = -1.0
        with pytest.raises(ValueError, match=r"lr: expected a finite number >= 0, got -1\.0"):
            optimizer.step(ones(1))
        assert p[0] == 0.25

    def test_momentum_turned_on_later_starts_undamped(self):
        p, q = ones(2), ones(2)
        late, fresh = fs.SGD(p, lr=0.1), fs.SGD(q, lr=0.1, momentum=0.9, dampening=0.5)
        late.step(np.zeros(2, F))
        late.param_groups[0].update(momentum=0.9, dampening=0.5)
        for _ in range(3):
            late.step(ones(2))
            fresh.step(ones(2))
        assert_same_bits(p, q)

    def test_schedule_is_a_function_of_steps_taken(self):
        asked = []

        def schedule(taken):
            asked.append(taken)
            return 1.0 / (1 + taken)

        p = ones(1)
        optimizer = fs.SGD(p, lr=schedule)
        rates = [optimizer.step(ones(1)).lr for _ in range(3)]
        assert rates == [1.0, 0.5, 1.0 / 3]
        assert asked == [0, 1, 2]

    def test_report_has_a_rate_per_group(self):
        optimizer = fs.SGD([{"params": ones(1), "lr": 0.5}, {"params": ones(1)}], lr=0.25)
        assert optimizer.step([None, None]).lr == (0.5, 0.25)

    def test_ema_follows_the_parameters(self):
        p = ones(2, dtype=np.float64)
        optimizer = fs.SGD(p, lr=1.0, ema_decay=0.75)
        assert optimizer.ema is None
        optimizer.step(ones(2, dtype=np.float64))
        assert optimizer.ema.tolist() == [0.75, 0.75]
        named = fs.SGD({"w": ones(1)}, ema_decay=0.5)
        named.step({"w": ones(1)})
        assert list(named.ema) == ["w"]

    @pytest.mark.parametrize("isa", fs.runtime.available_isas())
    def test_options_against_their_equations(self, isa, vector_optimizer, rng):
        """grad_scale divides, maximize turns the sign, the average is in float64 what its equation says."""
        start, gradients = rng.standard_normal(50), rng.standard_normal((20, 50))
        p, q = start.copy(), start.copy()
        with fs.runtime.use_isa(isa):
            plain, other = vector_optimizer(p, lr=0.01, ema_decay=0.999), vector_optimizer(q, lr=0.01, maximize=True)
            average = start.copy()
            for gradient in gradients:
                plain.step(4 * gradient, grad_scale=4.0)
                average = 0.999 * average + 0.001 * p
                other.step(-gradient)
        assert_same_bits(p, q)
        np.testing.assert_allclose(plain.ema, average, rtol=1e-13)
        # Starting from 0, the average of float32 is 1 - ema_decay of the parameter, to its precision.
        single = np.zeros(50, F)
        short = vector_optimizer(single, lr=0.01, ema_decay=0.999999)
        short.step(gradients[0].astype(F))
        np.testing.assert_allclose(short.ema, 1e-6 * single.astype(np.float64), rtol=1e-6)

    def test_dtypes_and_first_steps_side_by_side(self, vector_optimizer, rng):
        """Tensors of both dtypes, some at their first step: each as if it were alone."""
        if vector_optimizer is fs.Prodigy:
            pytest.skip("its parameters share their step size")
        arrays = [rng.standard_normal(9).astype(dtype) for dtype in (F, np.float64, F, np.float64)]
        grads = [rng.standard_normal(9).astype(array.dtype) for array in arrays]
        options = {"momentum": 0.9, "dampening": 0.5} if vector_optimizer is fs.SGD else {}
        alone = [array.copy() for array in arrays]
        together = vector_optimizer(arrays, lr=0.1, **options)
        together.step([None, grads[1], grads[2], None])
        together.step(grads)
        for k, array in enumerate(alone):
            optimizer = vector_optimizer(array, lr=0.1, **options)
            for _ in range(2 if k in (1, 2) else 1):
                optimizer.step(grads[k])
            assert_same_bits(arrays[k], array)

    def test_add_param_group_goes_on_counting(self):
        optimizer = fs.SGD([ones(1)], lr=lambda taken: 0.5**taken)
        optimizer.step([ones(1)])
        optimizer.add_param_group({"params": ones(1), "lr": 1.0})
        assert optimizer.step([None, None])[:2] == (2, (0.5, 1.0))

    def test_add_param_group(self):
        a, b = ones(1), ones(1)
        optimizer = fs.SGD([a], lr=0.5)
        optimizer.step([ones(1)])
        optimizer.add_param_group({"params": b, "lr": 0.25})
        optimizer.step([ones(1), ones(1)])
        assert (a[0], b[0]) == (0.0, 0.75)
        with pytest.raises(ValueError, match=r"params\[2\]: overlaps params\[0\]"):
            optimizer.add_param_group({"params": a})
        assert len(optimizer.param_groups) == 2

    @pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies_go_on_alone(self, vector_optimizer, how, rng):
        grads = rng.standard_normal((4, 5)).astype(F)
        p = ones(5)
        optimizer = vector_optimizer(p, ema_decay=0.5)
        for grad in grads[:2]:
            optimizer.step(grad)
        twin = how(optimizer)
        twin_p = twin.param_groups[0]["params"][0]
        for grad in grads[2:]:
            optimizer.step(grad)
        assert not np.array_equal(p, twin_p)
        reports = [twin.step(grad) for grad in grads[2:]]
        assert_same_bits(p, twin_p)
        assert reports[-1].step == 4

    def test_state_dict_round_trip(self, vector_optimizer, rng):
        grads = rng.standard_normal((6, 3, 4)).astype(F)
        p = ones(3, 4)
        decay = {} if vector_optimizer is fs.Rprop else {"weight_decay": 0.25}
        optimizer = vector_optimizer([p], lr=0.1, ema_decay=0.5, **decay)
        for grad in grads[:3]:
            optimizer.step([grad])
        saved, saved_p = copy.deepcopy(optimizer.state_dict()), p.copy()
        for grad in grads[3:]:
            optimizer.step([grad])
        other = vector_optimizer([saved_p], lr=0.5)
        other.load_state_dict(saved)
        for grad in grads[3:]:
            report = other.step([grad])
        assert_same_bits(saved_p, p)
        assert_same_bits(other.ema[0], optimizer.ema[0])
        assert report[:2] == (6, 0.1)

    def test_loading_copies(self):
        p = ones(2)
        optimizer = fs.Adam(p)
        optimizer.step(ones(2))
        other = fs.Adam(ones(2))
        other.load_state_dict(optimizer.state_dict())
        assert not np.shares_memory(other.state[0]["exp_avg"], optimizer.state[0]["exp_avg"])

    def test_wrong_state_dicts_change_nothing(self):
        source = fs.Adam([ones(2), ones(3)])
        source.step([ones(2), ones(3)])
        good = source.state_dict()
        optimizer = fs.Adam([ones(2), ones(3)])

        def broken(change):
            state = copy.deepcopy(good)
            change(state)
            return state

        for change, error, message in (
            (lambda s: s.update(rule="sgd"), ValueError, "expected a state of 'adam', got one of 'sgd'"),
            (
                lambda s: s["param_groups"][0]["params"].pop(),
                ValueError,
                r"expected groups of \[2\] parameters, got \[1\]",
            ),
            (lambda s: s["state"][0].update(exp_avg=ones(3)), ValueError, r"\(2,\), got \(3,\)"),
            (lambda s: s["state"][0].update(exp_avg=ones(2, dtype=np.float64)), TypeError, "float32, got float64"),
            (lambda s: s["state"][0].update(momentum_buffer=ones(2)), ValueError, "not a state of 'adam'"),
            (lambda s: s["state"][0].pop("exp_avg_sq"), ValueError, r"has \['exp_avg'\], expected one of"),
            (lambda s: s["state"][1].update(step="x"), ValueError, "whole number >= 0, got 'x'"),
            (lambda s: s["state"][1].update(step=-1), ValueError, "whole number >= 0, got -1"),
            (lambda s: s["state"].update({7: {}}), ValueError, "positions below 2, got 7"),
            (lambda s: s["param_groups"][0].update(lr=-1.0), ValueError, "lr: expected"),
        ):
            with pytest.raises(error, match=message):
                optimizer.load_state_dict(broken(change))
            assert optimizer.state == {}
            assert optimizer.param_groups[0]["lr"] == 1e-3

    def test_repr(self):
        assert repr(fs.SGD([ones(2, 3)], lr=0.5)).splitlines()[1].startswith("    1 array of 6 parameters: lr=0.5")


def test_a_discarded_optimizer_is_freed():
    """An object that holds an optimizer whose schedule is its method: a cycle that the collector must see."""

    class Trainer:
        def __init__(self):
            self.optimizer = fs.SGD(ones(3), lr=self.rate)
            self.optimizer.step(ones(3))

        def rate(self, taken):
            return 0.5

    reference = weakref.ref(Trainer())
    gc.collect()
    assert reference() is None


class TestRpropUnderSchedules:
    """The step sizes begin with the rate, which a warm-up holds down at first."""

    @pytest.mark.parametrize("isa", fs.runtime.available_isas())
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_through_a_warmup_the_steps_are_the_rate(self, isa, dtype):
        rate = fs.schedules.warmup(0.5, 4)
        with fs.runtime.use_isa(isa):
            p = np.zeros((3, 7), dtype)
            opt = fs.Rprop(p, lr=rate, step_sizes=(1e-6, 50.0))
            moved = []
            for _ in range(8):
                before = p.copy()
                opt.step(np.full_like(p, -1.0))
                moved.append(float((p - before).max()))
        # 0 is held at the smallest step size; from the end of the warm-up on it grows by 1.2 a step.
        expected = [1e-6, 0.125, 0.25, 0.375, 0.5, 0.6, 0.72, 0.864]
        np.testing.assert_allclose(moved, expected, rtol=1e-5)

    def test_a_rate_that_falls_or_stays_changes_nothing(self):
        g = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
        results = []
        for lr in (0.1, fs.schedules.constant(0.1), fs.schedules.cosine(0.1, 20), fs.schedules.step_decay(0.1, 3)):
            p = np.zeros(5, np.float32)
            opt = fs.Rprop(p, lr=lr)
            for row in g:
                opt.step(row)
            results.append(p.tobytes())
        assert len(set(results)) == 1

    def test_it_arrives_as_without(self):
        """min ½‖p − 1‖²: a warm-up delays by no more than its own length."""
        distances = []
        for lr, steps in ((0.05, 40), (fs.schedules.warmup(0.05, 50), 90), (fs.schedules.one_cycle(0.05, 100), 70)):
            p = np.zeros(4, np.float64)
            opt = fs.Rprop(p, lr=lr, step_sizes=(0.0, 50.0))
            for _ in range(steps):
                opt.step(p - 1)
            distances.append(np.abs(p - 1).max())
        assert max(distances) < 1e-2, distances

    def test_resumed_in_the_warmup_it_has_the_same_bits(self):
        g = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
        rate = fs.schedules.warmup(0.1, 8)
        p = np.zeros(5, np.float32)
        opt = fs.Rprop(p, lr=rate)
        for k, row in enumerate(g):
            if k == 5:
                q, other = p.copy(), None
                other = fs.Rprop(q, lr=rate)
                other.load_state_dict(copy.deepcopy(opt.state_dict()))
            opt.step(row)
            if k >= 5:
                other.step(row)
        assert p.tobytes() == q.tobytes()
