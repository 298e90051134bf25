"""What `HostOffload` refuses, before anything is written."""

import copy
import re

import offload_cases as c
import pytest
import torch

from fusedstep.torch import HostOffload, optim

SLOTS = {"slots": 3, "slot_elements": 4096}


@pytest.mark.parametrize("rule", sorted(optim.REGISTRY.keys() - set(c.ELEMENTWISE)))
def test_rules_of_whole_tensors(rule):
    kind = optim.REGISTRY[rule]
    with pytest.raises(ValueError, match=f"optimizer: expected one whose rule is elementwise, got {kind.__name__}"):
        HostOffload(c.parameters(torch.float32, [(3, 3)]), kind, lr=0.1)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"cautious": True}, ValueError, "cautious: expected False with HostOffload"),
        ({"telemetry": True}, ValueError, "telemetry: expected False with HostOffload"),
        ({"in_backward": True}, ValueError, "in_backward: expected False with HostOffload"),
        ({"slots": -1}, ValueError, "slots: expected a number >= 0, got -1"),
        ({"slots": True}, TypeError, "slots: expected a whole number, got True"),
        ({"slots": 1.0}, TypeError, r"slots: expected a whole number, got 1\.0"),
        ({"slot_elements": 5000}, ValueError, "slot_elements: expected a multiple of 4096, got 5000"),
        ({"slot_elements": 0}, ValueError, "slot_elements: expected a number >= 1, got 0"),
        ({"prefetch": 1}, TypeError, "prefetch: expected True or False, got 1"),
        ({"always_read": None}, TypeError, "always_read: expected True or False, got None"),
        ({"timeout": 0}, ValueError, "timeout: expected a number > 0, got 0"),
        ({"timeout": "1"}, TypeError, "timeout: expected a number of seconds, got '1'"),
        ({"lr": -1.0}, ValueError, "lr: expected a finite number >= 0"),
        ({"momentum": 0.9}, TypeError, "momentum"),
        ({"master_weights": True, "stochastic_rounding": True}, ValueError, "stochastic_rounding"),
    ],
)
def test_arguments(given, error, message):
    with pytest.raises(error, match=message):
        HostOffload(c.parameters(torch.bfloat16), optim.AdamW, **given)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, "adamw", optim.FusedOptimizer])
def test_optimizer(kind):
    with pytest.raises(TypeError, match=r"optimizer: expected a class of fusedstep\.torch\.optim"):
        HostOffload(c.parameters(torch.bfloat16), kind)


@pytest.mark.parametrize(
    ("param", "error", "message"),
    [
        (torch.zeros(4, 6)[:, ::2], ValueError, r"params\['w'\]: expected elements without gaps in memory"),
        (torch.zeros(3, dtype=torch.complex64), TypeError, r"params\['w'\]: expected float32"),
        (torch.zeros(3, device="meta"), TypeError, r"params\['w'\]: expected a tensor with data"),
        (torch.eye(3).to_sparse(), TypeError, r"params\['w'\]: expected a dense tensor"),
    ],
)
def test_parameters(param, error, message):
    with pytest.raises(error, match=message):
        HostOffload([("w", torch.nn.Parameter(param))], optim.AdamW, **SLOTS)


@pytest.mark.parametrize("last", [True, False])
def test_gradients_and_states_before_anything_is_written(last):
    params = [(name, torch.nn.Parameter(torch.ones(5000).bfloat16())) for name in "abc"]
    optimizer = HostOffload(params, optim.AdamW, **SLOTS)
    c.take([optimizer], 1)
    before = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for _, p in params]
    name, bad = params[2 if last else 0]
    grads = [p.grad for _, p in params]
    entry = optimizer.state[bad]
    moment = entry["exp_avg"]

    def fails(error, message):
        with pytest.raises(error, match=message):
            optimizer.step()

    bad.grad = bad.grad.to_sparse()
    fails(TypeError, rf"grads\['{name}'\]: expected a dense tensor, got one with layout torch.sparse_coo")
    for (_, p), grad in zip(params, grads, strict=True):
        p.grad = grad
    label = rf"state\['{name}'\]\['exp_avg'\]"
    for value, error, message in (
        (moment.double(), TypeError, "expected float32 or bfloat16 or float16 or uint8, got float64"),
        (moment[:-1], ValueError, r"expected shape \(5000,\), got \(4999,\)"),
        (moment.tolist(), TypeError, "expected a dense tensor, got list"),
        (torch.zeros(10000)[::2], ValueError, "expected the memory layout of its parameter"),
        (torch.zeros(5000, dtype=torch.uint8), TypeError, "expected the scales of codes of 8 bits"),
    ):
        entry["exp_avg"] = value
        fails(error, "exp_avg_scale" if value is not None and "scales" in message else f"{label}: {message}")
    entry["exp_avg"] = moment
    optimizer.param_groups[0]["lr"] = -1.0
    fails(ValueError, "lr: expected a finite number >= 0")
    optimizer.param_groups[0]["lr"] = 1e-3
    for (_, p), value in zip(params, before[1], strict=True):
        assert torch.equal(p, value)
    for name, value in before[0]["state"][2].items():
        assert torch.equal(optimizer.state[params[2][1]][name], value)
    optimizer.step()


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("step", torch.tensor(1.5), ValueError, "expected a whole number >= 0, got 1.5"),
        ("step", torch.tensor(float("nan")), ValueError, "expected a whole number >= 0, got nan"),
        ("step", torch.tensor(-3.0), ValueError, "expected a whole number >= 0, got -3"),
        ("step", torch.ones(2), TypeError, "expected a float32 tensor of one number"),
        ("step", "1", TypeError, "expected a number, got str"),
        ("step", None, ValueError, r"missing, and the state has \['exp_avg', 'exp_avg_sq', 'master'\]"),
        ("exp_avg", None, ValueError, r"missing, and the state has \['exp_avg_sq', 'master', 'step'\]"),
    ],
)
def test_counts_and_moments_before_anything_is_written(name, value, error, message):
    """Of the last parameter, in a slot of its own."""
    params = [(name, torch.nn.Parameter(torch.ones(5000).bfloat16())) for name in "abc"]
    optimizer = HostOffload(params, optim.AdamW, **SLOTS)
    c.take([optimizer], 1)
    before = [p.detach().clone() for _, p in params]
    entry = optimizer.state[params[-1][1]]
    kept = entry.pop(name)
    optimizer.state[params[-1][1]] = dict(sorted(entry.items())) | ({} if value is None else {name: value})
    for _, p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(error, match=rf"state\['c'\]\['{name}'\]: {message}"):
        optimizer.step()
    assert all(torch.equal(p, value) for (_, p), value in zip(params, before, strict=True))
    optimizer.state[params[-1][1]][name] = kept
    optimizer.step()


def test_overlaps():
    """Seen though the pieces of the two are in different slots."""
    memory = torch.zeros(12000, dtype=torch.bfloat16)
    params = [(name, torch.nn.Parameter(memory[k : k + 8000])) for name, k in (("a", 0), ("b", 4000))]
    optimizer = HostOffload(params, optim.AdamW, slots=1, slot_elements=4096)
    for _, p in params:
        p.grad = torch.ones_like(p)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"params\['b'\]: overlaps params\['a'\] in memory"):
            optimizer.step()
    assert not memory.any()
    assert not optimizer.state
    params[1][1].data = memory[:8000].clone()
    optimizer.step()
    entry = optimizer.state[params[0][1]]
    entry["exp_avg"] = entry["exp_avg_sq"]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"state\['a'\]\['exp_avg_sq'\]: overlaps state\['a'\]\['exp_avg'\]"):
            optimizer.step()
    assert entry["step"] == 1


def test_gradients_in_memory_that_is_written():
    """A gradient would be read when another slot has been stepped in its memory."""
    params = [(name, torch.nn.Parameter(torch.ones(9000))) for name in "ab"]
    optimizer = HostOffload(params, optim.AdamW, **SLOTS)
    (_, a), (_, b) = params
    c.take([optimizer], 1)
    before = a.detach().clone(), b.detach().clone()
    a.grad, b.grad = b.detach(), a.detach()
    with pytest.raises(ValueError, match=r"grads\['a'\]: overlaps params\['b'\] in memory"):
        optimizer.step()
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
    a.grad = b.grad = torch.ones(9000)
    optimizer.step()


def test_overlaps_of_parameters_that_were_stepped_one_by_one():
    memory = torch.zeros(12000, dtype=torch.bfloat16)
    params = [(name, torch.nn.Parameter(memory[k : k + 8000])) for name, k in (("a", 0), ("b", 4000))]
    optimizer = HostOffload(params, optim.AdamW, **SLOTS)
    for _, p in params:
        p.grad = torch.ones_like(p)
        optimizer.step()
        p.grad = None
    for _, p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"params\['b'\]: overlaps params\['a'\] in memory"):
        optimizer.step()


@pytest.mark.parametrize("freed", ["params['b']", "grads['b']", "state['b']['exp_avg']"])
def test_freed_memory(freed):
    """Of the last of them, before the first is written."""
    params = [(name, torch.nn.Parameter(torch.ones(5000))) for name in "ab"]
    optimizer = HostOffload(params, optim.AdamW, **SLOTS)
    (_, a), (_, b) = params
    c.take([optimizer], 1)
    before = a.detach().clone()
    if freed.startswith("state"):
        optimizer.state[b]["exp_avg"] = optimizer.state[b]["exp_avg"].clone()
    tensor = {"p": b.data, "g": b.grad, "s": optimizer.state[b]["exp_avg"]}[freed[0]]
    tensor.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=re.escape(f"{freed}: its storage is smaller than its shape")):
        optimizer.step()
    assert torch.equal(a, before)
