"""Everybody who takes parameters takes them in the same structures, and calls each by the same name."""

import numpy as np
import pytest

import fusedstep as fs
from fusedstep._common.structure import Parameters, flat

F = np.float32


def weights():
    return np.array([1.0, 2.0], F), np.array([3.0], F)


#: Parameters from two arrays, or from one; what the last one is called; its name in a checkpoint.
STRUCTURES = {
    "array": (lambda a, b: b, "", "0"),
    "list": (lambda a, b: [a, b], "[1]", "1"),
    "tuple": (lambda a, b: (a, b), "[1]", "1"),
    "iterator": (lambda a, b: iter([a, b]), "[1]", "1"),
    "dict": (lambda a, b: {"a": a, "b": b}, "['b']", "b"),
    "nested dicts": (lambda a, b: {"net": {"a": a, "b": b}}, "['net.b']", "net.b"),
    "lists in a dict": (lambda a, b: {"net": [a, b]}, "['net.1']", "net.1"),
    "pairs": (lambda a, b: [("net.a", a), ("net.b", b)], "['net.b']", "net.b"),
    "an iterator of pairs": (lambda a, b: iter([("net.a", a), ("net.b", b)]), "['net.b']", "net.b"),
    "groups": (lambda a, b: [{"params": a}, {"params": [b], "lr": 0.5}], "[1]", "1"),
    "groups with names": (lambda a, b: [{"params": {"a": a}}, {"params": [("b", b)]}], "['b']", "b"),
}
#: What takes them, called with parameters, gives what it knows of them as a flat list.
CONSUMERS = {
    "optimizer": lambda params, path: fs.SGD(params),
    "EMA": lambda params, path: fs.averaging.EMA(params, 0.5),
    "SWA": lambda params, path: fs.averaging.SWA(params),
    "SnapshotEnsemble": lambda params, path: fs.averaging.SnapshotEnsemble(params),
    "EarlyStopping": lambda params, path: fs.EarlyStopping(3, params=params),
    "checkpoint": lambda params, path: fs.save_checkpoint(path / "run", params),
    "curvature": lambda params, path: fs.curvature.hessian(lambda at: at, params),
    "lr_range_test": lambda params, path: fs.lr_range_test(lambda lr: 1.0, [0.1], params=params),
}


@pytest.fixture(params=STRUCTURES)
def structure(request):
    return STRUCTURES[request.param]


@pytest.mark.parametrize("name", CONSUMERS)
def test_everybody_takes_them(structure, name, tmp_path):
    make, _, _ = structure
    CONSUMERS[name](make(*weights()), tmp_path)


@pytest.mark.parametrize("name", CONSUMERS)
def test_everybody_calls_them_the_same(structure, name, tmp_path):
    make, label, _ = structure
    with pytest.raises(TypeError) as found:
        CONSUMERS[name](make(weights()[0], 1j), tmp_path)
    # An optimizer has groups, and in them lists.
    label = label or ("[0]" if name == "optimizer" else "")
    assert str(found.value).startswith(f"params{label}: expected an array, got complex")


@pytest.mark.parametrize("name", CONSUMERS)
@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ("w", TypeError, "params: expected arrays, got str"),
        ({1.0, 2.0}, TypeError, "params: expected an order, got a set"),
        ([("w", np.ones(1, F)), ("w", np.ones(1, F))], ValueError, "params: two parameters are named 'w'"),
    ],
)
def test_everybody_refuses_the_same(name, params, error, message, tmp_path):
    with pytest.raises(error, match=f"^{message}"):
        CONSUMERS[name](params, tmp_path)


class TestValues:
    def test_of_averages(self, structure):
        """They come in the same structure: pairs as a dict, groups as one flat list."""
        make, _, _ = structure
        a, b = weights()
        ema = fs.averaging.EMA(make(a, b), 0.5)
        a += 2
        b += 2
        ema.update()
        values = [value.tolist() for _, value in flat(ema.params, "params")]
        # Half of what they were, and half of what they are.
        assert values in ([[2.0, 3.0], [4.0]], [[4.0]])
        other = fs.averaging.EMA(make(*weights()), 0.25)
        other.load_state_dict(ema.state_dict())
        assert [value.tolist() for _, value in flat(other.params, "params")] == values
        with ema.swap():
            assert b.tolist() == [4.0]
        assert b.tolist() == [5.0]

    def test_of_checkpoints(self, structure, tmp_path):
        make, _, name = structure
        fs.save_checkpoint(tmp_path / "run", make(*weights()))
        assert fs.load_checkpoint(tmp_path / "run").params[name].tolist() == [3.0]

    def test_of_curvature(self, structure):
        """H = 2 for the gradient 2 w, asked for in the structure that is handed in."""
        make, _, _ = structure
        hessian = fs.curvature.hessian(lambda at: doubled(at), make(*weights()))
        np.testing.assert_allclose(hessian.matrix, 2 * np.eye(len(hessian.matrix)), atol=1e-3)

    def test_of_gradients(self, structure):
        """Whatever holds them: opposite ones have the cosine -1. Those of pairs and groups may be one flat list."""
        make, _, _ = structure
        a, b = weights()
        recorder = fs.doctor.RunRecorder(fs.SGD(make(*weights()), telemetry=True))
        listed = make in (STRUCTURES[name][0] for name in STRUCTURES if "pairs" in name or "groups" in name)
        grads = (lambda a, b: [a, b]) if listed else make
        recorder.step(grads(a, b))
        recorder.step(grads(-a, -b))
        assert recorder.telemetry["grad_cosine"][-1] == pytest.approx(-1)

    def test_of_gradients_that_are_used_up(self):
        grads = iter(weights())
        with pytest.raises(TypeError, match=r"^grads: expected a list, got tuple_iterator: the step has gone through"):
            fs.doctor.Doctor().observe(1.0, grads=grads)


def doubled(tree):
    if isinstance(tree, dict):
        return {name: doubled(value) for name, value in tree.items()}
    return type(tree)(map(doubled, tree)) if isinstance(tree, list | tuple) else 2 * tree


class TestGroups:
    @pytest.fixture
    def groups(self):
        return Parameters([{"params": [1, 2]}, {"params": 3}, {"params": {"w": 4}}])

    @pytest.mark.parametrize(
        "given", [[5, 6, 7, 8], [[5, 6], 7, {"w": 8}], [[5, 6], [7], {"w": 8}], [(5, 6), 7, 8], ([5, 6], 7, {"w": 8})]
    )
    def test_values(self, groups, given):
        assert groups.values(given, "grads") == [5, 6, 7, 8]

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ([5, 6], ValueError, "grads: expected 3 groups or 4 arrays, got 2 entries"),
            ({"w": 8}, TypeError, "grads: expected a list, got dict"),
            ([[5], 7, {"w": 8}], ValueError, r"grads\[0\]: expected 2 arrays, got 1"),
            ([[5, 6], 7, {"v": 8}], ValueError, r"grads\[2\]: expected a dict with the names \['w'\], got \['v'\]"),
        ],
    )
    def test_errors(self, groups, given, error, message):
        with pytest.raises(error, match=f"^{message}$"):
            groups.values(given, "grads")
