"""How parameters and gradients may come."""

import copy
import sys
from collections import OrderedDict
from types import MappingProxyType

import numpy as np
import pytest

import fusedstep as fs
from helpers import assert_same_bits, gradient_for, ones

F = np.float32


class TestNames:
    """Errors call a parameter by its name where it has one."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda a, b: ({"first": a, "layer33.w": b}, lambda x, y: {"first": x, "layer33.w": y}),
            lambda a, b: ([("first", a), ("layer33.w", b)], lambda x, y: [x, y]),
            lambda a, b: ([{"params": [a]}, {"params": {"layer33.w": b}}], lambda x, y: [x, y]),
            lambda a, b: ({"first": a, "layer33": {"w": b}}, lambda x, y: {"first": x, "layer33": {"w": y}}),
        ],
    )
    def test_of_gradients_and_parameters(self, make):
        a, b = ones(2), ones(3)
        params, given = make(a, b)
        optimizer = fs.Adam(params)
        for grad, error in ((ones(4), ValueError), (ones(3, dtype=np.float64), TypeError), ("x", TypeError)):
            with pytest.raises(error, match=r"^grads\['layer33.w'\]: "):
                optimizer.step(given(ones(2), grad))
        with pytest.raises(ValueError, match=r"^grads\['layer33.w'\]: overlaps params\['layer33.w'\]"):
            optimizer.step(given(ones(2), b))
        b.flags.writeable = False
        with pytest.raises(ValueError, match=r"^params\['layer33.w'\]: expected a writable array"):
            optimizer.step(given(ones(2), ones(3)))
        assert a.tolist() == [1.0] * 2

    def test_at_the_start(self):
        with pytest.raises(TypeError, match=r"^params\['layer33.w'\]: expected float32"):
            fs.SGD({"first": ones(1), "layer33.w": np.ones(2, int)})


class TestHyperParametersAsAttributes:
    def test_of_all_groups(self):
        p, q = ones(1), ones(1)
        optimizer = fs.SGD([{"params": [p]}, {"params": [q], "lr": 0.25}], lr=0.5, momentum=0.5)
        assert optimizer.lr == (0.5, 0.25)
        assert optimizer.momentum == 0.5
        optimizer.lr = 1.0
        assert optimizer.lr == 1.0
        assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0]
        optimizer.momentum = 0.0
        optimizer.step([ones(1), ones(1)])
        assert p[0] == q[0] == 0.0
        optimizer.lr = -1.0
        with pytest.raises(ValueError, match="lr: expected"):
            optimizer.step([ones(1), ones(1)])

    def test_every_hyper_parameter_of_every_optimizer(self, optimizer_class):
        optimizer = optimizer_class(ones(2, 2))
        for name, value in optimizer.defaults.items():
            assert getattr(optimizer, name) == value
            setattr(optimizer, name, value)
        with pytest.raises(AttributeError, match="learning_rate: not a hyper-parameter"):
            optimizer.learning_rate = 1.0
        with pytest.raises(AttributeError, match="did you mean 'lr'"):
            optimizer.LR = 1.0
        with pytest.raises(AttributeError, match="has no attribute 'learning_rate'"):
            _ = optimizer.learning_rate

    def test_a_subclass_has_attributes_of_its_own(self):
        class Mine(fs.SGD):
            def __init__(self, params):
                super().__init__(params)
                self.calls = 0

        assert Mine(ones(1)).calls == 0

    def test_unknown_keys_of_groups(self, optimizer_class, rng):
        p = ones(2, 2)
        optimizer = optimizer_class(p)
        optimizer.step(gradient_for(optimizer_class.rule, p, rng))
        before, state = p.copy(), copy.deepcopy(optimizer.state)
        optimizer.param_groups[0]["Lr"] = 1.0
        with pytest.raises(ValueError, match=r"param_groups\[0\]\['Lr'\]: not a hyper-parameter.*'lr'"):
            optimizer.step(gradient_for(optimizer_class.rule, p, rng))
        assert_same_bits(p, before)
        assert optimizer.state.keys() == state.keys()
        del optimizer.param_groups[0]["Lr"]
        optimizer.step(gradient_for(optimizer_class.rule, p, rng))


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

    @pytest.mark.parametrize("empty", [[], (), {}, iter(()), {"net": {}}])
    def test_no_parameters(self, empty):
        with pytest.raises(ValueError, match="params: expected at least one array, got none"):
            fs.AdamW(empty)

    def test_a_group_without_parameters(self):
        """As ranks of a sharded optimizer have them."""
        p = ones(2)
        optimizer = fs.SGD([{"params": []}, {"params": [p]}], lr=1.0)
        optimizer.step([[], [ones(2)]])
        assert p.tolist() == [0.0] * 2

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

    def test_iterables_and_trees(self, rng):
        grads = [rng.standard_normal((2, 3)).astype(F), rng.standard_normal(4).astype(F)]
        results = []
        for make in (
            lambda a, b: ((x for x in (a, b)), grads),
            lambda a, b: ((x for x in (a, b)), iter(grads)),
            lambda a, b: (map(np.asarray, (a, b)), tuple(grads)),
            lambda a, b: ({"a": a, "b": b}.values(), grads),
            lambda a, b: ([("a", a), ("b", b)], grads),
            lambda a, b: ([("a", a), ("b", b)], {"b": grads[1], "a": grads[0]}),
            lambda a, b: (iter([("a", a), ("b", b)]), {"b": grads[1], "a": grads[0]}),
            lambda a, b: (MappingProxyType({"a": a, "b": b}), {"b": grads[1], "a": grads[0]}),
            lambda a, b: (OrderedDict(a=a, b=b), {"b": grads[1], "a": grads[0]}),
            lambda a, b: ({"net": {"w": a, "b": b}}, {"net": {"b": grads[1], "w": grads[0]}}),
            lambda a, b: ({"net": [a, (b,)]}, {"net": (grads[0], [grads[1]])}),
            lambda a, b: ([{"params": (x for x in (a,))}, {"params": iter([("b", b)])}], grads),
            lambda a, b: (iter([{"params": [a]}, {"params": b}]), grads),
            lambda a, b: (
                [{"params": {"net": {"w": a}}}, {"params": b}],
                [{"net": {"w": grads[0]}}, grads[1]],
            ),
        ):
            a, b = ones(2, 3), ones(4)
            params, given = make(a, b)
            fs.SGD(params, lr=0.5).step(given)
            results.append((a, b))
        for a, b in results:
            assert_same_bits(a, F(1) - F(0.5) * grads[0])
            assert_same_bits(b, F(1) - F(0.5) * grads[1])

    def test_averages_have_the_structure_of_a_tree(self):
        params = {"net": {"w": ones(2)}, "out": [ones(3), (ones(1),)]}
        optimizer = fs.SGD(params, lr=1.0, ema_decay=0.5)
        optimizer.step({"net": None, "out": [ones(3), (None,)]})
        ema = optimizer.ema
        assert ema["net"] == {"w": None}
        assert ema["out"][0].tolist() == [0.5] * 3
        assert ema["out"][1] == (None,)
        outside = fs.averaging.EMA(params, 0.5)
        assert outside.params["out"][1][0].tolist() == [1.0]

    @pytest.mark.parametrize(
        ("params", "error", "message"),
        [
            ({ones(1).tobytes()}, TypeError, "params: expected an order, got a set"),
            ("w", TypeError, "params: expected arrays, got str"),
            (3.0, TypeError, r"params\[0\]: expected an array, got float"),
            ([ones(1), [ones(1)]], TypeError, r"params\[1\]: expected an array, got list"),
            ([("w", ones(1)), ("w", ones(1))], ValueError, "two parameters are named 'w'"),
            ({"a": {"b.c": ones(1)}, "a.b": {"c": ones(1)}}, ValueError, "two parameters are named 'a.b.c'"),
            ({"a": {"b": 3.0}}, TypeError, r"params\['a.b'\]: expected an array, got float"),
            ([{"params": set()}], TypeError, "params: expected an order"),
        ],
    )
    def test_what_is_no_structure(self, params, error, message):
        for make in (fs.SGD, fs.LBFGS):
            with pytest.raises(error, match=message):
                make(params)

    def test_a_tree_that_holds_itself(self):
        params = {"w": ones(1)}
        params["again"] = params
        with pytest.raises(ValueError, match="more than 100 dicts within each other"):
            fs.SGD(params)

    @pytest.mark.parametrize(
        ("grads", "error", "message"),
        [
            ({"net": {"w": ones(2)}}, ValueError, "grads: no gradient for 'out'"),
            ({"net": {}, "out": [ones(3)]}, ValueError, r"grads\['net'\]: no gradient for 'w'"),
            ({"net": {"w": ones(2), "x": None}, "out": [ones(3)]}, ValueError, r"grads\['net'\]: 'x' is not the name"),
            ({"net": ones(2), "out": [ones(3)]}, TypeError, r"grads\['net'\]: expected a dict"),
            ({"net": {"w": ones(2)}, "out": [ones(3), None]}, ValueError, r"grads\['out'\]: expected 1 arrays, got 2"),
            ({"net": {"w": ones(3)}, "out": [ones(3)]}, ValueError, r"grads\['net.w'\]: expected shape \(2,\)"),
        ],
    )
    def test_gradients_of_a_tree(self, grads, error, message):
        optimizer = fs.SGD({"net": {"w": ones(2)}, "out": [ones(3)]})
        with pytest.raises(error, match=message):
            optimizer.step(grads)

    def test_torch_gives_its_parameters(self):
        torch = pytest.importorskip("torch")
        net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
        by_name = {name: torch.ones_like(p) for name, p in net.named_parameters()}
        for given in (net.parameters(), net.named_parameters(), list(net.named_parameters()), net.state_dict()):
            optimizer = fs.AdamW(given, lr=0.5)
            before = net[0].weight.detach().clone()
            optimizer.step(by_name if "param_names" in optimizer.param_groups[0] else by_name.values())
            assert (net[0].weight != before).all()
        with pytest.raises(TypeError, match=r"got Sequential: give its parameters, params\.parameters\(\)"):
            fs.AdamW(net)

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


@pytest.mark.parametrize(
    "structured",
    [
        lambda a, b: [a, b],
        lambda a, b: {"a": a, "b": b},
        lambda a, b: [{"params": [a]}, {"params": {"b": b}, "lr": 0.5}],
    ],
    ids=["list", "dict", "groups"],
)
def test_steps_run_no_python_code(structured, native):
    """Of arrays, but for `step` itself, once the states are there."""
    optimizer = fs.AdamW(structured(ones(3), ones(2, 2)), lr=0.1)
    grads = [ones(3), {"b": ones(2, 2)}] if len(optimizer.param_groups) > 1 else structured(ones(3), ones(2, 2))
    optimizer.step(grads)
    called = []

    def note(frame, event, argument):
        if event == "call":
            called.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        optimizer.step(grads)
    finally:
        sys.setprofile(before)
    assert called == ["step"]


def test_keys_in_any_order(native):
    """Groups and states with equal keys that are other strings, in another order, as a file may give them."""

    def reordered(entries):
        return {"".join(list(key)): value for key, value in reversed(entries.items())}

    results = []
    for change in (dict, reordered):
        p = ones(3)
        optimizer = fs.AdamW({"w": p}, lr=0.1, weight_decay=0.5, ema_decay=0.5, max_grad_norm=0.3)
        for _ in range(3):
            optimizer.step({"w": ones(3)})
            for entries in (optimizer.param_groups[0], optimizer.state[0]):
                changed = change(entries)
                entries.clear()
                entries.update(changed)
        results.append((p, optimizer.ema["w"]))
    for actual, expected in zip(results[1], results[0], strict=True):
        assert_same_bits(actual, expected)


def test_missing_keys_are_missed(native):
    """A hyper-parameter that was taken out of a group, and a key that nothing reads in its place."""
    optimizer = fs.AdamW(ones(3), lr=0.1)
    value = optimizer.param_groups[0].pop("eps")
    optimizer.param_groups[0]["epsilon"] = value
    with pytest.raises(ValueError, match="eps: missing"):
        optimizer.step(ones(3))
    optimizer.param_groups[0]["eps"] = value
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['epsilon'\]: not a hyper-parameter of adamw"):
        optimizer.step(ones(3))
