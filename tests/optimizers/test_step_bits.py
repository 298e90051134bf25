"""Every rule, option and place in memory: the bits of the NumPy reference."""

import copy
import itertools

import numpy as np
import pytest

import fusedstep as fs
from cases import CASES, VALID
from fusedstep import _core
from fusedstep.optimizers import REGISTRY
from helpers import LENGTHS, assert_same_bits, every_native_setting, gradient_for, misaligned, reshaped_for

DTYPES = [np.float32, np.float64]
# Those whose arithmetic is NumPy's on every set have nothing to compare.
NATIVE_RULES = [rule for rule in CASES if _core.rules()[rule]["native"]]
NATIVE_VALID = [(rule, hypers) for rule, hypers in VALID if rule in NATIVE_RULES]

OPTIONS = {
    "maximize": True,
    "ema_decay": 0.9,
    "max_grad_norm": 0.5,
    "skip_nonfinite": True,
    "telemetry": True,
    "cautious": True,
    "grad_scale": 3.0,
}


def options_of(rule):
    """Those that apply; `grad_scale` is an argument of the step."""
    known = {*REGISTRY[rule].options(), "grad_scale"}
    return {name: value for name, value in OPTIONS.items() if name in known}


def run(rule, hypers, params, grads):
    """Steps on copies; gives all numbers that came of it."""
    params, hypers = copy.deepcopy(params), dict(hypers)
    grad_scale = hypers.pop("grad_scale", 1.0)
    optimizer = REGISTRY[rule](params, **hypers)
    reports = [optimizer.step(step_grads, grad_scale) for step_grads in grads]
    scalars = [
        {name: value for name, value in entry.items() if not isinstance(value, np.ndarray)}
        for entry in optimizer.state.values()
    ]
    shared = [optimizer.param_groups[0].get(name) for name in _core.rules()[rule]["scalars"]]
    arrays = [
        entry[name]
        for _, entry in sorted(optimizer.state.items())
        for name in sorted(entry)
        if isinstance(entry[name], np.ndarray)
    ]
    return [*params, *arrays], repr((reports, scalars, shared))


def compare(rule, hypers, params, grads, settings=None):
    with fs.runtime.use_isa("numpy"):
        arrays, numbers = run(rule, hypers, params, grads)
    for setting in every_native_setting() if settings is None else settings:
        mine, my_numbers = run(rule, hypers, params, grads)
        what = f"{rule} {hypers} {setting}"
        assert my_numbers == numbers, what
        assert len(mine) == len(arrays), what
        for actual, expected in zip(mine, arrays, strict=True):
            assert_same_bits(actual, expected, what)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rule", "hypers"), NATIVE_VALID)
def test_lengths_and_starts(rule, hypers, dtype, rng):
    """All lengths at once as a list of tensors, at different starts."""
    params = [misaligned(rng.standard_normal(n).astype(dtype), k % 5) for k, n in enumerate(LENGTHS)]
    grads = [[gradient_for(rule, p, rng, (k + 1) % 3) for k, p in enumerate(params)] for _ in range(3)]
    compare(rule, hypers, params, grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", NATIVE_RULES)
def test_every_two_options(rule, dtype, rng):
    """Many tensors, with lengths of 0 to a few chunks; a gradient that is not finite comes second."""

    def problem(*large):
        shapes = [0, 3, 17, 1025, *large, (70, 30)]
        params = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
        grads = [[gradient_for(rule, p, rng) for p in params] for _ in range(3)]
        spoiled = grads[1][3].values if isinstance(grads[1][3], fs.RowSparse) else grads[1][3]
        spoiled[5] = np.inf
        return params, grads

    options = options_of(rule)
    hypers = CASES[rule].valid[1]
    pairs = [dict(pair) for pair in itertools.combinations(options.items(), 2)]
    params, grads = problem(8191, 20_000)
    compare(rule, {**hypers, **options}, params, grads)
    if not _core.rules()[rule]["dense"]:  # tens of thousands of rows take the reference long
        params, grads = problem((91, 90), (20, 1000))
    for pair in pairs:
        compare(rule, {**hypers, **pair}, params, grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", NATIVE_RULES)
def test_telemetry_lengths(rule, dtype, rng):
    """The sums of telemetry at all lengths and starts."""
    params = [misaligned(rng.standard_normal(n).astype(dtype), k % 5) for k, n in enumerate(LENGTHS)]
    grads = [[gradient_for(rule, p, rng, (k + 1) % 3) for k, p in enumerate(params)] for _ in range(2)]
    compare(rule, {**CASES[rule].valid[0], "telemetry": True, "max_grad_norm": 1.0}, params, grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", NATIVE_RULES)
def test_random_shapes_and_hypers(rule, dtype, rng):
    """50 random problems, shapes of up to four axes in any order."""
    sparse = not _core.rules()[rule]["dense"]
    for k in range(50):
        hypers = {name: draw(rng) for name, draw in CASES[rule].random.items()}
        hypers |= {name: value for name, value in options_of(rule).items() if rng.integers(2)}
        if hypers.get("dampening") == 0.0 and hypers["momentum"] > 0:
            hypers["nesterov"] = bool(rng.integers(2))
        shape = rng.integers(1, 9, rng.integers(sparse, 5)) if k % 10 else rng.integers(90, 130, 2)
        order = np.arange(len(shape)) if sparse else rng.permutation(len(shape))
        param = np.asarray(rng.standard_normal(shape[order])).astype(dtype).transpose(np.argsort(order))
        scale = 10.0 ** rng.uniform(-6, 6)
        grads = [[gradient_for(rule, param, rng, scale=scale)] for _ in range(3)]
        compare(rule, hypers, [np.asarray(param)], grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", NATIVE_RULES)
def test_extreme_gradients(rule, dtype):
    """Non-finite, huge, tiny and subnormal numbers are computed through, as NumPy does."""
    info = np.finfo(dtype)
    values = [0.0, -0.0, np.inf, -np.inf, np.nan, info.max, -info.max, info.tiny, info.smallest_subnormal, 1e-30, 1.0]
    grads = [np.array(list(values) * len(values), dtype), np.array([v for v in values for _ in values], dtype)]
    param = np.array([value for value in values for _ in values], dtype)
    if not _core.rules()[rule]["dense"]:
        grads = [fs.RowSparse(np.arange(param.size), grad, param.shape) for grad in grads]
    for hypers in CASES[rule].valid:
        compare(rule, hypers, [param], [[grad] for grad in grads])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", ["sgd", "adagrad"])
def test_row_sparse_gradients(rule, dtype, rng):
    params = [rng.standard_normal(shape).astype(dtype) for shape in ((300, 17), (5, 3000), (2, 9000), (40,), (0, 4))]
    grads = [[gradient_for("sparse_adam", p, rng) for p in params] for _ in range(3)]
    compare(rule, {"lr": 0.1, "max_grad_norm": 1.0, "telemetry": True}, params, grads)


def test_threads_do_not_change_groups_of_many_steps(native, threads, rng):
    """Parameters with step counts of their own, in two groups."""
    params = [rng.standard_normal(n).astype(np.float32) for n in (5, 10_000, 300, 20_000)]
    other = copy.deepcopy(params)
    grads = [rng.standard_normal(p.size).astype(np.float32) for p in params]

    def train(arrays):
        groups = [{"params": arrays[:2], "lr": 0.1}, {"params": arrays[2:], "weight_decay": 0.5, "cautious": True}]
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


@pytest.mark.parametrize("rule", NATIVE_RULES)
def test_late_steps(rule, rng):
    """Step counts past what float32, and 32 bits, can hold: the powers of the decay rates agree to the last bit."""
    description = _core.rules()[rule]
    for step in (1, 2, 10, 150, 300, 501, 999, 12_345, 10**6, 2**24 + 1, 2**40):
        for _ in range(20):
            hypers = {name: draw(rng) for name, draw in CASES[rule].random.items()}
            results = []
            for isa in ("numpy", fs.runtime.available_isas()[-1]):
                param, grad = np.linspace(-1, 1, 7), np.linspace(1, 2, 7)
                if not description["dense"]:
                    grad = fs.RowSparse(np.arange(7), grad, param.shape)
                states = [np.full(7, 0.5) for _ in description["states"]]
                scalars = [np.full(1, 0.25) for _ in description["scalars"]]
                with fs.runtime.use_isa(isa):
                    getattr(fs.functional, rule)(
                        param,
                        grad,
                        **dict(zip(description["states"], states, strict=True)),
                        **dict(zip(description["scalars"], scalars, strict=True)),
                        step=step,
                        **hypers,
                    )
                results.append([param, *states, *scalars])
            for mine, theirs in zip(results[1], results[0], strict=True):
                assert_same_bits(mine, theirs, f"{step} {hypers}")


@pytest.mark.parametrize("rule", CASES)
def test_a_step_in_the_order_of_memory(rule, rng):
    """A Fortran-ordered parameter takes the step of its C-ordered copy, where no sum depends on the order."""
    if _core.rules()[rule]["sparse"] and not _core.rules()[rule]["dense"]:
        pytest.skip("rows must be in one piece")
    param = reshaped_for(rule, rng.standard_normal((6, 7)))
    grad = rng.standard_normal(param.shape)
    other, other_grad = np.asfortranarray(param), np.asfortranarray(grad)
    for p, g in ((param, grad), (other, other_grad)):
        optimizer = REGISTRY[rule](p, lr=0.1)
        for _ in range(3):
            optimizer.step(g)
    np.testing.assert_allclose(param, other, rtol=1e-12)


@pytest.mark.parametrize("hypers", [{"momentum_decay": 1e308}, {"momentum_decay": 1e-308}])
def test_powers_of_absurd_numbers(hypers, rng):
    """What overflows on the way is 0 or infinite on every set."""
    compare("nadam", hypers, [rng.standard_normal(9)], [[rng.standard_normal(9)] for _ in range(2)])
    compare("asgd", {"lambd": 1e200, "lr": 1e200}, [rng.standard_normal(9)], [[rng.standard_normal(9)]] * 2)
