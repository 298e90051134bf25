"""Every rule that torch has, against torch in float64, its defaults included; the others against the papers."""

import copy
import inspect
import itertools

import numpy as np
import pytest

import fusedstep as fs
import oracles
from cases import CASES
from fusedstep import _core
from fusedstep.optimizers import REGISTRY
from optional import torch

# Where another optimizer takes a state over, hyper-parameters change.
pytestmark = pytest.mark.filterwarnings("ignore:load_state_dict. replaced")

PROBLEMS = [(rule, hypers) for rule, case in CASES.items() if case.torch for hypers in case.valid]
# Torch has no such hyper-parameter.
PROBLEMS = [(rule, hypers) for rule, hypers in PROBLEMS if "accumulator" not in hypers]
FLAGS = ("amsgrad", "nesterov", "centered", "decoupled_weight_decay", "maximize")


@pytest.fixture(autouse=True)
def _double():
    """Torch keeps some scalars of its states in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Problem:
    """Random least squares, one per tensor; the gradient for `rule` at parameters in NumPy."""

    def __init__(self, rule, rng):
        self.rule = rule
        self.shapes = [(7, 3), (3, 5)] if rule == "muon" else [(7,), (3, 5), (2, 3, 4)]
        self.matrices = [rng.standard_normal((np.prod(s), np.prod(s))) / np.sqrt(np.prod(s)) for s in self.shapes]
        self.params = [rng.standard_normal(s) for s in self.shapes]

    def grads(self, params):
        return [
            (matrix.T @ (matrix @ p.ravel() - 1.0)).reshape(p.shape)
            for matrix, p in zip(self.matrices, params, strict=True)
        ]

    def rows(self, step):
        """Some rows of each tensor, none twice."""
        return [np.flatnonzero((np.arange(s[0]) + step) % 3) for s in self.shapes]


def torch_optimizer(rule, params, hypers):
    return getattr(torch.optim, CASES[rule].torch)(params, **hypers)


def step_both(problem, optimizer, peer, peers, step):
    """The gradients at torch's parameters, for both."""
    grads = problem.grads([param.detach().numpy() for param in peers])
    sparse = not _core.rules()[problem.rule]["dense"]
    mine = []
    for param, grad, rows in zip(peers, grads, problem.rows(step), strict=True):
        if sparse:
            param.grad = torch.sparse_coo_tensor(rows[None], grad[rows], grad.shape, check_invariants=True)
            mine.append(fs.RowSparse(rows, grad[rows], grad.shape))
        else:
            param.grad = torch.from_numpy(grad.copy())
            mine.append(grad)
    optimizer.step(mine)
    peer.step()


def assert_close(params, expected, tolerance=1e-12):
    """Relative to the largest of each array."""
    for mine, theirs in zip(params, expected, strict=True):
        theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
        assert np.abs(mine - theirs).max() <= tolerance * np.abs(theirs).max()


def train_both(rule, hypers, rng):
    """Thirty steps on both sides, whose gradients are those at torch's parameters, so that no difference grows."""
    problem = Problem(rule, rng)
    peers = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in problem.params]
    optimizer, peer = REGISTRY[rule](problem.params, **hypers), torch_optimizer(rule, peers, hypers)
    for step in range(30):
        if rule == "muon" and step:
            continue_from(peer, peers, optimizer, problem.params)
        before = [p.copy() for p in problem.params]
        step_both(problem, optimizer, peer, peers, step)
        if rule == "muon":
            # Torch multiplies in bfloat16, of 8 bits, which each iteration amplifies: a tenth of a move. The oracle
            # has all digits.
            moves = [p - start for p, start in zip(problem.params, before, strict=True)]
            theirs = [p.detach().numpy() - start for p, start in zip(peers, before, strict=True)]
            assert_close(moves, theirs, 0.2)
    assert_close(problem.params, peers, CASES[rule].tolerance)


def continue_from(peer, peers, optimizer, params):
    """Gives our side the parameters and the state of torch's."""
    for param, other in zip(params, peers, strict=True):
        param[...] = other.detach().numpy()
    optimizer.load_state_dict(copy.deepcopy(peer.state_dict()))


@pytest.mark.parametrize(("rule", "hypers"), PROBLEMS)
def test_thirty_steps(rule, hypers, native, rng):
    train_both(rule, hypers, rng)


@pytest.mark.parametrize("rule", [rule for rule, case in CASES.items() if case.torch])
def test_defaults(rule):
    """Torch's, wherever it has the hyper-parameter."""
    mine, theirs = (
        inspect.signature(kind).parameters for kind in (REGISTRY[rule], getattr(torch.optim, CASES[rule].torch))
    )
    shared = {name: p.default for name, p in mine.items() if name in theirs and name != "params"}
    assert len(shared) >= 3
    assert shared == {name: theirs[name].default for name in shared}


@pytest.mark.parametrize("rule", [rule for rule, case in CASES.items() if case.torch])
def test_every_boolean_option(rule, rng):
    """All combinations of them, with a weight decay to decouple."""
    hypers = _core.rules()[rule]["hypers"]
    parameters = inspect.signature(getattr(torch.optim, CASES[rule].torch)).parameters
    flags = [flag for flag in FLAGS if flag in parameters]
    base = {"lr": 0.01} | ({"weight_decay": 0.1} if "weight_decay" in hypers else {})
    base |= {"momentum": 0.9} if "momentum" in hypers else {}
    for values in itertools.product([False, True], repeat=len(flags)):
        train_both(rule, {**base, **dict(zip(flags, values, strict=True))}, rng)


@pytest.mark.parametrize(("rule", "hypers"), PROBLEMS)
def test_state_names(rule, hypers, rng):
    """The state is torch's, by name and value."""
    problem = Problem(rule, rng)
    peers = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in problem.params]
    optimizer, peer = REGISTRY[rule](problem.params, **hypers), torch_optimizer(rule, peers, hypers)
    for step in range(3):
        step_both(problem, optimizer, peer, peers, step)
    for k, param in enumerate(peers):
        theirs = {name: value for name, value in peer.state[param].items() if name != "step" and value is not None}
        mine = {name: value for name, value in optimizer.state[k].items() if name != "step"}
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            np.testing.assert_allclose(value, theirs[name].numpy(), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("rule", "hypers"), PROBLEMS)
def test_state_of_torch_loads_and_the_way_back(rule, hypers, rng):
    """Ten steps there, then ten on both sides from that state; and ten here, then ten on both sides."""
    hypers = {"lr": 0.02, **hypers}
    problem = Problem(rule, rng)
    peers = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in problem.params]
    warm = REGISTRY[rule]([p.copy() for p in problem.params], **hypers)
    peer = torch_optimizer(rule, peers, hypers)
    for step in range(10):
        step_both(problem, warm, peer, peers, step)

    params = [param.detach().numpy().copy() for param in peers]
    optimizer = REGISTRY[rule](params)
    optimizer.load_state_dict(peer.state_dict())
    for step in range(10, 20):
        step_both(problem, optimizer, peer, peers, step)
    assert_close(params, peers, CASES[rule].tolerance)

    # The parameters of this one are torch's, so that its state is in tensors.
    shared = [torch.nn.Parameter(param.detach().clone()) for param in peers]
    mine = REGISTRY[rule](shared)
    mine.load_state_dict(optimizer.state_dict())
    fresh = [torch.nn.Parameter(param.detach().clone()) for param in peers]
    back = torch_optimizer(rule, fresh, {})
    back.load_state_dict(copy.deepcopy(mine.state_dict()))
    for step in range(20, 30):
        step_both(problem, mine, back, fresh, step)
    assert_close([param.detach().numpy() for param in shared], fresh, CASES[rule].tolerance)


def test_states_of_other_optimizers_are_refused(rng):
    """Each pair of torch's: by the names of the states, or by the hyper-parameters of the groups."""
    rules = [rule for rule, case in CASES.items() if case.torch and _core.rules()[rule]["dense"] and rule != "muon"]
    for rule in rules:
        param = torch.nn.Parameter(torch.zeros(3))
        param.grad = torch.ones(3)
        peer = torch_optimizer(rule, [param], {})
        peer.step()
        for other in rules:
            optimizer = REGISTRY[other](np.zeros(3))
            before = repr(optimizer.state_dict())
            if other == rule or (rule, other) == ("adamw", "adam"):  # Adam decouples by a flag, which is loaded
                optimizer.load_state_dict(peer.state_dict())
                continue
            with pytest.raises(ValueError, match="state_dict"):
                optimizer.load_state_dict(peer.state_dict())
            assert repr(optimizer.state_dict()) == before


def oracle_problems():
    """The rules that torch does not have, and what it does not have of the others."""
    for rule, case in CASES.items():
        if case.oracle is None:
            continue
        cautious = [False, True] if _core.rules()[rule]["cautious"] else [False]
        for hypers in case.valid:
            if "maximize" in hypers:
                hypers = {name: value for name, value in hypers.items() if name != "maximize"}
            for flag in cautious:
                yield rule, hypers | ({"cautious": True} if flag else {})


@pytest.mark.parametrize(("rule", "hypers"), list(oracle_problems()))
def test_papers(rule, hypers, native, rng):
    """Thirty steps of the equations as published, written independently."""
    problem = Problem(rule, rng)
    recorded = []

    def grads(step, params):
        recorded.append(problem.grads(params))
        return recorded[-1]

    expected = CASES[rule].oracle(problem.params, grads, 30, **hypers)
    optimizer = REGISTRY[rule](problem.params, **hypers)
    for step_grads in recorded:
        optimizer.step(step_grads)
    assert_close(problem.params, expected)


def test_schedule_free_averages(rng):
    """Evaluation weights, and the way back to those of training."""
    problem = Problem("schedule_free_adamw", rng)
    hypers = {"lr": 0.1, "weight_decay": 0.1, "warmup_steps": 5}
    expected = oracles.schedule_free_adamw_eval(
        problem.params, lambda step, params: problem.grads(params), 30, **hypers
    )
    optimizer = fs.ScheduleFreeAdamW(problem.params, **hypers)
    for _ in range(30):
        optimizer.step(problem.grads(problem.params))
    trained = [param.copy() for param in problem.params]
    optimizer.eval()
    optimizer.eval()
    assert_close(problem.params, expected)
    with pytest.raises(RuntimeError, match="call train"):
        optimizer.step(problem.grads(problem.params))
    optimizer.train()
    optimizer.train()
    for mine, before in zip(problem.params, trained, strict=True):
        np.testing.assert_allclose(mine, before, rtol=1e-13)


def test_torch_tensors_are_updated_in_place():
    """A torch tensor is a parameter, and a torch tensor a gradient, without a copy."""
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = REGISTRY["sgd"](param, lr=0.5)
    optimizer.step(torch.full((4,), 2.0))
    assert param.detach().tolist() == [0.0] * 4
