"""Structures, groups, state and errors of all optimizers."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

import fusedstep as fs
from cases import CASES, ERRORS
from fusedstep.optimizers import REGISTRY
from helpers import assert_same_bits

RULES = sorted(CASES)
F = np.float32


def ones(*shape, dtype=F):
    return np.ones(shape, dtype)


@pytest.fixture(params=RULES)
def optimizer_class(request):
    return REGISTRY[request.param]


class TestStructures:
    def test_all_structures_update_alike(self, optimizer_class, rng):
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
            optimizer_class(params, lr=0.1).step(given)
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
    def test_options_against_their_equations(self, isa, optimizer_class, rng):
        """grad_scale divides, maximize turns the sign, the average is in float64 what its equation says."""
        start, gradients = rng.standard_normal(50), rng.standard_normal((20, 50))
        p, q = start.copy(), start.copy()
        with fs.runtime.use_isa(isa):
            plain, other = optimizer_class(p, lr=0.01, ema_decay=0.999), optimizer_class(q, lr=0.01, maximize=True)
            average = start.copy()
            for gradient in gradients:
                plain.step(4 * gradient, grad_scale=4.0)
                average = 0.999 * average + 0.001 * p
                other.step(-gradient)
        assert_same_bits(p, q)
        np.testing.assert_allclose(plain.ema, average, rtol=1e-13)
        # Starting from 0, the average of float32 is 1 - ema_decay of the parameter, to its precision.
        single = np.zeros(50, F)
        short = optimizer_class(single, lr=0.01, ema_decay=0.999999)
        short.step(gradients[0].astype(F))
        np.testing.assert_allclose(short.ema, 1e-6 * single.astype(np.float64), rtol=1e-6)

    def test_dtypes_and_first_steps_side_by_side(self, optimizer_class, rng):
        """Tensors of both dtypes, some at their first step: each as if it were alone."""
        arrays = [rng.standard_normal(9).astype(dtype) for dtype in (F, np.float64, F, np.float64)]
        grads = [rng.standard_normal(9).astype(array.dtype) for array in arrays]
        options = {"momentum": 0.9, "dampening": 0.5} if optimizer_class is fs.SGD else {}
        alone = [array.copy() for array in arrays]
        together = optimizer_class(arrays, lr=0.1, **options)
        together.step([None, grads[1], grads[2], None])
        together.step(grads)
        for k, array in enumerate(alone):
            optimizer = optimizer_class(array, lr=0.1, **options)
            for _ in range(2 if k in (1, 2) else 1):
                optimizer.step(grads[k])
            assert_same_bits(arrays[k], array)

    def test_add_param_group_goes_on_counting(self):
        optimizer = fs.SGD([ones(1)], lr=lambda taken: 0.5**taken)
        optimizer.step([ones(1)])
        optimizer.add_param_group({"params": ones(1), "lr": 1.0})
        assert optimizer.step([None, None]) == (2, (0.5, 1.0))

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
    def test_copies_go_on_alone(self, optimizer_class, how, rng):
        grads = rng.standard_normal((4, 5)).astype(F)
        p = ones(5)
        optimizer = optimizer_class(p, ema_decay=0.5)
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

    def test_state_dict_round_trip(self, optimizer_class, rng):
        grads = rng.standard_normal((6, 3, 4)).astype(F)
        p = ones(3, 4)
        optimizer = optimizer_class([p], lr=0.1, weight_decay=0.25, ema_decay=0.5)
        for grad in grads[:3]:
            optimizer.step([grad])
        saved, saved_p = copy.deepcopy(optimizer.state_dict()), p.copy()
        for grad in grads[3:]:
            optimizer.step([grad])
        other = optimizer_class([saved_p], lr=0.5)
        other.load_state_dict(saved)
        for grad in grads[3:]:
            report = other.step([grad])
        assert_same_bits(saved_p, p)
        assert_same_bits(other.ema[0], optimizer.ema[0])
        assert report == (6, 0.1)

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
        assert repr(fs.SGD([ones(2, 3)], lr=0.5)).splitlines()[1].startswith("    1 arrays of 6 parameters: lr=0.5")


class TestErrors:
    """Typed, named, and nothing written."""

    @pytest.fixture(params=["numpy", fs.runtime.available_isas()[-1]], autouse=True)
    def isa(self, request):
        with fs.runtime.use_isa(request.param):
            yield

    def test_a_parameter_replaced_by_a_longer_one(self):
        """What was found not to overlap is looked at again when an array at the same place is longer."""
        whole = ones(8)
        optimizer = fs.SGD([whole[:4], whole[4:]])
        optimizer.step([ones(4), ones(4)])
        before = whole.copy()
        optimizer.param_groups[0]["params"][0] = whole
        with pytest.raises(ValueError, match=r"params\[1\]: overlaps params\[0\]"):
            optimizer.step([ones(8), ones(4)])
        assert_same_bits(whole, before)

    @pytest.mark.parametrize(("rule", "hypers", "error", "message"), ERRORS)
    def test_hyper_parameters(self, rule, hypers, error, message):
        p = ones(3)
        with pytest.raises(error, match=message):
            REGISTRY[rule](p, **hypers)
        optimizer = REGISTRY[rule](p)
        optimizer.step(np.zeros(3, F))
        before, state = p.copy(), copy.deepcopy(optimizer.state)
        optimizer.param_groups[0].update(hypers)
        with pytest.raises(error, match=message):
            optimizer.step(ones(3))
        assert_same_bits(p, before)
        assert repr(optimizer.state) == repr(state)

    @pytest.mark.parametrize(
        ("params", "error", "message"),
        [
            (
                [ones(3), np.ones(3, np.int64)],
                TypeError,
                r"params\[1\]: expected float32 or float64 .* got dtype int64",
            ),
            (
                [np.ones(3, ">f4")],
                TypeError,
                r"params\[0\]: expected float32 or float64 in native byte order, got dtype >f4",
            ),
            ([[1.0, 2.0]], TypeError, r"params\[0\]: expected an array, got list"),
            ([np.ma.MaskedArray(ones(3))], TypeError, r"params\[0\]: expected a plain NumPy array, got MaskedArray"),
            (
                [ones(4)[::2]],
                ValueError,
                r"params\[0\]: expected one dense block of memory, got shape \(2,\) with strides",
            ),
            ([ones(4)[::-1]], ValueError, r"params\[0\]: expected one dense block"),
            ([np.broadcast_to(ones(1), 4)], ValueError, r"params\[0\]: expected one dense block"),
            ([np.frombuffer(bytes(16), F)], ValueError, r"params\[0\]: expected a writable array"),
            (
                [np.frombuffer(bytearray(17), np.uint8)[1:].view(F)],
                ValueError,
                r"params\[0\]: expected an array aligned",
            ),
            ([{"lr": 0.1}], ValueError, "a group has no 'params'"),
            ([{"params": ones(1), "lrs": 0.1}], ValueError, "lrs: not a hyper-parameter of AdamW"),
        ],
    )
    def test_parameters(self, params, error, message):
        with pytest.raises(error, match=message):
            fs.AdamW(params)

    def test_overlapping_parameters(self):
        base = ones(10)
        for a, b in ((base, base), (base[:6], base[4:]), (base[2:4], base)):
            with pytest.raises(ValueError, match=r"params\[\d\]: overlaps params\[\d\] in memory"):
                fs.AdamW([a, b])

    @pytest.mark.parametrize(
        ("structure", "grads", "error", "message"),
        [
            (list, [ones(3)], ValueError, "grads: expected 2 arrays .* got 1"),
            (list, [ones(3)] * 3, ValueError, "grads: expected 2 arrays .* got 3"),
            (list, ones(3), TypeError, r"grads: expected a list of 2 arrays, got numpy\.ndarray"),
            (list, [ones(3), ones(4)], ValueError, r"grads\[1\]: expected shape \(3,\) as params\[1\] has, got \(4,\)"),
            (list, [ones(3), ones(3, 1)], ValueError, r"grads\[1\]: expected shape \(3,\)"),
            (
                list,
                [ones(3), ones(3, dtype=np.float64)],
                TypeError,
                r"grads\[1\]: expected dtype float32 as params\[1\]",
            ),
            (list, [ones(3), [1.0] * 3], TypeError, r"grads\[1\]: expected an array, got list"),
            (dict, {"a": ones(3)}, ValueError, "grads: no gradient for 'b'"),
            (dict, {"a": None, "b": None, "c": None}, ValueError, "grads: 'c' is not the name of a parameter"),
            (dict, [ones(3), ones(3)], TypeError, "grads: expected a dict with the parameters' names, got list"),
        ],
    )
    def test_gradients(self, structure, grads, error, message):
        a, b = ones(3), ones(3)
        optimizer = fs.AdamW({"a": a, "b": b} if structure is dict else [a, b])
        with pytest.raises(error, match=message):
            optimizer.step(grads)
        assert a.tolist() == b.tolist() == [1.0] * 3
        assert optimizer.state == {}

    def test_nested_gradients_of_groups(self):
        optimizer = fs.AdamW([{"params": [ones(1), ones(1)]}, {"params": ones(1)}])
        for grads, message in (
            ([ones(1)] * 2, "grads: expected 3 arrays .* got 2"),
            ([[ones(1)], ones(1)], "grads: expected 2 arrays .* got 1"),
        ):
            with pytest.raises(ValueError, match=message):
                optimizer.step(grads)

    def test_gradient_that_overlaps_what_is_written(self):
        base = ones(8)
        optimizer = fs.Adam([base[:4], ones(4)])
        for grads in ([base[:4], ones(4)], [ones(4), base[2:6]]):
            with pytest.raises(ValueError, match=r"grads\[\d\]: overlaps params\[0\] in memory"):
                optimizer.step(grads)
        optimizer.step([ones(4), ones(4)])
        with pytest.raises(ValueError, match=r"grads\[1\]: overlaps state\[0\]\['exp_avg'\]"):
            optimizer.step([ones(4), optimizer.state[0]["exp_avg"]])

    def test_replaced_states_are_checked(self):
        p = ones(4)
        optimizer = fs.Adam(p)
        optimizer.step(ones(4))
        before = p.copy()
        for array, error, message in (
            (ones(3), ValueError, r"state\[0\]\['exp_avg'\]: expected shape \(4,\)"),
            (ones(4, dtype=np.float64), TypeError, r"state\[0\]\['exp_avg'\]: expected dtype float32"),
            (optimizer.state[0]["exp_avg_sq"], ValueError, r"overlaps state\[0\]\['exp_avg"),
            (p, ValueError, r"overlaps params\[0\]"),
            (np.broadcast_to(ones(1), 4), ValueError, r"state\[0\]\['exp_avg'\]: expected the memory layout"),
            (np.frombuffer(bytes(16), F), ValueError, r"state\[0\]\['exp_avg'\]: expected a writable array"),
            (None, TypeError, r"state\[0\]\['exp_avg'\]: expected a NumPy array, got NoneType"),
        ):
            saved = optimizer.state[0]["exp_avg"]
            optimizer.state[0]["exp_avg"] = array
            with pytest.raises(error, match=message):
                optimizer.step(ones(4))
            optimizer.state[0]["exp_avg"] = saved
        optimizer.state[0]["step"] = -3
        with pytest.raises(ValueError, match=r"state\[0\]\['step'\]: expected a whole number >= 0, got -3"):
            optimizer.step(ones(4))
        assert_same_bits(p, before)

    def test_parameter_made_read_only_later(self):
        p = ones(3)
        optimizer = fs.AdamW(p)
        p.flags.writeable = False
        with pytest.raises(ValueError, match=r"params\[0\]: expected a writable array"):
            optimizer.step(ones(3))

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-40])
    def test_grad_scale(self, scale):
        p = ones(3)
        with pytest.raises(ValueError, match="grad_scale: expected a finite number > 0"):
            fs.AdamW(p).step(ones(3), grad_scale=scale)
        assert p.tolist() == [1.0] * 3

    def test_the_last_tensor_wrong_leaves_the_first_alone(self, optimizer_class):
        a, b = ones(3), ones(3)
        optimizer = optimizer_class([a, b])
        with pytest.raises(ValueError, match=r"grads\[1\]"):
            optimizer.step([ones(3), ones(2)])
        assert a.tolist() == [1.0] * 3

    def test_a_schedule_that_raises_changes_nothing(self):
        def schedule(taken):
            if taken == 1:
                raise RuntimeError("no more")
            return 0.5

        p = ones(1)
        optimizer = fs.SGD(p, lr=schedule)
        optimizer.step(ones(1))
        with pytest.raises(RuntimeError, match="no more"):
            optimizer.step(ones(1))
        assert p[0] == 0.5

    def test_a_schedule_must_not_step(self):
        p = ones(1)
        optimizer = fs.SGD(p, lr=lambda taken: optimizer.step(ones(1)).lr if taken else 0.5)
        optimizer.step(ones(1))
        with pytest.raises(RuntimeError, match="this optimizer is in the middle of a step"):
            optimizer.step(ones(1))
        assert p[0] == 0.5

    def test_groups_that_the_user_broke(self):
        for change, error, message in (
            (lambda o: o.param_groups.clear(), ValueError, "param_groups: expected at least one group"),
            (lambda o: o.param_groups.append(None), TypeError, r"param_groups\[1\]: expected a dict, got NoneType"),
            (lambda o: o.param_groups[0].pop("params"), TypeError, r"param_groups\[0\]\['params'\]: expected a list"),
            (
                lambda o: o.param_groups[0]["params"].append(ones(1)),
                ValueError,
                "expected 1 names, one per|expected 2 names",
            ),
            (lambda o: o.param_groups[0].pop("lr"), ValueError, "lr: missing"),
        ):
            p = ones(1)
            optimizer = fs.SGD({"p": p})
            change(optimizer)
            with pytest.raises(error, match=message):
                optimizer.step({"p": ones(1)})
            assert p[0] == 1.0

    def test_groups_and_state_cannot_be_replaced(self):
        optimizer = fs.SGD(ones(1))
        for name in ("param_groups", "state"):
            with pytest.raises(AttributeError):
                setattr(optimizer, name, [])

    @pytest.mark.parametrize(
        ("rate", "error", "message"),
        [
            (-1.0, ValueError, r"lr: expected a finite number >= 0, got -1\.0"),
            (float("nan"), ValueError, "lr: expected a finite number >= 0, got nan"),
            (None, TypeError, "lr: expected a number, got NoneType"),
        ],
    )
    def test_a_schedule_that_gives_nonsense(self, rate, error, message):
        p = ones(1)
        optimizer = fs.SGD(p, lr=lambda taken: rate)
        with pytest.raises(error, match=message):
            optimizer.step(ones(1))
        assert p[0] == 1.0

    def test_a_schedule_that_empties_the_groups(self):
        p = ones(1)
        optimizer = fs.SGD([p], lr=lambda taken: optimizer.param_groups.clear() or 0.5)
        with pytest.raises(ValueError, match="param_groups: expected at least one group"):
            optimizer.step([ones(1)])
        assert p[0] == 1.0

    @pytest.mark.parametrize("make", [lambda p: p, lambda p: [p], lambda p: [{"params": [p]}]])
    def test_parameters_added_behind_its_back(self, make):
        optimizer = fs.SGD(make(ones(3)))
        optimizer.param_groups[0]["params"].append(ones(3))
        with pytest.raises(ValueError, match="grads: expected 2 arrays"):
            optimizer.step(ones(3) if optimizer._structure.name == "array" else [ones(3)])

    def test_names_that_are_too_few(self):
        with pytest.raises(ValueError, match="expected 2 names, one per parameter, got 1"):
            fs.SGD([{"params": [ones(1), ones(1)], "param_names": ["a"]}])

    def test_a_gradient_that_calls_back(self):
        class Sneaky:
            def __array__(self, dtype=None, copy=None):
                optimizer.step(ones(2))
                return ones(2)

        p = ones(2)
        optimizer = fs.Adam(p)
        with pytest.raises(TypeError, match="in the middle of a step"):
            optimizer.step(Sneaky())
        assert p.tolist() == [1.0, 1.0]

    def test_step_counts_out_of_range(self):
        optimizer = fs.Adam(ones(1))
        optimizer.step(ones(1))
        good = optimizer.state_dict()
        for step in (-1, 2**53, 0.5, float("nan")):
            with pytest.raises(ValueError, match=r"state_dict\['step'\]: expected a whole number >= 0"):
                optimizer.load_state_dict({**good, "step": step})
        optimizer.state[0]["step"] = 2**63 - 1
        with pytest.raises(ValueError, match=r"state\[0\]\['step'\]: expected a whole number >= 0"):
            optimizer.step(ones(1))
        with pytest.raises(ValueError, match="state_dict: no 'state'"):
            optimizer.load_state_dict({})

    def test_numbers_of_numpy(self):
        optimizer = fs.SGD(ones(1), lr=np.float32(0.5), maximize=np.True_)
        optimizer.step(ones(1), grad_scale=np.int64(2))
        assert optimizer.param_groups[0]["params"][0][0] == 1.25

    @pytest.mark.parametrize("scale", ["x", None, True])
    def test_grad_scale_that_is_no_number(self, scale):
        with pytest.raises(TypeError, match="grad_scale: expected a number, got"):
            fs.SGD(ones(1)).step(ones(1), grad_scale=scale)


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
