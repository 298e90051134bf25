"""`torch.distributed.checkpoint` asks a fresh optimizer for its states by a step with lr 0 and gradients of 0."""

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from fusedstep.torch import optim

#: Its gradients are of some rows; the trial's are not, and PyTorch's own SparseAdam refuses them as well.
RULES = sorted(optim.REGISTRY.keys() - {"sparse_adam"})
OPTIONS = {
    "plain": (torch.float32, {}),
    "masters": (torch.bfloat16, {"master_weights": True, "ema_decay": 0.9}),
    "8 bits": (torch.float32, {"state_dtype": "8bit", "min_8bit_size": 1}),
}
#: Beyond the defaults, where those hide what a first step does.
OF_RULES = {
    "sgd": {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
    "lars": {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
    "muon": {"weight_decay": 0.1},
}
#: A count of steps of 0 tells that the next is the first, whose gradient is not dampened. SGD's state, as PyTorch's,
#: has none.
NOT_COUNTED = {"sgd"}


class Model(nn.Module):
    def __init__(self, dtype, matrices):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for k, shape in enumerate([(6, 3), (3, 5)] if matrices else [(7,), (3, 5), (2, 3, 4)]):
            self.register_parameter(f"w{k}", nn.Parameter(torch.randn(shape, generator=generator).to(dtype)))


def made(rule, dtype, **options):
    model = Model(dtype, rule == "muon")
    return model, optim.REGISTRY[rule](model.parameters(), **{**OF_RULES.get(rule, {}), **options})


def train(model, optimizer, steps=3):
    for step in range(steps):
        for k, param in enumerate(model.parameters()):
            param.grad = (param.detach() - 0.3) * (1 + 0.1 * step) + 0.05 * k
        optimizer.step()


def values(model, optimizer):
    """All numbers, in the order of parameters and names."""
    found = [p.detach().clone() for p in model.parameters()]
    for param in model.parameters():
        found += [torch.as_tensor(value) for _, value in sorted(optimizer.state[param].items())]
    return found


def same(one, other):
    assert all(torch.equal(a, b) for a, b in zip(values(*one), values(*other), strict=True))


def cases():
    for rule in RULES:
        for name, (dtype, options) in OPTIONS.items():
            if name == "8 bits" and rule in ("adafactor", "asgd", "rprop"):
                continue
            yield pytest.param(rule, dtype, options, id=f"{rule} {name}")


@pytest.mark.parametrize(("rule", "dtype", "options"), list(cases()))
class TestTrial:
    def test_nothing_has_happened(self, rule, dtype, options):
        asked, alone = made(rule, dtype, **options), made(rule, dtype, **options)
        before = [p.detach().clone() for p in asked[0].parameters()]
        lrs = [group["lr"] for group in asked[1].param_groups]
        found = get_optimizer_state_dict(*asked)
        assert all(torch.equal(a, b) for a, b in zip(before, asked[0].parameters(), strict=True))
        assert lrs == [group["lr"] for group in asked[1].param_groups]
        assert asked[1].report is None
        train(*alone, 1)
        for k, param in enumerate(alone[0].parameters()):
            entry = alone[1].state[param]
            assert found["state"][f"w{k}"].keys() == entry.keys() if entry else True
            assert float(found["state"][f"w{k}"].get("step", 0)) == 0
        train(*asked, 1)
        same(asked, alone)
        train(*asked)
        train(*alone)
        same(asked, alone)

    def test_weights_that_are_loaded_afterwards(self, rule, dtype, options):
        asked, alone = made(rule, dtype, **options), made(rule, dtype, **options)
        get_optimizer_state_dict(*asked)
        for model, _ in (asked, alone):
            with torch.no_grad():
                for param in model.parameters():
                    param.mul_(0.5)
        train(*asked)
        train(*alone)
        same(asked, alone)

    def test_saved_and_loaded(self, rule, dtype, options):
        if rule in NOT_COUNTED:
            options = {**options, "dampening": 0.0}
        saved, loaded, alone = (made(rule, dtype, **options) for _ in range(3))
        set_optimizer_state_dict(*loaded, get_optimizer_state_dict(*saved))
        train(*loaded)
        train(*alone)
        same(loaded, alone)


def test_states_that_were_written_are_kept():
    model, optimizer = made("adamw", torch.float32)
    found = get_optimizer_state_dict(model, optimizer)
    with torch.no_grad():
        found["state"]["w0"]["exp_avg"].fill_(1.0)
    kept = optimizer.state[model.w0]["exp_avg"]
    train(model, optimizer, 1)
    grad = model.w0.grad
    torch.testing.assert_close(optimizer.state[model.w0]["exp_avg"], 0.9 + 0.1 * grad)
    assert optimizer.state[model.w0]["exp_avg"] is kept


@pytest.mark.parametrize("kind", [optim.AdamW, torch.optim.AdamW])
def test_a_step_with_a_gradient_counts(kind):
    """Warm-up begins with lr 0."""
    model = Model(torch.float32, False)
    optimizer = kind(model.parameters(), lr=0.0)
    train(model, optimizer, 1)
    assert float(optimizer.state[model.w0]["step"]) == 1
    assert optimizer.state[model.w0]["exp_avg"].any()


def test_a_whole_network_of_muon():
    def fresh():
        generator = torch.Generator().manual_seed(1)
        model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Conv2d(3, 4, 2), nn.Linear(4, 4), nn.Linear(4, 2))
        with torch.no_grad():
            for param in model.parameters():
                param.copy_(torch.randn(param.shape, generator=generator))
        return model, optim.Muon(model.named_parameters(), lr=0.02)

    asked, loaded, alone = fresh(), fresh(), fresh()
    found = get_optimizer_state_dict(*asked)
    assert found["state"]["1.weight"]["momentum_buffer"].shape == (4, 3, 2, 2)
    set_optimizer_state_dict(*loaded, found)
    for pair in (asked, loaded, alone):
        train(*pair)
    same(asked, alone)
    same(loaded, alone)


def test_steps_in_the_backward_pass():
    """Their states are there for a checkpoint to be loaded into."""
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    optimizer = optim.attach(model, optim.AdamW, lr=0.1)
    found = get_optimizer_state_dict(model, optimizer)
    assert found["state"]["weight"].keys() == {"exp_avg", "exp_avg_sq", "step"}
    model(torch.ones(1, 3)).sum().backward()
    assert float(optimizer.state[model.weight]["step"]) == 1
