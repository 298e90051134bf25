"""Typed, named, and nothing written."""

import copy

import numpy as np
import pytest

import fusedstep as fs
from cases import ERRORS
from fusedstep.optimizers import REGISTRY
from helpers import assert_same_bits, gradient_for, ones

F = np.float32


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
    def test_hyper_parameters(self, rule, hypers, error, message, rng):
        p = ones(3, 1)
        with pytest.raises(error, match=message):
            REGISTRY[rule](p, **hypers)
        optimizer = REGISTRY[rule](p)
        optimizer.step(gradient_for(rule, p, rng))
        before, state = p.copy(), copy.deepcopy(optimizer.state)
        optimizer.param_groups[0].update(hypers)
        with pytest.raises(error, match=message):
            optimizer.step(gradient_for(rule, p, rng))
        assert_same_bits(p, before)
        assert repr(optimizer.state) == repr(state)

    @pytest.mark.parametrize(
        ("params", "error", "message"),
        [
            (
                [ones(3), np.ones(3, np.int64)],
                TypeError,
                r"params\[1\]: expected float32, float64, float16 or bfloat16 .* got dtype int64",
            ),
            (
                [np.ones(3, ">f4")],
                TypeError,
                r"params\[0\]: expected float32, float64, float16 or bfloat16 in native byte order, got dtype >f4",
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

    def test_the_last_tensor_wrong_leaves_the_first_alone(self, optimizer_class, rng):
        a, b = ones(3, 1), ones(3, 1)
        optimizer = optimizer_class([a, b])
        with pytest.raises(ValueError, match=r"grads\[1\]"):
            optimizer.step([gradient_for(optimizer_class.rule, p, rng) for p in (a, ones(2, 1))])
        assert (a == 1.0).all()

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
