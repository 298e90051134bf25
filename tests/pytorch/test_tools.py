"""The doctor, the range test and curvature on torch's modules and optimizers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import fusedstep as fs
import fusedstep.torch as ft

D = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20260101)


def problem():
    """A network with one of our layers, and the loss of a batch."""
    model = nn.Sequential(nn.Linear(4, 8), ft.BatchNorm1d(8, activation="relu"), nn.Linear(8, 3)).double()
    x, target = torch.randn(32, 4, dtype=D), torch.randint(0, 3, (32,))
    return model, lambda: nn.functional.cross_entropy(model(x), target)


def train(optimizer, loss, doctor, steps=40):
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        doctor.observe(float(value.detach()))


class TestDoctor:
    def test_numbers_are_those_of_this_librarys_report(self):
        model, loss = problem()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        params = [p.detach().numpy().copy() for p in model.parameters()]
        ours = fs.Adam(params, lr=0.01, telemetry=True)
        doctor, expected = fs.doctor.Doctor(optimizer), fs.doctor.Doctor(ours)
        for _ in range(5):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            grads = [p.grad.numpy().copy() for p in model.parameters()]
            optimizer.step()
            doctor.observe(float(value.detach()))
            expected.observe(float(value.detach()), report=ours.step(grads), grads=grads)
        mine, theirs = doctor.run.telemetry, expected.run.telemetry
        assert set(mine) == set(theirs)
        for name, values in theirs.items():
            np.testing.assert_allclose(mine[name], values, rtol=1e-6, err_msg=name)

    @pytest.mark.parametrize(
        ("lr", "verdict"), [(1e-9, "crawling"), (1e4, "exploding"), (0.05, None)], ids=["small", "large", "right"]
    )
    def test_verdicts(self, lr, verdict):
        model, loss = problem()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        doctor = fs.doctor.Doctor(optimizer)
        train(optimizer, loss, doctor)
        names = [found.name for found in doctor.diagnose()]
        assert verdict in names if verdict else not {"crawling", "exploding", "nonfinite"}.intersection(names)
        assert doctor.run.optimizer == "sgd"
        assert "crawling" not in doctor.unseen()

    def test_nonfinite_and_missing_gradients(self):
        w, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([w, unused], lr=0.1)
        doctor = fs.doctor.Doctor(optimizer)
        (w * torch.tensor([1.0, math.inf])).sum().backward()
        optimizer.step()
        doctor.observe(1.0)
        assert doctor.run.telemetry["nonfinite"][0] == 1
        assert [found.name for found in doctor.diagnose()] == ["nonfinite"]

    def test_a_step_for_every_observation(self):
        model, loss = problem()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        doctor = fs.doctor.Doctor(optimizer)
        with pytest.raises(ValueError, match="optimizer: expected a step before every observation"):
            doctor.observe(1.0)
        train(optimizer, loss, doctor, 1)
        with pytest.raises(ValueError, match="optimizer: expected a step before every observation"):
            doctor.observe(1.0)

    def test_something_else(self):
        with pytest.raises(TypeError, match="optimizer: expected an Optimizer or None, got Linear"):
            fs.doctor.Doctor(nn.Linear(1, 1))


class TestRangeTest:
    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
    @pytest.mark.parametrize("tensor", [False, True])
    def test_everything_comes_back(self, kind, tensor):
        model, loss = problem()
        optimizer = kind(model.parameters(), lr=torch.tensor(0.01) if tensor else 0.01)
        loss().backward()
        optimizer.step()
        grads = [(p.grad, p.grad.clone()) for p in model.parameters()]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        states = [
            {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in optimizer.state.get(p, {}).items()}
            for p in model.parameters()
        ]
        found = fs.lr_range_test(model, (1e-4, 1e3, 60), optimizer=optimizer, loss=loss)
        assert found.steepest is not None
        assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
        assert all(p.grad is grad for p, (grad, _) in zip(model.parameters(), grads, strict=True))
        assert all(torch.equal(grad, value) for grad, value in grads)
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.01)
        for p, state in zip(model.parameters(), states, strict=True):
            assert all(
                torch.equal(torch.as_tensor(optimizer.state[p][k]), torch.as_tensor(v)) for k, v in state.items()
            )

    def test_it_is_the_step_written_out(self):
        model, loss = problem()
        optimizer = torch.optim.SGD(model.parameters())

        def step(lr):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            return value.item()

        rates = (1e-3, 10.0, 30)
        written = fs.lr_range_test(step, rates, params=model, optimizer=optimizer)
        given = fs.lr_range_test(model, rates, optimizer=optimizer, loss=loss)
        np.testing.assert_array_equal(given.losses, written.losses)

    def test_errors(self):
        model, loss = problem()
        optimizer = torch.optim.SGD(model.parameters())
        with pytest.raises(TypeError, match=r"optimizer: expected a torch\.optim\.Optimizer"):
            fs.lr_range_test(model, loss=loss)
        with pytest.raises(TypeError, match="loss: expected"):
            fs.lr_range_test(model, optimizer=optimizer)
        with pytest.raises(ValueError, match="optimizer: expected one of the module's parameters"):
            fs.lr_range_test(nn.Linear(1, 1), optimizer=optimizer, loss=loss)
        with pytest.raises(ValueError, match="params: expected None beside a module"):
            fs.lr_range_test(model, optimizer=optimizer, loss=loss, params=model)
        with pytest.raises(ValueError, match="loss: expected None beside a step function"):
            fs.lr_range_test(lambda lr: 1.0, loss=loss)
        with pytest.raises(TypeError, match="loss: expected a tensor, got float"):
            fs.lr_range_test(model, optimizer=optimizer, loss=lambda: 1.0)
        with pytest.raises(ValueError, match="loss: expected a tensor of one number"):
            fs.lr_range_test(model, optimizer=optimizer, loss=lambda: torch.ones(2))


class TestCurvature:
    def test_of_a_module_with_our_layer(self):
        """By differences of gradients, for our layers have no second derivative; torch's product is exact."""
        ours = nn.Sequential(nn.Linear(3, 4), ft.BatchNorm1d(4, activation="relu"), nn.Linear(4, 2)).double()
        theirs = nn.Sequential(ours[0], nn.BatchNorm1d(4).double(), nn.ReLU(), ours[2])
        x, target = torch.randn(16, 3, dtype=D), torch.randint(0, 2, (16,))
        grad, params, hvp = fs.curvature.from_torch(ours, lambda: nn.functional.cross_entropy(ours(x), target))
        with pytest.raises(RuntimeError, match="no second derivative"):
            hvp(params, params)
        found = fs.curvature.spectrum(grad, params, 1)
        grad, params, hvp = fs.curvature.from_torch(theirs, lambda: nn.functional.cross_entropy(theirs(x), target))
        exact = fs.curvature.spectrum(grad, params, 1, hvp=hvp)
        np.testing.assert_allclose(found.eigenvalues, exact.eigenvalues, rtol=1e-4)

    def test_revert_gives_second_derivatives(self):
        theirs, _ = problem()
        theirs[1] = nn.BatchNorm1d(8).double()
        x, target = torch.randn(32, 4, dtype=D), torch.randint(0, 3, (32,))

        def products():
            _, params, hvp = fs.curvature.from_torch(theirs, lambda: nn.functional.cross_entropy(theirs(x), target))
            return hvp(params, params)

        before = products()
        ft.convert_batch_norm(theirs)
        with pytest.raises(RuntimeError, match="no second derivative"):
            products()
        ft.revert(theirs)
        after = products()
        assert all(np.array_equal(before[name], after[name]) for name in before)
