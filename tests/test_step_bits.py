"""Every rule, option and place in memory: the bits of the NumPy reference."""

import copy

import numpy as np
import pytest

import fusedstep as fs
from cases import CASES, VALID
from fusedstep import _core
from fusedstep.optimizers import REGISTRY
from helpers import LENGTHS, assert_same_bits, misaligned

DTYPES = [np.float32, np.float64]
OPTIONS = [({}, 1.0), ({"ema_decay": 0.9}, 1.0), ({}, 3.0), ({"maximize": True, "ema_decay": 0.99}, 1024.0)]


def run(rule, hypers, params, grads, grad_scale=1.0):
    """Steps on copies; gives parameters and all states."""
    optimizer = REGISTRY[rule](params, **hypers)
    for step_grads in grads:
        optimizer.step(step_grads, grad_scale)
    states = [optimizer.state[k][name] for k in sorted(optimizer.state) for name in sorted(optimizer.state[k])]
    return [*params, *(state for state in states if isinstance(state, np.ndarray))]


def compare(rule, hypers, params, grads, grad_scale=1.0):
    with fs.runtime.use_isa("numpy"):
        expected = run(rule, hypers, copy.deepcopy(params), grads, grad_scale)
    actual = run(rule, hypers, params, grads, grad_scale)
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected, strict=True):
        assert_same_bits(mine, theirs, f"{rule} {hypers}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rule", "hypers"), VALID)
def test_lengths_and_starts(rule, hypers, dtype, native, threads, rng):
    """All lengths at once as a list of tensors, at different starts."""
    params = [misaligned(rng.standard_normal(n).astype(dtype), k % 5) for k, n in enumerate(LENGTHS)]
    grads = [
        [misaligned(rng.standard_normal(n).astype(dtype), (k + 1) % 3) for k, n in enumerate(LENGTHS)] for _ in range(3)
    ]
    compare(rule, hypers, params, grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("options", "grad_scale"), OPTIONS)
@pytest.mark.parametrize("rule", CASES)
def test_options(rule, options, grad_scale, dtype, native, threads, rng):
    params = [rng.standard_normal(n).astype(dtype) for n in (0, 17, 1025, 9000)]
    grads = [[rng.standard_normal(p.size).astype(dtype) for p in params] for _ in range(3)]
    compare(rule, {**CASES[rule].valid[1], **options}, params, grads, grad_scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", CASES)
def test_random_shapes_and_hypers(rule, dtype, native, threads, rng):
    """100 random problems, shapes of up to four axes in any order."""
    for k in range(100):
        hypers = {name: draw(rng) for name, draw in CASES[rule].random.items()}
        hypers["maximize"] = bool(rng.integers(2))
        hypers["ema_decay"] = [None, 0.9][rng.integers(2)]
        if hypers.get("dampening") == 0.0 and hypers["momentum"] > 0:
            hypers["nesterov"] = bool(rng.integers(2))
        shape = rng.integers(1, 9, rng.integers(0, 5)) if k % 10 else rng.integers(90, 130, 2)
        order = rng.permutation(len(shape))
        param = rng.standard_normal(shape).astype(dtype) if len(shape) == 0 else None
        if param is None:
            param = rng.standard_normal(shape[order]).astype(dtype).transpose(np.argsort(order))
        scale = 10.0 ** rng.uniform(-6, 6)
        grads = [[np.asarray(scale * rng.standard_normal(param.shape), dtype)] for _ in range(3)]
        compare(rule, hypers, [np.asarray(param)], grads, float(rng.choice([1.0, 7.0])))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", CASES)
def test_extreme_gradients(rule, dtype, native):
    """Non-finite, huge, tiny and subnormal numbers are computed through, as NumPy does."""
    info = np.finfo(dtype)
    values = [0.0, -0.0, np.inf, -np.inf, np.nan, info.max, -info.max, info.tiny, info.smallest_subnormal, 1e-30, 1.0]
    grad = np.array([value for value in values for _ in values], dtype)
    param = np.array(values * len(values), dtype)
    for hypers in CASES[rule].valid:
        compare(rule, hypers, [param.copy()], [[grad], [grad[::-1].copy()]])


def test_threads_do_not_change_groups_of_many_steps(native, threads, rng):
    """Parameters with step counts of their own, in two groups."""
    params = [rng.standard_normal(n).astype(np.float32) for n in (5, 10_000, 300, 20_000)]
    other = copy.deepcopy(params)
    grads = [rng.standard_normal(p.size).astype(np.float32) for p in params]

    def train(arrays):
        groups = [{"params": arrays[:2], "lr": 0.1}, {"params": arrays[2:], "weight_decay": 0.5}]
        optimizer = fs.AdamW(groups)
        optimizer.step([grads[0], None, grads[2], None])
        optimizer.step([grads[:2], [None, grads[3]]])
        optimizer.step(grads)
        return optimizer

    with fs.runtime.use_isa("numpy"):
        expected = train(other)
    actual = train(params)
    for mine, theirs in zip(params, other, strict=True):
        assert_same_bits(mine, theirs)
    assert [actual.state[k]["step"] for k in range(4)] == [3, 2, 2, 2]
    assert [expected.state[k]["step"] for k in range(4)] == [3, 2, 2, 2]


@pytest.mark.parametrize("rule", CASES)
def test_late_steps(rule, rng):
    """Step counts past what float32, and 32 bits, can hold: the powers of the decay rates agree to the last bit."""
    for step in (1, 2, 10, 150, 300, 501, 999, 12_345, 10**6, 2**24 + 1, 2**40):
        for _ in range(20):
            hypers = {name: draw(rng) for name, draw in CASES[rule].random.items()}
            results = []
            for isa in ("numpy", fs.runtime.available_isas()[-1]):
                param, grad = np.linspace(-1, 1, 7), np.linspace(1, 2, 7)
                states = [np.full(7, 0.5) for _ in _core.rules()[rule]["states"]]
                with fs.runtime.use_isa(isa):
                    getattr(fs.functional, rule)(param, grad, *states, step=step, **hypers)
                results.append(param)
            assert_same_bits(results[1], results[0], f"{step} {hypers}")
