"""Every optimizer that torch has, with every option of its own: the same steps, and states that go both ways."""

import copy

import optim_cases as c
import pytest
import torch

from cases import CASES

PROBLEMS = [
    (rule, {name: value for name, value in hypers.items() if name != "maximize"})
    for rule in c.TORCHS
    for hypers in CASES[rule].valid
    if "accumulator" not in hypers
]


@pytest.fixture(autouse=True)
def _double():
    """Torch keeps some scalars of its states in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def keyed(problem):
    return f"{problem[0]}-{problem[1]}" if problem[1] else problem[0]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("rule", "hypers"), PROBLEMS, ids=map(keyed, PROBLEMS))
class TestAgainstTorch:
    def test_thirty_steps(self, rule, hypers, maximize):
        mine, theirs = c.parameters(rule), c.parameters(rule)
        optimizer = c.made(rule, mine, **hypers, maximize=maximize)
        other = c.peer(rule, theirs, **hypers, maximize=maximize)
        for step in range(30):
            for a, b in zip(mine, theirs, strict=True):
                b.grad = c.gradient(rule, b, step)
                a.grad = b.grad.clone()
            optimizer.step()
            other.step()
        assert c.distance(mine, theirs) <= max(1e-12, CASES[rule].tolerance)

    def test_states_move_both_ways_in_mid_run(self, rule, hypers, maximize):
        arguments = {**hypers, "maximize": maximize}
        mine, theirs, expected = (c.parameters(rule) for _ in range(3))
        optimizer, other = c.made(rule, mine, **arguments), c.peer(rule, theirs, **arguments)
        reference = c.peer(rule, expected, **arguments)
        for step in range(15):
            for a, b, e in zip(mine, theirs, expected, strict=True):
                e.grad = c.gradient(rule, e, step)
                a.grad, b.grad = e.grad.clone(), e.grad.clone()
            for one in (optimizer, other, reference):
                one.step()
            if step in (4, 9):
                mine_state, their_state = (copy.deepcopy(one.state_dict()) for one in (optimizer, other))
                optimizer = c.made(rule, mine)
                other = c.peer(rule, theirs)
                optimizer.load_state_dict(their_state)
                other.load_state_dict(mine_state)
        assert c.distance(mine, expected) <= max(1e-12, CASES[rule].tolerance)
        assert c.distance(theirs, expected) <= max(1e-12, CASES[rule].tolerance)

    def test_state_has_torchs_names_and_shapes(self, rule, hypers, maximize):
        mine, theirs = c.parameters(rule), c.parameters(rule)
        optimizer = c.made(rule, mine, **hypers, maximize=maximize)
        other = c.peer(rule, theirs, **hypers, maximize=maximize)
        c.take(rule, optimizer, mine, 2)
        c.take(rule, other, theirs, 2)
        assert len(optimizer.state) == len(other.state)
        for a, b in zip(mine, theirs, strict=True):
            entry, expected = optimizer.state.get(a, {}), other.state.get(b, {})
            assert sorted(entry) == sorted(expected)
            for name, value in expected.items():
                assert type(entry[name]) is type(value), name
                if isinstance(value, torch.Tensor):
                    assert (entry[name].shape, entry[name].dtype) == (value.shape, value.dtype), name
        groups, others = optimizer.state_dict()["param_groups"], other.state_dict()["param_groups"]
        for group, expected in zip(groups, others, strict=True):
            assert {name: group[name] for name in expected} == expected
