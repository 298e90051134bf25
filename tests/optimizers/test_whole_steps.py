"""A step is taken whole or not at all, whatever is raised and wherever."""

import copy
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import fusedstep as fs
from cases import CASES
from fusedstep import _core
from fusedstep.optimizers import REGISTRY
from helpers import gradient_for
from runs import HYPERS, snapshot

PACKAGE = str(Path(fs.__file__).parent)
TELEMETRY = {"telemetry": True, "max_grad_norm": 1.0}


class Interrupted(BaseException):
    """What nobody catches."""


@contextmanager
def interrupted(at):
    """Raises in the `at`-th line of the package that Python executes; gives the lines that it has seen."""
    seen = [0]

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            seen[0] += 1
            if seen[0] - 1 == at:
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


@contextmanager
def out_of_memory(after):
    """One of Python's allocations fails, after so many that do not."""
    testcapi = pytest.importorskip("_testcapi")
    testcapi.set_nomemory(after, after + 1)
    try:
        yield
    finally:
        testcapi.remove_mem_hooks()


def outcomes(make, act, ways, state_of):
    """What `act` leaves of a fresh object when it is stopped in each of the ways; what it had before, and has after."""
    first = make()
    before = state_of(first)
    act(first)
    after = state_of(first)
    assert before != after
    quiet = 0
    for way in ways:
        subject = make()
        raised = False
        try:
            with way():
                act(subject)
        except (Interrupted, MemoryError, RuntimeError, SystemError):  # the last two: pybind11's and NumPy's for it
            raised = True
        yield raised, state_of(subject), before, after
        quiet = 0 if raised else quiet + 1  # an error may be answered where it comes up
        if quiet == 5:
            return


def assert_whole(make, act, ways, state_of=snapshot):
    """Each way leaves everything or nothing. How often nothing was left."""
    nothing = 0
    for raised, left, before, after in outcomes(make, act, ways, state_of):
        assert left in ((before, after) if raised else (after,))
        nothing += left == before
    return nothing


def lines(stride=1):
    return (lambda at=at: interrupted(at) for at in range(0, 1_000_000, stride))


def allocations(stride=1):
    return (lambda at=at: out_of_memory(at) for at in range(0, 1_000_000, stride))


SHAPES = [(4, 3), (2, 2), (3, 5)]


def problem(rule, options, steps):
    """Copies of an optimizer that has taken so many steps, and the next one."""

    def grads_of(rng):
        return [gradient_for(rule, np.ones(shape), rng) for shape in SHAPES]

    rng = np.random.default_rng(5)
    start = REGISTRY[rule]([rng.standard_normal(shape) for shape in SHAPES], **HYPERS[rule], **options)
    for _ in range(steps):
        start.step(grads_of(rng))
    grads = grads_of(np.random.default_rng(7))
    return lambda: copy.deepcopy(start), lambda optimizer: optimizer.step(grads)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("rule", sorted(CASES))
def test_any_line_of_the_reference(rule, steps):
    make, act = problem(rule, TELEMETRY if steps else {}, steps)
    with fs.runtime.use_isa("numpy"):
        assert assert_whole(make, act, lines(stride=13)) > 10


@pytest.mark.parametrize("rule", ["muon", "adafactor"])
def test_any_line_of_what_is_numpys_on_every_set(rule, native):
    make, act = problem(rule, TELEMETRY, 1)
    assert assert_whole(make, act, lines(stride=7)) > 10


NARROW = [
    {"state_dtype": "8bit", "min_8bit_size": 1, "master_weights": True, "ema_decay": 0.9},
    {"state_dtype": "bfloat16", "stochastic_rounding": True, "cautious": True},
]


@pytest.mark.parametrize("options", NARROW)
def test_any_line_of_narrow_arrays(options):
    rng = np.random.default_rng(3)
    start, grad = rng.standard_normal((2, 40, 30)).astype(np.float16)
    optimizer = fs.AdamW([start.copy(), np.asfortranarray(start)], lr=0.1, **options)
    optimizer.step([grad, grad])
    with fs.runtime.use_isa("numpy"):
        assert (
            assert_whole(
                lambda: copy.deepcopy(optimizer), lambda optimizer: optimizer.step([grad, grad]), lines(stride=7)
            )
            > 20
        )


@pytest.mark.parametrize("rule", ["adam", "asgd", "prodigy"])
def test_any_allocation(rule, native):
    """Of the native sets, which ask NumPy for nothing once the states are there (it does not survive them all)."""
    make, act = problem(rule, {"max_grad_norm": 1.0, "ema_decay": 0.9}, 2)
    assert assert_whole(make, act, allocations()) > 0


@pytest.mark.parametrize("isa", fs.runtime.available_isas())
def test_functions(isa):
    """Scalars that live in arrays of the caller's move with the rest, and only then."""
    rng = np.random.default_rng(3)
    p, g = rng.standard_normal((2, 3, 5))

    def make():
        return [copy.deepcopy(list(p)), list(p * 0), [np.full(1, 0.1) for _ in p], [np.ones(1) for _ in p]]

    def act(arrays):
        params, averages, etas, mus = arrays
        fs.functional.asgd(params, list(g), averages, etas, mus, step=3, lr=0.1)

    def state_of(arrays):
        return [[array.tobytes() for array in kind] for kind in arrays]

    with fs.runtime.use_isa(isa):
        assert assert_whole(make, act, lines(), state_of) > 2
        if isa != "numpy":
            assert assert_whole(make, act, allocations(), state_of) > 0


@pytest.mark.parametrize("options", [{}, {"master_weights": True}])
@pytest.mark.parametrize("act", ["eval", "train"])
def test_modes_of_schedule_free(act, options):
    def make():
        rng = np.random.default_rng(1)
        optimizer = fs.ScheduleFreeAdamW(
            [rng.standard_normal(9).astype(np.float16) for _ in range(4)], lr=0.5, **options
        )
        optimizer.step([np.ones(9, np.float16)] * 4)
        optimizer.step([np.full(9, 2, np.float16)] * 4)
        if act == "train":
            optimizer.eval()
        return optimizer

    assert assert_whole(make, lambda optimizer: getattr(optimizer, act)(), lines()) > 5


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_moves_of_lbfgs(line_search):
    """The parameters and the state are of the same move: what a run that stopped there would have."""
    start = [np.array([-1.2, 1.0]), np.array([0.5])]

    def closure(params):
        (x, y), (z,) = params
        loss = 100 * (y - x * x) ** 2 + (1 - x) ** 2 + z * z
        return loss, [np.array([-400 * x * (y - x * x) - 2 * (1 - x), 200 * (y - x * x)]), np.array([2 * z])]

    def make():
        return fs.LBFGS([array.copy() for array in start], max_iter=4, line_search_fn=line_search)

    def snapshot_of(optimizer):
        state = {name: repr(value) for name, value in optimizer.state.get(0, {}).items() if name != "func_evals"}
        return [array.tobytes() for array in optimizer.param_groups[0]["params"]], state

    moves = [snapshot_of(make())]
    for count in range(1, 5):
        optimizer = make()
        optimizer.param_groups[0]["max_iter"] = count
        optimizer.step(lambda o=optimizer: closure(o.param_groups[0]["params"]))
        moves.append(snapshot_of(optimizer))
    at = 0
    while True:
        optimizer = make()
        try:
            with interrupted(at):
                optimizer.step(lambda o=optimizer: closure(o.param_groups[0]["params"]))
        except Interrupted:
            params, state = snapshot_of(optimizer)
            assert params in [known for known, _ in moves], at
            assert "d" not in state or (params, state["d"]) in [(known, kept.get("d")) for known, kept in moves], at
            at += 7
            continue
        break
    assert at > 100


def test_pairs_are_checked_before_any_is_written():
    first, second = np.zeros(3), np.zeros(3)
    for wrong, error in [
        (np.ones(2), ValueError),
        (np.ones(3, np.float32), TypeError),
        ([1.0, 1.0, 1.0], TypeError),
        (np.array([1, 2, 3], object), TypeError),
    ]:
        entries = {}
        with pytest.raises(error, match="writes"):
            _core.commit([(first, np.ones(3)), (second, wrong)], [(entries, "a", 1)])
        assert not first.any()
        assert not entries
    with pytest.raises(TypeError, match="unhashable"):
        _core.commit([(first, np.ones(3))], [(entries, "a", 1), (entries, [], 2)])
    assert not first.any()
    assert not entries


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 3, 4)])
def test_values_of_any_layout(shape, rng):
    values = rng.standard_normal(shape)
    for target in (
        np.zeros(shape),
        np.zeros(shape, order="F"),
        np.zeros((*shape, 2))[..., 0],
        np.zeros(shape)[...].T.T,
    ):
        for given in (values, values.copy(order="F"), np.stack([values, values], -1)[..., 1]):
            target[...] = 0
            _core.commit([(target, given)])
            np.testing.assert_array_equal(target, values)
