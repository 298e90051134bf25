"""This library's options on tensors, and steps in the backward pass."""

import copy
import pickle

import numpy as np
import optim_cases as c
import pytest
import torch

import fusedstep as fs
from fusedstep.optimizers import REGISTRY as ARRAYS
from fusedstep.torch import optim

VECTORS = [rule for rule in c.RULES if rule not in ("muon", "sparse_adam")]
OPTIONS = {
    "clip": {"max_grad_norm": 0.5},
    "ema": {"ema_decay": 0.9, "ema_warmup": True},
    "telemetry": {"telemetry": True},
    "bfloat16 states": {"state_dtype": "bfloat16"},
    "8-bit states": {"state_dtype": "8bit", "min_8bit_size": 1},
    "master": {"master_weights": True},
    "stochastic": {"stochastic_rounding": True, "seed": 7},
    "cautious": {"cautious": True},
}


def known(rule, options):
    """Whether the arrays' optimizer takes the options."""
    try:
        ARRAYS[rule](np.zeros(3, np.float32), **options)
    except (TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rule", "options"),
    [(rule, options) for rule in VECTORS for options in OPTIONS.values() if known(rule, options)],
)
def test_options_are_those_of_arrays(rule, options, dtype):
    """The same bits in parameters, averages and reports."""
    params, others = c.parameters(rule, dtype=dtype), c.parameters(rule, dtype=dtype)
    if rule == "sgd" and "state_dtype" in options:
        options = {**options, "momentum": 0.9}
    optimizer, arrays = c.made(rule, params, **options), ARRAYS[rule](others, **options)
    for step in range(3):
        for p, q in zip(params, others, strict=True):
            p.grad, q.grad = c.gradient(rule, p, step), None
        report = arrays.step([c.gradient(rule, q, step) for q in others])
        optimizer.step()
        assert optimizer.report == report
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
    if "ema_decay" in options:
        for mine, theirs in zip(optimizer.ema, arrays.ema, strict=True):
            assert np.array_equal(mine.numpy(), theirs)
    state = copy.deepcopy(optimizer.state_dict())
    again = c.made(rule, copy.deepcopy(params), **options)
    again.load_state_dict(state)
    c.take(rule, again, again.param_groups[0]["params"], 1, first=3)
    c.take(rule, optimizer, params, 1, first=3)
    for p, q in zip(params, again.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)


def test_a_step_with_infinities_is_left_out():
    params = c.parameters("adam")
    optimizer = optim.Adam(params, skip_nonfinite=True)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.full_like(p, float("inf"))
    optimizer.step()
    assert optimizer.report.skipped
    assert not optimizer.state
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@pytest.mark.parametrize("rule", VECTORS)
@pytest.mark.parametrize("overflows", [False, True])
def test_gradient_scaler(rule, overflows):
    params, others = (c.parameters(rule, dtype=torch.float32) for _ in range(2))
    optimizer, plain = c.made(rule, params), c.made(rule, others)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    for p, q in zip(params, others, strict=True):
        q.grad = c.gradient(rule, q, 0)
        p.grad = q.grad * 1024
    before = [p.detach().clone() for p in params]
    if overflows:
        params[1].grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    plain.step()
    expected = before if overflows else others
    assert all(torch.equal(p, q) for p, q in zip(params, expected, strict=True))
    assert scaler.get_scale() == (512.0 if overflows else 1024.0)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()


X = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4)


def loss_of(model):
    return (model(X) ** 2).sum()


@pytest.mark.parametrize("rule", [rule for rule in VECTORS if rule != "prodigy"])
class TestInBackward:
    def test_takes_the_same_steps_and_frees_the_gradients(self, rule):
        model, other = network(), network()
        kind = optim.REGISTRY[rule]
        optimizer, plain = optim.attach(model, kind), kind(other.parameters())
        for _ in range(4):
            loss_of(model).backward()
            assert all(p.grad is None for p in model.parameters())
            plain.zero_grad()
            loss_of(other).backward()
            plain.step()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
        assert len(optimizer.state_dict()["state"]) == len(plain.state_dict()["state"])
        assert optimizer.step() is None

    def test_sums_over_several_passes(self, rule):
        model, other = network(), network()
        kind = optim.REGISTRY[rule]
        optim.attach(model, kind, every=2)
        plain = kind(other.parameters())
        for k in range(4):
            loss_of(model).backward()
            loss_of(other).backward()
            if k % 2:
                plain.step()
                plain.zero_grad()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
    def test_copies_step_too(self, rule, copied):
        model = network()
        optimizer = optim.REGISTRY[rule](model.named_parameters(), in_backward=True)
        loss_of(model).backward()
        other, _ = copied((model, optimizer))
        loss_of(model).backward()
        loss_of(other).backward()
        assert all(p.grad is None for p in other.parameters())
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))

    def test_refuses_what_needs_all_gradients(self, rule):
        model = network()
        kind = optim.REGISTRY[rule]
        for name, value in (("max_grad_norm", 1.0), ("skip_nonfinite", True), ("telemetry", True)):
            with pytest.raises(ValueError, match=rf"{name}: expected (None|False) with in_backward"):
                optim.attach(model, kind, **{name: value})
        optimizer = optim.attach(model, kind)
        with pytest.raises(ValueError, match="closure: expected None with in_backward"):
            optimizer.step(lambda: loss_of(model))
        with pytest.raises(ValueError, match="in_backward: expected False with a GradScaler"):
            optimizer.found_inf = torch.zeros(())
            optimizer.step()

    def test_how_often(self, rule):
        with pytest.raises(ValueError, match="in_backward: expected True, False or a number"):
            optim.REGISTRY[rule](network().parameters(), in_backward=0.5)


def test_shared_step_size_is_refused_in_the_backward_pass():
    with pytest.raises(ValueError, match="in_backward: expected False for Prodigy"):
        optim.attach(network(), optim.Prodigy)


def test_report_before_the_first_step():
    assert optim.Adam(c.parameters("adam")).report is None
    assert isinstance(fs.StepReport, type)


@pytest.fixture
def mesh():
    """One process that calls itself a mesh."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_distributed_tensors_are_stepped_in_place(mesh):
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    start = torch.linspace(-1, 1, 12).view(4, 3)
    param = torch.nn.Parameter(distribute_tensor(start.clone(), mesh, [Shard(0)]))
    other = torch.nn.Parameter(start.clone())
    optimizer, plain = optim.AdamW([("w", param)]), optim.AdamW([other])
    place = param.to_local().data_ptr()
    for _ in range(3):
        for p, one in ((param, optimizer), (other, plain)):
            one.zero_grad()
            (p**2).sum().backward()
            one.step()
    assert isinstance(optimizer.state[param]["exp_avg"], DTensor)
    assert param.to_local().data_ptr() == place
    assert torch.equal(param.to_local(), other)
