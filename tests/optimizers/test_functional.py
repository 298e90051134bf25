"""The functions are the optimizers, without the object."""

import inspect

import numpy as np
import pytest

import fusedstep as fs
from cases import CASES, VALID
from fusedstep import _core
from fusedstep.optimizers import REGISTRY
from fusedstep.reference.rules import RULES
from helpers import assert_same_bits, gradient_for

F = np.float32
ADAMW = fs.functional.adamw


def states_for(rule, param, hypers):
    """States and scalars before the first step, by name."""
    description = _core.rules()[rule]
    defaults = {name: p.default for name, p in inspect.signature(getattr(fs.functional, rule)).parameters.items()}
    starts = getattr(RULES[rule], "starts", {})
    starts = {name: {**defaults, **hypers}.get(start, start) for name, start in starts.items()}
    states = {}
    for name, shape in zip(description["states"], description["shapes"], strict=True):
        kept = {"same": param.shape, "rows": (*param.shape[:-1], 1), "columns": (1, *param.shape[1:])}[shape]
        start = param if name in description["copies"] else starts.get(name, 0.0)
        states[name] = np.full(kept, start, param.dtype)
    return {**states, **{name: np.full(1, starts.get(name, 0.0)) for name in description["scalars"]}}


@pytest.mark.parametrize(("rule", "hypers"), VALID)
def test_same_bits_as_the_optimizer(rule, hypers, rng):
    p, q = np.ones((10, 10), F), np.ones((10, 10), F)
    grads = [gradient_for(rule, p, rng) for _ in range(4)]
    states = states_for(rule, p, hypers)
    optimizer = REGISTRY[rule](q, **hypers)
    for step, grad in enumerate(grads, 1):
        getattr(fs.functional, rule)(p, grad, **states, step=step, grad_scale=2.0, **hypers)
        optimizer.step(grad, grad_scale=2.0)
    assert_same_bits(p, q)
    kept = {**optimizer.param_groups[0], **optimizer.state[0]}
    for name, value in states.items():
        if name in kept:
            np.testing.assert_array_equal(value, kept[name])


def test_lists_with_steps_of_their_own(rng):
    params = [np.ones(5, F), np.ones(7, F)]
    grads = [rng.standard_normal(5).astype(F), rng.standard_normal(7).astype(F)]
    m, v = ([np.zeros_like(p) for p in params] for _ in range(2))
    ADAMW(params, grads, m, v, step=[1, np.int64(10)])
    for k, step in enumerate((1, 10)):
        alone = np.ones_like(params[k])
        ADAMW(alone, grads[k], np.zeros_like(alone), np.zeros_like(alone), step=step)
        assert_same_bits(params[k], alone)


@pytest.mark.parametrize("rule", CASES)
def test_signature_and_doc(rule):
    function = getattr(fs.functional, rule)
    names = list(inspect.signature(function).parameters)
    states = _core.rules()[rule]["states"] + _core.rules()[rule]["scalars"]
    assert names[:2] == ["param", "grad"]
    assert set(names[2 : 2 + len(states)]) == set(states)
    assert names[2 + len(states)] == "step"
    assert all(f"{state}: " in function.__doc__ for state in states)
    assert rule in fs.functional.__all__


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step": 0}, ValueError, "step: expected a whole number >= 1, got 0"),
        ({"step": 1.0}, ValueError, r"step: expected a whole number >= 1, got 1\.0"),
        ({"lr": -1}, ValueError, "lr: expected"),
        ({"lr": lambda taken: 0.1}, TypeError, "lr: expected a number, got function"),
        ({"learning_rate": 1}, TypeError, "learning_rate: not a hyper-parameter of adamw"),
        ({"exp_avg": np.zeros(2, F)}, ValueError, r"exp_avg: expected shape \(3,\) as param has, got \(2,\)"),
        ({"exp_avg": None}, ValueError, "exp_avg: expected an array with these hyper-parameters, got None"),
        ({"grad": np.zeros(3)}, TypeError, "grad: expected dtype float32 as param has, got float64"),
        ({"grad": None}, TypeError, "grad: expected an array, got NoneType"),
        ({"grad": [np.zeros(3, F)], "param": [np.ones(3, F), np.ones(3, F)]}, ValueError, "grad: expected a list of 2"),
    ],
)
def test_errors(change, error, message):
    p = np.ones(3, F)
    arguments = {"param": p, "grad": np.ones(3, F), "exp_avg": np.zeros(3, F), "exp_avg_sq": np.zeros(3, F), "step": 1}
    with pytest.raises(error, match=message):
        ADAMW(**{**arguments, **change})
    assert p.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("scalar", "error", "message"),
    [
        (1.0, TypeError, "mu_product: expected a NumPy array, got float"),
        (np.ones(1, F), ValueError, "mu_product: expected a float64 array of one element"),
        (np.ones(2), ValueError, r"mu_product: expected a float64 array of one element, got shape \(2,\)"),
    ],
)
def test_scalars_are_arrays_of_one_element(scalar, error, message):
    p = np.ones(3, F)
    with pytest.raises(error, match=message):
        fs.functional.nadam(p, np.ones(3, F), np.zeros(3, F), np.zeros(3, F), scalar, step=1)
    assert p.tolist() == [1.0] * 3


def test_too_many_arrays():
    with pytest.raises(TypeError, match="expected the states"):
        ADAMW(*(np.ones(3, F) for _ in range(6)), step=1)
