"""L-BFGS with PyTorch's arguments, closures and state."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from fusedstep.torch import optim

WAYS = [
    {"lr": 0.1, "max_iter": 5},
    {"max_iter": 4, "history_size": 3, "line_search_fn": "strong_wolfe"},
    {"lr": 0.5, "max_iter": 6, "max_eval": 9, "line_search_fn": "strong_wolfe"},
]


class Problem:
    """A small network, its data, and how often its closure was called."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        self.x = torch.randn(16, 3, generator=generator, dtype=torch.float64)
        self.y = torch.randn(16, 2, generator=generator, dtype=torch.float64)
        self.weights = list(self.model.parameters())
        self.calls = 0

    def closure(self):
        self.calls += 1
        self.model.zero_grad()
        # Well conditioned: rounding errors do not grow.
        loss = (self.model(self.x) - self.y).square().mean() + 0.2 * sum(p.square().sum() for p in self.weights)
        loss.backward()
        return loss

    def vector(self):
        return torch.cat([p.detach().flatten() for p in self.weights])


def both(**arguments):
    mine, theirs = Problem(), Problem()
    return (mine, optim.LBFGS(mine.model.parameters(), **arguments)), (
        theirs,
        torch.optim.LBFGS(theirs.model.parameters(), **arguments),
    )


def distance(mine, theirs):
    return float((mine.vector() - theirs.vector()).abs().max() / theirs.vector().abs().max())


def saved(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("arguments", WAYS, ids=str)
class TestAgainstTorch:
    def test_thirty_evaluations(self, arguments):
        (mine, optimizer), (theirs, other) = both(**arguments)
        start = mine.vector().clone()
        while theirs.calls < 30:
            loss, expected = optimizer.step(mine.closure).detach(), other.step(theirs.closure).detach()
            assert float(loss) == pytest.approx(float(expected), rel=1e-12)
            assert mine.calls == theirs.calls
        assert distance(mine, theirs) <= 1e-12
        assert not torch.equal(mine.vector(), start)

    def test_states_move_both_ways_in_mid_run(self, arguments):
        (mine, optimizer), (theirs, other) = both(**arguments)
        expected = Problem()
        reference = torch.optim.LBFGS(expected.model.parameters(), **arguments)
        for step in range(6):
            if step in (2, 4):
                mine_state, their_state = saved(optimizer), saved(other)
                optimizer = optim.LBFGS(mine.model.parameters())
                other = torch.optim.LBFGS(theirs.model.parameters())
                optimizer.load_state_dict(their_state)
                other.load_state_dict(mine_state)
            for problem, one in ((mine, optimizer), (theirs, other), (expected, reference)):
                one.step(problem.closure)
        assert distance(mine, expected) <= 1e-12
        assert distance(theirs, expected) <= 1e-12

    def test_state_has_torchs_names(self, arguments):
        (mine, optimizer), (theirs, other) = both(**arguments)
        optimizer.step(mine.closure)
        other.step(theirs.closure)
        ((_, entry),), ((_, expected),) = optimizer.state.items(), other.state.items()
        assert list(entry) == list(expected)
        groups, others = optimizer.state_dict()["param_groups"], other.state_dict()["param_groups"]
        assert groups == others


def test_signature_is_torchs():
    ours, theirs = inspect.signature(optim.LBFGS).parameters, inspect.signature(torch.optim.LBFGS).parameters
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on(copied):
    """PyTorch's own has lost its parameters then."""
    problem = Problem()
    optimizer = optim.LBFGS(problem.model.parameters(), max_iter=3)
    optimizer.step(problem.closure)
    other, its = copied((problem, optimizer))
    before = problem.vector().clone()
    its.step(other.closure)
    assert torch.equal(problem.vector(), before)
    optimizer.step(problem.closure)
    assert torch.equal(problem.vector(), other.vector())
    assert not torch.equal(problem.vector(), before)


def test_hooks_run_once_though_torchs_has_been_made():
    (mine, optimizer), (theirs, other) = both(max_iter=2)
    calls = []
    for problem, one in ((mine, optimizer), (theirs, other)):
        one.register_step_pre_hook(lambda *_: calls.append("before"))
        one.register_step_post_hook(lambda *_: calls.append("after"))
        one.step(problem.closure)
    assert calls == ["before", "after"] * 2


def test_schedulers():
    problem = Problem()
    optimizer = optim.LBFGS(problem.model.parameters(), lr=1.0, max_iter=2)
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step(problem.closure)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr: expected a finite number >= 0, got -1.0"),
        ({"lr": torch.ones(2)}, TypeError, "lr: expected a number, got Tensor"),
        ({"max_iter": 0}, ValueError, "max_iter: expected a whole number >= 1, got 0"),
        ({"max_eval": 2.5}, TypeError, "max_eval: expected a whole number, got float"),
        ({"history_size": 0}, ValueError, "history_size: expected a whole number >= 1, got 0"),
        ({"tolerance_grad": float("nan")}, ValueError, "tolerance_grad: expected a finite number, got nan"),
        ({"tolerance_change": "1"}, TypeError, "tolerance_change: expected a number, got str"),
        ({"line_search_fn": "armijo"}, ValueError, "line_search_fn: expected None or 'strong_wolfe', got 'armijo'"),
        ({"max_grad_norm": 1.0}, TypeError, "unexpected keyword argument 'max_grad_norm'"),
    ],
)
def test_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        optim.LBFGS([torch.zeros(2, requires_grad=True)], **arguments)


def test_groups_and_closures():
    p, q = (torch.zeros(2, requires_grad=True) for _ in range(2))
    with pytest.raises(ValueError, match="params: expected one group"):
        optim.LBFGS([{"params": [p]}, {"params": [q]}])
    with pytest.raises(ValueError, match=r"params\['b'\]: comes twice, and as params\['a'\]"):
        optim.LBFGS([("a", p), ("b", p)])
    optimizer = optim.LBFGS([p])
    with pytest.raises(ValueError, match="params: expected one group"):
        optimizer.add_param_group({"params": [q]})
    with pytest.raises(TypeError, match="closure: expected a function, got NoneType"):
        optimizer.step(None)
    assert len(optimizer.param_groups) == 1
    assert not optimizer.state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_numbers_that_the_kernels_do_not_have(dtype):
    """Torch's own step takes them."""
    mine, theirs = (torch.linspace(0.5, 2.0, 4).to(dtype).requires_grad_() for _ in range(2))
    for p, optimizer in ((mine, optim.LBFGS([mine], max_iter=3)), (theirs, torch.optim.LBFGS([theirs], max_iter=3))):

        def closure(p=p):
            p.grad = None
            loss = (p - 1).abs().square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, torch.linspace(0.5, 2.0, 4).to(dtype))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("call", [2, 4])
def test_goes_on_after_an_exception_in_the_first_step(way, call):
    """As a new optimizer at the same place."""
    ours, theirs = Problem(), Problem()
    optimizer = optim.LBFGS(ours.weights, **way)

    def interrupted():
        if ours.calls + 1 == call:
            raise KeyboardInterrupt
        return ours.closure()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(interrupted)
    theirs.model.load_state_dict(ours.model.state_dict())
    new = torch.optim.LBFGS(theirs.weights, **way)
    for _ in range(3):
        optimizer.step(ours.closure)
        new.step(theirs.closure)
    for p, q in zip(ours.weights, theirs.weights, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("lr", float("nan"), ValueError), ("history_size", 0, ValueError), ("max_eval", 1.5, TypeError),
     ("line_search_fn", "armijo", ValueError), ("tolerance_grad", "x", TypeError)],
)  # fmt: skip
def test_hyper_parameters_that_a_group_got_later(name, value, error):
    problem = Problem()
    before = [p.detach().clone() for p in problem.weights]
    optimizer = optim.LBFGS(problem.weights)
    optimizer.param_groups[0][name] = value
    with pytest.raises(error, match=f"{name}: expected"):
        optimizer.step(problem.closure)
    assert all(torch.equal(p, q) for p, q in zip(problem.weights, before, strict=True))
