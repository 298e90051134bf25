"""In the middle of a run: copied, pickled, saved and loaded, it goes on to the last bit as if nothing had happened."""

import copy
import math
import pickle

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _core
from fusedstep.optimizers import REGISTRY
from helpers import ones
from runs import DENSE, FROZEN, HYPERS, average_of, bits, grads_for, groups_of, mapped, params_for, snapshot

# Where another optimizer takes a state over, hyper-parameters change.
pytestmark = pytest.mark.filterwarnings("ignore:load_state_dict. replaced")

F = np.float32
OPTIONS = {"max_grad_norm": 3.0, "skip_nonfinite": True}


@pytest.fixture(params=["numpy", fs.runtime.available_isas()[-1]])
def isa(request):
    with fs.runtime.use_isa(request.param):
        yield request.param


def run_on(optimizer, grads):
    return [optimizer.step(step_grads) for step_grads in grads]


def begun(rule, rng):
    """Two groups, a frozen parameter, one that paused, an average; three steps taken."""
    params = params_for(rule, rng, F)
    optimizer = REGISTRY[rule](groups_of(params), **HYPERS[rule], **average_of(rule), **OPTIONS)
    for step in range(3):
        grads = grads_for(rule, params, rng)
        if step == 1:
            grads[0] = None
        optimizer.step(grads)
    return optimizer, params


def other_run(rule, params, rng):
    """An optimizer of these parameters, unchanged, with other hyper-parameters and the state of other steps."""
    scratch = copy.deepcopy(params)
    optimizer = REGISTRY[rule](groups_of(scratch), lr=0.3)
    run_on(optimizer, [grads_for(rule, scratch, rng) for _ in range(2)])
    for group in optimizer.param_groups:
        group["params"][:] = [params[next(k for k, s in enumerate(scratch) if s is p)] for p in group["params"]]
    return optimizer


def by_copy(rule, optimizer, params, rng, path):
    return copy.deepcopy((optimizer, params))


def by_pickle(rule, optimizer, params, rng, path):
    return pickle.loads(pickle.dumps((optimizer, params)))


def by_state_dict(rule, optimizer, params, rng, path):
    params = copy.deepcopy(params)
    other = other_run(rule, params, rng)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, params


def by_checkpoint(rule, optimizer, params, rng, path):
    fs.save_checkpoint(path, params, optimizer)
    loaded = fs.load_checkpoint(path)
    params = list(loaded.params.values())
    other = other_run(rule, params, rng)
    other.load_state_dict(loaded.optimizer)
    return other, params


def numbers(optimizer):
    """All but the parameters."""
    state = optimizer.state_dict()
    groups = [{name: value for name, value in group.items() if name != "params"} for group in state["param_groups"]]
    return bits([optimizer.state, groups, state["step"], state["rule"]])


@pytest.mark.parametrize("how", [by_copy, by_pickle, by_state_dict, by_checkpoint])
def test_a_run_goes_on(optimizer_class, isa, how, tmp_path, rng):
    rule = optimizer_class.rule
    optimizer, params = begun(rule, rng)
    grads = [grads_for(rule, params, rng) for _ in range(3)]
    before = snapshot(optimizer)
    twin, copies = how(rule, optimizer, params, rng, tmp_path / "run")
    taken = [param for group in twin.param_groups for param in group["params"]]
    assert all(mine is theirs for mine, theirs in zip(taken, copies, strict=True))
    assert not any(np.shares_memory(a, b) for a, b in zip(copies, params, strict=True))
    reports = run_on(twin, grads)
    assert snapshot(optimizer) == before
    assert reports == run_on(optimizer, grads)
    assert [report.step for report in reports] == [4, 5, 6]
    assert [twin.state[k]["step"] for k in (0, 2, 3)] == [5, 6, 6]
    assert FROZEN not in twin.state
    assert bits(copies) == bits(params)
    assert numbers(twin) == numbers(optimizer)
    if rule in DENSE:
        assert bits(twin.ema) == bits(optimizer.ema)


def test_a_fresh_state_makes_a_used_optimizer_fresh(optimizer_class, isa, rng):
    """Nothing is left of the run that it replaces, in the groups neither."""
    rule = optimizer_class.rule
    start = params_for(rule, rng, F)
    grads = [grads_for(rule, start, rng) for _ in range(3)]
    used, clean = copy.deepcopy(start), copy.deepcopy(start)
    optimizer, other = (optimizer_class(groups_of(params), **HYPERS[rule]) for params in (used, clean))
    saved = copy.deepcopy(optimizer.state_dict())
    run_on(optimizer, [mapped(lambda g: 5 * g, step_grads) for step_grads in grads])
    optimizer.load_state_dict(saved)
    for param, first in zip(used, start, strict=True):
        param[...] = first
    assert run_on(optimizer, grads) == run_on(other, grads)
    assert bits(used) == bits(clean)
    assert numbers(optimizer) == numbers(other)


@pytest.mark.parametrize("how", [by_copy, by_pickle, by_state_dict, by_checkpoint])
def test_schedule_free_in_evaluation(how, tmp_path, rng):
    """The mode goes with the state: a step is refused until train() has made the parameters those of training."""
    rule = "schedule_free_adamw"
    optimizer, params = begun(rule, rng)
    grads = [grads_for(rule, params, rng) for _ in range(2)]
    optimizer.eval()
    twin, copies = how(rule, optimizer, params, rng, tmp_path / "run")
    with pytest.raises(RuntimeError, match="call train"):
        twin.step(grads[0])
    for each in (optimizer, twin):
        each.train()
        run_on(each, grads)
    assert bits(copies) == bits(params)
    assert numbers(twin) == numbers(optimizer)


def test_repr(optimizer_class, rng):
    optimizer, _ = begun(optimizer_class.rule, rng)
    lines = repr(optimizer).splitlines()
    assert (lines[0], lines[-1], len(lines)) == (f"{optimizer_class.__name__}(", ")", 4)
    for line, group in zip(lines[1:3], optimizer.param_groups, strict=True):
        size = sum(param.size for param in group["params"])
        assert line.startswith(f"    2 arrays of {size:,} parameters: lr={group['lr']!r}")
        for name in (*_core.rules()[optimizer_class.rule]["hypers"], *optimizer_class.options()):
            assert f"{name}={group[name]!r}" in line


def test_states_that_do_not_fit_are_refused(optimizer_class, rng):
    """Another optimizer's, another number of tensors, another shape: nothing has changed."""
    rule = optimizer_class.rule
    optimizer, _ = begun(rule, rng)
    before, good = snapshot(optimizer), copy.deepcopy(optimizer.state_dict())
    name = next(name for name, value in good["state"][3].items() if isinstance(value, np.ndarray))
    array = good["state"][3][name]
    rules = sorted(REGISTRY)
    other = rules[(rules.index(rule) + 1) % len(rules)]
    states = [begun(other, rng)[0].state_dict()]
    for change in (
        lambda s: s.update(rule=other),
        lambda s: s["param_groups"].pop(),
        lambda s: s["param_groups"][1]["params"].pop(),
        lambda s: s["param_groups"][0]["params"].append(4),
        lambda s: s["param_groups"][1].update(lr=math.nan),
        lambda s: s["state"][3].update({name: array[:-1]}),
        lambda s: s["state"][3].update({name: array.reshape(-1)}),
        lambda s: s["state"][3].update(velocities=ones(95, 90)),
        lambda s: s["state"][3].update(step=-1),
        lambda s: s["state"].update({4: {"step": 1}}),
        lambda s: s.update(step=1.5),
        lambda s: s.pop("state"),
        lambda s: s.pop("param_groups"),
    ):
        states.append(copy.deepcopy(good))
        change(states[-1])
    for state in states:
        with pytest.raises(ValueError, match=r"state_dict|lr: expected"):
            optimizer.load_state_dict(state)
        assert snapshot(optimizer) == before


def test_a_schedule_that_gives_nan(optimizer_class, isa, rng):
    """Refused before anything is written; asked again for the same step, it may have thought better of it."""
    rule = optimizer_class.rule
    params = params_for(rule, rng)
    others = copy.deepcopy(params)
    rates = iter([0.1, math.nan, math.inf, -1.0, 0.05])
    optimizer = optimizer_class(params, lr=lambda taken: next(rates))
    plain = optimizer_class(others, lr=lambda taken: (0.1, 0.05)[taken])
    grads = [grads_for(rule, params, rng) for _ in range(2)]
    optimizer.step(grads[0])
    before = snapshot(optimizer)
    for _ in range(3):
        with pytest.raises(ValueError, match="lr: expected a finite number >= 0, got"):
            optimizer.step(grads[1])
        assert snapshot(optimizer) == before
    assert optimizer.step(grads[1])[:2] == (2, 0.05)
    run_on(plain, grads)
    assert bits([params, optimizer.state]) == bits([others, plain.state])
